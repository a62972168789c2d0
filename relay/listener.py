"""A listening socket with our limits around aiohttp's server.

Law: whatever a stranger sends, the answer is one of ours: short, constant, without an echo of the input and without
a traceback. Deadlines and sizes are set here for both listeners, because aiohttp's own defaults wait for an hour.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import HttpVersion11, http_parser, web

from relay.accepting import Crowd, Door
from relay.connections import PlainServer, Refuse
from relay.rules.crowding import Room

Handler = Callable[[web.BaseRequest], Awaitable["web.StreamResponse | Receipt"]]

BACKLOG = 1024
MOST_HEADERS = 100
LONGEST_LINE = 8190
"""Bytes of a request line or of one header field."""
READ_AHEAD = 64 * 1024
"""Bytes of a body that a connection may hold before the handler takes them."""
FINISHING = 3.0
"""Seconds that requests under way get when a listener closes: as long as a commit may take."""
LEAVING = 0.5
"""Seconds that connections get to end by themselves after that."""
SERVER = "relay"
"""The `Server` header: aiohttp's own names its version and Python's."""


class CannotListen(OSError):
    """An address cannot be bound; the message says which and why."""


class Certificate:
    """What a listener proves itself with; it can be exchanged while the listener serves.

    One context cannot take another pair safely: where the second file fails, the first is in already. So the listener
    keeps one context, and each handshake is handed to the one that was loaded last, whole.
    """

    def __init__(self, served: ssl.SSLContext) -> None:
        self.context = tls_context()
        self.context.sni_callback = self._choose
        self._served = served

    def exchange(self, served: ssl.SSLContext) -> None:
        """Prove with this one from the next handshake on."""
        self._served = served

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in every handshake, also where the client names no host."""
        connection.context = self._served


def tls_context(cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """The server side of TLS, 1.2 or newer.

    Raises:
        OSError: the pair cannot be read or does not fit.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


MALFORMED = b'{"error": "malformed request"}'
UNAVAILABLE = b'{"error": "unavailable, send again"}'
REFUSALS: Mapping[int, bytes] = {
    400: MALFORMED,
    401: b'{"error": "unauthorized"}',
    403: b'{"error": "forbidden"}',
    404: b'{"error": "not found"}',
    405: b'{"error": "method not allowed"}',
    408: b'{"error": "body too slow"}',
    413: b'{"error": "body too large"}',
    417: b'{"error": "expectation failed"}',
    429: b'{"error": "too many requests"}',
    503: UNAVAILABLE,
    505: b'{"error": "HTTP version not supported"}',
    508: b'{"error": "loop detected"}',
}
"""The body of each answer that turns a webhook away; the reason itself is told in the log alone."""


def json_answer(status: int, body: bytes, *, retry_after: int | None = None, allow: str | None = None) -> web.Response:
    """A short JSON answer."""
    headers = {"Server": SERVER}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if allow is not None:
        headers["Allow"] = allow
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


_PHRASES = {one.value: one.phrase for one in HTTPStatus}


@lru_cache(maxsize=64)
def _receipt_head(status: int, length: int, second: int) -> bytes:
    """All that aiohttp writes before the end of the header fields of such a `json_answer` in a second."""
    head = (
        f"HTTP/1.1 {status} {_PHRASES.get(status, '')}",
        f"Server: {SERVER}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        f"Date: {formatdate(second, usegmt=True)}",
        "",
    )
    return "\r\n".join(head).encode()


class Receipt:
    """The answer to a webhook that was taken, as aiohttp asks for it: byte for byte a `json_answer`, in a fifth of the
    time. What is asked for in an unusual way gets the `json_answer`."""

    __slots__ = ("_body", "_plain", "_request", "keep_alive", "status")

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.keep_alive: bool | None = None
        """Whether the connection lasts; None until that is known."""
        self._body = body
        self._plain: web.Response | None = None
        self._request: web.BaseRequest

    def force_close(self) -> None:
        """Have it be the last on its connection."""
        self.keep_alive = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Take note of the request that it answers."""
        self._request = request
        if self.keep_alive is None:
            self.keep_alive = request.keep_alive
        if request.version != HttpVersion11 or request.method != "POST" or self.status == HTTPStatus.NO_CONTENT:
            self._plain = json_answer(self.status, self._body)
            if not self.keep_alive:
                self._plain.force_close()
            await self._plain.prepare(request)

    async def write_eof(self) -> None:
        """Send it. Raises ConnectionError where the client has gone."""
        if self._plain is not None:
            await self._plain.write_eof()
            return
        head = _receipt_head(self.status, len(self._body), int(time.time()))
        end = b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n"
        await self._request.writer.write_eof(head + end + self._body)


def plain_answer(status: int, body: bytes) -> web.Response:
    """A short answer that is text and is taken for nothing else."""
    headers = {"Server": SERVER, "X-Content-Type-Options": "nosniff"}
    return web.Response(status=status, body=body, headers=headers, content_type="text/plain")


def _refuse_plainly(status: int) -> web.Response:
    return json_answer(status, MALFORMED) if status < 500 else json_answer(503, UNAVAILABLE, retry_after=1)


async def invite_body(request: web.BaseRequest) -> bool:
    """Ask for the body where the sender waits to be asked (RFC 9110, section 10.1.1); False where it expects
    something else. Raises ConnectionError when it has gone away."""
    expect = request.headers.get("Expect")
    if expect is None or request.version != HttpVersion11:
        return True
    if expect.strip().lower() != "100-continue":
        return False
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer proper has not begun
    return True


def has_native_parser() -> bool:
    """Whether aiohttp's parser in C is there; the one in Python is laxer about smuggled requests."""
    return http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy


class Listener:
    """One bound address."""

    def __init__(self, door: Door, server: PlainServer) -> None:
        self._door = door
        self._server = server

    @classmethod
    async def open(
        cls,
        name: str,
        handler: Handler,
        host: str,
        port: int,
        *,
        header_timeout: timedelta,
        room: Room,
        tls: ssl.SSLContext | None = None,
        refuse: Refuse = _refuse_plainly,
    ) -> "Listener":
        """Bind and listen.

        Args:
            name: what it is called in lines and metrics.
            handler: called with each request; it reads the body itself.
            header_timeout: within it a TLS handshake and a request's head must have come; an idle connection ends, and
                so does one whose client takes none of its answers.
            room: how many connections it may hold.
            refuse: answers what never reaches the handler.

        Raises:
            CannotListen: the address cannot be bound.
        """
        answers: Callable[[web.BaseRequest], Awaitable[Any]] = handler  # aiohttp asks no more than a `Receipt` has
        server = PlainServer(
            answers,
            auto_decompress=False,
            keepalive_timeout=header_timeout.total_seconds(),
            lingering_time=1.0,
            read_bufsize=READ_AHEAD,
            max_headers=MOST_HEADERS,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            access_log=None,
        )
        server.refuse = refuse
        door = Door(name, server, room, tls=tls, patience=lambda: server.patience)
        try:
            door.unlock(await _bound(host, port))
        except (OSError, OverflowError) as error:
            raise CannotListen(_why(host, port, error)) from None
        return cls(door, server)

    def change(self, *, header_timeout: timedelta, room: Room) -> None:
        """Give connections that are made from now on another deadline, and another number room."""
        self._server.change(keepalive_timeout=header_timeout.total_seconds())
        self._door.room = room

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each bound socket, the port as it was really given."""
        return self._door.addresses

    @property
    def crowd(self) -> Crowd:
        """What is known of its connections."""
        return self._door

    def stop_accepting(self) -> None:
        """Close the port; requests under way go on."""
        self._door.lock()

    async def close(self, patience: float = FINISHING) -> None:
        """Close the port, let requests under way finish within `patience` seconds, then close every connection."""
        self.stop_accepting()
        await self._server.finish(patience)
        self._door.clear()
        await asyncio.sleep(0)  # what was read just before is taken up by now
        self._server.pre_shutdown()
        await self._server.shutdown(LEAVING)


async def _bound(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of a host. `::` takes IPv4 as well, as users of other servers expect."""
    both = host == "::" and socket.has_dualstack_ipv6()
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ports: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            ports.append(socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both))
    except BaseException:
        for one in ports:
            one.close()
        raise
    return ports


def _why(host: str, port: int, error: Exception) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {where}: no such address"
    code = getattr(error, "errno", None)
    words = {98: "it is in use by another program", 48: "it is in use by another program", 13: "permission denied"}
    return f"cannot listen on {where}: {words.get(code or 0) or getattr(error, 'strerror', None) or error}"


def peer_of(request: web.BaseRequest) -> str | None:
    """The address that the connection comes from, also when it is gone by now; None where there is none."""
    return request.remote
