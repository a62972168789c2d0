"""What follows for the rows of a delivery, an attempt and a target from what was ruled."""

from typing import Any, NamedTuple, Protocol

from relay.model import DeliveryState, Done, GiveUp, OutcomeKind, RetryAt, Skip, TargetHealth, TargetState, Turn, Word
from relay.rules.retry import is_recorded
from relay.store import Ruling, Settled, Settlement
from relay.store.grouping.changes import Changes, Rest
from relay.store.grouping.rows import MILLISECOND, millis

_PENDING, _IN_FLIGHT, _DELIVERED = DeliveryState.PENDING, DeliveryState.IN_FLIGHT, DeliveryState.DELIVERED
_DEAD, _DISABLED = DeliveryState.DEAD, TargetState.DISABLED
_TEXTS: dict[Word, str] = {word: str(word) for word in (*OutcomeKind, *DeliveryState)}
"""Words as a row takes them fastest."""


class Books(Protocol):
    """A transaction that knows the health of targets, and what it changes."""

    @property
    def changes(self) -> Changes:
        """What the transaction will have changed."""

    def health(self, name: str) -> TargetHealth:
        """A target's health as the transaction sees it."""

    def rest(self, target: str) -> Rest | None:
        """What is still to be made due at a target, as the transaction sees it."""


class Recorded(NamedTuple):
    """What recording one attempt comes to: the answer, the delivery's row, and the attempt's, if it is one."""

    settled: Settled
    row: tuple[Any, ...]
    """(state, due_at, step, settled_at, outcome, status, reason, first_try_at, attempts, event_seq, target)"""
    attempt: tuple[Any, ...] | None
    """(event_seq, target, number, began_at, duration_ms, outcome, status, reason, excerpt)"""
    releases_held: bool
    """What the target holds is due: to be released once what was recorded before is written."""


def recorded(tx: Books, seq: int, settlement: Settlement) -> Recorded:
    """Judge an attempt whose claim holds by its target's health as the one before has left it, and note what changes;
    the rows are for the transaction to write."""
    claim, outcome, began_at, ended_at, rule, _ = settlement
    target, changes = claim.target, tx.changes
    before = tx.health(target)
    decision, health, releases_held = ruling = rule(before)
    if health is not before:
        changes.health[target] = health
    began, ended, kind = millis(began_at), millis(ended_at), _TEXTS[outcome.kind]
    state, *row = (
        (_DELIVERED, min(millis(claim.event.received_at), ended), claim.step, ended, kind, outcome.status, None, began)
        if isinstance(decision, Done)  # as nearly all are
        else _unfinished_row(settlement, ruling)
    )
    changes.moved(target, _IN_FLIGHT, state)
    is_attempt = is_recorded(claim, outcome)
    if is_attempt:
        changes.tell("target", target, kind, ended)
    if state is _DEAD:
        changes.tell("target", target, str(state), ended)
    elif state is not _PENDING:
        changes.done.add(seq)
    elif not releases_held and (rest := tx.rest(target)) is not None:
        rest.spared.add(seq)
    number = claim.attempt
    took = max(0, (ended_at - began_at) // MILLISECOND)
    return Recorded(
        Settled(ruling, before.state is _DISABLED),
        (_TEXTS[state], *row, number if is_attempt else number - 1, seq, target),
        (seq, target, number, began, took, kind, outcome.status, outcome.reason, outcome.excerpt)
        if is_attempt
        else None,
        releases_held,
    )


def _unfinished_row(settlement: Settlement, ruling: Ruling) -> tuple[Any, ...]:
    """(state, due_at, step, settled_at, outcome, status, reason, first_try_at) of what was not delivered.

    What a disabled target holds is due by its arrival, so that it leaves oldest first when the target is back; but the
    first of an ordered target is tried by its schedule meanwhile.
    """
    claim, outcome, decision = settlement.claim, settlement.outcome, ruling.decision
    due_at, step = millis(min(claim.event.received_at, settlement.ended_at)), claim.step
    reason: str | None = outcome.reason
    settled_at: int | None = millis(settlement.ended_at)
    match decision:
        case GiveUp(reason=why):
            state, reason = DeliveryState.DEAD, why
        case Skip(reason=why):
            state, reason = DeliveryState.SKIPPED, why
        case RetryAt(at=at, step=next_step):
            state, step, settled_at = _PENDING, next_step, None
            if ruling.health.state is TargetState.ACTIVE or claim.turn is Turn.FIRST:
                due_at = millis(at)
    tried = outcome.kind not in (OutcomeKind.INTERRUPTED, OutcomeKind.SKIPPED)
    first_try_at = millis(settlement.began_at) if tried else None
    return state, due_at, step, settled_at, str(outcome.kind), outcome.status, reason, first_try_at


def is_to_release(before: TargetHealth, after: TargetHealth) -> bool:
    """Whether what a target held is due by a change of its health: it is back, or its throttle is lifted, or another
    config of a disabled target was taken up, whose next probe is for that."""
    is_lifted = before.throttled_until is not None and after.throttled_until is None
    is_back = after.state is TargetState.ACTIVE and (before.state is TargetState.DISABLED or is_lifted)
    is_another = _digests(before) not in (_digests(after), _UNKNOWN)
    return is_back or (after.state is TargetState.DISABLED and is_another)


_UNKNOWN = ("", "")


def _digests(health: TargetHealth) -> tuple[str, str]:
    return health.url_digest, health.settings_digest
