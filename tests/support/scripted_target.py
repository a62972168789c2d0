"""A raw target on a loopback port that does what a script says: it can refuse, hang, drip, reset and talk nonsense.

Law: it reads requests byte by byte itself, so that what a test sees is what was on the wire.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came over the wire."""

    line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    """The how-manieth connection brought it."""

    def all(self, name: str) -> list[str]:
        """Every value of a header, whatever its case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The only value of a header."""
        (value,) = self.all(name)
        return value


Answerer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request; the connection stays open unless it closes it."""


@dataclass
class ScriptedServer:
    """A running target."""

    port: int
    answer: Answerer
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """A client went away in the middle of a request."""
    scheme: str = "http"
    reads_bodies: bool = True

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}/hooks"

    def hang_up(self) -> None:
        """Close every connection, as a process that restarts does."""
        for writer in self.open:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read requests off one connection and answer each."""
        self.connections += 1
        number = self.connections
        self.open.add(writer)
        try:
            while request := await _read(reader, number, with_body=self.reads_bodies):
                self.received.append(request)
                await self.answer(request, writer)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.lost.set()
        finally:
            self.open.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader, number: int, *, with_body: bool) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    line, *fields = head[:-4].split("\r\n")
    headers = tuple((name, value.strip()) for name, _, value in (one.partition(":") for one in fields))
    lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
    body = await reader.readexactly(lengths[0]) if lengths and with_body else b""
    return Received(line, headers, body, number)


@contextlib.asynccontextmanager
async def scripted(
    answer: Answerer, *, port: int = 0, tls: ssl.SSLContext | None = None, reads_bodies: bool = True
) -> AsyncIterator[ScriptedServer]:
    """A target that answers by script, until the block ends; with `tls` it speaks nothing else. One that reads no
    bodies answers as soon as the head is there, and understands nothing more over that connection."""
    one = ScriptedServer(port, answer, scheme="http" if tls is None else "https", reads_bodies=reads_bodies)
    async with listening(one.serve, port=port, tls=tls) as one.port:
        yield one


@contextlib.asynccontextmanager
async def listening(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A port where each connection is treated by the script from its first byte, until the block ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def treated(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(treated(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=1 << 20, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes no connection and refuses none: its backlog is full, so whoever dials waits."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = held.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# --- what it can do ---


def raw(*parts: bytes, pause: float = 0.0, then: str = "keep") -> Answerer:
    """Write these bytes, with a pause after each, then `keep`, `close` or `reset` the connection, or `hang`."""

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)
        if then == "close":
            writer.close()
        elif then == "reset":
            reset(writer)
        elif then == "hang":
            await asyncio.Event().wait()

    return answer


def status(code: int, *headers: str, body: bytes = b"", then: str = "keep") -> Answerer:
    """A well-formed answer."""
    lines = "".join(f"{header}\r\n" for header in headers)
    head = f"HTTP/1.1 {code} Whatever\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return raw(head.encode() + body, then=then)


def endless(head: bytes, part: bytes, *, pause: float = 0.0) -> Answerer:
    """A head, and then the same part for ever."""

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST instead of FIN."""
    one: socket.socket = writer.get_extra_info("socket")
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def in_turn(*answers: Answerer) -> Answerer:
    """The first request gets the first answer, and so on; the last is repeated."""
    left = list(answers)

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, writer)

    return answer
