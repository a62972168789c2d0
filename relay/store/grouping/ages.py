"""Which events go: what is over by age, and how many at a time."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from relay.model import DeliveryState
from relay.store import Retention
from relay.store.grouping.rows import millis

OPEN = (DeliveryState.PENDING, DeliveryState.IN_FLIGHT)
"""What is still to be delivered: no retention deletes it."""
KEPT_AGAINST_SIZE = (*OPEN, DeliveryState.DEAD)
"""What is not deleted for want of room either."""

PRUNE_BATCH = 250
"""Events deleted in one transaction: an answer that arrives meanwhile waits for about a millisecond."""
PRUNE_BYTES = 4 * 1024 * 1024
"""Bytes of bodies after which a batch is full."""
PRUNE_SCAN = 2000
"""Events looked at at a time where the next batch full of them must stay; at first it is a batch full, of which as a
rule all may go."""
SCANS = 10
"""Looks in one call for room, so that who asks can look up meanwhile."""
COUNTED_SCANS = 500
"""Looks for a count that deletes nothing."""
OVERHEAD = 512
"""Bytes that an event takes beside its body and its headers, roughly: its rows and what stands in indexes."""
PAST_ALL = 1 << 62
"""A number that no event has."""


class Ages(NamedTuple):
    """Moments, as columns hold them: what was received up to `old` may be over by age, what has ended up to `dead` or
    `delivered` is."""

    now: int
    old: int
    dead: int
    delivered: int


def ages(retention: Retention, now: datetime) -> Ages:
    """What a retention means now."""
    return Ages(
        now=millis(now),
        old=millis(now - min(retention.delivered, retention.dead)),
        dead=millis(now - retention.dead),
        delivered=millis(now - retention.delivered),
    )


def listed(states: Sequence[DeliveryState]) -> str:
    """States as SQL's `IN` takes them."""
    return ", ".join(f"'{state.value}'" for state in states)


def batch(found: Sequence[tuple[int, int]], wanted: int = PRUNE_BYTES) -> list[int]:
    """As many of these events, by number and size, as one transaction deletes, or as make the room that is wanted."""
    taken: list[int] = []
    size = 0
    for seq, bytes_ in found[:PRUNE_BATCH]:
        if taken and size >= min(wanted, PRUNE_BYTES):
            break
        taken.append(seq)
        size += bytes_
    return taken
