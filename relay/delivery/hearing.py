"""One connection to a target, from a request to the end of its answer.

Law: an answer is bounded, taken alone and judged by its status line even where the rest breaks. The plainest answers
are read here, whole; every other goes to aiohttp's parser from its first byte on, which a request of the short way
sets up only then.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from relay.delivery.plain import Whole, plainest

SWITCHING = 101
STATUS_LINE = 13
"""Bytes of an answer that hold its status."""
INTERIM_CAP = 16 * 1024
"""Bytes of interim answers (RFC 9110, section 15.2) that are kept to find the status behind them."""
MOST_INTERIM = 100
LONGEST_HEAD = 32 * 1024
"""Bytes of an answer that are heard before its body, interim answers included."""
FRAMING = 8 * 1024
"""Bytes that a body may take beside its own: sizes of chunks, their extensions, trailers. Each chunk costs the loop as
much as a small answer."""
SLICE = 4 * 1024
"""Bytes that are parsed before it is seen whether there have been enough."""


in_use: ContextVar["WatchedHandler | None"] = ContextVar("relay_connection", default=None)
"""The connection over which this task has sent."""


class WatchedHandler(ResponseHandler):
    """aiohttp's connection, which also remembers the first bytes of each answer, bounds it and takes it alone.

    A target that says 200 and then breaks has taken the event; aiohttp reports only that the answer broke. What comes
    without end outside of a body (interim answers, chunk extensions, trailers) would keep the loop busy until the
    deadline. And what a target says after its answer would be taken for the answer to the next request.
    """

    head = b""
    _heard = 0
    _until_body = 0
    _interims = 0
    _is_answered = False
    _tell: Callable[[Whole | None], None] | None = None
    """Whoever waits for an answer of which nothing has come yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, longest: int) -> None:
        """`longest` is the longest body that is heard, in bytes."""
        super().__init__(loop)
        self._longest = longest

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent: it is open, and the answer before came to its end and was the last."""
        transport = self.transport
        return not (self._should_close or transport is None or transport.is_closing())

    def ask(self, request: bytes) -> asyncio.Future[Whole | None]:
        """The same as `send` for a task, which waits for the future to have what would be told."""
        in_use.set(self)
        asked: asyncio.Future[Whole | None] = self._loop.create_future()
        self.send(request, partial(_tell_task, asked))
        return asked

    def send(self, request: bytes, tell: Callable[[Whole | None], None]) -> None:
        """Send a request on the short way, over a connection that is usable.

        Args:
            tell: called once, with the answer where it is one of the plainest; with None as soon as it is none of them,
                or as the connection is lost: `read` gives the answer then, or raises what became of it.
        """
        assert self.transport is not None
        self.head = b""
        self._is_answered = False
        self._tell = tell
        if self._tail:  # it has spoken first
            self._have_it_parsed()
        self.transport.write(request)

    def forget(self) -> None:
        """Tell nobody any more of the answer that is waited for. The connection is to be closed next."""
        self._tell = None

    def set_response_params(self, **params: Any) -> None:
        """Called by aiohttp's client for each request that it sends over this connection."""
        in_use.set(self)
        self._begin()
        super().set_response_params(**params)

    def _begin(self) -> None:
        self.head = b""
        self._heard = self._until_body = self._interims = 0
        self._is_answered = False

    def _have_it_parsed(self) -> None:
        """Leave the answer that is waited for to aiohttp's parser, of which nothing has been heard yet."""
        self._settle(None)
        self._begin()
        super().set_response_params(read_until_eof=True, auto_decompress=False)

    def _settle(self, answer: Whole | None) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(answer)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called when the connection has ended, by whichever side."""
        super().connection_lost(exc)
        self._settle(None)

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Called with the head of each answer."""
        status = data[0].code
        self._is_answered = not 100 <= status < 200 or status == SWITCHING
        self._interims += not self._is_answered
        self._until_body = self._heard
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Called with what arrives, and with nothing where the parser is to go on after a pause; the first of it is
        kept by reference, at no cost."""
        if self._tell is not None:
            if (answer := plainest(data)) is not None:
                self.head = data
                self._is_answered = True
                self._settle(answer)
                return
            self._have_it_parsed()
        if data and self._is_over():
            self._hang_up()
            return
        is_interim = self.head[9:10] == b"1" and len(self.head) < INTERIM_CAP
        if is_interim or len(self.head) < STATUS_LINE:
            self.head += data[:INTERIM_CAP]
        for part in (data,) if len(data) <= SLICE else _sliced(data):
            if data and (self._is_over() or self._is_too_long()):
                self.force_close()
                self._loop.call_soon(self._cut)  # after whoever waits for what has come before
                return
            self._heard += len(part)
            super().data_received(part)

    def close(self) -> None:
        """Let go of the connection at once. Nothing of it is of use any more, and a tidy end would wait for a target
        that neither reads what was sent nor takes leave: with its socket and the body, for as long as that pleases."""
        self.abort()

    def _is_over(self) -> bool:
        """Whether the answer has come to its end: what follows was not asked for."""
        return self._is_answered and (self._payload is None or self._payload.is_eof())

    def _is_too_long(self) -> bool:
        """Whether enough has been heard, or there is no end of it in sight."""
        if not self._is_answered:
            return self._heard > LONGEST_HEAD or self._interims > MOST_INTERIM
        body = 0 if self._payload is None else self._payload.total_bytes
        return body > self._longest or self._heard - self._until_body > body + FRAMING

    def _cut(self) -> None:
        """Hear no more: the answer is too long, or over."""
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError("longer than is heard"))
        if not self.is_eof():
            self.set_exception(HttpProcessingError(message="longer than is heard"))
        self._hang_up()

    def _hang_up(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.abort()


def _tell_task(asked: "asyncio.Future[Whole | None]", answer: Whole | None) -> None:
    if not asked.done():  # else nobody waits any more
        asked.set_result(answer)


def _sliced(data: bytes) -> Iterator[bytes]:
    """A piece that may hold thousands of answers or chunks, in pieces that are soon parsed."""
    for start in range(0, len(data), SLICE):
        yield data[start : start + SLICE]


class TunnelledHandler(WatchedHandler):
    """The same for a target behind a proxy's tunnel: what comes before TLS is not the target's word."""

    def set_response_params(self, **params: Any) -> None:
        super().set_response_params(**params)
        if self.transport is None or self.transport.get_extra_info("sslcontext") is None:
            in_use.set(None)
