"""What follows from how full a store is: deleting the oldest, refusing what is new, telling somebody.

Law: pure. Every state is left at another mark than it was entered at, so that a store that hovers about one mark does
not change its mind each second.
"""

from dataclasses import dataclass

NEAR, NEAR_NO_MORE = 80, 75
"""Percent of the limit from which on somebody is told, and below which telling again is due."""
PRUNE, PRUNED = 90, 85
"""Percent from which on the oldest that may go are deleted, and below which that is enough."""
REFUSE, TAKE = 95, 93
"""Percent from which on new events are refused when nothing more may be deleted, and below which they are taken."""
WHOLE = 100
"""Percent from which on new events are refused while the deleting has not kept up."""
RESERVE = 64 * 1024**2
RESERVE_SHARE = 20
"""The reserve on the disk is `RESERVE` bytes, of a small file system one part in so many."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a store takes, in bytes: `used` with its log, `free` and `disk` of the file system that it lies on."""

    used: int
    log: int
    free: int
    disk: int

    @property
    def reserve(self) -> int:
        """Free space below which nothing new is taken, so that what is stored can still be settled."""
        return min(RESERVE, self.disk // RESERVE_SHARE)

    def percent(self, limit: int) -> int:
        """How much of a limit is used, rounded down."""
        return self.used * 100 // limit


@dataclass(frozen=True, slots=True)
class Fullness:
    """What is to be done; `over` and `short` are the two reasons to refuse new events: the limit, and the disk."""

    near: bool = False
    prunes: bool = False
    over: bool = False
    short: bool = False

    @property
    def accepts(self) -> bool:
        """New events are taken."""
        return not (self.over or self.short)


def judge_fullness(before: Fullness, room: Room, *, limit: int, exhausted: bool) -> Fullness:
    """What is to be done now; `exhausted` says that all that is left must stay."""
    percent, reserve = room.percent(limit), room.reserve
    is_near = percent >= NEAR or room.free < 2 * reserve
    is_far = percent < NEAR_NO_MORE and room.free * 2 >= 5 * reserve
    return Fullness(
        near=is_near or (before.near and not is_far),
        prunes=percent >= PRUNE or (before.prunes and percent >= PRUNED),
        over=percent >= (REFUSE if exhausted else WHOLE) or (before.over and percent >= TAKE),
        short=room.free < reserve or (before.short and room.free * 4 < 5 * reserve),
    )
