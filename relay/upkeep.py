"""Keeps the store within its bounds: retention by age and by size, no new events when there is no room, and the word.

Law: retention alone deletes, and for want of room only what has nothing left to be done; when only other events are
left, new ones are refused and everything else goes on. It is looked at every second; what is told is told once.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from relay.rules.fullness import LOG_SHARE, PRUNED, Fullness, Room, judge_fullness
from relay.store import Outlived, Retention, Store, StoreUnavailable, StoreUnusable

LOOK_EVERY = timedelta(seconds=1)
PRUNE_EVERY = timedelta(minutes=1)
"""Between two rounds by age."""
AGE_PAUSE = timedelta(milliseconds=100)
"""Between two batches of a round, so that answers do not queue behind deletions."""
DISBELIEF = timedelta(hours=1)
"""How long nothing is deleted by age when much time seems to have passed at once: the clock may be wrong, and be set
right."""
LEAP = timedelta(days=1)
"""More than this between the last event and a start is such a time."""
ROOM_PAUSE = timedelta(milliseconds=20)
"""The same while room is wanted, which arrivals take meanwhile."""

ADVICE = (
    "raise store.retention.max_size or free the disk; bring targets back, enable or discard what is held, "
    "or shorten store.retention"
)

log = structlog.get_logger()


class Upkeep:
    """What is done about one store's age and size."""

    def __init__(
        self,
        store: Store,
        retention: Callable[[], Retention],
        *,
        now: Callable[[], datetime],
        nearly_full: Callable[[int, int], None] = lambda _used, _limit: None,
    ) -> None:
        """`retention` is asked at each look, for it may change; `nearly_full` is told the bytes in use and their limit
        once, when the limit comes near."""
        self._store = store
        self._retention = retention
        self._now = now
        self._nearly_full = nearly_full
        self._room: Room | None = None
        self._fullness = Fullness()
        self._exhausted = False
        self._pruned_at = float("-inf")
        self._prunes_from = float("-inf")
        self._one_at_a_time = asyncio.Lock()
        self._damage = ""

    @property
    def used(self) -> int:
        """Bytes in use at the last look."""
        return self._room.used if self._room is not None else 0

    @property
    def limit(self) -> int:
        """Bytes that may be in use."""
        return self._retention().max_size

    def doubt_clock(self) -> None:
        """Delete nothing by age for a while: much time seems to have passed at once."""
        self._prunes_from = time.monotonic() + DISBELIEF.total_seconds()

    def doubt_clock_since(self, last: datetime | None) -> None:
        """The same, where the last event before this start is long ago."""
        if last is not None and self._now() - last > LEAP:
            self.doubt_clock()

    async def watch(self) -> None:
        """Look how full it is, for ever; apart from the pruning, which may take its time."""
        while True:
            try:
                await self.look()
            except StoreUnavailable:
                pass  # told by the store; the next look may see again
            except StoreUnusable as error:
                self._tell_damage(str(error))
            await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def prune_for_ever(self) -> None:
        """Delete what is over, and what must go for want of room."""
        while True:
            await self._prune_some()
            await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def _prune_some(self) -> None:
        try:
            async with self._one_at_a_time:
                await self._make_room()
                is_time = time.monotonic() - self._pruned_at >= PRUNE_EVERY.total_seconds()
                if is_time and time.monotonic() >= self._prunes_from:
                    self._pruned_at = time.monotonic()
                    await self._prune_outlived()
        except StoreUnavailable:
            pass  # the outage is told by the store; the next round goes on
        except StoreUnusable as error:
            self._tell_damage(str(error))

    async def look(self) -> None:
        """See how full it is now, and let the store take new events or refuse them.

        Raises:
            StoreUnavailable: it cannot be seen now; nothing changes.
        """
        limit = self.limit
        room = await self._measured()
        before = self._fullness
        self._room = room
        self._fullness = judge_fullness(before, room, limit=limit, exhausted=self._exhausted)
        self._exhausted = self._exhausted and self._fullness.prunes
        self._store.bar("" if self._fullness.accepts else _refusal(self._fullness, room, limit))
        self._tell(before, room, limit)

    async def _measured(self) -> Room:
        """What the store takes. A log that could be given back is no reason to call the disk short."""
        room = await self._store.room()
        if room.has_large_log and await self._store.empty_log():
            room = await self._store.room()
        return room

    async def prune(self) -> int:
        """Delete all that is over now; return how many events went.

        Raises:
            StoreUnavailable: the store cannot take it now; some may be gone.
        """
        async with self._one_at_a_time:
            gone = await self._prune_outlived()
            await self.look()
            return gone + await self._make_room()

    async def outlived(self) -> Outlived:
        """How many events `prune` would delete, roughly; nothing is deleted.

        Raises:
            StoreUnavailable: the store cannot be read now.
        """
        await self.look()
        wanted = self._wanted() if self._fullness.prunes else 0
        return await self._store.outlived(self._retention(), self._now(), wanted=wanted)

    def _wanted(self) -> int:
        """Bytes that are to be free again, for the limit or for the disk."""
        lacking = self._room.lacking if self._room is not None else 0
        return max(self.used - self.limit * PRUNED // 100, lacking)

    async def erase(self, event_id: str) -> int | None:
        """Delete one event whatever is still to be done with it; return how many deliveries went with it, None where
        there is no such event.

        Raises:
            StoreUnavailable: the store cannot take it now; the event is there.
        """
        deliveries = await self._store.erase(event_id)
        if deliveries is not None:
            log.warning("event.erased", event_id=event_id, deliveries=deliveries, reason="by hand")
        return deliveries

    async def _prune_outlived(self) -> int:
        """Delete what has outlived its retention, a small batch at a time."""
        gone = 0
        try:
            while number := await self._store.prune(self._retention(), self._now()):
                gone += number
                pause = ROOM_PAUSE if self._fullness.prunes else AGE_PAUSE
                await asyncio.sleep(pause.total_seconds())
        finally:
            _tell_pruned(gone, "retention")
        return gone

    async def _make_room(self) -> int:
        """Delete the oldest that may go, until there is room or nothing of that kind is left."""
        gone = 0
        try:
            while self._fullness.prunes:
                number = await self._store.prune_oldest(self._wanted())
                gone += number or 0
                self._exhausted = number is None
                await self.look()
                if self._exhausted:
                    break
                await asyncio.sleep(ROOM_PAUSE.total_seconds())
        finally:
            _tell_pruned(gone, "size")
        return gone

    def _tell(self, before: Fullness, room: Room, limit: int) -> None:
        """Tell what has changed, once each way."""
        after = self._fullness
        facts = {"bytes": room.used, "limit": limit, "percent": room.percent(limit), "free": max(0, room.takable)}
        if after.near and not before.near:
            log.warning("store.nearly_full", **facts, reason=_shortage(room, limit), advice=ADVICE)
            with suppress(Exception):  # who is told must not stop the upkeep
                self._nearly_full(*_pressure(room, limit))
        if before.accepts and not after.accepts:
            log.error("store.full", **facts, reason=_refusal(after, room, limit), advice=ADVICE)
        if after.accepts and not before.accepts:
            log.warning("store.accepting", **facts, reason="there is room again: new events are taken")

    def _tell_damage(self, words: str) -> None:
        """Tell of damage that stops the retention, once for each that is found."""
        if words != self._damage:
            self._damage = words
            log.error("store.damaged", reason=words)


def _tell_pruned(gone: int, reason: str) -> None:
    if gone:
        log.info("events.pruned", count=gone, reason=reason)


def _refusal(fullness: Fullness, room: Room, limit: int) -> str:
    """Why no new event is taken."""
    if fullness.short:
        return f"full: {_free(room)}"
    return f"full: {room.percent(limit)} % of store.retention.max_size ({limit} bytes) are in use by what must stay"


def _pressure(room: Room, limit: int) -> tuple[int, int]:
    """Bytes in use and their limit, of the store or of its disk: whichever is nearer."""
    taken, takable = room.disk - max(0, room.slack), max(1, room.disk - room.reserve)
    return (room.used, limit) if room.used * takable >= taken * limit else (taken, takable)


def _shortage(room: Room, limit: int) -> str:
    """What is running short."""
    if room.slack < 2 * room.reserve:
        return f"{_free(room)}; new events are refused when none are left"
    return f"{room.percent(limit)} % of store.retention.max_size are in use"


def _free(room: Room) -> str:
    """What is free for the store, what of it is spoken for, and what that leaves for new events; what is free inside
    the file counts, as far as the log has room. More may be spoken for than is free: no number is below zero."""
    if room.slack < room.takable:
        free, kept, place = room.free, room.reserve // LOG_SHARE, "on the disk"
    else:
        free, kept, place = room.free + room.vacant, room.reserve, "on the disk and in the store's file"
    owed = f"{room.owed} are needed for what waits in the log, " if room.owed else ""
    left = max(0, free - room.owed - kept)
    return (
        f"{free} bytes are free {place}, {owed}{kept} are kept for what is stored already, and {left} are left for new "
        "events"
    )
