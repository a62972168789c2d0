"""When a delivery is tried again and when it is given up: the table's third column, and waits within a fifth."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import OUTCOMES, Claim, Done, Event, GiveUp, Outcome, OutcomeKind, RetryAt, Skip, Turn
from relay.rules.retry import RETRY_AFTER_CAP, base_wait, decide, is_recorded, is_spent, jittered, throttle_wait

NOW = datetime(2031, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SCHEDULE = (5 * SECOND, 30 * SECOND)
EVENT = Event("evt_1", "shop", "order", NOW, (), b"{}")

schedules = st.lists(st.integers(1, 200_000).map(lambda s: s * SECOND), max_size=12).map(tuple)
kinds = st.sampled_from(OUTCOMES)


def claim(step: int = 0, *, turn: Turn = Turn.DUE, first_try: int | None = None, took: int | None = None) -> Claim:
    """A claim at a step; `first_try` and `took` in seconds before now."""
    return Claim(
        EVENT,
        "crm",
        attempt=step + 1,
        step=step,
        token=1,
        lease_until=NOW + 60 * SECOND,
        turn=turn,
        first_try_at=None if first_try is None else NOW - first_try * SECOND,
        took_at=None if took is None else NOW - took * SECOND,
    )


def decided(
    kind: OutcomeKind,
    of: Claim,
    schedule: tuple[timedelta, ...] = SCHEDULE,
    *,
    retry_after: timedelta | None = None,
    seed: int = 0,
) -> Done | RetryAt | GiveUp | Skip:
    """What is decided of an attempt that began a second ago."""
    outcome = Outcome(kind, reason="why", retry_after=retry_after)
    return decide(outcome, of, schedule=schedule, began_at=NOW - SECOND, now=NOW, rng=Random(seed))


STEP, NO_STEP, AT_ONCE = "a step", "no step", "no step, due again"


@pytest.mark.row("F13", "B41")
@pytest.mark.parametrize(
    ("kind", "follows"),
    [
        (OutcomeKind.THROTTLED, NO_STEP),
        (OutcomeKind.REFUSED, STEP),
        (OutcomeKind.FAILED, STEP),
        (OutcomeKind.UNREACHABLE, STEP),
        (OutcomeKind.GONE, AT_ONCE),
        (OutcomeKind.UNPREPARED, STEP),
        (OutcomeKind.INTERRUPTED, AT_ONCE),
    ],
)
def test_every_outcome_moves_the_schedule_as_the_table_says(kind: OutcomeKind, follows: str) -> None:
    """The third column of the outcome table, row by row."""
    decision = decided(kind, claim(0))
    assert isinstance(decision, RetryAt)
    assert decision.step == (1 if follows is STEP else 0)
    wait = decision.at - NOW
    assert wait == timedelta(0) if follows is AT_ONCE else 4 * SECOND <= wait <= 6 * SECOND


def test_what_is_delivered_is_done() -> None:
    """A delivery ends whatever its step and turn."""
    assert decided(OutcomeKind.DELIVERED, claim(0)) == Done()
    assert decided(OutcomeKind.DELIVERED, claim(2, turn=Turn.PROBE)) == Done()
    assert decided(OutcomeKind.DELIVERED, claim(0), ()) == Done()


@pytest.mark.parametrize("schedule", [SCHEDULE, ()], ids=str)
@pytest.mark.parametrize("turn", Turn)
def test_what_a_condition_turned_away_is_skipped(turn: Turn, schedule: tuple[timedelta, ...]) -> None:
    """A no that was decided on fetched data ends the delivery with its reason, whatever its step and turn."""
    assert decided(OutcomeKind.SKIPPED, claim(1, turn=turn), schedule) == Skip("why")


def test_what_must_wait_for_something_else_is_due_when_that_is() -> None:
    """An interruption may say how long it will last; it still spends no step, not even the only one."""
    later = Outcome(OutcomeKind.INTERRUPTED, reason="why", retry_after=timedelta(minutes=15))
    for schedule in (SCHEDULE, ()):
        found = decide(later, claim(0), schedule=schedule, began_at=NOW, now=NOW, rng=Random(0))
        assert found == RetryAt(NOW + timedelta(minutes=15), 0)


@pytest.mark.parametrize("turn", [Turn.PROBE, Turn.ARRIVAL])
@given(kind=kinds, step=st.integers(0, 12), schedule=schedules, took=st.booleans())
def test_a_probe_spends_no_step(
    turn: Turn, kind: OutcomeKind, step: int, schedule: tuple[timedelta, ...], took: bool
) -> None:
    """Whatever comes of a probe, its delivery stands where it stood, and it never dies of it."""
    decision = decided(kind, claim(step, turn=turn, first_try=9, took=1 if took else None), schedule)
    assert isinstance(decision, Done) if kind is OutcomeKind.DELIVERED else decision.step == step  # type: ignore[union-attr]


def test_a_schedule_of_two_waits_is_three_tries() -> None:
    """`schedule: [5s, 30s]` is three tries; the third is the last."""
    assert [is_spent(step, SCHEDULE) for step in range(4)] == [False, False, True, True]
    first, second = decided(OutcomeKind.FAILED, claim(0)), decided(OutcomeKind.FAILED, claim(1, first_try=5))
    assert isinstance(first, RetryAt)
    assert isinstance(second, RetryAt)
    assert 4 * SECOND <= first.at - NOW <= 6 * SECOND
    assert 24 * SECOND <= second.at - NOW <= 36 * SECOND
    assert decided(OutcomeKind.FAILED, claim(2, first_try=40, took=20)) == GiveUp("retry schedule ended: why")


@pytest.mark.parametrize(("took", "dies"), [(None, False), (50, False), (40, False), (39, True), (0, True)], ids=str)
@pytest.mark.parametrize(
    "kind", [OutcomeKind.FAILED, OutcomeKind.REFUSED, OutcomeKind.UNREACHABLE, OutcomeKind.UNPREPARED]
)
def test_past_the_last_step_it_dies_only_when_the_target_took_something_since(
    kind: OutcomeKind, took: int | None, dies: bool
) -> None:
    """What the target took before the delivery's first try proves nothing; until then it waits, at the last wait."""
    decision = decided(kind, claim(2, first_try=40, took=took))
    if dies:
        assert decision == GiveUp("retry schedule ended: why")
    else:
        assert isinstance(decision, RetryAt)
        assert decision.step == 2
        assert 24 * SECOND <= decision.at - NOW <= 36 * SECOND


def test_a_first_try_that_is_not_recorded_yet_began_with_this_attempt() -> None:
    """A delivery interrupted until its steps were spent has no earlier try to compare with."""
    assert isinstance(decided(OutcomeKind.FAILED, claim(2, took=5)), RetryAt)
    assert isinstance(decided(OutcomeKind.FAILED, claim(2, took=0)), GiveUp)


@pytest.mark.parametrize(
    "kind", [OutcomeKind.FAILED, OutcomeKind.REFUSED, OutcomeKind.UNREACHABLE, OutcomeKind.UNPREPARED]
)
def test_an_empty_schedule_is_a_single_try_whatever_the_cause(kind: OutcomeKind) -> None:
    """Who writes `schedule: []` wants no second try, taken or not."""
    assert decided(kind, claim(0), ()) == GiveUp("single try failed: why")


@pytest.mark.parametrize("kind", [OutcomeKind.GONE, OutcomeKind.THROTTLED])
def test_the_single_try_is_over_whatever_the_cause(kind: OutcomeKind) -> None:
    """Who writes an empty schedule wants one request and no more."""
    assert decided(kind, claim(0), ()) == GiveUp("single try failed: why")


def test_a_try_that_we_broke_off_ourselves_is_still_to_be_had() -> None:
    """Our own stop is not the target's answer."""
    assert isinstance(decided(OutcomeKind.INTERRUPTED, claim(0), ()), RetryAt)


@pytest.mark.row("B31")
@given(step=st.integers(0, 11), schedule=schedules.filter(bool), seed=st.integers())
def test_every_wait_is_within_a_fifth_of_the_config(step: int, schedule: tuple[timedelta, ...], seed: int) -> None:
    """The n-th wait is the n-th of the YAML in the YAML's own unit, a fifth more or less, never scaled or capped."""
    decision = decided(OutcomeKind.FAILED, claim(step), schedule, seed=seed)
    meant = schedule[min(step, len(schedule) - 1)]
    assert isinstance(decision, RetryAt)
    assert 0.8 * meant <= decision.at - NOW <= 1.2 * meant
    assert base_wait(step, schedule) == meant


@given(seconds=st.integers(1, 10**6))
def test_jitter_spreads_to_both_sides(seconds: int) -> None:
    """What failed together does not return together, and jitter is not lost at a cap: it comes after."""
    rng = Random(seconds)
    waits = [jittered(seconds * SECOND, rng) / (seconds * SECOND) for _ in range(200)]
    assert min(waits) < 0.9
    assert max(waits) > 1.1
    assert all(0.8 <= wait <= 1.2 for wait in waits)


@pytest.mark.row("F19")
@given(asked=st.none() | st.integers(0, 10**7), step=st.integers(0, 12), schedule=schedules, seed=st.integers())
def test_a_throttled_delivery_waits_for_the_later_of_both(
    asked: int | None, step: int, schedule: tuple[timedelta, ...], seed: int
) -> None:
    """Not before `Retry-After`, which is at most a day and gets no jitter, and not before the step's own wait."""
    retry_after = None if asked is None else asked * SECOND
    outcome = Outcome(OutcomeKind.THROTTLED, retry_after=retry_after)
    wait = throttle_wait(outcome, step, schedule, Random(seed))
    own = schedule[min(step, len(schedule) - 1)] if schedule else 5 * SECOND
    capped = min(retry_after or timedelta(0), RETRY_AFTER_CAP)
    assert wait >= capped
    assert 0.8 * own <= wait <= max(1.2 * own, capped)
    decision = decide(outcome, claim(step), schedule=schedule, began_at=NOW, now=NOW, rng=Random(seed))
    assert decision == (RetryAt(NOW + wait, step) if schedule else GiveUp("single try failed: "))


@given(
    kind=kinds,
    step=st.integers(0, 30),
    schedule=schedules,
    turn=st.sampled_from(Turn),
    took=st.none() | st.integers(0, 99),
)
def test_every_attempt_is_decided(
    kind: OutcomeKind, step: int, schedule: tuple[timedelta, ...], turn: Turn, took: int | None
) -> None:
    """Total: it is done, waits for a time not in the past, or dies with a reason, and never of an outage."""
    decision = decided(kind, claim(step, turn=turn, first_try=50, took=took), schedule)
    match decision:
        case Done():
            assert kind is OutcomeKind.DELIVERED
        case RetryAt(at=at, step=then):
            assert at >= NOW
            assert then in (step, step + 1)
        case GiveUp(reason=reason):
            assert reason.endswith("why")
            assert not schedule or turn is Turn.FIRST or (took is not None and took < 50)


# --- in order ---


@pytest.mark.parametrize("took", [None, 1, 99])
def test_the_first_in_order_ends_with_its_schedule(took: int | None) -> None:
    """Although its target took nothing since: it holds back all behind it."""
    last = claim(2, turn=Turn.FIRST, first_try=50, took=took)
    assert decided(OutcomeKind.FAILED, last) == GiveUp("retry schedule ended: why")
    assert isinstance(decided(OutcomeKind.THROTTLED, last), RetryAt)
    assert decided(OutcomeKind.INTERRUPTED, last) == RetryAt(NOW, 2)
    assert decided(OutcomeKind.GONE, last) == RetryAt(NOW, 2)


@pytest.mark.parametrize("step", [0, 1])
def test_the_first_in_order_spends_steps_whatever_its_target_is(step: int) -> None:
    """The turn is the same at a disabled target, and so is the schedule."""
    again = decided(OutcomeKind.UNREACHABLE, claim(step, turn=Turn.FIRST))
    assert isinstance(again, RetryAt)
    assert again.step == step + 1
    assert SCHEDULE[step] * 0.8 <= again.at - NOW <= SCHEDULE[step] * 1.2


@pytest.mark.parametrize("kind", [OutcomeKind.FAILED, OutcomeKind.THROTTLED, OutcomeKind.GONE, OutcomeKind.UNPREPARED])
def test_a_single_try_in_order_is_a_single_try(kind: OutcomeKind) -> None:
    """`schedule: []` ends with whatever came of it."""
    assert decided(kind, claim(turn=Turn.FIRST), ()) == GiveUp("single try failed: why")


@pytest.mark.parametrize("turn", Turn)
def test_of_many_waits_the_first_is_recorded(turn: Turn) -> None:
    """But each at a disabled target, whose probes go round by what was tried; a skipped delivery is no attempt."""
    wait = Outcome(OutcomeKind.INTERRUPTED, reason="waiting", is_wait=True)
    assert is_recorded(claim(0, turn=turn), wait)
    assert is_recorded(claim(1, turn=turn), wait) is (turn in (Turn.PROBE, Turn.ARRIVAL))
    assert is_recorded(claim(1, turn=turn), Outcome(OutcomeKind.INTERRUPTED, reason="the relay is stopping"))
    assert not is_recorded(claim(0, turn=turn), Outcome(OutcomeKind.SKIPPED, reason="no"))
