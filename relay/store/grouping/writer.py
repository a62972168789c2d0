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
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from tenacity import RetryCallState, Retrying, wait_exponential

from relay.store import Claimant, Condition, Settled, Settlement, StoreError, StoreUnavailable, Watcher
from relay.store.grouping.changes import Changes, Remembered
from relay.store.grouping.inbox import Inbox
from relay.store.grouping.operations import Batch, Operation, Work
from relay.store.grouping.telling import Teller
from relay.store.grouping.wishes import AcceptWish, ClaimWish, Handing, told_by

PATIENCE_S = 3.0
"""How long an event waits for its commit before it is refused."""
STANDSTILL_S = 1.0
"""A look that comes so much later than it was to was held up by ourselves."""
TURNS = 4
"""Of the loop, before a transaction is put together: what is being read at this moment comes along, and what the commit
before has set off, answers, attempts and what is told of them, is done rather than contend with this one for the
interpreter. At rest a turn takes some microseconds."""
BREATH_S = 0.1
"""Between a bug of the loop and its next turn, so that one that stays cannot spin."""
CLOSED = "the store is closed"
OVERLOADED = "overloaded: too many events wait for the disk"
SLOW = f"slow: no commit within {PATIENCE_S:g} s"
_WELL = Condition(writable=True)

_pause = wait_exponential(multiplier=0.25, max=2.0)

Left = TypeVar("Left", bound=Changes)
Done = tuple[list[tuple[Operation[Any], object]], Left]
"""Who gets which result, and what the transaction has changed."""


class GroupWriter(ABC, Generic[Left]):
    """Writes from the moment it is made until `finish`, on what a store brings."""

    def __init__(self, watcher: Watcher) -> None:
        self._teller = Teller(watcher)
        self.claimant: Claimant | None = None
        """Who is asked what it would have claimed as it is stored."""
        self._inbox = Inbox()
        self._current: Batch | None = None
        self._unwritten: list[Batch] = []
        self._refused_claims: set[int] = set()
        self._closing = asyncio.Event()
        self._outage: Condition | None = None
        self._failed_tries = 0
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="store writer")
        self._impatience: asyncio.TimerHandle | None = None

    @abstractmethod
    def token(self) -> int:
        """A token that no claim has had."""

    @property
    @abstractmethod
    def remembered(self) -> Remembered:
        """What is kept in memory beside the store."""

    @abstractmethod
    def _release(self, tx: Any, target: str) -> Any:
        """Make the next part due of what an enabled target held."""

    @abstractmethod
    async def _rest(self) -> None:
        """Nothing waits: tidy up, and wait until the inbox stirs, or for as long as the store sees fit."""

    @abstractmethod
    async def _admit(self, batch: Batch) -> None:
        """Raise where a batch must not be begun."""

    @abstractmethod
    async def _transact(self, batch: Batch) -> Done[Left]:
        """Run a batch in one transaction and commit it."""

    @abstractmethod
    def _apply(self, batch: Batch, changes: Left) -> None:
        """Take over what was committed."""

    @abstractmethod
    async def _roll_back(self) -> None:
        """Undo what a failed transaction has left; raises nothing."""

    async def _written(self) -> None:
        """All that was taken up is written, or refused."""

    @abstractmethod
    def _is_fault(self, error: Exception) -> bool:
        """Whether an error is the store's, not that of what was to be written."""

    @abstractmethod
    def _in_words(self, error: Exception) -> str:
        """An error for people: where, and what."""

    @abstractmethod
    def _fell_out(self, error: Exception) -> None:
        """An outage has begun, or goes on, by this error."""

    @abstractmethod
    async def _reopen(self) -> None:
        """Open anew what an outage has closed, and give back the claims that it refused; raises while it lasts."""

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being written."""
        return self._current is None and not (self._inbox or self.remembered.rests)

    @property
    def is_busy(self) -> bool:
        """Something is being written, or is to be at once."""
        return self._current is not None or self._inbox.is_due or bool(self.remembered.rests)

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
        """Write what waits, once; during an outage nothing more is tried."""
        self._closing.set()
        self._inbox.stir()
        await asyncio.gather(self._task, return_exceptions=True)
        self.abandon()
        if self._impatience is not None:
            self._impatience.cancel()

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
        if self._inbox.is_due or self.remembered.rests:
            await _turns(TURNS)
            await self._write(self._take())
        else:
            await self._rest()

    async def _stirred(self, within: float | None) -> None:
        """Wait until there is something to be looked at, so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._inbox.stirred.wait(), within)
        self._inbox.stirred.clear()

    def _take(self) -> Batch:
        taken = self._inbox.take(self.remembered.pending)
        taken.works = [*taken.works, *map(self._next_release, self.remembered.rests)]
        taken.handing = self._handing(taken.accepts)
        return taken

    def _next_release(self, target: str) -> Operation[Work]:
        """The next part of what an enabled target held; one that fails for itself is given up, not tried for ever."""
        operation: Operation[Work] = Operation(lambda tx: self._release(tx, target), self._loop)

        def forget(future: "asyncio.Future[Any]") -> None:
            error = None if future.cancelled() else future.exception()
            if error is not None and not isinstance(error, StoreUnavailable):
                self.remembered.rests.pop(target, None)

        operation.future.add_done_callback(forget)
        return operation

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
                if self._is_fault(error):
                    self._fall_out(error)
                    return
                self._unwritten[:1] = part.halves()
                if len(part) == 1:
                    part.refuse(error)
            else:
                del self._unwritten[0]
                self._teller.committed(seconds)
        self._current = None
        await self._written()

    async def _commit(self, batch_: Batch) -> float:
        await self._admit(batch_)
        began = time.perf_counter()
        results, changes = await self._transact(batch_)
        self._apply(batch_, changes)
        for operation, result in results:
            operation.resolve(result)
        self._hand_over(changes)
        return time.perf_counter() - began

    def _hand_over(self, changes: Changes) -> None:
        """Tell the claimant what was stored. That it fails is told, and no reason to undo the commit: the leases of
        what it did not take end, and then that is due again."""
        waiting = changes.waiting - told_by(self._inbox.claims)
        if self.claimant is None or not (changes.handed or waiting):
            return
        try:
            self.claimant.stored(changes.handed, waiting)
        except Exception as error:  # noqa: BLE001 - the commit stands
            self._teller.bug(f"the claimant failed: {type(error).__name__}: {error}")

    def _fall_out(self, error: Exception) -> None:
        """Keep the settlements, in order; refuse the rest until the store is back."""
        reason = str(error if isinstance(error, StoreError) else self._in_words(error))
        if self._outage is None:
            self._outage = Condition(writable=False, reason=reason, since=datetime.now(UTC))
        self._fell_out(error)
        unwritten, self._unwritten, self._current = self._unwritten, [], None
        kept = [operation for part in unwritten for operation in part.settlements]
        self._inbox.put_back(kept)
        self._refused_claims.update(token for part in unwritten for token in part.tokens)
        for operation in (operation for part in unwritten for operation in part.refusable):
            operation.refuse(StoreUnavailable(reason))
        self._inbox.refuse(StoreUnavailable(reason), settlements=False)
        self._teller.condition(self.condition())

    async def _recover(self) -> None:
        """Open the store anew until a write is taken: after a failure nothing of before can be trusted."""
        self._failed_tries = 0
        while self._outage is not None and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_after(self._failed_tries))
                return
            self._failed_tries += 1
            try:
                await self._reopen()
            except Exception as error:  # noqa: BLE001 - whatever bars it, a thread that cannot be had too, it is tried again
                self._fell_out(error)
                continue
            self._outage = None
            self._refused_claims.clear()
            for settlement in self._inbox.settlements:  # what waited for the store has not waited for a commit
                settlement.since = time.monotonic()
            self._teller.condition(self.condition())

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
        if self._task.done():
            return  # closed, which is no outage
        self._teller.condition(self.condition())
        if not self.idle or self._teller.tells_of_outage:
            self._watch_the_late()


def pause_after(tries: int) -> float:
    """Seconds until an outage's next try, after so many that failed."""
    state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = tries + 1
    return _pause(state)


@types.coroutine
def _turns(number: int) -> Generator[None, None, None]:
    """Let the loop turn so often; `asyncio.sleep(0)` would make two coroutines for each."""
    for _ in range(number):
        yield
