"""The reading side: queries on a connection that cannot write, so that no view holds up an answer.

Law: a view sees what is committed and nothing else. What the disk has damaged is told as damage, all else that bars a
read as an outage.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from relay.rules.fullness import Room
from relay.store import StoreError, StoreUnavailable, StoreUnusable
from relay.store.sqlite.connection import NO_CONNECTION, StoreConnection, in_words, is_damage, open_reader

Result = TypeVar("Result")

DEADLINE_S = 30.0
"""How long a read may take; the longest of views are over in a fraction of it, so that it is the disk which hangs."""
LET_GO_S = 2.0
"""How long it is waited for a connection that is let go of; only a disk that hangs takes longer."""


class _Barred(StoreUnavailable):
    """What would be read must not be touched now; that ends with the outage which this begins."""


class Reading:
    """The reading connection of one file: opened when it is first needed, and anew after it was let go of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opening: asyncio.Task[StoreConnection] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.on_damage: Callable[[], None] = lambda: None
        """Called where what is read is damaged: the file may have been tampered with."""
        self.before: Callable[[], object] = lambda: None
        """Called in the reading thread before each read; raises StoreUnusable where the files must not be touched."""

    async def connection(self) -> StoreConnection:
        """The connection; one opening serves all who wait for it, and none of them can spoil it by leaving.

        Raises:
            StoreError: the file cannot be opened.
        """
        if self._is_closed:
            raise StoreUnavailable(f"{self._path}: {NO_CONNECTION}")
        if self._opening is None or _has_failed(self._opening):
            self._opening = asyncio.create_task(open_reader(self._path), name="store reading")
        return await asyncio.shield(self._opening)

    async def rows(self, query: str, values: Any = ()) -> list[Any]:
        """The rows of one query."""
        return await self.run(lambda db: db.execute(query, values).fetchall())

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Call `work` with the connection, in its thread.

        Raises:
            StoreUnusable: what is read is damaged.
            StoreUnavailable: it cannot be read now.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await (await self._connection()).run(partial(self._read, work))
        except _Barred:
            self.on_damage()
            raise
        except TimeoutError:
            raise StoreUnavailable(f"{self._path}: the disk did not answer within {DEADLINE_S:g} s") from None
        except (sqlite3.Error, ValueError, OSError) as error:
            if is_damage(error):
                self.on_damage()
                raise in_words(self._path, error) from None
            raise StoreUnavailable(f"{self._path}: {error}") from None

    def _read(self, work: Callable[[sqlite3.Connection], Result], db: sqlite3.Connection) -> Result:
        try:
            self.before()
        except StoreUnusable as error:
            raise _Barred(str(error)) from None
        return work(db)

    async def _connection(self) -> StoreConnection:
        try:
            return await self.connection()
        except (StoreError, RuntimeError) as error:  # the latter is a thread that cannot be had
            raise StoreUnavailable(str(error)) from None

    async def let_go(self) -> None:
        """End the read that is under way and close the connection; the next read opens one anew."""
        if self._opening is not None and self._opening.done() and not _has_failed(self._opening):
            with contextlib.suppress(sqlite3.Error, ValueError):
                await self._opening.result().interrupt()
        self._leave()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=LET_GO_S)

    async def close(self) -> None:
        """Close the connection for good, after the reads that wait for it."""
        self._is_closed = True
        self._leave()
        await asyncio.gather(*self._leaving)

    def _leave(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            leaving = asyncio.create_task(_close(opening), name="store reading closing")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)


def events_in(database: Path) -> int:
    """How many events are in a store that nobody has open.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM event").fetchone()[0])


def _has_failed(opening: "asyncio.Task[StoreConnection]") -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


async def _close(opening: "asyncio.Task[StoreConnection]") -> None:
    with contextlib.suppress(StoreError, RuntimeError, sqlite3.Error, ValueError):
        await (await opening).close()


def room_of(db: sqlite3.Connection, path: Path) -> Room:
    """What a store takes: its pages in use, wherever they stand, and its log. A page that was freed is vacant and used
    again: the file does not shrink. New pages that stand in the log alone are still to be added to the file."""
    ((pages,),) = db.execute("PRAGMA page_count").fetchall()
    ((unused,),) = db.execute("PRAGMA freelist_count").fetchall()
    ((size,),) = db.execute("PRAGMA page_size").fetchall()
    log = path.with_name(path.name + "-wal")
    in_log = log.stat().st_size if log.exists() else 0
    in_place = path.stat().st_size
    disk = os.statvfs(path.parent)
    return Room(
        used=(pages - unused) * size,
        log=in_log,
        free=disk.f_bavail * disk.f_frsize,
        disk=disk.f_blocks * disk.f_frsize,
        owed=max(0, pages * size - in_place),
        vacant=unused * size,
    )
