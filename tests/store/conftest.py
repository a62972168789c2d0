"""One behaviour suite, run over every backend: a store that joins adds a kind to `KINDS`.

What is of one kind alone, by its file's name (`test_sqlite_*.py`) or the marker `only`, runs over that one.
"""

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.store import Store
from tests.support.store_backends import KINDS, Backend, fresh_backend
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that has a backend over each kind that it is of."""
    if "backend" not in metafunc.fixturenames:
        return
    kinds = [kind for kind in KINDS if metafunc.module.__name__.rpartition(".")[2].startswith(f"test_{kind}_")] or KINDS
    for mark in metafunc.definition.iter_markers("only"):
        kinds = [kind for kind in kinds if kind in mark.args]
    metafunc.parametrize("backend", kinds, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty database of each kind, which is gone after the test."""
    with fresh_backend(request.param, tmp_path) as fresh:
        yield fresh


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
