"""The store against a model of itself, by any sequence of verbs, restarts and kills that Hypothesis can think of.

Real: the store, its files or its server, and the rules of health and retry. Fake: time and chance.
"""

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.ids import fresh_id
from relay.model import (
    ENDED,
    Claim,
    Course,
    DisabledBy,
    Outcome,
    OutcomeKind,
    Rate,
    Route,
    TargetHealth,
    TargetState,
    Turn,
    Way,
)
from relay.rules.health import disabled_by_hand, enabled_by_hand, flows
from relay.store import Bid, Retention, Settled
from relay.store.replays import DISCARDED, JobState, Replayable, ReplayFilter, ReplayJob
from tests.support.postgres import needed
from tests.support.store_backends import fresh_backend, kept
from tests.support.store_model import TARGETS, Asked, Model, ms, ruling_of
from tests.support.store_parts import NOW, SECOND, Watch, an_event, towards

T = TypeVar("T")

NAMES = sorted(TARGETS)
LEASE = timedelta(minutes=1)
TARGET = st.sampled_from(NAMES)
KINDS = st.sampled_from(OutcomeKind)
COURSES = st.sampled_from(
    [(Way("all", "shop"),), (Way("some", "shop", ("data.n", "contains(data.s, '\"')")), Way("\u00e9", None))]
)
BAD = st.sampled_from([OutcomeKind.FAILED, OutcomeKind.UNREACHABLE, OutcomeKind.REFUSED])
WAITS = st.sampled_from(
    [timedelta(0), timedelta(milliseconds=1), SECOND, 7 * SECOND, 40 * SECOND, timedelta(minutes=5), timedelta(hours=3)]
)


class StoreMachine(RuleBasedStateMachine):
    """Every verb beside its model; after each step the tables are compared with it, row by row."""

    kind = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.home = ExitStack()
        directory = Path(self.home.enter_context(tempfile.TemporaryDirectory()))
        self.backend = self.home.enter_context(fresh_backend(self.kind, directory / "store"))
        self.model = Model()
        self.now = NOW
        self.numbers = itertools.count(1)
        self.rng = Random(7)
        self.watch = Watch()
        self.store: Any  # its parts beside the verbs, too

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the store's loop run until this is done."""
        return self.runner.run(work)

    @initialize(count=st.integers(0, 5))
    def opens(self, count: int) -> None:
        """A new store, with some events for every target."""
        self.store = self.run(self.backend.open(self.watch))
        for _ in range(count):
            self.accepts(None, "one", set(NAMES), {})

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
        self.runner.close()
        self.home.close()

    # receiving

    @rule(
        key=st.none() | st.integers(1, 4).map(str),
        source=st.sampled_from(["one", "two"]),
        names=st.sets(TARGET),
        courses=st.dictionaries(TARGET, COURSES),
    )
    def accepts(self, key: str | None, source: str, names: set[str], courses: dict[str, Course]) -> None:
        """An event, new or known, for none or all targets, some of which it reaches by a course."""
        number = next(self.numbers)
        event = an_event(f"evt_{number}", key=key, source=source, body=b"body %d" % number, at=self.now)
        accepted = self.run(self.store.accept(event, sorted(names), courses))
        first = self.model.keys.get((source, key or ""))
        assert (accepted.event_id, accepted.duplicate) == (first or event.id, first is not None)
        assert accepted.same_body is (first is None)
        if first is None:
            self.model.accepted(event, sorted(names), courses)

    @rule(count=st.integers(2, 6), name=TARGET)
    def accepts_many(self, count: int, name: str) -> None:
        """A burst for one target, in one commit."""
        events = [an_event(f"evt_{next(self.numbers)}", at=self.now) for _ in range(count)]

        async def burst() -> None:
            await asyncio.gather(*(self.store.accept(event, [name]) for event in events))

        self.run(burst())
        for event in events:
            self.model.accepted(event, [name])

    @rule(names=st.sets(TARGET, min_size=1), count=st.integers(1, 3), bid=st.integers(0, 2))
    def accepts_for_lanes(self, names: set[str], count: int, bid: int) -> None:
        """Events of which some lanes take the first at once; where a target is not well, and beyond the bid, none."""
        handed: list[Claim] = []
        until, now = self.now + LEASE, self.now

        class Lanes:
            def bid(self, target: str) -> Bid | None:
                return None if TARGETS[target].ordered else Bid(bid, until)

            def stored(self, claims: Sequence[Claim], waiting: Iterable[str]) -> None:
                handed.extend(claims)

        events = [an_event(f"evt_{next(self.numbers)}", at=now) for _ in range(count)]
        self.store.serve(Lanes())
        for event in events:
            self.run(self.store.accept(event, sorted(names)))
            self.model.accepted(event, sorted(names))
        self.store.serve(None)
        well = {name for name in names if not TARGETS[name].ordered and flows(self.model.healths[name], now)}
        expected = [(event.id, name) for event in events for name in sorted(well)] if bid else []
        assert [(claim.event.id, claim.target) for claim in handed] == expected
        for claim in handed:
            self.model.claimed(claim, now)

    # claiming

    @rule(name=TARGET, limit=st.integers(1, 4), arrival=st.booleans())
    def claims(self, name: str, limit: int, arrival: bool) -> None:
        """What is due of an active target; of a disabled one a probe or an arrival."""
        self.claim(name, limit, arrival=arrival)

    def claim(self, name: str, limit: int, *, arrival: bool) -> list[Claim]:
        """Claim by the turn that the target's health allows; what is got must be what the model chooses."""
        health = self.model.healths[name]
        turn = Turn.DUE
        if TARGETS[name].ordered:
            turn = Turn.FIRST
        elif health.state is TargetState.DISABLED:
            turn, limit = (Turn.ARRIVAL if arrival else Turn.PROBE), 1
        chosen = self.model.chosen(name, turn, limit, self.now)
        claimed = self.run(
            self.store.claim(name, limit=limit, turn=turn, now=self.now, lease=LEASE, since=health.since)
        )
        assert [claim.event.id for claim in claimed.claims] == chosen
        for claim in claimed.claims:
            assert claim.course == self.model.of(claim).course
            self.model.claimed(claim, self.now)
        due = min((one.due for _, one in self.model.waiting(name)), default=None)
        if turn is Turn.FIRST:
            first = self.model.first(name)
            due = None if first is None else first[1].due
            assert all(
                one.order <= found.order
                for one in map(self.model.of, claimed.claims)
                for (_, target), found in self.model.deliveries.items()
                if target == name and found.state not in ENDED
            ), "an earlier one was passed over"
        expected = due if len(chosen) < limit else None
        assert (claimed.next_due_at and ms(claimed.next_due_at)) == expected
        return list(claimed.claims)

    @precondition(lambda self: self.model.live())
    @rule(which=st.integers(0, 50))
    def releases(self, which: int) -> None:
        """A claim is given back unused."""
        live = self.model.live()
        claim = live[which % len(live)]
        self.run(self.store.release([claim]))
        self.model.released(claim)

    @rule(spare=st.booleans())
    def reclaims(self, spare: bool) -> None:
        """The reaper: ended leases, but for those that are said to be alive."""
        live = self.model.live()
        alive = frozenset(claim.token for claim in live[::2]) if spare else frozenset()
        over = [claim for claim in live if ms(claim.lease_until) < ms(self.now) and claim.token not in alive]
        assert self.run(self.store.reclaim(self.now, alive=alive)) == len(over)
        for claim in over:
            self.model.taken_back(claim)

    # settling

    def settle(self, *pairs: tuple[Any, OutcomeKind]) -> None:
        """Record attempts handed in at once, in order, judged by the real rules."""
        if not pairs:
            return
        asked = [
            Asked(
                claim,
                Outcome(kind, 200 if kind is OutcomeKind.DELIVERED else None, f"it was {kind.value}"),
                self.model.began[claim.event.id, claim.target, claim.attempt],
            )
            for claim, kind in pairs
        ]

        async def together() -> list[Any]:
            return await asyncio.gather(*(self.store.settle(ruling_of(one, self.now, self.rng)) for one in asked))

        for one, settled in zip(asked, self.run(together()), strict=True):
            self.model.settled(one, settled, self.now)

    @precondition(lambda self: self.model.live())
    @rule(which=st.integers(0, 50), kind=KINDS)
    def settles(self, which: int, kind: OutcomeKind) -> None:
        """One attempt ends in any way."""
        live = self.model.live()
        self.settle((live[which % len(live)], kind))

    @precondition(lambda self: len(self.model.live()) > 1)
    @rule(kinds=st.lists(KINDS, min_size=2, max_size=6))
    def settles_many(self, kinds: list[OutcomeKind]) -> None:
        """Several attempts are recorded in one commit."""
        self.settle(*zip(self.model.live(), kinds, strict=False))

    @precondition(lambda self: any(claim.turn in (Turn.DUE, Turn.FIRST) for claim in self.model.live()))
    @rule(kind=BAD)
    def fails_all(self, kind: OutcomeKind) -> None:
        """A target goes down: everything under way fails together."""
        self.settle(*((claim, kind) for claim in self.model.live()))

    @rule(name=TARGET, kinds=st.lists(KINDS, min_size=1, max_size=4), took=WAITS, arrival=st.booleans())
    def attempts(self, name: str, kinds: list[OutcomeKind], took: timedelta, arrival: bool) -> None:
        """Claimed and, some time later, settled, each in its own way."""
        claims = self.claim(name, len(kinds), arrival=arrival)
        self.now += took
        self.settle(*zip(claims, kinds, strict=False))

    @rule(name=TARGET, rounds=st.integers(1, 4), kind=BAD, wait=st.sampled_from([SECOND, 40 * SECOND]))
    def is_down(self, name: str, rounds: int, kind: OutcomeKind, wait: timedelta) -> None:
        """A target fails whatever is tried, round after round."""
        for _ in range(rounds):
            self.now += wait
            self.settle(*((claim, kind) for claim in self.claim(name, 2, arrival=False)))
            self.now += wait

    @rule(name=TARGET, bad=st.integers(1, 3))
    def takes_all_but_some(self, name: str, bad: int) -> None:
        """A target that is well refuses certain events each time, until they are given up."""
        for _ in range(4):
            self.now += 75 * SECOND
            self.accepts_many(2, name)
            claims = self.claim(name, 9, arrival=False)
            taken = OutcomeKind.DELIVERED
            self.settle(*((one, OutcomeKind.REFUSED if n < bad else taken) for n, one in enumerate(claims)))

    @precondition(lambda self: self.model.lost)
    @rule(which=st.integers(0, 50), kind=KINDS)
    def settles_what_was_lost(self, which: int, kind: OutcomeKind) -> None:
        """A claim that was lost changes nothing, whoever holds the delivery now."""
        claim = self.model.lost[which % len(self.model.lost)]
        asked = Asked(claim, Outcome(kind), self.now)

        async def settled() -> Settled:
            return await self.store.settle(ruling_of(asked, self.now, self.rng))

        assert self.run(settled()).ruling is None
        assert asked.before is None, "the rule was not even asked"
        self.run(self.store.release([claim]))

    # steering

    def change(self, target: str, changed: TargetHealth) -> None:
        """Change a target's health as an operator does."""
        before = self.model.healths[target]
        assert self.run(self.store.change_health(target, lambda _: changed)) == changed
        lifts = before.throttled_until is not None and changed.throttled_until is None
        frees = changed.state is TargetState.ACTIVE and (before.state is TargetState.DISABLED or lifts)
        self.model.health_is(target, changed, frees=frees)

    @rule(name=TARGET)
    def disables_by_hand(self, name: str) -> None:
        self.change(name, disabled_by_hand(self.model.healths[name], "maintenance", self.now))

    @rule(name=TARGET)
    def enables_by_hand(self, name: str) -> None:
        self.change(name, enabled_by_hand(self.model.healths[name], self.now))

    # replaying

    @precondition(lambda self: self.model.events)
    @rule(
        which=st.integers(0, 50),
        only=st.none() | TARGET,
        routed=st.sets(TARGET),
        enricher=st.none() | st.just("shop"),
    )
    def replays(self, which: int, only: str | None, routed: set[str], enricher: str | None) -> None:
        """One event by hand: all that had ended, or one target; an unrouted one by routes of today."""
        ids = list(self.model.events)
        event_id = ids[which % len(ids)]
        routes = [Route("today", frozenset({"one", "two"}), tuple(sorted(routed)), enricher=enricher)]
        course: Course | None = () if enricher is None else (Way("today", enricher),)
        if self.model.events[event_id].source not in routes[0].sources:
            course = None
        anew, waiting = self.model.replayed(event_id, only, sorted(routed), course, self.now)
        found = self.run(self.store.replays.event(event_id, towards(*NAMES, routes=routes), now=self.now, target=only))
        assert found is not None
        assert (set(found.replayed), set(found.waiting), found.skipped) == (anew, waiting, ())

    @precondition(lambda self: self.model.events)
    @rule(state=st.sampled_from(["dead", "delivered"]), only=st.none() | TARGET)
    def gathers(self, state: str, only: str | None) -> None:
        """A stored replay, whose items have their turn later, whatever happens in between."""
        wanted = ReplayFilter(Replayable(state), target=only)
        job = self.run(
            self.store.replays.create(ReplayJob(fresh_id("rpl", self.now), wanted, Rate(1, SECOND), self.now))
        )
        self.model.gathered(job.id, state, only)
        assert job.total == len(self.model.jobs[job.id].left)

    @precondition(lambda self: self.model.jobs)
    @rule(which=st.integers(0, 50), number=st.integers(1, 4))
    def advances(self, which: int, number: int) -> None:
        """Some items have their turn; each is replayed if it still is as the filter wanted it."""
        ids = list(self.model.jobs)
        job_id = ids[which % len(ids)]
        expected = self.model.advanced(job_id, number, self.now)
        job = self.run(self.store.replays.advance(job_id, number, towards(*NAMES), now=self.now)).job
        assert job is not None
        assert (job.state.value, job.done, job.skipped) == (expected.state, expected.done, expected.skipped)

    @precondition(lambda self: self.model.jobs)
    @rule(which=st.integers(0, 50), to=st.sampled_from([JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED]))
    def steers_a_replay(self, which: int, to: JobState) -> None:
        """Paused, resumed, cancelled; what is over stays over."""
        ids = list(self.model.jobs)
        job_id = ids[which % len(ids)]
        known = self.model.jobs[job_id]
        known.state = to.value if known.state in ("running", "paused") else known.state
        steered = self.run(self.store.replays.steer(job_id, to, "", now=self.now))
        assert steered is not None
        assert steered.job.state.value == known.state

    @rule(name=TARGET)
    def discards(self, name: str) -> None:
        """All that waits at a target is dead; what is under way goes on."""
        expected = self.model.discarded(name, DISCARDED, self.now)
        assert self.run(self.store.replays.discard(name, permitted=lambda _: True, now=self.now)) == expected

    @rule(wait=WAITS)
    def time_passes(self, wait: timedelta) -> None:
        self.now += wait

    @rule(delivered=st.sampled_from([0, 1, 60]), dead=st.sampled_from([0, 1, 60]))
    def prunes(self, delivered: int, dead: int) -> None:
        """All that is over goes, and nothing else."""
        retention = Retention(timedelta(minutes=delivered), timedelta(minutes=dead))
        over = self.model.outlived(retention, self.now)
        gone = 0
        while number := self.run(self.store.prune(retention, self.now)):
            gone += number
        assert gone == len(over)
        self.model.forget(over)

    @rule()
    def makes_room(self) -> None:
        """For want of room goes what has nothing left to be done, and nothing else."""
        done = self.model.done()
        gone = 0
        while (number := self.run(self.store.prune_oldest(1 << 40))) is not None:
            gone += number
        assert gone == len(done)
        self.model.forget(done)

    @precondition(lambda self: self.model.events)
    @rule(which=st.integers(0, 50))
    def erases(self, which: int) -> None:
        """One event goes, whatever is still to be done with it."""
        event_id = sorted(self.model.events)[which % len(self.model.events)]
        number = self.run(self.store.erase(event_id))
        assert number == self.model.erased(event_id)

    # the process

    def reopen(self) -> None:
        self.store = self.run(self.backend.open(self.watch))
        self.model.restarted()
        interrupted = {job.id for job in self.run(self.store.replays.interrupt("restart"))}
        assert interrupted == self.model.interrupted()

    @rule()
    def restarts(self) -> None:
        """A tidy stop and a start."""
        self.run(self.store.close())
        self.reopen()

    @rule()
    def is_killed(self) -> None:
        """The process dies between two verbs; a new one finds the files as they were then."""
        left = self.backend.after_a_kill()
        self.run(self.store.close())
        self.backend = left
        self.reopen()

    # what always holds

    @invariant()
    def every_promise_is_kept(self) -> None:
        """Each accepted event is there with each of its deliveries, in the state, at the step and with the number that
        the model says, until it was pruned; each attempt is on record once."""
        if not hasattr(self, "store"):
            return
        assert self.backend.event_ids() == set(self.model.events)
        assert self.backend.deliveries() == {key: one.row() for key, one in self.model.deliveries.items()}
        recorded = {(*key, *record) for key, one in self.model.deliveries.items() for record in one.recorded}
        attempts = self.backend.attempts()
        assert len(attempts) == len(recorded)
        assert set(attempts) == recorded

    @invariant()
    def kept_counts_are_those_of_the_table(self) -> None:
        if hasattr(self, "store"):
            assert self.run(kept(self.store, *NAMES)) == self.backend.counted() == self.model.counts()

    @invariant()
    def health_is_as_last_stored(self) -> None:
        """Now, and after every restart."""
        if not hasattr(self, "store"):
            return
        for name, health in self.model.healths.items():
            assert self.run(self.store.target_health(name)) == health
            assert (health.state is TargetState.DISABLED) == (health.disabled_by in set(DisabledBy))

    @invariant()
    def there_was_no_outage(self) -> None:
        assert self.watch.outages == []


class PostgresMachine(StoreMachine):
    """The same over PostgreSQL."""

    kind = "postgres"


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
OVER_EACH = pytest.mark.parametrize("machine", [StoreMachine, PostgresMachine], ids=lambda machine: machine.kind)


def tell_stories(machine: type[StoreMachine], number: int, steps: int) -> None:
    """Run as many stories; over PostgreSQL fewer, since each look at its tables is a question to a server."""
    if machine.kind == "postgres":
        needed()
        number //= 3
    told = settings(max_examples=number, stateful_step_count=steps, deadline=None, suppress_health_check=QUIET)
    run_state_machine_as_test(machine, settings=told)


@OVER_EACH
@pytest.mark.row("B3", "B57", "B65", "B71", "F36")
def test_whatever_happens_no_promise_is_broken(machine: type[StoreMachine]) -> None:
    """Nothing acknowledged is ever missing, every move is legal, numbers rise, counts and health are what they are."""
    tell_stories(machine, 15, 30)


@pytest.mark.parametrize(
    "machine",
    [StoreMachine, pytest.param(PostgresMachine, marks=pytest.mark.soak)],
    ids=lambda machine: machine.kind,
)
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.row("B3", "B57", "B65", "B71", "F36")
def test_whatever_happens_for_long_no_promise_is_broken(machine: type[StoreMachine]) -> None:
    """The same, in longer stories and more of them."""
    tell_stories(machine, 90, 70)
