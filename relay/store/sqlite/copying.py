"""A copy of the store made while it runs: one file, whole in itself, made anew row by row.

Law: it is made on a connection that cannot write to the store, and holds what was committed at one moment. It stands
beside the store, readable by its owner alone, without a name once it is made, so that not even a kill leaves it there;
what a kill leaves of one that was still being made is removed at the next start. Nothing that was deleted is in it.
"""

import asyncio
import contextlib
import glob
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from relay.rules.fullness import Room
from relay.store import CopyUnderWay, NoRoomForCopy, StoreUnavailable, StoreUnusable
from relay.store.sqlite.connection import StoreConnection, in_words, is_damage, open_copier, primary_code
from relay.store.sqlite.schema import APPLICATION_ID

PART = 256 * 1024
"""Bytes read at a time."""
_MARK = ".copy-"


class Copying:
    """What makes copies of one file, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_under_way = False
        self._connection: StoreConnection | None = None

    @asynccontextmanager
    async def copy(self, room: Room) -> AsyncIterator["FileCopy"]:
        """See `Store.copy`; `room` is what there is now."""
        if self._is_under_way:
            raise CopyUnderWay("a copy of the store is being made or fetched already; wait for its end")
        self._is_under_way = True
        try:
            if room.left < room.used + room.reserve:
                raise NoRoomForCopy(_no_room(self._path, room))
            fd = await self._made(room)
            try:
                yield FileCopy(fd, os.fstat(fd).st_size)
            finally:
                await _off_the_loop(partial(os.close, fd))
        finally:
            self._is_under_way = False

    async def _made(self, room: Room) -> int:
        """Make the copy; returns it open, its name gone already."""
        file = self._path.with_name(f"{self._path.name}{_MARK}{secrets.token_hex(8)}")
        try:
            fd = await self._begun(file)
        except OSError as error:
            raise NoRoomForCopy(f"{self._path.parent}: no copy can be made there: {error.strerror}") from None
        try:
            try:
                await self._fill(file)
            finally:
                await _off_the_loop(partial(_remove, file))
        except BaseException as error:
            await _off_the_loop(partial(os.close, fd))
            if isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_FULL:
                raise NoRoomForCopy(_no_room(self._path, room)) from None
            if is_damage(error):
                raise in_words(self._path, error) from None
            if isinstance(error, sqlite3.Error | ValueError | OSError):
                raise StoreUnavailable(f"{self._path}: cannot be copied now: {error}") from None
            raise
        return fd

    async def _begun(self, file: Path) -> int:
        beginning = asyncio.ensure_future(asyncio.to_thread(_begin, self._path, file))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await asyncio.wait({beginning})
            if beginning.exception() is None:
                os.close(beginning.result())
                await _off_the_loop(partial(_remove, file))
            raise

    async def _fill(self, file: Path) -> None:
        connection = self._connection = await open_copier(self._path)
        making = asyncio.ensure_future(connection.execute("VACUUM INTO ?", (str(file),)))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            await connection.interrupt()
            with contextlib.suppress(sqlite3.Error):
                await making
            raise
        finally:
            self._connection = None
            await connection.close()

    async def abandon(self) -> None:
        """Have one that is being made end now, in vain."""
        if self._connection is not None:
            with contextlib.suppress(ValueError):  # it has just been closed
                await self._connection.interrupt()


class FileCopy:
    """An open file that has no name."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    async def parts(self) -> AsyncIterator[bytes]:
        """See `Copy.parts`."""
        for start in range(0, self.size, PART):
            try:
                part = await asyncio.to_thread(os.pread, self._fd, min(PART, self.size - start), start)
            except OSError as error:
                raise StoreUnavailable(f"the copy cannot be read any more: {error.strerror}") from None
            yield part


def _begin(path: Path, file: Path) -> int:
    """Make an empty file for a copy, and remove what a disk did not let go of when the ones before were over."""
    with contextlib.suppress(OSError):
        remove_copies(path)
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def remove_copies(path: Path) -> None:
    """Remove what is left of copies beside a store."""
    for left in path.parent.glob(f"{glob.escape(path.name)}{_MARK}*"):
        left.unlink(missing_ok=True)


def _remove(file: Path) -> None:
    """Remove one copy, with what SQLite may have left beside it."""
    try:
        file.unlink(missing_ok=True)
    finally:
        file.with_name(f"{file.name}-journal").unlink(missing_ok=True)


async def _off_the_loop(work: Callable[[], None]) -> None:
    """Call what gives back the room of a large file, which may take its time; who is cancelled waits for it too."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def verify_copy(file: Path) -> None:
    """See that a file is a whole copy of a store of ours, without changing it.

    Raises:
        StoreUnusable: it is not; the message says what is wrong.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            ((application,),) = db.execute("PRAGMA application_id").fetchall()
            ((found,),) = db.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.Error as error:
        raise StoreUnusable(f"{file}: {error}") from None
    if application != APPLICATION_ID:
        raise StoreUnusable(f"{file}: not a store of relay's")
    if found != "ok":
        raise StoreUnusable(f"{file}: damaged ({found})")


def _no_room(path: Path, room: Room) -> str:
    owed = f", what waits in the log needs {room.owed}" if room.owed else ""
    return (
        f"{path.parent}: a copy may need {room.used} bytes beside the store and leave {room.reserve} free{owed}, "
        f"and {room.free} are free; make room there first"
    )
