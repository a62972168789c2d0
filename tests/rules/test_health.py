"""Three failures disable a target: what counts, what slows, what disables, and what brings it back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.model import (
    TARGET_MOVES,
    Claim,
    Decision,
    DisabledBy,
    Done,
    Event,
    GiveUp,
    Outcome,
    OutcomeKind,
    RetryAt,
    Target,
    TargetHealth,
    TargetState,
    Turn,
)
from relay.rules.health import (
    Disable,
    Enable,
    Go,
    Keep,
    Pace,
    Verdict,
    Wait,
    at_start,
    disabled_by_hand,
    enabled_by_hand,
    failure_wait,
    judge,
    permit,
)

T0 = datetime(2031, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
WAITS = (5, 30, 120, 600, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
CRM = Target("crm", "https://crm.example.com", schedule=tuple(wait * SECOND for wait in WAITS))
FRESH = TargetHealth("crm", url_digest="url", settings_digest="settings")

OK, FAILED, UNREACHABLE = OutcomeKind.DELIVERED, OutcomeKind.FAILED, OutcomeKind.UNREACHABLE
REFUSED, THROTTLED, GONE = OutcomeKind.REFUSED, OutcomeKind.THROTTLED, OutcomeKind.GONE
UNPREPARED, INTERRUPTED = OutcomeKind.UNPREPARED, OutcomeKind.INTERRUPTED
SLOWING = [FAILED, UNREACHABLE]
COUNTING = [*SLOWING, REFUSED]


def clock(seconds: float) -> datetime:
    """So many seconds after the beginning."""
    return T0 + seconds * SECOND


def tried(
    health: TargetHealth,
    kind: OutcomeKind,
    began: float,
    ended: float | None = None,
    *,
    event: str = "evt_1",
    target: Target = CRM,
    turn: Turn = Turn.DUE,
    retry_after: timedelta | None = None,
    seed: int = 0,
    decision: Decision | None = None,
) -> Verdict:
    """The verdict on one attempt that began and was recorded at these seconds."""
    one = Event(event, "shop", "order", T0, (), b"{}")
    claim = Claim(one, "crm", attempt=1, step=0, token=1, lease_until=clock(began) + MINUTE, turn=turn)
    return judge(
        health,
        Outcome(kind, reason=f"it was {kind.value}", retry_after=retry_after),
        claim,
        target=target,
        began_at=clock(began),
        now=clock(began + 0.1 if ended is None else ended),
        rng=Random(seed),
        decision=decision,
    )


def failed_at(*begins: float, target: Target = CRM, kind: OutcomeKind = FAILED) -> TargetHealth:
    """The health after attempts of different events that failed."""
    health = FRESH
    for number, began in enumerate(begins):
        health = tried(health, kind, began, target=target, event=f"evt_{number}").health
    return health


DOWN = failed_at(0, 10, 50)
"""Disabled by failures at 50.1 s."""
HAND = disabled_by_hand(FRESH, "maintenance", clock(0))
HELD_BACK = tried(FRESH, GONE, 0).health


def allowed(
    health: TargetHealth, now: float, *, under_way: int = 0, at_once: bool = False, arrivals: bool = False
) -> Go | Wait:
    """What may begin at a second."""
    return permit(health, concurrency=8, under_way=under_way, at_once=at_once, arrivals=arrivals, now=clock(now))


# --- the last column of the outcome table ---


@pytest.mark.row("B70")
@pytest.mark.parametrize(
    ("kind", "counted", "paced", "state"),
    [
        (OK, 0, False, TargetState.ACTIVE),
        (THROTTLED, 0, True, TargetState.ACTIVE),
        (REFUSED, 1, False, TargetState.ACTIVE),
        (FAILED, 1, True, TargetState.ACTIVE),
        (UNREACHABLE, 1, True, TargetState.ACTIVE),
        (GONE, 0, False, TargetState.DISABLED),
        (UNPREPARED, 0, False, TargetState.ACTIVE),
        (INTERRUPTED, 0, False, TargetState.ACTIVE),
    ],
)
def test_every_outcome_moves_the_target_as_the_table_says(
    kind: OutcomeKind, counted: int, paced: bool, state: TargetState
) -> None:
    """The fourth column of the outcome table, row by row."""
    health = tried(FRESH, kind, 0).health
    assert (health.failures, health.paced, health.state) == (counted, paced, state)


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        (OK, Keep),
        (THROTTLED, Pace),
        (REFUSED, Keep),
        (FAILED, Pace),
        (UNREACHABLE, Pace),
        (GONE, Disable),
        (UNPREPARED, Keep),
        (INTERRUPTED, Keep),
    ],
)
def test_every_outcome_has_its_verdict(kind: OutcomeKind, verdict: type[Verdict]) -> None:
    """Only what people must be told is more than `Keep`."""
    assert type(tried(FRESH, kind, 0)) is verdict


# --- "a failure counts when ..." ---


@pytest.mark.parametrize("kind", SLOWING)
def test_three_failures_spread_by_the_waits_disable(kind: OutcomeKind) -> None:
    """The third counted failure disables; state, reason, time, count and events are in what is stored."""
    one = tried(FRESH, kind, 0, event="a")
    two = tried(one.health, kind, 6.2, event="b")
    three = tried(two.health, kind, 42.5, 43, event="a")
    assert [type(verdict) for verdict in (one, two, three)] == [Pace, Pace, Disable]
    assert three.health == FRESH._replace(
        state=TargetState.DISABLED,
        disabled_by=DisabledBy.FAILURES,
        reason=f"it was {kind.value}",
        since=clock(43),
        failures=3,
        counted_events=("a", "b", "a"),
        counted_at=clock(43),
        probe_at=clock(43 + 60),
        probe_wait=MINUTE,
    )


@pytest.mark.parametrize("kind", COUNTING)
def test_what_began_before_the_last_counted_failure_was_recorded_does_not_count(kind: OutcomeKind) -> None:
    """Attempts that hang together fail together: one failure, however late each is recorded."""
    one = tried(FRESH, FAILED, 0, 15).health
    for began, ended in ((0, 15), (14, 29), (15, 30)):
        assert tried(one, kind, began, ended, event="b") == Keep(one)


@pytest.mark.parametrize("kind", COUNTING)
def test_what_began_before_the_last_success_does_not_count(kind: OutcomeKind) -> None:
    """A straggler tells of a time before the target was well."""
    well = tried(FRESH, OK, 10, 11).health
    assert tried(well, kind, 9, 20) == Keep(well)
    assert tried(well, kind, 11, 20) == Keep(well)
    assert tried(well, kind, 11.001, 20).health.failures == 1


def test_what_began_before_a_target_was_enabled_does_not_count() -> None:
    """`enable` says that what went before is mended."""
    enabled = enabled_by_hand(DOWN, clock(100))
    assert tried(enabled, FAILED, 99, 110).health.failures == 0
    assert tried(enabled, FAILED, 101, 110).health.failures == 1


@pytest.mark.parametrize("kind", COUNTING)
@pytest.mark.parametrize("seed", range(10))
def test_what_began_before_the_wait_was_over_does_not_count(kind: OutcomeKind, seed: int) -> None:
    """5 s after the first and 30 s after the second, drawn once: the stored time rules."""
    one = tried(FRESH, FAILED, 0, 0, seed=seed).health
    assert one.wait_until is not None
    first = (one.wait_until - T0).total_seconds()
    assert 4 <= first <= 6
    assert tried(one, kind, first - 0.001, event="b") == Keep(one)
    two = tried(one, kind, first, first, event="b", seed=seed).health
    assert two.failures == 2
    assert two.wait_until is not None
    second = (two.wait_until - T0).total_seconds() - first
    assert 24 <= second <= 36
    assert tried(two, kind, first + second - 0.001, event="c") == Keep(two)
    assert tried(two, kind, first + second + 0.001, event="c").health.state is TargetState.DISABLED


@pytest.mark.parametrize(
    ("schedule", "waits"),
    [
        (WAITS, [5, 30, 120, 600, 900, 900, 900, 900, 900, 900, 900, 900]),
        ((5, 30), [5, 30, 30, 30]),
        ((1, 1), [1, 1, 1]),
        ((7,), [7, 7, 7]),
        ((3600, 7200, 9000), [3600, 7200, 900]),
        ((), [5, 30, 30]),
    ],
)
def test_the_waits_are_the_schedules_own(schedule: tuple[int, ...], waits: list[int]) -> None:
    """A shorter schedule repeats its last wait, an empty one has 5 s and 30 s; from the third on at most a probe's."""
    target = replace(CRM, schedule=tuple(wait * SECOND for wait in schedule))
    assert [failure_wait(number + 1, target) for number in range(len(waits))] == [wait * SECOND for wait in waits]


@pytest.mark.row("F24")
@given(
    attempts=st.lists(st.tuples(st.floats(0, 15), st.sampled_from(COUNTING)), min_size=1, max_size=40),
    seed=st.integers(),
)
def test_a_burst_that_fails_together_is_one_failure(attempts: list[tuple[float, OutcomeKind]], seed: int) -> None:
    """However many attempts were under way when the first failure was recorded, they are one."""
    health = FRESH
    for number, (took, kind) in enumerate(sorted(attempts)):
        health = tried(health, kind, 0, took, event=f"evt_{number}", seed=seed).health
    assert health.failures == 1
    assert health.state is TargetState.ACTIVE


@given(
    attempts=st.lists(st.tuples(st.floats(0, 200), st.floats(0, 20), st.sampled_from(COUNTING)), max_size=60),
    seed=st.integers(),
)
def test_three_failures_are_spread_over_half_a_minute(
    attempts: list[tuple[float, float, OutcomeKind]], seed: int
) -> None:
    """Whatever fails whenever, a target is not disabled sooner than 35 s, less jitter, after its first failure."""
    health, first = FRESH, None
    order = sorted(attempts, key=lambda one: one[0] + one[1])
    for number, (began, took, kind) in enumerate(order):
        verdict = tried(health, kind, began, began + took, event=f"evt_{number}", seed=seed + number)
        health = verdict.health
        if health.failures == 1 and first is None:
            first = began + took
        if isinstance(verdict, Disable):
            assert first is not None
            assert began + took - first >= 0.8 * 35
            return
    assert health.state is TargetState.ACTIVE


# --- refusals ---


@pytest.mark.row("F33", "T58")
def test_a_refusal_counts_once_per_event_and_does_not_slow() -> None:
    """One bad event cannot disable a target however often it is refused; the target is alive and is not paced."""
    health = FRESH
    for began in (0, 10, 60, 300, 3600):
        health = tried(health, REFUSED, began, event="bad").health
    assert (health.failures, health.paced, health.counted_events) == (1, False, ("bad",))
    assert allowed(health, 3600) == Go(8)


def test_refusals_of_different_events_keep_the_waits_and_disable() -> None:
    """A target that refuses everything is at fault itself; its refusals are spread like failures."""
    health = failed_at(0, 1, 2, 3, kind=REFUSED)
    assert health.failures == 1
    health = failed_at(0, 10, 50, kind=REFUSED)
    assert health.state is TargetState.DISABLED
    assert len(set(health.counted_events)) == 3
    assert not health.arrival_try


def test_a_refusal_at_a_paced_target_keeps_the_pace() -> None:
    """A refusal slows nothing, and it mends nothing: only a success lifts the pace."""
    health = tried(failed_at(0), REFUSED, 10, event="b").health
    assert (health.failures, health.paced) == (2, True)


def test_an_event_that_failed_before_does_not_count_again_by_being_refused() -> None:
    """Once per event holds whatever it was counted for first."""
    assert tried(failed_at(0), REFUSED, 10, event="evt_0").health.failures == 1
    assert tried(failed_at(0), FAILED, 10, event="evt_0").health.failures == 2


# --- pace ---


@pytest.mark.parametrize("kind", SLOWING)
def test_a_counted_failure_paces_until_any_success(kind: OutcomeKind) -> None:
    """One attempt at a time; a success, also of an attempt already under way, lifts pace and count."""
    paced = tried(FRESH, kind, 10).health
    assert allowed(paced, 10.2, at_once=True) == Go(1)
    assert allowed(paced, 10.2, at_once=True, under_way=1) == Wait()
    assert allowed(paced, 10.2) == Wait(paced.wait_until)
    assert allowed(paced, 3600, under_way=1) == Wait(), "however old it is"
    assert allowed(paced, 16.2) == Go(1)
    well = tried(paced, OK, 0, 11)
    assert isinstance(well, Keep)
    assert (well.health.failures, well.health.counted_events, well.health.paced) == (0, (), False)
    assert allowed(well.health, 11, under_way=3) == Go(5)


@pytest.mark.parametrize(
    "told",
    [{}, {"took_at": T0 + HOUR}, {"probe_at": T0}, {"arrival_try": True}],
    ids=["fresh", "later", "probe", "try"],
)
def test_of_a_clean_target_a_success_changes_only_when_the_last_one_was(told: dict[str, Any]) -> None:
    """So that it need not be judged; with any fault on record, or off, a target is not clean."""
    clean = FRESH._replace(**told)
    assert clean.is_clean
    assert tried(clean, OK, 10, 11) == Keep(clean.succeeded(clock(11), clock(10)))
    faults = {"failures": 1, "counted_events": ("evt_1",), "counted_at": T0, "wait_until": T0, "paced": True}
    faults |= {"throttled_until": T0, "ramp": 1, "disabled_by": DisabledBy.FAILURES}
    assert not any(clean._replace(**{name: value}).is_clean for name, value in faults.items())


healths = st.builds(
    TargetHealth,
    name=st.just("crm"),
    paced=st.booleans(),
    wait_until=st.none() | st.floats(0, 100).map(clock),
    throttled_until=st.none() | st.floats(0, 100).map(clock),
    probe_at=st.none() | st.floats(0, 100).map(clock),
    arrival_try=st.booleans(),
    ramp=st.none() | st.integers(1, 12),
).flatmap(
    lambda health: st.sampled_from(
        [health, *(health._replace(state=TargetState.DISABLED, disabled_by=by) for by in DisabledBy)]
    )
)


@pytest.mark.row("B28")
@given(
    health=healths,
    now=st.floats(0, 100),
    under_way=st.integers(0, 12),
    at_once=st.booleans(),
    arrivals=st.booleans(),
    concurrency=st.integers(1, 12),
)
def test_what_is_shown_is_what_is_enforced(
    health: TargetHealth, now: float, under_way: int, at_once: bool, arrivals: bool, concurrency: int
) -> None:
    """The gate reads nothing but the stored health that every view shows."""
    gate = permit(
        health, concurrency=concurrency, under_way=under_way, at_once=at_once, arrivals=arrivals, now=clock(now)
    )
    is_throttled = health.throttled_until is not None and clock(now) < health.throttled_until
    if isinstance(gate, Wait):
        assert gate.until is None or gate.until > clock(now)
        return
    assert not is_throttled
    assert gate.count >= 1
    if health.state is TargetState.DISABLED:
        assert gate.count == 1
        assert gate.turn is not Turn.DUE
        assert health.probe_at is not None
        assert gate.turn is Turn.ARRIVAL or (clock(now) >= health.probe_at and under_way == 0)
        assert gate.turn is Turn.PROBE or (health.arrival_try and arrivals)
        return
    assert gate.turn is Turn.DUE
    assert under_way + gate.count <= concurrency
    assert health.ramp is None or under_way + gate.count <= health.ramp
    if health.paced:
        assert (under_way, gate.count) == (0, 1), "never two at a paced target"
        assert at_once or health.wait_until is None or clock(now) >= health.wait_until


@given(health=healths, under_way=st.integers(0, 3))
def test_an_active_target_with_nothing_under_way_is_never_stuck(health: TargetHealth, under_way: int) -> None:
    """With a slot free and every wait over something may begin; else the gate names what it waits for."""
    assume(health.state is TargetState.ACTIVE)
    gate = permit(health, concurrency=4, under_way=0, at_once=False, arrivals=False, now=clock(101))
    assert isinstance(gate, Go)
    gate = permit(health, concurrency=4, under_way=under_way, at_once=False, arrivals=False, now=clock(0))
    assert isinstance(gate, Go) or gate.until is not None or under_way > 0


# --- throttles ---


def test_a_throttle_makes_the_target_wait_then_one_at_a_time() -> None:
    """429 counts nothing and disables nothing; it is lifted when a request made after the silence is taken."""
    health = tried(FRESH, THROTTLED, 0, 0, retry_after=MINUTE).health
    assert (health.failures, health.throttled_until) == (0, clock(60))
    assert allowed(health, 59, at_once=True) == Wait(clock(60))
    assert allowed(health, 60) == Go(1)
    straggler = tried(health, OK, 0, 5).health
    assert straggler.throttled_until == clock(60), "who asked for a silence gets it"
    assert straggler.paced
    well = tried(health, OK, 60, 61).health
    assert well.throttled_until is None
    assert not well.paced


def test_a_shorter_throttle_does_not_cut_a_longer_one_short() -> None:
    """Of several answers the one that asks for most counts."""
    health = tried(FRESH, THROTTLED, 0, 0, retry_after=HOUR).health
    assert tried(health, THROTTLED, 0, 1, retry_after=SECOND).health.throttled_until == clock(3600)


def test_a_throttled_probe_and_a_throttled_straggler_put_the_next_probe_off() -> None:
    """A disabled target that asks for a silence is not probed in it, nor by the next arrival."""
    health = tried(DOWN._replace(arrival_try=True), THROTTLED, 100, turn=Turn.PROBE, retry_after=HOUR).health
    assert health.probe_wait == 2 * MINUTE
    assert health.probe_at == clock(3700.1)
    assert allowed(health, 3700, arrivals=True) == Wait(clock(3700.1))
    assert allowed(health, 3700.1) == Go(1, Turn.PROBE)
    assert tried(HAND, THROTTLED, 100).health.probe_at is None


def test_a_throttle_outlives_the_disabling() -> None:
    """A target disabled by failures while it was throttled is still left alone as long as it asked."""
    throttled = tried(failed_at(0, 10), THROTTLED, 40, retry_after=HOUR).health
    disabled = tried(throttled, FAILED, 50)
    assert isinstance(disabled, Disable)
    assert allowed(disabled.health, 200) == Wait(clock(3640.1))


# --- disabled, probed, enabled ---


@pytest.mark.parametrize(("after", "number"), [(1, 1), (2, 2), (5, 5), (20, 20)])
def test_disable_after_changes_the_number(after: int, number: int) -> None:
    """So many counted failures and not one fewer; all of their events are kept."""
    target = replace(CRM, disable_after=after)
    health, began, count = FRESH, 0.0, 0
    while health.state is TargetState.ACTIVE:
        health = tried(health, FAILED, began, event=f"evt_{count}", target=target).health
        began, count = began + 2000, count + 1
    assert count == number
    assert len(health.counted_events) == number


def test_a_target_that_is_never_disabled_keeps_the_pace() -> None:
    """`disable_after: never` counts on, remembers a bounded number of events, and stays paced."""
    target = replace(CRM, disable_after=None)
    health = failed_at(*(number * 2000 for number in range(40)), target=target)
    assert (health.state, health.failures, health.paced) == (TargetState.ACTIVE, 40, True)
    assert len(health.counted_events) == 16
    assert isinstance(tried(health, REFUSED, 10**6, event="new", target=target), Keep)


@pytest.mark.row("F18")
def test_probes_come_after_doubling_waits_up_to_the_longest() -> None:
    """After 1 m, then 2 m, 4 m and so on, at most 15 m; one at a time, and only when it is time."""
    health, now, waits = DOWN, 50.1, []
    for _ in range(7):
        assert health.probe_at is not None
        waits.append((health.probe_at - clock(now)).total_seconds())
        now = (health.probe_at - T0).total_seconds()
        assert allowed(health, now - 0.001) == Wait(health.probe_at)
        assert allowed(health, now) == Go(1, Turn.PROBE)
        assert allowed(health, now, under_way=1) == Wait()
        health = tried(health, UNREACHABLE, now, now, turn=Turn.PROBE).health
    assert waits == pytest.approx([60, 120, 240, 480, 900, 900, 900])
    assert health.failures == 3, "a probe counts nothing"


@pytest.mark.parametrize("turn", Turn)
@pytest.mark.parametrize("began", [1, 120])
def test_any_success_ends_a_disabling_by_failures(turn: Turn, began: float) -> None:
    """Also of an attempt begun before it; the target starts with one attempt and nothing held against it."""
    verdict = tried(DOWN, OK, began, 121, turn=turn)
    assert verdict == Enable(FRESH._replace(since=clock(121), succeeded_at=clock(121), took_at=clock(began), ramp=1))


def test_the_concurrency_grows_by_one_with_each_success() -> None:
    """From 1 to the target's own; failures do not shrink it, they pace."""
    health, ramps = enabled_by_hand(DOWN, clock(100)), []
    for number in range(9):
        gate = allowed(health, 101 + number)
        assert isinstance(gate, Go)
        ramps.append(gate.count)
        health = tried(health, OK, 101 + number).health
    assert ramps == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert health.ramp is None
    on_the_ramp = tried(enabled_by_hand(DOWN, clock(100)), OK, 101).health
    assert tried(on_the_ramp, FAILED, 103).health.ramp == 2


def test_the_concurrency_of_a_target_that_takes_one_at_a_time_needs_no_ramp() -> None:
    """`concurrency: 1` is whole after its first success."""
    health = tried(enabled_by_hand(DOWN, clock(100)), OK, 101, target=replace(CRM, concurrency=1)).health
    assert health.ramp is None


@pytest.mark.row("T58", "B74")
def test_only_where_one_event_did_it_all_is_the_next_arrival_tried_at_once() -> None:
    """One bad event at a quiet target must not hold up the next; after that one try only probes go."""
    health = FRESH
    for began in (0, 10, 50):
        health = tried(health, FAILED, began, event="bad").health
    assert health.arrival_try
    assert allowed(health, 51) == Wait(health.probe_at)
    assert allowed(health, 51, arrivals=True) == Go(1, Turn.ARRIVAL)
    assert allowed(health, 51, arrivals=True, under_way=1) == Go(1, Turn.ARRIVAL), "beside the probes"
    after = tried(health, FAILED, 52, event="next", turn=Turn.ARRIVAL).health
    assert (after.arrival_try, after.probe_at, after.probe_wait) == (False, health.probe_at, health.probe_wait)
    assert allowed(after, 53, arrivals=True) == Wait(health.probe_at)
    assert not DOWN.arrival_try


def test_what_fails_at_a_disabled_target_changes_nothing_but_the_probes() -> None:
    """A straggler's failure neither counts nor puts a probe off."""
    assert tried(DOWN, FAILED, 49, 70) == Keep(DOWN)
    assert tried(HAND, FAILED, 49, 70, turn=Turn.PROBE) == Keep(HAND)
    assert tried(DOWN, INTERRUPTED, 120, turn=Turn.PROBE) == Keep(DOWN), "our own stop is no answer: probed again"
    assert tried(DOWN, OutcomeKind.SKIPPED, 120, turn=Turn.PROBE) == Keep(DOWN), "nothing was sent: another is probed"
    assert tried(DOWN, UNPREPARED, 120, turn=Turn.PROBE).health.probe_wait == 2 * MINUTE


def test_probe_never_waits_for_a_hand() -> None:
    """Neither a probe nor an arrival; a straggler's success still ends it."""
    target = replace(CRM, probe_first=None)
    health = failed_at(0, 10, 50, target=target)
    assert (health.state, health.probe_at, health.arrival_try) == (TargetState.DISABLED, None, False)
    assert allowed(health, 10**6, arrivals=True) == Wait()
    assert isinstance(tried(health, OK, 40, 60, target=target), Enable)


# --- gone and by hand ---


@pytest.mark.parametrize("before", [FRESH, failed_at(0), DOWN], ids=["well", "paced", "disabled"])
def test_gone_disables_at_once_and_is_never_probed(before: TargetHealth) -> None:
    """410: the receiver asked for it."""
    verdict = tried(before, GONE, 120)
    assert isinstance(verdict, Disable)
    assert verdict.health.disabled_by is DisabledBy.GONE
    assert verdict.health.reason == "it was gone"
    assert verdict.health.since == clock(120.1)
    assert allowed(verdict.health, 10**6, arrivals=True) == Wait()


@pytest.mark.row("B59")
@pytest.mark.parametrize("before", [HAND, HELD_BACK], ids=["by hand", "gone"])
@pytest.mark.parametrize("kind", OutcomeKind)
def test_no_outcome_ends_a_disabling_by_hand_or_by_410(before: TargetHealth, kind: OutcomeKind) -> None:
    """What was under way ends as it will; the target stays off, for the same reason."""
    verdict = tried(before, kind, 1, 10, retry_after=MINUTE)
    assert isinstance(verdict, Keep)
    after = verdict.health
    assert (after.state, after.disabled_by, after.reason) == (before.state, before.disabled_by, before.reason)
    assert allowed(after, 10**6, arrivals=True) == Wait()


def test_a_success_at_a_target_that_is_off_is_remembered() -> None:
    """Its count goes back to 0, and what it took tells whose fault a failure is."""
    after = tried(disabled_by_hand(failed_at(0, 10), "maintenance", clock(20)), OK, 19, 25).health
    assert (after.failures, after.took_at, after.succeeded_at) == (0, clock(19), clock(25))


@pytest.mark.parametrize("before", [DOWN, HAND, HELD_BACK], ids=["failures", "by hand", "gone"])
def test_enabling_by_hand_ends_every_disabling(before: TargetHealth) -> None:
    """Active, nothing counted, nothing throttled, from one attempt up."""
    after = enabled_by_hand(before, clock(100))
    assert after == FRESH._replace(since=clock(100), ramp=1)


def test_enabling_an_active_target_lifts_its_throttle_and_its_pace() -> None:
    """There is no backlog to leave slowly."""
    slowed = tried(failed_at(0), THROTTLED, 1, retry_after=HOUR).health
    assert enabled_by_hand(slowed, clock(2)) == FRESH._replace(reason="it was failed")


def test_disabling_by_hand_ends_probes_pace_and_throttle() -> None:
    """An operator's word stands above all that was under way."""
    slowed = tried(failed_at(0), THROTTLED, 1, retry_after=HOUR).health
    for before in (slowed, DOWN, HELD_BACK):
        after = disabled_by_hand(before, "maintenance", clock(60))
        assert (after.disabled_by, after.since, after.reason) == (DisabledBy.HAND, clock(60), "maintenance")
        assert (after.paced, after.throttled_until, after.probe_at, after.arrival_try) == (False, None, None, False)


# --- a start ---


def started(
    health: TargetHealth, now: float, *, target: Target = CRM, url: str = "url", settings: str = "settings"
) -> Verdict:
    """What a start at a second makes of a stored health."""
    return at_start(health, target, url_digest=url, settings_digest=settings, now=clock(now))


@pytest.mark.row("B71")
@pytest.mark.parametrize(
    "health",
    [FRESH, failed_at(0), failed_at(0, 10), DOWN, HAND, HELD_BACK, tried(FRESH, THROTTLED, 0).health],
    ids=["well", "first wait", "second wait", "disabled", "by hand", "gone", "throttled"],
)
def test_a_start_with_the_same_config_changes_nothing(health: TargetHealth) -> None:
    """A restart neither resets nor bunches: count, wait, state and the time of the next probe are as they were."""
    assert started(health, 55) == Keep(health)


def test_the_first_start_only_notes_the_config() -> None:
    """Nothing is known of a target that was never seen, so nothing has changed."""
    assert started(TargetHealth("crm"), 0) == Keep(FRESH)
    assert started(DOWN._replace(url_digest="", settings_digest=""), 55) == Keep(DOWN)


@pytest.mark.parametrize(("url", "settings"), [("new", "settings"), ("url", "new"), ("new", "new")])
def test_a_changed_target_is_probed_at_once(url: str, settings: str) -> None:
    """After a disabling by failures; what it was throttled for was said by another."""
    health = tried(DOWN, THROTTLED, 60, turn=Turn.PROBE, retry_after=HOUR).health
    verdict = started(health, 100, url=url, settings=settings)
    assert isinstance(verdict, Keep)
    assert allowed(verdict.health, 100) == Go(1, Turn.PROBE)
    assert verdict.health.probe_wait == MINUTE
    assert (verdict.health.url_digest, verdict.health.settings_digest) == (url, settings)
    assert started(FRESH, 100, url=url, settings=settings).health.state is TargetState.ACTIVE


def test_a_new_url_ends_a_disabling_by_410_and_nothing_else_does() -> None:
    """The old receiver asked to be left alone, not the new one; a hand's word stands."""
    assert isinstance(started(HELD_BACK, 100, url="new"), Enable)
    assert started(HELD_BACK, 100, url="new").health == FRESH._replace(url_digest="new", since=clock(100), ramp=1)
    assert isinstance(started(HELD_BACK, 100, settings="new"), Keep)
    assert started(HELD_BACK, 100, settings="new").health.state is TargetState.DISABLED
    assert started(HAND, 100, url="new").health.disabled_by is DisabledBy.HAND


def test_an_active_target_at_a_new_url_starts_without_the_faults_of_the_old() -> None:
    """Neither the count nor the throttle of a server is held against another."""
    throttled = tried(failed_at(0), THROTTLED, 10, retry_after=HOUR).health
    moved = started(throttled, 20, url="new").health
    assert (moved.failures, moved.paced, moved.throttled_until, moved.ramp) == (0, False, None, None)
    assert started(throttled, 20, settings="new").health.throttled_until == throttled.throttled_until


def test_a_start_follows_todays_probe_setting() -> None:
    """Probes now forbidden are dropped, those now asked for get their time, those too far come nearer."""
    never = replace(CRM, probe_first=None)
    dropped = started(DOWN, 60, target=never).health
    assert (dropped.probe_at, dropped.probe_wait, dropped.arrival_try) == (None, None, False)
    assert started(dropped, 70, target=never, url="new").health.probe_at is None
    again = started(dropped, 70).health
    assert (again.probe_at, again.probe_wait) == (clock(130), MINUTE)
    far = DOWN._replace(probe_at=clock(10_000), probe_wait=2 * HOUR)
    assert started(far, 100).health.probe_at == clock(100 + 900)
    asked = far._replace(throttled_until=clock(5000))
    assert started(asked, 100).health.probe_at == clock(5000)


# --- all of it together ---


@given(
    attempts=st.lists(
        st.tuples(
            st.sampled_from([*OutcomeKind, OK, FAILED]),
            st.floats(0, 100),
            st.floats(0, 20),
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(Turn),
        ),
        max_size=40,
    ),
    disable_after=st.none() | st.integers(1, 4),
    probe=st.none() | st.just(MINUTE),
)
def test_health_is_sound_after_whatever_happens(
    attempts: list[tuple[OutcomeKind, float, float, str, Turn]], disable_after: int | None, probe: timedelta | None
) -> None:
    """Every verdict names what it changed, moves are legal, and no state contradicts itself."""
    target = replace(CRM, disable_after=disable_after, probe_first=probe)
    health, now = FRESH, 0.0
    for kind, pause, took, event, turn in attempts:
        began, now = now + pause, now + pause + took
        verdict = tried(health, kind, began, now, event=event, turn=turn, target=target)
        after = verdict.health
        if after.state is not health.state:
            assert after.state in TARGET_MOVES[health.state]
            assert isinstance(verdict, Disable if after.state is TargetState.DISABLED else Enable)
            assert after.since == clock(now)
        assert (after.state is TargetState.DISABLED) == (after.disabled_by is not None)
        assert (after.probe_at is None) == (after.probe_wait is None)
        assert after.probe_at is None or (after.disabled_by is DisabledBy.FAILURES and probe is not None)
        assert after.probe_at is not None or not after.arrival_try
        assert after.disabled_by is not DisabledBy.FAILURES or after.failures == disable_after
        assert after.state is TargetState.DISABLED or disable_after is None or after.failures < disable_after
        assert kind is not OK or (after.failures == 0 and after.took_at is not None)
        assert kind is not INTERRUPTED or after == health
        health = after


# --- in order ---

QUEUE = replace(CRM, ordered=True, concurrency=1)
FIRST = Turn.FIRST


def in_order(health: TargetHealth, now: float, *, under_way: int = 0, at_once: bool = False) -> Go | Wait:
    """What may begin at an ordered target."""
    return permit(
        health, concurrency=8, under_way=under_way, at_once=at_once, arrivals=True, now=clock(now), ordered=True
    )


def held_up(decision: Decision, *, target: Target = QUEUE) -> TargetHealth:
    """An ordered target that was disabled by a failure after which its first delivery goes on like this."""
    health = failed_at(0, 10, target=target)
    return tried(health, FAILED, 50, target=target, turn=FIRST, decision=decision).health


def test_an_ordered_target_gets_one_at_a_time() -> None:
    """Whatever its concurrency, and none beside anything that is under way."""
    assert in_order(FRESH, 0) == Go(1, FIRST)
    assert in_order(FRESH, 0, under_way=1) == Wait()
    assert in_order(DOWN, 10_000, under_way=1) == Wait()
    paced = failed_at(0, target=QUEUE)
    assert isinstance(in_order(paced, 1), Wait)
    assert in_order(paced, 1, at_once=True) == Go(1, FIRST)
    assert in_order(paced, 7) == Go(1, FIRST)


def test_a_refused_first_does_not_slow_an_ordered_target() -> None:
    """It is alive: the count's own wait holds nothing back."""
    refused = tried(FRESH, REFUSED, 0, target=QUEUE, turn=FIRST, decision=RetryAt(clock(1), 1)).health
    assert refused.wait_until is not None
    assert in_order(refused, 1) == Go(1, FIRST)


def test_a_disabled_ordered_target_is_tried_by_the_schedule_of_its_first() -> None:
    """No probes of its own pace, no arrivals: what is shown as the next probe is when the first is due."""
    health = held_up(RetryAt(clock(170), 3))
    assert (health.state, health.probe_at, health.probe_wait) == (TargetState.DISABLED, clock(170), None)
    assert not health.arrival_try
    assert in_order(health, 51) == Go(1, FIRST), "whether the first is due is the store's to say"
    again = tried(health, FAILED, 170, target=QUEUE, turn=FIRST, decision=RetryAt(clock(770), 4))
    assert isinstance(again, Keep)
    assert (again.health.probe_at, again.health.probe_wait) == (clock(770), None)
    back = tried(again.health, OK, 770, target=QUEUE, turn=FIRST, decision=Done())
    assert isinstance(back, Enable)


def test_after_a_dead_first_the_next_is_not_tried_at_once() -> None:
    """At a disabled target the next waits as after a failure: an outage must not end one after the other."""
    for target, meant in ((QUEUE, 120), (replace(QUEUE, schedule=()), 30), (replace(QUEUE, schedule=(SECOND,)), 1)):
        health = held_up(GiveUp("single try failed"), target=target)
        assert health.wait_until == health.probe_at
        assert health.wait_until is not None
        waits = (health.wait_until - clock(50.1)).total_seconds()
        assert meant * 0.8 <= waits <= meant * 1.2
        assert in_order(health, 50.2) == Wait(health.wait_until)
        assert in_order(health, 50.2 + meant * 1.2) == Go(1, FIRST)
        next_one = tried(health, FAILED, 300, target=target, turn=FIRST, decision=RetryAt(clock(305), 1)).health
        assert (next_one.wait_until, next_one.probe_at) == (None, clock(305))


def test_a_throttled_first_of_a_disabled_target_waits_for_both() -> None:
    """The silence it asked for, and its step."""
    health = held_up(RetryAt(clock(170), 3))
    health = tried(
        health, THROTTLED, 170, 170, target=QUEUE, turn=FIRST, retry_after=HOUR, decision=RetryAt(clock(300), 3)
    ).health
    assert health.probe_at == clock(170) + HOUR
    assert in_order(health, 171) == Wait(clock(170) + HOUR)


def test_what_must_not_be_probed_is_not_tried_in_order() -> None:
    """By hand, by 410, and where `probe: never` is written."""
    never = held_up(RetryAt(clock(170), 3), target=replace(QUEUE, probe_first=None))
    for health in (HAND, HELD_BACK, never):
        assert health.state is TargetState.DISABLED
        assert in_order(health, 1_000_000) == Wait()
        after = tried(health, FAILED, 60, target=QUEUE, turn=FIRST, decision=RetryAt(clock(70), 1)).health
        assert after.probe_at is None


def test_order_is_switched_on_and_off_at_a_disabled_target() -> None:
    """Switched on, the first is tried when it is due; switched off, a probe has its own time again. What was begun
    under the other rule changes neither."""

    def started(health: TargetHealth, target: Target, **digests: str) -> TargetHealth:
        known = {"url_digest": "url", "settings_digest": "settings"} | digests
        return at_start(health, target, now=clock(100), **known).health

    on = started(DOWN, QUEUE)
    assert (on.probe_at, on.probe_wait, on.arrival_try) == (clock(100), None, False)
    assert in_order(on, 100) == Go(1, FIRST)
    assert started(on, QUEUE) == on
    straggler = tried(on, FAILED, 101, target=QUEUE, turn=Turn.PROBE).health
    assert (straggler.probe_at, straggler.probe_wait) == (clock(100), None)
    off = started(on, CRM)
    assert (off.probe_at, off.probe_wait) == (clock(160), MINUTE)
    late = tried(off, FAILED, 101, turn=FIRST, decision=RetryAt(clock(5000), 7)).health
    assert (late.probe_at, late.probe_wait) == (clock(160), MINUTE)
    mended = started(held_up(GiveUp("spent")), QUEUE, settings_digest="mended")
    assert (mended.probe_at, mended.probe_wait, mended.wait_until) == (clock(100), None, None)
