"""The stores that the behaviour suite runs over, and a look at their tables that does not go through the port."""

import itertools
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relay.store import Store, Watcher
from relay.store.sqlite import SqliteStore

_copies = itertools.count(1)

COUNTED = ("pending", "in_flight", "dead")


@dataclass(frozen=True)
class Row:
    """One delivery as it stands in its table."""

    state: str
    attempts: int
    step: int
    due_at: int
    reason: str | None


class Backend(Protocol):
    """A kind of store, and one database of it."""

    async def open(self, watcher: Watcher) -> Store:
        """Open or create the database."""

    def after_a_kill(self) -> "Backend":
        """The database as the disk would hold it if the process were killed now."""

    def deliveries(self) -> dict[tuple[str, str], Row]:
        """Every delivery by (event id, target), read from the table itself."""

    def attempts(self) -> list[tuple[str, str, int, str]]:
        """(event id, target, number, outcome) of every recorded attempt, in order."""

    def counted(self) -> Counter[tuple[str, str]]:
        """A fresh count of (target, state) for the states of which a count is kept."""

    def event_ids(self) -> set[str]:
        """The ids of all events."""


class SqliteBackend:
    """A file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "relay.db"

    async def open(self, watcher: Watcher) -> SqliteStore:
        return await SqliteStore.open(self.path, watcher)

    def after_a_kill(self) -> "SqliteBackend":
        home = self.path.parent
        copy = SqliteBackend(home.with_name(f"{home.name.partition('.killed')[0]}.killed-{next(_copies)}"))
        for end in ("", "-wal"):
            file = self.path.with_name(self.path.name + end)
            if file.exists():
                shutil.copy(file, copy.path.with_name(copy.path.name + end))
        return copy

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query on a connection that cannot write."""
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()

    def deliveries(self) -> dict[tuple[str, str], Row]:
        query = """SELECT e.id, d.target, d.state, d.attempts, d.step, d.due_at, d.reason
            FROM delivery d JOIN event e ON e.seq = d.event_seq"""
        return {(event_id, target): Row(*rest) for event_id, target, *rest in self.rows(query)}

    def attempts(self) -> list[tuple[str, str, int, str]]:
        return self.rows(
            """SELECT e.id, a.target, a.number, a.outcome FROM attempt a JOIN event e ON e.seq = a.event_seq
            ORDER BY a.event_seq, a.target, a.number"""
        )

    def counted(self) -> Counter[tuple[str, str]]:
        query = f"""SELECT target, state, count(*) FROM delivery WHERE state IN ({", ".join("?" * len(COUNTED))})
            GROUP BY target, state"""
        return Counter({(target, state): number for target, state, number in self.rows(query, *COUNTED)})

    def event_ids(self) -> set[str]:
        return {event_id for (event_id,) in self.rows("SELECT id FROM event")}


async def kept(store: Store, *targets: str) -> Counter[tuple[str, str]]:
    """What the store says it counts, in the shape of `Backend.counted`."""
    return Counter(
        {
            (one.target, state): number
            for one in await store.backlog(targets)
            for state, number in (("pending", one.pending), ("in_flight", one.in_flight), ("dead", one.dead))
            if number
        }
    )
