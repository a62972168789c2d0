"""What is asked of a writer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from relay.model import Course, Event, Turn
from relay.store import Bid


@dataclass(slots=True)
class AcceptWish:
    """One event to be stored."""

    event: Event
    targets: Sequence[str]
    courses: Mapping[str, Course]


@dataclass(slots=True)
class Handing:
    """What is claimed as it is stored: of each target so much as was bid for, all under one token."""

    token: int
    bids: Mapping[str, Bid]


@dataclass(slots=True)
class ClaimWish:
    """One call for deliveries."""

    target: str
    limit: int
    turn: Turn
    now: datetime
    lease: timedelta
    since: datetime | None
    token: int


def told_by(wishes: Iterable[ClaimWish]) -> set[str]:
    """The targets of which these calls are told all by their answers: so much as was wanted of what is due, and what is
    due next. That something was stored by the same transaction, or by one before theirs, need not be told of as well:
    it would have them ask again, and meet what comes next in the same way, for ever."""
    return {wish.target for wish in wishes if wish.turn is Turn.DUE}
