"""Claiming in SQL: which deliveries of a target go next, found through the partial indexes of what waits.

Law: the cost of a claim is that of what it takes, whatever waits and whatever is kept. What another node is taking at
this moment is passed over, not waited for. A target that is well is served by all nodes at once; one that is not, and
an ordered one, by one node at a time: that is decided under the lock of its health. A node that has asked by another
health than the stored one gets nothing but that health.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from relay.model import Claim, DeliveryState, OutcomeKind, TargetHealth, TargetState, Turn
from relay.store import Claimed
from relay.store.grouping.changes import INLINE_BODY
from relay.store.grouping.rows import course_from, event_from, headers_from, millis, moment
from relay.store.grouping.wishes import ClaimWish, told_by
from relay.store.postgres.transaction import Transaction
from relay.store.postgres.types import Row

PROBE_HORIZON = 10_000
"""How many of the newest waiting deliveries are looked at when a probe is chosen."""
ARRIVAL_HORIZON = 100
"""How many of the newest waiting deliveries are looked at for one that came since the disabling."""
AGAIN = timedelta(seconds=1)
"""When to ask again for what another node has under way."""
MISSING = "its event is missing from the store"

FIRST = """SELECT event_seq, state, due_at FROM delivery
    WHERE target = {target} AND state IN ('pending', 'in_flight') ORDER BY event_seq LIMIT 1"""
"""The first by arrival of what is not over at a target."""
_BUSY = "SELECT FROM delivery b WHERE b.state = 'in_flight' AND b.target = {target}"
_NEWEST = """SELECT event_seq, attempts FROM delivery
    WHERE target = $1 AND state IN ('pending', 'in_flight') AND state = 'pending' ORDER BY event_seq DESC LIMIT"""
_LAST_TRY = """(SELECT a.began_at FROM attempt a WHERE a.event_seq = n.event_seq AND a.target = $1
    ORDER BY a.number DESC LIMIT 1)"""

_CHOICE: dict[Turn, str] = {
    Turn.DUE: """SELECT event_seq FROM delivery WHERE target = $1 AND state = 'pending' AND due_at <= $2
        ORDER BY due_at, event_seq LIMIT $3 FOR UPDATE SKIP LOCKED""",
    Turn.PROBE: f"""SELECT event_seq FROM (SELECT event_seq, attempts FROM ({_NEWEST} {PROBE_HORIZON}) w) n
        ORDER BY attempts > 0, CASE WHEN attempts = 0 THEN -event_seq ELSE {_LAST_TRY} END NULLS FIRST, event_seq
        LIMIT $3""",
    Turn.ARRIVAL: f"""SELECT n.event_seq FROM ({_NEWEST} {ARRIVAL_HORIZON}) n JOIN event e ON e.seq = n.event_seq
        WHERE n.attempts = 0 AND e.received_at >= $4 ORDER BY n.event_seq DESC LIMIT $3""",
    Turn.FIRST: f"""SELECT event_seq FROM ({FIRST.format(target="$1")}) f
        WHERE state = 'pending' AND due_at <= $2 AND NOT EXISTS ({_BUSY.format(target="$1")})""",
}
_TAKE = """WITH chosen AS ({choice})
    UPDATE delivery d SET state = 'in_flight', attempts = d.attempts + 1, claim = $5, lease_until = $6
    FROM chosen c LEFT JOIN event e ON e.seq = c.event_seq
    WHERE d.event_seq = c.event_seq AND d.target = $1 AND d.state || '' = 'pending'
        AND $2::bigint IS NOT NULL AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL
    RETURNING d.due_at, d.event_seq, d.attempts, d.step, d.first_try_at, d.replays, d.course, e.id, e.source, e.type,
        e.received_at, e.verified, e.hops, e.headers, e.sha256,
        CASE WHEN e.size <= {inline} THEN e.body END AS body"""
"""Its rows are found by their key alone: a state that is put together is that of no partial index, which a young table
makes look as good."""
TAKES = {turn: _TAKE.format(choice=choice, inline=INLINE_BODY) for turn, choice in _CHOICE.items()}


async def claim(tx: Transaction, wishes: Sequence[ClaimWish]) -> list[Claimed]:
    """Claim for several callers."""
    mine = {wish.target: tx.health(wish.target) for wish in wishes}
    await tx.read_health(mine)
    claimed: dict[int, Claimed] = {}
    for place, wish in sorted(enumerate(wishes), key=lambda one: one[1].target):
        claimed[place] = await _claim(tx, wish, mine[wish.target])
    if wishes:
        tx.changes.clock = wishes[-1].now
    tx.changes.waiting -= told_by(wishes)
    due = await _next_due(tx, [wish for place, wish in enumerate(wishes) if _is_scarce(wish, claimed[place])])
    return [_with_due(claimed[place], due.get(wish.target)) for place, wish in enumerate(wishes)]


def _is_scarce(wish: ClaimWish, claimed: Claimed) -> bool:
    return len(claimed.claims) < wish.limit and claimed.next_due_at is None


def _with_due(claimed: Claimed, due: datetime | None) -> Claimed:
    return claimed if due is None or claimed.next_due_at is not None else Claimed(claimed.claims, due)


async def _claim(tx: Transaction, wish: ClaimWish, mine: TargetHealth) -> Claimed:
    """`mine` is the health by which this node has asked."""
    alone = [_is_alone(mine, wish.now), _is_alone(tx.health(wish.target), wish.now)]
    if wish.turn is Turn.FIRST or any(alone):
        await tx.lock_health([wish.target])
        stored = tx.health(wish.target)
        if stored is not mine and (any(alone) or _is_alone(stored, wish.now)):
            tx.see(wish.target)
            return Claimed((), wish.now)
        if await _others_are_at_it(tx, wish):
            return Claimed((), wish.now + AGAIN)
    rows = await tx.rows(
        TAKES[wish.turn],
        wish.target,
        millis(wish.now),
        wish.limit,
        millis(wish.since) if wish.since else 0,
        wish.token,
        millis(wish.now + wish.lease),
    )
    tx.changes.moved(wish.target, DeliveryState.PENDING, DeliveryState.IN_FLIGHT, len(rows))
    claims = [await _made(tx, wish, row) for row in sorted(rows, key=lambda row: (row[0], row[1]))]
    return Claimed(tuple(one for one in claims if one is not None))


def _is_alone(health_: TargetHealth, now: datetime) -> bool:
    """Whether a target gets one attempt at a time."""
    throttled = health_.throttled_until is not None and now < health_.throttled_until
    return health_.state is TargetState.DISABLED or health_.paced or throttled


async def _others_are_at_it(tx: Transaction, wish: ClaimWish) -> bool:
    """Whether another node has an attempt at this target under way; our own lane knows of its own."""
    query = f"SELECT EXISTS ({_BUSY.format(target='$1')} AND b.claim >> 32 <> $2)"
    return bool((await tx.rows(query, wish.target, wish.token >> 32))[0][0])


async def _made(tx: Transaction, wish: ClaimWish, row: Row) -> Claim | None:
    """The claim on what was taken. What has lost its event can never be sent, and is dead at once."""
    _, seq, attempts, step, first_try_at, replays, course, event_id, *named, headers, sha256, body = row
    if event_id is None:
        await _bury(tx, wish, seq)
        return None
    is_whole = body is not None and hashlib.sha256(body).digest() == sha256  # else `body` tells of it
    return Claim(
        event=event_from((event_id, *named), headers_from(headers), body if is_whole else b""),
        target=wish.target,
        attempt=attempts,
        step=step,
        token=wish.token,
        lease_until=wish.now + wish.lease,
        turn=wish.turn,
        first_try_at=moment(first_try_at),
        took_at=tx.health(wish.target).took_at,
        body_deferred=not is_whole,
        replayed=bool(replays),
        course=course_from(course),
    )


async def _bury(tx: Transaction, wish: ClaimWish, seq: int) -> None:
    await tx.run(
        """UPDATE delivery SET state = 'dead', settled_at = $1, outcome = $2, status = NULL, reason = $3, claim = NULL,
            lease_until = NULL
        WHERE event_seq = $4 AND target = $5""",
        millis(wish.now),
        OutcomeKind.UNPREPARED.value,
        MISSING,
        seq,
        wish.target,
    )
    tx.changes.moved(wish.target, DeliveryState.IN_FLIGHT, DeliveryState.DEAD)


_NEXT_DUE = """SELECT t.name, (SELECT due_at FROM delivery d WHERE d.target = t.name AND d.state = 'pending'
        ORDER BY d.due_at LIMIT 1)
    FROM unnest($1::text[]) AS t (name)"""
_FIRST_DUE = f"""SELECT t.name, (SELECT due_at FROM ({FIRST.format(target="t.name")}) f
        WHERE state = 'pending' AND NOT EXISTS ({_BUSY.format(target="t.name")}))
    FROM unnest($1::text[]) AS t (name)"""
"""When the first delivery of each ordered target falls due; nothing where something is under way there."""


async def _next_due(tx: Transaction, wishes: Sequence[ClaimWish]) -> dict[str, datetime]:
    due: dict[str, datetime] = {}
    for query, named in (
        (_NEXT_DUE, [wish.target for wish in wishes if wish.turn is not Turn.FIRST]),
        (_FIRST_DUE, [wish.target for wish in wishes if wish.turn is Turn.FIRST]),
    ):
        if named:
            found: Any = await tx.rows(query, named)
            due |= {target: at for target, due_at in found if (at := moment(due_at)) is not None}
    return due
