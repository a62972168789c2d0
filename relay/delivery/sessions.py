"""Where every client session is made, so that nothing leaves but through the egress guard.

Law: no redirect, cookie or proxy variable is followed by what is made here, and certificates are checked unless the
YAML says otherwise. A TLS context is made once for a session, never for a request.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from relay.delivery.egress import guarded_connector
from relay.model import ClientTls, Headers, Proxy
from relay.rules.egress import EgressPolicy
from relay.rules.signing import basic_credentials

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

_NO_AUTO_HEADERS = frozenset({"Content-Type", "User-Agent", "Accept", "Accept-Encoding"})


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

    def __init__(self, loop: asyncio.AbstractEventLoop, *, longest: int) -> None:
        """`longest` is the longest body that is heard, in bytes."""
        super().__init__(loop)
        self._longest = longest

    def set_response_params(self, **params: Any) -> None:
        """Called by the client for each request that it sends over this connection."""
        self.head = b""
        self._heard = self._until_body = self._interims = 0
        self._is_answered = False
        in_use.set(self)
        super().set_response_params(**params)

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


def _sliced(data: bytes) -> Iterator[bytes]:
    """A piece that may hold thousands of answers or chunks, in pieces that are soon parsed."""
    for start in range(0, len(data), SLICE):
        yield data[start : start + SLICE]


class _TunnelledHandler(WatchedHandler):
    """The same for a target behind a proxy's tunnel: what comes before TLS is not the target's word."""

    def set_response_params(self, **params: Any) -> None:
        super().set_response_params(**params)
        if self.transport is None or self.transport.get_extra_info("sslcontext") is None:
            in_use.set(None)


in_use: ContextVar[WatchedHandler | None] = ContextVar("relay_connection", default=None)
"""The connection over which this task has sent."""


def open_session(
    egress: EgressPolicy,
    *,
    limit: int,
    connect_timeout: float,
    longest: int,
    tls: ClientTls | None = None,
    only_through_tls: bool = False,
) -> aiohttp.ClientSession:
    """A session of its own pool and resolver; to be made while a loop runs, and closed by whoever asks for it.

    Args:
        limit: connections at a time.
        connect_timeout: seconds.
        longest: bytes of an answer's body that are of use; one that is longer is cut off.
        only_through_tls: what is heard before TLS is a proxy's word, not the target's.

    Raises:
        OSError: a certificate cannot be loaded any more, or no resolver can be had.
    """
    connector = guarded_connector(egress, limit=limit, ssl=True if tls is None else client_context(tls))
    # without it broken answers are judged more strictly, and endless ones are not bounded
    if hasattr(connector, "_factory"):
        handler = _TunnelledHandler if only_through_tls else WatchedHandler
        factory: Any = partial(handler, asyncio.get_running_loop(), longest=longest)
        connector._factory = factory  # noqa: SLF001 - there is no public way to an answer's first bytes
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=_NO_AUTO_HEADERS,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
    )


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """The TLS context that trusts and shows what `tls` says; TLS 1.2 at least.

    Raises:
        OSError: a file cannot be loaded, ssl.SSLError included.
    """
    context = ssl.create_default_context(cafile=tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def post(
    session: aiohttp.ClientSession, url: URL, *, headers: Headers, body: bytes, proxy: Proxy | None
) -> aiohttp.ClientResponse:
    """POST once, through the proxy where there is one, to this URL and to no other.

    Raises:
        aiohttp.ClientError, OSError, ValueError: as `ClientSession.post` does.
    """
    if proxy is None:
        return await session.post(url, data=body, headers=headers, allow_redirects=False)
    proof = _proof_for(proxy)
    is_tunnelled = url.scheme == "https"
    return await session.post(
        url,
        data=body,
        headers=headers if is_tunnelled else headers + proof,
        allow_redirects=False,
        proxy=proxy.url,
        proxy_headers=dict(proof) if is_tunnelled else None,
    )


async def whole(content: aiohttp.StreamReader, *, cap: int) -> bytes | None:
    """The body of an answer, None where it is longer than `cap` bytes."""
    text = bytearray()
    while not content.at_eof():
        text += await content.readany()
        if len(text) > cap:
            return None
    return bytes(text)


def _proof_for(proxy: Proxy) -> Headers:
    """What proves us to a proxy; before each tunnel, or with each request where there is none."""
    if proxy.password is None:
        return ()
    return (("Proxy-Authorization", f"Basic {basic_credentials(proxy.username, proxy.password).decode()}"),)
