"""The verbs in SQL, each for a whole batch: few statements a transaction, however many callers.

Law: every function here runs inside the writer's transaction, returns its results and leaves what it changed in
`Changes`; nothing is told to anyone before the commit. Rows are locked in the order in which every node locks them:
the health of targets by name, then deliveries by event and target. What other transactions have changed meanwhile is
judged by the rows as they are locked.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import starmap
from typing import Any

from relay.model import Claim, DeliveryState, TargetHealth
from relay.store import Accepted, LongestWaits, Settled, Settlement, StoreUnavailable
from relay.store.grouping.ages import OVERHEAD
from relay.store.grouping.changes import INLINE_BODY
from relay.store.grouping.handing import Handed
from relay.store.grouping.rows import course_text, dedupe_digest, event_row, millis
from relay.store.grouping.settling import is_to_release, recorded
from relay.store.grouping.wishes import AcceptWish, Handing
from relay.store.postgres.node import ROOM
from relay.store.postgres.releasing import release_held
from relay.store.postgres.texts import storable
from relay.store.postgres.transaction import Transaction

PENDING, IN_FLIGHT = DeliveryState.PENDING, DeliveryState.IN_FLIGHT

_EVENT_INSERT = """INSERT INTO event (seq, id, source, type, received_at, verified, hops, dedupe, headers, size, sha256,
        body, routes, failed_conditions)
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bool[], $7::int[],
        $8::bytea[], $9::text[], $10::int[], $11::bytea[], $12::bytea[], $13::text[], $14::text[])
    ON CONFLICT (dedupe) WHERE dedupe IS NOT NULL DO NOTHING RETURNING seq"""
_DELIVERY_INSERT = """INSERT INTO delivery (event_seq, target, due_at, course, state, attempts, claim, lease_until)
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::int[], $7::bigint[],
        $8::bigint[])"""

_Key = bytes | None


async def accept(tx: Transaction, wishes: Sequence[AcceptWish], handing: Handing | None = None) -> list[Accepted]:
    """Store events and their deliveries; a known dedupe key stores nothing and names the first event. What is claimed
    by this stands in `Changes.handed`."""
    if handing is not None:
        await tx.read_health(handing.bids)
    handed = Handed(tx, tx.changes, handing, wishes)
    keys = [_key(wish) for wish in wishes]
    digests = [hashlib.sha256(wish.event.body).digest() for wish in wishes]
    firsts: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        if key is not None:
            firsts.setdefault(key, place)
    new = [place for place, key in enumerate(keys) if key is None or firsts[key] == place]
    numbers = dict(zip(new, await tx.numbers("event", len(new)), strict=True))
    stored = await _stored(tx, [_row(numbers[place], wishes[place], keys[place], digests[place]) for place in new])
    known = await _known(tx, [key for place in new if numbers[place] not in stored and (key := keys[place])])
    results: list[Accepted] = []
    deliveries: list[tuple[Any, ...]] = []
    for place, (wish, key) in enumerate(zip(wishes, keys, strict=True)):
        event = wish.event
        tx.changes.hear(event.source, event.received_at)
        if numbers.get(place) not in stored:
            first_id, sha256 = known[key or b""]
            tx.changes.tell("source", event.source, "duplicate", millis(event.received_at))
            results.append(Accepted(first_id, duplicate=True, same_body=sha256 == digests[place]))
            continue
        if key is not None:
            known[key] = (event.id, digests[place])
        deliveries += _deliveries(tx, wish, numbers[place], handed)
        tx.changes.room += len(event.body) + OVERHEAD
        result = "accepted" if wish.targets else "unrouted"
        tx.changes.tell("source", event.source, result, millis(event.received_at))
        results.append(Accepted(event.id, duplicate=False))
    await tx.write(_DELIVERY_INSERT, deliveries)
    return results


def _key(wish: AcceptWish) -> _Key:
    return dedupe_digest(wish.event.source, wish.event.dedupe_key) if wish.event.dedupe_key else None


def _row(number: int, wish: AcceptWish, key: _Key, sha256: bytes) -> tuple[Any, ...]:
    *named, verified, hops, dedupe, headers, size, sha, body, routes, failed = event_row(
        number, wish.event, key, sha256
    )
    return *named, bool(verified), hops, dedupe, headers, size, sha, body, routes, failed


async def _stored(tx: Transaction, rows: Sequence[tuple[Any, ...]]) -> set[int]:
    """Insert events; the numbers of those whose key was new. They wait for one another by their keys in one order."""
    if not rows:
        return set()
    ordered = sorted(rows, key=lambda row: row[7] or b"")
    columns = map(list, zip(*ordered, strict=True))
    return {row[0] for row in await tx.rows(_EVENT_INSERT, *columns)}


async def _known(tx: Transaction, keys: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]:
    """The first events of these keys. One that was deleted between two statements makes the sender come again."""
    if not keys:
        return {}
    query = "SELECT dedupe, id, sha256 FROM event WHERE dedupe = ANY($1::bytea[])"
    found = {bytes(key): (id_, bytes(sha256)) for key, id_, sha256 in await tx.rows(query, list(keys))}
    if len(found) < len(set(keys)):
        raise StoreUnavailable("the first event of a dedupe key was deleted at this moment")
    return found


def _deliveries(tx: Transaction, wish: AcceptWish, seq: int, handed: Handed) -> list[tuple[Any, ...]]:
    """The rows of an event's deliveries, claimed where that was bid for."""
    event = wish.event
    if len(event.body) <= INLINE_BODY:
        tx.changes.events[seq] = event
    rows: list[tuple[Any, ...]] = []
    for target in wish.targets:
        course = wish.courses.get(target, ())
        claim = handed.claim(event, target, course)
        row = (seq, target, millis(event.received_at), course_text(course))
        if claim is None:
            rows.append((*row, "pending", 0, None, None))
            tx.changes.moved(target, None, PENDING)
            tx.changes.waiting.add(target)
        else:
            rows.append((*row, "in_flight", 1, claim.token, handed.until[target]))
            tx.changes.moved(target, None, IN_FLIGHT)
    return rows


_HELD = """SELECT e.id, d.target, d.claim, d.event_seq FROM event e JOIN delivery d ON d.event_seq = e.seq
    WHERE e.id = ANY($1::text[]) AND d.claim = ANY($2::bigint[]) ORDER BY d.event_seq, d.target FOR UPDATE OF d"""
"""This is the fence: who holds the row holds the claim that stands in it to the end of the transaction."""
_SETTLE = """UPDATE delivery d SET state = r.state, due_at = r.due_at, step = r.step, settled_at = r.settled_at,
        outcome = r.outcome, status = r.status, reason = r.reason,
        first_try_at = coalesce(d.first_try_at, r.first_try_at), attempts = r.attempts, claim = NULL, lease_until = NULL
    FROM unnest($1::text[], $2::bigint[], $3::int[], $4::bigint[], $5::text[], $6::int[], $7::text[], $8::bigint[],
        $9::int[], $10::bigint[], $11::text[])
        AS r (state, due_at, step, settled_at, outcome, status, reason, first_try_at, attempts, event_seq, target)
    WHERE d.event_seq = r.event_seq AND d.target = r.target"""
_ATTEMPT_INSERT = """INSERT INTO attempt
        (seq, event_seq, target, number, began_at, duration_ms, outcome, status, reason, excerpt)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::int[], $5::bigint[], $6::bigint[], $7::text[],
        $8::int[], $9::text[], $10::text[])"""


async def settle(tx: Transaction, settlements: Sequence[Settlement]) -> list[Settled]:
    """Record attempts in order, each judged by its target's health as the one before has left it."""
    await tx.lock_health(settlement.claim.target for settlement in settlements)
    held = await _held(tx, [settlement.claim for settlement in settlements])
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
        *row, reason, first_try_at, number, _, target = one.row
        updates.append((*row, reason and storable(reason), first_try_at, number, seq, target))
        if one.attempt is not None:
            *row, why, excerpt = one.attempt
            attempts.append((*row, storable(why), storable(excerpt)))
        if one.releases_held:  # what this batch settled before is held too, what follows is not
            await tx.write(_SETTLE, updates)
            updates = []
            await release_held(tx, claim.target)
    await tx.write(_SETTLE, updates)
    numbers = await tx.numbers("attempt", len(attempts)) if attempts else ()
    await tx.write(_ATTEMPT_INSERT, [(number, *row) for number, row in zip(numbers, attempts, strict=True)])
    return results


async def _held(tx: Transaction, claims: Sequence[Claim]) -> dict[tuple[str, str, int], int]:
    """The numbers of the events whose deliveries are held by these claims, locked; each is given out once."""
    ids, tokens = {claim.event.id for claim in claims}, {claim.token for claim in claims}
    return {(id_, target, token): seq for id_, target, token, seq in await tx.rows(_HELD, list(ids), list(tokens))}


async def release(tx: Transaction, claims: Sequence[Claim]) -> None:
    """Give back claims that were never used; a number that no request carried is taken again."""
    held = await _held(tx, claims)
    rows = [
        key for claim in claims if (seq := held.pop(_name(claim), None)) is not None for key in [(seq, claim.target)]
    ]
    await tx.write(
        """UPDATE delivery d SET state = 'pending', attempts = d.attempts - 1, claim = NULL, lease_until = NULL
        FROM unnest($1::bigint[], $2::text[]) AS r (event_seq, target)
        WHERE d.event_seq = r.event_seq AND d.target = r.target""",
        rows,
    )
    for _, target in rows:
        tx.changes.moved(target, IN_FLIGHT, PENDING)


def _name(claim: Claim) -> tuple[str, str, int]:
    return claim.event.id, claim.target, claim.token


async def reclaim(tx: Transaction, *, lease_before: datetime, alive: frozenset[int]) -> int:
    """Make due again what is claimed under leases that ended before a time, by whatever node, but for claims that are
    alive here."""
    lost = await tx.rows(
        """WITH lost AS (
            SELECT event_seq, target FROM delivery
            WHERE state = 'in_flight' AND lease_until < $1 AND NOT claim = ANY($2::bigint[])
            ORDER BY event_seq, target FOR UPDATE SKIP LOCKED)
        UPDATE delivery d SET state = 'pending', claim = NULL, lease_until = NULL FROM lost
        WHERE d.event_seq = lost.event_seq AND d.target = lost.target RETURNING d.target""",
        millis(lease_before),
        list(alive),
    )
    for (target,) in lost:
        tx.changes.moved(target, IN_FLIGHT, PENDING)
    return len(lost)


_SHORTEN = """UPDATE delivery d SET due_at = $2 + w.bound FROM (
        SELECT event_seq, CASE WHEN outcome IN ('throttled', 'interrupted') THEN $3
            ELSE coalesce(($4::bigint[])[step + 1], $5) END AS bound
        FROM delivery WHERE target = $1 AND state = 'pending' AND due_at > $2 ORDER BY event_seq FOR UPDATE) w
    WHERE d.event_seq = w.event_seq AND d.target = $1 AND d.due_at > $2 + w.bound"""


async def shorten_waits(tx: Transaction, longest: Mapping[str, LongestWaits], *, now: datetime) -> int:
    """Let no pending delivery of these targets be due later than it may be. What is claimed was due when it was."""
    number, at = 0, millis(now)
    for target, waits in sorted(longest.items()):
        by_step = [wait // timedelta(milliseconds=1) for wait in waits.by_step]
        asked = waits.asked // timedelta(milliseconds=1)
        number += await tx.run(_SHORTEN, target, at, asked, by_step, by_step[-1])
    number += await tx.run("UPDATE delivery SET due_at = $1 WHERE state = 'in_flight' AND due_at > $1", at)
    await tx.run("UPDATE heard SET at = $1 WHERE at > $1", at)
    tx.changes.heard_by = tx.changes.clock = now
    return number


async def change_healths(
    tx: Transaction, changes: Mapping[str, Callable[[TargetHealth], TargetHealth]]
) -> dict[str, TargetHealth]:
    """Apply pure changes to the healths of targets; what follows for what they hold, see `is_to_release`."""
    await tx.lock_health(changes)
    found: dict[str, TargetHealth] = {}
    for name, change in changes.items():
        before = tx.health(name)
        found[name] = tx.changes.health[name] = change(before)
        if is_to_release(before, found[name]):
            await release_held(tx, name)
    return found


_SUMS = """WITH counts AS (
        INSERT INTO counted (node, target, state, number)
        SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[])
        ON CONFLICT (target, state, node) DO UPDATE SET number = counted.number + excluded.number),
    heard AS (
        INSERT INTO heard (node, source, at) SELECT $1, * FROM unnest($5::text[], $6::bigint[])
        ON CONFLICT (source, node) DO UPDATE SET at = greatest(heard.at, excluded.at))
    INSERT INTO tally (node, minute, kind, name, what, number)
    SELECT $1, * FROM unnest($7::bigint[], $8::text[], $9::text[], $10::text[], $11::bigint[])
    ON CONFLICT (minute, kind, name, what, node) DO UPDATE SET number = tally.number + excluded.number"""


async def write_sums(tx: Transaction) -> None:
    """Add what this transaction has counted and heard to this node's part of it, in one statement."""
    changes = tx.changes
    counts = sorted((target, str(state), number) for (target, state), number in changes.counts.items() if number)
    counts += [("", ROOM, changes.room)] if changes.room else []
    heard = sorted((source, millis(at)) for source, at in changes.heard.items())
    ever: Counter[tuple[str, str, str]] = Counter()
    for (_, *key), number in changes.tally.items():
        kind, name, what = key
        ever[kind, name, what] += number
    tally = sorted([(*key, number) for key, number in changes.tally.items()] + [(0, *k, n) for k, n in ever.items()])
    if counts or heard or tally:
        columns = (*_columns(counts, 3), *_columns(heard, 2), *_columns(tally, 5))
        await tx.run(_SUMS, tx.known.node, *columns)


def _columns(rows: Sequence[tuple[Any, ...]], number: int) -> list[list[Any]]:
    return list(starmap(lambda *column: [*column], zip(*rows, strict=True))) if rows else [[] for _ in range(number)]
