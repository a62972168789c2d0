"""The verbs in SQL, each for a whole batch: few statements a transaction, however many callers.

Law: every function here runs inside the writer's transaction, returns its results and leaves what it changed in
`Changes`; nothing is told to anyone before the commit.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import aiosqlite

from relay.model import (
    Claim,
    DeliveryState,
    Done,
    Event,
    GiveUp,
    OutcomeKind,
    RetryAt,
    TargetHealth,
    TargetState,
    Turn,
)
from relay.store import Accepted, Claimed, Ruling, Settled, Settlement
from relay.store.sqlite.ledger import Changes, Ledger
from relay.store.sqlite.rows import (
    EVENT_INSERT,
    HEALTH_UPSERT,
    dedupe_digest,
    event_from,
    event_row,
    health_row,
    millis,
    moment,
)

INLINE_BODY = 64 * 1024
"""Larger bodies stay in the store until they are sent, so that a claim on many cannot fill the memory."""
PARAMETERS = 500
"""Values bound in one statement."""
PROBE_HORIZON = 10_000
"""How many of the newest waiting deliveries are looked at when a probe is chosen."""

_PENDING, _IN_FLIGHT = DeliveryState.PENDING, DeliveryState.IN_FLIGHT


@dataclass(slots=True)
class Transaction:
    """What a batch works with: the connection, what is committed, and what it changes."""

    db: aiosqlite.Connection
    ledger: Ledger
    changes: Changes = field(default_factory=Changes)

    def health(self, name: str) -> TargetHealth:
        """A target's health as this transaction sees it."""
        return self.ledger.current(name, self.changes)


@dataclass(slots=True)
class AcceptWish:
    """One event to be stored."""

    event: Event
    targets: Sequence[str]


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


def _marks(number: int) -> str:
    return ", ".join("?" * number)


def _slices(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[start : start + PARAMETERS] for start in range(0, len(values), PARAMETERS))


async def accept(tx: Transaction, wishes: Sequence[AcceptWish]) -> list[Accepted]:
    """Store events and their deliveries; a known dedupe key stores nothing and names the first event."""
    keys = [wish.event.dedupe_key and dedupe_digest(wish.event.source, wish.event.dedupe_key) for wish in wishes]
    known = await _known_events(tx.db, [key for key in keys if key])
    results: list[Accepted] = []
    events: list[tuple[Any, ...]] = []
    deliveries: list[tuple[Any, ...]] = []
    for wish, key in zip(wishes, keys, strict=True):
        sha256 = hashlib.sha256(wish.event.body).digest()
        first = known.get(key) if key else None
        if first is not None:
            results.append(Accepted(first[0], duplicate=True, same_body=first[1] == sha256))
            continue
        if key:
            known[key] = (wish.event.id, sha256)
        seq = tx.ledger.next_seq
        tx.ledger.next_seq += 1
        events.append(event_row(seq, wish.event, key or None, sha256))
        received_at = millis(wish.event.received_at)
        for target in wish.targets:
            deliveries.append((seq, target, received_at))
            tx.changes.moved(target, None, _PENDING)
        results.append(Accepted(wish.event.id, duplicate=False))
    if events:
        await tx.db.executemany(EVENT_INSERT, events)
    if deliveries:
        await tx.db.executemany(
            "INSERT INTO delivery (event_seq, target, state, due_at) VALUES (?, ?, 'pending', ?)", deliveries
        )
    return results


async def _known_events(db: aiosqlite.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]:
    known: dict[bytes, tuple[str, bytes]] = {}
    for part in _slices(keys):
        query = f"SELECT dedupe, id, sha256 FROM event WHERE dedupe IN ({_marks(len(part))})"
        known.update({key: (id_, sha) for key, id_, sha in await db.execute_fetchall(query, part)})
    return known


_CHOICE: dict[Turn, str] = {
    Turn.DUE: """SELECT event_seq FROM delivery WHERE target = :target AND state = 'pending' AND due_at <= :now
        ORDER BY due_at, event_seq LIMIT :limit""",
    Turn.PROBE: """SELECT event_seq FROM (
            SELECT event_seq, attempts, due_at FROM delivery INDEXED BY delivery_open
            WHERE target = :target AND state IN ('pending', 'in_flight') AND state = 'pending'
            ORDER BY event_seq DESC LIMIT :horizon)
        ORDER BY attempts > 0, CASE WHEN attempts = 0 THEN -event_seq ELSE
            (SELECT max(began_at) FROM attempt a WHERE a.event_seq = event_seq AND a.target = :target) END
        LIMIT :limit""",
    Turn.ARRIVAL: """SELECT d.event_seq FROM delivery d INDEXED BY delivery_open JOIN event e ON e.seq = d.event_seq
        WHERE d.target = :target AND d.state IN ('pending', 'in_flight') AND d.state = 'pending'
            AND d.attempts = 0 AND e.received_at >= :since
        ORDER BY d.event_seq DESC LIMIT :limit""",
}


async def claim(tx: Transaction, wishes: Sequence[ClaimWish]) -> list[Claimed]:
    """Claim for several callers; events that they share are read once."""
    taken: list[list[Any]] = []
    for wish in wishes:
        query = f"""UPDATE delivery SET state = 'in_flight', attempts = attempts + 1, claim = :token,
                lease_until = :lease_until
            WHERE target = :target AND state = 'pending' AND event_seq IN ({_CHOICE[wish.turn]})
            RETURNING event_seq, attempts, step, first_try_at"""
        values = {
            "token": wish.token,
            "lease_until": millis(wish.now + wish.lease),
            "target": wish.target,
            "now": millis(wish.now),
            "limit": wish.limit,
            "horizon": PROBE_HORIZON,
            "since": millis(wish.since) if wish.since else 0,
        }
        rows = list(await tx.db.execute_fetchall(query, values))
        tx.changes.moved(wish.target, _PENDING, _IN_FLIGHT, len(rows))
        taken.append(rows)
    events = await _events(tx.db, sorted({row[0] for rows in taken for row in rows}))
    scarce = [wish.target for wish, rows in zip(wishes, taken, strict=True) if len(rows) < wish.limit]
    due = await _next_due(tx.db, scarce)
    return [
        Claimed(
            tuple(_claim_from(row, wish, events, tx.health(wish.target).took_at) for row in sorted(rows)),
            due.get(wish.target),
        )
        for wish, rows in zip(wishes, taken, strict=True)
    ]


def _claim_from(row: Any, wish: ClaimWish, events: dict[int, tuple[Event, bool]], took_at: datetime | None) -> Claim:
    seq, attempt, step, first_try_at = row
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
    for part in _slices(seqs):
        query = f"""SELECT seq, size, id, source, type, received_at, verified, hops, headers,
                CASE WHEN size <= {INLINE_BODY} THEN body ELSE x'' END
            FROM event WHERE seq IN ({_marks(len(part))})"""
        for seq, size, *row in await db.execute_fetchall(query, part):
            found[seq] = (event_from(row), size > INLINE_BODY)
    return found


async def _next_due(db: aiosqlite.Connection, targets: Sequence[str]) -> dict[str, datetime]:
    due: dict[str, datetime] = {}
    for part in _slices(targets):
        query = f"""SELECT t.column1, (SELECT due_at FROM delivery d WHERE d.target = t.column1 AND d.state = 'pending'
                ORDER BY d.due_at LIMIT 1)
            FROM (VALUES {", ".join(["(?)"] * len(part))}) t"""
        for target, due_at in await db.execute_fetchall(query, part):
            at = moment(due_at)
            if at is not None:
                due[target] = at
    return due


_FENCED = "event_seq = (SELECT seq FROM event WHERE id = ?) AND target = ? AND claim = ?"


async def settle(tx: Transaction, settlements: Sequence[Settlement]) -> list[Settled]:
    """Record attempts in order, each judged by its target's health as the one before has left it."""
    held = await _held(tx.db, settlements)
    results: list[Settled] = []
    updates: list[tuple[Any, ...]] = []
    attempts: list[tuple[Any, ...]] = []
    released: dict[str, datetime] = {}
    for settlement in settlements:
        claim = settlement.claim
        seq = held.pop((claim.event.id, claim.target, claim.token), None)
        if seq is None:
            results.append(Settled(None))
            continue
        before = tx.health(claim.target)
        ruling = settlement.rule(before)
        if ruling.health is not before:
            tx.changes.health[claim.target] = ruling.health
        if ruling.releases_held:
            released[claim.target] = settlement.ended_at
        state, *row = _delivery_row(settlement, ruling)
        tx.changes.moved(claim.target, _IN_FLIGHT, state)
        updates.append((state.value, *row, seq, claim.target, claim.token))
        attempts.append(_attempt_row(seq, settlement))
        results.append(Settled(ruling, was_disabled=before.state is TargetState.DISABLED))
    await tx.db.executemany(
        """UPDATE delivery SET state = ?, due_at = ?, step = ?, settled_at = ?, outcome = ?, status = ?, reason = ?,
            first_try_at = coalesce(first_try_at, ?), claim = NULL, lease_until = NULL
        WHERE event_seq = ? AND target = ? AND claim = ?""",
        updates,
    )
    await tx.db.executemany("INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", attempts)
    for target, now in released.items():
        await release_held(tx, target, now)
    return results


async def _held(db: aiosqlite.Connection, settlements: Sequence[Settlement]) -> dict[tuple[str, str, int], int]:
    """The sequence numbers of the deliveries whose claims still hold; each is given out once."""
    held: dict[tuple[str, str, int], int] = {}
    ids = list({settlement.claim.event.id for settlement in settlements})
    for part in _slices(ids):
        query = f"""SELECT e.id, d.target, d.claim, d.event_seq FROM event e JOIN delivery d ON d.event_seq = e.seq
            WHERE e.id IN ({_marks(len(part))}) AND d.claim IS NOT NULL"""
        for id_, target, token, seq in await db.execute_fetchall(query, part):
            held[id_, target, token] = seq
    return held


def _delivery_row(settlement: Settlement, ruling: Ruling) -> tuple[Any, ...]:
    """(state, due_at, step, settled_at, outcome, status, reason, first_try_at) after a ruling.

    What a disabled target holds is due by its arrival, so that it leaves oldest first when the target is back.
    """
    claim, outcome, decision = settlement.claim, settlement.outcome, ruling.decision
    due_at, step = millis(claim.event.received_at), claim.step
    reason: str | None = outcome.reason
    settled_at: int | None = millis(settlement.ended_at)
    match decision:
        case Done():
            state, reason = DeliveryState.DELIVERED, None
        case GiveUp(reason=why):
            state, reason = DeliveryState.DEAD, why
        case RetryAt(at=at, step=next_step):
            state, step, settled_at = _PENDING, next_step, None
            if ruling.health.state is TargetState.ACTIVE:
                due_at = millis(at)
    tried = outcome.kind not in (OutcomeKind.INTERRUPTED, OutcomeKind.UNPREPARED)
    first_try_at = millis(settlement.began_at) if tried else None
    return state, due_at, step, settled_at, outcome.kind.value, outcome.status, reason, first_try_at


def _attempt_row(seq: int, settlement: Settlement) -> tuple[Any, ...]:
    claim, outcome = settlement.claim, settlement.outcome
    took = (settlement.ended_at - settlement.began_at) // timedelta(milliseconds=1)
    return (
        seq,
        claim.target,
        claim.attempt,
        millis(settlement.began_at),
        took,
        outcome.kind.value,
        outcome.status,
        outcome.reason,
        outcome.excerpt,
    )


async def release_held(tx: Transaction, target: str, now: datetime) -> None:
    """Make all that waits at a target due, by arrival: what was held leaves oldest first."""
    await tx.db.execute(
        """UPDATE delivery SET due_at = (SELECT received_at FROM event WHERE seq = event_seq)
        WHERE target = ? AND state = 'pending' AND due_at > ?""",
        (target, millis(now)),
    )


async def release(tx: Transaction, claims: Sequence[Claim]) -> None:
    """Give back claims that were never used; a number that no request carried is taken again."""
    for claim in claims:
        cursor = await tx.db.execute(
            "UPDATE delivery SET state = 'pending', attempts = attempts - 1, claim = NULL, lease_until = NULL "
            "WHERE " + _FENCED,
            (claim.event.id, claim.target, claim.token),
        )
        tx.changes.moved(claim.target, _IN_FLIGHT, _PENDING, cursor.rowcount)


async def reclaim(tx: Transaction, *, lease_before: datetime | None, alive: frozenset[int]) -> int:
    """Make due again what is claimed under leases that ended before a time (None: all), but for living claims."""
    query = "SELECT event_seq, target, claim FROM delivery WHERE state = 'in_flight'"
    if lease_before is not None:
        query += f" AND lease_until < {millis(lease_before)}"
    lost = [row for row in await tx.db.execute_fetchall(query) if row[2] not in alive]
    await tx.db.executemany(
        "UPDATE delivery SET state = 'pending', claim = NULL, lease_until = NULL "
        "WHERE event_seq = ? AND target = ? AND claim = ?",
        lost,
    )
    for _, target, _ in lost:
        tx.changes.moved(target, _IN_FLIGHT, _PENDING)
    return len(lost)


async def change_health(
    tx: Transaction, name: str, change: Callable[[TargetHealth], TargetHealth], now: datetime
) -> TargetHealth:
    """Apply a pure change to a target's health; one that enables it makes what it held due."""
    before = tx.health(name)
    after = change(before)
    tx.changes.health[name] = after
    if before.state is TargetState.DISABLED and after.state is TargetState.ACTIVE:
        await release_held(tx, name, now)
    return after


async def write_health(tx: Transaction) -> None:
    """Write the health of every target that this transaction touched, once each."""
    if tx.changes.health:
        await tx.db.executemany(HEALTH_UPSERT, [health_row(health) for health in tx.changes.health.values()])


async def erase(tx: Transaction, seqs: Sequence[int]) -> int:
    """Delete events with all that was kept of them, but for those that still have a delivery to make."""
    gone = 0
    for part in _slices(seqs):
        marks = _marks(len(part))
        open_ = f"""SELECT event_seq FROM delivery WHERE event_seq IN ({marks})
            AND state IN ('pending', 'in_flight')"""
        busy = {row[0] for row in await tx.db.execute_fetchall(open_, part)}
        free = [seq for seq in part if seq not in busy]
        marks = _marks(len(free))
        dead = f"""SELECT target, count(*) FROM delivery WHERE event_seq IN ({marks}) AND state = 'dead'
            GROUP BY target"""
        for target, number in await tx.db.execute_fetchall(dead, free):
            tx.changes.moved(target, DeliveryState.DEAD, None, number)
        for table, column in (("attempt", "event_seq"), ("delivery", "event_seq"), ("event", "seq")):
            await tx.db.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})", free)
        gone += len(free)
    return gone
