"""A look at PostgreSQL's tables beside the port, from synchronous code, also where an event loop runs already.

asyncpg needs a loop and blocks none, so it has one of its own here, in a thread of its own; who asks waits. Connections
are kept, one for looking and one for changing a database, because to make one costs more than most queries.
"""

import asyncio
import atexit
import contextlib
import itertools
import os
import re
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import asyncpg

T = TypeVar("T")

ANSWERS_WITHIN_S = 30.0
"""A query that waits this long waits for a lock of whoever asked: a test that fails says more than one that hangs."""

KEPT = 12
"""Connections that are kept: a test that kills often has many databases, and a server so many connections."""

_QUOTED_OR_MARK = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\?")


def numbered(query: str) -> str:
    """A query whose values stand as `?`, with `$1`, `$2`, ... in their places; what is quoted stays."""
    numbers = itertools.count(1)
    return _QUOTED_OR_MARK.sub(lambda found: f"${next(numbers)}" if found[0] == "?" else found[0], query)


class _Aside:
    """The thread, its loop and the connections that are kept there."""

    def __init__(self) -> None:
        # a fork shares what the kernel watches for its parent and stops that when it ends; this list is of the process
        self._loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="beside-the-port", daemon=True)
        self._thread.start()
        self._kept: dict[tuple[str, bool], asyncpg.Connection] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that the thread's loop does."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * ANSWERS_WITHIN_S)

    async def connection(self, url: str, *, may_write: bool) -> asyncpg.Connection:
        """The kept one; made anew where the server has ended it."""
        kept = self._kept.get((url, may_write))
        if kept is None or kept.is_closed():
            settings = {
                "default_transaction_read_only": "off" if may_write else "on",
                "search_path": "relay, public",
            }
            kept = await asyncpg.connect(
                url, timeout=ANSWERS_WITHIN_S, command_timeout=ANSWERS_WITHIN_S, server_settings=settings
            )
            self._kept[url, may_write] = kept
            while len(self._kept) > KEPT:
                await closed(self._kept.pop(next(iter(self._kept))))
        return kept

    async def forget(self, beginning: str) -> None:
        """Close the connections to all urls that begin so."""
        for key in [key for key in self._kept if key[0].startswith(beginning)]:
            await closed(self._kept.pop(key))

    def close(self) -> None:
        """Close everything and end the thread."""
        self.run(self.forget(""))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_asides: dict[int, _Aside] = {}
"""By process: a fork has the object of its parent, but neither the thread nor a right to the connections."""


def _aside() -> _Aside:
    pid = os.getpid()
    if pid not in _asides:
        _asides[pid] = _Aside()
    return _asides[pid]


@atexit.register  # with the import, so that it runs after the end of every server that was made later
def _end() -> None:
    if aside := _asides.pop(os.getpid(), None):
        aside.close()


async def closed(connection: asyncpg.Connection) -> None:
    """Close a connection, also one whose server is gone."""
    try:
        await connection.close(timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


def rows(url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """What is committed, as a query finds it, on a connection that cannot write; values stand as `?` or `$1`."""
    aside = _aside()

    async def look() -> list[tuple[Any, ...]]:
        connection = await aside.connection(url, may_write=False)
        return [tuple(row) for row in await connection.fetch(numbered(query), *values)]

    return aside.run(look())


def execute(url: str, statement: str, *values: Any) -> None:
    """Change a database behind its store's back, each statement as a transaction of its own; returns committed.
    Without values it may be a script, which is one transaction unless it says otherwise."""
    aside = _aside()

    async def change() -> None:
        connection = await aside.connection(url, may_write=True)
        await connection.execute(numbered(statement) if values else statement, *values)

    aside.run(change())


def with_connections(work: Callable[..., Awaitable[T]], *urls: str) -> T:
    """What `work` returns when it is called with a fresh connection to each url, which are closed afterwards."""

    async def doing() -> T:
        async with contextlib.AsyncExitStack() as stack:
            made = []
            for url in urls:
                connection = await asyncpg.connect(url, timeout=ANSWERS_WITHIN_S, command_timeout=ANSWERS_WITHIN_S)
                stack.push_async_callback(closed, connection)
                made.append(connection)
            return await work(*made)

    return _aside().run(doing())


def forget(beginning: str) -> None:
    """Close the kept connections to every url that begins so: before its server stops, or its database goes."""
    if aside := _asides.get(os.getpid()):
        aside.run(aside.forget(beginning))
