"""Replaying and discarding in SQL: what had ended waits again, what is held has ended.

Law: every function here runs inside the writer's transaction. A delivery that begins anew keeps the number of its last
attempt and what was recorded of it; nothing else of its past counts. Its claim is gone already, for it had ended.
"""

import json
from collections.abc import Sequence
from datetime import datetime

from relay.model import ENDED, DeliveryState, Headers
from relay.rules.expressions import Failed
from relay.rules.routing import DAMAGED, Routed, routed
from relay.store.grouping.rerouting import DISCARD, Anew, Item, StoredBody, Taken, course_to, stored_subject
from relay.store.grouping.rows import compact, course_text, headers_from, millis, moment_if_sound
from relay.store.replays import DISCARDED, NOT_CONFIGURED, Destinations, Replayable, ReplayedEvent
from relay.store.sqlite.transaction import Transaction, marks, slices

_NAMED = "e.seq, CAST(e.source AS BLOB), CAST(e.type AS BLOB)"

_ANEW = """WITH anew (event_seq, target, due_at, is_led, course) AS (VALUES {rows})
    UPDATE delivery SET state = 'pending', due_at = a.due_at, step = 0, first_try_at = NULL, settled_at = NULL,
        outcome = NULL, status = NULL, reason = NULL, replays = replays + 1,
        course = CASE WHEN a.is_led THEN a.course ELSE delivery.course END
    FROM anew a WHERE delivery.event_seq = a.event_seq AND delivery.target = a.target"""


def replay_event(
    tx: Transaction, event_id: str, destinations: Destinations, *, target: str | None, now: datetime
) -> ReplayedEvent | None:
    """See `Replays.event`."""
    row = tx.db.execute(f"SELECT {_NAMED} FROM event e WHERE e.id = ?", (event_id,)).fetchone()
    if row is None:
        return None
    seq, *_ = row
    found = _routed(tx, row, destinations)
    stored = tx.db.execute("SELECT target, state FROM delivery WHERE event_seq = ?", (seq,))
    states: dict[str, DeliveryState | None] = {name: DeliveryState(state) for name, state in stored}
    if target is not None:
        states = {target: states.get(target)}
    elif not states:
        _remember_routes(tx, seq, found)
        states = dict.fromkeys(found.targets)
    waiting = tuple(name for name, state in states.items() if state is not None and state not in ENDED)
    rest = [name for name in states if name not in waiting]
    anew = tuple(name for name in rest if name in destinations.known)
    _begin_anew(tx, [Anew(seq, name, states[name], course_to(found, name)) for name in anew], now)
    skipped = tuple((name, NOT_CONFIGURED) for name in rest if name not in anew)
    return ReplayedEvent(event_id, _text(row[1]), anew, waiting, skipped)


def take_items(
    tx: Transaction, job: int, wanted: Replayable, number: int, destinations: Destinations, now: datetime
) -> Taken:
    """Give the oldest items of a job their turn, and remove them from its set."""
    query = "SELECT event_seq, target FROM replay_item WHERE replay_seq = ? ORDER BY event_seq, target LIMIT ?"
    items: list[Item] = tx.db.execute(query, (job, number)).fetchall()
    if not items:
        return Taken(0, 0, frozenset())
    tx.db.execute("DELETE FROM replay_item WHERE replay_seq = ? AND (event_seq, target) <= (?, ?)", (job, *items[-1]))
    if wanted is Replayable.UNROUTED:
        deliveries = _routed_anew(tx, [seq for seq, _ in items], destinations)
        replayed = len({one.seq for one in deliveries})
    else:
        deliveries = _still(tx, items, DeliveryState(wanted.value), destinations)
        replayed = len(deliveries)
    _begin_anew(tx, deliveries, now)
    return Taken(replayed, len(items) - replayed, frozenset(one.target for one in deliveries))


def discard_part(tx: Transaction, target: str, *, after: int, last: int, now: datetime) -> list[int]:
    """Turn the oldest deliveries that wait at a target, of events between two numbers, into dead; return which."""
    query = f"""SELECT event_seq FROM delivery INDEXED BY delivery_open
        WHERE target = ? AND state IN ('pending', 'in_flight') AND state = 'pending'
            AND event_seq > ? AND event_seq <= ? ORDER BY event_seq LIMIT {DISCARD}"""
    seqs = [seq for (seq,) in tx.db.execute(query, (target, after, last))]
    tx.db.execute(
        """UPDATE delivery SET state = 'dead', settled_at = ?, reason = ?
        WHERE target = ? AND event_seq IN (SELECT value FROM json_each(?))""",
        (millis(now), DISCARDED, target, json.dumps(seqs)),
    )
    tx.changes.moved(target, DeliveryState.PENDING, DeliveryState.DEAD, len(seqs))
    if seqs:
        tx.changes.tell("target", target, DeliveryState.DEAD.value, millis(now), len(seqs))
    return seqs


def _begin_anew(tx: Transaction, deliveries: Sequence[Anew], now: datetime) -> None:
    """Make deliveries pending and due, with a fresh schedule; those that there are not yet are made."""
    due_at = millis(now)
    for one in deliveries:
        tx.changes.moved(one.target, one.state, DeliveryState.PENDING)
    tx.write(
        "INSERT INTO delivery (event_seq, target, due_at, state, replays, course) VALUES {rows}",
        [
            (one.seq, one.target, due_at, "pending", 1, course_text(one.course or ()))
            for one in deliveries
            if one.state is None
        ],
    )
    tx.write(
        _ANEW,
        [
            (one.seq, one.target, due_at, one.course is not None, course_text(one.course or ()))
            for one in deliveries
            if one.state is not None
        ],
    )


def _still(tx: Transaction, items: Sequence[Item], wanted: DeliveryState, destinations: Destinations) -> list[Anew]:
    """The items whose event is there, whose target is known, and which have the state that was asked for: another
    replay may have been quicker."""
    found: set[Item] = set()
    events: dict[int, Routed] = {}
    for part in slices(sorted({seq for seq, _ in items})):
        query = f"""SELECT d.event_seq, d.target FROM delivery d
            WHERE d.event_seq IN ({marks(len(part))}) AND d.state = ?"""
        found.update(tx.db.execute(query, (*part, wanted.value)))
        query = f"SELECT {_NAMED} FROM event e WHERE e.seq IN ({marks(len(part))})"
        events |= {row[0]: _routed(tx, row, destinations) for row in tx.db.execute(query, part).fetchall()}
    return [
        Anew(seq, target, wanted, course_to(events[seq], target))
        for seq, target in items
        if (seq, target) in found and seq in events and target in destinations.known
    ]


def _routed_anew(tx: Transaction, seqs: Sequence[int], destinations: Destinations) -> list[Anew]:
    """The deliveries to be made of events that have none, by the routes of today."""
    made: list[Anew] = []
    for part in slices(seqs):
        query = f"""SELECT {_NAMED} FROM event e WHERE e.seq IN ({marks(len(part))})
            AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq) ORDER BY e.seq"""
        for row in tx.db.execute(query, part).fetchall():
            seq, found = row[0], _routed(tx, row, destinations)
            _remember_routes(tx, seq, found)
            targets = [target for target in found.targets if target in destinations.known]
            made += [Anew(seq, target, None, course_to(found, target)) for target in targets]
    return made


def _remember_routes(tx: Transaction, seq: int, found: Routed) -> None:
    """The event that nobody wanted is wanted now, and by whom."""
    if found.routes:
        names = compact(found.routes)
        tx.db.execute("INSERT OR REPLACE INTO rerouted (event_seq, routes) VALUES (?, ?)", (seq, names))


def _routed(tx: Transaction, row: tuple[int, bytes, bytes], destinations: Destinations) -> Routed:
    """Where a stored event goes by the routes of today; what is large of it is read only where a route asks. What the
    disk has damaged of it fits no route, and fails nothing else."""
    seq, source, type_ = row[0], _text(row[1]), _text(row[2])

    def headers() -> Headers | Failed:
        ((stored,),) = tx.db.execute("SELECT CAST(headers AS BLOB) FROM event WHERE seq = ?", (seq,))
        try:
            return headers_from(stored)
        except ValueError:
            return DAMAGED

    def body() -> StoredBody:
        query = "SELECT CAST(id AS BLOB), received_at, sha256, CAST(body AS BLOB) FROM event WHERE seq = ?"
        ((id_, received_at, sha256, content),) = tx.db.execute(query, (seq,))
        return StoredBody(_text(id_ or b""), moment_if_sound(received_at), sha256, content or b"")

    return routed(stored_subject(source, type_, headers=headers, body=body), destinations.routes)


def _text(stored: bytes) -> str:
    """Text that the disk may have changed."""
    return str(stored, "utf-8", "replace")
