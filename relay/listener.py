"""A listening socket with our limits around aiohttp's server.

Law: whatever a stranger sends, the answer is one of ours: short, constant, without an echo of the input and without
a traceback. Deadlines and sizes are set here for both listeners, because aiohttp's own defaults wait for an hour.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, http_parser, web
from aiohttp.web_protocol import RequestHandler

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Refuse = Callable[[int], web.Response]
"""Makes the answer to what no handler answers: 400 for malformed input, 503 for a fault of our own."""

BACKLOG = 1024
MOST_HEADERS = 100
LONGEST_LINE = 8190
"""Bytes of a request line or of one header field."""
FINISHING = 3.0
"""Seconds that requests under way get when a listener closes: as long as a commit may take."""
SPOKEN = (HttpVersion10, HttpVersion11)
OTHER_VERSION = web.RequestKey("other_version", bool)
"""Marks a request that came in another version."""
SERVER = "relay"
"""The `Server` header: aiohttp's own names its version and Python's."""


class CannotListen(OSError):
    """An address cannot be bound; the message says which and why."""


class PlainAnswers(RequestHandler):
    """aiohttp's connection, whose own error answers repeat nothing of what was sent, and which does not wait for ever
    for a client that reads none of its answers."""

    refuse: Refuse
    _stalled: asyncio.TimerHandle | None = None
    _under_way: Any = None
    """The body of the request that is under way, from its head to its answer."""
    _is_half_closed = False

    def data_received(self, data: bytes) -> None:
        """Whoever waits for a body hears at once that the rest of it is malformed; aiohttp would let them wait for it
        until their deadline."""
        super().data_received(data)
        if not self._messages or isinstance(self._messages[-1][0], http_parser.RawRequestMessage):
            return
        for body in (self._under_way, *(body for _, body in self._messages)):
            if body is not None and not body.is_eof() and body.exception() is None:
                body.set_exception(web.RequestPayloadError("malformed"))

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's own always closes
        """The client will send no more. What has come whole is still answered: True keeps the connection for that."""
        last = self._messages[-1][1] if self._messages else self._under_way
        is_plain = self.transport is not None and self.transport.get_extra_info("sslcontext") is None
        self._is_half_closed = is_plain and last is not None and last.is_eof()
        return self._is_half_closed

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; the last one to a client that sends no more ends the connection, and so does one to a request
        behind which nothing can be read for sure."""
        is_last = self._is_half_closed and not self._messages
        if is_last or not _ends_plainly(request):
            resp.force_close()
        self._under_way = None
        return await super().finish_response(request, resp, start_time)

    @property
    def is_half_closed(self) -> bool:
        """The client will send no more."""
        return self._is_half_closed

    @property
    def busy(self) -> bool:
        """A request is under way, from its head to its answer."""
        return self._request_in_progress

    def pause_writing(self) -> None:
        """The client lets its answers pile up: it has as long to take some as it has for a request's head."""
        super().pause_writing()
        transport = self.transport
        if transport is not None:
            self._stalled = self._loop.call_later(self.keepalive_timeout, transport.abort)

    def resume_writing(self) -> None:
        """The client has taken some."""
        super().resume_writing()
        self._relax()

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._relax()

    def _relax(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it may hold a hundred bytes of a stranger's input
    ) -> web.StreamResponse:
        """Answer what aiohttp's parser refused, or what our own handler did not foresee."""
        self.log_exception("request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        answer = self.refuse(status if status < 500 else 503)
        answer.force_close()
        return answer


class PlainServer(web.Server):
    """aiohttp's low-level server with `PlainAnswers` for connections."""

    refuse: Refuse

    def __call__(self) -> RequestHandler:
        """Make the connection object of one client."""
        connection = PlainAnswers(self, loop=self._loop, **self._kwargs)
        connection.refuse = self.refuse
        return connection

    def change(self, **settings: Any) -> None:
        """Use these of aiohttp's settings for connections that are made from now on."""
        self._kwargs.update(settings)

    def _make_request(self, message: Any, payload: Any, protocol: Any, *rest: Any) -> web.BaseRequest:
        protocol._under_way = payload  # noqa: SLF001 - our own connection
        if message.version in SPOKEN:
            return super()._make_request(message, payload, protocol, *rest)
        # the answer says that it is of the version of its request
        request = super()._make_request(message._replace(version=HttpVersion11), payload, protocol, *rest)
        request[OTHER_VERSION] = True
        return request

    def _is_busy(self) -> bool:
        return any(isinstance(one, PlainAnswers) and one.busy for one in self.connections)

    async def finish(self, patience: float) -> None:
        """Let requests under way end. aiohttp's own shutdown would wait for them too, but drop what still comes of
        their bodies."""
        end = self._loop.time() + patience
        while self._loop.time() < end and self._is_busy():  # noqa: ASYNC110 - an event would cost every request
            await asyncio.sleep(0.01)


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


def plain_answer(status: int, body: bytes) -> web.Response:
    """A short answer that is text and is taken for nothing else."""
    headers = {"Server": SERVER, "X-Content-Type-Options": "nosniff"}
    return web.Response(status=status, body=body, headers=headers, content_type="text/plain")


def _refuse_plainly(status: int) -> web.Response:
    return json_answer(status, MALFORMED) if status < 500 else json_answer(503, UNAVAILABLE, retry_after=1)


def speaks_http_1(request: web.BaseRequest) -> bool:
    """Whether the request came in a version that is spoken here."""
    return OTHER_VERSION not in request


def is_plainly_framed(request: web.BaseRequest) -> bool:
    """Whether a body comes in no transfer coding but `chunked`; aiohttp would hand out what another has made of it."""
    coding = request.headers.get("Transfer-Encoding")
    return coding is None or coding.strip().lower() == "chunked"


def _ends_plainly(request: web.BaseRequest) -> bool:
    """Whether everybody sees the same end of a request, and what follows it. A proxy may see another than aiohttp does
    behind an odd coding; and of what came with a request that offers another protocol aiohttp drops all that follows,
    so that the answer to a later request would be taken for that of a dropped one."""
    is_plain = speaks_http_1(request) and is_plainly_framed(request)
    return is_plain and "Upgrade" not in request.headers and request.method != "CONNECT"


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

    def __init__(self, runner: web.ServerRunner, server: PlainServer) -> None:
        self._runner = runner
        self._server = server

    @classmethod
    async def open(
        cls,
        handler: Handler,
        host: str,
        port: int,
        *,
        header_timeout: timedelta,
        tls: ssl.SSLContext | None = None,
        refuse: Refuse = _refuse_plainly,
    ) -> "Listener":
        """Bind and listen.

        Args:
            handler: called with each request; it reads the body itself.
            header_timeout: within it a request's head must have come; an idle connection ends, and so does one whose
                client takes none of its answers.
            refuse: answers what never reaches the handler.

        Raises:
            CannotListen: the address cannot be bound.
        """
        server = PlainServer(
            handler,
            auto_decompress=False,
            keepalive_timeout=header_timeout.total_seconds(),
            lingering_time=1.0,
            max_headers=MOST_HEADERS,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            access_log=None,
        )
        server.refuse = refuse
        runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await _site(runner, host, port, tls).start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            raise CannotListen(_why(host, port, error)) from None
        return cls(runner, server)

    def change(self, *, header_timeout: timedelta) -> None:
        """Give connections that are made from now on another deadline."""
        self._server.change(keepalive_timeout=header_timeout.total_seconds())

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each bound socket, the port as it was really given."""
        return [address[:2] for address in self._runner.addresses]

    async def stop_accepting(self) -> None:
        """Close the port; requests under way go on."""
        for site in list(self._runner.sites):
            await site.stop()

    async def close(self, patience: float = FINISHING) -> None:
        """Close the port, let requests under way finish within `patience` seconds, then close every connection."""
        await self.stop_accepting()
        await self._server.finish(patience)
        await self._runner.cleanup()


def _site(runner: web.ServerRunner, host: str, port: int, tls: ssl.SSLContext | None) -> web.BaseSite:
    """Where to accept. `::` takes IPv4 as well, as users of other servers expect; asyncio alone would not."""
    if host == "::" and socket.has_dualstack_ipv6():
        both = socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        return web.SockSite(runner, both, ssl_context=tls, backlog=BACKLOG)
    return web.TCPSite(runner, host, port, ssl_context=tls, backlog=BACKLOG, reuse_address=True)


def _why(host: str, port: int, error: Exception) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {where}: no such address"
    code = getattr(error, "errno", None)
    words = {98: "it is in use by another program", 48: "it is in use by another program", 13: "permission denied"}
    return f"cannot listen on {where}: {words.get(code or 0) or getattr(error, 'strerror', None) or error}"


def has_left(request: web.BaseRequest) -> bool:
    """Whether the client has closed its end: who gets an answer without an end is then gone, or as good as that."""
    connection = request.protocol
    return connection.transport is None or (isinstance(connection, PlainAnswers) and connection.is_half_closed)


def peer_of(request: web.BaseRequest) -> str | None:
    """The address that the connection comes from, also when it is gone by now; None where there is none."""
    return request.remote
