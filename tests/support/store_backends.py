"""The stores that the behaviour suite runs over, and a look at their tables that does not go through the port."""

import itertools
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from relay.store import Store, Watcher
from relay.store.sqlite import SqliteStore
from tests.support import postgres
from tests.support.postgres_copying import copied
from tests.support.postgres_looking import execute, rows

_copies = itertools.count(1)

KINDS = ("sqlite", "postgres")
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

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, whose values stand as `?`, on a connection that cannot write."""

    def change(self, statement: str, *values: Any) -> None:
        """Change the tables behind the store's back, as `rows` looks at them; committed when it returns."""

    def deliveries(self) -> dict[tuple[str, str], Row]:
        """Every delivery by (event id, target), read from the table itself."""

    def attempts(self) -> list[tuple[str, str, int, str]]:
        """(event id, target, number, outcome) of every recorded attempt, in order."""

    def counted(self) -> Counter[tuple[str, str]]:
        """A fresh count of (target, state) for the states of which a count is kept."""

    def event_ids(self) -> set[str]:
        """The ids of all events."""


class Tables:
    """What the tables say, which have the same names and columns in every kind of store."""

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """See `Backend.rows`."""
        raise NotImplementedError

    def deliveries(self) -> dict[tuple[str, str], Row]:
        query = """SELECT e.id, d.target, d.state, d.attempts, d.step, d.due_at, d.reason
            FROM delivery d JOIN event e ON e.seq = d.event_seq"""
        return {(event_id, target): Row(*rest) for event_id, target, *rest in self.rows(query)}

    def attempts(self) -> list[tuple[str, str, int, str]]:
        found = self.rows(
            """SELECT e.id, a.target, a.number, a.outcome FROM attempt a JOIN event e ON e.seq = a.event_seq
            ORDER BY a.event_seq, a.target, a.number"""
        )
        return [(event_id, target, number, outcome) for event_id, target, number, outcome in found]

    def counted(self) -> Counter[tuple[str, str]]:
        query = f"""SELECT target, state, count(*) FROM delivery WHERE state IN ({", ".join("?" * len(COUNTED))})
            GROUP BY target, state"""
        return Counter({(target, state): number for target, state, number in self.rows(query, *COUNTED)})

    def event_ids(self) -> set[str]:
        return {event_id for (event_id,) in self.rows("SELECT id FROM event")}


class SqliteBackend(Tables):
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

    def change(self, statement: str, *values: Any) -> None:
        """See `Backend.change`; an open store takes it for another program's write, so it is closed before."""
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute(statement, values)


class PostgresBackend(Tables):
    """A database of its own on the server that this test process has."""

    def __init__(self, server: postgres.Server, url: str) -> None:
        self.url = url
        self._server = server
        self._copies: list[PostgresBackend] = []

    @classmethod
    def create(cls) -> Self:
        """A new and empty database."""
        server = postgres.server()
        return cls(server, server.create_database())

    async def open(self, watcher: Watcher) -> Store:
        # imported here, so that the suite over SQLite does not depend on it
        from relay.store.postgres import PostgresStore

        return await PostgresStore.open(self.url, watcher)

    def after_a_kill(self) -> "PostgresBackend":
        """What is committed, in a new database: the server would roll back all else, as it has no connection to it.
        The node that was killed has not been heard for long there."""
        copy = PostgresBackend(self._server, copied(self._server, self.url))
        if copy.rows("SELECT FROM pg_tables WHERE schemaname = 'relay' AND tablename = 'node'"):
            copy.change("UPDATE relay.node SET beat_at = 0")
        self._copies.append(copy)
        return copy

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, in which values stand as `?` or as `$1`; for one look at what is committed."""
        return rows(self.url, query, *values)

    def change(self, statement: str, *values: Any) -> None:
        """See `Backend.change`; a lock that the store holds is waited for, but not for ever."""
        execute(self.url, statement, *values)

    def drop(self) -> None:
        """Leave nothing of it, nor of what was copied from it."""
        for copy in self._copies:
            copy.drop()
        self._server.drop_database(self.url)


@contextmanager
def fresh_backend(kind: str, directory: Path) -> Iterator[Backend]:
    """An empty database of a kind, which is gone afterwards; a test that wants one that cannot be had is skipped."""
    if kind == "sqlite":
        yield SqliteBackend(directory)
        return
    postgres.needed()
    backend = PostgresBackend.create()
    try:
        yield backend
    finally:
        backend.drop()


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
