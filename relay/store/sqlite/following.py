"""Following in SQL: what was committed beyond a position, read on the reading connection.

Law: one look is one snapshot, bounded by rows, and costs the writer nothing but a counter that is raised with each
commit.
"""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from relay.store.following import AcceptedEvent, Batch, Position, UnknownPosition
from relay.store.grouping.commits import Commits
from relay.store.grouping.followed import Kind, accepted, attempted, followed, merged, refused
from relay.store.grouping.rows import millis
from relay.store.sqlite.reading import Reading


class SqliteFollowing:
    """The port's live side on one SQLite file."""

    def __init__(self, reading: Reading, commits: Commits) -> None:
        self._reading = reading
        self._commits = commits

    async def newest(self) -> Position:
        """See `Following.newest`."""
        return await self._reading.run(_newest)

    async def first(self, since: datetime | None = None) -> Position:
        """See `Following.first`."""
        return await self._reading.run(lambda db: _first(db, since))

    async def after(self, position: Position, *, limit: int) -> Batch:
        """See `Following.after`."""
        return await self._reading.run(lambda db: _after(db, position, limit))

    def mark(self) -> int:
        """See `Following.mark`."""
        return self._commits.number

    async def changed(self, mark: int, *, within: float) -> None:
        """See `Following.changed`."""
        if self._commits.number == mark:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._commits.next()


@contextlib.contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Several reads see the same commits: an attempt never comes without the event that it is of."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


def _newest(db: sqlite3.Connection) -> Position:
    """The largest number ever given in each table, also where its row is gone by now."""
    given: Mapping[str, int] = dict(db.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    born = db.execute("SELECT number FROM tally WHERE minute = 0 AND kind = '' AND name = '' AND what = 'began'")
    (birth,) = born.fetchone() or (0,)
    return Position(birth, **{kind.name: given.get(kind.name, 0) for kind in _KINDS})


def _first(db: sqlite3.Connection, since: datetime | None) -> Position:
    with _snapshot(db):
        newest = _newest(db)
        numbers = dict.fromkeys((kind.name for kind in _KINDS), 0)
        if since is not None:
            at = millis(since)
            numbers = {kind.name: _last_before(db, kind, at, getattr(newest, kind.name)) for kind in _KINDS}
    return Position(newest.birth, **numbers)


def _last_before(db: sqlite3.Connection, kind: Kind, at: int, newest: int) -> int:
    """The number after which a table's rows are of that time or later, found by halving."""
    query = f"SELECT {kind.at} FROM {kind.name} WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT 1"
    low, high = 0, newest
    while low < high:
        middle = (low + high) // 2
        row = db.execute(query, (middle, high)).fetchone()
        if row is None or not isinstance(row[0], int) or row[0] >= at:
            high = middle
        else:
            low = middle + 1
    return low


def _after(db: sqlite3.Connection, position: Position, limit: int) -> Batch:
    with _snapshot(db):
        newest = _newest(db)
        read = [followed(kind, db.execute(kind.query, (getattr(position, kind.name), limit))) for kind in _KINDS]
    if position.birth != newest.birth or any(
        getattr(position, kind.name) > getattr(newest, kind.name) for kind in _KINDS
    ):
        raise UnknownPosition(str(position))
    return merged(read, position, limit)


def _accepted(at: datetime, row: Sequence[Any]) -> AcceptedEvent:
    *parts, targets = row
    return accepted(at, (*parts, json.loads(targets)))


_KINDS = (
    Kind(
        "event",
        "received_at",
        """SELECT seq, received_at, id, source, type, size,
            (SELECT json_group_array(target) FROM delivery WHERE event_seq = event.seq)
        FROM event WHERE seq > ? ORDER BY seq LIMIT ?""",
        _accepted,
    ),
    Kind(
        "refusal",
        "received_at",
        """SELECT seq, received_at, source, remote, status, reason, detail, size
        FROM refusal WHERE seq > ? ORDER BY seq LIMIT ?""",
        refused,
    ),
    Kind(
        "attempt",
        "began_at + duration_ms",
        """SELECT a.seq, a.began_at + a.duration_ms, e.id, e.source, e.type, a.target, a.number, a.outcome, a.status,
            a.duration_ms, a.reason, d.state, d.due_at
        FROM attempt a CROSS JOIN event e ON e.seq = a.event_seq
            LEFT JOIN delivery d ON d.event_seq = a.event_seq AND d.target = a.target
        WHERE a.seq > ? ORDER BY a.seq LIMIT ?""",
        attempted,
    ),
)
"""In the order in which what has the same time is told."""
