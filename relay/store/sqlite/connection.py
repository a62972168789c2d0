"""Opening the file: the test of what was found, pragmas set and read back, and migrations.

Law: what is found is judged on a connection that cannot write, so that a file that is refused is as it was.
`synchronous=FULL` and WAL are not asked for but verified; a store that cannot have them is refused.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite

from relay.store import StoreError, StoreInUse, StoreUnusable
from relay.store.sqlite.file import sync_directory
from relay.store.sqlite.schema import APPLICATION_ID, MIGRATIONS
from relay.store.sqlite.soundness import missing_columns

Result = TypeVar("Result")

BUSY_TIMEOUT_S = 2.0
QUICK_CHECK_LIMIT = 64 * 1024 * 1024
"""Files up to this size are walked through at every start; larger ones would make a start slow."""
OLDEST_SQLITE = (3, 37, 0)
_PRAGMAS = (
    "synchronous=FULL",
    "wal_autocheckpoint=0",
    "journal_size_limit=67108864",
    "cache_size=-8192",
    "temp_store=MEMORY",  # what a statement may have to undo, in no file of another directory
    "secure_delete=FAST",  # builds differ: what is deleted is overwritten where that costs no further write
)

sqlite3.register_adapter(type(None), {None: None}.__getitem__)
sqlite3.register_adapter(bytes, bytes.__bytes__)
"""Each is what it is: without that `sqlite3` looks for what it might become, at the cost of five numbers, each time
that one is bound."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""A rollback journal begins so; bytes 16 to 20 are the pages that the file had before (sqlite.org/fileformat2.html)."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_HELD = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FAULTS = _HELD | frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
        *_DAMAGED,
    }
)


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code of an error, 0 where it has none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


NO_CONNECTION = "no active connection"
_GONE = frozenset({NO_CONNECTION, "Connection closed", "Cannot operate on a closed database."})
"""The words of aiosqlite and sqlite3 for a connection that is gone."""


def is_fault(error: BaseException) -> bool:
    """Whether an error is the store's own, which may pass, rather than that of one statement or value."""
    if isinstance(error, sqlite3.ProgrammingError | ValueError):
        return str(error) in _GONE
    return isinstance(error, sqlite3.Error) and primary_code(error) in _FAULTS


def is_damage(error: BaseException) -> bool:
    """Whether an error says that what stands in the file is broken."""
    return primary_code(error) in _DAMAGED


class LocksFail(StoreUnusable):
    """SQLite has given up on a lock that nobody says to hold."""


def in_words(database: Path, error: BaseException) -> StoreError:
    """An error of SQLite as one of the port's, with the file and what to do."""
    code = primary_code(error)
    if code in _HELD:
        return StoreInUse(f"{database}: locked by another program; close it first")
    if code == sqlite3.SQLITE_PROTOCOL:
        return LocksFail(f"{database}: its locks cannot be had: {error}")
    if code in _DAMAGED:
        return StoreUnusable(
            f"{database}: {error}; restore it from a backup, or start afresh on purpose with: relay run --new-store"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreUnusable(f"{database}: {error}; make room on the file system that it lies on")
    return StoreUnusable(f"{database}: {error}")


class StoreConnection(aiosqlite.Connection):
    """A connection that also runs a function in its thread, whole, and whose thread keeps no process alive.

    A transaction of a dozen statements, awaited one by one, would wait for a turn of a busy event loop as often.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._thread.daemon = True

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Call `work` with the connection, in its thread."""
        result: Result = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result

    async def run_at_once(
        self, work: Callable[[sqlite3.Connection], Result], *, within: float, told: Callable[[bool], None]
    ) -> Result:
        """The same, and the loop stands still for it, for so many seconds at most; `told` hears whether in vain."""
        if not self._running or not self._connection:
            raise ValueError("Connection closed")
        call: Future[Result] = Future()
        call.set_running_or_notify_cancel()

        def whole() -> None:
            try:
                call.set_result(work(self._conn))
            except BaseException as error:  # noqa: BLE001 - told to who waits
                call.set_exception(error)

        self._tx.put_nowait((None, whole))
        is_in_vain = False
        try:
            call.exception(within)
        except TimeoutError:
            is_in_vain = True
        told(is_in_vain)
        return await asyncio.wrap_future(call) if is_in_vain else call.result()


async def open_writer(database: Path) -> StoreConnection:
    """The one connection that writes and checkpoints.

    Raises:
        StoreError: the file cannot be used; it is as it was.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed")
    size = await asyncio.to_thread(_size, database)
    if size:
        await _judge(database, size)
    before = os.umask(0o077)
    try:
        connect = partial(sqlite3.connect, database, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection = StoreConnection(connect)
        await _opened(connection)
    except sqlite3.Error as error:
        raise in_words(database, error) from None
    finally:
        os.umask(before)
    async with _closed_on_failure(connection, database):
        await _prepare(connection, database)
    return connection


def undo_cut_short(database: Path) -> None:
    """Let SQLite undo what a cut has left half done in a rollback journal: the one transaction that has such a journal
    makes a file, or a copy that is put in its place, one with a log. It can be undone only by who may write. What is
    another's is left alone.

    Raises:
        StoreError: it cannot be undone.
    """
    try:
        with database.with_name(database.name + "-journal").open("rb") as journal, database.open("rb") as file:
            header, undoes = file.read(100), journal.read(20)
    except FileNotFoundError:
        return
    is_creation = undoes.startswith(_JOURNAL_MAGIC) and undoes[16:20] == bytes(4)
    is_ours = header[68:72] == APPLICATION_ID.to_bytes(4, "big")
    if not header or not undoes or not (is_creation or is_ours):
        return
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as db:
            db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        raise in_words(database, error) from None


async def open_reader(database: Path) -> StoreConnection:
    """A connection for views, which cannot write and so never holds up an answer.

    Raises:
        StoreError: the file cannot be read.
    """
    connection = await _open_to_read(database)
    async with _closed_on_failure(connection, database):
        await connection.execute("PRAGMA query_only=ON")
    return connection


async def open_copier(database: Path) -> StoreConnection:
    """A connection that cannot write to the file either, but to a copy of it; that one is not synced.

    Raises:
        StoreError: the file cannot be read.
    """
    connection = await _open_to_read(database)
    async with _closed_on_failure(connection, database):
        await connection.execute("PRAGMA synchronous=OFF")
    return connection


async def _open_to_read(database: Path) -> StoreConnection:
    uri = f"{database.as_uri()}?mode=ro"
    try:
        connect = partial(sqlite3.connect, uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection = StoreConnection(connect)
        await _opened(connection)
    except sqlite3.Error as error:
        raise in_words(database, error) from None
    return connection


async def _opened(connection: aiosqlite.Connection) -> None:
    """Open a connection; where that is given up meanwhile, it is opened to its end and closed."""
    opening = asyncio.ensure_future(connection)
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        with suppress(sqlite3.Error):
            await (await opening).close()
        raise


@asynccontextmanager
async def _closed_on_failure(connection: aiosqlite.Connection, database: Path) -> AsyncIterator[None]:
    """A connection that is not handed out is closed: its thread would keep the process alive for ever."""
    try:
        yield
    except BaseException as error:
        await connection.close()
        if isinstance(error, sqlite3.Error | OSError):
            raise in_words(database, error) from None
        raise


async def value(connection: aiosqlite.Connection, sql: str) -> object:
    """The single value of a query."""
    rows = list(await connection.execute_fetchall(sql))
    return rows[0][0] if rows else None


def _size(database: Path) -> int:
    return database.stat().st_size if database.exists() else 0


async def _judge(database: Path, size: int) -> None:
    """Refuse a database that is not ours, too new or damaged, without writing a byte of it."""
    connection = await _open_to_read(database)
    async with _closed_on_failure(connection, database):
        await _check_whose(connection, database)
        if size <= QUICK_CHECK_LIMIT:
            await _check_sound(connection, database)
    await connection.close()


async def _check_whose(connection: StoreConnection, database: Path) -> None:
    application = await value(connection, "PRAGMA application_id")
    version = await value(connection, "PRAGMA user_version")
    assert isinstance(version, int)
    is_blank = not application and not version and not await value(connection, "SELECT count(*) FROM sqlite_schema")
    if application != APPLICATION_ID and not is_blank:
        raise StoreUnusable(f"{database}: a database of another program; choose another store.url")
    if version > len(MIGRATIONS):
        raise StoreUnusable(
            f"{database}: written by a newer version (schema {version}, this one knows {len(MIGRATIONS)}); "
            "upgrade relay"
        )
    missing = None if is_blank else await connection.run(partial(missing_columns, version=version))
    if missing is not None:
        raise StoreUnusable(_damaged(database, f"{missing} is missing"))


async def _check_sound(connection: aiosqlite.Connection, database: Path) -> None:
    found = await value(connection, "PRAGMA quick_check(1)")
    if found != "ok":
        raise StoreUnusable(_damaged(database, str(found)))


def _damaged(database: Path, why: str) -> str:
    return (
        f"{database}: damaged ({why}); restore it from a backup, or start afresh on purpose with: relay run --new-store"
    )


async def _prepare(connection: aiosqlite.Connection, database: Path) -> None:
    journal = await value(connection, "PRAGMA journal_mode=WAL")
    sync_directory(database)  # a journal that came back after a cut would undo the file from under its log
    for pragma in _PRAGMAS:
        await connection.execute(f"PRAGMA {pragma}")
    synchronous = await value(connection, "PRAGMA synchronous")
    if journal != "wal" or synchronous != 2:
        raise StoreUnusable(
            f"{database}: the file system does not allow the write-ahead log with full synchronisation "
            f"(journal_mode={journal}, synchronous={synchronous}); use a local disk"
        )
    await migrate(connection)


async def migrate(connection: aiosqlite.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring the schema up to date, each step in one transaction with its number."""
    version = await value(connection, "PRAGMA user_version")
    assert isinstance(version, int)
    for number, script in enumerate(migrations[version:], start=version + 1):
        await connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id={APPLICATION_ID};\n"
            f"PRAGMA user_version={number};\nCOMMIT;"
        )
