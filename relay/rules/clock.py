"""What is made of a clock that was set: how a step is told from time that passes, and what may be left waiting.

Law: pure. Times are stored as the clock said them, so a clock that was wrong leaves times that are still to come. No
wait is longer than the longest that its kind allows, counted from now, and nothing has happened later than now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from relay.model import Target, TargetHealth
from relay.rules.health import failure_wait
from relay.rules.retry import JITTER, RETRY_AFTER_CAP

STEP = timedelta(seconds=2)
"""What the clock of the wall and the one that only counts may differ by over one look; adjusting moves it by less."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment."""

    wall: datetime
    steady: float
    """Seconds of a clock that nobody sets."""


def step(before: Reading, after: Reading) -> timedelta | None:
    """By how much the clock was set between two readings; None where only time has passed."""
    moved = after.wall - before.wall - timedelta(seconds=after.steady - before.steady)
    return moved if abs(moved) > STEP else None


def longest_waits(schedule: Sequence[timedelta]) -> tuple[timedelta, ...]:
    """How long a delivery may wait at each step of its schedule, from step 0, at which nothing was spent."""
    return (timedelta(0), *(_at_most(wait) for wait in schedule))


def longest_asked(schedule: Sequence[timedelta]) -> timedelta:
    """How long a delivery, or its target, may wait because a pause was asked for."""
    return max([RETRY_AFTER_CAP, *map(_at_most, schedule)])


def bounded(health: TargetHealth, target: Target, now: datetime) -> TargetHealth:
    """A target's health without a wait that is longer than any of its kind, or a past that is still to come: such a
    past would keep failures from counting, and let events die in an outage."""
    asked = now + longest_asked(target.schedule)
    by_schedule = target.ordered or health.throttled_until is not None or health.probe_wait is None
    sane = health._replace(
        since=_earlier(health.since, now),
        counted_at=_earlier(health.counted_at, now),
        succeeded_at=_earlier(health.succeeded_at, now),
        took_at=_earlier(health.took_at, now),
        wait_until=_earlier(health.wait_until, now + _at_most(failure_wait(health.failures or 1, target))),
        throttled_until=_earlier(health.throttled_until, asked),
        probe_at=_earlier(health.probe_at, asked if by_schedule else now + (health.probe_wait or timedelta(0))),
    )
    return health if sane == health else sane


def _at_most(wait: timedelta) -> timedelta:
    return wait * (1 + JITTER)


def _earlier(at: datetime | None, latest: datetime) -> datetime | None:
    return None if at is None else min(at, latest)
