"""What a start makes of a log that is not as it was left: nothing is lost without a word, and nothing is undone."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from relay.store import StoreUnavailable
from relay.store.sqlite import SqliteStore
from tests.support.store_backends import SqliteBackend
from tests.support.store_files import refused
from tests.support.store_hangs import until
from tests.support.store_parts import Watch, an_event, emptied, stored


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    """A file of its own."""
    return SqliteBackend(tmp_path)


def log_of(file: Path) -> Path:
    """Its log."""
    return file.with_name(f"{file.name}-wal")


def cut(log: Path) -> None:
    os.truncate(log, 3 * log.stat().st_size // 4)


ACTS: dict[str, Callable[[Path], object]] = {
    "emptied": lambda log: os.truncate(log, 0),
    "cut": cut,
    "older": lambda log: shutil.copyfile(log.with_name("older"), log),
    "removed": lambda log: log.unlink(),
}


@pytest.mark.row("F8")
@pytest.mark.parametrize("act", ACTS)
async def test_what_became_of_a_log_at_rest_is_told_at_the_stop_and_at_the_next_start(
    backend: SqliteBackend, watch: Watch, act: str
) -> None:
    """Nobody writes between the loss and an orderly stop; only what is still held of it is kept."""
    store = await backend.open(watch)
    first = await stored(store, "crm")
    log = log_of(backend.path)
    shutil.copyfile(log, log.with_name("older"))
    last = [await stored(store, "crm") for _ in range(5)][-1]
    ACTS[act](log)
    assert await store.close()
    assert len(watch.outages) == 1
    assert str(log) in watch.outages[0]
    again = await backend.open(Watch())
    is_held = act == "removed"  # until the process ends
    assert (again.missing is None) is is_held
    assert (last.id in backend.event_ids()) is is_held
    assert (first.id in backend.event_ids()) is (act != "emptied")
    assert await again.close()
    once_more = await backend.open(Watch())
    assert once_more.missing is None
    assert await once_more.close()


@pytest.mark.row("F8")
@pytest.mark.parametrize("end", ["a stop", "a kill"])
async def test_a_log_with_a_hole_is_told_by_the_next_start(
    backend: SqliteBackend, watch: Watch, tmp_path: Path, end: str
) -> None:
    """One that was cut under a commit is as long as before; what stood behind the cut is not there. It is noted before
    anything is tried."""
    store = await backend.open(watch)
    for _ in range(5):
        await stored(store, "crm")
    log = log_of(backend.path)
    size = log.stat().st_size
    os.truncate(log, 32 + 2 * 4120)
    os.truncate(log, size)
    with pytest.raises(StoreUnavailable, match="truncated while it was in use"):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store._writer._failed_tries > 1)
    assert not store.condition().writable
    killed = tmp_path / "killed" / backend.path.name
    killed.parent.mkdir()
    for file in tmp_path.glob("relay.db*"):
        if file.suffix != ".db-shm":
            shutil.copy2(file, killed.parent)
    assert await store.close()
    again = await SqliteStore.open(backend.path if end == "a stop" else killed, Watch())
    assert again.missing is not None
    assert "cut short" in again.missing
    assert await again.close()


@pytest.mark.row("F8")
async def test_an_old_log_that_is_put_back_after_a_recovery_undoes_nothing(
    backend: SqliteBackend, watch: Watch
) -> None:
    """It was moved home when it went, and the one after it when the relay stopped; the start that finds it refuses it,
    and without it all is there."""
    store = await backend.open(watch)
    first = await stored(store, "crm")
    log, away = log_of(backend.path), backend.path.with_name("away")
    log.rename(away)
    with pytest.raises(StoreUnavailable, match="leave its files alone"):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store.condition().writable)
    last = [await stored(store, "crm") for _ in range(20)][-1]
    away.replace(log)
    assert await store.close()
    assert "is not the log that relay left behind" in await refused(backend.path)
    log.unlink()
    backend.path.with_name(f"{backend.path.name}-shm").unlink(missing_ok=True)
    again = await backend.open(Watch())
    assert {first.id, last.id} <= backend.event_ids()
    assert again.missing is None
    assert await again.close()


@pytest.mark.row("F8", "F3")
async def test_a_log_that_a_recovery_has_moved_home_is_not_missed_after_a_kill(
    backend: SqliteBackend, watch: Watch
) -> None:
    """Nothing is lost then, and nobody else was there."""
    store = await backend.open(watch)
    first = await stored(store, "crm")
    writer = store._writer
    writer._custody.look()  # as in an outage
    await emptied(store)  # as its recovery does
    killed = backend.after_a_kill()
    again = await killed.open(Watch())
    assert again.missing is None
    assert killed.event_ids() == {first.id}
    assert await again.close()
    assert await store.close()


@pytest.mark.row("F8")
async def test_a_log_that_was_left_behind_when_its_store_was_moved_bars_the_start(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    """A link leads to the new place, but what was stored last stands beside the link."""
    killed = backend.path.with_name("killed")
    store = await backend.open(Watch())
    event = await stored(store, "crm")
    killed.mkdir()
    for file in tmp_path.glob("relay.db*"):
        shutil.copy2(file, killed)
    assert await store.close()
    link, place = killed / backend.path.name, tmp_path / "large" / backend.path.name
    place.parent.mkdir()
    link.rename(place)
    link.symlink_to(place)
    words = await refused(link)
    assert words.startswith(f"{link}-wal: was left behind when the store was moved to {place}")
    log_of(link).rename(log_of(place))
    again = await SqliteStore.open(link, Watch())
    assert [row[0] for row in await again._reading.rows("SELECT id FROM event")] == [event.id]
    assert await again.close()


@pytest.mark.parametrize("between", ["nothing", "a reader"])
async def test_a_log_that_is_begun_anew_in_order_is_our_own(backend: SqliteBackend, watch: Watch, between: str) -> None:
    """After a checkpoint that a reader keeps from emptying it too, and where a transaction has changed nothing."""
    store = await backend.open(watch)
    events = [await stored(store, "crm")]
    for _ in range(3):
        with closing(sqlite3.connect(backend.path, isolation_level=None)) as reader:
            if between == "a reader":
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM event").fetchall()
                emptying = asyncio.ensure_future(store.empty_log())
                await asyncio.sleep(0.05)
                await store._writer.work(lambda _: None)
                reader.execute("ROLLBACK")
                await emptying
            else:
                await emptied(store)
            await store._writer.work(lambda _: None)
            events += [await stored(store, "crm") for _ in range(2)]
    assert watch.outages == []
    assert backend.event_ids() == {event.id for event in events}
    assert await store.close()
