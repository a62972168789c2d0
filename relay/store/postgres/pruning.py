"""Retention in SQL, and one event that is erased by hand.

Law: see `GroupPruning`. The walk for room also begins anew now and then, because other nodes deliver too. Several nodes
may prune at once: what one has deleted, the others pass over.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from relay.model import DeliveryState
from relay.store import Retention
from relay.store.grouping.ages import KEPT_AGAINST_SIZE, OPEN, ages, listed
from relay.store.grouping.pruning import GroupPruning
from relay.store.postgres.archive import forget_outlived
from relay.store.postgres.erasing import erase_ended, erase_event
from relay.store.postgres.reading import Reading
from relay.store.postgres.transaction import Known, Works

ANEW_S = 60.0
"""After a walk for room that found nothing more, until all is looked at again."""

_BY_AGE = f"""
    SELECT e.seq, e.size, e.received_at <= $4 OR e.received_at > $3, e.received_at <= $4 AND NOT EXISTS (
        SELECT 1 FROM delivery d WHERE d.event_seq = e.seq AND (
            d.state IN ({listed(OPEN)})
            OR d.settled_at > CASE d.state WHEN 'dead' THEN $5::bigint ELSE $6::bigint END
        )) AND (e.received_at <= $6
            OR EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq))
    FROM event e WHERE e.seq > $1 ORDER BY e.seq LIMIT $2"""
_BY_SIZE = f"""
    SELECT e.seq, e.size, NOT EXISTS (
        SELECT 1 FROM delivery d WHERE d.event_seq = e.seq AND d.state IN ({listed(KEPT_AGAINST_SIZE)}))
    FROM event e WHERE e.seq > $1 ORDER BY e.seq LIMIT $2"""


class Pruning(GroupPruning):
    """What deletes events of one database, for one node."""

    def __init__(self, reading: Reading, writer: Works, known: Known) -> None:
        super().__init__(known)
        self._reading = reading
        self._writer = writer
        self._walked_at: float | None = None
        """When a walk for room first came to its end, since one began at the very oldest."""

    async def _by_age(self, retention: Retention, now: datetime, begin: int, scan: int) -> Sequence[Any]:
        return await self._reading.rows(_BY_AGE, begin, scan, *ages(retention, now))

    async def _by_size(self, begin: int, scan: int) -> Sequence[Any]:
        return await self._reading.rows(_BY_SIZE, begin, scan)

    async def _erase(self, seqs: Sequence[int], sparing: Sequence[DeliveryState]) -> int:
        number: int = await self._writer.work(lambda tx: erase_ended(tx, seqs, sparing=sparing))
        return number

    async def _forget(self, now: datetime) -> None:
        await self._writer.work(lambda tx: forget_outlived(tx, now))

    async def prune_oldest(self, wanted: int) -> int | None:
        """See `Store.prune_oldest`."""
        if self._walked_at is not None and time.monotonic() - self._walked_at >= ANEW_S:
            self._walked_at, self._remembered.stays_to = None, 0
        number = await super().prune_oldest(wanted)
        if number is None and self._walked_at is None:
            self._walked_at = time.monotonic()
        return number

    async def erase(self, event_id: str) -> int | None:
        """See `Store.erase`."""
        number: int | None = await self._writer.work(lambda tx: erase_event(tx, event_id))
        return number
