"""Replaying and discarding in SQL: what had ended waits again, what is held has ended.

Law: every function here runs inside the writer's transaction. A delivery that begins anew keeps the number of its last
attempt and what was recorded of it; nothing else of its past counts. Its claim is gone already, for it had ended.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from relay.model import ENDED, DeliveryState, Route
from relay.rules.routing import targets_of
from relay.store.replays import DISCARDED, NOT_CONFIGURED, Destinations, Replayable, ReplayedEvent
from relay.store.sqlite.rows import compact, millis
from relay.store.sqlite.transaction import Transaction, marks, slices

DISCARD = 1000
"""Deliveries discarded in one transaction: an answer that arrives meanwhile waits for a few milliseconds."""

Item = tuple[int, str]
"""An event's number and a target; no target for an event that is to be routed anew."""
Delivery = tuple[int, str, DeliveryState | None]
"""A delivery and its state, None where it is still to be made."""

_NAMED = "e.seq, CAST(e.source AS BLOB), CAST(e.type AS BLOB)"

_ANEW = """WITH anew (event_seq, target, due_at) AS (VALUES {rows})
    UPDATE delivery SET state = 'pending', due_at = a.due_at, step = 0, first_try_at = NULL, settled_at = NULL,
        outcome = NULL, status = NULL, reason = NULL, replays = replays + 1
    FROM anew a WHERE delivery.event_seq = a.event_seq AND delivery.target = a.target"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of some items."""

    replayed: int
    skipped: int
    targets: frozenset[str]


def replay_event(
    tx: Transaction, event_id: str, destinations: Destinations, *, target: str | None, now: datetime
) -> ReplayedEvent | None:
    """See `Replays.event`."""
    row = tx.db.execute(f"SELECT {_NAMED} FROM event e WHERE e.id = ?", (event_id,)).fetchone()
    if row is None:
        return None
    seq, source, type_ = _named(row)
    stored = tx.db.execute("SELECT target, state FROM delivery WHERE event_seq = ?", (seq,))
    states: dict[str, DeliveryState | None] = {name: DeliveryState(state) for name, state in stored}
    if target is not None:
        states = {target: states.get(target)}
    elif not states:
        routes = destinations.routes(source, type_)
        _remember_routes(tx, seq, routes)
        states = dict.fromkeys(targets_of(routes))
    waiting = tuple(name for name, state in states.items() if state is not None and state not in ENDED)
    rest = [name for name in states if name not in waiting]
    anew = tuple(name for name in rest if name in destinations.known)
    _begin_anew(tx, [(seq, name, states[name]) for name in anew], now)
    skipped = tuple((name, NOT_CONFIGURED) for name in rest if name not in anew)
    return ReplayedEvent(event_id, source, anew, waiting, skipped)


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
        replayed = len({seq for seq, *_ in deliveries})
    else:
        deliveries = _still(tx, items, DeliveryState(wanted.value), destinations)
        replayed = len(deliveries)
    _begin_anew(tx, deliveries, now)
    return Taken(replayed, len(items) - replayed, frozenset(target for _, target, _ in deliveries))


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
        tx.changes.tell("target", target, DeliveryState.DEAD.value, now, len(seqs))
    return seqs


def _begin_anew(tx: Transaction, deliveries: Sequence[Delivery], now: datetime) -> None:
    """Make deliveries pending and due, with a fresh schedule; those that there are not yet are made."""
    due_at = millis(now)
    for _, target, state in deliveries:
        tx.changes.moved(target, state, DeliveryState.PENDING)
    tx.write(
        "INSERT INTO delivery (event_seq, target, due_at, state, replays) VALUES {rows}",
        [(seq, target, due_at, "pending", 1) for seq, target, state in deliveries if state is None],
    )
    tx.write(_ANEW, [(seq, target, due_at) for seq, target, state in deliveries if state is not None])


def _still(tx: Transaction, items: Sequence[Item], wanted: DeliveryState, destinations: Destinations) -> list[Delivery]:
    """The items whose event is there, whose target is known, and which have the state that was asked for: another
    replay may have been quicker."""
    found: set[Item] = set()
    for part in slices(sorted({seq for seq, _ in items})):
        query = f"""SELECT d.event_seq, d.target FROM delivery d JOIN event e ON e.seq = d.event_seq
            WHERE d.event_seq IN ({marks(len(part))}) AND d.state = ?"""
        found.update(tx.db.execute(query, (*part, wanted.value)))
    return [(*item, wanted) for item in items if item in found and item[1] in destinations.known]


def _routed_anew(tx: Transaction, seqs: Sequence[int], destinations: Destinations) -> list[Delivery]:
    """The deliveries to be made of events that have none, by the routes of today."""
    made: list[Delivery] = []
    for part in slices(seqs):
        query = f"""SELECT {_NAMED} FROM event e WHERE e.seq IN ({marks(len(part))})
            AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq) ORDER BY e.seq"""
        for seq, source, type_ in map(_named, tx.db.execute(query, part).fetchall()):
            routes = destinations.routes(source, type_)
            _remember_routes(tx, seq, routes)
            made += [(seq, target, None) for target in targets_of(routes) if target in destinations.known]
    return made


def _named(row: tuple[int, bytes, bytes]) -> tuple[int, str, str]:
    """An event's number, source and type; what the disk has damaged fits no route, and fails nothing else."""
    seq, source, type_ = row
    return seq, str(source, "utf-8", "replace"), str(type_, "utf-8", "replace")


def _remember_routes(tx: Transaction, seq: int, routes: Sequence[Route]) -> None:
    """The event that nobody wanted is wanted now, and by whom."""
    if routes:
        names = compact([route.name for route in routes])
        tx.db.execute("INSERT OR REPLACE INTO rerouted (event_seq, routes) VALUES (?, ?)", (seq, names))
