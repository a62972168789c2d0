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
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from relay.store import Claimant, Condition, Settled, Settlement, StoreError, StoreUnavailable, StoreUnusable, Watcher
from relay.store.sqlite.admission import Admission
from relay.store.sqlite.batch import AcceptWish, Handing
from relay.store.sqlite.checkpoints import Checkpoints, cut_log
from relay.store.sqlite.claiming import ClaimWish
from relay.store.sqlite.connection import NO_CONNECTION, StoreConnection, in_words, is_fault
from relay.store.sqlite.custody import Custody
from relay.store.sqlite.inbox import Inbox
from relay.store.sqlite.ledger import Changes, Ledger
from relay.store.sqlite.operations import Batch, Operation, Work, next_release
from relay.store.sqlite.recovering import open_anew, pause_after, taints
from relay.store.sqlite.telling import Teller

PATIENCE_S = 3.0
"""How long an event waits for its commit before it is refused."""
STANDSTILL_S = 1.0
"""A look that comes so much later than it was to was held up by ourselves."""
TURNS = 2
"""Of the loop, before a transaction is put together: what is being read at this moment comes along, and what the commit
before has set off is done rather than contend with this one for the interpreter."""
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
        self._teller = Teller(watcher)
        self.claimant: Claimant | None = None
        """Who is asked what it would have claimed as it is stored."""
        self._inbox = Inbox()
        self._tokens = itertools.count(time.time_ns())
        self._current: Batch | None = None
        self._unwritten: list[Batch] = []
        self._refused_claims: set[int] = set()
        self._closing = asyncio.Event()
        self._outage: Condition | None = None
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
        return self._current is None and not (self._inbox or self.ledger.rests)

    @property
    def is_busy(self) -> bool:
        """Something is being written, or is to be at once."""
        return self._current is not None or self._inbox.is_due or bool(self.ledger.rests)

    def token(self) -> int:
        """A token that no claim has had."""
        return next(self._tokens)

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
        if self._current is None and not self._inbox:
            return _WELL
        now, waits = time.monotonic(), [head.since for head in self._inbox.heads]
        waited = now - min([now, *waits, self._current.since if self._current else now])
        if waited <= PATIENCE_S and not self._inbox.is_overloaded:
            return _WELL
        reason = SLOW if waited > PATIENCE_S else OVERLOADED
        return Condition(writable=False, reason=reason, since=datetime.now(UTC) - timedelta(seconds=waited))

    def accept(self, wish: AcceptWish) -> "asyncio.Future[Any]":
        """Queue an event; refused at once where the queue is full or the store is out."""
        if self._inbox.is_overloaded:
            raise StoreUnavailable(OVERLOADED)
        self._refuse_in_outage()
        self._watch_the_late()
        return self._inbox.accept(wish)

    def claim(self, wish: ClaimWish) -> "asyncio.Future[Any]":
        """Queue a call for deliveries."""
        self._refuse_in_outage()
        self._watch_the_late()
        return self._inbox.claim(wish)

    def work(self, work: Work) -> "asyncio.Future[Any]":
        """Queue anything else that needs the transaction."""
        self._refuse_in_outage()
        self._watch_the_late()
        return self._inbox.work(work)

    def empty_log(self) -> "asyncio.Future[None]":
        """Have the log emptied as soon as no reader needs it; the future is done when it is."""
        self._inbox.stir()
        return self._checkpoints.empty()

    def doubt(self) -> None:
        """Look at the files although nobody writes: what was read of them is damaged."""
        self._is_doubted = True
        self._inbox.stir()

    def settle(self, settlement: Settlement) -> "asyncio.Future[Settled]":
        """Queue a settlement; it outlives any outage, but not the store."""
        if self._task.done():
            raise StoreUnavailable(CLOSED)
        self._watch_the_late()
        return self._inbox.settle(settlement)

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
        self._inbox.stir()
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
        self._inbox.refuse(StoreUnavailable(CLOSED), settlements=True)
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
        if self._inbox.is_due or self.ledger.rests:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            await self._write(self._take())
            return
        await self._checkpoint_if_due()
        if self._outage is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._inbox.stirred.wait(), self._checkpoints.pause)
            self._inbox.stirred.clear()

    def _take(self) -> Batch:
        taken = self._inbox.take()
        taken.works = [*taken.works, *(next_release(self.ledger, target) for target in self.ledger.rests)]
        taken.handing = self._handing(taken.accepts)
        return taken

    def _handing(self, accepts: Sequence[Operation[AcceptWish]]) -> Handing | None:
        """What the claimant takes over of these events, if anything; that it fails is told, and they wait then."""
        if self.claimant is None:
            return None
        targets = {target for operation in accepts for target in operation.wish.targets}
        try:
            bids = {target: bid for target in targets if (bid := self.claimant.bid(target)) is not None}
        except Exception as error:  # noqa: BLE001 - what is taken up already must be written
            self._teller.bug(f"the claimant failed: {type(error).__name__}: {error}")
            return None
        return Handing(self.token(), bids) if bids else None

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
                self._teller.committed(seconds)
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
        self._hand_over(changes)
        return time.perf_counter() - began

    def _hand_over(self, changes: Changes) -> None:
        """Tell the claimant what was stored. That it fails is told, and no reason to undo the commit: the leases of
        what it did not take end, and then that is due again."""
        if self.claimant is None or not (changes.handed or changes.waiting):
            return
        try:
            self.claimant.stored(changes.handed, changes.waiting)
        except Exception as error:  # noqa: BLE001 - the commit stands
            self._teller.bug(f"the claimant failed: {type(error).__name__}: {error}")

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
        self._inbox.put_back(kept)
        self._refused_claims.update(token for part in unwritten for token in part.tokens)
        for operation in (operation for part in unwritten for operation in part.refusable):
            operation.refuse(StoreUnavailable(reason))
        self._inbox.refuse(StoreUnavailable(reason), settlements=False)
        self._teller.condition(self.condition())

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
        for settlement in self._inbox.settlements:  # what waited for the store has not waited for a commit
            settlement.since = time.monotonic()
        self._teller.condition(self.condition())

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
            for operation in (*(self._current or Batch()).operations, *self._inbox):
                operation.since += late
        latest = time.monotonic() - PATIENCE_S
        current = self._current.accepts if self._current else ()
        for operation in itertools.takewhile(lambda one: one.since <= latest, (*current, *self._inbox.accepts)):
            operation.refuse(StoreUnavailable(SLOW))
        self._teller.condition(self.condition())
        if not self.idle or (self._teller.tells_of_outage and not self._task.done()):
            self._watch_the_late()
