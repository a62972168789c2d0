"""Retention in SQL: what is over by age, what goes for want of room, and one event that is erased by hand.

Law: candidates are found on the reading side, in parts, and deleted in small batches, so that no answer waits for a
search or a large deletion. Two walks go from the oldest on, each from where it was left: that by age begins anew each
round; that for room goes back only to what has been delivered since, so that what must stay is looked at once.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import datetime

from relay.model import DeliveryState
from relay.store import Outlived, Retention, StoreUnavailable
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


class Pruning:
    """What deletes events of one store."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer
        self._pruned_to = 0

    async def prune(self, retention: Retention, now: datetime) -> int:
        """See `Store.prune`."""
        scan = PRUNE_BATCH
        while True:
            began = time.monotonic()
            last, seqs = await self._outlived(retention, now, scan)
            scan = PRUNE_SCAN
            self._pruned_to = last or 0
            if seqs:
                return await self._erase(seqs, OPEN)
            if last is None:
                await self._writer.work(lambda tx: forget_outlived(tx, now))
                return 0
            await asyncio.sleep(time.monotonic() - began)  # many that must stay take no more than half of the reader

    async def _outlived(self, retention: Retention, now: datetime, scan: int) -> tuple[int | None, list[int]]:
        """The last of so many events looked at (None where all that follow are young), and those whose time is over."""
        values = ages(retention, now)._asdict() | {"from": self._pruned_to, "scan": scan}
        rows = await self._reading.rows(_BY_AGE, values)
        over = batch([(seq, size) for seq, size, _, is_over in rows if is_over])
        if over and over[-1] < max(seq for seq, _, _, is_over in rows if is_over):
            return over[-1], over
        is_last = len(rows) < scan or not any(is_old for _, _, is_old, _ in rows)
        return (None if is_last else rows[-1][0]), over

    async def _erase(self, seqs: Sequence[int], sparing: Sequence[DeliveryState]) -> int:
        number: int = await self._writer.work(lambda tx: erase_ended(tx, seqs, sparing=sparing))
        return number

    async def prune_oldest(self, wanted: int) -> int | None:
        """See `Store.prune_oldest`."""
        ledger = self._writer.ledger
        for scan in (PRUNE_BATCH, *[PRUNE_SCAN] * SCANS):
            begin, ledger.stays_to = ledger.stays_to, PAST_ALL  # what is delivered during the look brings it back
            try:
                rows = await self._reading.rows(_BY_SIZE, {"from": begin, "scan": scan})
                seqs = batch([(seq, size + OVERHEAD) for seq, size, is_free in rows if is_free], wanted)
                number = await self._erase(seqs, KEPT_AGAINST_SIZE) if seqs else 0
            except BaseException:
                ledger.stays_to = min(ledger.stays_to, begin)
                raise
            last = seqs[-1] if seqs else rows[-1][0] if rows else begin
            ledger.stays_to = min(ledger.stays_to, last)
            if seqs:
                return number
            if len(rows) < scan:
                return None
        return 0

    async def outlived(self, retention: Retention, now: datetime, *, wanted: int) -> Outlived:
        """See `Store.outlived`."""
        events, size, is_whole = 0, 0, False
        values = ages(retention, now)._asdict()
        begin = 0
        for _ in range(COUNTED_SCANS):
            rows = await self._reading.rows(_BY_AGE, values | {"from": begin, "scan": PRUNE_SCAN})
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
            rows = await self._reading.rows(_BY_SIZE, {"from": begin, "scan": PRUNE_SCAN})
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
