"""A small HTTP proxy on loopback: it forwards plain requests and opens tunnels, or refuses in many ways.

Law: it remembers what it was asked, so that a test sees what a proxy would see.
"""

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LONGEST_HEAD = 1 << 16


@dataclass
class Proxying:
    """A running proxy; `refusal` is written instead of an answer, `credentials` are demanded."""

    refusal: bytes | None = None
    credentials: tuple[str, str] | None = None
    asked: list[bytes] = field(default_factory=list)
    """The head of each request that it could read."""
    port: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head)
                if not await self._answer(head, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        method, address, _ = head.split(b"\r\n")[0].split(b" ")
        if self.refusal is not None:
            writer.write(self.refusal)
            await writer.drain()
            return False
        if self.credentials is not None and b64encode(":".join(self.credentials).encode()) not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return True
        if method == b"CONNECT":
            host, _, port = address.decode().rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pumped(reader, far_writer), _pumped(far_reader, writer))
            return False
        await self._forward(head, address, reader, writer)
        return True

    async def _forward(
        self, head: bytes, address: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        parts = urlsplit(address.decode())
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"proxy-")]
        length = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        far_writer.write(b"\r\n".join([lines[0].replace(address, parts.path.encode()), *lines[1:]]))
        far_writer.write(await reader.readexactly(length))
        answer = await far_reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        far_writer.close()


async def _pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(LONGEST_HEAD):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def proxying(
    *, refusal: bytes | None = None, credentials: tuple[str, str] | None = None
) -> AsyncIterator[Proxying]:
    """A proxy, until the block ends."""
    one = Proxying(refusal, credentials)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(one.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
