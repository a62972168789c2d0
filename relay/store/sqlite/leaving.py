"""A SQLite store read out, row by row, by whoever moves it into another kind of store.

Law: nothing in the file changes but what any start of a relay does: claims of the process before are given back. It is
held meanwhile as a relay holds it, so that nothing is added to what is read. What is damaged is named, not moved.
"""

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from relay.store import StoreUnusable
from relay.store.grouping.tables import BYTES, ROWS, Column, Table
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.connection import StoreConnection, in_words, open_reader
from relay.store.sqlite.starting import resolved

_PAUSED = "it was moved to another store; resume it there"
_SMALL, _NUMBER = 1 << 31, 1 << 63
_OPEN_JOBS = "SELECT seq FROM replay WHERE state IN ('running', 'paused')"
_WHERE = {
    "tally": "kind != ''",  # the one row without is when this very file began
    "replay": "state != 'collecting'",
    "replay_item": f"replay_seq IN ({_OPEN_JOBS})",
}
"""What of a table is moved, where it is not all: sets that were cut off or are over are thrown away by any start."""
_INSTEAD = {
    ("replay", "state"): "CASE state WHEN 'running' THEN 'paused' ELSE state END",
    ("replay", "reason"): f"CASE state WHEN 'running' THEN '{_PAUSED}' ELSE reason END",
}
_IDENTITY = (
    "SELECT minute, kind, name, what, number FROM tally WHERE minute = 0 ORDER BY kind, name, what",
    "SELECT name, seq FROM sqlite_sequence ORDER BY name",
    "SELECT state, count(*), sum(attempts), sum(replays), max(settled_at) FROM delivery GROUP BY state ORDER BY state",
    "SELECT count(*) FROM event",
    "SELECT seq, state, done, skipped FROM replay ORDER BY seq",
    "SELECT * FROM target ORDER BY name",
    "SELECT * FROM heard ORDER BY source",
)
"""What does not stay as it is where a relay has run."""


class Watch:
    """A watcher that is told nothing worth telling: no relay runs here."""

    def committed(self, seconds: float) -> None:
        """See `Watcher.committed`."""

    def unavailable(self, reason: str) -> None:
        """See `Watcher.unavailable`."""

    def recovered(self, seconds: float) -> None:
        """See `Watcher.recovered`."""


class Leaving:
    """A store that is held, and read."""

    def __init__(self, path: Path, db: StoreConnection, identity: str) -> None:
        self.path = path
        self.identity = identity
        """Tells this store, as it is now, from any other, and from itself after a relay has run on it."""
        self._db = db

    async def count(self, table: Table) -> int:
        """How many rows of a table are to be moved."""
        query = f"SELECT count(*) FROM {table.name} WHERE {_WHERE.get(table.name, 'TRUE')}"
        ((number,),) = await self._read(query, ())
        return int(number)

    async def rows(self, table: Table, after: Sequence[Any] | None) -> list[tuple[Any, ...]]:
        """The next rows of a table in the order of its key, after one key; none at the end.

        Raises:
            StoreUnusable: one is damaged; it says which.
        """
        keys = ", ".join(table.names[: table.keys])
        marks = ", ".join("?" * table.keys)
        where = _WHERE.get(table.name, "TRUE") + (f" AND ({keys}) > ({marks})" if after is not None else "")
        names = ", ".join(_INSTEAD.get((table.name, name), name) for name in table.names)
        query = f"SELECT {names} FROM {table.name} WHERE {where} ORDER BY {keys} LIMIT {ROWS}"
        try:
            found = await self._read(query, tuple(after or ()), table.body)
        except StoreUnusable as error:
            place = f"behind ({', '.join(map(str, after))})" if after is not None else "at its beginning"
            raise StoreUnusable(f"{error} (met in the table {table.name}, {place})") from None
        return [self._sound(table, row) for row in found]

    async def _read(self, query: str, values: Sequence[Any], body: int | None = None) -> list[tuple[Any, ...]]:
        try:
            return await self._db.run(partial(_read, query=query, values=values, body=body))
        except sqlite3.Error as error:
            raise in_words(self.path, error) from None

    def _sound(self, table: Table, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The row as it is moved; what is no row of ours is told."""
        values: list[Any] = []
        for column, value in zip(table.columns, row, strict=True):
            try:
                values.append(_value(column, value))
            except ValueError as error:
                raise StoreUnusable(self._damaged(table, row, f"its {column.name} {error}")) from None
        if table.name == "event":
            self._check_body(table, values)
        return tuple(values)

    def _check_body(self, table: Table, values: list[Any]) -> None:
        found = dict(zip(table.names, values, strict=True))
        if hashlib.sha256(found["body"]).digest() != found["sha256"] or len(found["body"]) != found["size"]:
            raise StoreUnusable(self._damaged(table, values, "its body does not match its checksum"))

    def _damaged(self, table: Table, row: Sequence[Any], why: str) -> str:
        if table.name == "event":
            return (
                f"{self.path}: event {row[1]} is damaged: {why}; restore the file from a backup, or start relay on it "
                f"once more and give the event up with: relay prune --event {row[1]}. Then empty the destination and "
                "copy anew"
            )
        key = ", ".join(map(str, table.key(row)))
        return f"{self.path}: {table.name} ({key}) is damaged: {why}; restore the file from a backup and copy anew"


def _read(db: sqlite3.Connection, query: str, values: Sequence[Any], body: int | None) -> list[tuple[Any, ...]]:
    """Rows, as many as there are, or until their bodies are enough for once."""
    db.text_factory = _text
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in db.execute(query, values):
        rows.append(row)
        size += len(row[body]) if body is not None and isinstance(row[body], bytes) else 0
        if size >= BYTES:
            break
    return rows


def _identity(db: sqlite3.Connection, place: Path) -> str:
    digest = hashlib.sha256(bytes(place))
    for query in _IDENTITY:
        digest.update(repr(_read(db, query, (), None)).encode())
    return digest.hexdigest()


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "backslashreplace")  # what the disk has spoiled is shown, and found by its reader


def _value(column: Column, value: Any) -> Any:
    """A value of its column's kind. Raises ValueError where it is of another."""
    if value is None and column.is_optional:
        return None
    if column.kind == "text" and isinstance(value, str):
        return value
    if column.kind in ("bytes", "body") and isinstance(value, bytes):
        return value
    if column.kind == "flag" and value in (0, 1):
        return bool(value)
    bound = {"number": _NUMBER, "small": _SMALL}.get(column.kind, 0)
    if isinstance(value, int) and -bound <= value < bound:
        return value
    raise ValueError(f"is no {column.kind}")


@asynccontextmanager
async def leaving(path: Path) -> AsyncIterator[Leaving]:
    """Hold a store and read it.

    Raises:
        StoreInUse: a relay runs on it.
        StoreUnusable: there is none, or it must not be used as it is.
    """
    if not path.exists():
        raise StoreUnusable(f"{path}: there is no such file; name the store that is to be copied")
    store = await SqliteStore.open(path, Watch())
    try:
        place = resolved(path)
        db = await open_reader(place)
        try:
            try:
                yield Leaving(place, db, await db.run(partial(_identity, place=place)))
            except sqlite3.Error as error:
                raise in_words(place, error) from None
        finally:
            await db.close()
    finally:
        await store.close()
