"""How many connections each listener may hold, and which descriptors are never theirs.

Law: what the relay itself needs comes first: whoever floods it with connections takes none of the descriptors by which
it stores, delivers, logs and is asked how it stands.
"""

from collections.abc import Iterable
from dataclasses import dataclass

OWN_DESCRIPTORS = 36
"""What the process, the store, the log, a backup, a reload and both ports take."""
PER_PEER = 4
"""What a target or an enricher takes beside its requests: the ways to its name server."""
FEWEST_HOOKS, FEWEST_ADMIN = 8, 4
"""Connections that each listener must be able to hold, or the relay is of no use."""
MOST_ADMIN = 128
_SHARE_OF_ADMIN = 4
_REFUSED_AT_ONCE = 32
"""Connections beyond what is served that are told so at a time; what comes on top of them waits at the port."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections a listener may hold."""

    served: int
    refused: int
    """On top of those, how many are told that there are too many."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The room of both listeners."""

    hooks: Room
    admin: Room


def descriptors_for(requests: Iterable[int]) -> int:
    """What targets and enricher take, given how many requests each may have under way."""
    return sum(number + PER_PEER for number in requests)


def descriptors_needed(requests: Iterable[int]) -> int:
    """The fewest that a process must be allowed to open."""
    return OWN_DESCRIPTORS + FEWEST_HOOKS + FEWEST_ADMIN + descriptors_for(requests)


def rooms(limit: int | None, requests: Iterable[int], most: int) -> Rooms:
    """Share what is left.

    Args:
        limit: how many descriptors the process may open; None is any number.
        requests: how many requests each target and enricher may have under way.
        most: how many connections the config lets the public listener hold.
    """
    if limit is None:
        return Rooms(_room(most), _room(MOST_ADMIN))
    left = max(limit - OWN_DESCRIPTORS - descriptors_for(requests), FEWEST_HOOKS + FEWEST_ADMIN)
    admin = min(MOST_ADMIN, max(FEWEST_ADMIN, left // _SHARE_OF_ADMIN))
    return Rooms(_room(min(most, left - admin)), _room(admin))


def _room(number: int) -> Room:
    refused = min(_REFUSED_AT_ONCE, max(1, number // 8))
    return Room(max(1, number - refused), refused)
