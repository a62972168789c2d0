"""The one task that writes: it drains what is waiting, runs it in one transaction, then resolves the callers.

Law: no other task touches the writing connection. A caller waits on a future and owns nothing else, so that one who
is cancelled can neither lose nor publish a stranger's rows. The commit under way is the only linger: at rest an
event waits for nobody, under load hundreds share one fsync.

During an outage everything is refused at once, but settlements: they wait here and are written first when the store
is back, because nothing may be sent again just because a mark failed.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiosqlite
from tenacity import RetryCallState, Retrying, wait_exponential

from relay.store import Condition, Settled, Settlement, StoreError, StoreUnavailable, Watcher
from relay.store.sqlite import batch
from relay.store.sqlite.batch import AcceptWish
from relay.store.sqlite.claiming import ClaimWish, claim
from relay.store.sqlite.connection import NO_CONNECTION, in_words, is_fault, open_writer
from relay.store.sqlite.ledger import Ledger
from relay.store.sqlite.transaction import Transaction

BATCH = 1000
"""Operations of a kind in one transaction: long enough to share the fsync, short enough not to delay an answer."""
QUEUE = 10_000
"""Events that may wait for the writer; beyond it new ones are refused."""
QUEUE_BYTES = 64 * 1024 * 1024
PATIENCE_S = 3.0
"""How long an event waits for its commit before it is refused."""
CHECKPOINT_S = 0.5
IDLE_CHECKPOINT_S = 30.0
CHECKPOINT_COMMITS = 200
WRITE_TEST = 256 * 1024
"""Bytes that must fit before a store counts as recovered."""
CLOSED = "the store is closed"

_pause = wait_exponential(multiplier=0.25, max=2.0)

Wish = TypeVar("Wish")
Work = Callable[[Transaction], Awaitable[Any]]


class Operation(Generic[Wish]):
    """One wish and the future on which its caller waits."""

    __slots__ = ("future", "since", "wish")

    def __init__(self, wish: Wish, since: float) -> None:
        self.wish = wish
        self.since = since
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def resolve(self, result: object) -> None:
        """Tell the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(result)

    def refuse(self, error: Exception) -> None:
        """Tell the caller that it failed, if it still waits."""
        if not self.future.done():
            self.future.set_exception(error)


class Batch:
    """What one transaction carries, in the order in which it is run."""

    def __init__(
        self,
        settlements: Sequence[Operation[Settlement]] = (),
        works: Sequence[Operation[Work]] = (),
        accepts: Sequence[Operation[AcceptWish]] = (),
        claims: Sequence[Operation[ClaimWish]] = (),
    ) -> None:
        self.settlements = settlements
        self.works = works
        self.accepts = accepts
        self.claims = claims

    def __len__(self) -> int:
        return len(self.settlements) + len(self.works) + len(self.accepts) + len(self.claims)

    @property
    def refusable(self) -> list[Operation[Any]]:
        """All that an outage refuses."""
        return [*self.works, *self.accepts, *self.claims]

    def refuse(self, error: Exception) -> None:
        """Tell all its callers that it failed."""
        for operation in (*self.settlements, *self.refusable):
            operation.refuse(error)

    def halves(self) -> "list[Batch]":
        """The same as two smaller batches, in order, to find the operation that spoils it; none of a single one."""
        if len(self) < 2:
            return []
        kinds = self.settlements, self.works, self.accepts, self.claims
        middle, seen = len(self) // 2, 0
        first, second = Batch(), Batch()
        for name, operations in zip(("settlements", "works", "accepts", "claims"), kinds, strict=True):
            cut = max(0, middle - seen)
            setattr(first, name, operations[:cut])
            setattr(second, name, operations[cut:])
            seen += len(operations)
        return [first, second]

    async def run(self, tx: Transaction) -> list[tuple[Operation[Any], object]]:
        """Do it all inside a transaction; return who gets which result after the commit."""
        results: list[tuple[Operation[Any], object]] = []
        if self.settlements:
            settled = await batch.settle(tx, [op.wish for op in self.settlements])
            results += zip(self.settlements, settled, strict=True)
        for op in self.works:
            results.append((op, await op.wish(tx)))
        if self.accepts:
            accepted = await batch.accept(tx, [op.wish for op in self.accepts])
            results += zip(self.accepts, accepted, strict=True)
        if self.claims:
            claimed = await claim(tx, [op.wish for op in self.claims])
            results += zip(self.claims, claimed, strict=True)
        await batch.write_health(tx)
        return results


class Writer:
    """Owns the writing connection from `start` to `close`."""

    def __init__(
        self,
        path: Path,
        connection: aiosqlite.Connection,
        ledger: Ledger,
        watcher: Watcher,
        check: Callable[[], None],
    ) -> None:
        """`check` raises `StoreUnusable` where the file is not what it was, before it is opened anew."""
        self.ledger = ledger
        self._check = check
        self._path = path
        self._db: aiosqlite.Connection | None = connection
        self._watcher = watcher
        self._settlements: deque[Operation[Settlement]] = deque()
        self._works: deque[Operation[Work]] = deque()
        self._accepts: deque[Operation[AcceptWish]] = deque()
        self._claims: deque[Operation[ClaimWish]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._current: Batch | None = None
        self._closing = asyncio.Event()
        self._outage: Condition | None = None
        self._failed_tries = 0
        self._unchecked = 0
        self._checked_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="store writer")
        self._impatience: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being written."""
        return self._current is None and not (self._settlements or self._works or self._accepts or self._claims)

    @property
    def task(self) -> "asyncio.Task[None]":
        """The writing task; it ends only by `close` or by a bug."""
        return self._task

    def condition(self) -> Condition:
        """Whether writes are taken."""
        return self._outage or Condition(writable=not self._task.done())

    def accept(self, wish: AcceptWish) -> "asyncio.Future[Any]":
        """Queue an event; refused at once where the queue is full or the store is out."""
        if len(self._accepts) >= QUEUE or self._bytes > QUEUE_BYTES:
            raise StoreUnavailable("overloaded: too many events wait for the disk")
        self._refuse_in_outage()
        self._bytes += len(wish.event.body)
        self._watch_the_late()
        return self._queue(self._accepts, wish)

    def claim(self, wish: ClaimWish) -> "asyncio.Future[Any]":
        """Queue a call for deliveries."""
        self._refuse_in_outage()
        return self._queue(self._claims, wish)

    def work(self, work: Work) -> "asyncio.Future[Any]":
        """Queue anything else that needs the transaction."""
        self._refuse_in_outage()
        return self._queue(self._works, work)

    def settle(self, settlement: Settlement) -> "asyncio.Future[Settled]":
        """Queue a settlement; it outlives any outage, but not the store."""
        if self._task.done():
            raise StoreUnavailable(CLOSED)
        return self._queue(self._settlements, settlement)

    def _queue(self, queue: "deque[Operation[Wish]]", wish: Wish) -> "asyncio.Future[Any]":
        operation = Operation(wish, time.monotonic())
        queue.append(operation)
        self._wake.set()
        return operation.future

    def _refuse_in_outage(self) -> None:
        if self._closing.is_set():
            raise StoreUnavailable("the store is closing")
        if self._task.done():
            raise StoreUnavailable(CLOSED)
        if self._outage is not None:
            raise StoreUnavailable(self._outage.reason)

    async def close(self) -> None:
        """Write what waits, once, and close the connection; during an outage nothing more is tried."""
        self._closing.set()
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._impatience is not None:
            self._impatience.cancel()
        waiting: list[Operation[Any]] = [*self._settlements, *self._works, *self._accepts, *self._claims]
        for operation in waiting:
            operation.refuse(StoreUnavailable(CLOSED))
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error, ValueError):
                if self._outage is None:
                    await self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                await self._db.close()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self.idle:
                await self._write(self._take())
                if self._outage is not None:
                    await self._recover()
                if self._outage is not None:
                    return  # closing: nothing more is tried
            if self._closing.is_set():
                return
            await self._checkpoint_if_due()

    def _take(self) -> Batch:
        drained = _drain(self._accepts)
        self._bytes -= sum(len(op.wish.event.body) for op in drained)
        accepts = [op for op in drained if not op.future.done()]
        claims = [op for op in _drain(self._claims) if not op.future.done()]
        return Batch(_drain(self._settlements), _drain(self._works), accepts, claims)

    async def _write(self, batch_: Batch) -> None:
        """Commit a batch and tell its callers; where it fails, halve it until what spoils it stands alone."""
        if not len(batch_):
            return
        self._current = batch_
        waiting = [batch_]
        while waiting:
            part = waiting.pop(0)
            try:
                seconds = await self._commit(part)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is undone and the callers are told
                await self._roll_back()
                if is_fault(error):
                    self._fall_out([part, *waiting], error)
                    break
                waiting = [*part.halves(), *waiting]
                if len(part) == 1:
                    part.refuse(error)
            else:
                self._watcher.committed(seconds)
        self._current = None
        if self._unchecked >= CHECKPOINT_COMMITS and self._outage is None:
            await self._checkpoint_if_due()

    async def _commit(self, batch_: Batch) -> float:
        db = self._connection()
        began = time.perf_counter()
        await db.execute("BEGIN IMMEDIATE")
        tx = Transaction(db, self.ledger)
        results = await batch_.run(tx)
        await db.execute("COMMIT")
        self.ledger.apply(tx.changes)
        self._unchecked += 1
        for operation, result in results:
            operation.resolve(result)
        return time.perf_counter() - began

    def _connection(self) -> aiosqlite.Connection:
        if self._db is None:
            raise sqlite3.ProgrammingError(NO_CONNECTION)
        return self._db

    async def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error, ValueError):
            if self._db is not None and self._db.in_transaction:
                await self._db.execute("ROLLBACK")

    def _fall_out(self, unwritten: Sequence[Batch], error: Exception) -> None:
        """Keep the settlements, in order; refuse the rest until the store is back."""
        reason = str(in_words(self._path, error))
        if self._outage is None:
            self._outage = Condition(writable=False, reason=reason, since=datetime.now(UTC))
            self._watcher.unavailable(reason)
        kept = [operation for part in unwritten for operation in part.settlements]
        self._settlements.extendleft(reversed(kept))
        refused = [operation for part in unwritten for operation in part.refusable]
        for operation in (*refused, *self._works, *self._accepts, *self._claims):
            operation.refuse(StoreUnavailable(reason))
        self._works.clear()
        self._accepts.clear()
        self._claims.clear()
        self._bytes = 0

    async def _recover(self) -> None:
        """Open the file anew until a write is taken: after a failed fsync the page cache cannot be trusted."""
        self._failed_tries = 0
        while self._outage is not None and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _pause(_attempt(self._failed_tries)))
                return
            self._failed_tries += 1
            await self._try_again()

    async def _try_again(self) -> None:
        """Open, write and delete something as large as a busy transaction, and learn anew what is committed: a commit
        whose fsync failed may have reached the disk all the same."""
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(sqlite3.Error, ValueError):
                await db.close()
        try:
            self._check()
            self._db = await open_writer(self._path)
            await self._db.execute("BEGIN IMMEDIATE")
            await self._db.execute("DROP TABLE IF EXISTS write_test")
            await self._db.execute(f"CREATE TABLE write_test AS SELECT zeroblob({WRITE_TEST}) AS filler")
            await self._db.execute("COMMIT")
            await self._db.execute("DROP TABLE write_test")
            await self.ledger.load(self._db)
        except (sqlite3.Error, StoreError, OSError):
            await self._roll_back()
            return
        assert self._outage is not None
        assert self._outage.since is not None
        seconds = (datetime.now(UTC) - self._outage.since).total_seconds()
        self._outage = None
        self._watcher.recovered(seconds)

    async def _checkpoint_if_due(self) -> None:
        """Move the log's pages home between commits, where no answer waits for it."""
        pause = CHECKPOINT_S if self._unchecked >= CHECKPOINT_COMMITS else IDLE_CHECKPOINT_S
        if not self._unchecked or self._db is None or time.monotonic() - self._checked_at < pause:
            return
        self._checked_at = time.monotonic()
        self._unchecked = 0
        try:
            await self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except (sqlite3.Error, ValueError) as error:
            self._fall_out([], error)
            await self._recover()

    def _watch_the_late(self) -> None:
        """Look at what waits a little later, unless that is arranged; at rest no timer runs."""
        if self._impatience is None:
            self._impatience = asyncio.get_running_loop().call_later(PATIENCE_S / 10, self._refuse_the_late)

    def _refuse_the_late(self) -> None:
        """Refuse events whose commit takes too long: a sender is told to come again rather than left hanging."""
        self._impatience = None
        latest = time.monotonic() - PATIENCE_S
        current = self._current.accepts if self._current else ()
        for operation in (*current, *self._accepts):
            if operation.since > latest:
                break
            operation.refuse(StoreUnavailable(f"slow: no commit within {PATIENCE_S:g} s"))
        if current or self._accepts:
            self._watch_the_late()


def _attempt(number: int) -> RetryCallState:
    state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = number + 1
    return state


def _drain(queue: "deque[Operation[Wish]]") -> list[Operation[Wish]]:
    return [queue.popleft() for _ in range(min(len(queue), BATCH))]
