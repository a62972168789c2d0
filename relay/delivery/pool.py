"""The connections to one target that the short way keeps between its requests.

Law: they are made by aiohttp's connector, behind its guard and within its limit, and stay lent by it until they are let
go; only the way through it for each request is left out. None is used again that is closed, or over which something may
have come that nobody has read: the target's farewell, or an answer that was not asked for. None is kept from somebody
who waits for one, on whichever way.

Whether something has come is a question to the system, which costs a call and the interpreter's lock. It is left out
where an answer has just been read whose request was sent after a connection had been given back: the loop has looked at
all of them since, and what had come over an idle one has made it unusable.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp.connector import Connection

from relay.delivery.egress import KEEPALIVE_S, has_unread
from relay.delivery.hearing import WatchedHandler

TRUSTED_S = 0.1
"""Seconds for which it counts that the loop has looked: a single turn of it may take long."""


class Line:
    """One connection, lent by the connector, for one request after the other."""

    __slots__ = ("_connection", "_pool", "given_back", "handler", "idle_since", "taken")

    def __init__(self, pool: "Pool", connection: Connection, handler: WatchedHandler) -> None:
        self._pool = pool
        self._connection = connection
        self.handler = handler
        self.taken = self.given_back = 0
        self.idle_since = 0.0

    def release(self) -> None:
        """Give it back to the pool; one whose answer was not read to its end is closed by it."""
        self._pool.give_back(self)

    def let_go(self) -> None:
        """Give it back to the connector, on the same terms."""
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
        self._rested: deque[Line] = deque()
        """Kept, and looked at by the loop since; the one idle longest is the first here, and the last to be taken."""
        self._fresh: deque[Line] = deque()
        """Kept, and given back after all those."""
        self._steps = 0
        """Counts what is taken and given back, so that it is known what came after what."""
        self._looked_after = 0
        self._looked_at = 0.0
        """The loop has looked at what was given back before this step; and it was known at this time."""
        self._waiting = 0
        """How many want a connection of the connector."""
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> Line | None:
        """A line for one request, None where none is kept that can be used."""
        is_trusted = time.monotonic() - self._looked_at < TRUSTED_S
        while self._rested or self._fresh:
            line = self._rested.pop() if self._rested else self._fresh.pop()
            if line.handler.is_usable:
                is_looked_at = is_trusted and line.given_back < self._looked_after
                if is_looked_at or not has_unread(line.handler.transport):
                    return self._taken(line)
            line.close()
        return None

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
        return self._taken(Line(self, connection, handler))

    def give_back(self, line: Line) -> None:
        """Keep a line for the next request where that is possible, and nobody waits for one at the connector."""
        if self._waiting or self._is_closed or line.handler.should_close:
            line.let_go()
            return
        now = time.monotonic()
        self._looked_after, self._looked_at = max(self._looked_after, line.taken), now
        self._steps += 1
        line.given_back, line.idle_since = self._steps, now
        while self._fresh and self._fresh[0].given_back < self._looked_after:
            self._rested.append(self._fresh.popleft())
        self._fresh.append(line)
        if self._timer is None:
            self._timer = self._loop.call_later(self._keepalive, self._end_idle)

    def _taken(self, line: Line) -> Line:
        self._steps += 1
        line.taken = self._steps
        return line

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
        for kept in (self._rested, self._fresh):
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
        for line in (*self._rested, *self._fresh):
            line.let_go()
        self._rested.clear()
        self._fresh.clear()
