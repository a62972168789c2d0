"""What a power cut or a kill leaves at delicate moments needs no hand; every moment of a run is cut in
`tests/program/test_power_cut.py`."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.store import StoreUnusable
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.file import renew_log
from tests.support.store_files import abandoned, refused, strange, used
from tests.support.store_parts import Watch, stored, taken

PAGE = 4096
NONCE = 0x0A0B0C0D


def journal(*originals: bytes, before: int) -> bytes:
    """A rollback journal that was synced: the pages as they were, from the first on, and how many the file had
    (sqlite.org/fileformat2.html, section 3)."""
    numbers = (len(originals), NONCE, before, 512, PAGE)
    header = bytes.fromhex("d9d505f920a163d7") + b"".join(number.to_bytes(4, "big") for number in numbers)
    records = b""
    for number, page in enumerate(originals, 1):
        checksum = (NONCE + sum(page[at] for at in range(PAGE - 200, 0, -200))) & 0xFFFFFFFF
        records += number.to_bytes(4, "big") + page + checksum.to_bytes(4, "big")
    return header.ljust(512, b"\0") + records


@pytest.mark.row("F2")
@pytest.mark.parametrize("left", ["whole", "torn", "zeros"])
async def test_a_first_start_that_was_cut_short_is_begun_again(file: Path, left: str) -> None:
    """The journal of its making stands beside a first page, or a part of one: SQLite undoes it, nothing was in it."""
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA journal_mode=WAL")
    page = file.read_bytes()
    assert len(page) == PAGE
    file.write_bytes({"whole": page, "torn": page[:2560], "zeros": bytes(PAGE)}[left])
    file.with_name("relay.db-journal").write_bytes(journal(before=0))
    store = await SqliteStore.open(file, Watch())
    assert store.missing is None
    event = await stored(store, "crm")
    await store.close()
    store = await SqliteStore.open(file, Watch())
    assert [claim.event.id for claim in await taken(store, limit=9)] == [event.id]
    await store.close()


@pytest.mark.row("F2")
@pytest.mark.parametrize("left", ["changed", "torn"])
async def test_a_copy_put_in_place_whose_first_start_was_cut_short_is_whole(file: Path, left: str) -> None:
    """It is on the way to be one with a log: SQLite undoes what was half done, and all that it holds is there."""
    await used(file, events=3)
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA journal_mode=DELETE")
    file.with_name("relay.db.guard").unlink()
    before = file.read_bytes()
    changed = before[:18] + b"\2\2" + before[20:PAGE]
    file.write_bytes((changed if left == "changed" else changed[:512] + bytes(PAGE - 512)) + before[PAGE:])
    file.with_name("relay.db-journal").write_bytes(journal(before[:PAGE], before=len(before) // PAGE))
    store = await SqliteStore.open(file, Watch())
    assert len(await taken(store, limit=9)) == 3
    await store.close()


@pytest.mark.row("F2")
async def test_a_journal_is_set_aside_with_its_database(file: Path) -> None:
    """Whoever begins afresh keeps what was there as it was, also what its own start would have undone first."""
    await used(file, events=3)
    undoes = journal(file.read_bytes()[:PAGE], before=file.stat().st_size // PAGE)
    file.with_name("relay.db-journal").write_bytes(undoes)
    store = await SqliteStore.open(file, Watch(), afresh=True)
    assert await taken(store) == []
    assert store.aside is not None
    assert store.aside.with_name(store.aside.name + "-journal").read_bytes() == undoes
    await store.close()


@pytest.mark.row("F2", "C52")
async def test_a_journal_of_another_program_is_left_alone(file: Path) -> None:
    """Its transaction is for that program to undo: neither its file nor its journal is changed."""
    strange(file, "CREATE TABLE theirs (n)")
    content = file.read_bytes()
    file.with_name("relay.db-journal").write_bytes(journal(content[:PAGE], before=len(content) // PAGE))
    await refused(file)


@pytest.mark.row("F2", "F3")
async def test_a_log_that_was_left_behind_is_written_anew_as_it_was(file: Path, tmp_path: Path) -> None:
    """Byte for byte, or not at all where there is none; that it saves what a failed fsync has not brought to the disk
    is shown by the power cuts."""
    killed = await abandoned(file, tmp_path / "killed")
    log = killed.with_name("relay.db-wal")
    before = log.read_bytes()
    os.utime(log, (0, 0))
    renew_log(killed)
    assert log.read_bytes() == before
    assert log.stat().st_mtime > 0
    renew_log(tmp_path / "none.db")
    assert not (tmp_path / "none.db-wal").exists()


@pytest.mark.row("F3")
async def test_a_log_that_is_no_file_is_told_in_words(file: Path) -> None:
    """It could be neither read nor written anew."""
    await used(file)
    file.with_name("relay.db-wal").mkdir()
    with pytest.raises(StoreUnusable, match=r"relay\.db-wal: is a directory; move it away"):
        await SqliteStore.open(file, Watch())


@pytest.mark.row("F2", "F1")
async def test_a_kill_after_an_erasure_is_no_loss(file: Path, tmp_path: Path) -> None:
    """To erase empties the log; what then stands in it shows the next start that it was not lost."""
    store = await SqliteStore.open(file, Watch())
    event = await stored(store, "crm")
    kept = await stored(store, "crm")
    assert await store.erase(event.id) == 1
    copy = tmp_path / "killed"
    copy.mkdir()
    for one in file.parent.glob("relay.db*"):
        if one.is_file():
            shutil.copy(one, copy)
    await store.close()
    again = await SqliteStore.open(copy / file.name, Watch())
    assert again.missing is None
    assert [claim.event.id for claim in await taken(again, limit=9)] == [kept.id]
    await again.close()
