"""What a node looks at by itself: the other nodes, the common counts, the clock of the database, and hints.

Law: a look each `LOOK_S` is the contract, and a notification is only a hint that makes one come sooner: a pooler that
lets none through costs a moment. It runs on a connection of its own, so that no look waits for a transaction, and one
that fails is how an outage is found out while nothing is to be written.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import asyncpg

from relay.store.postgres import node
from relay.store.postgres.connection import BEGIN, begun, connect, learn, leave
from relay.store.postgres.transaction import Known
from relay.store.postgres.types import Row
from relay.store.postgres.writer import Writer

LOOK_S = 1.0
BEAT_S = 5.0
HINTS_S = 0.1
"""Hints are given no more often: each costs every node a look."""
CHANNEL = "relay_due"


class Watching:
    """Looks until it is closed."""

    def __init__(
        self, url: str, known: Known, writer: Writer, clock: node.Clock, *, woken: Callable[[Iterable[str]], None]
    ) -> None:
        """`woken` is told of targets at which another node says that something is due."""
        self._url = url
        self._known = known
        self._writer = writer
        self._woken = woken
        self._db: asyncpg.Connection[Row] | None = None
        self._hinted = asyncio.Event()
        self._hints: set[str] = set()
        self._beat_at = time.monotonic()
        self._told = ""
        """The last fault of ours that was told, so that one that stays is told once."""
        self.nodes: tuple[node.Neighbour, ...] = ()
        self._clock = clock
        self._task = asyncio.create_task(self._run(), name="store watching")

    def clock(self) -> datetime:
        """The time of the database, by its last look and what has passed since."""
        return self._clock.now()

    def hint(self, targets: Iterable[str]) -> None:
        """Tell the other nodes soon, where there are any, that something is due at these targets."""
        if len(self.nodes) < 2:
            return
        self._hints.update(targets)
        self._hinted.set()

    async def close(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        db, self._db = self._db, None
        await leave(db)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                db, self._db = self._db, None
                await leave(db)
                if not learn(self._url, error):
                    self._writer.doubt()
            except Exception as error:  # noqa: BLE001 - a look that fails for ever must not go unnoticed
                self._tell_bug(f"a look at the database failed: {type(error).__name__}: {error}")
            else:
                self._told = ""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hinted.wait(), LOOK_S)
                await asyncio.sleep(HINTS_S)
            self._hinted.clear()

    def _tell_bug(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            self._writer.tell_bug(reason)

    async def _look(self) -> None:
        if self._db is None:
            self._db = await connect(self._url)
            await self._db.add_listener(CHANNEL, self._heard)
        db = self._db
        async with begun(db, BEGIN):
            if self._hints:
                hints, self._hints = sorted(self._hints), set()
                mine = str(self._writer.node.life)
                await db.execute("SELECT pg_notify($1, $2 || ' ' || t) FROM unnest($3::text[]) t", CHANNEL, mine, hints)
            if time.monotonic() - self._beat_at >= BEAT_S:
                self._beat_at = time.monotonic()
                if not await node.beat(db, self._writer.node):
                    await self._rejoin()
            seen = await node.Clock.read(db)
            found = await node.look(db, self._known.health)
        self._clock = seen
        self.nodes = found.nodes
        self._known.counts, self._known.silences_told = found.counts, found.silences_told
        for source, at in found.heard.items():
            self._known.heard[source] = max(at, self._known.heard.get(source, at))
        self._writer.tell_healths(self._known.learn(found.health))

    async def _rejoin(self) -> None:
        """This node was thought to be gone, and another one has its number: it goes on under a new one."""
        assert self._db is not None
        self._writer.node = joined = await node.join(self._db)
        self._known.node = joined.id

    def _heard(self, _: Any, __: int, ___: str, payload: object) -> None:
        life, _, target = str(payload).partition(" ")
        if life != str(self._writer.node.life):
            self._woken([target])
