"""PostgreSQL behind the storage port: any number of nodes on one database.

Law: what a node knows by heart is a hint; the database decides. Whatever a transaction changes for others it holds by
locks that every node takes in the same order, and claims by a lease and a fence.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime
from pathlib import Path

import asyncpg

from relay.model import Claim, TargetHealth
from relay.rules.forwarding import rfc3339
from relay.rules.fullness import Room
from relay.store import (
    Backlog,
    Copy,
    LongestWaits,
    NoCopies,
    StoreError,
    StoreUnusable,
    Watcher,
)
from relay.store.grouping.commits import Commits
from relay.store.grouping.rows import millis, moment
from relay.store.grouping.store import GroupStore
from relay.store.locations import shown
from relay.store.postgres import batch, node
from relay.store.postgres.archive import PostgresArchive
from relay.store.postgres.connection import begun, connected, in_words, leave
from relay.store.postgres.following import PostgresFollowing
from relay.store.postgres.opening import durability_warning, prepare
from relay.store.postgres.pruning import Pruning
from relay.store.postgres.reading import Reading
from relay.store.postgres.replays import PostgresReplays
from relay.store.postgres.transaction import Known, Transaction
from relay.store.postgres.types import Connection
from relay.store.postgres.watching import Watching
from relay.store.postgres.writer import Writer

CLOSE_S = 3.0
"""How long a close waits for the database."""
BOUNDLESS = 1 << 62
"""The disk of the database is not ours to see: what it has no room for it says itself."""


class PostgresStore(GroupStore[Writer, Pruning]):
    """The port on one PostgreSQL database, as one of its nodes."""

    def __init__(
        self, url: str, known: Known, writer: Writer, commits: Commits, clock: node.Clock, *, warning: str | None
    ) -> None:
        reading = Reading(url)
        super().__init__(writer, Pruning(reading, writer, known))
        self._url = url
        self._known = known
        self._reading = reading
        self._watching = Watching(url, known, writer, clock, woken=self._wake)
        writer.on_waiting = self._watching.hint
        self._archive = PostgresArchive(reading, writer)
        self.replays = PostgresReplays(reading, writer, known)
        self.following = PostgresFollowing(reading, commits)
        self._warning = warning
        self.aside: Path | None = None
        self.missing: str | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: str, watcher: Watcher) -> "PostgresStore":
        """Bring the database's schema up to this version, join its nodes, and take back what has outlived its lease.

        Args:
            url: `postgresql://user:password@host:port/database`.
            watcher: told of commits and outages.

        Raises:
            StoreUnusable: the schema is newer than this program, or may not be made.
            StoreUnavailable: the database cannot be reached now.
        """
        commits = Commits(watcher)
        try:
            async with AsyncExitStack() as undoing:
                db = await connected(url, watcher)
                undoing.push_async_callback(leave, db)
                await prepare(db, url)
                known = Known()
                async with begun(db):
                    own = await node.join(db)
                    found = await node.look(db, known.health)
                    warning = await durability_warning(db, url)
                    clock = await node.Clock.read(db)
                undoing.pop_all()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise in_words(url, error) from None
        known.node, known.counts, known.heard = own.id, found.counts, found.heard
        known.silences_told = found.silences_told
        known.learn(found.health)
        store = cls(url, known, Writer(url, db, known, own, commits), commits, clock, warning=warning)
        try:
            await store.reclaim(store.clock(), alive=frozenset())
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def archive(self) -> PostgresArchive:
        """See `Store.archive`."""
        return self._archive

    def clock(self) -> datetime:
        """The time of the database, which is that of all nodes."""
        return self._watching.clock()

    def who(self) -> Mapping[str, object]:
        """See `OpenStore.who`."""
        return {
            "node": node.name(),
            "nodes": [
                {
                    "name": one.name,
                    "version": one.version,
                    "started_at": rfc3339(one.started_at),
                    "heard_at": rfc3339(one.heard_at),
                }
                for one in self._watching.nodes
            ],
        }

    def _wake(self, targets: Iterable[str]) -> None:
        if self._writer.claimant is not None:
            self._writer.claimant.stored((), targets)

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
        found = await self._reading.run(lambda db: node.health_of(db, self._known.health, name))
        return found or TargetHealth(name)

    async def change_health(self, name: str, change: Callable[[TargetHealth], TargetHealth]) -> TargetHealth:
        """See `Store.change_health`."""
        return (await self.change_healths({name: change}))[name]

    async def change_healths(
        self, changes: Mapping[str, Callable[[TargetHealth], TargetHealth]]
    ) -> dict[str, TargetHealth]:
        """See `Store.change_healths`."""
        result: dict[str, TargetHealth] = await self._writer.work(lambda tx: batch.change_healths(tx, changes))
        return result

    async def body(self, event_id: str) -> bytes:
        """See `Store.body`."""
        rows = await self._reading.rows("SELECT sha256, body FROM event WHERE id = $1", event_id)
        if not rows:
            raise StoreUnusable(f"event {event_id} is not in the store")
        sha256, body = rows[0]
        if hashlib.sha256(body).digest() != sha256:
            raise StoreUnusable(f"the stored body of event {event_id} is damaged: its checksum does not match")
        return bytes(body)

    async def brought(self, event_id: str, enricher: str) -> bytes | None:
        """See `Store.brought`."""
        query = "SELECT data FROM brought WHERE event_seq = (SELECT seq FROM event WHERE id = $1) AND enricher = $2"
        rows = await self._reading.rows(query, event_id, enricher)
        return bytes(rows[0][0]) if rows else None

    async def keep_brought(self, event_id: str, enricher: str, data: bytes, *, now: datetime) -> None:
        """See `Store.keep_brought`."""
        insert = """INSERT INTO brought (event_seq, enricher, fetched_at, data)
            SELECT seq, $1, $2, $3 FROM event WHERE id = $4 FOR KEY SHARE
            ON CONFLICT (event_seq, enricher) DO UPDATE SET fetched_at = excluded.fetched_at, data = excluded.data"""
        await self._writer.work(lambda tx: tx.run(insert, enricher, millis(now), data, event_id))

    async def backlog(self, targets: Sequence[str]) -> list[Backlog]:
        """See `Store.backlog`."""
        counts, oldest = await self._reading.run(lambda db: _backlog(db, targets))
        return [
            Backlog(
                target,
                pending=counts.get((target, "pending"), 0),
                in_flight=counts.get((target, "in_flight"), 0),
                dead=counts.get((target, "dead"), 0),
                oldest_received_at=moment(oldest.get(target)),
            )
            for target in targets
        ]

    async def silence_told(self, source: str, now: datetime) -> None:
        """See `Store.silence_told`."""

        async def told(tx: Transaction) -> None:
            await tx.run("UPDATE heard SET silence_told_at = $1 WHERE source = $2", millis(now), source)

        await self._writer.work(told)

    async def empty_log(self) -> bool:
        """See `Store.empty_log`: the log is the server's, and looked after by it."""
        return True

    async def room(self) -> Room:
        """See `Store.room`: what is stored, by a kept sum. The tables take more: what is deleted leaves room in them,
        which the server uses again in its own time. Its disk is not ours to see."""
        query = "SELECT coalesce(sum(number), 0)::bigint FROM counted WHERE target = '' AND state = $1"
        ((used,),) = await self._reading.rows(query, node.ROOM)
        return Room(used=used, log=0, free=BOUNDLESS, disk=BOUNDLESS)

    def copy(self) -> AbstractAsyncContextManager[Copy]:
        """See `Store.copy`: the database has its own means for that."""
        raise NoCopies(f"{shown(self._url)}: back it up with pg_dump, or by the server's own means")

    def warning(self) -> str | None:
        """Why the server may not keep the promises, None where nothing speaks against it."""
        return self._warning

    async def close(self) -> bool:
        """See `Store.close`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="store closing")
        await asyncio.wait({self._closing}, timeout=CLOSE_S)
        if not self._closing.done():
            self._writer.abandon()
            self._closing.cancel()
            return True  # no thread is left, and nothing waits for the network
        self._closing.result()
        return True

    async def _close(self) -> None:
        await self._watching.close()
        await self._writer.finish()
        await self._reading.close()
        await self._writer.close()


async def _backlog(db: Connection, targets: Sequence[str]) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    named = list(targets)
    sums = "SELECT target, state, sum(number)::bigint FROM counted WHERE target = ANY($1::text[]) GROUP BY 1, 2"
    counts = {(target, state): number for target, state, number in await db.fetch(sums, named)}
    oldest = """SELECT t.name, (SELECT e.received_at FROM delivery d JOIN event e ON e.seq = d.event_seq
            WHERE d.target = t.name AND d.state IN ('pending', 'in_flight') ORDER BY d.event_seq LIMIT 1)
        FROM unnest($1::text[]) AS t (name)"""
    return counts, {target: at for target, at in await db.fetch(oldest, named)}  # noqa: C416 - records are no pairs


__all__ = ["PostgresStore", "StoreError"]
