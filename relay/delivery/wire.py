"""The short way to a target: aiohttp's own connections, with the request's bytes put together and handed on here.

Law: this way may be faster than `ClientSession.post`, never different. It takes the same connector, resolver, egress
guard, TLS and limits; what is left out is the object that aiohttp builds anew for each request, the way through the
connector where a connection is kept (`pool`), and the parser for the plainest answers (`hearing`). Some of what it
calls is not public, so it is tried for its shape at the start (`fits`), and whoever has no such aiohttp takes the long
way.
"""

import inspect
from collections.abc import Coroutine
from contextlib import AbstractContextManager

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from relay.delivery.answers import Answer
from relay.delivery.plain import Whole
from relay.delivery.pool import Line, Pool
from relay.model import Headers
from relay.rules.forwarding import as_lines

LARGEST_BODY = 64 * 1024
"""Bytes that are handed to the socket in one piece; larger bodies need aiohttp's flow control and take the long way."""

_CONNECT_TAKES = ["self", "req", "traces", "timeout"]
_HANDLER_TAKES = {"skip_payload", "read_until_eof", "auto_decompress", "read_timeout"}
_HANDLER_HAS = {"_should_close", "_payload", "_tail"}


def fits() -> bool:
    """Whether this aiohttp has the parts that are used here and in `hearing`, in the shape in which they were tried."""
    try:
        connect = list(inspect.signature(aiohttp.TCPConnector.connect).parameters)
        handler = set(inspect.signature(ResponseHandler.set_response_params).parameters)
        return (
            connect == _CONNECT_TAKES
            and handler >= _HANDLER_TAKES
            and set(ResponseHandler.__init__.__code__.co_names) >= _HANDLER_HAS
            and "_factory" in aiohttp.BaseConnector.__init__.__code__.co_names
            and hasattr(aiohttp, "ClientRequest")
        )
    except (AttributeError, TypeError, ValueError):
        return False


class Wire:
    """POSTs to one origin over one connector; to one URL unless it is told another. Close when done."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, *, connect_timeout: float) -> None:
        """The connections of `session` are `WatchedHandler`s."""
        assert session.connector is not None
        destination = aiohttp.ClientRequest("POST", url, session=session)
        self._pool = Pool(session.connector, destination, connect_timeout=connect_timeout)
        self._path = url.raw_path_qs
        self._host = f"Host: {url.host_port_subcomponent}\r\n"

    def post(self, headers: Headers, body: bytes, path: str | None = None) -> Coroutine[None, None, Answer]:
        """Send one request and wait for the head of its answer. The caller sets the deadline and ends the answer.

        Args:
            headers: as they go out; `Host` is added where none is among them, `Content-Length` always.
            path: path and query as they go out; None are the URL's own.

        Raises:
            aiohttp.ClientError, OSError: as `ClientSession.post` does.
            ValueError: a header would break the framing.
        """
        has_host = any(name.lower() == "host" for name, _ in headers)
        return self.post_lines(as_lines(headers), len(headers), body, path, has_host=has_host)

    async def post_lines(
        self, lines: str, many: int, body: bytes, path: str | None = None, *, has_host: bool = False
    ) -> Answer:
        """The same for headers that are `many` lines already.

        Args:
            has_host: `Host` is among them.
        """
        request = self.request(lines, many, body, path, has_host=has_host)
        line = self._pool.take() or await self._pool.connected()
        try:
            whole = await line.handler.ask(request)
        except BaseException:
            line.close()
            raise
        return await self.rest(line, whole)

    def request(self, lines: str, many: int, body: bytes, path: str | None = None, *, has_host: bool = False) -> bytes:
        """The bytes of such a request.

        Raises:
            ValueError: a header would break the framing.
        """
        host = "" if has_host else self._host
        head = f"POST {path or self._path} HTTP/1.1\r\n{host}{lines}Content-Length: {len(body)}\r\n\r\n".encode()
        if head.count(b"\n") != many + (3 if has_host else 4) or b"\0" in head:
            raise ValueError("a header would break the framing")
        return head + body

    def take(self) -> Line | None:
        """A connection that was kept, for one request; None where there is none."""
        return self._pool.take()

    def keep(self, line: Line) -> None:
        """Keep a connection over which nothing more is to come."""
        self._pool.keep(line)

    async def rest(self, line: Line, whole: Whole | None) -> Answer:
        """The answer over a connection, given what its handler has told of it; raises as `post`."""
        if whole is not None:
            self._pool.keep(line)
            return Answer(*whole)
        try:
            message, content = await line.handler.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await line.handler.read()
        except BaseException:
            line.close()
            raise
        return Answer(message.code, b"", message.headers.get("Retry-After"), content, line)

    def beside(self) -> AbstractContextManager[None]:
        """Around a request over the same connector that does not take this way."""
        return self._pool.shared()

    def close(self) -> None:
        """Keep no connection any more; they end as the session is closed."""
        self._pool.close()
