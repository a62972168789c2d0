"""Retention in SQL: what is over by age, what goes for want of room, and one event that is erased by hand.

Law: candidates are found on the reading side, in parts, and deleted in small batches, so that no answer waits for a
search or a large deletion. Two walks go from the oldest on, each from where it was left: that by age begins anew each
round; that for room goes back only to what this node has delivered since, and now and then to the beginning, because
other nodes deliver too. Several nodes may prune at once: what one has deleted, the others pass over.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from datetime import datetime

from relay.model import DeliveryState
from relay.store import Outlived, Retention
from relay.store.grouping.ages import (
    COUNTED_SCANS,
    KEPT_AGAINST_SIZE,
    OPEN,
    OVERHEAD,
    PAST_ALL,
    PRUNE_BATCH,
    PRUNE_SCAN,
    SCANS,
    ages,
    batch,
    listed,
)
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


class Pruning:
    """What deletes events of one database, for one node."""

    def __init__(self, reading: Reading, writer: Works, known: Known) -> None:
        self._reading = reading
        self._writer = writer
        self._known = known
        self._pruned_to = 0
        self._walked_at: float | None = None
        """When a walk for room first came to its end, since one began at the very oldest."""

    async def prune(self, retention: Retention, now: datetime) -> int:
        """See `Store.prune`."""
        scan = PRUNE_BATCH
        while True:
            began = time.monotonic()
            last, seqs = await self._outlived(retention, now, scan)
            scan = PRUNE_SCAN
            self._pruned_to = last or 0
            if seqs and (number := await self._erase(seqs, OPEN)):
                return number
            if last is None:
                await self._writer.work(lambda tx: forget_outlived(tx, now))
                return 0
            await asyncio.sleep(time.monotonic() - began)  # many that must stay take no more than half of a reader

    async def _outlived(self, retention: Retention, now: datetime, scan: int) -> tuple[int | None, list[int]]:
        """The last of so many events looked at (None where all that follow are young), and those whose time is over."""
        rows = await self._reading.rows(_BY_AGE, self._pruned_to, scan, *ages(retention, now))
        over = batch([(seq, size) for seq, size, _, is_over in rows if is_over])
        if over and over[-1] < max(seq for seq, _, _, is_over in rows if is_over):
            return over[-1], over
        is_last = len(rows) < scan or not any(is_old for _, _, is_old, _ in rows)
        return (None if is_last else rows[-1][0]), over

    async def _erase(self, seqs: Sequence[int], sparing: Collection[DeliveryState]) -> int:
        number: int = await self._writer.work(lambda tx: erase_ended(tx, seqs, sparing=sparing))
        return number

    async def prune_oldest(self, wanted: int) -> int | None:
        """See `Store.prune_oldest`."""
        known = self._known
        if self._walked_at is not None and time.monotonic() - self._walked_at >= ANEW_S:
            self._walked_at, known.stays_to = None, 0
        for scan in (PRUNE_BATCH, *[PRUNE_SCAN] * SCANS):
            begin, known.stays_to = known.stays_to, PAST_ALL  # what is delivered during the look brings it back
            try:
                rows = await self._reading.rows(_BY_SIZE, begin, scan)
                seqs = batch([(seq, size + OVERHEAD) for seq, size, is_free in rows if is_free], wanted)
                number = await self._erase(seqs, KEPT_AGAINST_SIZE) if seqs else 0
            except BaseException:
                known.stays_to = min(known.stays_to, begin)
                raise
            last = seqs[-1] if seqs else rows[-1][0] if rows else begin
            known.stays_to = min(known.stays_to, last)
            if number:
                return number
            if not seqs and len(rows) < scan:
                if self._walked_at is None:
                    self._walked_at = time.monotonic()
                return None
        return 0

    async def outlived(self, retention: Retention, now: datetime, *, wanted: int) -> Outlived:
        """See `Store.outlived`."""
        events, size, is_whole = 0, 0, False
        begin = 0
        for _ in range(COUNTED_SCANS):
            rows = await self._reading.rows(_BY_AGE, begin, PRUNE_SCAN, *ages(retention, now))
            over = [size_ for _, size_, _, is_over in rows if is_over]
            events, size = events + len(over), size + sum(over) + OVERHEAD * len(over)
            is_whole = len(rows) < PRUNE_SCAN or not any(is_old for _, _, is_old, _ in rows)
            if is_whole:
                break
            begin = rows[-1][0]
        if size >= wanted:
            return Outlived(events, is_whole=is_whole)
        for_room = await self._for_room(wanted)
        return Outlived(max(events, for_room.events), is_whole=is_whole and for_room.is_whole)

    async def _for_room(self, wanted: int) -> Outlived:
        """How many of the oldest that may go make so much room."""
        begin, events = 0, 0
        for _ in range(COUNTED_SCANS):
            rows = await self._reading.rows(_BY_SIZE, begin, PRUNE_SCAN)
            for _, size, is_free in rows:
                if is_free:
                    events, wanted = events + 1, wanted - size - OVERHEAD
                if wanted <= 0:
                    return Outlived(events)
            if len(rows) < PRUNE_SCAN:
                return Outlived(events)
            begin = rows[-1][0]
        return Outlived(events, is_whole=False)

    async def erase(self, event_id: str) -> int | None:
        """See `Store.erase`."""
        number: int | None = await self._writer.work(lambda tx: erase_event(tx, event_id))
        return number
