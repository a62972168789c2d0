"""The writing task of one node: one connection, one transaction at a time, and both made anew in an outage.

Law: a transaction that was undone because of another node's is run again, whole. Whether a commit whose answer was
lost has been made is not known: what it promised is refused, and what it claimed is given back.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import SystemRandom
from typing import Any

import asyncpg

from relay.model import TargetHealth
from relay.store import StoreUnusable, Watcher
from relay.store.grouping.operations import Batch, Operation
from relay.store.grouping.writer import Done, GroupWriter
from relay.store.locations import shown
from relay.store.postgres import batch as verbs
from relay.store.postgres import node
from relay.store.postgres.claiming import claim
from relay.store.postgres.connection import begun, connect, in_words, is_contended, is_fault, learn, leave
from relay.store.postgres.node import Node
from relay.store.postgres.opening import prepare
from relay.store.postgres.releasing import release_rest
from relay.store.postgres.schema import SCHEMA
from relay.store.postgres.transaction import Known, NodeChanges, Transaction
from relay.store.postgres.types import Row

TRIES = 10
"""Runs of a transaction that others undo, before what it carries is refused."""
LIFE_BITS = 32
"""A claim's token is the life of its node, then its own number in that."""

_chance = SystemRandom()


class Writer(GroupWriter[NodeChanges]):
    """Owns the writing connection of a node from its making to `close`."""

    def __init__(self, url: str, db: "asyncpg.Connection[Row]", known: Known, own: Node, watcher: Watcher) -> None:
        super().__init__(watcher)
        self.known = known
        self.node = own
        self._url = url
        self._db: asyncpg.Connection[Row] | None = db
        self._numbers = itertools.count(1)
        self._is_doubted = False
        self.on_waiting: Callable[[Iterable[str]], None] = lambda _: None
        """Called with the targets at which something was stored that this node does not take at once."""

    def token(self) -> int:
        """A token that no claim has had."""
        return (self.node.life << LIFE_BITS) + next(self._numbers)

    def doubt(self) -> None:
        """See whether the database is there although nothing is to be written."""
        self._is_doubted = True
        self._inbox.stir()

    @property
    def remembered(self) -> Known:
        return self.known

    async def _release(self, tx: Transaction, target: str) -> None:
        await release_rest(tx, target)

    async def _rest(self) -> None:
        if self._is_doubted:
            self._is_doubted = False
            await self._connection().execute("SELECT 1")
        await self._stirred(None)

    async def _admit(self, batch: Batch) -> None:
        """The database itself says what it has no room for."""

    async def _transact(self, batch: Batch) -> Done[NodeChanges]:
        for attempt in itertools.count(1):
            try:
                tx = Transaction(self._connection(), self.known)
                async with begun(tx.db):
                    results = await _run(tx, batch)
            except asyncpg.PostgresError as error:
                if attempt < TRIES and learn(self._url, error):
                    await self._reconnect()
                elif attempt == TRIES or not is_contended(error):
                    raise
                await asyncio.sleep(_chance.uniform(0, 0.01 * attempt))
            else:
                return results, tx.changes
        raise AssertionError("not reached")

    def _apply(self, batch: Batch, changes: NodeChanges) -> None:  # noqa: ARG002 - a log of ours would want its size
        new = {name: one.health for name, one in changes.seen.items()}
        self.known.apply(changes)
        self.tell_healths(new)
        if changes.waiting:
            self.on_waiting(changes.waiting)

    def tell_healths(self, healths: Mapping[str, TargetHealth]) -> None:
        """Tell the claimant of healths that other nodes have changed."""
        if healths and self.claimant is not None:
            self.claimant.healths_seen(healths)

    def tell_bug(self, reason: str) -> None:
        """Tell of a fault of ours that stops nothing here."""
        self._teller.bug(reason)

    async def _roll_back(self) -> None:
        """`begun` has done so."""

    def _connection(self) -> "asyncpg.Connection[Row]":
        if self._db is None or self._db.is_closed():
            raise asyncpg.InterfaceError("the connection is closed")
        return self._db

    def _is_fault(self, error: BaseException) -> bool:
        return is_fault(error) or isinstance(error, StoreUnusable) or self._db is None or self._db.is_closed()

    def _in_words(self, error: Exception) -> str:
        if is_fault(error) or isinstance(error, asyncpg.PostgresError):
            return str(in_words(self._url, error))
        return f"{shown(self._url)}: the writer failed: {type(error).__name__}: {error}"

    def _fell_out(self, error: Exception) -> None:
        """The connection is made anew, whatever has failed; what bars that says more than what was seen first."""
        if self._outage is not None and self._failed_tries:
            self._outage = replace(self._outage, reason=self._in_words(error))

    async def _reconnect(self) -> None:
        db, self._db = self._db, None
        await leave(db)
        self._db = await connect(self._url)

    async def _reopen(self) -> None:
        db, self._db = self._db, None
        await leave(db)
        db = await connect(self._url)
        try:
            if await db.fetchval("SELECT to_regnamespace($1) IS NULL", SCHEMA):
                raise StoreUnusable(f"{shown(self._url)}: its schema {SCHEMA} is gone: restore it, or start anew")
            await prepare(db, self._url)
            async with begun(db):
                if not await node.beat(db, self.node):
                    self.node = await node.join(db)
                    self.known.node = self.node.id
                # their commit may have been made; the number that no request carried is taken again
                await self._undo(db, "claim = ANY($1::bigint[])", sorted(self._refused_claims), lower=1)
        except BaseException:
            await leave(db)
            raise
        self._db = db

    async def _undo(self, db: "asyncpg.Connection[Row]", which: str, value: object, *, lower: int = 0) -> None:
        """Make due again what is claimed and has nobody who would carry it any more."""
        rows = await db.fetch(
            f"""UPDATE delivery SET state = 'pending', attempts = attempts - {lower}, claim = NULL, lease_until = NULL
            WHERE state = 'in_flight' AND {which} RETURNING target""",
            value,
        )
        tx = Transaction(db, self.known)
        for (target,) in rows:
            tx.changes.moved(target, verbs.IN_FLIGHT, verbs.PENDING)
        await verbs.write_sums(tx)

    async def close(self) -> None:
        """Leave the other nodes, and close the connection, after `finish`."""
        db, self._db = self._db, None
        if db is None:
            return
        if self._outage is None:
            try:
                async with asyncio.timeout(1.0), begun(db):
                    await self._undo(db, f"claim >> {LIFE_BITS} = $1", self.node.life)
                    await node.leave(db, self.node)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                pass  # then it is gone when it was not heard for a while
        await leave(db)


async def _run(tx: Transaction, batch: Batch) -> list[tuple[Operation[Any], object]]:
    results: list[tuple[Operation[Any], object]] = []
    if batch.settlements:
        settled = await verbs.settle(tx, [op.wish for op in batch.settlements])
        results += zip(batch.settlements, settled, strict=True)
    for op in batch.works:
        results.append((op, await op.wish(tx)))
    if batch.accepts:
        accepted = await verbs.accept(tx, [op.wish for op in batch.accepts], batch.handing)
        results += zip(batch.accepts, accepted, strict=True)
    if batch.claims:
        claimed = await claim(tx, [op.wish for op in batch.claims])
        results += zip(batch.claims, claimed, strict=True)
    await tx.write_health()
    await verbs.write_sums(tx)
    return results
