"""What an opening does: afresh on purpose, durability read back, nothing left behind, and migrations."""

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import aiosqlite
import pytest

from relay.model import Way
from relay.store import StoreError, StoreInUse
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.connection import migrate
from relay.store.sqlite.schema import APPLICATION_ID, MIGRATIONS
from tests.support.store_files import abandoned, refused, used
from tests.support.store_parts import Watch, an_event, one, stored, taken
from tests.support.store_processes import child, told

# starting afresh


async def test_starting_afresh_sets_aside_and_never_deletes(file: Path) -> None:
    """The old store stands beside the new one, whole, and can be opened."""
    await used(file)
    before = file.read_bytes()
    store = await SqliteStore.open(file, Watch(), afresh=True)
    assert await taken(store) == []
    await stored(store, "crm")
    await store.close()
    (old,) = [one for one in file.parent.glob("relay.db.old-*") if not one.name.endswith((".guard", "-shm"))]
    assert old.read_bytes() == before
    store = await SqliteStore.open(old, Watch())
    assert len(await taken(store, limit=9)) == 3
    await store.close()


async def test_starting_afresh_twice_in_a_second_keeps_both(file: Path) -> None:
    """What was set aside before is never written over."""
    for number in range(4):
        store = await SqliteStore.open(file, Watch(), afresh=True)
        await store.accept(an_event(f"evt_{number}"), ["crm"])
        await store.close()
    found = set()
    for old in [each for each in file.parent.glob("relay.db*") if not each.name.endswith((".guard", "-shm", "-wal"))]:
        with closing(sqlite3.connect(old)) as db:
            found |= {row[0] for row in db.execute("SELECT id FROM event")}
    assert found == {f"evt_{number}" for number in range(4)}


async def test_starting_afresh_moves_the_log_with_its_database(file: Path, tmp_path: Path) -> None:
    """What only the log holds is not lost either."""
    killed = await abandoned(file, tmp_path / "killed")
    store = await SqliteStore.open(killed, Watch(), afresh=True)
    await store.close()
    (old,) = [one for one in killed.parent.glob("relay.db.old-*") if not one.name.endswith(("-wal", "-shm"))]
    store = await SqliteStore.open(old, Watch())
    assert len(await taken(store, limit=9)) == 6
    await store.close()


@pytest.mark.parametrize("ruin", [b"", b"rubbish"])
async def test_starting_afresh_is_the_way_out_of_a_refusal(file: Path, ruin: bytes) -> None:
    """What was refused is set aside as it is, and the next start needs no flag."""
    await used(file)
    file.write_bytes(ruin)
    await refused(file)
    store = await SqliteStore.open(file, Watch(), afresh=True)
    await store.close()
    await used(file)
    assert [one.read_bytes() for one in file.parent.glob("relay.db.old-*")] == [ruin]


async def test_starting_afresh_does_not_take_a_store_from_its_process(file: Path) -> None:
    """The lock comes first."""
    with child(file, "hold") as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(StoreInUse):
            await SqliteStore.open(file, Watch(), afresh=True)
        assert list(file.parent.glob("*.old-*")) == []
        first.communicate(timeout=20)


# what an opened store is


async def test_durability_is_read_back_from_the_live_connection(file: Path) -> None:
    """Write-ahead log, full synchronisation, one checkpointer: as the connection says, not as it was asked."""
    store = await SqliteStore.open(file, Watch())
    db = store._writer._db
    assert db is not None

    async def pragma(name: str) -> object:
        return next(row[0] for row in await db.execute_fetchall(f"PRAGMA {name}"))

    assert await pragma("journal_mode") == "wal"
    assert await pragma("synchronous") == 2
    assert await pragma("wal_autocheckpoint") == 0
    assert await pragma("secure_delete") == 2
    assert await pragma("application_id") == APPLICATION_ID
    assert await pragma("user_version") == len(MIGRATIONS)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await (await store._reading.connection()).execute("DELETE FROM event")
    await store.close()


@pytest.mark.row("T60")
async def test_the_files_are_their_owners_alone(file: Path) -> None:
    """Events hold personal data: nobody else reads the database, its log or its guard, whatever the umask."""
    before = os.umask(0)
    try:
        store = await SqliteStore.open(file, Watch())
        await stored(store, "crm")
    finally:
        assert os.umask(before) == 0, "the umask is given back"
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in file.parent.glob("relay.db*")}
    await store.close()
    assert modes.keys() == {"relay.db", "relay.db-wal", "relay.db-shm", "relay.db.guard"}
    assert set(modes.values()) == {0o600}


async def test_a_tidy_close_leaves_nothing_in_the_log(file: Path) -> None:
    """One file is the whole store, so that a copy of it is a backup."""
    await used(file)
    assert {one.name for one in file.parent.glob("relay.db*")} == {"relay.db", "relay.db.guard"}


async def test_names_with_odd_characters_are_files_like_others(tmp_path: Path) -> None:
    """A `?`, a `#`, a blank or a bracket in a path is none of SQLite's URI syntax."""
    for name in ("a b?mode=ro#c.db", "[x]%20.db", "ü.db"):
        await used(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0


# failed openings end


@pytest.mark.row("B69")
@pytest.mark.parametrize("number", range(1, 60, 3))
async def test_an_opening_that_is_given_up_leaves_nothing_behind(file: Path, number: int) -> None:
    """Cancelled at any step: no thread, no lock, and the next opening is as if nothing had been."""
    await used(file)
    task = asyncio.create_task(SqliteStore.open(file, Watch()))
    for _ in range(number):
        await asyncio.sleep(0.0005)
        if task.done():
            break
    task.cancel()
    try:
        store = await task
    except asyncio.CancelledError:
        pass
    else:
        await store.close()
    store = await SqliteStore.open(file, Watch())
    assert len(await taken(store, limit=9)) == 3
    await store.close()


@pytest.mark.row("B69")
async def test_a_process_whose_opening_failed_ends(file: Path) -> None:
    """No thread is left that would keep it alive."""
    for content in (b"rubbish", b"SQLite format 3\0" + b"\0" * 5000):
        file.write_bytes(content)
        first, last = told(file, "only_open")
        assert first["refused"] == "StoreUnusable"
        assert last["threads"] == 0


# migrations


STEPS = ("CREATE TABLE one (n);", "CREATE TABLE two (n); INSERT INTO two VALUES (1);", "ALTER TABLE one ADD COLUMN m;")


async def brought_up(file: Path, steps: tuple[str, ...]) -> tuple[int, int, set[str]]:
    """Migrate, and return (schema number, application id, tables)."""
    async with aiosqlite.connect(file, isolation_level=None) as db:
        await migrate(db, steps)
        ((version,),) = await db.execute_fetchall("PRAGMA user_version")
        ((application,),) = await db.execute_fetchall("PRAGMA application_id")
        tables = {row[0] for row in await db.execute_fetchall("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    return version, application, tables


@pytest.mark.row("F37")
async def test_migrations_are_numbered_and_run_once(file: Path) -> None:
    """From nothing, from the middle, and again: each step runs once, in order."""
    assert await brought_up(file, STEPS[:1]) == (1, APPLICATION_ID, {"one"})
    assert await brought_up(file, STEPS) == (3, APPLICATION_ID, {"one", "two"})
    assert await brought_up(file, STEPS) == (3, APPLICATION_ID, {"one", "two"})
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT count(*) FROM two").fetchone() == (1,)


@pytest.mark.row("F37")
async def test_a_step_that_fails_leaves_the_schema_as_it_was(file: Path) -> None:
    """And the number tells the truth."""
    with pytest.raises(sqlite3.Error):
        await brought_up(file, (STEPS[0], "CREATE TABLE two (n); INSERT INTO nowhere VALUES (1);"))
    assert await brought_up(file, STEPS) == (3, APPLICATION_ID, {"one", "two"})


@pytest.mark.row("F37")
async def test_a_kill_inside_a_migration_is_safe(file: Path) -> None:
    """The step under way is gone as a whole; the next start runs it again."""
    with child(file, "killed_in_a_migration") as process:
        process.communicate(timeout=50)
    assert process.returncode == -9
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert {row[0] for row in db.execute("SELECT name FROM sqlite_schema")} == {"one"}
    assert await brought_up(file, STEPS) == (3, APPLICATION_ID, {"one", "two"})


async def test_a_store_of_today_opens_again_and_again(file: Path) -> None:
    """An opening changes nothing that it need not: what was promised is there each time."""
    await used(file)
    for _ in range(3):
        store = await SqliteStore.open(file, Watch())
        claim = await one(store)
        await store.release([claim])
        await store.close()
    assert claim.attempt == 1


@pytest.mark.slow
@pytest.mark.row("B65", "B56")
@pytest.mark.parametrize("round_", range(8))
async def test_a_killed_process_keeps_every_promise(file: Path, round_: int) -> None:
    """Whatever it had answered when it was killed is in the store, with both deliveries, due at once."""
    promised: set[str] = set()
    with child(file, "accept_for_ever") as process:
        assert process.stdout is not None
        for _ in range(50 + 137 * round_):
            promised.add(json.loads(process.stdout.readline())["id"])
        process.kill()
        rest = process.stdout.read().splitlines()
    promised |= {json.loads(line)["id"] for line in rest if line.endswith("}")}
    store = await SqliteStore.open(file, Watch())
    for target in ("crm", "books"):
        got = {claim.event.id for claim in await taken(store, target, limit=1_000_000)}
        assert promised <= got
        assert len(got) - len(promised) <= 8 * 2
    await store.close()


async def test_what_waits_in_a_store_of_the_second_schema_goes_as_it_came(file: Path) -> None:
    """Its deliveries have no course, its event no failed condition, and both can be had from then on."""
    with closing(sqlite3.connect(file)) as db:
        db.executescript("".join(MIGRATIONS[:2]) + f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=2;")
        digest = sqlite3.Binary(hashlib.sha256(b"{}").digest())
        event = (1, "evt_1", "partner", "paid", 1, 1, 0, None, "[]", 2, digest, b"{}", '["all"]')
        db.execute(f"INSERT INTO event VALUES ({', '.join('?' * len(event))})", event)
        db.execute("INSERT INTO delivery (event_seq, target, state, due_at) VALUES (1, 'crm', 'pending', 1)")
        db.commit()
    store = await SqliteStore.open(file, Watch())
    assert (await one(store)).course == ()
    record = await store.archive.event("evt_1")
    assert record is not None
    assert (record.routes, record.failed_conditions) == (("all",), ())
    course = (Way("paid", "shop", ("data.paid",)),)
    await store.accept(an_event(), ["books"], {"books": course})
    assert (await one(store, "books")).course == course
    await store.close()


async def test_a_store_of_the_first_schema_is_taken_over_whole(file: Path) -> None:
    """Events, waiting deliveries and recorded attempts of an earlier version are all there after the first start."""
    with closing(sqlite3.connect(file)) as db:
        db.executescript(f"{MIGRATIONS[0]} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1;")
        event = ("evt_1", "partner", "paid", 1, 1, 0, "[]", 2, sqlite3.Binary(hashlib.sha256(b"{}").digest()), b"{}")
        db.execute(
            "INSERT INTO event (id, source, type, received_at, verified, hops, headers, size, sha256, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            event,
        )
        db.execute(
            "INSERT INTO delivery (event_seq, target, state, due_at, attempts) VALUES (1, 'crm', 'pending', 1, 2)"
        )
        for number in (2, 1):
            db.execute(
                "INSERT INTO attempt VALUES (1, 'crm', ?, ?, 5, 'failed', 500, 'status 500', '')", (number, number)
            )
        db.commit()
    store = await SqliteStore.open(file, Watch())
    (claim,) = await taken(store)
    assert store.last_received() == {"partner": claim.event.received_at}
    await store.close()
    assert (claim.event.id, claim.attempt, claim.event.body) == ("evt_1", 3, b"{}")
    assert (claim.course, claim.event.failed_conditions) == ((), ())
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT seq, number, status FROM attempt ORDER BY seq").fetchall() == [
            (1, 1, 500),
            (2, 2, 500),
        ]


# a kill while the file is given its log

BLANK = bytes.fromhex(
    "53514c69746520666f726d6174203300100002020040202000000001000000010000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000001002e63010d00000000"
    "10"
)
"""The first page of a new database, as a kill leaves it in the midst of its change to a log."""
BLANK_JOURNAL = bytes.fromhex("d9d505f920a163d700000000c3d607c3000000000000020000001000")
"""The journal beside it."""


@pytest.mark.row("F1", "F37")
async def test_a_new_file_that_a_kill_has_left_half_made_is_made(file: Path) -> None:
    """The very first start was killed between the file and its log: the next one is a start like any."""
    file.write_bytes(BLANK.ljust(4096, b"\0"))
    file.with_name("relay.db-journal").write_bytes(BLANK_JOURNAL.ljust(512, b"\0"))
    store = await SqliteStore.open(file, Watch())
    await stored(store, "crm")
    await store.close()
    assert not file.with_name("relay.db-journal").exists()


async def half_given_its_log(file: Path, home: Path) -> Path:
    """A store with three events, put back from a copy, that a kill has left with a change half made."""
    await used(file)
    home.mkdir()
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA cache_size=1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE event SET body = randomblob(400000)")  # more than the cache: it reaches the file
        for end in ("", "-journal"):
            shutil.copy(file.with_name(file.name + end), home / f"relay.db{end}")
        db.execute("ROLLBACK")
    return home / "relay.db"


@pytest.mark.row("F1", "F37")
async def test_a_copy_whose_first_start_was_killed_loses_nothing(file: Path, tmp_path: Path) -> None:
    """What was half written is undone before anything is judged."""
    killed = await half_given_its_log(file, tmp_path / "killed")
    store = await SqliteStore.open(killed, Watch())
    claims = await taken(store, limit=9)
    assert len(claims) == 3
    for claim in claims:
        assert await store.body(claim.event.id) == claim.event.body
    await store.close()


@pytest.mark.row("F8", "F37")
async def test_starting_afresh_moves_a_half_made_change_with_its_database(file: Path, tmp_path: Path) -> None:
    """Left beside the new file, it would be undone in that one."""
    killed = await half_given_its_log(file, tmp_path / "killed")
    store = await SqliteStore.open(killed, Watch(), afresh=True)
    await stored(store, "crm")
    await store.close()
    assert not killed.with_name("relay.db-journal").exists()
    store = await SqliteStore.open(killed, Watch())
    assert len(await taken(store, limit=9)) == 1
    await store.close()


@pytest.mark.row("F8")
async def test_a_strangers_half_made_change_is_left_alone(tmp_path: Path) -> None:
    """A database that is not ours is refused as it was, its journal too."""
    file = tmp_path / "theirs.db"
    with closing(sqlite3.connect(file)) as db:
        db.executescript("PRAGMA cache_size=1; CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(100000));")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE t SET x = randomblob(300000)")
        home = tmp_path / "killed"
        home.mkdir()
        for end in ("", "-journal"):
            shutil.copy(file.with_name(file.name + end), home / f"relay.db{end}")
        db.execute("ROLLBACK")
    before = {each.name: each.read_bytes() for each in home.iterdir()}
    with pytest.raises(StoreError):
        await SqliteStore.open(home / "relay.db", Watch())
    assert {each.name: each.read_bytes() for each in home.iterdir() if not each.name.endswith(".guard")} == before
