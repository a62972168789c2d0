"""Files taken away or cut under a store in use: nothing is promised that is not there; what is sound is used again."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from relay.store import StoreUnavailable, StoreUnusable
from relay.store.sqlite.transaction import Transaction
from tests.support.store_backends import SqliteBackend, kept
from tests.support.store_hangs import until
from tests.support.store_parts import NOW, SECOND, Watch, an_event, emptied, one, settlement, stored, taken


@pytest.fixture
def backend(backend: SqliteBackend) -> SqliteBackend:
    """A file of its own."""
    return backend


def side(file: Path, end: str) -> Path:
    """A file beside the database."""
    return file.with_name(file.name + end)


def halve(file: Path) -> None:
    """Cut a file in place."""
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)


def write_over(file: Path) -> None:
    """Copy another database over it, as `cp` does: the file stays the same one."""
    other = file.with_name("other.db")
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE another AS SELECT zeroblob(1000000)")
        db.commit()
    shutil.copyfile(other, file)


def put_a_twin(file: Path) -> None:
    """Put a copy in its place, as old and as large, as a restore does."""
    twin = file.with_name("twin")
    shutil.copy2(file, twin)
    twin.replace(file)


def cut_log(file: Path) -> None:
    """Cut the log of a store in half, in place."""
    log = side(file, "-wal")
    os.truncate(log, log.stat().st_size // 2)


def write_older_over(file: Path) -> None:
    """Write what the log was before over it; it stays the same file."""
    shutil.copyfile(side(file, "-old"), side(file, "-wal"))


def by_another(file: Path, *statements: str) -> None:
    """Run SQL in a process of its own, as SQLite's shell would."""
    code = "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\nfor sql in sys.argv[2:]: db.execute(sql).fetchall()"
    subprocess.run([sys.executable, "-c", code, str(file), *statements], check=True, timeout=20)


ACTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "log emptied": ("-wal", "emptied", lambda file: os.truncate(side(file, "-wal"), 0)),
    "log cut": ("-wal", "truncated", lambda file: halve(side(file, "-wal"))),
    "database cut": ("", "truncated", halve),
    "database written over": ("", "written to by another program", write_over),
    "database replaced by its twin": ("", "replaced", put_a_twin),
}


@pytest.mark.row("F8", "H55")
@pytest.mark.parametrize("act", ACTS)
async def test_the_next_event_is_refused_where_a_file_was_tampered_with(
    backend: SqliteBackend, watch: Watch, act: str
) -> None:
    """It is told once, with the file, what became of it and what to do, and is not over while the damage is there."""
    end, became, do = ACTS[act]
    store = await backend.open(watch)
    for _ in range(5):
        await stored(store, "crm")
    await store._writer.empty_log()  # the database has grown to what it holds
    await stored(store, "crm")
    do(backend.path)
    with pytest.raises(StoreUnavailable) as refused:
        await store.accept(an_event(), ["crm"])
    words = str(refused.value)
    assert words.startswith(f"{side(backend.path, end)}: {became}")
    assert "restore" in words
    assert "--new-store" in words
    await until(lambda: store._writer._failed_tries > 1)
    assert not store.condition().writable
    assert watch.outages == [words]
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(), ["crm"])
    assert await store.close()


@pytest.mark.row("F8", "H55")
@pytest.mark.parametrize(
    "act",
    [
        *("log emptied", "log cut under it", "log written over with an older one", "log removed"),
        *("log replaced by its twin", "database written over"),
    ],
)
async def test_a_commit_whose_files_go_while_it_is_made_is_not_promised(
    backend: SqliteBackend, watch: Watch, act: str
) -> None:
    """SQLite takes it: it writes behind a hole, or to a file without a name. Nobody is told that it is stored, and the
    store is not used again as long as something that was promised is missing."""
    store = await backend.open(watch)
    await stored(store, "crm")
    log = side(backend.path, "-wal")
    shutil.copyfile(log, side(backend.path, "-old"))
    await emptied(store)
    for _ in range(5):
        await stored(store, "crm")
    acts: dict[str, Callable[[Path], None]] = {
        "log removed": lambda _: log.unlink(),
        "log replaced by its twin": lambda _: put_a_twin(log),
        "log cut under it": cut_log,
        "log written over with an older one": write_older_over,
    }
    do = acts[act] if act in acts else ACTS[act][2]

    def work(tx: Transaction) -> None:
        tx.db.execute(f"PRAGMA user_version={tx.db.execute('PRAGMA user_version').fetchone()[0]}")
        do(backend.path)

    with pytest.raises(StoreUnavailable):
        await store._writer.work(work)
    assert not store.condition().writable
    if "log" in act and act not in ("log removed", "log replaced by its twin"):
        await until(lambda: store._writer._failed_tries > 1)
        assert not store.condition().writable
    assert await store.close()


@pytest.mark.row("F8", "H55")
async def test_a_backup_that_is_written_over_a_store_in_use_is_not_read_with_its_log(
    backend: SqliteBackend, watch: Watch
) -> None:
    """The file stays the same one and is large enough; but the log beside it belongs to what stood there before."""
    store = await backend.open(watch)
    for _ in range(5):
        await stored(store, "crm")
    async with store.copy() as copy:
        whole = b"".join([part async for part in copy.parts()])
    assert len(whole) > backend.path.stat().st_size
    with backend.path.open("r+b") as file:
        file.write(whole)
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store._writer._failed_tries > 1)
    assert not store.condition().writable
    assert backend.path.read_bytes() == whole
    assert await store.close()


@pytest.mark.row("F3", "B1")
async def test_claims_of_a_commit_that_counts_although_it_was_refused_are_given_back(
    backend: SqliteBackend, watch: Watch
) -> None:
    """The file holds them, and nobody got them: they are due as soon as the store is back, under the same number, and
    do not wait for the end of a lease; a claim from before that somebody holds stays his. An event in it counts too."""
    store = await backend.open(watch)
    first, second = await stored(store, "crm"), await stored(store, "crm")
    held = await one(store)

    def touch(_: Transaction) -> None:
        os.utime(backend.path)

    third = an_event(at=NOW + SECOND)
    refused = [asyncio.create_task(call) for call in (taken(store), store.accept(third, ["crm"]))]
    await asyncio.sleep(0)  # both are queued; the writer takes all three up together
    with pytest.raises(StoreUnavailable):
        await store._writer.work(touch)
    for call in refused:
        with pytest.raises(StoreUnavailable):
            await call
    assert backend.deliveries()[second.id, "crm"].state == "in_flight"
    await until(lambda: store.condition().writable)
    assert await kept(store, "crm") == backend.counted()
    again = await taken(store, limit=9, now=NOW + SECOND)
    assert [(claim.event.id, claim.attempt) for claim in again] == [(second.id, 1), (third.id, 1)]
    assert (await store.settle(settlement(held))).ruling is not None
    assert backend.deliveries()[first.id, "crm"].state == "delivered"
    assert await store.close()


@pytest.mark.row("F8")
async def test_a_view_that_finds_the_database_cut_makes_it_an_outage(backend: SqliteBackend, watch: Watch) -> None:
    """Nobody has to write first: readiness tells it as soon as it is seen."""
    store = await backend.open(watch)
    await stored(store, "crm")
    await store._writer.empty_log()
    os.truncate(backend.path, 8192)
    with pytest.raises(StoreUnusable, match="malformed"):
        await store._reading.rows("SELECT * FROM event")
    await until(lambda: not store.condition().writable)
    assert "truncated while it was in use" in watch.outages[0]
    assert await store.close()


@pytest.mark.row("F8")
async def test_a_start_tells_of_a_log_that_was_lost_before_the_stop(backend: SqliteBackend, watch: Watch) -> None:
    """An orderly stop in the outage does not make the loss look like a clean start."""
    store = await backend.open(watch)
    await stored(store, "crm")
    os.truncate(side(backend.path, "-wal"), 0)
    with pytest.raises(StoreUnavailable, match="emptied"):
        await store.accept(an_event(), ["crm"])
    assert await store.close()
    again = await backend.open(watch)
    assert again.missing is not None
    assert await again.close()


@pytest.mark.row("F8")
@pytest.mark.parametrize("act", ["emptied", "removed"])
async def test_an_index_that_is_tampered_with_is_made_anew(backend: SqliteBackend, watch: Watch, act: str) -> None:
    """The process does not die of it, nothing is lost, and nobody needs to help."""
    store = await backend.open(watch)
    first = await stored(store, "crm")
    index = side(backend.path, "-shm")
    if act == "emptied":
        os.truncate(index, 0)
    else:
        index.unlink()
    with pytest.raises(StoreUnavailable, match="made anew by itself"):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm")
    assert {first.id, last.id} <= backend.event_ids()
    assert len(watch.outages) == len(watch.recoveries) == 1
    assert await store.close()


@pytest.mark.row("F8")
@pytest.mark.parametrize("size", [0, 4096, 20_000])
async def test_a_view_of_a_store_whose_index_was_cut_ends_nothing(
    backend: SqliteBackend, watch: Watch, size: int
) -> None:
    """The page that is not there would end the process; the view is told to come again, and the store goes on."""
    store = await backend.open(watch)
    events = {(await stored(store, "crm")).id for _ in range(3)}
    os.truncate(side(backend.path, "-shm"), size)
    with pytest.raises(StoreUnavailable, match="truncated while it was in use"):
        await store._reading.rows("SELECT * FROM event")
    await until(lambda: bool(watch.recoveries))
    assert {row[0] for row in await store._reading.rows("SELECT id FROM event")} == events
    events.add((await stored(store, "crm")).id)
    assert backend.event_ids() == events
    assert len(watch.outages) == 1
    assert await store.close()


@pytest.mark.row("F8")
@pytest.mark.parametrize("kind", ["PASSIVE", "TRUNCATE"])
async def test_a_log_that_another_program_has_moved_home_is_a_short_outage(
    backend: SqliteBackend, watch: Watch, kind: str
) -> None:
    """Nothing is lost by it, so that the store goes on by itself, with all that was promised."""
    store = await backend.open(watch)
    first = await stored(store, "crm")
    by_another(backend.path, f"PRAGMA wal_checkpoint({kind})")
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm")
    assert {first.id, last.id} <= backend.event_ids()
    assert await store.close()


@pytest.mark.row("F8", "H55")
@pytest.mark.parametrize("is_needed", [True, False])
async def test_a_log_that_is_removed_is_moved_home_as_long_as_it_is_held(
    backend: SqliteBackend, watch: Watch, is_needed: bool
) -> None:
    """Without its name it would be gone with the process; all that was promised is there when the store goes on."""
    store = await backend.open(watch)
    first = await stored(store, "crm")
    if not is_needed:
        await store._writer.empty_log()
    side(backend.path, "-wal").unlink()
    with pytest.raises(StoreUnavailable, match="vanished while it was in use"):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm")
    assert {first.id, last.id} <= backend.event_ids()
    assert {first.id, last.id} <= backend.after_a_kill().event_ids()
    assert len(watch.outages) == len(watch.recoveries) == 1
    assert await store.close()


@pytest.mark.row("F8")
async def test_an_old_log_in_the_place_of_the_new_one_is_not_read(backend: SqliteBackend, watch: Watch) -> None:
    """It would undo what came later: the store stays out until the log is back that belongs to it."""
    store = await backend.open(watch)
    log, old, kept = (side(backend.path, end) for end in ("-wal", "-old", "-kept"))
    first = await stored(store, "crm")
    shutil.copyfile(log, old)
    await store._writer.empty_log()
    second = await stored(store, "crm")
    kept.hardlink_to(log)
    store._writer._presence.release()  # nor is it held any more
    old.rename(log)
    with pytest.raises(StoreUnavailable, match="replaced while it was in use"):
        await store.accept(an_event(), ["crm"])
    await until(lambda: store._writer._failed_tries > 1)
    assert not store.condition().writable
    kept.rename(log)
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm")
    assert {first.id, second.id, last.id} <= backend.event_ids()
    assert await store.close()
