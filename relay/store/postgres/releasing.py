"""Making due what a disabled target held, in parts: a million of them must not keep one answer waiting.

Law: oldest first, so that what is claimed between two parts, by whatever node, is older than what follows. A part looks
at no more than `RELEASE` deliveries; the node that enabled the target keeps where to go on, and goes on until all is
done. What a kill cuts off waits for its own step.
"""

from relay.store.grouping.changes import Rest
from relay.store.grouping.rows import millis
from relay.store.postgres.transaction import Transaction

RELEASE = 10_000
"""Waiting deliveries looked at in one transaction."""

_LOOKED_AT = f"""SELECT event_seq, state = 'pending' AND attempts + replays > 0 FROM delivery
    WHERE target = $1 AND state IN ('pending', 'in_flight') AND event_seq > $2 AND event_seq <= $3
    ORDER BY event_seq LIMIT {RELEASE}"""
# Those that somebody has claimed since they were looked at are left out by the lock.
_RELEASE = """WITH held AS MATERIALIZED (
        SELECT event_seq FROM delivery WHERE event_seq = ANY($1::bigint[]) AND target = $2 AND state = 'pending'
        ORDER BY event_seq FOR UPDATE)
    UPDATE delivery d SET due_at = least($3, e.received_at) FROM held h JOIN event e ON e.seq = h.event_seq
    WHERE d.event_seq = h.event_seq AND d.target = $2"""


async def release_held(tx: Transaction, target: str) -> None:
    """Make all that waits at a target due, by arrival: what was held leaves oldest first. Its health is locked.

    What was never tried nor replayed is due by its arrival already; the rest waits at a place of its schedule.
    """
    ((last,),) = await tx.rows("SELECT coalesce(max(seq), 0) FROM event")
    await _release(tx, target, Rest(0, last))


async def release_rest(tx: Transaction, target: str) -> None:
    """The next part, where there is one."""
    rest = tx.rest(target)
    if rest is not None:
        await _release(tx, target, rest)


async def _release(tx: Transaction, target: str, rest: Rest) -> None:
    latest = (1 << 62) if tx.known.clock is None else millis(tx.known.clock)
    rows = await tx.rows(_LOOKED_AT, target, rest.after, rest.last)
    held = [seq for seq, is_held in rows if is_held and seq not in rest.spared]
    if held:
        await tx.run(_RELEASE, held, target, latest)
    tx.changes.rests[target] = Rest(rows[-1][0], rest.last, rest.spared) if len(rows) == RELEASE else None
