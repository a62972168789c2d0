"""Following in SQL: what was committed beyond a position, by any node.

Law: one look is one snapshot, bounded by rows, and nothing is told before all that has a lower number is to be seen:
what stands below a position never changes. A transaction that runs long, also one of another database of the same
server, delays what is told, and loses none of it.
"""

import asyncio
import contextlib
from datetime import datetime

from relay.store.following import Batch, Position, UnknownPosition
from relay.store.grouping.commits import Commits
from relay.store.grouping.followed import Kind, accepted, attempted, followed, merged, refused
from relay.store.grouping.rows import millis
from relay.store.postgres.numbering import BELOW
from relay.store.postgres.reading import Reading
from relay.store.postgres.types import Connection

POLL_S = 0.5
"""Seconds between two looks at most: nobody hears of what other nodes commit."""


class PostgresFollowing:
    """The port's live side on one database."""

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
        """See `Following.changed`. It ends sooner, to look at what others have stored."""
        if self._commits.number == mark:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(within, POLL_S)):
                    await self._commits.next()


async def _standing(db: Connection) -> tuple[int, int]:
    """The birth of the database, and the number below which all stands fast."""
    row = await db.fetchrow(f"SELECT birth, ({BELOW}) FROM numbering")
    assert row is not None
    return row[0], row[1]


async def _newest(db: Connection) -> Position:
    """The largest numbers that stand fast. A kind of which nothing is kept any more begins at none again, and nothing
    comes twice by that."""
    birth, below = await _standing(db)
    numbers = {}
    for kind in _KINDS:
        query = f"SELECT seq FROM {kind.name} WHERE seq < $1 ORDER BY seq DESC LIMIT 1"
        numbers[kind.name] = await db.fetchval(query, below) or 0
    return Position(birth, **numbers)


async def _first(db: Connection, since: datetime | None) -> Position:
    newest = await _newest(db)
    if since is None:
        return Position(newest.birth)
    at = millis(since)
    numbers = {kind.name: await _last_before(db, kind, at, getattr(newest, kind.name)) for kind in _KINDS}
    return Position(newest.birth, **numbers)


async def _last_before(db: Connection, kind: Kind, at: int, newest: int) -> int:
    """The number after which a table's rows are of that time or later, found by halving from the first row on."""
    query = f"SELECT seq, {kind.at} FROM {kind.name} WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT 1"
    low, high, middle = 0, newest, 0
    while low < high:
        row = await db.fetchrow(query, middle, high)
        if row is None or row[1] >= at:
            high = middle
        else:
            low = row[0]
        middle = (low + high) // 2
    return low


async def _after(db: Connection, position: Position, limit: int) -> Batch:
    """What follows. That a position is greater than any that can have been given is known by what stands fast, not by
    the rows: the newest may be pruned."""
    birth, below = await _standing(db)
    if position.birth != birth or any(getattr(position, kind.name) >= below for kind in _KINDS):
        raise UnknownPosition(str(position))
    read = [
        followed(kind, map(tuple, await db.fetch(kind.query, getattr(position, kind.name), below, limit)))
        for kind in _KINDS
    ]
    return merged(read, position, limit)


_KINDS = (
    Kind(
        "event",
        "received_at",
        """SELECT seq, received_at, id, source, type, size,
            ARRAY(SELECT target FROM delivery WHERE event_seq = event.seq ORDER BY target)
        FROM event WHERE seq > $1 AND seq < $2 ORDER BY seq LIMIT $3""",
        accepted,
    ),
    Kind(
        "refusal",
        "received_at",
        """SELECT seq, received_at, source, remote, status, reason, detail, size
        FROM refusal WHERE seq > $1 AND seq < $2 ORDER BY seq LIMIT $3""",
        refused,
    ),
    Kind(
        "attempt",
        "began_at + duration_ms",
        """SELECT a.seq, a.began_at + a.duration_ms, e.id, e.source, e.type, a.target, a.number, a.outcome, a.status,
            a.duration_ms, a.reason, d.state, d.due_at
        FROM attempt a
            CROSS JOIN LATERAL (SELECT id, source, type FROM event WHERE seq = a.event_seq LIMIT 1) e
            LEFT JOIN LATERAL (
                SELECT state, due_at FROM delivery WHERE event_seq = a.event_seq AND target = a.target LIMIT 1
            ) d ON TRUE
        WHERE a.seq > $1 AND a.seq < $2 ORDER BY a.seq LIMIT $3""",
        attempted,
    ),
)
"""In the order in which what has the same time is told. Lookups have a limit of their own, so that the planner cannot
make them a join with a whole table."""
