"""How much a rate lets through."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Rate
from relay.rules.rate import (
    Bucket,
    Quota,
    had_within,
    overdrawn,
    rate_from,
    refilled,
    spend,
    take,
    take_some,
    until,
    written,
)

NOW = datetime(2026, 9, 20, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def taken_at_once(rate: Rate, bucket: Bucket, now: datetime) -> tuple[int, Bucket, timedelta]:
    """Take until it is refused."""
    taken = 0
    while True:
        bucket, wait = take(bucket, rate, now)
        if wait is not None:
            return taken, bucket, wait
        taken += 1


@pytest.mark.row("T23", "H54")
@pytest.mark.parametrize(
    ("rate", "burst"),
    [(Rate(10, SECOND), 10), (Rate(150, timedelta(minutes=5)), 1), (Rate(1, SECOND), 1), (Rate(120, SECOND * 60), 2)],
)
def test_a_burst_is_one_seconds_worth_and_at_least_one(rate: Rate, burst: int) -> None:
    """A full bucket gives its burst, then refuses and says how long."""
    taken, _, wait = taken_at_once(rate, Bucket(), NOW)
    assert taken == burst
    assert wait == rate.span / rate.count


@given(
    count=st.integers(1, 100_000),
    span=st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=1)),
    pause=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2)),
)
def test_who_waits_as_told_is_let_through(count: int, span: timedelta, pause: timedelta) -> None:
    """The wait is enough, and not a microsecond longer than one token takes."""
    rate = Rate(count, span)
    bucket = Bucket(0.0, NOW)
    bucket, wait = take(bucket, rate, NOW)
    assert wait is not None
    assert timedelta(0) < wait <= span / count + timedelta(microseconds=1)
    _, again = take(bucket, rate, NOW + wait + pause)
    assert again is None


def test_a_clock_that_steps_back_neither_blocks_nor_gives_away() -> None:
    """After a step back by a day one token still takes its own time."""
    rate = Rate(1, SECOND)
    bucket, _ = take(Bucket(), rate, NOW)
    earlier = NOW - timedelta(days=1)
    bucket, wait = take(bucket, rate, earlier)
    assert wait == SECOND
    _, wait = take(bucket, rate, earlier + SECOND)
    assert wait is None


def test_over_time_no_more_passes_than_the_rate_and_its_burst() -> None:
    """A minute of greed at 5 a second gets five a second and one burst."""
    rate, bucket, passed = Rate(5, SECOND), Bucket(), 0
    for tick in range(60 * 50):
        bucket, wait = take(bucket, rate, NOW + tick * timedelta(milliseconds=20))
        passed += wait is None
    assert 300 <= passed <= 305


def test_a_debt_is_made_good_before_the_next() -> None:
    """What was taken without waiting is waited for by the next, each token its own span."""
    rate, bucket = Rate(2, SECOND), Bucket()
    for _ in range(5):
        bucket = overdrawn(bucket, rate, NOW)
    assert until(bucket, rate, NOW, 1) == 2 * SECOND
    bucket, wait = take(bucket, rate, NOW)
    assert wait == 2 * SECOND
    _, wait = take(bucket, rate, NOW + 2 * SECOND)
    assert wait is None


@given(count=st.integers(1, 1000), seconds=st.integers(1, 3600), number=st.integers(1, 50))
def test_the_wait_for_several_tokens_is_that_of_taking_each(count: int, seconds: int, number: int) -> None:
    """Whoever takes each when it comes has the last one then, and not before."""
    rate = Rate(count, seconds * SECOND)
    bucket, now = Bucket(0.0, NOW), NOW
    told = until(bucket, rate, now, number)
    for _ in range(number):
        bucket, wait = take(bucket, rate, now)
        if wait is not None:
            now += wait
            bucket, wait = take(bucket, rate, now)
        assert wait is None
    assert abs(now - NOW - told) <= number * timedelta(microseconds=2)


def test_what_there_will_be_counts_what_there_is() -> None:
    """Tokens that are there, and those that come within the span; a debt counts against both."""
    rate = Rate(2, SECOND)
    assert had_within(Bucket(), rate, NOW, 10 * SECOND) == 22
    assert had_within(Bucket(0.5, NOW), rate, NOW, SECOND) == 2
    assert had_within(Bucket(-5.0, NOW), rate, NOW, SECOND) == 0
    assert refilled(Bucket(0.5, NOW), rate, NOW + SECOND / 4) == Bucket(1.0, NOW + SECOND / 4)


def test_lines_beyond_a_few_a_second_are_counted_in_the_next() -> None:
    """A new second tells again, and how many were left out; nothing is counted twice."""
    quota, told = Quota(), []
    for now in (7.0, 7.1, 7.2, 7.9, 8.0, 8.1, 9.9):
        quota, untold = spend(quota, 2, now)
        told.append(untold)
    assert told == [0, 0, None, None, 2, 0, 0]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50/s", Rate(50, SECOND)),
        ("150/5m", Rate(150, timedelta(minutes=5))),
        ("1/d", Rate(1, timedelta(days=1))),
        ("3/250ms", Rate(3, timedelta(milliseconds=250))),
    ],
)
def test_a_rate_is_written_as_it_is_read(text: str, rate: Rate) -> None:
    """In its largest whole unit, with no number before a single one."""
    assert rate_from(text) == rate
    assert written(rate) == text


@pytest.mark.parametrize("text", ["", "50", "0/s", "50/0s", "50/2d", "-1/s", "1/s ", "1.5/s", "9/w"])
def test_what_is_no_rate_is_none(text: str) -> None:
    """Its span is a millisecond to a day."""
    assert rate_from(text) is None


def test_a_rate_of_another_unit_means_the_same() -> None:
    """Sixty seconds are a minute."""
    assert written(Rate(7, SECOND * 60)) == "7/m"
    assert rate_from("7/60s") == rate_from("7/m")


def test_some_are_taken_at_once_up_to_a_bound() -> None:
    """What the rate allows, or the bound; where it was the rate, how long the next takes."""
    rate = Rate(10, SECOND)
    bucket, had, wait = take_some(Bucket(), rate, NOW, 7)
    assert (had, wait) == (7, None)
    bucket, had, wait = take_some(bucket, rate, NOW, 7)
    assert had == 3
    assert wait is not None
    assert take_some(bucket, rate, NOW + wait, 7)[1] == 1
    assert take_some(bucket, rate, NOW, 0)[1:] == (0, None)
