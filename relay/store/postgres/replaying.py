"""Replaying and discarding in SQL: what had ended waits again, what is held has ended.

Law: every function here runs inside the writer's transaction, and judges what it has locked: an event to which a
delivery is to be added, so that no two nodes add it and nobody deletes the event meanwhile, then the deliveries, in
their order. A delivery that begins anew keeps the number of its last attempt and what was recorded of it; nothing else
of its past counts. Its claim is gone already, for it had ended.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from relay.model import ENDED, DeliveryState, Headers
from relay.rules.expressions import Failed
from relay.rules.routing import DAMAGED, Routed, routed, routed_by_name
from relay.store.grouping.rerouting import DISCARD, Anew, Item, StoredBody, Taken, course_to, stored_subject
from relay.store.grouping.rows import compact, course_text, headers_from, millis, moment
from relay.store.postgres.transaction import Transaction
from relay.store.postgres.types import Row
from relay.store.replays import DISCARDED, NOT_CONFIGURED, Destinations, Replayable, ReplayedEvent

_NAMED = "e.seq, e.source, e.type"
_HOLD = "FOR NO KEY UPDATE OF e"
"""One at a time adds deliveries to an event, and nobody deletes it; who only reads it is not held up."""

_MAKE = """INSERT INTO delivery (event_seq, target, due_at, course, state, replays)
    SELECT *, 'pending', 1 FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[])"""
_ANEW = """UPDATE delivery d SET state = 'pending', due_at = a.due_at, step = 0, first_try_at = NULL, settled_at = NULL,
        outcome = NULL, status = NULL, reason = NULL, replays = replays + 1,
        course = CASE WHEN a.is_led THEN a.course ELSE d.course END
    FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bool[], $5::text[])
        a (event_seq, target, due_at, is_led, course)
    WHERE d.event_seq = a.event_seq AND d.target = a.target"""
# The state is judged outside: by the index of the dead, a set would be looked for among all that is dead.
_STILL = """SELECT d.event_seq, d.target, d.state FROM unnest($1::bigint[], $2::text[]) i (event_seq, target)
    JOIN delivery d ON d.event_seq = i.event_seq AND d.target = i.target
    ORDER BY d.event_seq, d.target FOR UPDATE OF d"""
_REROUTED = """INSERT INTO rerouted (event_seq, routes) VALUES ($1, $2)
    ON CONFLICT (event_seq) DO UPDATE SET routes = excluded.routes"""


class _BodyWanted(Exception):
    """A condition asks for what was not read yet."""


async def replay_event(
    tx: Transaction, event_id: str, destinations: Destinations, *, target: str | None, now: datetime
) -> ReplayedEvent | None:
    """See `Replays.event`."""
    rows = await tx.rows(f"SELECT {_NAMED} FROM event e WHERE e.id = $1 {_HOLD}", event_id)
    if not rows:
        return None
    seq, source, _ = rows[0]
    found = await _routed(tx, rows[0], destinations)
    query = "SELECT target, state FROM delivery WHERE event_seq = $1 ORDER BY target FOR UPDATE"
    stored = await tx.rows(query, seq)
    states: dict[str, DeliveryState | None] = {name: DeliveryState(state) for name, state in stored}
    if target is not None:
        states = {target: states.get(target)}
    elif not states:
        await _remember_routes(tx, seq, found)
        states = dict.fromkeys(found.targets)
    waiting = tuple(name for name, state in states.items() if state is not None and state not in ENDED)
    rest = [name for name in states if name not in waiting]
    anew = tuple(name for name in rest if name in destinations.known)
    await _begin_anew(tx, [Anew(seq, name, states[name], course_to(found, name)) for name in anew], now)
    skipped = tuple((name, NOT_CONFIGURED) for name in rest if name not in anew)
    return ReplayedEvent(event_id, source, anew, waiting, skipped)


async def take_items(
    tx: Transaction, job: int, wanted: Replayable, number: int, destinations: Destinations, now: datetime
) -> Taken:
    """Give the oldest items of a job, whose row is locked, their turn, and remove them from its set."""
    query = "SELECT event_seq, target FROM replay_item WHERE replay_seq = $1 ORDER BY event_seq, target LIMIT $2"
    items: list[Item] = [(seq, target) for seq, target in await tx.rows(query, job, number)]
    if not items:
        return Taken(0, 0, frozenset())
    query = "DELETE FROM replay_item WHERE replay_seq = $1 AND (event_seq, target) <= ($2, $3)"
    await tx.run(query, job, *items[-1])
    if wanted is Replayable.UNROUTED:
        deliveries = await _routed_anew(tx, [seq for seq, _ in items], destinations)
        replayed = len({one.seq for one in deliveries})
    else:
        deliveries = await _still(tx, items, DeliveryState(wanted.value), destinations)
        replayed = len(deliveries)
    await _begin_anew(tx, deliveries, now)
    return Taken(replayed, len(items) - replayed, frozenset(one.target for one in deliveries))


async def discard_part(tx: Transaction, target: str, *, after: int, last: int, now: datetime) -> list[int]:
    """Turn the oldest deliveries that wait at a target, whose health is locked, of events between two numbers, into
    dead; return which."""
    query = f"""SELECT event_seq FROM delivery
        WHERE target = $1 AND state IN ('pending', 'in_flight') AND state = 'pending'
            AND event_seq > $2 AND event_seq <= $3 ORDER BY event_seq LIMIT {DISCARD} FOR UPDATE"""
    seqs: list[int] = [seq for (seq,) in await tx.rows(query, target, after, last)]
    if not seqs:
        return seqs
    query = """UPDATE delivery SET state = 'dead', settled_at = $1, reason = $2
        WHERE target = $3 AND event_seq = ANY($4::bigint[])"""
    await tx.run(query, millis(now), DISCARDED, target, seqs)
    tx.changes.moved(target, DeliveryState.PENDING, DeliveryState.DEAD, len(seqs))
    tx.changes.tell("target", target, DeliveryState.DEAD.value, millis(now), len(seqs))
    return seqs


async def _begin_anew(tx: Transaction, deliveries: Sequence[Anew], now: datetime) -> None:
    """Make deliveries pending and due, with a fresh schedule; those that there are not yet are made."""
    due_at = millis(now)
    for one in deliveries:
        tx.changes.moved(one.target, one.state, DeliveryState.PENDING)
    made = [(one.seq, one.target, due_at, course_text(one.course or ())) for one in deliveries if one.state is None]
    await tx.write(_MAKE, made)
    begun = [
        (one.seq, one.target, due_at, one.course is not None, course_text(one.course or ()))
        for one in deliveries
        if one.state is not None
    ]
    await tx.write(_ANEW, begun)


async def _still(
    tx: Transaction, items: Sequence[Item], wanted: DeliveryState, destinations: Destinations
) -> list[Anew]:
    """The items whose event is there, whose target is known, and which have the state that was asked for: another
    replay may have been quicker."""
    found = await tx.rows(_STILL, [seq for seq, _ in items], [target for _, target in items])
    known: list[Item] = [
        (seq, target) for seq, target, state in found if state == wanted and target in destinations.known
    ]
    query = f"SELECT {_NAMED} FROM event e WHERE e.seq = ANY($1::bigint[])"
    rows = await tx.rows(query, sorted({seq for seq, _ in known}))
    events = {row[0]: await _routed(tx, row, destinations) for row in rows}
    return [Anew(seq, target, wanted, course_to(events[seq], target)) for seq, target in known if seq in events]


async def _routed_anew(tx: Transaction, seqs: Sequence[int], destinations: Destinations) -> list[Anew]:
    """The deliveries to be made of events that have none, by the routes of today."""
    query = f"SELECT {_NAMED} FROM event e WHERE e.seq = ANY($1::bigint[]) ORDER BY e.seq {_HOLD}"
    events = await tx.rows(query, list(seqs))
    # Only now that they are held it is certain what is seen to have none: a snapshot of its own.
    query = "SELECT DISTINCT event_seq FROM delivery WHERE event_seq = ANY($1::bigint[])"
    busy = {seq for (seq,) in await tx.rows(query, [row[0] for row in events])}
    made: list[Anew] = []
    for row in events:
        seq = row[0]
        if seq not in busy:
            found = await _routed(tx, row, destinations)
            await _remember_routes(tx, seq, found)
            targets = [target for target in found.targets if target in destinations.known]
            made += [Anew(seq, target, None, course_to(found, target)) for target in targets]
    return made


async def _remember_routes(tx: Transaction, seq: int, found: Routed) -> None:
    """The event that nobody wanted is wanted now, and by whom."""
    if found.routes:
        await tx.run(_REROUTED, seq, compact(found.routes))


async def _routed(tx: Transaction, row: Row, destinations: Destinations) -> Routed:
    """Where a stored event goes by the routes of today; what is large of it is read only where a route asks."""
    seq, source, type_ = row
    named = routed_by_name(source, type_, destinations.routes)
    if named is not None:
        return named
    ((stored,),) = await tx.rows("SELECT headers FROM event WHERE seq = $1", seq)
    headers = _headers(stored)

    def not_read() -> StoredBody:
        raise _BodyWanted

    try:
        return routed(stored_subject(source, type_, headers=lambda: headers, body=not_read), destinations.routes)
    except _BodyWanted:
        body = await _body(tx, seq)
    return routed(stored_subject(source, type_, headers=lambda: headers, body=lambda: body), destinations.routes)


def _headers(stored: Any) -> Headers | Failed:
    try:
        return headers_from(stored)
    except ValueError:
        return DAMAGED


async def _body(tx: Transaction, seq: int) -> StoredBody:
    query = "SELECT id, received_at, sha256, body FROM event WHERE seq = $1"
    ((id_, received_at, sha256, body),) = await tx.rows(query, seq)
    return StoredBody(id_, moment(received_at), sha256, body)
