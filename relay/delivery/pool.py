"""The connections to one target that the short way keeps between its requests.

Law: they are made by aiohttp's connector, behind its guard and within its limit, and stay lent by it until they are let
go; only the way through it for each request is left out. None is used again that is closed, or over which something may
have come that nobody has read: the target's farewell, or an answer that was not asked for. None is kept from somebody
who waits for one, on whichever way.

Whether something has come is a question to the system, which costs a call and the interpreter's lock: it is asked about
all that have come back since the last time, and not about each. The answer counts for a moment; meanwhile the loop
turns, and what it reads over an idle connection makes that one unusable.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp.connector import Connection

from relay.delivery.egress import KEEPALIVE_S, descriptor, unread
from relay.delivery.hearing import WatchedHandler

TRUSTED_S = 0.1
"""Seconds for which it counts that nothing had come: longer than a turn of the loop, unless something holds that up."""


class Line:
    """One connection, lent by the connector, for one request after the other."""

    __slots__ = ("_connection", "_pool", "descriptor", "handler", "idle_since")

    def __init__(self, pool: "Pool", connection: Connection, handler: WatchedHandler) -> None:
        self._pool = pool
        self._connection = connection
        self.handler = handler
        self.descriptor = -1 if handler.transport is None else descriptor(handler.transport)
        self.idle_since = 0.0

    def release(self) -> None:
        """Give it back after an answer; one that was not read to its end is closed by that."""
        if self.handler.should_close:
            self.let_go()
        else:
            self._pool.keep(self)

    def let_go(self) -> None:
        """Give it back to the connector, which closes what cannot be used again."""
        self._connection.release()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Pool:
    """Lines to one destination. Build inside a running loop, `close` when done."""

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        destination: aiohttp.ClientRequest,
        *,
        connect_timeout: float,
        keepalive: float = KEEPALIVE_S,
    ) -> None:
        """`destination` names host, port and TLS and is never sent; the times are seconds."""
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._destination = destination
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._keepalive = keepalive
        self._looked_at = 0.0
        self._quiet: deque[Line] = deque()
        """Kept, and nothing had come when they were looked at; the one idle longest is the first here."""
        self._fresh: deque[Line] = deque()
        """Kept, and given back after those."""
        self._waiting = 0
        """How many want a connection of the connector."""
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> Line | None:
        """A line for one request, of those that can be used the one used last; None where none is kept."""
        while self._quiet or self._fresh:
            now = time.monotonic()
            if not self._quiet or now - self._looked_at > TRUSTED_S:
                self._look(now)
                continue
            line = self._quiet.pop()
            if line.handler.is_usable:
                return line
            line.close()
        return None

    def _look(self, now: float) -> None:
        """Sort out those over which something has come, and those that have ended or should have."""
        kept = [*self._quiet, *self._fresh]
        self._quiet.clear()
        self._fresh.clear()
        oldest = now - self._keepalive  # also where the process stood still
        usable: list[Line] = []
        for line in kept:
            if line.idle_since > oldest and line.handler.is_usable:
                usable.append(line)
            else:
                line.close()
        spoken = unread(line.descriptor for line in usable)
        for line in usable:
            if line.descriptor in spoken:
                line.close()
            else:
                self._quiet.append(line)
        self._looked_at = now

    async def connected(self) -> Line:
        """A line from the connector, for one request.

        Raises:
            aiohttp.ClientError, OSError: as the connector does; or the connection has ended already.
        """
        with self._wanted():
            try:
                connection = await self._connector.connect(self._destination, [], self._timeout)
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError("no connection") from error
        handler = connection.protocol
        assert isinstance(handler, WatchedHandler)
        if not handler.is_usable:
            connection.close()
            raise aiohttp.ServerDisconnectedError
        return Line(self, connection, handler)

    def keep(self, line: Line) -> None:
        """Keep a line whose answer was read to its end, unless somebody waits for one at the connector."""
        if self._waiting or self._is_closed:
            line.let_go()
            return
        line.idle_since = time.monotonic()
        self._fresh.append(line)
        if self._timer is None:
            self._timer = self._loop.call_later(self._keepalive, self._end_idle)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Around a request on another way over the same connector: a kept one is left to it."""
        if (line := self.take()) is not None:
            line.let_go()
        with self._wanted():
            yield

    @contextmanager
    def _wanted(self) -> Iterator[None]:
        """Meanwhile nothing is kept here: who waits at the connector is called when something is let go."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _end_idle(self) -> None:
        """End what has been idle for too long, and come back for the next."""
        self._timer = None
        now = time.monotonic()
        for kept in (self._quiet, self._fresh):
            while kept and now - kept[0].idle_since >= self._keepalive:
                kept.popleft().close()
            if kept:
                wait = kept[0].idle_since + self._keepalive - now
                self._timer = self._loop.call_later(wait, self._end_idle)
                return

    def close(self) -> None:
        """Keep nothing more. What was kept ends with the connector, to which it goes and which is to be closed next."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for line in (*self._quiet, *self._fresh):
            line.let_go()
        self._quiet.clear()
        self._fresh.clear()
