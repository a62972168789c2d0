"""All lanes: started, woken, watched over, and taken down together.

Law: a lane that fails is restarted with growing waits and loudly; one that keeps failing ends the process, because a
delivery loop that is silently dead is the worst fault of all.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from random import Random
from typing import Protocol

from relay.delivery.lane import Lane, Observer, SendsOne
from relay.model import Claim, Event, Outcome, Target, TargetHealth, TargetState
from relay.rules.health import Enable, at_start, disabled_by_hand, enabled_by_hand
from relay.store import Store, StoreUnavailable

RECLAIM_EVERY = timedelta(seconds=30)
FATAL_FAILURES = 5
FATAL_SPAN = timedelta(minutes=1)
FIRST_PAUSE = timedelta(seconds=0.5)
"""Before a loop that failed is restarted; doubled each time, until it has run well for `FATAL_SPAN`."""
STALE_BEAT = timedelta(seconds=60)


class Supervisor(Protocol):
    """Who is told that a delivery loop failed."""

    def loop_failed(self, target: str, error: BaseException, *, restart_in: timedelta) -> None:
        """A loop failed and is restarted."""

    def loops_keep_failing(self, error: BaseException) -> None:
        """Too many failures within a minute: the process must end."""


class UnknownTarget(LookupError):
    """No target of that name is configured."""


class Dispatcher:
    """Delivers to all targets. Build inside a running loop, `start`, and `stop` once."""

    def __init__(
        self,
        targets: Iterable[Target],
        store: Store,
        *,
        sender: Callable[[Target], SendsOne],
        observer: Observer,
        supervisor: Supervisor,
        now: Callable[[], datetime],
        rng: Random,
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self._store = store
        self._make_sender = sender
        self._observer = observer
        self._supervisor = supervisor
        self._now = now
        self._rng = rng
        self._lanes: dict[str, Lane] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._failures: deque[float] = deque(maxlen=FATAL_FAILURES)
        self._stopping = False

    @property
    def targets(self) -> Mapping[str, Target]:
        """The targets that are delivered to."""
        return self._targets

    async def start(self, digests: Mapping[str, tuple[str, str]]) -> None:
        """Take up every target where it was left and begin to deliver.

        Args:
            digests: each target's digests of its URL and of its other settings, to see what has changed since.
        """
        for name, target in self._targets.items():
            health = await self._take_up(target, *digests[name])
            self._lanes[name] = Lane(
                target,
                self._store,
                self._make_sender(target),
                self._observer,
                health=health,
                now=self._now,
                rng=self._rng,
            )
        for name, lane in self._lanes.items():
            self.look_after(name, lane.run)
        self.look_after("every target", self._reclaim_for_ever)

    def look_after(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a loop until the stop: restarted loudly where it fails, the end of the process where it keeps failing."""
        self._tasks.append(asyncio.create_task(self._watch_over(name, run), name=f"loop of {name}"))

    async def _take_up(self, target: Target, url_digest: str, settings_digest: str) -> TargetHealth:
        enabled = False

        def change(health: TargetHealth) -> TargetHealth:
            nonlocal enabled
            verdict = at_start(health, target, url_digest=url_digest, settings_digest=settings_digest, now=self._now())
            enabled = isinstance(verdict, Enable)
            return verdict.health

        health = await self._store.change_health(target.name, change)
        if enabled:
            self._observer.enabled(health)
        return health

    def wake(self, targets: Iterable[str]) -> None:
        """Something has become due at these targets; a hint."""
        for name in targets:
            lane = self._lanes.get(name)
            if lane is not None:
                lane.wake()

    def health(self, name: str) -> TargetHealth:
        """A target's health as last stored.

        Raises:
            UnknownTarget: no such target.
        """
        return self._lane(name).health

    async def test(self, name: str) -> Outcome:
        """Send one request of type `relay.test` through a target's own guard and credentials; nothing is stored, and
        neither state nor count is touched.

        Raises:
            UnknownTarget: no such target.
        """
        lane, now = self._lane(name), self._now()
        body = b'{"type": "relay.test", "message": "A test by hand. No event stands behind it."}'
        event = Event("evt_test", "relay", "relay.test", now, (("Content-Type", "application/json"),), body)
        claim = Claim(event, name, attempt=1, step=0, token=0, lease_until=now + lane.target.timeout)
        sent = await lane.sender.send(claim, body)
        return sent.outcome

    async def enable(self, name: str) -> TargetHealth:
        """Switch a target on: what it holds is due, oldest first; a throttle is lifted.

        Raises:
            UnknownTarget: no such target.
            StoreUnavailable: it cannot be stored now; nothing has changed.
        """
        return await self._steer(name, lambda health: enabled_by_hand(health, self._now()))

    async def disable(self, name: str, reason: str) -> TargetHealth:
        """Switch a target off until it is switched on by hand.

        Raises:
            UnknownTarget: no such target.
            StoreUnavailable: it cannot be stored now; nothing has changed.
        """
        return await self._steer(name, lambda health: disabled_by_hand(health, reason, self._now()))

    async def _steer(self, name: str, change: Callable[[TargetHealth], TargetHealth]) -> TargetHealth:
        lane = self._lane(name)
        health = await self._store.change_health(name, change)
        was = lane.health.disabled_by  # read now: an attempt settled with it may have told of it already
        lane.health_changed(health)
        if health.disabled_by is not was:
            tell = self._observer.disabled if health.state is TargetState.DISABLED else self._observer.enabled
            tell(health)
        return health

    def _lane(self, name: str) -> Lane:
        try:
            return self._lanes[name]
        except KeyError:
            raise UnknownTarget(name) from None

    def stale_lanes(self) -> list[str]:
        """Targets whose loop has not turned for a minute."""
        oldest = asyncio.get_running_loop().time() - STALE_BEAT.total_seconds()
        return [name for name, lane in self._lanes.items() if lane.beat and lane.beat < oldest]

    def unclaimed(self) -> list[str]:
        """Active targets with a free slot and no wait left whose due deliveries nobody has taken for a minute."""
        oldest = self._now() - STALE_BEAT
        return [name for name, lane in self._lanes.items() if lane.neglected_since(oldest)]

    def failing(self) -> bool:
        """Whether a loop has failed within the last minute."""
        oldest = asyncio.get_running_loop().time() - FATAL_SPAN.total_seconds()
        return bool(self._failures) and self._failures[-1] > oldest

    async def stop(self, patience: timedelta) -> None:
        """Begin nothing more, give attempts under way `patience`, then interrupt them; record all of it."""
        self._stopping = True
        await asyncio.gather(*(lane.drain(patience) for lane in self._lanes.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch_over(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        wait = FIRST_PAUSE
        while not self._stopping:
            begun = loop.time()
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - whatever failed, the loop is restarted and it is told
                self._failures.append(loop.time())
                recent = loop.time() - FATAL_SPAN.total_seconds()
                if len(self._failures) == FATAL_FAILURES and self._failures[0] > recent:
                    self._supervisor.loops_keep_failing(error)
                    return
                wait = FIRST_PAUSE if begun < recent else wait
                self._supervisor.loop_failed(name, error, restart_in=wait)
                await asyncio.sleep(wait.total_seconds())
                wait *= 2

    async def _reclaim_for_ever(self) -> None:
        """Take back what a lost task has left claimed; on a healthy day there is nothing."""
        while True:
            await asyncio.sleep(RECLAIM_EVERY.total_seconds())
            alive = frozenset[int]().union(*(lane.alive for lane in self._lanes.values()))
            with suppress(StoreUnavailable):
                if await self._store.reclaim(self._now(), alive=alive):
                    self.wake(self._lanes)
