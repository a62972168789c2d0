"""The short way sends and understands what the long way does, over the same guard, pool and TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from relay.delivery.answers import Answer
from relay.delivery.egress import guarded_connector, refused_by_egress
from relay.delivery.hearing import WatchedHandler
from relay.delivery.wire import Wire, fits
from relay.rules.egress import EgressPolicy
from tests.support.certificates import self_signed

HEADERS = (("Content-Type", "application/json"), ("X-Signature", "abc"), ("relay-attempt", "1"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A raw server on loopback; yields its port."""
    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def wire_to(url: str, *, limit: int = 4, tls: ssl.SSLContext | bool = True, egress: EgressPolicy | None = None):  # type: ignore[no-untyped-def]
    """A wire and the session whose connections it uses."""
    connector = guarded_connector(egress or EgressPolicy(), limit=limit, ssl=tls)
    connector._factory = partial(WatchedHandler, asyncio.get_running_loop(), longest=64 * 1024)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, skip_auto_headers=["User-Agent", "Accept", "Accept-Encoding"]
    ) as session:
        wire = Wire(session, URL(url, encoded=True), connect_timeout=5)
        yield wire, session
        wire.close()


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """One whole request as it stands on the wire."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head + await reader.readexactly(length)


def answering(answer: bytes, seen: list[bytes]) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                seen.append(await request_of(reader))
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return script


async def whole(answer: Answer) -> tuple[int, bytes]:
    body = answer.body if answer.content is None else await answer.content.read()
    answer.release()
    return answer.status, body


def test_this_aiohttp_fits() -> None:
    """With the version that is pinned the short way is taken."""
    assert fits()


@pytest.mark.parametrize("body", [b"", b"{}", bytes(range(256)) * 200])
@pytest.mark.parametrize("path", ["/", "/a%2Fb/c%3Dd?x=%2F&y=1"])
async def test_it_sends_what_the_long_way_sends(body: bytes, path: str) -> None:
    """The same request line, the same header fields, the same body; nothing is re-encoded."""
    seen: list[bytes] = []
    async with serving(answering(OK, seen)) as port:
        url = f"http://127.0.0.1:{port}{path}"
        async with wire_to(url) as (wire, session):
            assert await whole(await wire.post(HEADERS, body)) == (200, b"ok")
            async with session.post(URL(url, encoded=True), data=body, headers=HEADERS) as answer:
                assert answer.status == 200

    def parts(raw: bytes) -> tuple[bytes, set[bytes], bytes]:
        head, _, rest = raw.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        return line, set(fields), rest

    assert parts(seen[0]) == parts(seen[1])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", (200, b"abcde")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, (200, b"ok")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, (200, b"ok")),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", (302, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", (200, b"nope")),
    ],
)
async def test_it_reads_every_framing(answer: bytes, expected: tuple[int, bytes]) -> None:
    """Chunked, empty, interim, redirecting and compressed answers; connections are used again after each."""
    seen: list[bytes] = []
    async with serving(answering(answer, seen)) as port, wire_to(f"http://127.0.0.1:{port}/") as (wire, _):
        for _ in range(3):
            assert await whole(await wire.post(HEADERS, b"x")) == expected
    assert len(seen) == 3


@pytest.mark.row("B51")
async def test_connections_are_used_again() -> None:
    """A hundred requests in a row take one connection."""
    connections = 0
    inner = answering(OK, [])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await inner(reader, writer)

    async with serving(script) as port, wire_to(f"http://127.0.0.1:{port}/") as (wire, _):
        for _ in range(100):
            await whole(await wire.post(HEADERS, b"x"))
    assert connections == 1


@pytest.mark.row("B62")
async def test_a_connection_that_died_idle_is_not_used() -> None:
    """A target that closes after each answer gets each request on a connection of its own."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)
        writer.close()
        await writer.wait_closed()

    async with serving(script) as port, wire_to(f"http://127.0.0.1:{port}/") as (wire, session):
        for _ in range(5):
            assert (await whole(await wire.post(HEADERS, b"x")))[0] == 200
            while any(one.is_connected() for one in session.connector._acquired):
                await asyncio.sleep(0)


async def test_a_cancelled_request_gives_its_place_back() -> None:
    """Whoever is cut off leaves neither a connection nor a slot of the pool behind."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with serving(silent) as port, wire_to(f"http://127.0.0.1:{port}/", limit=1) as (wire, session):
        for _ in range(5):
            task = asyncio.create_task(wire.post(HEADERS, b"x"))
            while not session.connector._acquired:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not session.connector._acquired


@pytest.mark.row("T50")
@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
async def test_no_header_breaks_the_framing(value: str) -> None:
    """A value with a line end is refused before anything is sent."""
    async with wire_to("http://127.0.0.1:1/") as (wire, _):
        with pytest.raises(ValueError, match="framing"):
            await wire.post((("X-A", value),), b"")


@pytest.mark.row("T40", "T46")
async def test_the_guard_stands_before_it() -> None:
    """A forbidden address is never dialled."""
    async with wire_to("http://169.254.169.254/latest/meta-data") as (wire, _):
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await wire.post(HEADERS, b"")
    assert refused_by_egress(caught.value)


async def test_it_speaks_tls_and_checks_the_name(tmp_path: Path) -> None:
    """A certificate that is trusted passes, one that is not is refused before the request."""
    cert, key = self_signed(tmp_path, "127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    seen: list[bytes] = []
    async with serving(answering(OK, seen), tls=server) as port:
        url = f"https://127.0.0.1:{port}/"
        async with wire_to(url, tls=ssl.create_default_context(cafile=str(cert))) as (wire, _):
            assert await whole(await wire.post(HEADERS, b"x")) == (200, b"ok")
        async with wire_to(url) as (wire, _):
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await wire.post(HEADERS, b"x")
    assert len(seen) == 1
