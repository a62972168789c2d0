"""The one task that writes: it drains what is waiting, runs it in one transaction, then resolves the callers.

Law: no other task touches the writing connection. A caller waits on a future and owns nothing else, so that one who
is cancelled can neither lose nor publish a stranger's rows. The commit under way is the only linger: at rest an
event waits for nobody, under load hundreds share one fsync.

During an outage everything is refused at once, but settlements: they wait here and are written first when the store
is back, because nothing may be sent again just because a mark failed.
"""

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from relay.store import Condition, Settled, Settlement, StoreError, StoreUnavailable, StoreUnusable, Watcher
from relay.store.sqlite.admission import Admission
from relay.store.sqlite.batch import AcceptWish
from relay.store.sqlite.checkpoints import Checkpoints, cut_log
from relay.store.sqlite.claiming import ClaimWish
from relay.store.sqlite.connection import NO_CONNECTION, StoreConnection, in_words, is_fault
from relay.store.sqlite.custody import Custody
from relay.store.sqlite.ledger import Ledger
from relay.store.sqlite.operations import Batch, Operation, Wish, Work, drain, next_release
from relay.store.sqlite.recovering import open_anew, pause_after, taints

QUEUE = 10_000
"""Events that may wait for the writer; beyond it new ones are refused."""
QUEUE_BYTES = 64 * 1024 * 1024
PATIENCE_S = 3.0
"""How long an event waits for its commit before it is refused."""
STANDSTILL_S = 1.0
"""A look that comes so much later than it was to was held up by ourselves."""
BREATH_S = 0.1
"""Between a bug of the loop and its next turn, so that one that stays cannot spin."""
CLOSED = "the store is closed"
OVERLOADED = "overloaded: too many events wait for the disk"
SLOW = f"slow: no commit within {PATIENCE_S:g} s"
_WELL = Condition(writable=True)


class Writer:
    """Owns the writing connection from `start` to `close`."""

    def __init__(
        self,
        path: Path,
        connection: StoreConnection,
        ledger: Ledger,
        watcher: Watcher,
        *,
        custody: Custody,
        let_go: Callable[[], Awaitable[None]],
    ) -> None:
        """`custody` tells whether the files are what they were; `let_go` closes all other connections."""
        self.ledger = ledger
        self._custody = custody
        self._presence = presence = custody.presence
        self._let_go = let_go
        self._path = path
        self._db: StoreConnection | None = connection
        self._watcher = watcher
        self._settlements: deque[Operation[Settlement]] = deque()
        self._works: deque[Operation[Work]] = deque()
        self._accepts: deque[Operation[AcceptWish]] = deque()
        self._claims: deque[Operation[ClaimWish]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._current: Batch | None = None
        self._unwritten: list[Batch] = []
        self._refused_claims: set[int] = set()
        self._closing = asyncio.Event()
        self._outage: Condition | None = None
        self._told: Condition | None = None
        self._is_watched = True
        self._failed_tries = 0
        self._is_tainted = False
        self._is_doubted = False
        self._checkpoints = Checkpoints(presence)
        self._admission = Admission(path, presence)
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="store writer")
        self._impatience: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being written."""
        return self._current is None and not (any(self._queues) or self.ledger.rests)

    @property
    def _queues(self) -> "tuple[deque[Any], ...]":
        return self._settlements, self._works, self._accepts, self._claims

    @property
    def task(self) -> "asyncio.Task[None]":
        """The writing task; it ends only by `close` or by a bug."""
        return self._task

    def condition(self) -> Condition:
        """Whether writes are taken, and taken in time: a disk that hangs is no error, and as bad as one."""
        if self._outage is not None:
            return self._outage
        if self._task.done():
            bug = None if self._task.cancelled() else self._task.exception()
            return Condition(writable=False, reason=f"the writer died: {bug!r}" if bug else CLOSED)
        if self._current is None and not any(self._queues):
            return _WELL
        now, waits = time.monotonic(), [queue[0].since for queue in self._queues if queue]
        waited = now - min([now, *waits, self._current.since if self._current else now])
        if waited <= PATIENCE_S and not self._is_overloaded:
            return _WELL
        reason = SLOW if waited > PATIENCE_S else OVERLOADED
        return Condition(writable=False, reason=reason, since=datetime.now(UTC) - timedelta(seconds=waited))

    @property
    def _is_overloaded(self) -> bool:
        return len(self._accepts) >= QUEUE or self._bytes > QUEUE_BYTES

    def accept(self, wish: AcceptWish) -> "asyncio.Future[Any]":
        """Queue an event; refused at once where the queue is full or the store is out."""
        if self._is_overloaded:
            raise StoreUnavailable(OVERLOADED)
        self._refuse_in_outage()
        self._bytes += len(wish.event.body)
        return self._queue(self._accepts, wish)

    def claim(self, wish: ClaimWish) -> "asyncio.Future[Any]":
        """Queue a call for deliveries."""
        self._refuse_in_outage()
        return self._queue(self._claims, wish)

    def work(self, work: Work) -> "asyncio.Future[Any]":
        """Queue anything else that needs the transaction."""
        self._refuse_in_outage()
        return self._queue(self._works, work)

    def empty_log(self) -> "asyncio.Future[None]":
        """Have the log emptied as soon as no reader needs it; the future is done when it is."""
        self._wake.set()
        return self._checkpoints.empty()

    def doubt(self) -> None:
        """Look at the files although nobody writes: what was read of them is damaged."""
        self._is_doubted = True
        self._wake.set()

    def settle(self, settlement: Settlement) -> "asyncio.Future[Settled]":
        """Queue a settlement; it outlives any outage, but not the store."""
        if self._task.done():
            raise StoreUnavailable(CLOSED)
        return self._queue(self._settlements, settlement)

    def _queue(self, queue: "deque[Operation[Wish]]", wish: Wish) -> "asyncio.Future[Any]":
        operation = Operation(wish, self._loop)
        queue.append(operation)
        self._wake.set()
        self._watch_the_late()
        return operation.future

    def _refuse_in_outage(self) -> None:
        if self._closing.is_set():
            raise StoreUnavailable("the store is closing")
        if self._task.done():
            raise StoreUnavailable(CLOSED)
        if self._outage is not None:
            raise StoreUnavailable(self._outage.reason)

    async def finish(self) -> None:
        """Write what waits, once, and empty the log; during an outage nothing more is tried."""
        self._closing.set()
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)
        self.abandon()
        if self._impatience is not None:
            self._impatience.cancel()
        if self._db is not None and self._outage is None:
            try:
                await self._db.run(self._presence.moving(cut_log))
            except (sqlite3.Error, ValueError, OSError, StoreUnusable) as error:
                self._fall_out(error)
        if self._db is not None and self._outage is not None:
            with contextlib.suppress(sqlite3.Error, ValueError, OSError):
                await self._db.run(self._presence.save)

    async def close(self) -> None:
        """Close the connection, after `finish`."""
        self._presence.release()
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error, ValueError), self._custody.closing(is_out=self._outage is not None):
                await self._db.close()

    def leave(self) -> None:
        """Note how the file is left, for the next process."""
        self._custody.leave(is_out=self._outage is not None)

    def abandon(self) -> None:
        """Refuse all that waits or is under way: nothing more is promised, whatever the disk still does."""
        for queue in self._queues:
            for operation in queue:
                operation.refuse(StoreUnavailable(CLOSED))
        if self._current is not None:
            self._current.refuse(StoreUnavailable(CLOSED))

    async def _run(self) -> None:
        """Write until closed. A bug of a turn is an outage like others: told, and over when a write is taken."""
        while True:
            try:
                if self._outage is not None:
                    await self._recover()
                if self._closing.is_set() and (self._outage is not None or self.idle):
                    return  # in an outage nothing more is tried
                await self._turn()
            except Exception as error:  # noqa: BLE001 - a writer that died silently would be the worst outage
                self._fall_out(error)
                await asyncio.sleep(BREATH_S)

    async def _turn(self) -> None:
        """Write what waits; where nothing does, tidy up and wait."""
        if not self.idle:
            await self._write(self._take())
            return
        await self._checkpoint_if_due()
        if self._outage is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._checkpoints.pause)
            self._wake.clear()

    def _take(self) -> Batch:
        drained = drain(self._accepts)
        self._bytes -= sum(len(op.wish.event.body) for op in drained)
        accepts = [op for op in drained if not op.future.done()]
        claims = [op for op in drain(self._claims) if not op.future.done()]
        works = drain(self._works)
        works += [next_release(self.ledger, target) for target in self.ledger.rests]
        return Batch(drain(self._settlements), works, accepts, claims)

    async def _write(self, batch_: Batch) -> None:
        """Commit a batch and tell its callers; where it fails, halve it until what spoils it stands alone."""
        if not len(batch_):
            return
        self._current = batch_
        self._unwritten = [batch_]
        while self._unwritten:
            part = self._unwritten[0]
            try:
                seconds = await self._commit(part)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is undone and the callers are told
                await self._roll_back()
                if is_fault(error) or isinstance(error, StoreUnusable):
                    self._fall_out(error)
                    return
                self._unwritten[:1] = part.halves()
                if len(part) == 1:
                    part.refuse(error)
            else:
                del self._unwritten[0]
                self._tell_commit(seconds)
        self._current = None
        if self._checkpoints.press:
            await self._checkpoint_if_due()

    async def _commit(self, batch_: Batch) -> float:
        db = self._connection()
        await self._admission.admit(batch_, db)
        began = time.perf_counter()
        results, changes = await db.run(self._presence.committing(partial(batch_.commit, ledger=self.ledger)))
        self.ledger.apply(changes)
        self._checkpoints.committed(batch_.size)
        for operation, result in results:
            operation.resolve(result)
        return time.perf_counter() - began

    def _connection(self) -> StoreConnection:
        if self._db is None:
            raise sqlite3.ProgrammingError(NO_CONNECTION)
        return self._db

    async def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error, ValueError):
            if self._db is not None and self._db.in_transaction:
                await self._db.execute("ROLLBACK")

    def _fall_out(self, error: Exception) -> None:
        """Keep the settlements, in order; refuse the rest until the store is back."""
        reason = str(error if isinstance(error, StoreError) else in_words(self._path, error))
        if not isinstance(error, sqlite3.Error | StoreError | OSError) and not is_fault(error):
            reason = f"{self._path}: the writer failed: {type(error).__name__}: {error}"
        if self._outage is None:
            self._outage = Condition(writable=False, reason=reason, since=datetime.now(UTC))
        self._is_tainted = taints(error)
        unwritten, self._unwritten, self._current = self._unwritten, [], None
        kept = [operation for part in unwritten for operation in part.settlements]
        self._settlements.extendleft(reversed(kept))
        refused = [operation for part in unwritten for operation in part.refusable]
        self._refused_claims.update(operation.wish.token for part in unwritten for operation in part.claims)
        for operation in (*refused, *self._works, *self._accepts, *self._claims):
            operation.refuse(StoreUnavailable(reason))
        self._works.clear()
        self._accepts.clear()
        self._claims.clear()
        self._bytes = 0
        self._tell()

    def _tell(self) -> None:
        """Tell the watcher what has changed, once each way; one that fails must not stop the writing."""
        condition, told = self.condition(), self._told
        if condition.writable == (told is None):
            return
        self._told = None if condition.writable else condition
        with contextlib.suppress(Exception):
            if told is None:
                self._watcher.unavailable(condition.reason)
            else:
                self._watcher.recovered((datetime.now(UTC) - (told.since or datetime.now(UTC))).total_seconds())

    def _tell_commit(self, seconds: float) -> None:
        """Tell of a commit; that the watcher failed is told once, and is over at once: the commit stands."""
        try:
            self._watcher.committed(seconds)
            self._is_watched = True
        except Exception as error:  # noqa: BLE001 - a bug of who watches is no reason to lose what was handed in
            if self._is_watched and self._told is None:
                self._is_watched = False
                with contextlib.suppress(Exception):
                    self._watcher.unavailable(f"the watcher of commits failed: {type(error).__name__}: {error}")
                    self._watcher.recovered(0.0)

    async def _recover(self) -> None:
        """Open the file anew until a write is taken: after a failed fsync the page cache cannot be trusted."""
        self._failed_tries = 0
        while self._outage is not None and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_after(self._failed_tries))
                return
            self._failed_tries += 1
            await self._try_again()

    async def _try_again(self) -> None:
        """Close what is open and open it anew, once."""
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(sqlite3.Error, ValueError, OSError):
                await db.run(self._presence.save)
            with contextlib.suppress(sqlite3.Error, ValueError), self._custody.closing(is_out=True):
                await db.close()
        try:
            await asyncio.to_thread(self._custody.look)
            if self._is_tainted:
                await self._let_go()
            self._db = await open_anew(self._path, self.ledger, self._refused_claims)
            await asyncio.to_thread(self._custody.found_again)
        except Exception as error:  # noqa: BLE001 - whatever bars it, a thread that cannot be had too, it is tried again
            self._is_tainted = taints(error)
            return
        self._outage = None
        self._refused_claims.clear()
        for settlement in self._settlements:  # what waited for the store has not waited for a commit
            settlement.since = time.monotonic()
        self._tell()

    async def _checkpoint_if_due(self) -> None:
        """Move the log's pages home between commits, where no answer waits for it."""
        if self._db is None:
            return
        try:
            if self._is_doubted:
                self._is_doubted = False
                await self._db.run(lambda _: self._presence.check())
            await self._checkpoints.make_if_due(self._db)
        except (sqlite3.Error, ValueError, OSError, StoreUnusable) as error:
            self._fall_out(error)

    def _watch_the_late(self) -> None:
        """Look at what waits a little later, unless that is arranged; at rest no timer runs."""
        if self._impatience is None:
            self._impatience = self._loop.call_later(PATIENCE_S / 10, self._refuse_the_late)

    def _refuse_the_late(self) -> None:
        """Refuse events whose commit takes too long: a sender is told to come again rather than left hanging. That the
        disk does not answer, and that it does again, is told to the watcher from here."""
        due, self._impatience = self._impatience, None
        late = 0.0 if due is None else self._loop.time() - due.when()
        if late > STANDSTILL_S:  # the process was stopped, or starved: that is nobody's fault but ours
            for operation in (*(self._current or Batch()).operations, *itertools.chain(*self._queues)):
                operation.since += late
        latest = time.monotonic() - PATIENCE_S
        current = self._current.accepts if self._current else ()
        for operation in itertools.takewhile(lambda one: one.since <= latest, (*current, *self._accepts)):
            operation.refuse(StoreUnavailable(SLOW))
        self._tell()
        if not self.idle or (self._told is not None and not self._task.done()):
            self._watch_the_late()
