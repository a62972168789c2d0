"""A listening socket with our limits around aiohttp's server.

Law: whatever a stranger sends, the answer is one of ours: short, constant, without an echo of the input and without
a traceback. Deadlines and sizes are set here for both listeners, because aiohttp's own defaults wait for an hour.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from aiohttp import http_parser, web
from aiohttp.web_protocol import RequestHandler

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

BACKLOG = 1024
MOST_HEADERS = 100
LONGEST_LINE = 8190
"""Bytes of a request line or of one header field."""


class CannotListen(OSError):
    """An address cannot be bound; the message says which and why."""


class PlainAnswers(RequestHandler):
    """aiohttp's connection, whose own error answers repeat nothing of what was sent."""

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
        is_theirs = status < 500
        answer = json_answer(status, MALFORMED) if is_theirs else json_answer(503, UNAVAILABLE, retry_after=1)
        answer.force_close()
        return answer


class PlainServer(web.Server):
    """aiohttp's low-level server with `PlainAnswers` for connections."""

    def __call__(self) -> RequestHandler:
        """Make the connection object of one client."""
        return PlainAnswers(self, loop=self._loop, **self._kwargs)


MALFORMED = b'{"error": "malformed request"}'
UNAVAILABLE = b'{"error": "unavailable, send again"}'


def json_answer(status: int, body: bytes, *, retry_after: int | None = None, allow: str | None = None) -> web.Response:
    """A short JSON answer."""
    headers: dict[str, str] = {}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if allow is not None:
        headers["Allow"] = allow
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def has_native_parser() -> bool:
    """Whether aiohttp's parser in C is there; the one in Python is laxer about smuggled requests."""
    return http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy


class Listener:
    """One bound address."""

    def __init__(self, runner: web.ServerRunner) -> None:
        self._runner = runner

    @classmethod
    async def open(
        cls, handler: Handler, host: str, port: int, *, header_timeout: timedelta, tls: ssl.SSLContext | None = None
    ) -> "Listener":
        """Bind and listen.

        Args:
            handler: called with each request; it reads the body itself.
            header_timeout: within it a request's head must have come, and an idle connection ends.

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
        runner = web.ServerRunner(server, shutdown_timeout=2.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port, ssl_context=tls, backlog=BACKLOG, reuse_address=True)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            raise CannotListen(_why(host, port, error)) from None
        return cls(runner)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each bound socket, the port as it was really given."""
        return [address[:2] for address in self._runner.addresses]

    async def stop_accepting(self) -> None:
        """Close the port; requests under way go on."""
        for site in list(self._runner.sites):
            await site.stop()

    async def close(self) -> None:
        """Close the port and every connection."""
        await self._runner.cleanup()


def _why(host: str, port: int, error: Exception) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {where}: no such address"
    code = getattr(error, "errno", None)
    words = {98: "it is in use by another program", 48: "it is in use by another program", 13: "permission denied"}
    return f"cannot listen on {where}: {words.get(code or 0) or getattr(error, 'strerror', None) or error}"


def peer_of(request: web.BaseRequest) -> str | None:
    """The address that the connection comes from, None where there is none."""
    transport = request.transport
    name: Any = transport.get_extra_info("peername") if transport is not None else None
    return name[0] if isinstance(name, tuple) else None
