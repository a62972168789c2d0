"""The real dispatcher over the real store, before scripted targets on virtual time, and what may be asserted of it.

Law: what holds in every simulation is watched while it runs (`Gateway.violations`), not asserted case by case.
"""

import asyncio
import contextlib
import itertools
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

from relay.delivery.dispatcher import Dispatcher
from relay.delivery.lane import LEASE_MARGIN
from relay.delivery.observing import Attempted
from relay.delivery.preparing import Brings
from relay.model import Course, DisabledBy, Event, OutcomeKind, Target, TargetHealth, TargetState, Turn, Way
from relay.store.sqlite import SqliteStore
from tests.support.enrichers import NoEnrichers
from tests.support.virtual_time import Request, Script, ScriptedTarget, virtual_loop

DEFAULT_SCHEDULE = tuple(
    timedelta(seconds=seconds) for seconds in (5, 30, 120, 600, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
)
"""The contract's own example of `retry.schedule`."""
PATIENCE = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class Notice:
    """A target was disabled or enabled."""

    at: datetime
    target: str
    state: TargetState
    reason: str
    counted_events: tuple[str, ...]
    held: int


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery as it stands in the file."""

    event: str
    target: str
    state: str
    step: int
    attempts: int
    outcome: str | None
    reason: str | None


class Gateway:
    """Dispatcher and store of one relay, through restarts and crashes."""

    def __init__(
        self, home: Path, targets: Mapping[Target, Script], *, seed: int = 1, brings: Brings | None = None
    ) -> None:
        """`brings` fetches for every event; without it nothing is fetched."""
        self.requests: list[Request] = []
        self.notices: list[Notice] = []
        self.violations: list[str] = []
        self.commits = 0
        self._scripts = dict(targets)
        self._rng = Random(seed)
        self._brings = brings or NoEnrichers()
        self._course: Course = () if brings is None else (Way("orders", "stock", ()),)
        self._loop = virtual_loop()
        self._lives = 0
        self._numbers = 0
        self._received: dict[str, datetime] = {}
        self._digests = {target.name: ("url", "settings") for target in targets}
        self._path = home / "relay.db"
        self._up = asyncio.Event()
        self.store: SqliteStore
        self.dispatcher: Dispatcher

    # --- life ---

    async def start(self) -> None:
        """Open the file and deliver."""
        with self._loop.really():
            self.store = await SqliteStore.open(self._path, self)
        store = self.store
        self._forget_store = self._loop.waits_for(lambda: store.is_busy)
        self._lives += 1
        life = self._lives
        self.dispatcher = Dispatcher(
            list(self._scripts),
            self.store,
            sender=lambda target: self._far_side(target, life),
            brings=self._brings,
            observer=self,
            supervisor=self,
            now=self._loop.now,
            rng=self._rng,
        )
        await self.dispatcher.start(self._digests)
        self._up.set()

    async def stop(self) -> None:
        """A tidy end: attempts under way may finish."""
        self._up.clear()
        await self.dispatcher.stop(PATIENCE)
        await self._close()

    async def _close(self) -> None:
        self._forget_store()
        with self._loop.really():
            await self.store.close()

    async def restart(self) -> None:
        """Stop, and start again from the same file."""
        await self.stop()
        await self.start()

    async def crash(self) -> None:
        """Die without a word: go on from the files as a SIGKILL at this moment leaves them."""
        self._up.clear()
        while self.store.is_busy:
            await asyncio.sleep(0)
        home, self._path = self._path.parent, self._path.parent / f"life-{self._lives}" / self._path.name
        self._path.parent.mkdir()
        for file in home.glob("relay.db*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, self._path.parent / file.name)
        self._lives += 1  # what the abandoned objects still do is seen by nobody
        await self.dispatcher.stop(timedelta(0))
        await self._close()
        await self.start()

    async def change(self, name: str, *, url: str = "url", settings: str = "settings") -> None:
        """Restart with another config of a target."""
        self._digests[name] = (url, settings)
        await self.restart()

    async def reload(
        self, targets: Mapping[Target, Script], *, patience: timedelta = PATIENCE, url: str = "url"
    ) -> None:
        """Take up other targets while it runs."""
        self._scripts = dict(targets)
        self._digests = {target.name: (url, "settings") for target in targets}
        life = self._lives
        await self.dispatcher.change(
            list(targets), self._digests, sender=lambda target: self._far_side(target, life), patience=patience
        )

    # --- traffic ---

    async def post(self, *targets: str, number: int = 1) -> list[str]:
        """Accept events for targets, as one burst; while the relay is away the sender waits, as senders do."""
        await self._up.wait()
        events = [self._event() for _ in range(number)]
        life = 0
        while life != self._lives:
            await self._up.wait()
            life = self._lives
            courses = dict.fromkeys(targets, self._course)
            await asyncio.gather(*(self.store.accept(event, targets, courses) for event in events))
        return [event.id for event in events]

    def _event(self) -> Event:
        self._numbers += 1
        event = Event(f"evt_{self._numbers:06}", "shop", "order", self.now(), (), b"{}", dedupe_key=str(self._numbers))
        self._received[event.id] = event.received_at
        return event

    async def traffic(self, *targets: str, rate: float, seconds: float) -> None:
        """So many events a second for so long; above ten a second they come in small bursts."""
        burst = max(1, round(rate / 10))
        for _ in range(round(rate * seconds / burst)):
            await self.post(*targets, number=burst)
            await asyncio.sleep(burst / rate)

    async def quiet(self, *targets: str, within: timedelta, look: float = 1.0) -> None:
        """Wait until nothing is to be delivered any more."""
        until = self.now() + within
        while True:
            with self._loop.really():
                if not any(one.pending or one.in_flight for one in await self.store.backlog(targets)):
                    break
            assert self.now() < until, f"not quiet within {within}: {self.states()} {self.health(targets[0])}"
            await asyncio.sleep(look)

    # --- what can be seen ---

    def now(self) -> datetime:
        """The virtual wall clock."""
        return self._loop.now()

    def since(self, moment: datetime) -> float:
        """Seconds between a moment and now."""
        return (self.now() - moment).total_seconds()

    def health(self, name: str) -> TargetHealth:
        """As shown in every view."""
        return self.dispatcher.health(name)

    def rows(self) -> dict[str, Row]:
        """All deliveries in the file, by event (of a single target) or `event/target`."""
        query = """SELECT e.id, d.target, d.state, d.step, d.attempts, d.outcome, d.reason
            FROM delivery d JOIN event e ON e.seq = d.event_seq ORDER BY e.seq"""
        with contextlib.closing(sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            rows = [Row(*row) for row in db.execute(query)]
        single = len(self._scripts) == 1
        return {row.event if single else f"{row.event}/{row.target}": row for row in rows}

    def states(self) -> Counter[str]:
        """How many deliveries stand where."""
        return Counter(row.state for row in self.rows().values())

    def sends(self, event: str) -> list[Request]:
        """The requests made for one event."""
        return [request for request in self.requests if request.event == event]

    def told(self, state: TargetState, name: str | None = None) -> list[Notice]:
        """The notices of one kind."""
        return [one for one in self.notices if one.state is state and name in (None, one.target)]

    def first_deliveries(self) -> list[Request]:
        """The request that delivered each event, in the order in which they began."""
        seen: dict[str, Request] = {}
        for request in self.requests:
            if request.kind is OutcomeKind.DELIVERED:
                seen.setdefault(request.event, request)
        return sorted(seen.values(), key=lambda request: request.at)

    def received_at(self, event: str) -> datetime:
        """When an event was accepted."""
        return self._received[event]

    def assert_sound(self, *, killed: bool = False) -> None:
        """What holds always: the gate kept what was shown, numbers rise, nothing delivered is sent again."""
        assert not self.violations, self.violations[:5]
        numbers: defaultdict[tuple[str, str], list[Request]] = defaultdict(list)
        for request in self.requests:
            numbers[request.event, request.target].append(request)
        for key, requests in numbers.items():
            attempts = [request.attempt for request in requests]
            assert attempts == sorted(set(attempts)), f"{key}: relay-attempt does not rise: {attempts}"
            done = [number for number, request in enumerate(requests) if request.kind is OutcomeKind.DELIVERED]
            assert len(done) <= 1 + killed, f"{key} was delivered {len(done)} times"
            if not killed:
                assert attempts == list(range(1, len(attempts) + 1)), f"{key}: numbers without requests: {attempts}"
                assert done in ([], [len(requests) - 1]), f"{key} was sent after it was delivered"

    def assert_in_order(self, name: str = "crm") -> None:
        """What an ordered target was sent: by arrival, nothing again once a later event was begun, and one at a time;
        through kills and restarts too."""
        requests = [request for request in self.requests if request.target == name]
        events = [request.event for request in requests]
        assert events == sorted(events), f"not by arrival: {events}"
        for one, following in itertools.pairwise(requests):
            if one.ended_at is not None:  # else it was cut off by an end of the process
                assert following.at >= one.ended_at, f"{following} began beside {one}"

    # --- the far side, the observer, the supervisor, the watcher ---

    def _far_side(self, target: Target, life: int) -> ScriptedTarget:
        def begun(request: Request, others: int) -> bool:
            if life != self._lives:
                return False
            self.requests.append(request)
            self._watch(target, request, others)
            return True

        return ScriptedTarget(target, self._scripts[target], begun=begun, now=self.now)

    def _watch(self, target: Target, request: Request, others: int) -> None:
        health = self.dispatcher.health(target.name)
        wrong = []
        if others >= target.concurrency:
            wrong.append(f"{others} others under way")
        if health.paced and others and request.turn is Turn.DUE:
            wrong.append("another is under way at a paced target")
        if target.ordered:
            wrong += ["another is under way at an ordered target"] * bool(others)
            wrong += [f"turn {request.turn} at an ordered target"] * (request.turn is not Turn.FIRST)
        elif (health.state is TargetState.DISABLED) != (request.turn is not Turn.DUE):
            wrong.append(f"turn {request.turn} at a target shown {health.state}")
        if health.disabled_by not in (None, DisabledBy.FAILURES):
            wrong.append(f"disabled {health.disabled_by}")
        if health.throttled_until is not None and request.at < health.throttled_until:
            wrong.append(f"throttled until {health.throttled_until}")
        if request.lease_until < request.at + target.timeout + LEASE_MARGIN:
            wrong.append(f"the lease ends at {request.lease_until}")
        if health.ramp is not None and others >= health.ramp:
            wrong.append(f"{others} others under way at ramp {health.ramp}")
        self.violations += [f"{request}: {one}" for one in wrong]

    def attempted(self, attempt: Attempted) -> None:
        """See `Observer`."""

    def disabled(self, health: TargetHealth) -> None:
        """See `Observer`."""
        self._note(health)

    def enabled(self, health: TargetHealth) -> None:
        """See `Observer`."""
        self._note(health)

    def _note(self, health: TargetHealth) -> None:
        held = self.store.pending(health.name)
        self.notices.append(Notice(self.now(), health.name, health.state, health.reason, health.counted_events, held))

    def loop_failed(self, target: str, error: BaseException, *, restart_in: timedelta) -> None:
        """See `Supervisor`."""
        self.violations.append(f"the loop of {target} failed: {error!r}")

    def reclaimed(self, number: int) -> None:
        pass

    def loops_keep_failing(self, error: BaseException) -> None:
        """See `Supervisor`."""
        self.violations.append(f"loops keep failing: {error!r}")

    def committed(self, seconds: float) -> None:
        """See `Watcher`."""
        self.commits += 1

    def unavailable(self, reason: str) -> None:
        """See `Watcher`."""
        self.violations.append(f"the store is out: {reason}")

    def recovered(self, seconds: float) -> None:
        """See `Watcher`."""


@contextlib.asynccontextmanager
async def gateway(
    home: Path, targets: Mapping[Target, Script], *, seed: int = 1, brings: Brings | None = None
) -> AsyncIterator[Gateway]:
    """A running gateway, stopped at the end whatever happens."""
    one = Gateway(home, targets, seed=seed, brings=brings)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


def target(name: str = "crm", *, schedule: Iterable[float] | None = None, **settings: object) -> Target:
    """A target with the contract's defaults; `schedule` in seconds."""
    waits = DEFAULT_SCHEDULE if schedule is None else tuple(timedelta(seconds=wait) for wait in schedule)
    return Target(name, f"https://{name}.example.com/hooks", schedule=waits, **settings)  # type: ignore[arg-type]
