"""When the loop stands still for a transaction: for few, not for long, and not again soon where that was in vain."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.store.sqlite.connection import StoreConnection, open_writer
from relay.store.sqlite.stillness import FEW, MANY, MOST_PASSED, Stillness


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[StoreConnection]:
    """A writing connection."""
    connection = await open_writer(tmp_path / "relay.db")
    yield connection
    await connection.close()


@pytest.mark.parametrize(("operations", "is_worth"), [(1, False), (FEW, True), (MANY, True), (MANY + 1, False)])
def test_it_is_worth_it_for_a_few(operations: int, is_worth: bool) -> None:
    """What comes alone finds the loop at rest; what is large would hold it up."""
    assert Stillness().is_worth(operations) is is_worth


def test_what_was_in_vain_is_tried_again_later_and_later() -> None:
    """One passes beside the loop, then three, and so on up to a bound; what was not in vain begins anew."""
    stillness = Stillness()

    def passed() -> int:
        stillness.stood(True)
        return next(number for number in range(1000) if stillness.is_worth(FEW))

    assert [passed() for _ in range(8)] == [1, 3, 7, 15, 31, MOST_PASSED, MOST_PASSED, MOST_PASSED]
    stillness.stood(False)
    assert stillness.is_worth(FEW)
    assert passed() == 1


async def test_what_is_over_in_time_is_had_at_once(db: StoreConnection) -> None:
    """Without a turn of the loop, and from the connection's own thread."""
    turned: list[str] = []
    asyncio.get_running_loop().call_soon(turned.append, "turned")
    told: list[bool] = []

    def work(connection: sqlite3.Connection) -> tuple[str, str]:
        return threading.current_thread().name, connection.execute("PRAGMA journal_mode").fetchone()[0]

    name, mode = await db.run_at_once(work, within=60, told=told.append)
    assert (name != threading.current_thread().name, mode, told, turned) == (True, "wal", [False], [])


async def test_what_hangs_does_not_hold_up_the_loop(db: StoreConnection) -> None:
    """Only for its time: then the loop goes on, and has the result when it is there."""
    may_end = threading.Event()
    told: list[bool] = []
    hanging = asyncio.create_task(db.run_at_once(lambda _: may_end.wait(60), within=0.001, told=told.append))
    await asyncio.sleep(0)
    assert told == [True]
    assert not hanging.done()
    may_end.set()
    assert await hanging is True


@pytest.mark.parametrize("within", [60, 0.001])
async def test_an_error_reaches_who_waits_for_it(db: StoreConnection, within: float) -> None:
    """Whether the loop stood still until then or not; the connection goes on."""
    may_end = threading.Event()
    if within > 1:
        may_end.set()

    def work(connection: sqlite3.Connection) -> None:
        may_end.wait(60)
        connection.execute("SELECT * FROM nowhere")

    failing = asyncio.create_task(db.run_at_once(work, within=within, told=lambda _: None))
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        await failing
    assert await db.run(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)


async def test_a_connection_that_is_closed_says_so(db: StoreConnection) -> None:
    """As it does on the other way, so that the writer takes it for a fault of the store."""
    await db.close()
    with pytest.raises(ValueError, match="Connection closed"):
        await db.run_at_once(lambda _: None, within=1, told=lambda _: None)
