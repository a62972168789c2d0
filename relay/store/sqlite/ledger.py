"""What the writer keeps in memory beside the file: target health, kept counts, the last events, the next number, and
when each source was heard.

Law: it changes only after a commit, so that a rolled-back transaction leaves no trace here but a gap in the numbers.
"""

import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from relay.model import DeliveryState, Event, TargetHealth
from relay.store.grouping.changes import COUNTED, Changes, Remembered
from relay.store.grouping.rows import health_from, moment_if_sound
from relay.store.sqlite.statements import HEALTH_SELECT, HEARD_SELECT

FRESH = 1000
"""Events that are remembered after they were stored: most are claimed a moment later."""
FRESH_BYTES = 8 * 1024 * 1024


@dataclass
class Ledger(Remembered):
    """Health and counts as committed."""

    next_seq: int = 1
    fresh: OrderedDict[int, Event] = field(default_factory=OrderedDict)
    """The last events that were stored, by number, oldest first; of a plain dict, the first is found ever later."""
    fresh_bytes: int = 0

    def current(self, name: str, changes: Changes) -> TargetHealth:
        """A target's health as the transaction under way sees it."""
        return changes.health.get(name) or self.health.get(name) or TargetHealth(name)

    def apply(self, changes: Changes) -> None:
        """Take over what was committed."""
        self.take_over(changes)
        self._remember(changes.events)
        self._forget(changes.erased)

    def _remember(self, events: Mapping[int, Event]) -> None:
        """Keep what was stored last, as much as there is room for."""
        self.fresh.update(events)
        self.fresh_bytes += sum(len(event.body) for event in events.values())
        while len(self.fresh) > FRESH or self.fresh_bytes > FRESH_BYTES:
            _, oldest = self.fresh.popitem(last=False)
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
        self.fresh, self.fresh_bytes, self.stays_to = OrderedDict(), 0, 0
        self.next_seq = (last[0] if last else 0) + 1
