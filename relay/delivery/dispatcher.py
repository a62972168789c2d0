"""All lanes: started, woken, changed, watched over, and taken down together.

Law: a lane that fails is restarted with growing waits and loudly; one that keeps failing ends the process, because a
delivery loop that is silently dead is the worst fault of all. A target has one lane at any time: one that comes back
while its lane still drains is taken up by that lane.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Protocol

from relay.delivery.carrying import SendsOne
from relay.delivery.lane import Lane
from relay.delivery.limits import Limits
from relay.delivery.observing import Observer
from relay.delivery.preparing import Brings
from relay.model import RELAY, Claim, Event, Outcome, OutcomeKind, Target, TargetHealth, TargetState
from relay.rules.clock import bounded, longest_asked, longest_waits
from relay.rules.health import Enable, at_start, disabled_by_hand, enabled_by_hand
from relay.store import Bid, LongestWaits, Store, StoreUnavailable

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

    def reclaimed(self, number: int) -> None:
        """So many deliveries are due again because the leases of those who had claimed them have ended."""

    def loops_keep_failing(self, error: BaseException) -> None:
        """Too many failures within a minute: the process must end."""


class UnknownTarget(LookupError):
    """No target of that name is configured."""


class Stopping(Exception):
    """The relay is being taken down: nothing is changed any more."""


class Dispatcher:
    """Delivers to all targets. Build inside a running loop, `start`, and `stop` once."""

    def __init__(
        self,
        targets: Iterable[Target],
        store: Store,
        *,
        sender: Callable[[Target], SendsOne],
        brings: Brings,
        observer: Observer,
        supervisor: Supervisor,
        now: Callable[[], datetime],
        rng: Random,
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self._store = store
        self._make_sender = sender
        self._brings = brings
        self._observer = observer
        self._supervisor = supervisor
        self._now = now
        self._rng = rng
        self._limits = Limits()
        self._lanes: dict[str, Lane] = {}
        self._leaving: dict[str, tuple[Lane, asyncio.Task[None]]] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        """The loop of each lane."""
        self._tasks: list[asyncio.Task[None]] = []
        self._releasing: set[asyncio.Task[None]] = set()
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
        healths = await self._take_up(self._targets.values(), digests)
        for name, target in self._targets.items():
            self._open_lane(target, self._make_sender(target), healths[name])
        self._store.serve(self)
        self.look_after("every target", self._reclaim_for_ever)

    def look_after(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a loop until the stop: restarted loudly where it fails, the end of the process where it keeps failing."""
        self._tasks.append(asyncio.create_task(self._watch_over(name, run), name=f"loop of {name}"))

    async def change(
        self,
        targets: Iterable[Target],
        digests: Mapping[str, tuple[str, str]],
        *,
        sender: Callable[[Target], SendsOne],
        rewired: Collection[str] = (),
        patience: timedelta,
    ) -> None:
        """Deliver to these targets from now on: new ones are taken up, changed ones go on in their lanes, those that
        are gone drain in the background and keep what waits for them. All of it happens at once when this returns.

        Args:
            digests: as in `start`.
            sender: makes the senders of targets that are new or changed.
            rewired: names of targets that need a new sender although they are the same.
            patience: how long attempts under way may take at a target that is gone.

        Raises:
            StoreUnavailable, Stopping: nothing has changed.
        """
        wanted = {target.name: target for target in targets}
        judged = [target for name, target in wanted.items() if self._targets.get(name) != target]
        senders: dict[str, SendsOne] = {}
        try:
            for target in (*judged, *(wanted[name] for name in rewired)):
                senders[target.name] = senders.get(target.name) or sender(target)
            healths = await self._take_up(judged, digests)
            if self._stopping:
                raise Stopping
        except BaseException:
            for one in senders.values():
                await one.close()
            raise
        for name in self._targets.keys() - wanted.keys():
            self._close_lane(name, patience)
        self._targets = wanted
        for name, new in senders.items():
            self._open_lane(wanted[name], new, healths.get(name))

    async def _take_up(
        self, targets: Iterable[Target], digests: Mapping[str, tuple[str, str]]
    ) -> dict[str, TargetHealth]:
        """The health of each target under today's config, stored, and no delivery waiting longer than that allows."""
        targets = tuple(targets)
        enabled: set[str] = set()

        def change(target: Target) -> Callable[[TargetHealth], TargetHealth]:
            def judged(health: TargetHealth) -> TargetHealth:
                url, settings = digests[target.name]
                now = self._now()
                sane = bounded(health, target, now)
                verdict = at_start(sane, target, url_digest=url, settings_digest=settings, now=now)
                if isinstance(verdict, Enable):
                    enabled.add(target.name)
                return verdict.health

            return judged

        if not targets:
            return {}
        healths = await self._store.change_healths({target.name: change(target) for target in targets})
        for name in enabled:
            self._observer.enabled(healths[name])
        await self._store.shorten_waits(_longest_waits(targets), now=self._now())
        return healths

    async def clock_set_back(self) -> None:
        """Let nothing wait for a time that the clock will not show again for long.

        Raises:
            StoreUnavailable: some may wait still.
        """
        now, targets = self._now(), tuple(self._targets.values())
        changes = {target.name: partial(bounded, target=target, now=now) for target in targets}
        healths = await self._store.change_healths(changes)
        await self._store.shorten_waits(_longest_waits(targets), now=now)
        for name, health in healths.items():
            if name in self._lanes:
                self._lanes[name].health_changed(health)

    def _open_lane(self, target: Target, sender: SendsOne, health: TargetHealth | None) -> None:
        """Deliver to a target, in its old lane where it has one; without `health` that is what the lane knows."""
        name = target.name
        share = self._limits.share(target, self._now())
        lane = self._lanes.get(name)
        if lane is None and name in self._leaving:
            lane, drain = self._leaving.pop(name)
            drain.cancel()
        if lane is not None:
            lane.change(target, sender, health or lane.health, share)
        else:
            lane = Lane(
                target,
                self._store,
                sender,
                self._observer,
                brings=self._brings,
                health=health or TargetHealth(name),
                share=share,
                now=self._now,
                rng=self._rng,
            )
        self._lanes[name] = lane
        if name not in self._loops:
            self._loops[name] = asyncio.create_task(self._watch_over(name, lane.run), name=f"loop of {name}")

    def _close_lane(self, name: str, patience: timedelta) -> None:
        """Begin nothing more at a target; attempts under way may finish."""
        lane = self._lanes.pop(name)
        self._loops.pop(name).cancel()
        drain = asyncio.create_task(lane.drain(patience, why="the target was removed"), name=f"drain of {name}")
        self._leaving[name] = lane, drain
        drain.add_done_callback(lambda _: self._forget(name, drain))

    def _forget(self, name: str, drain: "asyncio.Task[None]") -> None:
        if name in self._leaving and self._leaving[name][1] is drain:
            del self._leaving[name]

    def wake(self, targets: Iterable[str]) -> None:
        """Something has become due at these targets; a hint."""
        for name in targets:
            lane = self._lanes.get(name)
            if lane is not None:
                lane.wake()

    def bid(self, target: str) -> Bid | None:
        """What the lane of a target would take over of what is about to be stored."""
        lane = self._lanes.get(target)
        return None if lane is None else lane.bid()

    def stored(self, claims: Sequence[Claim], waiting: Iterable[str]) -> None:
        """Hand what was claimed as it was stored to the lanes that have bid for it, and wake those that have not."""
        by_target: dict[str, list[Claim]] = {}
        for claim in claims:
            by_target.setdefault(claim.target, []).append(claim)
        for name, its_claims in by_target.items():
            leaving = self._leaving.get(name)
            lane = self._lanes.get(name) or (leaving and leaving[0])
            if lane is not None:
                lane.take_over(its_claims)
            else:  # its target was removed while they were being stored
                releasing = asyncio.create_task(self._release(its_claims), name=f"release {name}")
                self._releasing.add(releasing)
                releasing.add_done_callback(self._releasing.discard)
        self.wake(waiting)

    def healths_seen(self, healths: Mapping[str, TargetHealth]) -> None:
        """Go on with what others have stored of these targets' health."""
        for name, health in healths.items():
            lane = self._lanes.get(name)
            if lane is not None:
                lane.health_changed(health)

    async def _release(self, claims: Sequence[Claim]) -> None:
        with suppress(StoreUnavailable):  # then their lease ends, and they are reclaimed
            await self._store.release(claims)

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
        event = Event("evt_test", RELAY, "relay.test", now, (("Content-Type", "application/json"),), body)
        claim = Claim(event, name, attempt=1, step=0, token=0, lease_until=now + lane.target.timeout)
        outcome = (await lane.try_out(claim, body)).outcome
        if outcome.kind is OutcomeKind.INTERRUPTED and outcome.retry_after == timedelta(0):
            outcome = (await lane.try_out(claim._replace(attempt=2), body)).outcome  # a stale token had to be found out
        return outcome

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
        return [name for name, lane in self._lanes.items() if lane.beat < oldest]

    async def unclaimed(self) -> frozenset[str]:
        """Active targets with a free slot and no wait left whose due deliveries nobody has taken for a minute. What is
        due is asked of the store, not of the loops, which may be what is broken.

        Raises:
            StoreUnavailable: it cannot be read now.
        """
        idle = [name for name, lane in self._lanes.items() if lane.idle_for(STALE_BEAT)]
        if not idle:
            return frozenset()
        ordered = [name for name in idle if self._lanes[name].target.ordered]
        return await self._store.archive.overdue(idle, self._now() - STALE_BEAT, ordered=ordered)

    def failing(self) -> bool:
        """Whether a loop has failed within the last minute."""
        oldest = asyncio.get_running_loop().time() - FATAL_SPAN.total_seconds()
        return bool(self._failures) and self._failures[-1] > oldest

    async def stop(self, patience: timedelta) -> None:
        """Begin nothing more, give attempts under way `patience`, then interrupt them; record all of it."""
        self._stopping = True
        self._store.serve(None)
        leaving = dict(self._leaving)
        for _, drain in leaving.values():
            drain.cancel()
        lanes = (*self._lanes.values(), *(lane for lane, _ in leaving.values()))
        await asyncio.gather(*(lane.drain(patience, why="relay is stopping") for lane in lanes))
        tasks = (*self._tasks, *self._loops.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
            lanes = (*self._lanes.values(), *(lane for lane, _ in self._leaving.values()))
            alive = frozenset[int]().union(*(lane.alive for lane in lanes))
            with suppress(StoreUnavailable):
                if number := await self._store.reclaim(self._now(), alive=alive):
                    self._supervisor.reclaimed(number)
                    self.wake(self._lanes)


def _longest_waits(targets: Iterable[Target]) -> dict[str, LongestWaits]:
    return {
        target.name: LongestWaits(longest_waits(target.schedule), longest_asked(target.schedule)) for target in targets
    }
