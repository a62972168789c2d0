"""What was read of each kind beyond a position, told in one order.

Law: what is told stands in order of time as far as it is known, and each position is that of who has read all before
it, so that whoever goes on there misses nothing and gets nothing twice.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from relay.model import DeliveryState
from relay.store.archive import RefusedRequest
from relay.store.following import AcceptedEvent, Batch, Happened, Occurrence, Position, RecordedAttempt
from relay.store.grouping.rows import sound_moment


@dataclass(frozen=True, slots=True)
class Kind:
    """One table that is followed; its name is that of its number in a position, `at` its clock."""

    name: str
    at: str
    query: str
    """Number, time, and what `read` takes, of the rows beyond a number, so many at most."""
    read: Callable[[datetime, Sequence[Any]], Occurrence]


@dataclass(frozen=True, slots=True)
class FollowedRow:
    """One row beyond a position."""

    kind: Kind
    number: int
    at: datetime
    rest: Sequence[Any]


def followed(kind: Kind, rows: Iterable[Sequence[Any]]) -> list[FollowedRow]:
    """What the query of a kind has found."""
    return [FollowedRow(kind, number, sound_moment(at), rest) for number, at, *rest in rows]


def merged(read: Sequence[Sequence[FollowedRow]], position: Position, limit: int) -> Batch:
    """What follows a position, of what was read of each kind, at most `limit`."""
    ends = {id(rows[-1]) for rows in read if len(rows) == limit}
    happened: list[Happened] = []
    for row in heapq.merge(*read, key=lambda row: row.at):
        position = replace(position, **{row.kind.name: row.number})
        happened.append(Happened(position, row.kind.read(row.at, row.rest)))
        if id(row) in ends:  # what follows in the other tables may be younger than what this one has still to tell
            return Batch(happened, position, is_last=False)
    return Batch(happened, position, is_last=True)


def accepted(at: datetime, row: Sequence[Any]) -> AcceptedEvent:
    """An event from (id, source, type, size, targets)."""
    event_id, source, type_, size, targets = row
    return AcceptedEvent(at, event_id, source, type_, tuple(targets), size)


def refused(at: datetime, row: Sequence[Any]) -> RefusedRequest:
    """A refusal from (source, remote, status, reason, detail, size)."""
    source, remote, status, reason, detail, size = row
    return RefusedRequest(at, source, remote, status, reason, detail, size)


def attempted(at: datetime, row: Sequence[Any]) -> RecordedAttempt:
    """An attempt from (event id, source, type, target, number, outcome, status, duration, reason) and the state and the
    time of its delivery, which may be gone."""
    event_id, source, type_, target, number, outcome, status, duration_ms, reason, state, due_at = row
    return RecordedAttempt(
        at=at,
        event_id=event_id,
        source=source,
        type=type_,
        target=target,
        number=number,
        outcome=outcome,
        status=status,
        duration_ms=duration_ms,
        reason=reason,
        state=None if state is None else DeliveryState(state),
        due_at=None if state is None else sound_moment(due_at),
    )
