"""Making due what a disabled target held, in parts: a million of them must not keep one answer waiting.

Law: oldest first, so that what is claimed between two parts is older than what follows. A part looks at no more than
`RELEASE` deliveries; the ledger keeps where to go on, and the writer goes on until all is done. What a kill cuts off
waits for its own step.
"""

from relay.store.grouping.changes import Rest
from relay.store.grouping.rows import millis
from relay.store.sqlite.transaction import Transaction

RELEASE = 10_000
"""Waiting deliveries looked at in one transaction."""


def release_held(tx: Transaction, target: str) -> None:
    """Make all that waits at a target due, by arrival: what was held leaves oldest first.

    What was never tried nor replayed is due by its arrival already; the rest waits at a place of its schedule.
    """
    _release(tx, target, Rest(0, tx.ledger.next_seq - 1))


def release_rest(tx: Transaction, target: str) -> None:
    """The next part, where there is one."""
    rest = tx.rest(target)
    if rest is not None:
        _release(tx, target, rest)


def _release(tx: Transaction, target: str, rest: Rest) -> None:
    query = f"""SELECT event_seq, state = 'pending' AND attempts + replays > 0 FROM delivery INDEXED BY delivery_open
        WHERE target = ? AND state IN ('pending', 'in_flight') AND event_seq > ? AND event_seq <= ?
        ORDER BY event_seq LIMIT {RELEASE}"""
    latest = (1 << 62) if tx.ledger.clock is None else millis(tx.ledger.clock)
    rows = list(tx.db.execute(query, (target, rest.after, rest.last)))
    tx.db.executemany(
        """UPDATE delivery SET due_at = min(?, coalesce((SELECT received_at FROM event WHERE seq = event_seq), due_at))
        WHERE event_seq = ? AND target = ?""",
        [(latest, seq, target) for seq, is_held in rows if is_held and seq not in rest.spared],
    )
    tx.changes.rests[target] = Rest(rows[-1][0], rest.last, rest.spared) if len(rows) == RELEASE else None
