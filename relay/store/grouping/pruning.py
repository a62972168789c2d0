"""Retention: the walks that find what is over by age and what goes for want of room; a store brings the statements.

Law: candidates are found on the reading side, in parts, and deleted in small batches, so that no answer waits for a
search or a large deletion. Two walks go from the oldest on, each from where it was left: that by age begins anew each
round; that for room goes back only to what has been delivered since, so that what must stay is looked at once.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any

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
    batch,
)
from relay.store.grouping.changes import Remembered


class GroupPruning(ABC):
    """What deletes events of one store."""

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self._pruned_to = 0

    @abstractmethod
    async def _by_age(self, retention: Retention, now: datetime, begin: int, scan: int) -> Sequence[Any]:
        """(seq, size, whether it is as old as any that goes, whether its time is over) of so many events after one."""

    @abstractmethod
    async def _by_size(self, begin: int, scan: int) -> Sequence[Any]:
        """(seq, size, whether it may go for want of room) of so many events after one."""

    @abstractmethod
    async def _erase(self, seqs: Sequence[int], sparing: Sequence[DeliveryState]) -> int:
        """Delete events, but for those that have become busy; return how many went."""

    @abstractmethod
    async def _forget(self, now: datetime) -> None:
        """Delete what is kept beside events and is too old."""

    @abstractmethod
    async def erase(self, event_id: str) -> int | None:
        """See `Store.erase`."""

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
                await self._forget(now)
                return 0
            await asyncio.sleep(time.monotonic() - began)  # many that must stay take no more than half of a reader

    async def _outlived(self, retention: Retention, now: datetime, scan: int) -> tuple[int | None, list[int]]:
        """The last of so many events looked at (None where all that follow are young), and those whose time is over."""
        rows = await self._by_age(retention, now, self._pruned_to, scan)
        over = batch([(seq, size) for seq, size, _, is_over in rows if is_over])
        if over and over[-1] < max(seq for seq, _, _, is_over in rows if is_over):
            return over[-1], over
        is_last = len(rows) < scan or not any(is_old for _, _, is_old, _ in rows)
        return (None if is_last else rows[-1][0]), over

    async def prune_oldest(self, wanted: int) -> int | None:
        """See `Store.prune_oldest`."""
        known = self._remembered
        for scan in (PRUNE_BATCH, *[PRUNE_SCAN] * SCANS):
            begin, known.stays_to = known.stays_to, PAST_ALL  # what is delivered during the look brings it back
            try:
                rows = await self._by_size(begin, scan)
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
                return None
        return 0

    async def outlived(self, retention: Retention, now: datetime, *, wanted: int) -> Outlived:
        """See `Store.outlived`."""
        events, size, is_whole = 0, 0, False
        begin = 0
        for _ in range(COUNTED_SCANS):
            rows = await self._by_age(retention, now, begin, PRUNE_SCAN)
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
            rows = await self._by_size(begin, PRUNE_SCAN)
            for _, size, is_free in rows:
                if is_free:
                    events, wanted = events + 1, wanted - size - OVERHEAD
                if wanted <= 0:
                    return Outlived(events)
            if len(rows) < PRUNE_SCAN:
                return Outlived(events)
            begin = rows[-1][0]
        return Outlived(events, is_whole=False)
