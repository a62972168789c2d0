"""Opening a file: one process at a time, and nothing that is not what it was is used, changed or lost."""

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relay.store import StoreInUse, StoreUnusable
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.connection import in_words
from relay.store.sqlite.file import _holder, durability_warning
from relay.store.sqlite.schema import MIGRATIONS
from tests.support.store_files import abandoned, refused, strange, used
from tests.support.store_parts import Watch, stored, taken
from tests.support.store_processes import child, told

AFRESH = "relay run --new-store"
"""The way out that a refusal names."""


# one process a file


@pytest.mark.row("F11", "C53")
async def test_a_second_process_is_told_who_has_the_store(file: Path) -> None:
    """It ends at once, with the process id of the one that has it, and touches nothing."""
    with child(file, "hold") as first:
        assert first.stdout is not None
        pid = json.loads(first.stdout.readline())["pid"]
        assert pid == first.pid
        assert f"in use by another relay (process {pid}); stop it first" in await refused(file, StoreInUse)
        first.communicate(timeout=20)
    assert first.returncode == 0
    await used(file)


async def test_the_same_process_cannot_open_it_twice(file: Path) -> None:
    """Nor can it by another name of the same file's guard."""
    store = await SqliteStore.open(file, Watch())
    assert f"process {os.getpid()}" in await refused(file, StoreInUse)
    await stored(store, "crm")
    await store.close()


async def test_a_killed_process_leaves_no_lock(file: Path) -> None:
    """A lock that outlived its process would need a hand."""
    with child(file, "hold") as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
        first.wait(timeout=20)
    await used(file)


@pytest.mark.parametrize("other", ["hard link", "guard deleted"])
async def test_a_store_in_use_is_found_in_use_by_another_name_too(file: Path, other: str) -> None:
    """The lock is also on the database itself: another name has another guard, and a guard can be deleted."""
    store = await SqliteStore.open(file, Watch())
    await stored(store, "crm")
    same = file.with_name("same.db")
    if other == "hard link":
        os.link(file, same)
    else:
        file.with_name("relay.db.guard").unlink()
        same = file
    words = await refused(same, StoreInUse, unchanged=False)
    assert f"in use by another relay, under another name (process {os.getpid()}); stop it first" in words
    await stored(store, "crm")
    await store.close()
    await used(file)


@pytest.mark.row("F11")
def test_where_the_system_does_not_say_who_holds_a_lock_nothing_is_made_up(tmp_path: Path) -> None:
    """Another process namespace, another system, or a list that cannot be read."""
    file, locks = tmp_path / "relay.db", tmp_path / "locks"
    with file.open("wb") as opened:
        found = os.fstat(opened.fileno())
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        locks.write_text(f"1: POSIX  ADVISORY  WRITE 7 {place} 0 EOF\n2: FLOCK  ADVISORY  WRITE 0 {place} 0 EOF\nodd\n")
        assert _holder(opened.fileno(), locks) == ""
        locks.write_text(f"2: FLOCK  ADVISORY  WRITE 4711 {place} 0 EOF\n")
        assert _holder(opened.fileno(), locks) == " (process 4711)"
        assert _holder(opened.fileno(), tmp_path / "none") == ""


@pytest.mark.slow
@pytest.mark.row("C53")
async def test_a_database_that_another_program_has_locked_is_in_use(file: Path) -> None:
    """Not broken: the words say what to do."""
    await used(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        words = await refused(file, StoreInUse, unchanged=False)
        assert "locked by another program; close it first" in words
    await used(file)


# a store that is not what it was


@pytest.mark.row("F8", "C53")
async def test_a_store_that_vanished_is_not_started_empty(file: Path) -> None:
    """Total loss must not look like a clean start."""
    await used(file)
    file.unlink()
    words = await refused(file)
    assert "vanished since its last use" in words
    assert AFRESH in words
    assert not file.exists()


async def test_a_store_that_vanished_while_it_was_open_is_missed_at_the_next_start(file: Path) -> None:
    """Closing does not forget what was there."""
    store = await SqliteStore.open(file, Watch())
    await stored(store, "crm")
    for end in ("", "-wal", "-shm"):
        file.with_name(file.name + end).unlink()
    await store.close()
    assert "vanished" in await refused(file)


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no-guard"])
async def test_a_log_without_its_database_is_not_thrown_away(file: Path, tmp_path: Path, guard: bool) -> None:
    """SQLite itself would delete the log, and with it what was promised."""
    lost = await abandoned(file, tmp_path / "killed")
    lost.unlink()
    if not guard:
        lost.with_name("relay.db.guard").unlink()
    assert "vanished" in await refused(lost)
    assert lost.with_name("relay.db-wal").stat().st_size > 0


@pytest.mark.row("F8")
@pytest.mark.parametrize("became", ["gone", "emptied"])
async def test_a_log_that_vanished_after_a_kill_is_missed(file: Path, tmp_path: Path, became: str) -> None:
    """What was stored last may have stood in it alone; the next start, which is whole again, has nothing to say."""
    lost = await abandoned(file, tmp_path / "killed")
    log = lost.with_name("relay.db-wal")
    if became == "gone":
        log.unlink()
    else:
        os.truncate(log, 0)
    store = await SqliteStore.open(lost, Watch())
    assert store.missing is not None
    assert f"relay.db-wal is {became} although relay left it whole" in store.missing
    await store.close()
    again = await SqliteStore.open(lost, Watch())
    assert again.missing is None
    await again.close()


@pytest.mark.row("F8")
async def test_a_log_that_is_there_is_not_missed(file: Path, tmp_path: Path) -> None:
    """A kill alone is nothing to speak of."""
    store = await SqliteStore.open(await abandoned(file, tmp_path / "killed"), Watch())
    assert store.missing is None
    await store.close()
    with child(file, "hold") as unused:  # killed before it has stored anything
        assert unused.stdout is not None
        unused.stdout.readline()
        unused.kill()
        unused.wait(timeout=20)
    store = await SqliteStore.open(file, Watch())
    assert store.missing is None
    await store.close()


@pytest.mark.parametrize("step", ["before the log is deleted", "after it"])
async def test_a_kill_at_the_end_of_a_stop_is_no_loss(file: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """SQLite deletes the log when it closes; a process that dies just then leaves a store that starts."""
    store = await SqliteStore.open(file, Watch())
    await stored(store, "crm")
    copy = file.with_name("copy")
    copy.mkdir()
    close = store._writer.close

    async def closing_and_dying() -> None:
        if step == "after it":
            await close()
        for one in file.parent.glob("relay.db*"):
            shutil.copy(one, copy)
        await close()

    monkeypatch.setattr(store._writer, "close", closing_and_dying)
    await store.close()
    again = await SqliteStore.open(copy / file.name, Watch())
    assert again.missing is None
    assert len(await taken(again, limit=9)) == 1
    await again.close()


@pytest.mark.row("F8", "C53")
@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no-guard"])
async def test_a_store_that_was_emptied_is_refused(file: Path, tmp_path: Path, guard: bool) -> None:
    """A file of zero bytes beside its log, or that once had more, is a loss."""
    emptied = await abandoned(file, tmp_path / "killed")
    emptied.write_bytes(b"")
    if not guard:
        emptied.with_name("relay.db.guard").unlink()
    words = await refused(emptied)
    assert "emptied since its last use" in words
    assert AFRESH in words


async def test_an_empty_file_that_was_never_used_is_a_new_store(file: Path) -> None:
    """Who made the file beforehand, to set its mode, is not refused."""
    file.touch(mode=0o600)
    await used(file)


@pytest.mark.row("F8")
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
async def test_a_truncated_store_is_refused(file: Path, kept: float) -> None:
    """Cut off anywhere, it is named with both sizes."""
    await used(file, events=20)
    size = file.stat().st_size
    os.truncate(file, int(size * kept))
    words = await refused(file)
    assert "truncated since its last use" in words
    assert f"{int(size * kept)} bytes, {size} expected" in words
    assert AFRESH in words


async def test_a_store_truncated_beside_its_log_is_refused(file: Path, tmp_path: Path) -> None:
    """With a log the header proves nothing; the guard remembers the size."""
    cut = await abandoned(file, tmp_path / "killed")
    os.truncate(cut, 8192)
    assert "truncated since its last use" in await refused(cut)


async def test_a_smaller_backup_that_was_put_back_is_taken(file: Path, tmp_path: Path) -> None:
    """Who does what the refusal asks for, and restores an older and smaller file, is not refused again."""
    await used(file)
    backup = shutil.copy(file, tmp_path / "backup.db")
    await used(file, events=50)
    file.write_bytes(b"ruined")
    await refused(file)
    shutil.copy(backup, file)
    store = await SqliteStore.open(file, Watch())
    assert len(await taken(store, limit=99)) == 3
    await store.close()


@pytest.mark.row("C52", "F8")
@pytest.mark.parametrize("content", [b"not a database at all\n" * 100, b"\0" * 4096, b"S", b"SQLite format 3\0"])
async def test_a_file_that_is_no_database_is_refused(file: Path, content: bytes) -> None:
    """Whatever it is, it is somebody's: nothing is put beside it, and it is not moved away on purpose either."""
    file.write_bytes(content)
    words = f"{file}: file is not a database, nor ever a store of relay's; choose another store.url"
    assert await refused(file) == await refused(file, afresh=True) == words
    assert [(one, one.read_bytes()) for one in file.parent.iterdir()] == [(file, content)]


@pytest.mark.row("F8")
async def test_a_store_of_ours_that_is_no_database_any_more_keeps_its_way_out(file: Path) -> None:
    """The guard remembers it, and stays."""
    await used(file)
    file.write_bytes(b"not a database at all\n" * 100)
    assert f"file is not a database; restore it from a backup, or start afresh on purpose with: {AFRESH}" in (
        await refused(file)
    )
    assert file.with_name("relay.db.guard").stat().st_size > 0


@pytest.mark.row("F2", "F8")
@pytest.mark.parametrize("end", ["-wal", "-journal"])
async def test_what_a_cut_may_have_left_of_a_first_start_can_be_set_aside(file: Path, end: str) -> None:
    """Beside a log or a journal it may have been ours, though no guard remembers it."""
    file.write_bytes(bytes(4096))
    file.with_name(file.name + end).write_bytes(bytes(512))
    assert AFRESH in await refused(file)
    store = await SqliteStore.open(file, Watch(), afresh=True)
    assert store.aside is not None
    assert store.aside.read_bytes() == bytes(4096)
    await store.close()


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE theirs (n)",
        "CREATE TABLE theirs (n); PRAGMA user_version=1",
        "CREATE TABLE theirs (n); PRAGMA user_version=7",
        "CREATE TABLE theirs (n); PRAGMA application_id=77",
        "PRAGMA user_version=1",
        "PRAGMA application_id=77; PRAGMA user_version=1; CREATE TABLE event (seq); CREATE TABLE delivery (n)",
        "CREATE TABLE event (seq); CREATE TABLE delivery (target, state); PRAGMA user_version=1",
        "PRAGMA journal_mode=WAL; CREATE TABLE theirs (n)",
    ],
)
async def test_a_database_of_another_program_is_left_alone(file: Path, script: str) -> None:
    """Whatever version it says, however its tables are named: not one byte of it is changed, nothing is put beside it,
    and it is not moved away on purpose either."""
    strange(file, script)
    words = f"{file}: a database of another program; choose another store.url"
    assert await refused(file) == await refused(file, afresh=True) == words
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.row("F37", "C53")
async def test_a_newer_schema_is_refused(file: Path) -> None:
    """A downgrade cannot know what it would break; the words say which version wrote it."""
    await used(file)
    strange(file, f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    words = await refused(file)
    assert f"written by a newer version (schema {len(MIGRATIONS) + 1}, this one knows {len(MIGRATIONS)})" in words


@pytest.mark.row("F37")
async def test_a_refused_file_keeps_its_log_as_well(file: Path, tmp_path: Path) -> None:
    """Judging does not even move the log's pages home: the file of a killed newer relay is as it was."""
    killed = await abandoned(file, tmp_path / "killed")
    with closing(sqlite3.connect(killed, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
        newer = tmp_path / "newer"
        newer.mkdir()
        for end in ("", "-wal"):
            shutil.copy(killed.with_name(killed.name + end), newer)
    assert (newer / "relay.db-wal").stat().st_size > 0
    assert "newer version" in await refused(newer / "relay.db")


@pytest.mark.row("F8", "C53")
@pytest.mark.parametrize("offset", [20, 52, 100, 105, 4096 + 3, 3 * 4096 + 5])
async def test_a_damaged_page_is_found_at_the_start(file: Path, offset: int) -> None:
    """Header or tree: the file is named, with the way out, and not touched."""
    await used(file, events=20)
    content = bytearray(file.read_bytes())
    content[offset : offset + 40] = bytes(255 - octet for octet in content[offset : offset + 40])
    file.write_bytes(content)
    words = await refused(file)
    assert any(hint in words for hint in (AFRESH, "upgrade relay", "choose another"))


# the place


@pytest.mark.row("C52")
@pytest.mark.parametrize("place", ["loop", "name"])
async def test_a_path_that_leads_nowhere_is_refused_in_words(tmp_path: Path, place: str) -> None:
    """A loop of links, a name that is too long: no traceback."""
    file = tmp_path / ("relay.db" if place == "loop" else "x" * 300)
    if place == "loop":
        file.symlink_to(file)
    with pytest.raises(StoreUnusable, match=r"(?i)too long|loop|too many levels"):
        await SqliteStore.open(file, Watch())


@pytest.mark.row("C52")
async def test_a_directory_is_no_store(file: Path) -> None:
    """The words say what `store.url` names."""
    file.mkdir()
    assert "is a directory; store.url names a file" in await refused(file)


@pytest.mark.row("C52")
async def test_what_is_no_regular_file_is_no_store(file: Path) -> None:
    """Neither opened, which may wait for ever, nor given a guard beside it."""
    os.mkfifo(file)
    assert "is no regular file; store.url names a file" in await refused(file)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.row("C52")
@pytest.mark.parametrize("end", [".guard", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
async def test_what_is_no_file_beside_a_store_is_named(file: Path, end: str, make: Callable[[Path], None]) -> None:
    """The file that is in the way, and what to do with it; a pipe is not waited for."""
    way = file.with_name(file.name + end)
    make(way)
    words = await refused(file)
    assert words.startswith(f"{way}: is ")
    assert "move it away" in words
    assert list(file.parent.iterdir()) == [way]


def test_a_full_disk_is_told_with_what_to_do(file: Path) -> None:
    """SQLite names the fault alone."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("CREATE TABLE one (x)")
    assert str(in_words(file, caught.value)) == (
        f"{file}: database or disk is full; make room on the file system that it lies on"
    )


@pytest.mark.row("C52")
async def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    """A typo in a path must not become a new, empty store."""
    words = await refused(tmp_path / "missing" / "relay.db")
    assert "cannot use its directory: No such file or directory" in words
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that a user without rights can walk into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.row("C52")
async def test_a_directory_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    """The reason is the system's own; the attempt ends and leaves no thread."""
    first, last = told(open_directory / "relay.db", "unprivileged")
    assert first["refused"] == "StoreUnusable"
    assert "cannot use its directory: Permission denied" in first["words"]
    assert last["threads"] == 0


@pytest.mark.row("C52")
async def test_a_file_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    """A store that can be read but not written would promise what it cannot keep."""
    open_directory.chmod(0o777)
    file = open_directory / "relay.db"
    await used(file)
    file.with_name("relay.db.guard").chmod(0o666)
    for mode in (0o444, 0o000):
        file.chmod(mode)
        before = file.read_bytes()
        first, last = told(file, "unprivileged")
        assert first["refused"] == "StoreUnusable", first
        assert str(file) in first["words"]
        assert last["threads"] == 0
        assert file.read_bytes() == before


@pytest.mark.row("C52")
async def test_a_file_that_cannot_be_judged_is_not_set_aside(open_directory: Path) -> None:
    """Nothing remembers it and it cannot be read: it may be another's."""
    open_directory.chmod(0o777)
    file = open_directory / "relay.db"
    file.write_bytes(b"not a database at all")
    file.chmod(0o000)
    first, _ = told(file, "unprivileged_afresh")
    assert first["words"] == f"{file}: cannot be read: Permission denied"
    assert list(open_directory.glob("*.old-*")) == []


@pytest.mark.row("C52")
def test_a_place_that_forgets_is_warned_about(tmp_path: Path) -> None:
    """Memory and network file systems do not keep what a local disk keeps; the deepest mount decides."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"root / ext4 rw 0 0\nx {tmp_path.resolve()} tmpfs rw 0 0\ny {tmp_path.resolve()}/sub ext4 rw 0 0\n"
    )
    assert "lies on tmpfs" in (durability_warning(tmp_path / "relay.db", mounts) or "")
    (tmp_path / "sub").mkdir()
    assert durability_warning(tmp_path / "sub" / "relay.db", mounts) is None
    assert durability_warning(tmp_path / "relay.db", tmp_path / "none") is None
