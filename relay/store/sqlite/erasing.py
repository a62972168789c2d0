"""Deleting events with all that was kept of them; the only statements that do.

Law: what is decided on the reading side is judged again here, inside the transaction: an event that has become busy is
spared. The kept counts follow every row that goes, and nothing that is remembered hands it out again.
"""

from collections.abc import Sequence

from relay.model import DeliveryState
from relay.store.grouping.ages import listed
from relay.store.grouping.changes import COUNTED
from relay.store.sqlite.transaction import Transaction, marks, slices


def erase_ended(tx: Transaction, seqs: Sequence[int], *, sparing: Sequence[DeliveryState]) -> int:
    """Delete events, but for those with a delivery in one of these states; return how many went."""
    gone = 0
    for part in slices(seqs):
        spared = f"""SELECT event_seq FROM delivery WHERE event_seq IN ({marks(len(part))})
            AND state IN ({listed(sparing)})"""
        busy = {row[0] for row in tx.db.execute(spared, part)}
        free = [seq for seq in part if seq not in busy]
        _delete(tx, free)
        gone += len(free)
    return gone


def erase_event(tx: Transaction, event_id: str) -> int | None:
    """Delete one event whatever is still to be done with it, its bytes overwritten; return how many deliveries went
    with it, None where there is no such event.

    A claim on it is lost by that: its settlement finds no delivery and changes nothing. A replay that has it still to
    come finds it gone when its turn comes, and counts it as skipped.
    """
    row = tx.db.execute("SELECT seq FROM event WHERE id = ?", (event_id,)).fetchone()
    if row is None:
        return None
    (number,) = tx.db.execute("SELECT count(*) FROM delivery WHERE event_seq = ?", row).fetchone()
    ((before,),) = tx.db.execute("PRAGMA secure_delete").fetchall()
    tx.db.execute("PRAGMA secure_delete=ON")
    try:
        _delete(tx, row)
    finally:
        tx.db.execute(f"PRAGMA secure_delete={('OFF', 'ON', 'FAST')[before]}")
    return int(number)


def _delete(tx: Transaction, seqs: Sequence[int]) -> None:
    among = f"IN ({marks(len(seqs))})"
    query = f"""SELECT target, state, count(*) FROM delivery WHERE event_seq {among} AND state IN ({listed(COUNTED)})
        GROUP BY target, state"""
    for target, state, number in tx.db.execute(query, seqs).fetchall():
        tx.changes.moved(target, DeliveryState(state), None, number)
    for table in ("attempt", "delivery", "rerouted", "brought"):
        tx.db.execute(f"DELETE FROM {table} WHERE event_seq {among}", seqs)
    tx.db.execute(f"DELETE FROM event WHERE seq {among}", seqs)
    tx.changes.erased.update(seqs)
