"""What every verb works with: the transaction of its batch, what this node knows, and what it changes."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.model import Event, TargetHealth
from relay.store.grouping.changes import Changes, Remembered, Rest
from relay.store.postgres import health, numbering
from relay.store.postgres.health import Stored
from relay.store.postgres.types import Connection, Row


@dataclass
class NodeChanges(Changes):
    """What one transaction will have changed, and what it has seen of others."""

    versions: dict[str, int] = field(default_factory=dict)
    """Of the healths that it writes."""
    room: int = 0
    """Bytes by which what is stored has grown, roughly."""
    seen: dict[str, Stored] = field(default_factory=dict)
    """Healths that were not those by which this node had asked."""


@dataclass
class Known(Remembered):
    """What this node remembers of the database: hints and gauges, never the truth."""

    node: int = 0
    """This node's number, under which its part of the counts stands."""
    versions: dict[str, int] = field(default_factory=dict)
    """Of the healths that are known."""

    def apply(self, changes: NodeChanges) -> None:
        """Take over what was committed, and what was seen of others meanwhile."""
        self.learn(changes.seen)
        self.take_over(changes)
        self.versions.update(changes.versions)

    def learn(self, stored: Mapping[str, Stored]) -> dict[str, TargetHealth]:
        """Take over what others have stored; return what was new of it."""
        new = {name: one for name, one in stored.items() if one.version > self.versions.get(name, -1)}
        self.versions |= {name: one.version for name, one in new.items()}
        changed = {name: one.health for name, one in new.items() if one.health != self.health.get(name)}
        self.health |= changed
        return changed


@dataclass
class Transaction:
    """What a batch works with."""

    db: Connection
    known: Known
    changes: NodeChanges = field(default_factory=NodeChanges)
    _first: int | None = None
    _given: Counter[str] = field(default_factory=Counter)
    _locked: dict[str, Stored] = field(default_factory=dict)
    _read: dict[str, Stored] = field(default_factory=dict)

    async def rows(self, query: str, *values: Any) -> list[Row]:
        """The rows of a query; its marks are `$1`, `$2` and so on."""
        return await self.db.fetch(query, *values)

    async def run(self, query: str, *values: Any) -> int:
        """Run a statement; return how many rows it has changed."""
        status: str = await self.db.execute(query, *values)
        number = status.rpartition(" ")[2]
        return int(number) if number.isdigit() else 0

    async def write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement that takes its rows as columns, `unnest($1::..., ...)`; return how many rows it has changed.
        Nothing is asked where there are none."""
        return await self.run(statement, *map(list, zip(*rows, strict=True))) if rows else 0

    async def numbers(self, kind: str, count: int) -> range:
        """Numbers for so many rows of a kind: `event`, `attempt` or `refusal`."""
        if self._first is None:
            self._first = int(await self.db.fetchval(numbering.FIRST))
        start = self._first + self._given[kind]
        self._given[kind] += count
        if self._given[kind] > numbering.PLACES:
            raise ValueError(f"more than {numbering.PLACES} rows of {kind} in one transaction")
        return range(start, start + count)

    async def lock_health(self, names: Iterable[str]) -> None:
        """Have the health of these targets to ourselves until the end, in the order in which every node takes them."""
        wanted = set(names) - self._locked.keys()
        if wanted:
            self._locked |= await health.locked(self.db, sorted(wanted), self.known.health)

    async def read_health(self, names: Iterable[str]) -> None:
        """See the health of these targets as it is stored at this moment."""
        wanted = set(names) - self._locked.keys()
        if wanted:
            self._read |= await health.read(self.db, self.known.health, sorted(wanted))

    def health(self, name: str) -> TargetHealth:
        """A target's health as this transaction sees it: the one that it holds or has read, or else the known one."""
        stored = self._locked.get(name) or self._read.get(name)
        seen = stored.health if stored is not None else self.known.health.get(name)
        return self.changes.health.get(name) or seen or TargetHealth(name)

    def see(self, name: str) -> None:
        """Have this node learn the health that the transaction holds."""
        self.changes.seen[name] = self._locked[name]

    async def write_health(self) -> None:
        """Write the health of every target that this transaction has changed, once each."""
        changed = sorted(self.changes.health.items())
        self.changes.versions = {name: self._locked[name].version + 1 for name, _ in changed}
        await health.write(self.db, [one for _, one in changed])

    def fresh(self, seq: int) -> Event | None:
        """An event that this very transaction has stored."""
        return self.changes.events.get(seq)

    def rest(self, target: str) -> Rest | None:
        """What is still to be made due at a target, as this transaction sees it."""
        return self.known.rest(target, self.changes)


class Works(Protocol):
    """Who carries works: the writer."""

    def work(self, work: Callable[[Transaction], Awaitable[Any]]) -> Awaitable[Any]:
        """Run this in the next transaction, more than once where that is undone; what it returns is had after the
        commit."""
