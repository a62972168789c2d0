"""The live side of the storage port: what happens, in the order in which it was stored.

Law: whoever follows reads what is committed from where they are and goes on from there, so nothing is left out and
nothing comes twice, however often they are cut off and whoever of the two was started anew. A hint says when to look;
that it is missed costs a moment and nothing else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from relay.model import DeliveryState
from relay.store.archive import RefusedRequest

_POSITION = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})")


class UnknownPosition(Exception):
    """A position that this store has not given out, or gave out in a life that a backup has undone."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far somebody has read: the last event, attempt and refusal, by their numbers in the store of that birth."""

    birth: int
    event: int = 0
    attempt: int = 0
    refusal: int = 0

    def __str__(self) -> str:
        return f"{self.birth}-{self.event}-{self.attempt}-{self.refusal}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """The position that a text says, None where it is none."""
        match = _POSITION.fullmatch(text) if text.isascii() else None
        return None if match is None else cls(*map(int, match.groups()))


@dataclass(frozen=True, slots=True)
class AcceptedEvent:
    """An event that was stored, and the targets that it goes to."""

    at: datetime
    id: str
    source: str
    type: str
    targets: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class RecordedAttempt:
    """An attempt that was recorded; `state` and `due_at` are those of its delivery as it stands now."""

    at: datetime
    event_id: str
    source: str
    type: str
    target: str
    number: int
    outcome: str
    status: int | None
    duration_ms: int
    reason: str
    state: DeliveryState | None
    due_at: datetime | None


Occurrence = AcceptedEvent | RecordedAttempt | RefusedRequest


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that happened, and the position of who has read it."""

    position: Position
    what: Occurrence


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened next, in order of time as far as it is known; `position` is that of who has read all of it.
    `is_last` where there was no more."""

    happened: Sequence[Happened]
    position: Position
    is_last: bool


class Following(Protocol):
    """What happens, read from a position on. Each read raises `StoreUnavailable` where it cannot be done now."""

    async def newest(self) -> Position:
        """The position of who has read all there is."""

    async def first(self, since: datetime | None = None) -> Position:
        """The position before all that is kept, or before what was stored since a time, as far as the clock that
        stamped it went forward."""

    async def after(self, position: Position, *, limit: int) -> Batch:
        """What follows a position, of each kind at most `limit`.

        Raises:
            UnknownPosition: it is not one of this store.
        """

    def mark(self) -> int:
        """A mark of what is stored now, for `changed`; to be taken before a look."""

    async def changed(self, mark: int, *, within: float) -> None:
        """Wait until something was stored since a mark was taken, at most so many seconds."""
