"""Sees that the clock was set while the relay runs, and has all that waits by it judged anew.

Law: spans in memory are counted by clocks that nobody sets; this is for what is stored by the clock of the wall. A
clock that was set ahead makes due what waited, which leaves as slowly as ever, and is believed in what it says of ages
only after a while. One that was set back leaves no wait longer than the longest of its kind.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from relay.rules.clock import Reading, step
from relay.store import StoreUnavailable

LOOK_EVERY = timedelta(seconds=1)
_TOGETHER_S = 0.1
"""Two readings that are further apart are no reading of one moment."""

log = structlog.get_logger()


def steady() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Timekeeping:
    """Watches the clock from when it is made."""

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        set_ahead: Callable[[], None],
        set_back: Callable[[], Awaitable[None]],
        count: Callable[[], float] = steady,
    ) -> None:
        """`set_ahead` and `set_back` are called after the clock was; the latter again until the store takes it."""
        self._now = now
        self._count = count
        self._set_ahead = set_ahead
        self._set_back = set_back
        self._owes = False
        self._reading = self._read()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            await self.look()

    async def look(self) -> None:
        """Look once."""
        before, self._reading = self._reading, self._read()
        moved = step(before, self._reading)
        if moved is not None:
            is_ahead = moved > timedelta(0)
            log.warning("clock.stepped", seconds=round(moved.total_seconds(), 1), reason=_words(is_ahead=is_ahead))
            if is_ahead:
                self._set_ahead()
            self._owes = self._owes or not is_ahead
        if self._owes:
            with suppress(StoreUnavailable):
                await self._set_back()
                self._owes = False

    def _read(self) -> Reading:
        """Both clocks at one moment; a process that was stopped in between reads again."""
        while True:
            before = self._count()
            reading = Reading(self._now(), before)
            if self._count() - before < _TOGETHER_S:
                return reading


def _words(*, is_ahead: bool) -> str:
    if is_ahead:
        return "the clock was set ahead: what waited is due, and nothing is deleted by age for an hour"
    return "the clock was set back: nothing waits longer for it than it may"
