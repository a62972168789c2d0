"""A copy of a store that runs: whole in itself, made at one moment, and fit to go on from."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from relay.store import CopyUnderWay, NoRoomForCopy, StoreUnusable
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.copying import remove_copies, verify_copy
from tests.support.store_backends import SqliteBackend, kept
from tests.support.store_files import abandoned, refused
from tests.support.store_parts import (
    NOW,
    SECOND,
    Watch,
    becomes,
    disabled,
    failed,
    killed,
    one,
    settlement,
    stored,
    taken,
)


@pytest.fixture
async def store(file: Path, watch: Watch) -> AsyncIterator[SqliteStore]:
    """An open store with a little of everything in it."""
    opened = await SqliteStore.open(file, watch)
    for number in range(6):
        await stored(opened, "crm", "books", key=f"key-{number}", body=b"b" * (1 + number * 30_000))
    await stored(opened)
    await opened.settle(settlement(await one(opened)))
    await killed(opened, await one(opened))
    await failed(opened, await one(opened), again=NOW + SECOND)
    await one(opened)
    await opened.change_health("books", becomes(disabled("books")))
    yield opened
    await opened.close()


def tables(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that stands in a database, table by table, with its schema and its numbers."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")]
        found = {name: sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}
        found["schema"] = sorted(db.execute("SELECT type, name, sql FROM sqlite_schema").fetchall(), key=repr)
        for pragma in ("application_id", "user_version"):
            found[pragma] = db.execute(f"PRAGMA {pragma}").fetchall()
        return found


async def fetched(store: SqliteStore, to: Path) -> Path:
    """A copy, written where it is wanted."""
    async with store.copy() as copy:
        content = b"".join([part async for part in copy.parts()])
        assert len(content) == copy.size
    to.write_bytes(content)
    return to


def beside(file: Path) -> list[str]:
    """What stands beside a store that is no part of it."""
    own = {file.name + end for end in ("", "-wal", "-shm", ".guard")}
    return sorted(one.name for one in file.parent.iterdir() if one.name not in own and one.is_file())


async def test_a_copy_holds_every_row_of_every_table(store: SqliteStore, file: Path, tmp_path: Path) -> None:
    """What stands in the log too; it needs no side file, and what it was made from is as it was."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    copy = await fetched(store, home / "copy.db")
    verify_copy(copy)
    assert tables(copy) == tables(file)
    assert [one.name for one in home.iterdir()] == ["copy.db"]
    assert beside(file) == []


async def test_a_relay_goes_on_from_a_copy_as_from_a_killed_store(
    store: SqliteStore, file: Path, tmp_path: Path
) -> None:
    """Every event, delivery and attempt, and each target's health; what was under way is due again."""
    copy = SqliteBackend(tmp_path / "restored")
    await fetched(store, copy.path)
    before = SqliteBackend(file.parent)
    opened = await copy.open(Watch())
    assert copy.event_ids() == before.event_ids()
    assert copy.attempts() == before.attempts()
    was = {key: "pending" if row.state == "in_flight" else row.state for key, row in before.deliveries().items()}
    assert {key: row.state for key, row in copy.deliveries().items()} == was
    assert await opened.target_health("books") == disabled("books")
    assert await kept(opened, "crm", "books") == copy.counted()
    (claim,) = await taken(opened)
    assert len(await opened.body(claim.event.id)) == len(await store.body(claim.event.id))
    await stored(opened, "crm")
    await opened.close()


async def test_a_copy_is_of_one_moment_whatever_is_written_meanwhile(
    store: SqliteStore, file: Path, tmp_path: Path
) -> None:
    """Every event in it has all its deliveries, and events are taken while it is made."""
    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            await stored(store, "crm", "books", body=b"x" * 5000)
            number += 1
        return number

    writing = asyncio.create_task(write())
    for number in range(5):
        copy = await fetched(store, tmp_path / f"copy-{number}.db")
        verify_copy(copy)
        with closing(sqlite3.connect(copy)) as db:
            halves = """SELECT count(*) FROM event e WHERE e.source = 'partner' AND
                (SELECT count(*) FROM delivery d WHERE d.event_seq = e.seq) NOT IN (0, 2)"""
            assert db.execute(halves).fetchone() == (0,)
    stop.set()
    assert await writing > 0


async def test_only_one_copy_at_a_time(store: SqliteStore, tmp_path: Path) -> None:
    """The second is refused at once, also while the first is only fetched; afterwards there is one again."""
    async with store.copy():
        with pytest.raises(CopyUnderWay, match="already"):
            async with store.copy():
                pass
    await fetched(store, tmp_path / "copy.db")


async def test_a_copy_that_does_not_fit_is_refused_and_leaves_nothing(store: SqliteStore, file: Path) -> None:
    """The words say where, how much it needs and how much there is; the reserve is not touched."""
    room = await store.room()
    scarce = replace(room, free=room.used + room.reserve + room.owed - 1)
    with pytest.raises(NoRoomForCopy, match=f"{file.parent}.*{room.used} bytes.*{scarce.free} are free"):
        async with store._copying.copy(scarce):
            pass
    assert beside(file) == []


@pytest.mark.row("F6")
async def test_a_copy_is_refused_in_true_numbers_where_the_log_needs_more_than_is_free(store: SqliteStore) -> None:
    """What is free and what the log needs of it are told apart: their difference, below zero, is no room."""
    scarce = replace(await store.room(), free=4096, owed=1_200_128)
    with pytest.raises(NoRoomForCopy, match=r"the log needs 1200128, and 4096 are free; make room"):
        async with store._copying.copy(scarce):
            pass


async def test_a_copy_is_readable_by_its_owner_alone_and_has_no_name_once_it_is_made(
    store: SqliteStore, file: Path
) -> None:
    """So that not even a kill leaves it there."""
    before = os.umask(0)
    try:
        async with store.copy() as copy:
            assert beside(file) == []
            assert os.fstat(copy._fd).st_mode & 0o777 == 0o600  # type: ignore[attr-defined]
    finally:
        os.umask(before)


async def test_who_gives_up_waiting_for_a_copy_leaves_nothing(store: SqliteStore, file: Path) -> None:
    """Wherever it is cut short, also by the store's close; the store goes on."""
    for turns in (0, 1, 2, 3, 5, 8, 13, 21):
        making = asyncio.create_task(fetched(store, file.with_name("never.db")))
        for _ in range(turns):
            await asyncio.sleep(0)
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await making
        file.with_name("never.db").unlink(missing_ok=True)
        assert beside(file) == []
    await stored(store, "crm")
    await fetched(store, file.with_name("copy.db"))


async def test_who_gives_up_while_the_file_of_a_copy_is_made_leaves_nothing(
    store: SqliteStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its name nor its descriptor, however slow the disk is to make it."""
    making, made, opened = threading.Event(), threading.Event(), os.open
    held: list[int] = []

    def slowly(path: str | Path, *args: int) -> int:
        if ".copy-" in str(path):
            making.set()
            assert made.wait(60)
            held.append(opened(path, *args))
            return held[-1]
        return opened(path, *args)

    monkeypatch.setattr(os, "open", slowly)
    waiting = asyncio.create_task(fetched(store, file.with_name("never.db")))
    assert await asyncio.to_thread(making.wait, 60)
    waiting.cancel()
    await asyncio.sleep(0)
    made.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert beside(file) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held[0])


async def test_a_name_that_looks_like_a_pattern_is_only_a_name(tmp_path: Path, watch: Watch) -> None:
    """Neither a copy that is made nor what a kill has left stays; the neighbour that the pattern would name does."""
    file, neighbour = tmp_path / "re[l]ay.db", tmp_path / "relay.db.copy-0123"
    leftover = file.with_name(f"{file.name}.copy-0123")
    for one_ in (leftover, neighbour):
        one_.write_bytes(b"half a copy")
    store = await SqliteStore.open(file, watch)
    assert beside(file) == [neighbour.name]
    await fetched(store, tmp_path / "copy.db")
    assert beside(file) == ["copy.db", neighbour.name]
    await store.close()


async def test_a_copy_is_given_back_off_the_loop(
    store: SqliteStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name, and its pages with the last hold of it: of a large one that takes its time."""
    done: dict[str, set[int]] = {"close": set(), "unlink": set()}
    close, unlink = os.close, os.unlink

    def closing_(fd: int) -> None:
        if ".copy-" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            done["close"].add(threading.get_ident())
        close(fd)

    def unlinking(path: Path) -> None:
        done["unlink"].add(threading.get_ident())
        unlink(path)

    monkeypatch.setattr(os, "close", closing_)
    monkeypatch.setattr(os, "unlink", unlinking)
    await fetched(store, file.with_name("copy.db"))
    assert done["close"]
    assert done["unlink"]
    assert threading.get_ident() not in done["close"] | done["unlink"]


async def test_a_start_removes_what_a_kill_has_left_of_a_copy(file: Path, watch: Watch) -> None:
    """And nothing else."""
    leftover, other = file.with_name("relay.db.copy-0123"), file.with_name("relay.db.mine")
    leftover.write_bytes(b"half a copy")
    other.write_bytes(b"not ours")
    store = await SqliteStore.open(file, watch)
    assert beside(file) == ["relay.db.mine"]
    await store.close()
    remove_copies(file)


@pytest.mark.parametrize("how", ["cut", "foreign", "rotten", "empty"])
async def test_what_is_no_whole_copy_is_not_taken_for_one(store: SqliteStore, tmp_path: Path, how: str) -> None:
    """Cut short, of another program, damaged, or empty."""
    copy = await fetched(store, tmp_path / "copy.db")
    content = bytearray(copy.read_bytes())
    if how == "cut":
        del content[-8192:]
    elif how == "foreign":
        content[68:72] = b"ELSE"
    elif how == "rotten":
        content[4096:8192] = bytes(4096)
    else:
        content.clear()
    copy.write_bytes(content)
    with pytest.raises(StoreUnusable, match=str(copy)):
        verify_copy(copy)


@pytest.mark.row("F8")
async def test_a_copy_in_the_place_of_the_old_file_is_gone_on_from(
    store: SqliteStore, file: Path, tmp_path: Path
) -> None:
    """The procedure that the README tells: stop, move the old files away, put the copy there, start."""
    copy = await fetched(store, tmp_path / "copy")
    for _ in range(50):
        await stored(store, "crm", body=b"later" * 5000)
    await store.close()
    events = len(tables(copy)["event"])
    for keep_guard in (True, False):
        for one_ in file.parent.glob("relay.db*"):
            if not (keep_guard and one_.name.endswith(".guard")):
                one_.unlink()
        shutil.copy(copy, file)
        again = await SqliteStore.open(file, Watch())
        assert len(tables(file)["event"]) == events
        assert again.missing is None
        await stored(again, "crm")
        await again.close()


@pytest.mark.row("F8")
async def test_a_copy_beside_the_log_of_another_store_is_refused(file: Path, tmp_path: Path) -> None:
    """SQLite would write the old log's pages over the copy; the words say what to move away, and then it opens."""
    killed_one = await abandoned(file, tmp_path / "killed")
    source = await SqliteStore.open(file, Watch())
    copy = await fetched(source, tmp_path / "copy")
    await source.close()
    shutil.copy(copy, killed_one)
    words = await refused(killed_one)
    assert "-wal" in words
    assert "move" in words
    for end in ("-wal", "-shm"):
        killed_one.with_name(killed_one.name + end).unlink(missing_ok=True)
    opened = await SqliteStore.open(killed_one, Watch())
    assert len(tables(killed_one)["event"]) == len(tables(copy)["event"])
    await opened.close()
