"""How a rate is written, how many requests it lets through, and how many lines a second tells.

Law: pure. A bucket is a value; taking from it gives the next one. It holds at most one second's worth, and at least
one, so that `150/5m` spreads its requests instead of spending them at once.
"""

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from relay.model import Rate

RATE = re.compile(r"([1-9][0-9]{0,6})/([0-9]{0,9})(ms|s|m|h|d)")
"""`100/s` or `150/5m`."""

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DUST = 1e-9
"""What repeated addition of fractions may be short of a whole token."""


def rate_from(text: str) -> Rate | None:
    """A rate as it is written, None where it is none; its span is 1 ms to a day."""
    match = RATE.fullmatch(text)
    span = int(match[2] or "1") * _UNITS[match[3]] if match else 0
    if match is None or not 1 <= span <= _UNITS["d"]:
        return None
    return Rate(int(match[1]), timedelta(milliseconds=span))


def written(rate: Rate) -> str:
    """A rate in its largest whole unit; `rate_from` reads it."""
    span = rate.span // timedelta(milliseconds=1)
    unit, size = next((unit, size) for unit, size in reversed(_UNITS.items()) if span % size == 0)
    return f"{rate.count}/{span // size if span > size else ''}{unit}"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens left at a time; a new bucket is full."""

    tokens: float = math.inf
    at: datetime | None = None


def _refilled(bucket: Bucket, rate: Rate, now: datetime) -> float:
    """Tokens at `now`; a clock that was set back refills nothing and takes nothing."""
    a_second = rate.count / rate.span.total_seconds()
    passed = 0.0 if bucket.at is None else max(0.0, (now - bucket.at).total_seconds())
    return min(max(1.0, a_second), bucket.tokens + passed * a_second)


def take(bucket: Bucket, rate: Rate, now: datetime) -> tuple[Bucket, timedelta | None]:
    """Take one token: the bucket that is left, and None where it was had, else how long until one is free.

    The wait is rounded up to a microsecond: who waits it out is let through.
    """
    tokens = _refilled(bucket, rate, now)
    if tokens >= 1 - _DUST:
        return Bucket(max(0.0, tokens - 1), now), None
    missing = (1 - tokens) * rate.span.total_seconds() / rate.count
    return Bucket(tokens, now), timedelta(microseconds=math.ceil(missing * 1_000_000))


def refilled(bucket: Bucket, rate: Rate, now: datetime) -> Bucket:
    """The bucket as it stands at `now`."""
    return Bucket(_refilled(bucket, rate, now), now)


def overdrawn(bucket: Bucket, rate: Rate, now: datetime) -> Bucket:
    """The bucket after one token was taken whether it was there or not: what follows waits until it is made good."""
    return Bucket(_refilled(bucket, rate, now) - 1, now)


def until(bucket: Bucket, rate: Rate, now: datetime, number: int) -> timedelta:
    """How long until so many tokens have been there, each taken when it came; nothing where they are there."""
    missing = number - _refilled(bucket, rate, now)
    if missing <= _DUST:
        return timedelta(0)
    return timedelta(microseconds=math.ceil(missing * rate.span.total_seconds() / rate.count * 1_000_000))


def had_within(bucket: Bucket, rate: Rate, now: datetime, span: timedelta) -> int:
    """How many tokens there will have been by the end of a span."""
    return max(0, math.floor(_refilled(bucket, rate, now) + _DUST + span / rate.span * rate.count))


def take_some(bucket: Bucket, rate: Rate, now: datetime, most: int) -> tuple[Bucket, int, timedelta | None]:
    """Take up to so many tokens: the bucket that is left, how many were had, and how long until the next is free where
    they were fewer."""
    had, wait = 0, None
    while had < most and wait is None:
        bucket, wait = take(bucket, rate, now)
        had += wait is None
    return bucket, had, wait


@dataclass(frozen=True, slots=True)
class Quota:
    """Lines told in the second of a clock, and those left out since the last that was told."""

    second: int = -1
    told: int = 0
    untold: int = 0


def spend(quota: Quota, most: int, now: float) -> tuple[Quota, int | None]:
    """One more line, of `most` a second: the quota that is left, and how many were left out before it, or None where
    it is left out itself. `now` is in seconds of any clock."""
    second = int(now)
    told = quota.told if second == quota.second else 0
    if told >= most:
        return Quota(second, told, quota.untold + 1), None
    return Quota(second, told + 1), quota.untold
