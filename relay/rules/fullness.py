"""What follows from how full a store is: deleting the oldest, refusing what is new, telling somebody.

Law: pure. Every state is left at another mark than it was entered at, so that a store that hovers about one mark does
not change its mind each second. The limit is judged by what is stored alone, the disk with the log: what waits in it
needs its place in the file too. Nothing is deleted for want of what deleting cannot give.
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
LOG_SHARE = 4
"""One part in so many of the reserve must be free on the disk itself: the log cannot use the file's free pages."""


LARGE_LOG = 4
"""A log is large from one part in so many of the free disk on."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a store takes, in bytes: `used` by what is stored, `log` beside it, `free` and `disk` of its file system;
    `owed` is what the file will grow by when the log is moved home, `vacant` what is free inside it."""

    used: int
    log: int
    free: int
    disk: int
    owed: int = 0
    vacant: int = 0

    @property
    def reserve(self) -> int:
        """Free space below which nothing new is taken, so that what is stored can still be settled."""
        return min(RESERVE, self.disk // RESERVE_SHARE)

    @property
    def has_large_log(self) -> bool:
        """The log takes so much of what is free that it is to be given back before anything is concluded from it."""
        return self.log * LARGE_LOG > self.free

    @property
    def left(self) -> int:
        """Bytes that are free on the disk when the log is moved home."""
        return self.free - self.owed

    @property
    def takable(self) -> int:
        """Bytes that the file may still take, on the disk and inside itself."""
        return self.left + self.vacant

    @property
    def slack(self) -> int:
        """What is judged by the reserve: what is takable, but no more than the disk has room for in the log."""
        return min(self.takable, self.left * LOG_SHARE)

    @property
    def allowance(self) -> int:
        """Bytes of new events that may be written before another look: in the log and in their place, and half of the
        reserve stays."""
        return max(0, min((self.takable - self.reserve // 2) // 2, self.left - self.reserve // LOG_SHARE))

    @property
    def lacking(self) -> int:
        """Bytes to be freed inside the file until the disk is no reason to delete any more."""
        return self.reserve * 7 // 4 - self.takable

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
    percent, reserve, slack = room.percent(limit), room.reserve, room.slack
    is_near = percent >= NEAR or slack < 2 * reserve
    is_far = percent < NEAR_NO_MORE and slack * 2 >= 5 * reserve
    is_scarce = percent >= PRUNE or room.takable * 2 < 3 * reserve
    is_enough = percent < PRUNED and room.lacking <= 0
    return Fullness(
        near=is_near or (before.near and not is_far),
        prunes=is_scarce or (before.prunes and not is_enough),
        over=percent >= (REFUSE if exhausted else WHOLE) or (before.over and percent >= TAKE),
        short=slack < reserve or (before.short and slack * 4 < 5 * reserve),
    )
