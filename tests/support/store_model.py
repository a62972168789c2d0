"""What the store ought to hold, kept in plain dictionaries: the other half of the state machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

from relay.model import (
    DELIVERY_MOVES,
    ENDED,
    TARGET_MOVES,
    Claim,
    Course,
    DeliveryState,
    Done,
    Event,
    GiveUp,
    Outcome,
    OutcomeKind,
    RetryAt,
    Skip,
    Target,
    TargetHealth,
    TargetState,
    Turn,
)
from relay.rules.health import Enable, judge
from relay.rules.retry import decide
from relay.store import Retention, Ruling, Settled, Settlement
from tests.support.store_backends import COUNTED, Row

MILLISECOND = timedelta(milliseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OWN_FAULTS = frozenset({OutcomeKind.REFUSED, OutcomeKind.FAILED, OutcomeKind.UNREACHABLE, OutcomeKind.UNPREPARED})
UNENDED = frozenset(DeliveryState) - ENDED
NO_TRY = frozenset({OutcomeKind.INTERRUPTED, OutcomeKind.SKIPPED})

TARGETS = {
    target.name: target
    for target in (
        Target("crm", "https://crm.example", schedule=(timedelta(seconds=5), timedelta(seconds=30)), disable_after=2),
        Target("books", "https://books.example", schedule=(timedelta(minutes=1),), disable_after=None),
        Target("once", "https://once.example", schedule=(), disable_after=3),
        Target(
            "queue",
            "https://queue.example",
            schedule=(timedelta(seconds=5), timedelta(seconds=30)),
            disable_after=2,
            ordered=True,
        ),
        Target("shy", "https://shy.example", schedule=(timedelta(seconds=5),), disable_after=1, probe_first=None),
    )
}


def ms(at: datetime) -> int:
    """Milliseconds since 1970, rounded down."""
    return (at - EPOCH) // MILLISECOND


def as_stored(health: TargetHealth) -> TargetHealth:
    """A health as it comes back from the disk: its times cut to the millisecond."""
    times = {
        name: at.replace(microsecond=at.microsecond // 1000 * 1000)
        for name in ("since", "counted_at", "wait_until", "succeeded_at", "took_at", "throttled_until", "probe_at")
        if (at := getattr(health, name)) is not None
    }
    return health._replace(**times)


@dataclass
class Delivery:
    """One delivery as the model has it."""

    order: int
    received_at: datetime
    state: DeliveryState
    due: int
    attempts: int = 0
    step: int = 0
    reason: str | None = None
    first_try: int | None = None
    last_began: int | None = None
    settled: int | None = None
    replays: int = 0
    course: Course = ()
    holder: Claim | None = None
    recorded: list[tuple[int, str]] = field(default_factory=list)

    def move(self, to: DeliveryState) -> None:
        """Go to another state; only the moves of the table are legal."""
        assert to in DELIVERY_MOVES[self.state], f"{self.state} to {to}"
        self.state = to

    def row(self) -> Row:
        """As its table would show it."""
        return Row(self.state.value, self.attempts, self.step, self.due, self.reason)


@dataclass
class Asked:
    """One settlement under way: its outcome, and what the rule was shown and said."""

    claim: Claim
    outcome: Outcome
    began_at: datetime
    before: TargetHealth | None = None


@dataclass
class Job:
    """A stored replay: the state it wants, what is left of its set, and what became of the rest."""

    wanted: str
    left: list[tuple[str, str]]
    state: str = "running"
    done: int = 0
    skipped: int = 0


class Model:
    """Every event that was promised, and what must have become of it."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.deliveries: dict[tuple[str, str], Delivery] = {}
        self.healths = {name: TargetHealth(name) for name in TARGETS}
        self.successes: dict[str, list[int]] = {name: [] for name in TARGETS}
        self.began: dict[tuple[str, str, int], datetime] = {}
        self.lost: list[Claim] = []
        self.orders: dict[str, int] = {}
        self.jobs: dict[str, Job] = {}
        self._order = 0

    def live(self) -> list[Claim]:
        """The claims that hold, oldest first."""
        held = [one.holder for one in self.deliveries.values() if one.holder is not None]
        return sorted(held, key=lambda claim: (claim.token, claim.delivery_id))

    def of(self, claim: Claim) -> Delivery:
        """The delivery that a claim is on."""
        return self.deliveries[claim.event.id, claim.target]

    def accepted(self, event: Event, targets: list[str], courses: Mapping[str, Course] = {}) -> None:
        """A new event was promised."""
        self._order += 1
        self.orders[event.id] = self._order
        self.events[event.id] = event
        if event.dedupe_key:
            self.keys[event.source, event.dedupe_key] = event.id
        for target in targets:
            due = ms(event.received_at)
            self.deliveries[event.id, target] = Delivery(
                self._order, event.received_at, DeliveryState.PENDING, due, course=courses.get(target, ())
            )

    def waiting(self, target: str) -> list[tuple[str, Delivery]]:
        """What is pending at a target."""
        return [
            (event_id, one)
            for (event_id, name), one in self.deliveries.items()
            if name == target and one.state is DeliveryState.PENDING
        ]

    def first(self, target: str) -> tuple[str, Delivery] | None:
        """Of an ordered target what goes next; nothing while anything is under way."""
        if any(one.holder for (_, name), one in self.deliveries.items() if name == target):
            return None
        return min(self.waiting(target), key=lambda found: found[1].order, default=None)

    def chosen(self, target: str, turn: Turn, limit: int, now: datetime) -> list[str]:
        """The events that a claim must get; in order where the turn has one."""
        if turn is Turn.FIRST:
            first = self.first(target)
            return [first[0]] if first is not None and first[1].due <= ms(now) else []
        waiting = self.waiting(target)
        if turn is Turn.DUE:
            due = [(one.due, one.order, event_id) for event_id, one in waiting if one.due <= ms(now)]
            return [event_id for _, _, event_id in sorted(due)[:limit]]
        newest = sorted(waiting, key=lambda found: -found[1].order)
        fresh = [(event_id, one) for event_id, one in newest if one.attempts == 0]
        if turn is Turn.ARRIVAL:
            since = self.healths[target].since
            return [event_id for event_id, one in fresh if since is None or one.received_at >= since][:limit]
        tried = sorted(
            (one for one in waiting if one[1].attempts), key=lambda found: (found[1].last_began or 0, found[1].order)
        )
        return [event_id for event_id, _ in (*fresh, *tried)][:limit]

    def claimed(self, claim: Claim, now: datetime) -> None:
        """A claim was made: on something that waited, with a number never used before."""
        one = self.of(claim)
        assert one.holder is None, "two live claims on one delivery"
        assert claim.attempt == one.attempts + 1
        assert claim.attempt > max((number for number, _ in one.recorded), default=0)
        assert (claim.step, claim.event.body) == (one.step, self.events[claim.event.id].body)
        assert claim.first_try_at is None if one.first_try is None else ms(claim.first_try_at or now) == one.first_try
        assert claim.replayed == (one.replays > 0)
        one.move(DeliveryState.IN_FLIGHT)
        one.attempts, one.holder = claim.attempt, claim
        self.began[claim.event.id, claim.target, claim.attempt] = now

    def released(self, claim: Claim) -> None:
        """A claim was given back unused."""
        one = self.of(claim)
        one.move(DeliveryState.PENDING)
        one.attempts, one.holder = one.attempts - 1, None

    def taken_back(self, claim: Claim) -> None:
        """A claim was lost to its lease or to a restart; its number is spent."""
        one = self.of(claim)
        one.move(DeliveryState.PENDING)
        one.holder = None
        self.lost.append(claim)

    def settled(self, asked: Asked, settled: Settled, now: datetime) -> None:
        """An attempt was recorded under the ruling that the real rules gave."""
        claim, ruling = asked.claim, settled.ruling
        assert ruling is not None
        before = self.healths[claim.target]
        assert asked.before == before, "the rule was shown another health than is stored"
        assert settled.was_disabled == (before.state is TargetState.DISABLED)
        one = self.of(claim)
        if asked.outcome.kind is OutcomeKind.SKIPPED:
            one.attempts -= 1  # nothing was sent, and nothing is on record
        else:
            one.recorded.append((claim.attempt, asked.outcome.kind.value))
            one.last_began = ms(asked.began_at)
        if asked.outcome.kind not in NO_TRY and one.first_try is None:
            one.first_try = ms(asked.began_at)
        self._decided(one, asked, ruling, now)
        if asked.outcome.kind is OutcomeKind.DELIVERED:
            self.successes[claim.target].append(ms(asked.began_at))
        self.health_is(claim.target, ruling.health, frees=ruling.releases_held)

    def _decided(self, one: Delivery, asked: Asked, ruling: Ruling, now: datetime) -> None:
        claim, outcome = asked.claim, asked.outcome
        one.holder = None
        one.due = ms(one.received_at)
        match ruling.decision:
            case Done():
                one.move(DeliveryState.DELIVERED)
                one.reason, one.settled = None, ms(now)
            case GiveUp(reason=reason):
                self._may_die(one, claim, outcome)
                one.move(DeliveryState.DEAD)
                one.reason, one.settled = reason, ms(now)
            case Skip(reason=reason):
                assert outcome.kind is OutcomeKind.SKIPPED
                one.move(DeliveryState.SKIPPED)
                one.reason, one.settled = reason, ms(now)
            case RetryAt(at=at, step=step):
                one.move(DeliveryState.PENDING)
                assert step in (one.step, one.step + 1)
                assert step == one.step or claim.turn in (Turn.DUE, Turn.FIRST), "a probe spends no step"
                one.step, one.reason = step, outcome.reason
                if ruling.health.state is TargetState.ACTIVE or claim.turn is Turn.FIRST:
                    one.due = ms(at)

    def _may_die(self, one: Delivery, claim: Claim, outcome: Outcome) -> None:
        """Only an own fault ends a schedule, and only while the target takes others (promise 10); a single try ends
        with whatever came of it, unless we broke it off. The first of an ordered target ends with its schedule."""
        assert claim.turn in (Turn.DUE, Turn.FIRST)
        assert outcome.kind is not OutcomeKind.INTERRUPTED
        if TARGETS[claim.target].ordered:
            assert outcome.kind in OWN_FAULTS
            assert one.step == len(TARGETS[claim.target].schedule)
        elif TARGETS[claim.target].schedule:
            assert outcome.kind in OWN_FAULTS
            assert one.first_try is not None
            assert any(began > one.first_try for began in self.successes[claim.target])

    def health_is(self, target: str, health: TargetHealth, *, frees: bool) -> None:
        """A target's health was changed; what enables it frees what it held."""
        before = self.healths[target]
        if health.state is not before.state:
            assert health.state in TARGET_MOVES[before.state]
        self.healths[target] = health
        if frees:
            for _, one in self.waiting(target):
                one.due = ms(one.received_at)

    def replayed(
        self, event_id: str, target: str | None, routed: list[str], course: Course | None, now: datetime
    ) -> tuple[set[str], set[str]]:
        """An event was replayed: which targets must have begun anew, and which were left alone. `course` is that
        of today's routes to the targets that are routed, None where they do not lead anywhere."""
        states = {name: one for (event, name), one in self.deliveries.items() if event == event_id}
        names = {target} if target else set(states) or set(routed)
        waiting = {name for name in names if name in states and states[name].state not in ENDED}
        for name in names - waiting:
            event = self.events[event_id]
            one = states.get(name)
            if one is None:
                one = Delivery(self.orders[event_id], event.received_at, DeliveryState.PENDING, ms(now))
                self.deliveries[event_id, name] = one
            else:
                one.move(DeliveryState.PENDING)
            one.due, one.step, one.reason, one.first_try, one.settled = ms(now), 0, None, None, None
            one.replays += 1
            one.course = one.course if course is None or name not in routed else course
        return names - waiting, waiting

    def discarded(self, target: str, reason: str, now: datetime) -> int:
        """What waited at a target was let go of; how many."""
        waiting = self.waiting(target)
        for _, one in waiting:
            one.move(DeliveryState.DEAD)
            one.reason, one.settled = reason, ms(now)
        return len(waiting)

    def gathered(self, job_id: str, state: str, target: str | None) -> None:
        """A replay was stored, with all that is in a state now, oldest first."""
        found = [
            (one.order, name, event_id)
            for (event_id, name), one in self.deliveries.items()
            if one.state.value == state and target in (None, name)
        ]
        self.jobs[job_id] = Job(state, [(event_id, name) for _, name, event_id in sorted(found)])

    def advanced(self, job_id: str, number: int, now: datetime) -> "Job":
        """Some items of a running replay had their turn; the last one ends it."""
        job = self.jobs[job_id]
        if job.state != "running":
            return job
        for event_id, name in job.left[:number]:
            one = self.deliveries.get((event_id, name))
            if one is None or one.state.value != job.wanted:
                job.skipped += 1
            else:
                self.replayed(event_id, name, [], None, now)
                job.done += 1
        del job.left[:number]
        job.state = job.state if job.left else "done"
        return job

    def interrupted(self) -> set[str]:
        """The replays that ran when the process ended stand still."""
        ran = {job_id for job_id, job in self.jobs.items() if job.state == "running"}
        for job_id in ran:
            self.jobs[job_id].state = "paused"
        return ran

    def restarted(self) -> None:
        """Another process has the store: every claim is lost, and health is what was stored."""
        for claim in self.live():
            self.taken_back(claim)
        self.healths = {name: as_stored(health) for name, health in self.healths.items()}

    def outlived(self, retention: Retention, now: datetime) -> set[str]:
        """The events whose time is over."""
        delivered, dead = ms(now - retention.delivered), ms(now - retention.dead)
        youngest = max(delivered, dead)
        over = set()
        for event_id, event in self.events.items():
            rows = [one for (name, _), one in self.deliveries.items() if name == event_id]
            limits = [(one.settled, dead if one.state is DeliveryState.DEAD else delivered) for one in rows]
            limits = limits or [(ms(event.received_at), delivered)]
            if ms(event.received_at) <= youngest and all(at is not None and at <= limit for at, limit in limits):
                over.add(event_id)
        return over

    def forget(self, event_ids: set[str]) -> None:
        """Events were pruned: every one of their deliveries had ended."""
        for event_id in event_ids:
            event = self.events.pop(event_id)
            if event.dedupe_key:
                del self.keys[event.source, event.dedupe_key]
        for key in [key for key in self.deliveries if key[0] in event_ids]:
            assert self.deliveries[key].state in ENDED, "only what has ended is deleted"
            del self.deliveries[key]
        self.lost = [claim for claim in self.lost if claim.event.id in self.events]

    def done(self) -> set[str]:
        """The events with nothing left to be done: what may go for want of room."""
        busy = {name for (name, _), one in self.deliveries.items() if one.state in (*UNENDED, DeliveryState.DEAD)}
        return set(self.events) - busy

    def erased(self, event_id: str) -> int:
        """An event was erased by hand, whatever was still to be done with it; how many deliveries it had. Claims on
        it are lost."""
        gone = {key: one for key, one in self.deliveries.items() if key[0] == event_id}
        for key, one in gone.items():
            del self.deliveries[key]
            if one.holder is not None:
                self.lost.append(one.holder)
        event = self.events.pop(event_id)
        if event.dedupe_key:
            del self.keys[event.source, event.dedupe_key]
        return len(gone)

    def counts(self) -> dict[tuple[str, str], int]:
        """How many deliveries are in each counted state."""
        found: dict[tuple[str, str], int] = {}
        for (_, target), one in self.deliveries.items():
            if one.state.value in COUNTED:
                found[target, one.state.value] = found.get((target, one.state.value), 0) + 1
        return found


def ruling_of(asked: Asked, now: datetime, rng: Random) -> Settlement:
    """A settlement with the real rules, as a lane makes it; what the rule is shown is remembered."""
    claim, outcome, target = asked.claim, asked.outcome, TARGETS[asked.claim.target]

    def rule(health: TargetHealth) -> Ruling:
        asked.before = health
        began_at = asked.began_at
        decision = decide(outcome, claim, schedule=target.schedule, began_at=began_at, now=now, rng=rng)
        verdict = judge(health, outcome, claim, target=target, began_at=began_at, now=now, rng=rng, decision=decision)
        return Ruling(decision, verdict.health, releases_held=isinstance(verdict, Enable))

    return Settlement(claim, outcome, asked.began_at, now, rule)
