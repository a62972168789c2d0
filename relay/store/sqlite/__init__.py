"""SQLite behind the storage port: the only SQL in the package, in the modules of this one.

Law: one process a file, one writing connection, views on a connection of their own that cannot write.
"""

import asyncio
import contextlib
import hashlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from relay.model import Claim, DeliveryState, TargetHealth
from relay.rules.fullness import Room
from relay.store import (
    Backlog,
    Copy,
    LongestWaits,
    StoreError,
    StoreUnusable,
    Watcher,
)
from relay.store.grouping.commits import Commits
from relay.store.grouping.rows import headers_from, millis, moment_if_sound
from relay.store.grouping.store import GroupStore
from relay.store.sqlite import batch
from relay.store.sqlite.archive import SqliteArchive
from relay.store.sqlite.connection import open_writer
from relay.store.sqlite.copying import Copying
from relay.store.sqlite.custody import Custody
from relay.store.sqlite.file import Guard, durability_warning
from relay.store.sqlite.following import SqliteFollowing
from relay.store.sqlite.ledger import Ledger
from relay.store.sqlite.presence import Presence
from relay.store.sqlite.pruning import Pruning
from relay.store.sqlite.reading import Reading, room_of
from relay.store.sqlite.replays import SqliteReplays
from relay.store.sqlite.schema import MIGRATIONS
from relay.store.sqlite.starting import guarded, in_words_of_the_port, resolved, tidy
from relay.store.sqlite.transaction import Transaction
from relay.store.sqlite.writer import Writer

CLOSE_S = 3.0
"""How long a close waits for the disk."""
HUNG_CLOSE_S = 1.0
"""The same for a disk that has not answered for a while: a stop has its time, and has waited already."""


class SqliteStore(GroupStore[Writer, Pruning]):
    """The port on one SQLite file."""

    def __init__(
        self, path: Path, guard: Guard, writer: Writer, reading: Reading, copying: Copying, commits: Commits
    ) -> None:
        super().__init__(writer, Pruning(reading, writer))
        self._path = path
        self._guard = guard
        self._reading = reading
        self._copying = copying
        self._archive = SqliteArchive(reading, writer)
        self.replays = SqliteReplays(reading, writer)
        self.following = SqliteFollowing(reading, commits)
        self._closing: asyncio.Task[None] | None = None
        self.aside: Path | None = None
        """Where a start that was to begin afresh has put what was there."""
        self.missing: str | None = None
        """What to say where the log of a killed process is gone."""

    @classmethod
    async def open(cls, path: Path, watcher: Watcher, *, afresh: bool = False) -> "SqliteStore":
        """Open or create the file, take back all claims of the process before, and count what waits.

        Args:
            path: the database file; its directory must exist.
            watcher: told of commits and outages.
            afresh: set aside whatever is there and start empty.

        Raises:
            StoreUnusable: it must not be used as it is; nothing was changed.
            StoreInUse: another process has it.
        """
        async with in_words_of_the_port(path):
            path = await asyncio.to_thread(resolved, path)
            async with AsyncExitStack() as undoing:
                guard, aside, missing = await asyncio.to_thread(guarded, path, afresh=afresh)
                undoing.callback(guard.release)
                connection = await open_writer(path)
                undoing.push_async_callback(connection.close)
                ledger = Ledger()
                await connection.run(partial(_take_over, ledger=ledger))
                await asyncio.to_thread(tidy, path, guard)
                reading = Reading(path)
                undoing.push_async_callback(reading.close)
                await reading.connection()
                await asyncio.to_thread(guard.remember, path, needs_log=True)
                presence = await asyncio.to_thread(Presence, path)
                undoing.pop_all()
        commits, copying = Commits(watcher), Copying(path)

        async def let_go() -> None:
            await copying.abandon()
            await reading.let_go()

        writer = Writer(
            path,
            connection,
            ledger,
            commits,
            custody=Custody(path, guard, presence),
            let_go=let_go,
        )
        reading.on_damage, reading.before = writer.doubt, presence.keep_index
        store = cls(path, guard, writer, reading, copying, commits)
        store.aside, store.missing = aside, missing
        return store

    @property
    def archive(self) -> SqliteArchive:
        """See `Store.archive`."""
        return self._archive

    async def release(self, claims: Iterable[Claim]) -> None:
        """See `Store.release`."""
        given_back = list(claims)
        if given_back:
            await self._writer.work(lambda tx: batch.release(tx, given_back))

    async def reclaim(self, now: datetime, *, alive: frozenset[int]) -> int:
        """See `Store.reclaim`."""
        number: int = await self._writer.work(lambda tx: batch.reclaim(tx, lease_before=now, alive=alive))
        return number

    async def shorten_waits(self, longest: Mapping[str, LongestWaits], *, now: datetime) -> int:
        """See `Store.shorten_waits`."""
        number: int = await self._writer.work(lambda tx: batch.shorten_waits(tx, longest, now=now))
        return number

    async def target_health(self, name: str) -> TargetHealth:
        """See `Store.target_health`."""
        return self._writer.ledger.health.get(name) or TargetHealth(name)

    async def change_health(self, name: str, change: Callable[[TargetHealth], TargetHealth]) -> TargetHealth:
        """See `Store.change_health`."""
        result: TargetHealth = await self._writer.work(lambda tx: batch.change_health(tx, name, change))
        return result

    async def change_healths(
        self, changes: Mapping[str, Callable[[TargetHealth], TargetHealth]]
    ) -> dict[str, TargetHealth]:
        """See `Store.change_healths`."""
        result: dict[str, TargetHealth] = await self._writer.work(
            lambda tx: {name: batch.change_health(tx, name, change) for name, change in changes.items()}
        )
        return result

    async def body(self, event_id: str) -> bytes:
        """See `Store.body`."""
        query = "SELECT sha256, body, CAST(headers AS BLOB) FROM event WHERE id = ?"
        rows = await self._reading.rows(query, (event_id,))
        if not rows:
            raise StoreUnusable(f"event {event_id} is not in the store")
        sha256, body, headers = rows[0]
        if hashlib.sha256(body).digest() != sha256:
            raise StoreUnusable(f"the stored body of event {event_id} is damaged: its checksum does not match")
        try:
            headers_from(headers)
        except ValueError:
            raise StoreUnusable(f"the stored headers of event {event_id} are damaged") from None
        return bytes(body)

    async def brought(self, event_id: str, enricher: str) -> bytes | None:
        """See `Store.brought`."""
        query = "SELECT data FROM brought WHERE event_seq = (SELECT seq FROM event WHERE id = ?) AND enricher = ?"
        rows = await self._reading.rows(query, (event_id, enricher))
        return bytes(rows[0][0]) if rows else None

    async def keep_brought(self, event_id: str, enricher: str, data: bytes, *, now: datetime) -> None:
        """See `Store.keep_brought`."""
        insert = """INSERT OR REPLACE INTO brought (event_seq, enricher, fetched_at, data)
            SELECT seq, ?, ?, ? FROM event WHERE id = ?"""
        await self._writer.work(lambda tx: tx.db.execute(insert, (enricher, millis(now), data, event_id)).rowcount)

    async def backlog(self, targets: Sequence[str]) -> list[Backlog]:
        """See `Store.backlog`."""
        counts = self._writer.ledger.counts
        return [
            Backlog(
                target,
                pending=counts[target, DeliveryState.PENDING],
                in_flight=counts[target, DeliveryState.IN_FLIGHT],
                dead=counts[target, DeliveryState.DEAD],
                oldest_received_at=await self._oldest(target),
            )
            for target in targets
        ]

    async def _oldest(self, target: str) -> datetime | None:
        rows = await self._reading.rows(
            """SELECT e.received_at FROM delivery d INDEXED BY delivery_open JOIN event e ON e.seq = d.event_seq
            WHERE d.target = ? AND d.state IN ('pending', 'in_flight') ORDER BY d.event_seq LIMIT 1""",
            (target,),
        )
        return moment_if_sound(rows[0][0]) if rows else None

    async def silence_told(self, source: str, now: datetime) -> None:
        """See `Store.silence_told`."""
        values = (millis(now), source)
        await self._writer.work(
            lambda tx: tx.db.execute("UPDATE heard SET silence_told_at = ? WHERE source = ?", values)
        )

    async def empty_log(self) -> bool:
        """See `Store.empty_log`."""
        return await self._pruning.empty_log()

    async def room(self) -> Room:
        """See `Store.room`."""
        return await self._reading.run(partial(room_of, path=self._path))

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[Copy]:
        """See `Store.copy`."""
        async with self._copying.copy(await self.room()) as copy:
            yield copy

    def warning(self) -> str | None:
        """Why the place of the file may not keep the promises, None where nothing speaks against it."""
        return durability_warning(self._path)

    def clock(self) -> datetime:
        """The time; there is nobody else who works on this file."""
        return datetime.now(UTC)

    def who(self) -> Mapping[str, object]:
        """Nobody else works on this file."""
        return {}

    async def close(self) -> bool:
        """See `Store.close`. Where it takes too long it goes on by itself, and the lock is held until it is done."""
        patience = CLOSE_S if self._writer.condition().writable else HUNG_CLOSE_S
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="store closing")
        await asyncio.wait({self._closing}, timeout=patience)
        if not self._closing.done():
            self._writer.abandon()
            return False
        self._closing.result()
        return True

    async def _close(self) -> None:
        try:
            await self._copying.abandon()
            await self._reading.close()
            await self._writer.finish()
            await self._remember()  # before SQLite deletes the log: a kill in between must not look like a loss
            await self._writer.close()
            await self._remember()
        finally:
            self._guard.release()

    async def _remember(self) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._writer.leave)


def _take_over(db: sqlite3.Connection, ledger: Ledger) -> None:
    """Learn what is stored, and make due again all that the process before had claimed."""
    ledger.load(db)
    tx = Transaction(db, ledger)
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT OR IGNORE INTO tally VALUES (0, '', '', 'began', ?)", (int(time.time()) // 60,))
    batch.reclaim(tx, lease_before=None, alive=frozenset())
    db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")  # writes, so that an empty log is never a used one
    db.execute("COMMIT")
    ledger.apply(tx.changes)


__all__ = ["SqliteStore", "StoreError"]
