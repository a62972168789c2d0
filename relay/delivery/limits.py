"""The rates that targets ask for: one bucket for each target, or for all targets of a group.

Law: a request that begins has taken a token, whatever kind it is. Who finds none gets a place in the queue and is told
when to come again; the first in the queue is the next to be served, and who was served stands at its end. So the
targets of a group take turns, however much one of them has to send. A place whose owner does not come is passed over.

A bucket is as old as the process: a start may spend one burst, at most a second's worth.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from relay.model import Rate, Target
from relay.rules.rate import Bucket, had_within, overdrawn, refilled, take, until

NAP = timedelta(milliseconds=5)
"""Who waits for the rate sleeps so long at least; what comes free meanwhile is not lost."""
GRACE = timedelta(milliseconds=250)
"""How long the first in the queue may leave its token unused before the next is served."""


class Limit:
    """One bucket and the queue before it."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._bucket = Bucket()
        self._queue: dict[str, Callable[[], None]] = {}
        self._first_since: datetime | None = None
        self._free_since: datetime | None = None
        """When there is or was a token; None for a bucket that nothing was taken from."""

    def change(self, rate: Rate, now: datetime) -> None:
        """Go on at another rate with the tokens that are left."""
        if rate != self._rate:
            bucket, self._rate = refilled(self._bucket, self._rate, now), rate
            self._keep(bucket, now)

    def take(self, name: str, call: Callable[[], None], now: datetime) -> timedelta | None:
        """Take a token: None where it was had, else how long until it is worth asking again."""
        self._pass_over(name, now)
        if next(iter(self._queue), name) == name:
            bucket, missing = take(self._bucket, self._rate, now)
            if missing is None:
                self._keep(bucket, now)
                self.leave(name, now)
                return None
        self.join(name, call, now)
        return self.wait(name, now)

    def join(self, name: str, call: Callable[[], None], now: datetime) -> None:
        """Take a place in the queue, or keep it."""
        if not self._queue:
            self._first_since = now
        self._queue.setdefault(name, call)

    def wait(self, name: str, now: datetime) -> timedelta:
        """How long until a token can be had from the place in the queue, or from its end."""
        if self._bucket.at is not None and now < self._bucket.at:  # the clock was set back
            self._keep(refilled(self._bucket, self._rate, now), now)
            self._first_since = now
        ahead = list(self._queue).index(name) if name in self._queue else len(self._queue)
        own = until(self._bucket, self._rate, now, ahead + 1)
        return own + GRACE if ahead else own

    def leave(self, name: str, now: datetime) -> None:
        """Give up a place; the first of those that are left is called."""
        was_first = next(iter(self._queue), None) == name
        self._queue.pop(name, None)
        if was_first and self._queue:
            self._first_since = now
            next(iter(self._queue.values()))()

    def ahead(self, name: str, now: datetime, span: timedelta) -> int:
        """How many tokens will be had within a span, shared with all who wait."""
        sharing = len(self._queue.keys() | {name})
        return -(-had_within(self._bucket, self._rate, now, span) // sharing)

    def free_for(self, span: timedelta, now: datetime) -> bool:
        """Whether there has been a token for so long."""
        return self._free_since is None or now - self._free_since >= span

    def overdraw(self, now: datetime) -> None:
        """Take a token that may not be there: who comes next waits for it."""
        self._keep(overdrawn(self._bucket, self._rate, now), now)

    def _keep(self, bucket: Bucket, now: datetime) -> None:
        self._bucket = bucket
        self._free_since = now + until(bucket, self._rate, now, 1)

    def _pass_over(self, name: str, now: datetime) -> None:
        """Drop the first in the queue where it has left its token unused for too long."""
        first = next(iter(self._queue), name)
        if first == name or self._first_since is None:
            return
        if now - self._first_since >= GRACE and self.free_for(GRACE, now):
            self.leave(first, now)


class Share:
    """One target's part in a limit. `call` is called when it is its turn to ask."""

    def __init__(self, limit: Limit, name: str) -> None:
        self._limit = limit
        self._name = name

    def take(self, now: datetime, call: Callable[[], None]) -> timedelta | None:
        """Take the token of an attempt that begins now: None where it was had, else how long to wait for it."""
        return self._limit.take(self._name, call, now)

    def join(self, now: datetime, call: Callable[[], None]) -> None:
        """Take a place in the queue before there is anything to begin, because its turn is far."""
        self._limit.join(self._name, call, now)

    def wait(self, now: datetime) -> timedelta:
        """How long until a token can be had; no place is taken."""
        return self._limit.wait(self._name, now)

    def leave(self, now: datetime) -> None:
        """There is nothing to begin: others need not wait for this one."""
        self._limit.leave(self._name, now)

    def ahead(self, now: datetime, span: timedelta) -> int:
        """How many attempts can begin within a span."""
        return self._limit.ahead(self._name, now, span)

    def free_for(self, span: timedelta, now: datetime) -> bool:
        """Whether there has been a token for so long."""
        return self._limit.free_for(span, now)

    def overdraw(self, now: datetime) -> None:
        """Take the token of a request that does not wait."""
        self._limit.overdraw(now)


class Turnstile:
    """Where the attempts of one target get the token of their rate: those that are prepared first wait here for it when
    they are about to be sent, one after the other, and the others come behind them."""

    def __init__(self, share: Share | None, *, now: Callable[[], datetime], called: Callable[[], None]) -> None:
        """`share` is the target's part in its rate, None where it asks for none; `called` is called with `call`."""
        self.share = share
        self.waiting = 0
        self.asks_at: datetime | None = None
        """When it is worth asking again."""
        self._now = now
        self._forward = called
        self._called = asyncio.Event()
        self._one_by_one = asyncio.Lock()

    def call(self) -> None:
        """It is this target's turn to ask for a token."""
        self._called.set()
        self._forward()

    async def token(self, *, by: datetime) -> timedelta | None:
        """Wait for a token and take it: None where it was had, else how long it is still away, which is later than
        `by`."""
        self.waiting += 1
        wait: timedelta | None = NAP
        try:
            async with self._one_by_one:
                while (wait := self._take()) is not None and self._now() + wait <= by:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(NAP, wait).total_seconds()):
                            await self._called.wait()
        finally:
            self.waiting -= 1
            if wait is not None and not self.waiting and self.share is not None:
                self.share.leave(self._now())
        return wait

    def _take(self) -> timedelta | None:
        self._called.clear()
        return None if self.share is None else self.share.take(self._now(), self.call)

    def passes(self, now: datetime) -> bool:
        """Take the token of an attempt that begins at once, or a place in the queue for it. What was prepared comes
        first."""
        if self.share is None:
            return True
        wait = self.share.wait(now) if self.waiting else self.share.take(now, self.call)
        self.asks_at = None if wait is None else now + wait
        return wait is None

    def is_soon(self, now: datetime, span: timedelta) -> bool:
        """Whether a token can be had within a span."""
        return self.share is None or self.share.wait(now) <= span

    def affordable(self, now: datetime, span: timedelta) -> int | None:
        """How many attempts can begin within a span, None where no rate bounds them; where none can, a place is taken
        in the queue."""
        if self.share is None:
            return None
        wait = self.share.wait(now)
        if wait <= span:
            return self.share.ahead(now, span)
        self.share.join(now, self.call)
        self.asks_at = now + wait - span
        return 0

    def step_aside(self, now: datetime) -> None:
        """Nothing is to begin now: the others of the group need not wait for this target."""
        if self.share is not None and not self.waiting:
            self.share.leave(now)


class Limits:
    """All the limits that are in use: one lives as long as a target has a share in it."""

    def __init__(self) -> None:
        self._limits: WeakValueDictionary[tuple[str, str], Limit] = WeakValueDictionary()

    def share(self, target: Target, now: datetime) -> Share | None:
        """The share of a target as the config has it now; what was taken of the same limit before stays taken."""
        if target.rate is None:
            return None
        key = ("target", target.name) if target.limit_group is None else ("group", target.limit_group)
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = Limit(target.rate)
        limit.change(target.rate, now)
        return Share(limit, target.name)
