"""Ways in which the store cannot commit."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator

from tests.http.gateway import Gateway, until


async def fill(gateway: Gateway) -> None:
    """Let the store's file grow no further, as on a full disk."""
    db = gateway.app._store._writer._db
    assert db is not None
    ((pages,),) = await db.execute_fetchall("PRAGMA page_count")
    await db.execute(f"PRAGMA max_page_count={pages}")


def _locks(other: sqlite3.Connection) -> bool:
    try:
        other.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


@contextlib.asynccontextmanager
async def locked(gateway: Gateway) -> AsyncIterator[None]:
    """Somebody else holds the lock of the store's file."""
    with contextlib.closing(sqlite3.connect(gateway.store, timeout=0, isolation_level=None)) as other:
        await until(lambda: _locks(other))
        yield
        other.execute("ROLLBACK")
