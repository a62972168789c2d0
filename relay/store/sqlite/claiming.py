"""Claiming in SQL: which deliveries of a target go next, found through the partial indexes of what waits.

Law: the cost of a claim is that of what it takes, whatever waits and whatever is kept. What was damaged on the disk is
never handed out as if it were sound.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from relay.model import Claim, Course, DeliveryState, Event, OutcomeKind, Turn
from relay.store import Claimed
from relay.store.grouping.changes import INLINE_BODY
from relay.store.grouping.rows import course_from, event_from, headers_from, millis, moment, moment_if_sound
from relay.store.grouping.wishes import ClaimWish, told_by
from relay.store.sqlite.transaction import Transaction, in_one_row, marks, slices

PROBE_HORIZON = 10_000
"""How many of the newest waiting deliveries are looked at when a probe is chosen."""
ARRIVAL_HORIZON = 100
"""How many of the newest waiting deliveries are looked at for one that came since the disabling."""
MISSING = "its event is missing from the store"
DAMAGED = "its event or its own row is damaged in the store"


_NEWEST = """SELECT event_seq, attempts FROM delivery INDEXED BY delivery_open
    WHERE target = :target AND state IN ('pending', 'in_flight') AND state = 'pending'
    ORDER BY event_seq DESC LIMIT"""

FIRST = """SELECT event_seq, state, due_at FROM delivery INDEXED BY delivery_open
    WHERE target = {target} AND state IN ('pending', 'in_flight') ORDER BY event_seq LIMIT 1"""
"""The first by arrival of what is not over at a target."""
_ALONE = """(:busy = 0 OR NOT EXISTS (SELECT 1 FROM delivery busy INDEXED BY delivery_claimed
    WHERE busy.state = 'in_flight' AND busy.target = :target))"""
"""Nothing of the target is claimed. Only where the kept count says otherwise is it asked of all that is claimed."""

_CHOICE: dict[Turn, str] = {
    Turn.DUE: """SELECT event_seq FROM delivery WHERE target = :target AND state = 'pending' AND due_at <= :now
        ORDER BY due_at, event_seq LIMIT :limit""",
    Turn.PROBE: f"""SELECT * FROM (
            SELECT event_seq FROM ({_NEWEST} {PROBE_HORIZON}) WHERE attempts = 0 LIMIT :limit)
        UNION ALL SELECT * FROM (
            SELECT tried.event_seq FROM ({_NEWEST} {PROBE_HORIZON}) tried WHERE tried.attempts > 0
            ORDER BY (SELECT last.began_at FROM attempt last
                WHERE last.event_seq = tried.event_seq AND last.target = :target
                ORDER BY last.number DESC LIMIT 1), tried.event_seq
            LIMIT :limit)
        LIMIT :limit""",
    Turn.ARRIVAL: f"""SELECT new.event_seq FROM ({_NEWEST} {ARRIVAL_HORIZON}) new
        CROSS JOIN event e ON e.seq = new.event_seq
        WHERE new.attempts = 0 AND e.received_at >= :since LIMIT :limit""",
    Turn.FIRST: f"""SELECT event_seq FROM ({FIRST.format(target=":target")}) first
        WHERE state = 'pending' AND (due_at <= :now OR typeof(due_at) <> 'integer')
            AND {_ALONE}""",
}


def claim(tx: Transaction, wishes: Sequence[ClaimWish]) -> list[Claimed]:
    """Claim for several callers; events that they share are read once."""
    taken = [_take(tx, wish) for wish in wishes]
    tx.changes.clock = wishes[-1].now if wishes else None
    events = _events(tx, sorted({row[1] for rows in taken for row in rows}))
    claimed = [_claims(tx, wish, rows, events) for wish, rows in zip(wishes, taken, strict=True)]
    scarce = [wish for wish, claims in zip(wishes, claimed, strict=True) if len(claims) < wish.limit]
    tx.changes.waiting -= told_by(wishes)
    due = _next_due(tx.db, [wish.target for wish in scarce if wish.turn is not Turn.FIRST])
    due |= _first_due(tx, [wish.target for wish in scarce if wish.turn is Turn.FIRST])
    return [Claimed(claims, due.get(wish.target)) for wish, claims in zip(wishes, claimed, strict=True)]


def _take(tx: Transaction, wish: ClaimWish) -> list[list[Any]]:
    """Mark what goes next; returns (due_at, event_seq, attempts before, step, first_try_at, replays, course) of
    each, in order."""
    values = {
        "target": wish.target,
        "now": millis(wish.now),
        "limit": wish.limit,
        "since": millis(wish.since) if wish.since else 0,
        "busy": tx.count(wish.target, DeliveryState.IN_FLIGHT),
    }
    chosen = f"""SELECT due_at, event_seq, attempts, step, first_try_at, replays, CAST(course AS BLOB)
        FROM delivery
        WHERE target = :target AND state = 'pending' AND event_seq IN ({_CHOICE[wish.turn]})"""
    rows = sorted(in_one_row(tx.db, chosen, 7, values), key=_turn_of)
    if rows:
        tx.db.execute(
            """UPDATE delivery SET state = 'in_flight', attempts = attempts + 1, claim = ?, lease_until = ?
            WHERE target = ? AND event_seq IN (SELECT value FROM json_each(?))""",
            (wish.token, millis(wish.now + wish.lease), wish.target, json.dumps([row[1] for row in rows])),
        )
        tx.changes.moved(wish.target, DeliveryState.PENDING, DeliveryState.IN_FLIGHT, len(rows))
    return rows


def _turn_of(row: Any) -> tuple[int, int]:
    """Where a row stands among those taken; a due time that the disk has changed comes first."""
    return (row[0] if isinstance(row[0], int) else 0), row[1]


def _claims(
    tx: Transaction, wish: ClaimWish, rows: Sequence[Any], events: dict[int, tuple[Event, bool] | None]
) -> tuple[Claim, ...]:
    """The claims on what was taken. A row that can never be sent is dead at once: it would fail every claim of its
    target for ever."""
    claims: list[Claim] = []
    for row in rows:
        _, seq, attempts, step, first_try_at, _, course_bytes = row
        course = _course(course_bytes)
        found = events.get(seq)
        if found is None:
            _bury(tx, wish, seq, DAMAGED if seq in events else MISSING)
        elif course is None or not _is_sound(attempts, step, first_try_at):
            _bury(tx, wish, seq, DAMAGED)
        else:
            claims.append(_claim_from(row, wish, found, course, tx.health(wish.target).took_at))
    return tuple(claims)


def _bury(tx: Transaction, wish: ClaimWish, seq: int, reason: str) -> None:
    tx.db.execute(
        """UPDATE delivery SET state = 'dead', settled_at = ?, outcome = ?, status = NULL, reason = ?, claim = NULL,
            lease_until = NULL
        WHERE event_seq = ? AND target = ?""",
        (millis(wish.now), OutcomeKind.UNPREPARED.value, reason, seq, wish.target),
    )
    tx.changes.moved(wish.target, DeliveryState.IN_FLIGHT, DeliveryState.DEAD)


def _is_sound(attempts: object, step: object, first_try_at: object) -> bool:
    are_integers = isinstance(attempts, int) and isinstance(step, int)
    return are_integers and (first_try_at is None or moment_if_sound(first_try_at) is not None)


def _course(octets: str | None) -> Course | None:
    """A course out of its bytes in hex, as `in_one_row` tells them; None for one that is damaged."""
    try:
        return () if octets is None else course_from(bytes.fromhex(octets))
    except ValueError:
        return None


def _claim_from(
    row: Any, wish: ClaimWish, found: tuple[Event, bool], course: Course, took_at: datetime | None
) -> Claim:
    _, _, attempts, step, first_try_at, replays, _ = row
    event, deferred = found
    return Claim(
        event=event,
        target=wish.target,
        attempt=attempts + 1,
        step=step,
        token=wish.token,
        lease_until=wish.now + wish.lease,
        turn=wish.turn,
        first_try_at=moment(first_try_at),
        took_at=took_at,
        body_deferred=deferred,
        replayed=bool(replays),
        course=course,
    )


def _events(tx: Transaction, seqs: Sequence[int]) -> dict[int, tuple[Event, bool] | None]:
    """The events that are there; None for one that is damaged in more than its headers and its body."""
    fresh = {seq: tx.fresh(seq) for seq in seqs}
    found: dict[int, tuple[Event, bool] | None] = {seq: (event, False) for seq, event in fresh.items() if event}
    for part in slices([seq for seq in seqs if seq not in found]):
        query = f"""SELECT seq, sha256, CAST(id AS BLOB), CAST(source AS BLOB), CAST(type AS BLOB),
                received_at, verified, hops, CAST(headers AS BLOB),
                CASE WHEN size <= {INLINE_BODY} THEN body END
            FROM event WHERE seq IN ({marks(len(part))})"""
        for seq, sha256, *row in tx.db.execute(query, part):
            found[seq] = _event(row, sha256)
    return found


def _event(row: Sequence[Any], sha256: bytes) -> tuple[Event, bool] | None:
    """An event, and whether its body is left in the store: a large one, or a damaged event, of which `body` tells."""
    *texts, received_at, verified, hops, headers, body = row
    if not isinstance(verified, int) or not isinstance(hops, int) or moment_if_sound(received_at) is None:
        return None
    try:
        named = (*(str(text, "utf-8") for text in texts), received_at, verified, hops)
    except ValueError:
        return None
    if body is None or hashlib.sha256(body).digest() != sha256:
        body = None
    try:
        return event_from(named, headers_from(headers), body or b""), body is None
    except ValueError:
        return event_from(named, (), b""), True


def _next_due(db: sqlite3.Connection, targets: Sequence[str]) -> dict[str, datetime]:
    due: dict[str, datetime] = {}
    for part in slices(targets):
        query = f"""SELECT t.column1, (SELECT due_at FROM delivery d WHERE d.target = t.column1 AND d.state = 'pending'
                ORDER BY d.due_at LIMIT 1)
            FROM (VALUES {", ".join(["(?)"] * len(part))}) t"""
        for target, due_at in db.execute(query, part):
            at = moment_if_sound(due_at)
            if at is not None:
                due[target] = at
    return due


def _first_due(tx: Transaction, targets: Sequence[str]) -> dict[str, datetime]:
    """When the first delivery of each ordered target falls due; nothing where something is under way there."""
    due: dict[str, datetime] = {}
    query = f"""SELECT due_at FROM ({FIRST.format(target=":target")}) first
        WHERE state = 'pending' AND {_ALONE}"""
    for target in targets:
        values = {"target": target, "busy": tx.count(target, DeliveryState.IN_FLIGHT)}
        row = tx.db.execute(query, values).fetchone()
        at = moment_if_sound(row[0]) if row else None
        if at is not None:
            due[target] = at
    return due
