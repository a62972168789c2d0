"""Connections to the database, and its errors in words.

Law: nothing is asked outside a transaction, and nothing of a session outlives one, so that a pooler may stand between.
Each begins with `BEGIN`, which says where the tables are and that a commit is on the disk when it is told.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from relay.store import StoreError, StoreUnavailable, StoreUnusable, Watcher
from relay.store.locations import shown
from relay.store.postgres.schema import SCHEMA
from relay.store.postgres.types import Connection, Row

CONNECT_S = 5.0
"""How long a connection may take to be made."""
START_S = 15.0
"""How long a start waits for a server that is not there."""
ROLLBACK_S = 1.0
FROZEN_S = 5
"""How long a transaction may stand still between two statements."""
COMMAND_S = 30.0
"""How long one statement may take: a server that is frozen, or a network that swallows everything, is found out."""

_PLANS = "SET LOCAL enable_seqscan TO off; SET LOCAL enable_bitmapscan TO off; SET LOCAL jit TO off;"
"""The tables are asked by their indexes alone: what the statistics of a young table suggest is right for few rows."""
_FREED = f"SET LOCAL idle_in_transaction_session_timeout TO '{FROZEN_S}s';"
"""The server ends the transaction of a node that was frozen in the middle of it: others wait for what it has locked."""
BEGIN = f"BEGIN; SET LOCAL search_path TO {SCHEMA}; SET LOCAL synchronous_commit TO on; {_FREED} {_PLANS}"
BEGIN_READING = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path TO {SCHEMA}; {_FREED} {_PLANS}"

KEPT_STATEMENTS = 100
_forgetful: set[str] = set()
"""URLs behind which statements that were prepared are not found again: a pooler gives each transaction another
session. There they are prepared each time."""
_FORGOTTEN = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)

_FAULTS = (
    *_FORGOTTEN,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.UndefinedTableError,
    asyncpg.InsufficientPrivilegeError,
    OSError,
    TimeoutError,
)
_CONTENDED = (asyncpg.TransactionRollbackError, asyncpg.LockNotAvailableError)


def is_fault(error: BaseException) -> bool:
    """Whether an error is the database's, or the way's to it, and not that of what was asked."""
    return isinstance(error, _FAULTS)


def is_contended(error: BaseException) -> bool:
    """Whether a transaction was undone because of another one: it is simply run again."""
    return isinstance(error, _CONTENDED)


def kept_statements(url: str) -> int:
    """How many prepared statements a connection may keep."""
    return 0 if url in _forgetful else KEPT_STATEMENTS


def learn(url: str, error: BaseException) -> bool:
    """Whether an error was that of a pooler that forgets statements: none are kept from now on, and what failed is to
    be done again on a new connection."""
    if isinstance(error, _FORGOTTEN):
        _forgetful.add(url)
        return True
    return False


def in_words(url: str, error: BaseException) -> StoreError:
    """An error of the database as one of the port's: where, what, and what to do."""
    where = shown(url)
    if isinstance(error, StoreError):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{where}: the database did not answer in time")
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return StoreUnavailable(f"{where}: {error}; see user and password in store.url")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return StoreUnavailable(f"{where}: {error}; create it, or see its name in store.url")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return StoreUnusable(f"{where}: {error}; the user of store.url must be allowed to create the schema {SCHEMA}")
    if isinstance(error, OSError):
        return StoreUnavailable(f"{where}: the database cannot be reached: {error.strerror or error}")
    return StoreUnavailable(f"{where}: {str(error) or type(error).__name__}")


async def connect(url: str, *, kept: int | None = None) -> "asyncpg.Connection[Row]":
    """A connection of one's own.

    Args:
        kept: prepared statements that it may keep, where that is to be other than what is known of the URL.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: it cannot be had.
    """
    cached = kept_statements(url) if kept is None else kept
    return await asyncpg.connect(url, timeout=CONNECT_S, command_timeout=COMMAND_S, statement_cache_size=cached)


async def connected(url: str, watcher: Watcher) -> "asyncpg.Connection[Row]":
    """The first connection of a node. A server that is just starting, or is not there yet, is waited for; who watches
    is told.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: it cannot be had, or not in time.
    """
    began, is_told = time.monotonic(), False
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((OSError, TimeoutError, asyncpg.CannotConnectNowError)),
        stop=stop_after_delay(START_S),
        wait=wait_exponential(multiplier=0.1, max=1.0),
        reraise=True,
    ):
        with attempt:
            try:
                db = await connect(url)
            except (OSError, asyncpg.CannotConnectNowError) as error:
                if not is_told:
                    watcher.unavailable(f"{in_words(url, error)}; it is tried again for {START_S:g} s")
                is_told = True
                raise
    if is_told:
        watcher.recovered(time.monotonic() - began)
    return db


async def leave(db: "asyncpg.Connection[Row] | None") -> None:
    """Close a connection in whatever state it is; raises nothing and waits for nobody."""
    if db is None:
        return
    with contextlib.suppress(Exception):
        await db.close(timeout=1.0)
    db.terminate()


@contextlib.asynccontextmanager
async def begun(db: Connection, begin: str = BEGIN) -> AsyncIterator[None]:
    """A transaction, committed at the end of the block and undone where that raises.

    Raises:
        StoreUnavailable: the database has undone it, because something in it had failed.
    """
    await db.execute(begin)
    try:
        yield
    except BaseException:
        await _roll_back(db)
        raise
    if await db.execute("COMMIT") != "COMMIT":
        raise StoreUnavailable("the database has undone what was to be committed")


async def _roll_back(db: Connection) -> None:
    """Undo a transaction; a connection on which that cannot be done is good for nothing more."""
    try:
        async with asyncio.timeout(ROLLBACK_S):
            await db.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - whatever it was, what is begun next must not go on in it
        db.terminate()
