"""The writing task on one SQLite file: its connection, its log's checkpoints, and the file opened anew in an outage.

Law: it alone writes and checkpoints. Before each commit the files are what they were, and there is room for it.
"""

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from relay.store import StoreUnusable, Watcher
from relay.store.grouping.changes import Changes
from relay.store.grouping.operations import Batch
from relay.store.grouping.writer import Done, GroupWriter
from relay.store.sqlite.admission import Admission
from relay.store.sqlite.checkpoints import Checkpoints, cut_log
from relay.store.sqlite.committing import commit
from relay.store.sqlite.connection import NO_CONNECTION, StoreConnection, in_words, is_fault
from relay.store.sqlite.custody import Custody
from relay.store.sqlite.ledger import Ledger
from relay.store.sqlite.recovering import open_anew, taints
from relay.store.sqlite.releasing import release_rest
from relay.store.sqlite.stillness import LONGEST_S, Stillness
from relay.store.sqlite.transaction import Transaction


class Writer(GroupWriter[Changes]):
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
        super().__init__(watcher)
        self.ledger = ledger
        self._custody = custody
        self._presence = presence = custody.presence
        self._let_go = let_go
        self._path = path
        self._db: StoreConnection | None = connection
        self._tokens = itertools.count(time.time_ns())
        self._is_tainted = False
        self._is_doubted = False
        self._checkpoints = Checkpoints(presence)
        self._stillness = Stillness()
        self._admission = Admission(path, presence)

    def token(self) -> int:
        """A token that no claim has had."""
        return next(self._tokens)

    @property
    def remembered(self) -> Ledger:
        return self.ledger

    def _release(self, tx: Transaction, target: str) -> None:
        release_rest(tx, target)

    def empty_log(self) -> "asyncio.Future[None]":
        """Have the log emptied as soon as no reader needs it; the future is done when it is."""
        self._inbox.stir()
        return self._checkpoints.empty()

    def doubt(self) -> None:
        """Look at the files although nobody writes: what was read of them is damaged."""
        self._is_doubted = True
        self._inbox.stir()

    async def finish(self) -> None:
        """Write what waits, once, and empty the log; during an outage nothing more is tried."""
        await super().finish()
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

    async def _rest(self) -> None:
        await self._checkpoint_if_due()
        if self._outage is None:
            await self._stirred(self._checkpoints.pause)

    async def _admit(self, batch: Batch) -> None:
        await self._admission.admit(batch, self._connection())

    async def _transact(self, batch: Batch) -> Done[Changes]:
        work = self._presence.committing(partial(commit, batch=batch, ledger=self.ledger))
        if batch.works or not self._stillness.is_worth(len(batch)):  # those are of any length
            return await self._connection().run(work)
        return await self._connection().run_at_once(work, within=LONGEST_S, told=self._stillness.stood)

    def _apply(self, batch: Batch, changes: Changes) -> None:
        self.ledger.apply(changes)
        self._checkpoints.committed(batch.size)

    async def _written(self) -> None:
        if self._checkpoints.press:
            await self._checkpoint_if_due()

    def _connection(self) -> StoreConnection:
        if self._db is None:
            raise sqlite3.ProgrammingError(NO_CONNECTION)
        return self._db

    async def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error, ValueError):
            if self._db is not None and self._db.in_transaction:
                await self._db.execute("ROLLBACK")

    def _is_fault(self, error: Exception) -> bool:
        return is_fault(error) or isinstance(error, StoreUnusable)

    def _in_words(self, error: Exception) -> str:
        if isinstance(error, sqlite3.Error | OSError) or is_fault(error):
            return str(in_words(self._path, error))
        return f"{self._path}: the writer failed: {type(error).__name__}: {error}"

    def _fell_out(self, error: Exception) -> None:
        self._is_tainted = taints(error)

    async def _reopen(self) -> None:
        """See `GroupWriter._reopen`: after a failed fsync the page cache cannot be trusted."""
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(sqlite3.Error, ValueError, OSError):
                await db.run(self._presence.save)
            with contextlib.suppress(sqlite3.Error, ValueError), self._custody.closing(is_out=True):
                await db.close()
        await asyncio.to_thread(self._custody.look)
        if self._is_tainted:
            await self._let_go()
        self._db = await open_anew(self._path, self.ledger, self._refused_claims)
        await asyncio.to_thread(self._custody.found_again)

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
