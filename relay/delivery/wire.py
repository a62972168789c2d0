"""The short way to a target: aiohttp's own connections and parser, with the request's bytes put together here.

Law: this way may be faster than `ClientSession.post`, never different. It takes the same pool, resolver, egress guard,
TLS and response parser; only the object that aiohttp builds anew for each request is left out. Some of what it calls
is not public, so it is tried for its shape at the start (`fits`), and whoever has no such aiohttp takes the long way.
"""

import inspect
from dataclasses import dataclass

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDictProxy
from yarl import URL

from relay.model import Headers

LARGEST_BODY = 64 * 1024
"""Bytes that are handed to the socket in one piece; larger bodies need aiohttp's flow control and take the long way."""

_LINE = "%s: %s\r\n".__mod__
"""The line of one header."""
_CONNECT_TAKES = ["self", "req", "traces", "timeout"]
_HANDLER_TAKES = {"skip_payload", "read_until_eof", "auto_decompress", "read_timeout"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; the body is read from `content`, and `connection` is released or closed after it."""

    status: int
    headers: CIMultiDictProxy[str]
    content: aiohttp.StreamReader
    connection: "aiohttp.connector.Connection"

    def release(self) -> None:
        """Give the connection back to the pool; one whose answer was not read to its end is closed by it."""
        self.connection.release()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def fits() -> bool:
    """Whether this aiohttp has the parts that are used here, in the shape in which they were tried."""
    try:
        connect = list(inspect.signature(aiohttp.TCPConnector.connect).parameters)
        handler = set(inspect.signature(ResponseHandler.set_response_params).parameters)
        return connect == _CONNECT_TAKES and handler >= _HANDLER_TAKES and hasattr(aiohttp, "ClientRequest")
    except (AttributeError, TypeError, ValueError):
        return False


class Wire:
    """POSTs to one origin over one connector; to one URL unless it is told another."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, *, connect_timeout: float) -> None:
        assert session.connector is not None
        self._connector = session.connector
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        # It names the connection (host, port, TLS) and is never sent.
        self._destination = aiohttp.ClientRequest("POST", url, session=session)
        self._path = url.raw_path_qs
        self._host = f"Host: {url.host_port_subcomponent}\r\n"

    async def post(self, headers: Headers, body: bytes, path: str | None = None) -> Answer:
        """Send one request and wait for the head of its answer. The caller sets the deadline and ends the answer.

        Args:
            headers: as they go out; `Host` is added where none is among them, `Content-Length` always.
            path: path and query as they go out; None are the URL's own.

        Raises:
            aiohttp.ClientError, OSError: as `ClientSession.post` does.
            ValueError: a header would break the framing.
        """
        head = self._head(headers, len(body), path or self._path)
        try:
            connection = await self._connector.connect(self._destination, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("no connection") from error
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None or transport.is_closing():
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            transport.write(head + body)
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        return Answer(message.code, message.headers, content, connection)

    def _head(self, headers: Headers, length: int, path: str) -> bytes:
        lines = "".join(map(_LINE, headers))
        host = "" if "\nhost:" in f"\n{lines}".lower() else self._host
        head = f"POST {path} HTTP/1.1\r\n{host}{lines}Content-Length: {length}\r\n\r\n".encode()
        if head.count(b"\n") != len(headers) + (4 if host else 3) or b"\0" in head:
            raise ValueError("a header would break the framing")
        return head
