"""SQLite files as they are found: used, abandoned by a kill, strange, refused."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.store import StoreError, StoreUnusable
from relay.store.sqlite import SqliteStore
from tests.support.store_parts import Watch, stored


async def used(file: Path, events: int = 3) -> None:
    """A store that was in use and tidily closed."""
    store = await SqliteStore.open(file, Watch())
    for _ in range(events):
        await stored(store, "crm", body=b"x" * 5000)
    await store.close()


async def abandoned(file: Path, home: Path) -> Path:
    """The files of a store whose process was killed: what was promised stands in the log alone."""
    await used(file)
    store = await SqliteStore.open(file, Watch())
    for _ in range(3):
        await stored(store, "crm", body=b"y" * 5000)
    home.mkdir()
    for end in ("", "-wal", ".guard"):
        shutil.copy(file.with_name(file.name + end), home)
    await store.close()
    return home / file.name


async def refused(
    file: Path, error: type[StoreError] = StoreUnusable, *, unchanged: bool = True, afresh: bool = False
) -> str:
    """The words with which opening is refused, in time; the file is as it was."""
    files = [
        one for one in file.parent.glob(file.name + "*") if one.is_file() and not one.name.endswith((".guard", "-shm"))
    ]
    before = {one: one.read_bytes() for one in files}
    with pytest.raises(error) as caught:
        await asyncio.wait_for(SqliteStore.open(file, Watch(), afresh=afresh), 10)
    if unchanged:
        assert {one: one.read_bytes() for one in files} == before
    words = str(caught.value)
    assert str(file) in words
    return words


def strange(file: Path, script: str) -> None:
    """A database that relay did not make."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.executescript(script)
