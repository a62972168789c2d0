"""What the writer keeps in memory beside the file: target health, kept counts, the last events, the next number, and
when each source was heard.

Law: it changes only after a commit, so that a rolled-back transaction leaves no trace here but a gap in the numbers.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from relay.model import Claim, DeliveryState, Event, TargetHealth
from relay.store.sqlite.rows import HEALTH_SELECT, HEARD_SELECT, health_from, moment_if_sound

COUNTED = (DeliveryState.PENDING, DeliveryState.IN_FLIGHT, DeliveryState.DEAD)
"""The states of which a count is kept."""


INLINE_BODY = 64 * 1024
"""Larger bodies stay in the store until they are sent, so that a claim on many cannot fill the memory."""
FRESH = 1000
"""Events that are remembered after they were stored: most are claimed a moment later."""
FRESH_BYTES = 8 * 1024 * 1024


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

    counts: Counter[tuple[str, DeliveryState]] = field(default_factory=Counter)
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
    tally: Counter[tuple[int, str, str, str]] = field(default_factory=Counter)
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

    def tell(self, kind: str, name: str, what: str, at: datetime, number: int = 1) -> None:
        """Something happened so often to a source or a target."""
        self.tally[int(at.timestamp()) // 60, kind, name, what] += number

    def moved(self, target: str, before: DeliveryState | None, after: DeliveryState | None, number: int = 1) -> None:
        """So many deliveries of a target went from one state to another; None is outside the store."""
        if before is not None:
            self.counts[target, before] -= number
        if after is not None:
            self.counts[target, after] += number


@dataclass
class Ledger:
    """Health and counts as committed."""

    next_seq: int = 1
    counts: Counter[tuple[str, DeliveryState]] = field(default_factory=Counter)
    health: dict[str, TargetHealth] = field(default_factory=dict)
    rests: dict[str, Rest] = field(default_factory=dict)
    heard: dict[str, datetime] = field(default_factory=dict)
    """When each source was last heard."""
    clock: datetime | None = None
    """What the clock showed when somebody claimed last; it may have been set back since an event was received."""
    silences_told: frozenset[str] = frozenset()
    """Sources whose silence had been told when the file was opened, and lasted."""
    fresh: dict[int, Event] = field(default_factory=dict)
    """The last events that were stored, by number, oldest first."""
    fresh_bytes: int = 0
    stays_to: int = 0
    """Events up to this number were looked at, and must stay although room is wanted."""

    def current(self, name: str, changes: Changes) -> TargetHealth:
        """A target's health as the transaction under way sees it."""
        return changes.health.get(name) or self.health.get(name) or TargetHealth(name)

    def apply(self, changes: Changes) -> None:
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
        self._remember(changes.events)
        self._forget(changes.erased)
        self.stays_to = min([self.stays_to, *(number - 1 for number in changes.done)])

    def _remember(self, events: Mapping[int, Event]) -> None:
        """Keep what was stored last, as much as there is room for."""
        self.fresh.update(events)
        self.fresh_bytes += sum(len(event.body) for event in events.values())
        while len(self.fresh) > FRESH or self.fresh_bytes > FRESH_BYTES:
            oldest = self.fresh.pop(next(iter(self.fresh)))
            self.fresh_bytes -= len(oldest.body)

    def _forget(self, erased: Iterable[int]) -> None:
        """Hand nothing out again of what is gone."""
        for number in erased:
            event = self.fresh.pop(number, None)
            if event is not None:
                self.fresh_bytes -= len(event.body)

    def load(self, db: sqlite3.Connection) -> None:
        """Read all of it from the file; the only time that deliveries are counted."""
        counts: Counter[tuple[str, DeliveryState]] = Counter()
        for state in COUNTED:
            query = f"SELECT target, count(*) FROM delivery WHERE state = '{state.value}' GROUP BY target"
            for target, number in db.execute(query):
                counts[target, state] = number
        health = {row[0]: health_from(row) for row in db.execute(HEALTH_SELECT)}
        last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
        rows = [(str(source, "utf-8", "replace"), at, told) for source, at, told in db.execute(HEARD_SELECT)]
        self.counts, self.health = counts, health
        self.heard = {source: at for source, found, _ in rows if (at := moment_if_sound(found)) is not None}
        self.silences_told = frozenset(source for source, _, told in rows if told)
        self.fresh, self.fresh_bytes, self.stays_to = {}, 0, 0
        self.next_seq = (last[0] if last else 0) + 1
