"""When a delivery is tried again, and when it is given up.

Law: pure. The policy is stated in tenacity's objects and evaluated on a state that carries the stored step; the
database is the clock between attempts. Time and chance are arguments; jitter is added after every cap.
"""

from datetime import datetime, timedelta
from functools import lru_cache
from random import Random

from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_chain, wait_fixed
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from relay.model import DONE, Claim, Decision, GiveUp, Outcome, OutcomeKind, RetryAt, Skip, Turn

JITTER = 0.2
"""Share by which a wait may be shorter or longer, so that what failed together does not return together."""

RETRY_AFTER_CAP = timedelta(hours=24)
"""No target may ask for a longer silence than this."""

_DELIVERED, _SKIPPED = OutcomeKind.DELIVERED, OutcomeKind.SKIPPED
"""An enum's members are slow to look up, and these are for each attempt."""


@lru_cache(maxsize=1024)
def _policy(schedule: tuple[timedelta, ...]) -> tuple[stop_base, wait_base]:
    waits = wait_chain(*(wait_fixed(wait) for wait in schedule)) if schedule else wait_fixed(0)
    return stop_after_attempt(len(schedule) + 1), waits


def _state(tries: int) -> RetryCallState:
    state = RetryCallState(retry_object=_NO_LOOP, fn=None, args=(), kwargs={})
    state.attempt_number = tries
    return state


_NO_LOOP = Retrying()
"""tenacity wants an owner for its state; nothing is ever called through it."""


def is_spent(step: int, schedule: tuple[timedelta, ...]) -> bool:
    """Whether the try that has just failed at `step` (from 0) was the last of the schedule."""
    stop, _ = _policy(schedule)
    return stop(_state(step + 1))


def base_wait(step: int, schedule: tuple[timedelta, ...]) -> timedelta:
    """The wait after a failed try at `step`, without jitter; past the end it is the schedule's last wait."""
    _, wait = _policy(schedule)
    return timedelta(seconds=wait(_state(step + 1)))


def jittered(wait: timedelta, rng: Random) -> timedelta:
    """A wait, up to a fifth shorter or longer."""
    return wait * rng.uniform(1 - JITTER, 1 + JITTER)


def waiting(reason: str, wait: timedelta) -> Outcome:
    """Nothing is sent now and nobody is at fault: the delivery comes again after the wait, and spends no step."""
    return Outcome(OutcomeKind.INTERRUPTED, reason=f"waiting: {reason}", retry_after=wait, is_wait=True)


def is_recorded(claim: Claim, outcome: Outcome) -> bool:
    """Whether what came of a claim is kept, counted and told as an attempt. One that was skipped is none; and of a
    delivery that waits the first wait is, for it says what is waited for, but not each time that it looks again: an
    enricher that is away for a day must not fill the store. Of a disabled target every try is, because those that were
    not tried yet go first."""
    if outcome.kind is _SKIPPED:
        return False
    return not outcome.is_wait or claim.attempt == 1 or claim.turn in (Turn.PROBE, Turn.ARRIVAL)


def decide(
    outcome: Outcome,
    claim: Claim,
    *,
    schedule: tuple[timedelta, ...],
    began_at: datetime,
    now: datetime,
    rng: Random,
) -> Decision:
    """What follows for the delivery from one attempt's outcome.

    A step is spent only by an ordinary try that found fault; probes, throttles, a 410, our own stops and waits for
    what is to be fetched first spend none.
    A spent schedule ends the delivery only when, by the time this attempt was claimed, the target had taken an
    attempt that began after the delivery's own first try: an outage alone ends nothing. There are two exceptions. The
    empty schedule, whose user asked for a single try, whatever comes of it: only our own stop is made up for. And the
    first of an ordered target, which holds back all behind it: a spent schedule ends it although the target took
    nothing since, and its tries at a disabled target spend steps like all others, so that one bad event cannot block
    the rest for ever.

    Args:
        schedule: the target's waits between tries.
        began_at: when the attempt began, aware UTC; it stands for the first try where none is recorded yet.
        now: aware UTC.
    """
    if outcome.kind is _DELIVERED:
        return DONE
    if outcome.kind is OutcomeKind.SKIPPED:
        return Skip(outcome.reason)
    if outcome.kind is OutcomeKind.INTERRUPTED:
        return RetryAt(now + (outcome.retry_after or timedelta(0)), claim.step)
    if not schedule and claim.turn.spends_steps:
        return GiveUp("single try failed: " + outcome.reason)
    if outcome.kind is OutcomeKind.THROTTLED:
        return RetryAt(now + throttle_wait(outcome, claim.step, schedule, rng), claim.step)
    if outcome.kind is OutcomeKind.GONE or not claim.turn.spends_steps:
        return RetryAt(now, claim.step)
    if not is_spent(claim.step, schedule):
        return RetryAt(now + jittered(base_wait(claim.step, schedule), rng), claim.step + 1)
    first_try_at = claim.first_try_at or began_at
    if claim.turn is Turn.FIRST or (claim.took_at is not None and claim.took_at > first_try_at):
        return GiveUp("retry schedule ended: " + outcome.reason)
    return RetryAt(now + jittered(base_wait(claim.step, schedule), rng), claim.step)


def throttle_wait(outcome: Outcome, step: int, schedule: tuple[timedelta, ...], rng: Random) -> timedelta:
    """How long a throttled delivery waits: the later of `Retry-After`, capped, and the step's own wait."""
    own = jittered(base_wait(step, schedule) if schedule else timedelta(seconds=5), rng)
    asked = min(outcome.retry_after or timedelta(0), RETRY_AFTER_CAP)
    return max(asked, own)
