"""When failures count, when a target is slowed, disabled, probed and taken back.

Law: pure. One function judges a settled attempt (`judge`), one says what may begin now (`permit`); both read the same
stored `TargetHealth`, so that what is shown is what is enforced. Time and chance are arguments.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from relay.model import (
    Claim,
    Decision,
    DisabledBy,
    Outcome,
    OutcomeKind,
    RetryAt,
    Target,
    TargetHealth,
    TargetState,
    Turn,
)
from relay.rules.retry import base_wait, jittered, throttle_wait

DEFAULT_WAITS = (timedelta(seconds=5), timedelta(seconds=30))
"""Spacing of counted failures for a target without a retry schedule."""

REMEMBERED_EVENTS = 16
"""Counted events kept for a target that is never disabled."""

_COUNTS = frozenset({OutcomeKind.REFUSED, OutcomeKind.FAILED, OutcomeKind.UNREACHABLE})
_SLOWS = frozenset({OutcomeKind.FAILED, OutcomeKind.UNREACHABLE})
_TELLS_NOTHING = frozenset({OutcomeKind.INTERRUPTED, OutcomeKind.SKIPPED})
_DELIVERED, _ACTIVE = OutcomeKind.DELIVERED, TargetState.ACTIVE
"""An enum's members are slow to look up, and these are for each attempt."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing changed that anyone must be told."""

    health: TargetHealth


@dataclass(frozen=True, slots=True)
class Pace:
    """A counted failure: the target gets one attempt at a time."""

    health: TargetHealth


@dataclass(frozen=True, slots=True)
class Disable:
    """Deliveries are held from now on."""

    health: TargetHealth


@dataclass(frozen=True, slots=True)
class Enable:
    """The target is back: what was held is due, oldest first."""

    health: TargetHealth


Verdict = Keep | Pace | Disable | Enable


def judge(
    health: TargetHealth,
    outcome: Outcome,
    claim: Claim,
    *,
    target: Target,
    began_at: datetime,
    now: datetime,
    rng: Random,
    decision: Decision | None = None,
) -> Verdict:
    """What follows for the target from one settled attempt.

    Args:
        health: as stored at this moment, inside the settling transaction.
        decision: what follows for the delivery; only an ordered target is tried by what its first delivery waits for.
        began_at: when the attempt began, aware UTC.
        now: when it is recorded, aware UTC.
    """
    if outcome.kind is _DELIVERED:
        return _succeeded(health, target, began_at, now)
    if outcome.kind in _TELLS_NOTHING:
        return Keep(health)
    if outcome.kind is OutcomeKind.THROTTLED:
        return _throttled(health, outcome, claim, target, now, rng, decision)
    if outcome.kind is OutcomeKind.GONE:
        return _gone(health, outcome, now)
    if health.state is TargetState.DISABLED:
        return Keep(_probe_failed(health, claim, target, now, rng, decision))
    if outcome.kind in _COUNTS and _is_counted(health, outcome, claim, began_at):
        return _counted(health, outcome, claim, target, now, rng, decision)
    return Keep(health)


def _succeeded(health: TargetHealth, target: Target, began_at: datetime, now: datetime) -> Verdict:
    throttle_over = health.throttled_until is None or began_at >= health.throttled_until
    better = health.succeeded(now, began_at)._replace(
        failures=0,
        counted_events=(),
        counted_at=None,
        wait_until=None,
        paced=not throttle_over,
        throttled_until=None if throttle_over else health.throttled_until,
        ramp=None if health.ramp is None or health.ramp + 1 >= target.concurrency else health.ramp + 1,
    )
    if health.disabled_by is DisabledBy.FAILURES:
        return Enable(_active(better, now))
    return Keep(better)


def _throttled(
    health: TargetHealth,
    outcome: Outcome,
    claim: Claim,
    target: Target,
    now: datetime,
    rng: Random,
    decision: Decision | None,
) -> Verdict:
    until = now + throttle_wait(outcome, claim.step, target.schedule, rng)
    if health.throttled_until is not None:
        until = max(until, health.throttled_until)
    slowed = health._replace(throttled_until=until, paced=True)
    if health.state is TargetState.DISABLED:
        failed = _probe_failed(slowed, claim, target, now, rng, decision)
        probe_at = failed.probe_at and max(failed.probe_at, until)
        return Keep(failed._replace(probe_at=probe_at))
    return Pace(slowed)


def _gone(health: TargetHealth, outcome: Outcome, now: datetime) -> Verdict:
    if health.disabled_by in (DisabledBy.GONE, DisabledBy.HAND):
        return Keep(health)
    gone = health._replace(
        state=TargetState.DISABLED,
        disabled_by=DisabledBy.GONE,
        reason=outcome.reason,
        since=now,
        probe_at=None,
        probe_wait=None,
        arrival_try=False,
        paced=False,
        throttled_until=None,
        ramp=None,
    )
    return Disable(gone)


def _probe_failed(
    health: TargetHealth, claim: Claim, target: Target, now: datetime, rng: Random, decision: Decision | None
) -> TargetHealth:
    if claim.turn is Turn.FIRST:
        is_probed = target.ordered and health.probe_at is not None
        return _first_waits(health, target, now, rng, decision) if is_probed else health
    if claim.turn is Turn.ARRIVAL:
        return health._replace(arrival_try=False)
    if claim.turn is not Turn.PROBE or health.probe_wait is None:
        return health
    wait = min(health.probe_wait * 2, target.probe_max)
    return health._replace(probe_wait=wait, probe_at=now + wait)


def _first_waits(
    health: TargetHealth, target: Target, now: datetime, rng: Random, decision: Decision | None
) -> TargetHealth:
    """A disabled ordered target after a failed try: the next is when the delivery's own schedule says. Where that has
    ended, the next delivery waits as long as after any failure, or an outage would end one after the other at once."""
    if isinstance(decision, RetryAt):
        return health._replace(probe_at=decision.at, probe_wait=None, wait_until=None)
    wait_until = now + jittered(failure_wait(health.failures or 1, target), rng)
    return health._replace(probe_at=wait_until, probe_wait=None, wait_until=wait_until)


def _is_counted(health: TargetHealth, outcome: Outcome, claim: Claim, began_at: datetime) -> bool:
    """Whether a failure is news: begun after the last counted one was recorded and its wait was over, after the last
    success, and after the target was enabled; a refusal counts once per event."""
    news = (health.succeeded_at, health.counted_at, health.since)
    if any(at is not None and began_at <= at for at in news):
        return False
    if health.wait_until is not None and began_at < health.wait_until:
        return False
    return outcome.kind is not OutcomeKind.REFUSED or claim.event.id not in health.counted_events


def _counted(
    health: TargetHealth,
    outcome: Outcome,
    claim: Claim,
    target: Target,
    now: datetime,
    rng: Random,
    decision: Decision | None,
) -> Verdict:
    failures = health.failures + 1
    events = (*health.counted_events, claim.event.id)[-max(target.disable_after or 0, REMEMBERED_EVENTS) :]
    counted = health._replace(
        failures=failures,
        counted_events=events,
        counted_at=now,
        wait_until=now + jittered(failure_wait(failures, target), rng),
        paced=health.paced or outcome.kind in _SLOWS,
        reason=outcome.reason,
    )
    if target.disable_after is None or failures < target.disable_after:
        return Pace(counted) if outcome.kind in _SLOWS else Keep(counted)
    disabled = counted._replace(
        state=TargetState.DISABLED,
        disabled_by=DisabledBy.FAILURES,
        since=now,
        wait_until=None,
        paced=False,
        ramp=None,
        probe_wait=target.probe_first,
        probe_at=None if target.probe_first is None else now + target.probe_first,
        arrival_try=target.probe_first is not None and len(set(events)) == 1 and not target.ordered,
    )
    is_probed_in_order = target.ordered and target.probe_first is not None
    return Disable(_first_waits(disabled, target, now, rng, decision) if is_probed_in_order else disabled)


def failure_wait(failures: int, target: Target) -> timedelta:
    """The span after the n-th counted failure (from 1) in which no other counts, without jitter.

    From the third on, which only a raised `disable_after` sees, it is no longer than the wait of a probe: a target
    that is never disabled is not left alone for longer than one that is.
    """
    wait = base_wait(failures - 1, target.schedule or DEFAULT_WAITS)
    return wait if failures <= len(DEFAULT_WAITS) else min(wait, target.probe_max)


def disabled_by_hand(health: TargetHealth, reason: str, now: datetime) -> TargetHealth:
    """A target that an operator switched off: never probed, ended only by `enabled_by_hand`."""
    return health._replace(
        state=TargetState.DISABLED,
        disabled_by=DisabledBy.HAND,
        reason=reason,
        since=now,
        probe_at=None,
        probe_wait=None,
        arrival_try=False,
        paced=False,
        throttled_until=None,
        wait_until=None,
        ramp=None,
    )


def enabled_by_hand(health: TargetHealth, now: datetime) -> TargetHealth:
    """A target that an operator switched on, its count at 0 and any throttle lifted.

    It starts slowly only when it was disabled: there is then a backlog to leave.
    """
    clean = health._replace(
        failures=0,
        counted_events=(),
        counted_at=None,
        wait_until=None,
        paced=False,
        throttled_until=None,
    )
    return clean if health.state is TargetState.ACTIVE else _active(clean, now)


def _active(health: TargetHealth, now: datetime) -> TargetHealth:
    return health._replace(
        state=TargetState.ACTIVE,
        disabled_by=None,
        reason="",
        since=now,
        probe_at=None,
        probe_wait=None,
        arrival_try=False,
        ramp=1,
    )


def at_start(health: TargetHealth, target: Target, *, url_digest: str, settings_digest: str, now: datetime) -> Verdict:
    """What a start makes of the stored health under today's config.

    A changed `url`, `auth` or `headers` is followed by a probe at once, but for a target that is never to be probed; a
    new `url` also ends a disabling by 410, and an active target starts there without the count and throttle of the old.
    A probe that today's config asks for and none is due gets its time; one that it forbids is dropped. An ordered
    target has no probes of its own pace (`probe_wait`): its first delivery is tried when that is due.
    """
    known = bool(health.url_digest)
    new_url = known and url_digest != health.url_digest
    changed = new_url or (known and settings_digest != health.settings_digest)
    health = health._replace(url_digest=url_digest, settings_digest=settings_digest)
    if health.state is TargetState.ACTIVE:
        return Keep(enabled_by_hand(health, now) if new_url else health)
    if health.disabled_by is DisabledBy.GONE and new_url:
        return Enable(enabled_by_hand(health, now))
    if health.disabled_by is not DisabledBy.FAILURES:
        return Keep(health)
    if target.probe_first is None:
        return Keep(health._replace(probe_at=None, probe_wait=None, arrival_try=False))
    if changed:
        wait = None if target.ordered else target.probe_first
        return Keep(health._replace(probe_at=now, probe_wait=wait, throttled_until=None, wait_until=None))
    if target.ordered:
        is_due = health.probe_at is None or health.probe_wait is not None
        probe_at = now if is_due else health.probe_at
        return Keep(health._replace(probe_at=probe_at, probe_wait=None, arrival_try=False))
    if health.probe_at is None or health.probe_wait is None:
        return Keep(health._replace(probe_at=now + target.probe_first, probe_wait=target.probe_first))
    latest = max(now + max(target.probe_max, target.probe_first), health.throttled_until or now)
    return Keep(health._replace(probe_at=min(health.probe_at, latest)))


def flows(health: TargetHealth, now: datetime) -> bool:
    """Whether a target is well in every way, so that nothing but free slots bounds what it is sent."""
    throttled = health.throttled_until is not None and now < health.throttled_until
    return health.state is _ACTIVE and not health.paced and health.ramp is None and not throttled


@dataclass(frozen=True, slots=True)
class Go:
    """Up to `count` attempts may begin now, chosen by `turn`."""

    count: int
    turn: Turn = Turn.DUE


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may begin before `until`, or before something is settled where it is None."""

    until: datetime | None = None


Permit = Go | Wait


def permit(
    health: TargetHealth,
    *,
    concurrency: int,
    under_way: int,
    at_once: bool,
    arrivals: bool,
    now: datetime,
    ordered: bool = False,
) -> Permit:
    """How many attempts may begin at a target now.

    Args:
        ordered: the target is served by arrival, one at a time whatever its concurrency.
        under_way: attempts begun and not settled, however old.
        at_once: a counted failure was recorded and its one immediate try, with another delivery, is still to be had.
        arrivals: an event came in for the target since it was disabled and has not been tried.
    """
    if ordered and under_way:
        return Wait()
    if health.state is TargetState.DISABLED:
        return _probe_permit(health, under_way=under_way, arrivals=arrivals, now=now, ordered=ordered)
    if health.throttled_until is not None and now < health.throttled_until:
        return Wait(health.throttled_until)
    if not health.paced and not ordered:
        limit = concurrency if health.ramp is None else min(concurrency, health.ramp)
        return Go(limit - under_way) if under_way < limit else Wait()
    if under_way:
        return Wait()
    if health.paced and health.wait_until is not None and now < health.wait_until and not at_once:
        return Wait(health.wait_until)
    return Go(1, Turn.FIRST if ordered else Turn.DUE)


def _probe_permit(health: TargetHealth, *, under_way: int, arrivals: bool, now: datetime, ordered: bool) -> Permit:
    if health.probe_at is None:
        return Wait()
    if health.throttled_until is not None and now < health.throttled_until:
        return Wait(health.throttled_until)
    if ordered:
        is_early = health.wait_until is not None and now < health.wait_until
        return Wait(health.wait_until) if is_early else Go(1, Turn.FIRST)
    if health.arrival_try and arrivals:
        return Go(1, Turn.ARRIVAL)
    if now < health.probe_at:
        return Wait(health.probe_at)
    return Wait() if under_way else Go(1, Turn.PROBE)
