"""What a clock that was set may leave behind: how a step is known, and that no wait outlasts its kind."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Target, TargetHealth
from relay.rules.clock import STEP, Reading, bounded, longest_asked, longest_waits, step
from relay.rules.health import failure_wait, permit
from relay.rules.skew import LEAST, SPAN_S, Window, noted

NOW = datetime(2031, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TARGET = Target("crm", "https://crm.example.com", schedule=(5 * SECOND, 30 * SECOND, 120 * SECOND))
MOMENTS = ("since", "counted_at", "wait_until", "succeeded_at", "took_at", "throttled_until", "probe_at")
TIMES = st.none() | st.timedeltas(timedelta(days=-4000), timedelta(days=4000)).map(lambda span: NOW + span)


@pytest.mark.row("F30")
@given(st.timedeltas(timedelta(0), timedelta(days=400)), st.timedeltas(timedelta(days=-4000), timedelta(days=4000)))
def test_a_step_is_what_no_time_explains(passed: timedelta, by: timedelta) -> None:
    """However long it was between two looks; what adjusting explains is no step."""
    before = Reading(NOW, 7.0)
    after = Reading(NOW + passed + by, 7.0 + passed.total_seconds())
    found = step(before, after)
    if abs(by) > STEP + timedelta(milliseconds=1):
        assert found is not None
        assert abs(found - by) < timedelta(milliseconds=1)
    elif abs(by) < STEP - timedelta(milliseconds=1):
        assert found is None


@pytest.mark.row("F30")
@given(
    st.fixed_dictionaries(
        dict.fromkeys(MOMENTS, TIMES),
    ),
    st.integers(0, 5),
)
def test_no_health_waits_longer_than_it_may_or_remembers_what_is_to_come(times: dict[str, datetime], n: int) -> None:
    """Whatever a clock has left; what is possible anyway is left as it is, and twice is once."""
    health = TargetHealth("crm", failures=n, probe_wait=60 * SECOND, **times)
    sane = bounded(health, TARGET, NOW)
    for name in ("since", "counted_at", "succeeded_at", "took_at"):
        at = getattr(sane, name)
        assert at is None or at <= NOW
    assert sane.wait_until is None or sane.wait_until <= NOW + failure_wait(n or 1, TARGET) * 1.2
    assert sane.throttled_until is None or sane.throttled_until <= NOW + timedelta(hours=24)
    latest = timedelta(hours=24) if sane.throttled_until is not None else 60 * SECOND
    assert sane.probe_at is None or sane.probe_at <= NOW + latest
    for name, at in health._asdict().items():
        if not isinstance(at, datetime) or at <= NOW:
            assert getattr(sane, name) == at
    assert bounded(sane, TARGET, NOW) is sane


@pytest.mark.row("F30")
def test_an_ordered_target_is_tried_by_its_schedule_at_the_latest() -> None:
    """Its probe has no pace of its own: it may be as far as the longest step, or a pause that was asked for."""
    ordered = replace(TARGET, ordered=True, schedule=(timedelta(days=3),))
    health = TargetHealth("crm", probe_at=NOW + timedelta(days=3650))
    assert bounded(health, ordered, NOW).probe_at == NOW + timedelta(days=3) * 1.2
    assert longest_asked(()) == timedelta(hours=24)
    assert longest_waits(()) == (timedelta(0),)


@pytest.mark.row("F30")
def test_what_may_begin_is_said_anew_once_a_throttle_is_bounded() -> None:
    """A target that is throttled until far in the future may be sent to within a day."""
    health = TargetHealth("crm", throttled_until=NOW + timedelta(days=3650), paced=True)
    wait = permit(bounded(health, TARGET, NOW), concurrency=1, under_way=0, at_once=False, arrivals=False, now=NOW)
    assert getattr(wait, "until", None) == NOW + timedelta(hours=24)


def tell(*skews: int | None, window: Window | None = None, at: float = 0.0) -> tuple[Window, list[int]]:
    """Note requests one after the other; the window, and what was told."""
    told: list[int] = []
    window = window or Window()
    for skew in skews:
        window, median = noted(window, skew, at)
        told += [] if median is None else [median]
    return window, told


@pytest.mark.row("T7")
def test_a_wrong_clock_is_told_once_with_the_median() -> None:
    """At the third that fails for its time alone; the other hundreds say nothing new."""
    window, told = tell(3600, 3598, 3605, *[3600] * 500)
    assert told == [3600]
    later, told = tell(*[3600] * 10, window=window, at=SPAN_S + 1)
    assert told == []
    _, told = tell(*[None] * 10, window=later, at=2 * SPAN_S + 2)
    assert told == []


@pytest.mark.row("T7")
def test_single_replays_among_good_requests_are_no_wrong_clock() -> None:
    """Nine in ten must fail; fewer than three say nothing."""
    assert tell(*[None] * 10, *[-900] * 90)[1] == []
    assert tell(*[None] * 10, *[-900] * 91)[1] == [-900]
    assert tell(*[-900] * (LEAST - 1))[1] == []


@pytest.mark.row("T7")
def test_it_is_told_again_after_a_minute_that_was_well() -> None:
    """A clock that is put right and goes wrong again is news; one that stays wrong is not."""
    window, told = tell(500, 500, 500)
    assert told == [500]
    window, _ = tell(*[None] * 5, window=window, at=100)
    window, told = tell(700, 700, 700, window=window, at=200)
    assert told == [700]
    window, told = tell(700, 700, window=window, at=5000)
    assert told == []
