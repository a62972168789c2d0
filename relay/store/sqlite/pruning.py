"""Retention in SQL, and one event that is erased by hand, its bytes overwritten: see `GroupPruning`."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from relay.model import DeliveryState
from relay.store import Retention, StoreUnavailable
from relay.store.grouping.ages import KEPT_AGAINST_SIZE, OPEN, ages, listed
from relay.store.grouping.pruning import GroupPruning
from relay.store.sqlite.archive import forget_outlived
from relay.store.sqlite.erasing import erase_ended, erase_event
from relay.store.sqlite.reading import Reading
from relay.store.sqlite.schema import MIGRATIONS
from relay.store.sqlite.transaction import Transaction
from relay.store.sqlite.writer import Writer

EMPTYING_S = 0.5
"""How long one who wants the log emptied waits for that; it goes on by itself."""

_STAYS = f"""EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq
    AND d.state IN ({listed(KEPT_AGAINST_SIZE)}))"""
_BUSY = listed(OPEN)
_BY_AGE = f"""
    SELECT e.seq, e.size, e.received_at <= :old OR e.received_at > :now, e.received_at <= :old AND NOT EXISTS (
        SELECT 1 FROM delivery d WHERE d.event_seq = e.seq AND (
            d.state IN ({_BUSY})
            OR d.settled_at > CASE d.state WHEN 'dead' THEN :dead ELSE :delivered END
        )) AND (e.received_at <= :delivered
            OR EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq))
    FROM event e WHERE e.seq > :from ORDER BY e.seq LIMIT :scan"""
_BY_SIZE = f"SELECT e.seq, e.size, NOT {_STAYS} FROM event e WHERE e.seq > :from ORDER BY e.seq LIMIT :scan"


class Pruning(GroupPruning):
    """What deletes events of one store."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        super().__init__(writer.ledger)
        self._reading = reading
        self._writer = writer

    async def _by_age(self, retention: Retention, now: datetime, begin: int, scan: int) -> Sequence[Any]:
        values = ages(retention, now)._asdict() | {"from": begin, "scan": scan}
        return await self._reading.rows(_BY_AGE, values)

    async def _by_size(self, begin: int, scan: int) -> Sequence[Any]:
        return await self._reading.rows(_BY_SIZE, {"from": begin, "scan": scan})

    async def _erase(self, seqs: Sequence[int], sparing: Sequence[DeliveryState]) -> int:
        number: int = await self._writer.work(lambda tx: erase_ended(tx, seqs, sparing=sparing))
        return number

    async def _forget(self, now: datetime) -> None:
        await self._writer.work(lambda tx: forget_outlived(tx, now))

    async def erase(self, event_id: str) -> int | None:
        """See `Store.erase`."""
        number: int | None = await self._writer.work(lambda tx: erase_event(tx, event_id))
        if number is not None and await self.empty_log():
            with contextlib.suppress(StoreUnavailable):
                await self._writer.work(_begin_log)
        return number

    async def empty_log(self) -> bool:
        """Have the log moved home and emptied; False where that goes on because a reader needs it still."""
        emptied = self._writer.empty_log()
        await asyncio.wait({emptied}, timeout=EMPTYING_S)
        return emptied.done()


def _begin_log(tx: Transaction) -> None:
    """Write something that changes nothing: a log that a kill leaves empty is not to be told from one that was lost."""
    tx.db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
