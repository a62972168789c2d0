"""A disk that hangs, without one: the thread that writes stands still."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from relay.store.sqlite import SqliteStore
from relay.store.sqlite.transaction import Transaction


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that will be so."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def hanging(store: SqliteStore) -> AsyncIterator[None]:
    """The thread that writes stands still inside a call, as it does in an fsync that does not come back."""
    entered, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        go_on.wait(30)

    def work(tx: Transaction) -> None:
        tx.db.execute("SELECT hang()")

    db = store._writer._db
    assert db is not None
    await db.create_function("hang", 0, hang)
    stuck = asyncio.ensure_future(store._writer.work(work))
    await until(entered.is_set)
    try:
        yield
    finally:
        go_on.set()
        await asyncio.wait({stuck})
        stuck.exception()
