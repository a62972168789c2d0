"""The verbs in SQL, each for a whole batch: few statements a transaction, however many callers.

Law: every function here runs inside the writer's transaction, returns its results and leaves what it changed in
`Changes`; nothing is told to anyone before the commit.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from relay.model import (
    Claim,
    DeliveryState,
    TargetHealth,
)
from relay.store import Accepted, LongestWaits, Settled, Settlement
from relay.store.grouping.changes import INLINE_BODY
from relay.store.grouping.handing import Handed
from relay.store.grouping.rows import course_text, dedupe_digest, event_row, health_row, millis
from relay.store.grouping.settling import is_to_release, recorded
from relay.store.grouping.wishes import AcceptWish, Handing
from relay.store.sqlite.releasing import release_held
from relay.store.sqlite.statements import ATTEMPT_INSERT, EVENT_INSERT, HEALTH_UPSERT, HEARD_UPSERT, TALLY_UPSERT
from relay.store.sqlite.transaction import Transaction, in_one_row, marks, slices

_PENDING, _IN_FLIGHT, _DELIVERED = DeliveryState.PENDING, DeliveryState.IN_FLIGHT, DeliveryState.DELIVERED


def accept(tx: Transaction, wishes: Sequence[AcceptWish], handing: Handing | None = None) -> list[Accepted]:
    """Store events and their deliveries; a known dedupe key stores nothing and names the first event. What is claimed
    by this stands in `Changes.handed`."""
    changes = tx.changes
    handed = Handed(tx, changes, handing, wishes)
    keys = [wish.event.dedupe_key and dedupe_digest(wish.event.source, wish.event.dedupe_key) for wish in wishes]
    known = _known_events(tx.db, [key for key in keys if key])
    results: list[Accepted] = []
    events: list[tuple[Any, ...]] = []
    deliveries: list[tuple[Any, ...]] = []
    for wish, key in zip(wishes, keys, strict=True):
        event, courses = wish.event, wish.courses
        received_at = millis(event.received_at)
        changes.hear(event.source, event.received_at)
        sha256 = hashlib.sha256(event.body).digest()
        first = known.get(key) if key else None
        if first is not None:
            changes.tell("source", event.source, "duplicate", received_at)
            results.append(Accepted(first[0], duplicate=True, same_body=first[1] == sha256))
            continue
        if key:
            known[key] = (event.id, sha256)
        seq = tx.ledger.next_seq
        tx.ledger.next_seq += 1
        events.append(event_row(seq, event, key or None, sha256))
        if len(event.body) <= INLINE_BODY:
            changes.events[seq] = event
        for target in wish.targets:
            course = courses.get(target, ())
            claim = handed.claim(event, target, course)
            row = (seq, target, received_at, course_text(course))
            if claim is None:
                deliveries.append((*row, "pending", 0, None, None))
                changes.moved(target, None, _PENDING)
                changes.waiting.add(target)
            else:
                deliveries.append((*row, "in_flight", 1, claim.token, handed.until[target]))
                changes.moved(target, None, _IN_FLIGHT)
        changes.tell("source", event.source, "accepted" if wish.targets else "unrouted", received_at)
        results.append(Accepted(event.id, duplicate=False))
    tx.write(EVENT_INSERT, events)
    tx.write(_DELIVERY_INSERT, deliveries)
    return results


_DELIVERY_INSERT = """INSERT INTO delivery
        (event_seq, target, due_at, course, state, attempts, claim, lease_until)
    VALUES {rows}"""


def _known_events(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]:
    known: dict[bytes, tuple[str, bytes]] = {}
    for part in slices(keys):
        query = f"SELECT dedupe, id, sha256 FROM event WHERE dedupe IN ({marks(len(part))})"
        known.update({key: (id_, sha) for key, id_, sha in db.execute(query, part)})
    return known


_FENCED = "event_seq = (SELECT seq FROM event WHERE id = ?) AND target = ? AND claim = ?"


def settle(tx: Transaction, settlements: Sequence[Settlement]) -> list[Settled]:
    """Record attempts in order, each judged by its target's health as the one before has left it."""
    held = _held(tx.db, settlements)
    results: list[Settled] = []
    updates: list[tuple[Any, ...]] = []
    attempts: list[tuple[Any, ...]] = []
    for settlement in settlements:
        claim = settlement.claim
        seq = held.pop((claim.event.id, claim.target, claim.token), None)
        if seq is None:
            results.append(Settled(None))
            continue
        one = recorded(tx, seq, settlement)
        results.append(one.settled)
        updates.append(one.row)
        if one.attempt is not None:
            attempts.append(one.attempt)
        if one.releases_held:  # what this batch settled before is held too, what follows is not
            tx.write(_SETTLE, updates)
            updates = []
            release_held(tx, claim.target)
    tx.write(_SETTLE, updates)
    tx.write(ATTEMPT_INSERT, attempts)
    return results


_SETTLE = """INSERT INTO delivery
        (state, due_at, step, settled_at, outcome, status, reason, first_try_at, attempts, event_seq, target)
    VALUES {rows}
    ON CONFLICT DO UPDATE SET state = excluded.state, due_at = excluded.due_at, step = excluded.step,
        settled_at = excluded.settled_at, outcome = excluded.outcome, status = excluded.status,
        reason = excluded.reason, first_try_at = coalesce(first_try_at, excluded.first_try_at),
        attempts = excluded.attempts, claim = NULL, lease_until = NULL"""
"""The rows are there: their claims hold. An `UPDATE` from a list of values would copy that list twice."""


def _held(db: sqlite3.Connection, settlements: Sequence[Settlement]) -> dict[tuple[str, str, int], int]:
    """The sequence numbers of the deliveries whose claims still hold; each is given out once. This is the fence: nobody
    else writes before the transaction ends, so what holds here holds to its end."""
    held: dict[tuple[str, str, int], int] = {}
    ids = list({settlement.claim.event.id for settlement in settlements})
    for part in slices(ids):
        query = f"""SELECT e.id, d.target, d.claim, d.event_seq FROM event e JOIN delivery d ON d.event_seq = e.seq
            WHERE e.id IN ({marks(len(part))}) AND d.claim IS NOT NULL"""
        for id_, target, token, seq in in_one_row(db, query, 4, part):
            held[id_, target, token] = seq
    return held


def release(tx: Transaction, claims: Sequence[Claim]) -> None:
    """Give back claims that were never used; a number that no request carried is taken again."""
    for claim in claims:
        cursor = tx.db.execute(
            "UPDATE delivery SET state = 'pending', attempts = attempts - 1, claim = NULL, lease_until = NULL "
            "WHERE " + _FENCED,
            (claim.event.id, claim.target, claim.token),
        )
        tx.changes.moved(claim.target, _IN_FLIGHT, _PENDING, cursor.rowcount)


def reclaim(tx: Transaction, *, lease_before: datetime | None, alive: frozenset[int]) -> int:
    """Make due again what is claimed under leases that ended before a time (None: all), but for living claims."""
    query = "SELECT event_seq, target, claim FROM delivery WHERE state = 'in_flight'"
    if lease_before is not None:
        query += f" AND lease_until < {millis(lease_before)}"
    lost = [row for row in tx.db.execute(query) if row[2] not in alive]
    tx.db.executemany(
        "UPDATE delivery SET state = 'pending', claim = NULL, lease_until = NULL WHERE event_seq = ? AND target = ?",
        [row[:2] for row in lost],
    )
    for _, target, _ in lost:
        tx.changes.moved(target, _IN_FLIGHT, _PENDING)
    return len(lost)


_SHORTEN = """UPDATE delivery SET due_at = :now + bound FROM (
        SELECT event_seq AS seq, CASE WHEN outcome IN ('throttled', 'interrupted') THEN :asked
            ELSE coalesce((SELECT value FROM json_each(:by_step) WHERE key = step), :last) END AS bound
        FROM delivery WHERE target = :target AND state = 'pending' AND due_at > :now)
    WHERE event_seq = seq AND target = :target AND due_at > :now + bound"""


def shorten_waits(tx: Transaction, longest: Mapping[str, LongestWaits], *, now: datetime) -> int:
    """Let no pending delivery of these targets be due later than it may be. What is claimed was due when it was."""
    number = 0
    for target, waits in longest.items():
        by_step = [wait // timedelta(milliseconds=1) for wait in waits.by_step]
        values = {
            "target": target,
            "now": millis(now),
            "asked": waits.asked // timedelta(milliseconds=1),
            "by_step": json.dumps(by_step),
            "last": by_step[-1],
        }
        number += tx.db.execute(_SHORTEN, values).rowcount
    claimed = "UPDATE delivery SET due_at = :now WHERE state = 'in_flight' AND due_at > :now"
    number += tx.db.execute(claimed, {"now": millis(now)}).rowcount
    tx.db.execute("UPDATE heard SET at = :now WHERE at > :now", {"now": millis(now)})
    tx.changes.heard_by = tx.changes.clock = now
    return number


def change_health(tx: Transaction, name: str, change: Callable[[TargetHealth], TargetHealth]) -> TargetHealth:
    """Apply a pure change to a target's health; one that enables it makes what it held due, and so does another
    config of a disabled target: its next probe is for that."""
    before = tx.health(name)
    after = change(before)
    tx.changes.health[name] = after
    if is_to_release(before, after):
        release_held(tx, name)
    return after


def write_health(tx: Transaction) -> None:
    """Write the health of every target that this transaction touched, once each."""
    if tx.changes.health:
        tx.write(HEALTH_UPSERT, [health_row(health) for health in tx.changes.health.values()])


def write_heard(tx: Transaction) -> None:
    """Keep when the sources of this transaction were heard, in one statement for all of them."""
    if tx.changes.heard:
        heard = {source: millis(at) for source, at in tx.changes.heard.items()}
        tx.db.execute(HEARD_UPSERT, (json.dumps(heard),))


def write_tally(tx: Transaction) -> None:
    """Add what this transaction has counted to the tally of its minutes, and to that of all time."""
    tally = tx.changes.tally.items()
    tx.write(TALLY_UPSERT, [(at, *what, number) for (minute, *what), number in tally for at in (minute, 0)])
