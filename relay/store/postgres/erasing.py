"""Deleting events with all that was kept of them; the only statements that do.

Law: what is decided on the reading side is judged again here, once the event and its deliveries are locked: an event
that has become busy is spared, whichever node made it so. Events are locked before deliveries, each in their order. Who
makes a delivery for a stored event, or keeps something else of one, holds that event by a lock of its own, so that
nothing is left of what is gone. The kept counts follow every row that goes.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from relay.model import DeliveryState
from relay.store.grouping.ages import OVERHEAD
from relay.store.grouping.changes import COUNTED
from relay.store.postgres.transaction import Transaction
from relay.store.postgres.types import Row

_EVENTS = "SELECT seq FROM event WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE"
_DELIVERIES = """SELECT event_seq, target, state FROM delivery WHERE event_seq = ANY($1::bigint[])
    ORDER BY event_seq, target FOR UPDATE"""


async def erase_ended(tx: Transaction, seqs: Sequence[int], *, sparing: Collection[DeliveryState]) -> int:
    """Delete events, but for those with a delivery in one of these states; return how many went. What another node has
    deleted meanwhile is not counted."""
    found = [seq for (seq,) in await tx.rows(_EVENTS, list(seqs))]
    deliveries = await tx.rows(_DELIVERIES, found)
    spared = {seq for seq, _, state in deliveries if state in sparing}
    free = [seq for seq in found if seq not in spared]
    await _delete(tx, free, [row for row in deliveries if row[0] not in spared])
    return len(free)


async def erase_event(tx: Transaction, event_id: str) -> int | None:
    """Delete one event whatever is still to be done with it; return how many deliveries went with it, None where there
    is no such event.

    A claim on it is lost by that: its settlement finds no delivery and changes nothing. A replay that has it still to
    come finds it gone when its turn comes, and counts it as skipped.
    """
    found = await tx.rows("SELECT seq FROM event WHERE id = $1 FOR UPDATE", event_id)
    if not found:
        return None
    seqs = [seq for (seq,) in found]
    deliveries = await tx.rows(_DELIVERIES, seqs)
    await _delete(tx, seqs, deliveries)
    return len(deliveries)


async def _delete(tx: Transaction, seqs: Sequence[int], deliveries: Sequence[Row]) -> None:
    """Delete events and their deliveries, all of which are locked."""
    if not seqs:
        return
    gone = Counter((target, DeliveryState(state)) for _, target, state in deliveries)
    for (target, state), number in gone.items():
        if state in COUNTED:
            tx.changes.moved(target, state, None, number)
    for table in ("attempt", "delivery", "rerouted", "brought"):
        await tx.run(f"DELETE FROM {table} WHERE event_seq = ANY($1::bigint[])", seqs)
    sizes = await tx.rows("DELETE FROM event WHERE seq = ANY($1::bigint[]) RETURNING size", seqs)
    tx.changes.room -= sum(size + OVERHEAD for (size,) in sizes)
    tx.changes.erased.update(seqs)
