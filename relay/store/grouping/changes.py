"""What a transaction will have changed, gathered while it is run and told after its commit."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from relay.model import Claim, DeliveryState, Event, TargetHealth

COUNTED = (DeliveryState.PENDING, DeliveryState.IN_FLIGHT, DeliveryState.DEAD)
"""The states of which a count is kept."""


INLINE_BODY = 64 * 1024
"""Larger bodies stay in the store until they are sent, so that a claim on many cannot fill the memory."""


@dataclass
class Rest:
    """What an enabled target held and is still to be made due: all after one event number, up to another."""

    after: int
    last: int
    spared: set[int] = field(default_factory=set)
    """Tried again since the enabling: these wait for their own step."""


@dataclass
class Changes:
    """What one transaction will have changed, once it is committed."""

    counts: defaultdict[tuple[str, DeliveryState], int] = field(default_factory=partial(defaultdict, int))
    """How many deliveries more there are by (target, state)."""
    health: dict[str, TargetHealth] = field(default_factory=dict)
    rests: dict[str, Rest | None] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    handed: list[Claim] = field(default_factory=list)
    """What was claimed for the claimant as it was stored."""
    waiting: set[str] = field(default_factory=set)
    """Targets at which something was stored that was not."""
    erased: set[int] = field(default_factory=set)
    """Numbers of events that are gone."""
    done: set[int] = field(default_factory=set)
    """Numbers of events that have a delivery less to make."""
    tally: defaultdict[tuple[int, str, str, str], int] = field(default_factory=partial(defaultdict, int))
    """How often what happened to whom, by (minute since 1970, kind of whom, name, what)."""

    heard: dict[str, datetime] = field(default_factory=dict)
    """When each source was heard, by an event or by its duplicate."""

    clock: datetime | None = None
    """What the clock showed to who called."""
    heard_by: datetime | None = None
    """Nothing was heard later than this, whatever is remembered."""

    def hear(self, source: str, at: datetime) -> None:
        """A source has sent something that was genuine."""
        self.heard[source] = max(at, self.heard.get(source, at))

    def tell(self, kind: str, name: str, what: str, at: int, number: int = 1) -> None:
        """Something happened so often to a source or a target; `at` is in milliseconds, as rows have it."""
        self.tally[at // 60_000, kind, name, what] += number

    def moved(self, target: str, before: DeliveryState | None, after: DeliveryState | None, number: int = 1) -> None:
        """So many deliveries of a target went from one state to another; None is outside the store."""
        if before is not None:
            self.counts[target, before] -= number
        if after is not None:
            self.counts[target, after] += number


@dataclass
class Remembered:
    """What a writer keeps in memory beside its store; it changes only after a commit."""

    counts: Counter[tuple[str, DeliveryState]] = field(default_factory=Counter)
    health: dict[str, TargetHealth] = field(default_factory=dict)
    rests: dict[str, Rest] = field(default_factory=dict)
    heard: dict[str, datetime] = field(default_factory=dict)
    """When each source was last heard."""
    clock: datetime | None = None
    """What the clock showed when something was last claimed, of itself or as it was stored; it may have been set back
    since an event was received."""
    silences_told: frozenset[str] = frozenset()
    """Sources whose silence had been told when the store was opened, and lasted."""
    stays_to: int = 0
    """Events up to this number were looked at, and must stay although room is wanted."""

    def take_over(self, changes: Changes) -> None:
        """Take over what was committed."""
        self.counts.update(changes.counts)
        self.health.update(changes.health)
        for target, rest in changes.rests.items():
            self.rests.pop(target, None)
            if rest is not None:
                self.rests[target] = rest
        self.clock = changes.clock or self.clock
        if changes.heard_by is not None:
            self.heard = {source: min(at, changes.heard_by) for source, at in self.heard.items()}
        for source, at in changes.heard.items():
            self.heard[source] = max(at, self.heard.get(source, at))
        self.stays_to = min([self.stays_to, *(number - 1 for number in changes.done)])

    def pending(self, target: str) -> int:
        """How many deliveries wait at a target."""
        return self.counts[target, DeliveryState.PENDING]

    def rest(self, target: str, changes: Changes) -> Rest | None:
        """What is still to be made due at a target, as a transaction with these changes sees it."""
        return changes.rests[target] if target in changes.rests else self.rests.get(target)
