"""Claiming in SQL: which deliveries of a target go next, found through the partial indexes of what waits.

Law: the cost of a claim is that of what it takes, whatever waits and whatever is kept. What was damaged on the disk is
never handed out as if it were sound.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiosqlite

from relay.model import Claim, DeliveryState, Event, Turn
from relay.store import Claimed
from relay.store.sqlite.rows import event_from, headers_from, millis, moment
from relay.store.sqlite.transaction import Transaction, marks, slices

INLINE_BODY = 64 * 1024
"""Larger bodies stay in the store until they are sent, so that a claim on many cannot fill the memory."""
PROBE_HORIZON = 10_000
"""How many of the newest waiting deliveries are looked at when a probe is chosen."""
ARRIVAL_HORIZON = 100
"""How many of the newest waiting deliveries are looked at for one that came since the disabling."""


@dataclass(slots=True)
class ClaimWish:
    """One call for deliveries."""

    target: str
    limit: int
    turn: Turn
    now: datetime
    lease: timedelta
    since: datetime | None
    token: int


_NEWEST = """SELECT event_seq, attempts FROM delivery INDEXED BY delivery_open
    WHERE target = :target AND state IN ('pending', 'in_flight') AND state = 'pending'
    ORDER BY event_seq DESC LIMIT"""

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
}


async def claim(tx: Transaction, wishes: Sequence[ClaimWish]) -> list[Claimed]:
    """Claim for several callers; events that they share are read once."""
    taken: list[list[Any]] = []
    for wish in wishes:
        query = f"""UPDATE delivery SET state = 'in_flight', attempts = attempts + 1, claim = :token,
                lease_until = :lease_until
            WHERE target = :target AND state = 'pending' AND event_seq IN ({_CHOICE[wish.turn]})
            RETURNING due_at, event_seq, attempts, step, first_try_at"""
        values = {
            "token": wish.token,
            "lease_until": millis(wish.now + wish.lease),
            "target": wish.target,
            "now": millis(wish.now),
            "limit": wish.limit,
            "since": millis(wish.since) if wish.since else 0,
        }
        rows = sorted(await tx.db.execute_fetchall(query, values))
        tx.changes.moved(wish.target, DeliveryState.PENDING, DeliveryState.IN_FLIGHT, len(rows))
        taken.append(rows)
    events = await _events(tx.db, sorted({row[1] for rows in taken for row in rows}))
    scarce = [wish.target for wish, rows in zip(wishes, taken, strict=True) if len(rows) < wish.limit]
    due = await _next_due(tx.db, scarce)
    return [
        Claimed(
            tuple(_claim_from(row, wish, events, tx.health(wish.target).took_at) for row in rows),
            due.get(wish.target),
        )
        for wish, rows in zip(wishes, taken, strict=True)
    ]


def _claim_from(row: Any, wish: ClaimWish, events: dict[int, tuple[Event, bool]], took_at: datetime | None) -> Claim:
    _, seq, attempt, step, first_try_at = row
    event, deferred = events[seq]
    return Claim(
        event=event,
        target=wish.target,
        attempt=attempt,
        step=step,
        token=wish.token,
        lease_until=wish.now + wish.lease,
        turn=wish.turn,
        first_try_at=moment(first_try_at),
        took_at=took_at,
        body_deferred=deferred,
    )


async def _events(db: aiosqlite.Connection, seqs: Sequence[int]) -> dict[int, tuple[Event, bool]]:
    found: dict[int, tuple[Event, bool]] = {}
    for part in slices(seqs):
        query = f"""SELECT seq, sha256, id, source, type, received_at, verified, hops, CAST(headers AS BLOB),
                CASE WHEN size <= {INLINE_BODY} THEN body END
            FROM event WHERE seq IN ({marks(len(part))})"""
        for seq, sha256, *row in await db.execute_fetchall(query, part):
            found[seq] = _event(row, sha256)
    return found


def _event(row: Sequence[Any], sha256: bytes) -> tuple[Event, bool]:
    """An event, and whether its body is left in the store: a large one, or a damaged event, of which `body` tells."""
    *named, headers, body = row
    if body is None or hashlib.sha256(body).digest() != sha256:
        body = None
    try:
        return event_from(named, headers_from(headers), body or b""), body is None
    except ValueError:
        return event_from(named, (), b""), True


async def _next_due(db: aiosqlite.Connection, targets: Sequence[str]) -> dict[str, datetime]:
    due: dict[str, datetime] = {}
    for part in slices(targets):
        query = f"""SELECT t.column1, (SELECT due_at FROM delivery d WHERE d.target = t.column1 AND d.state = 'pending'
                ORDER BY d.due_at LIMIT 1)
            FROM (VALUES {", ".join(["(?)"] * len(part))}) t"""
        for target, due_at in await db.execute_fetchall(query, part):
            at = moment(due_at)
            if at is not None:
                due[target] = at
    return due
