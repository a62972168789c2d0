"""The reading side: views on connections of their own, each a snapshot that cannot write."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from relay.store import StoreError, StoreUnavailable, StoreUnusable
from relay.store.postgres.connection import BEGIN_READING, COMMAND_S, CONNECT_S, begun, in_words, kept_statements, learn
from relay.store.postgres.types import Connection, Row

Result = TypeVar("Result")
READERS = 4
"""Connections for views: a slow one holds up three others at most."""


class Reading:
    """The reading connections of one database: opened when they are needed, kept for a while."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool[Row] | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def rows(self, query: str, *values: Any) -> list[Row]:
        """The rows of one query; its marks are `$1`, `$2` and so on."""
        return await self.run(lambda db: db.fetch(query, *values))

    async def run(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Call `work` with a connection inside a transaction that reads one snapshot.

        Raises:
            StoreUnavailable: it cannot be read now.
        """
        try:
            try:
                return await self._run(work)
            except asyncpg.PostgresError as error:
                if not learn(self._url, error):
                    raise
                await self._let_go()
                return await self._run(work)
        except StoreError:
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            told = in_words(self._url, error)
            raise (StoreUnavailable(str(told)) if isinstance(told, StoreUnusable) else told) from None

    async def _run(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        async with (await self._connections()).acquire(timeout=CONNECT_S) as db, begun(db, BEGIN_READING):
            return await work(db)

    async def _connections(self) -> "asyncpg.Pool[Row]":
        async with self._opening:
            if self._is_closed:
                raise StoreUnavailable("the store is closed")
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=READERS,
                    timeout=CONNECT_S,
                    command_timeout=COMMAND_S,
                    reset=_keep,
                    statement_cache_size=kept_statements(self._url),
                )
            return self._pool

    async def close(self) -> None:
        """Close the connections for good."""
        self._is_closed = True
        await self._let_go()

    async def _let_go(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), 1.0)
            except TimeoutError:
                pool.terminate()


async def _keep(_: Connection) -> None:
    """Nothing of a session is set outside a transaction, so nothing is to be reset."""
