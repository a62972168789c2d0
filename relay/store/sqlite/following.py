"""Following in SQL: what was committed beyond a position, read on the reading connection.

Law: one look is one snapshot, bounded by rows, and costs the writer nothing but a counter that is raised with each
commit.
"""

import asyncio
import contextlib
import heapq
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from relay.model import DeliveryState
from relay.store import Watcher
from relay.store.archive import RefusedRequest
from relay.store.following import AcceptedEvent, Batch, Happened, Occurrence, Position, RecordedAttempt, UnknownPosition
from relay.store.grouping.rows import millis, moment, moment_if_sound
from relay.store.sqlite.reading import Reading


class Commits:
    """Counts commits on their way to the store's watcher, and wakes who waits for the next."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._next: asyncio.Event | None = None
        self.number = 0

    def committed(self, seconds: float) -> None:
        """See `Watcher.committed`."""
        self.number += 1
        if self._next is not None:
            self._next.set()
            self._next = None
        self._watcher.committed(seconds)

    def unavailable(self, reason: str) -> None:
        """See `Watcher.unavailable`."""
        self._watcher.unavailable(reason)

    def recovered(self, seconds: float) -> None:
        """See `Watcher.recovered`."""
        self._watcher.recovered(seconds)

    async def next(self) -> None:
        """Wait for the next commit."""
        if self._next is None:
            self._next = asyncio.Event()
        await self._next.wait()


@dataclass(frozen=True, slots=True)
class _Kind:
    """One table that is followed; its name is that of its number in a position, `at` its clock."""

    name: str
    at: str
    query: str
    """Number, time, and what `read` takes, of the rows beyond a number, so many at most."""
    read: Callable[[datetime, Sequence[Any]], Occurrence]


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


def _last_before(db: sqlite3.Connection, kind: _Kind, at: int, newest: int) -> int:
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
        read = [_rows(db, kind, position, limit) for kind in _KINDS]
    if position.birth != newest.birth or any(
        getattr(position, kind.name) > getattr(newest, kind.name) for kind in _KINDS
    ):
        raise UnknownPosition(str(position))
    ends = {id(rows[-1]) for rows in read if len(rows) == limit}
    happened: list[Happened] = []
    for row in heapq.merge(*read, key=lambda row: row.at):
        position = replace(position, **{row.kind.name: row.number})
        happened.append(Happened(position, row.kind.read(row.at, row.rest)))
        if id(row) in ends:  # what follows in the other tables may be younger than what this one has still to tell
            return Batch(happened, position, is_last=False)
    return Batch(happened, position, is_last=True)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row beyond a position."""

    kind: _Kind
    number: int
    at: datetime
    rest: Sequence[Any]


def _rows(db: sqlite3.Connection, kind: _Kind, position: Position, limit: int) -> list[_Row]:
    found = db.execute(kind.query, (getattr(position, kind.name), limit))
    return [_Row(kind, number, _sound(at), rest) for number, at, *rest in found]


def _sound(at: object) -> datetime:
    """The time of a row, and the beginning of time where the disk has damaged it."""
    found = moment_if_sound(at) or moment(0)
    assert found is not None
    return found


def _event(at: datetime, row: Sequence[Any]) -> AcceptedEvent:
    event_id, source, type_, size, targets = row
    return AcceptedEvent(at, event_id, source, type_, tuple(json.loads(targets)), size)


def _refusal(at: datetime, row: Sequence[Any]) -> RefusedRequest:
    source, remote, status, reason, detail, size = row
    return RefusedRequest(at, source, remote, status, reason, detail, size)


def _attempt(at: datetime, row: Sequence[Any]) -> RecordedAttempt:
    event_id, source, type_, target, number, outcome, status, duration_ms, reason, state, due_at = row
    return RecordedAttempt(
        at=at,
        event_id=event_id,
        source=source,
        type=type_,
        target=target,
        number=number,
        outcome=outcome,
        status=status,
        duration_ms=duration_ms,
        reason=reason,
        state=None if state is None else DeliveryState(state),
        due_at=None if state is None else _sound(due_at),
    )


_KINDS = (
    _Kind(
        "event",
        "received_at",
        """SELECT seq, received_at, id, source, type, size,
            (SELECT json_group_array(target) FROM delivery WHERE event_seq = event.seq)
        FROM event WHERE seq > ? ORDER BY seq LIMIT ?""",
        _event,
    ),
    _Kind(
        "refusal",
        "received_at",
        """SELECT seq, received_at, source, remote, status, reason, detail, size
        FROM refusal WHERE seq > ? ORDER BY seq LIMIT ?""",
        _refusal,
    ),
    _Kind(
        "attempt",
        "began_at + duration_ms",
        """SELECT a.seq, a.began_at + a.duration_ms, e.id, e.source, e.type, a.target, a.number, a.outcome, a.status,
            a.duration_ms, a.reason, d.state, d.due_at
        FROM attempt a CROSS JOIN event e ON e.seq = a.event_seq
            LEFT JOIN delivery d ON d.event_seq = a.event_seq AND d.target = a.target
        WHERE a.seq > ? ORDER BY a.seq LIMIT ?""",
        _attempt,
    ),
)
"""In the order in which what has the same time is told."""
