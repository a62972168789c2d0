"""A relay for each test, with the sources that most tests need."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.configs import document
from tests.http.gateway import Gateway, Start, Target, running


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    """The far target."""
    far = Target()
    await far.start()
    yield far
    await far.stop()


@pytest.fixture
async def other() -> AsyncIterator[Target]:
    """Another far target."""
    far = Target()
    await far.start()
    yield far
    await far.stop()


@pytest.fixture
async def start(tmp_path: Path, target: Target) -> AsyncIterator[Start]:
    """Starts the relay that `document` describes."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(sources: dict[str, Any] | None = None, **top: Any) -> Gateway:
            return await stack.enter_async_context(running(tmp_path, document(sources, **top), target))

        yield started


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    """The relay with the usual sources."""
    return await start()
