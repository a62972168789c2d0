"""A PostgreSQL database filled with what another store held.

Law: how far it came stands beside the rows and is committed with them, so that a copy that is cut off anywhere goes on
from there and stores nothing twice. Numbers keep their order: each is that of the source and a base, which is the
number that the first transaction of the copy would have given. What nodes give afterwards is above all of them.

Until the copy has ended, verified, no node takes the database for its store.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from relay.store import StoreInUse, StoreUnusable
from relay.store.grouping.ages import OVERHEAD
from relay.store.grouping.changes import COUNTED
from relay.store.grouping.rows import compact
from relay.store.grouping.tables import TABLES, Table
from relay.store.locations import shown
from relay.store.postgres.connection import BEGIN_READING, begun, connect, in_words, leave
from relay.store.postgres.node import GONE_S, IS_ALIVE, NOW, ROOM
from relay.store.postgres.numbering import FIRST, keep_ahead
from relay.store.postgres.opening import prepare
from relay.store.postgres.schema import SCHEMA
from relay.store.postgres.texts import storable
from relay.store.postgres.types import Row

NOBODY = 0
"""The node under whose number the sums of the source stand: no node has it."""
FETCHED = 500
"""Rows read at a time where all are read."""
PART_S = 300.0
"""How long a part may take to be written or read, over whatever network."""
LONG_S = 86_400.0
"""How long a statement may take that reads all that there is."""

_OWN = ("event", "delivery", "attempt", "replay", "replay_item")
"""Tables that must be empty when a copy begins."""
_LIVING = f"SELECT name FROM node WHERE {IS_ALIVE} ORDER BY id LIMIT 1"
_OF_NODES = frozenset({"tally", "heard"})
"""Tables that have a part for each node."""
_NUMBERED = frozenset({"refusal"})
"""Tables that may have held rows before, which are not of the copy: their numbers are below its base."""
_ADVANCE = """UPDATE copy SET part = $1, after = $2, moved = $3
    WHERE part = $4 AND after IS NOT DISTINCT FROM $5 AND moved = $6 AND ended_at IS NULL"""
_COUNT = f"""INSERT INTO counted (target, state, node, number)
    SELECT target, state, {NOBODY}, count(*) FROM delivery WHERE state = ANY($1::text[]) GROUP BY target, state
    UNION ALL SELECT '', $2::text, {NOBODY}, coalesce(sum(size::bigint + $3::bigint), 0)::bigint FROM event"""
_SET_JOBS = (
    """SELECT setval(pg_get_serial_sequence('replay', 'seq'), max(seq)) FROM replay HAVING max(seq) IS NOT NULL"""
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy has come: the table that is being filled, by its place; the key of its last row there; and how
    many rows are there of all tables."""

    part: int = 0
    after: str | None = None
    moved: int = 0

    @property
    def key(self) -> list[Any] | None:
        """The key of the last row, as the source has it; None at the beginning of a table."""
        return None if self.after is None else list(json.loads(self.after))


class Arriving:
    """A database that is being filled, by one copy at a time."""

    def __init__(self, url: str, db: "asyncpg.Connection[Row]") -> None:
        self._url = url
        self._db = db
        self._base = 0
        self.progress = Progress()
        self.result: str | None = None
        """What the copy has told at its end, where it has come to it."""

    async def begin(self, source: str, identity: str) -> None:
        """Begin a copy, or go on with it.

        Raises:
            StoreUnusable: the database holds something of its own, or another copy, or one of another store.
            StoreInUse: a relay runs on it.
        """
        async with _told(self._url), begun(self._db):
            row = await self._db.fetchrow("SELECT * FROM copy")
            if row is None:
                await self._refuse_what_is_used()
                query = f"INSERT INTO copy SELECT TRUE, $1, $2, ({FIRST}), 0, NULL, 0, {NOW} RETURNING *"
                row = await self._db.fetchrow(query, storable(source), storable(identity))
                await self._db.execute("DELETE FROM target")  # of targets to which nothing was ever sent
        assert row is not None
        if row["identity"] != storable(identity):
            raise StoreUnusable(self._of_another(row, source))
        self._base = row["base"]
        self.progress = Progress(row["part"], row["after"], row["moved"])
        self.result = row["result"]
        if self.result is None:
            async with _told(self._url), begun(self._db):
                await self._refuse_living()

    async def add(self, table: Table, rows: Sequence[tuple[Any, ...]], *, ends: bool) -> None:
        """Store rows of the table that is being filled; `ends` where they were its last.

        Raises:
            StoreInUse: another copy goes on with the same.
        """
        before = self.progress
        after = compact(table.key(rows[-1])) if rows else before.after
        moved = before.moved + len(rows)
        then = Progress(before.part + 1, None, moved) if ends else Progress(before.part, after, moved)
        async with _told(self._url), begun(self._db):
            await self._advance(before, then)
            if rows:
                await self._store(table, rows)
            if then.part == len(TABLES):
                await self._finish()
        self.progress = then

    async def _advance(self, before: Progress, then: Progress) -> None:
        values = then.part, then.after, then.moved, before.part, before.after, before.moved
        if await self._db.execute(_ADVANCE, *values) != "UPDATE 1":
            raise StoreInUse(f"{shown(self._url)}: another relay copy fills it; wait for its end, or stop it")

    async def _store(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        names, extra = _stored_columns(table)
        records = [(*table.shifted(storable_row(row), self._base), *extra) for row in rows]
        await self._db.copy_records_to_table(
            table.name, schema_name=SCHEMA, columns=names, records=records, timeout=PART_S
        )

    async def _finish(self) -> None:
        """All rows are there: count what is counted, and have numbers go on above."""
        states = [str(state) for state in COUNTED]
        await self._db.execute("SET LOCAL enable_seqscan TO on")  # the only time that all is read for its own sake
        await self._db.execute(f"DELETE FROM counted WHERE node = {NOBODY}")
        await self._db.fetch(_COUNT, states, ROOM, OVERHEAD, timeout=LONG_S)
        await self._db.execute(_SET_JOBS)
        await keep_ahead(self._db)

    async def end(self, result: str) -> None:
        """The copy is verified: nodes may begin on it.

        Raises:
            StoreInUse: one has begun already: it had looked before this copy began.
        """
        async with _told(self._url), begun(self._db):
            await self._refuse_living()
            await self._db.execute(f"UPDATE copy SET ended_at = {NOW}, result = $1 WHERE ended_at IS NULL", result)
            for table in TABLES:
                await self._db.execute(f"ANALYZE {table.name}", timeout=LONG_S)
        self.result = result

    async def rows(self, table: Table) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """All that is stored of a table, in order, with the numbers of the source and with the checksums of bodies as
        the database itself has found them."""
        names = [f"sha256({c.name}) AS {c.name}" if c.kind == "body" else c.name for c in table.columns]
        own, values = _own_rows(table, self._base)
        keys = ", ".join(table.names[: table.keys])
        query = f"SELECT {', '.join(names)} FROM {table.name} {own} ORDER BY {keys}"
        async with _told(self._url), begun(self._db, BEGIN_READING):
            cursor = await self._db.cursor(query, *values)
            while page := await cursor.fetch(FETCHED, timeout=PART_S):
                yield [table.shifted(tuple(row), -self._base) for row in page]

    async def sum_counted(self) -> Mapping[tuple[str, str], int]:
        """How many deliveries are kept as counted, by target and state."""
        async with _told(self._url), begun(self._db, BEGIN_READING):
            query = "SELECT target, state, sum(number)::bigint FROM counted WHERE target != '' GROUP BY 1, 2"
            found = await self._db.fetch(query)
        return {(target, state): number for target, state, number in found if number}

    async def _refuse_what_is_used(self) -> None:
        await self._refuse_living()
        for name in _OWN:
            if await self._db.fetchval(f"SELECT EXISTS (SELECT 1 FROM {name})"):
                raise StoreUnusable(
                    f"{shown(self._url)}: holds rows of its own already (in {SCHEMA}.{name}), and a copy goes only "
                    f"into an empty store; name another database, or drop the schema {SCHEMA} of this one, with all "
                    "that it holds"
                )

    async def _refuse_living(self) -> None:
        name = await self._db.fetchval(_LIVING)
        if name is not None:
            raise StoreInUse(
                f"{shown(self._url)}: the relay {name} runs on it, or was killed less than {GONE_S} s ago; stop it, "
                "and try again"
            )

    def _of_another(self, row: Row, source: str) -> str:
        is_whole = "was copied" if row["ended_at"] is not None else "is being copied"
        which = (
            f"{row['source']} as it was then, and a relay has run on it since"
            if row["source"] == storable(source)
            else str(row["source"])
        )
        return (
            f"{shown(self._url)}: {which} {is_whole} into it, so {source} cannot be; name another database, or drop "
            f"the schema {SCHEMA} of this one, with all that it holds, and copy anew"
        )


def storable_row(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row as the database can hold it."""
    return tuple(storable(value) if isinstance(value, str) else value for value in row)


def _stored_columns(table: Table) -> tuple[list[str], tuple[Any, ...]]:
    """The columns that are written, and what stands in those that the source has not."""
    if table.name in _OF_NODES:
        return [*table.names, "node"], (NOBODY,)
    if table.name == "replay":
        return [*table.names, "node"], (NOBODY,)
    return list(table.names), ()


def _own_rows(table: Table, base: int) -> tuple[str, tuple[Any, ...]]:
    """Which rows of a table are of the copy."""
    if table.name in _OF_NODES:
        return f"WHERE node = {NOBODY}", ()
    if table.name in _NUMBERED:
        return "WHERE seq > $1", (base,)
    return "", ()


@asynccontextmanager
async def _told(url: str) -> AsyncIterator[None]:
    """Errors of the database in the words of the port."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise in_words(url, error) from None


@asynccontextmanager
async def arriving(url: str) -> AsyncIterator[Arriving]:
    """A database that is ready to be filled, its schema brought up to this version.

    Raises:
        StoreError: it must not or cannot be used.
    """
    db: asyncpg.Connection[Row] | None = None
    try:
        async with _told(url):
            db = await connect(url, kept=0)  # each is asked once or seldom, and a pooler may stand between
            await prepare(db, url, for_copy=True)
        yield Arriving(url, db)
    finally:
        await leave(db)
