"""One behaviour suite, run over every backend: a store that joins adds a parameter to `backend`."""

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.store import Store
from tests.support.store_backends import Backend, SqliteBackend
from tests.support.store_parts import Watch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A thread that outlives its store would keep the process alive for ever."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if "_connection_worker_thread" in thread.name:
            thread.join(timeout=5)
            assert not thread.is_alive(), thread.name


@pytest.fixture
def watch() -> Watch:
    """Remembers what the store tells."""
    return Watch()


@pytest.fixture(params=["sqlite"])
def backend(tmp_path: Path) -> Backend:
    """An empty database of each kind."""
    return SqliteBackend(tmp_path)


@pytest.fixture
async def store(backend: Backend, watch: Watch) -> AsyncIterator[Store]:
    """An open store, closed in the end."""
    opened = await backend.open(watch)
    yield opened
    await opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a SQLite store may be made."""
    return tmp_path / "relay.db"
