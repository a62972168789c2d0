"""Kept connections: used again, ended when idle, never used after a farewell, and never kept from who waits for one."""

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import aiohttp
import pytest
from yarl import URL

from relay.delivery.egress import guarded_connector
from relay.delivery.hearing import WatchedHandler
from relay.delivery.pool import TRUSTED_S, Line, Pool
from relay.rules.egress import EgressPolicy

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Target:
    """Answers every request, and keeps its end of each connection at hand."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.lost = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.append(writer.get_extra_info("socket"))
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lost += 1
            writer.close()

    def say_now(self, which: int, words: bytes) -> None:
        """Send between two turns of the loop; nothing is the end of the connection."""
        end = self.ends[which].dup()
        end.send(words) if words else end.shutdown(socket.SHUT_WR)
        end.close()


@dataclass
class Kept:
    """A pool with all that is around it."""

    pool: Pool
    target: Target
    session: aiohttp.ClientSession
    url: URL

    async def line(self) -> Line:
        """As a request gets one."""
        return self.pool.take() or await self.pool.connected()

    async def lines(self, many: int) -> list[Line]:
        """So many, each with a connection of its own, the first one made first."""
        return [await self.line() for _ in range(many)]

    @property
    def lent(self) -> int:
        """How many connections the connector takes to be in use."""
        assert self.session.connector is not None
        return len(self.session.connector._acquired)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def pooled(*, limit: int = 4, keepalive: float = 30) -> AsyncIterator[Kept]:
    """A pool of connections to a target of its own."""
    target = Target()
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
    url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    connector = guarded_connector(EgressPolicy(), limit=limit)
    connector._factory = partial(WatchedHandler, asyncio.get_running_loop(), longest=65536)
    async with aiohttp.ClientSession(connector=connector) as session:
        destination = aiohttp.ClientRequest("POST", url, session=session)
        pool = Pool(connector, destination, connect_timeout=5, keepalive=keepalive)
        yield Kept(pool, target, session, url)
        pool.close()
    await until(lambda: target.lost == len(target.ends))
    server.close()


async def asked(line: Line) -> None:
    """One request and its answer."""
    assert await line.handler.ask(REQUEST) == (200, b"")


async def test_the_connection_used_last_is_the_next_to_be_used() -> None:
    """So that those that are not needed any more come to their end."""
    async with pooled() as kept:
        first, second = await kept.lines(2)
        for line in (first, second):
            await asked(line)
            line.release()
        for line in (second, first):
            assert await kept.line() is line
        assert len(kept.target.ends) == kept.lent == 2
        first.release()
        second.release()


async def test_idle_connections_end_and_the_one_in_use_does_not() -> None:
    """All by one timer, which is there only while something is kept."""
    async with pooled(keepalive=0.05) as kept:
        lines = await kept.lines(3)
        assert kept.pool._timer is None
        for line in lines:
            await asked(line)
        for line in lines:
            line.release()
        used = await kept.line()
        await until(lambda: kept.target.lost == 2)
        assert kept.lent == 1
        await until(lambda: kept.pool._timer is None)
        await asked(used)
        used.release()
        await until(lambda: kept.target.lost == 3)
        assert kept.lent == 0
        assert kept.pool._timer is None


@pytest.mark.parametrize("farewell", [OK, b""], ids=["one more answer", "the end"])
@pytest.mark.parametrize("pause", [0.05, 0], ids=["which the loop has read", "which it has not read"])
async def test_a_connection_is_not_used_after_a_farewell(farewell: bytes, pause: float) -> None:
    """One more answer would be taken for that of the next request."""
    async with pooled() as kept:
        first = await kept.line()
        await asked(first)
        first.release()
        kept.target.say_now(0, farewell)
        if pause:
            await asyncio.sleep(pause)
        second = await kept.line()
        assert second is not first
        await asked(second)
        second.release()
        assert kept.lent == 1


@pytest.mark.parametrize("farewell", [OK, b""], ids=["one more answer", "the end"])
async def test_what_comes_while_the_loop_does_not_turn_is_noticed_too(farewell: bytes) -> None:
    """That it has looked since a connection was given back counts only for a moment."""
    async with pooled() as kept:
        first, second = await kept.lines(2)
        await asked(first)
        first.release()
        await asked(second)
        second.release()
        second = await kept.line()
        await asked(second)  # with this the loop has looked at the first
        second.release()
        kept.target.say_now(0, farewell)
        time.sleep(TRUSTED_S)  # nothing else runs, and that is meant
        third, fourth = await kept.lines(2)
        assert third is second
        assert fourth is not first
        third.release()
        fourth.release()


async def test_a_connection_that_was_idle_for_too_long_is_not_used() -> None:
    """Not even where the process stood still, so that nobody came to end it."""
    async with pooled(keepalive=0.05) as kept:
        first = await kept.line()
        await asked(first)
        first.release()
        time.sleep(0.06)  # nothing else runs, and that is meant
        second = await kept.line()
        assert second is not first
        second.release()


async def test_what_is_kept_does_not_keep_others_on_the_same_connector_waiting() -> None:
    """A request on aiohttp's own way finds a connection although all that the limit allows are kept."""
    async with pooled(limit=2) as kept, asyncio.timeout(5):
        for line in await kept.lines(2):
            await asked(line)
            line.release()
        assert kept.lent == 2
        for _ in range(3):
            with kept.pool.shared():
                async with kept.session.post(kept.url) as answer:
                    assert answer.status == 200
        assert len(kept.target.ends) == 2


@pytest.mark.parametrize("way", ["short", "long"])
async def test_what_is_given_back_goes_to_who_waits(way: str) -> None:
    """Whoever came when all were in use gets the first that is free, on either way."""
    async with pooled(limit=1) as kept, asyncio.timeout(5):

        async def waits() -> None:
            if way == "short":
                other = await kept.line()
                await asked(other)
                other.release()
                return
            with kept.pool.shared():
                async with kept.session.post(kept.url) as answer:
                    assert answer.status == 200

        line = await kept.line()
        waiting = asyncio.create_task(waits())
        await asked(line)
        await until(lambda: bool(kept.session.connector._waiters))  # type: ignore[union-attr]
        line.release()
        await waiting
        assert len(kept.target.ends) == 1


async def test_closing_leaves_nothing_behind() -> None:
    """Neither of what is kept nor of what is given back later; and nobody is warned of anything unclosed."""
    async with pooled() as kept:
        lines = await kept.lines(3)
        for line in lines:
            await asked(line)
        for line in lines[:2]:
            line.release()
        kept.pool.close()
        lines[2].release()
        assert kept.lent == 0
        assert kept.pool.take() is None
        await kept.session.close()
        await until(lambda: kept.target.lost == 3)
        assert kept.pool._timer is None or kept.pool._timer.cancelled()
    del lines, line
    gc.collect()


async def test_a_connection_that_is_lost_while_an_answer_is_waited_for_is_not_kept() -> None:
    """Nor is one whose request was given up."""
    async with pooled() as kept:
        lost, given_up = await kept.lines(2)
        answer = lost.handler.ask(b"half a request")
        kept.target.say_now(0, b"")
        assert await answer is None
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await lost.handler.read()
        lost.release()
        given_up.handler.ask(b"half a request").cancel()
        given_up.close()
        assert kept.lent == 0
        assert kept.pool.take() is None
