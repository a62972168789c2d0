"""One connection of a caller: aiohttp's, with what it lacks against callers who mean ill.

Law: no caller can make a connection hold more than its bounds, nor hold on to it for ever: a head has a size and a
deadline, an answer that is not read has a deadline too, and what is told of malformed input repeats none of it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, http_parser, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from relay.accepting import Guest

Refuse = Callable[[int], web.Response]
"""Makes the answer to what no handler answers: 400 for malformed input, 503 for a fault of our own."""

SPOKEN = (HttpVersion10, HttpVersion11)
LARGEST_HEAD = 32 * 1024
"""Bytes of a request line and all header fields; a connection would else hold a hundred times the longest line."""


class PlainAnswers(RequestHandler, Guest):
    """aiohttp's connection, whose own error answers repeat nothing of what was sent, which takes no head without an
    end, and does not wait for ever for a client that reads none of its answers."""

    refuse: Refuse
    _stalled: asyncio.TimerHandle | None = None
    _under_way: Any = None
    """The body of the request that is under way, from its head to its answer."""
    _is_half_closed = False
    _head_size = 0
    """Bytes of a head that is not whole yet, as far as they came in reads of their own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come. What it does not read at once pauses us: that is how we learn that it reads nothing."""
        transport.set_write_buffer_limits(high=1, low=0)  # type: ignore[attr-defined]
        super().connection_made(transport)
        if self.door is not None:
            self.door.entered(self)

    def data_received(self, data: bytes) -> None:
        """Read on; a head that grows beyond its bound is answered as malformed."""
        body = self._under_way
        is_body = body is not None and not body.is_eof()
        super().data_received(data)
        if self._messages:
            self._tell_malformed()
        if is_body or self._messages:
            self._head_size = 0
            return
        self._head_size += len(data)
        if self._head_size > LARGEST_HEAD and not self._close:
            self._close = True  # nothing more is read
            error = _ErrInfo(400, LineTooLong(b"head", LARGEST_HEAD), "")
            self._messages.append((error, EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own signature
        """A body was taken up, or is whole. Unless reading was paused nothing was held back: aiohttp would look for it
        all the same, twice a request, by way of its parser. Should it call the flag otherwise, it looks."""
        if getattr(self, "_reading_paused", True):
            super().resume_reading(resume_parser)

    def _tell_malformed(self) -> None:
        """Whoever waits for a body hears at once that the rest of it is malformed; aiohttp would let them wait for it
        until their deadline."""
        if isinstance(self._messages[-1][0], http_parser.RawRequestMessage):
            return
        for body in (self._under_way, *(body for _, body in self._messages)):
            if body is not None and not body.is_eof() and body.exception() is None:
                body.set_exception(web.RequestPayloadError("malformed"))

    def waiting_since(self) -> float | None:
        """Since when a whole request, or room for an answer, is waited for."""
        if self._stalled is not None:
            return self._stalled.when() - self._keepalive_timeout
        if self._waiter is not None and not self._waiter.done():
            return self._next_keepalive_close_time - self._keepalive_timeout
        return None

    def cut_off(self) -> None:
        """End now."""
        if self.transport is not None:
            self.transport.abort()

    def is_refused(self) -> bool:
        """Whether this connection is one too many, and no other makes room for it."""
        if self.is_surplus and self.door is not None:
            self.is_surplus = not self.door.admits()
        return self.is_surplus

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's own always closes
        """The client will send no more. What has come whole is still answered: True keeps the connection for that."""
        last = self._messages[-1][1] if self._messages else self._under_way
        is_plain = self.transport is not None and self.transport.get_extra_info("sslcontext") is None
        self._is_half_closed = is_plain and last is not None and last.is_eof()
        return self._is_half_closed

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; the last one to a client that sends no more ends the connection, any to one too many, and so
        does one to a request behind which nothing can be read for sure."""
        is_last = self._is_half_closed and not self._messages
        if self.is_surplus or is_last or not _ends_plainly(request):
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
        if self.door is not None:
            self.door.left(self)

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


class _OfOtherVersion(web.BaseRequest):
    """A request that came in a version that is not spoken here."""


class PlainServer(web.Server):
    """aiohttp's low-level server with `PlainAnswers` for connections."""

    refuse: Refuse

    def __call__(self) -> PlainAnswers:
        """Make the connection object of one client."""
        connection = PlainAnswers(self, loop=self._loop, **self._kwargs)
        connection.refuse = self.refuse
        return connection

    def change(self, **settings: Any) -> None:
        """Use these of aiohttp's settings for connections that are made from now on."""
        self._kwargs.update(settings)

    @property
    def patience(self) -> float:
        """Seconds for a request's head."""
        seconds: float = self._kwargs["keepalive_timeout"]
        return seconds

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        protocol._under_way = payload  # noqa: SLF001 - our own connection
        if message.version in SPOKEN:
            return web.BaseRequest(message, payload, protocol, writer, task, self._loop)
        # the answer says that it is of the version of its request
        message = message._replace(version=HttpVersion11)
        return _OfOtherVersion(message, payload, protocol, writer, task, self._loop)

    def _is_busy(self) -> bool:
        return any(isinstance(one, PlainAnswers) and one.busy for one in self.connections)

    async def finish(self, patience: float) -> None:
        """Let requests under way end. aiohttp's own shutdown would wait for them too, but drop what still comes of
        their bodies."""
        end = self._loop.time() + patience
        while self._loop.time() < end and self._is_busy():  # noqa: ASYNC110 - an event would cost every request
            await asyncio.sleep(0.01)


def has_left(request: web.BaseRequest) -> bool:
    """Whether the client has closed its end: who gets an answer without an end is then gone, or as good as that."""
    connection = request.protocol
    return connection.transport is None or (isinstance(connection, PlainAnswers) and connection.is_half_closed)


def is_one_too_many(request: web.BaseRequest) -> bool:
    """Whether a request came on a connection for which there was no room, and there is none yet."""
    connection = request.protocol
    return isinstance(connection, PlainAnswers) and connection.is_refused()


def speaks_http_1(request: web.BaseRequest) -> bool:
    """Whether the request came in a version that is spoken here."""
    return not isinstance(request, _OfOtherVersion)


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
