"""One HTTP attempt: an event as its target wants it, and what came of it.

Law: `send` never raises for what a target did, and never says a secret: reasons name the kind of fault, not the URL.
Each target has a session, a connection pool and a resolver of its own, so that a hung one costs the others nothing.
"""

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from relay.delivery.deadlines import Deadlines
from relay.delivery.egress import guarded_connector, refused_by_egress
from relay.delivery.wire import LARGEST_BODY, Answer, Wire, fits
from relay.model import Claim, Fetched, Headers, Outcome, OutcomeKind, Shaped, Target, Unshaped
from relay.rules.answers import meaning, parse_retry_after, status_line
from relay.rules.egress import EgressPolicy
from relay.rules.forwarding import outgoing_headers
from relay.rules.secrets import blotted, credentials
from relay.rules.shaping import is_shaped, shaped

CONNECT_TIMEOUT = timedelta(seconds=5)
ANSWER_CAP = 64 * 1024
"""Bytes of an answer that are read so that the connection can be used again; a longer one costs the connection."""
LARGEST_ON_THE_LOOP = 256 * 1024
"""Bytes of a body that is shaped on the loop; a larger one would hold up the other targets."""
EXCERPT = 1024
"""Characters of an answer that are kept."""

STATUS_LINE = 13
"""Bytes of an answer that hold its status."""
INTERIM_CAP = 16 * 1024
"""Bytes of interim answers (RFC 9110, section 15.2) that are kept to find the status behind them."""

_OUR_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Not EADDRNOTAVAIL: a target's address of a family that this machine has not gives it for ever."""
_INNER_ERRNO = re.compile(r"\[Errno ([0-9]{1,5})\]")
_NO_AUTO_HEADERS = frozenset({"Content-Type", "User-Agent", "Accept", "Accept-Encoding"})


@dataclass(frozen=True, slots=True)
class Sent:
    """What one request came to, and the headers that could not be sent with it."""

    outcome: Outcome
    dropped_headers: tuple[str, ...] = ()


class WatchedHandler(ResponseHandler):
    """aiohttp's connection, which also remembers the first bytes of each answer.

    A target that says 200 and then breaks has taken the event; aiohttp reports only that the answer broke.
    """

    head = b""

    def set_response_params(self, **params: Any) -> None:
        """Called by the client for each request that it sends over this connection."""
        self.head = b""
        _in_use.set(self)
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Called with what arrives; the first of it is kept by reference, at no cost."""
        is_interim = self.head[9:10] == b"1" and len(self.head) < INTERIM_CAP
        if is_interim or len(self.head) < STATUS_LINE:
            self.head += data
        super().data_received(data)


_in_use: ContextVar[WatchedHandler | None] = ContextVar("relay_connection", default=None)


class Sender:
    """Sends to one target. Create inside a running loop; close when done."""

    def __init__(
        self,
        target: Target,
        egress: EgressPolicy,
        *,
        key_headers: Mapping[str, str | None],
        user_agent: str,
        now: Callable[[], datetime],
        proof_headers: Mapping[str, frozenset[str]] = MappingProxyType({}),
        short_way: bool | None = None,
    ) -> None:
        """`key_headers` names, for each source, the header that is its shared key: it is nobody else's to see.
        `proof_headers` names those that prove its body, which do not go with another one.
        `short_way` False sends by `ClientSession.post` alone; None takes the short way where this aiohttp has it."""
        self._target = target
        self._key_headers = key_headers
        self._proof_headers = proof_headers
        self._user_agent = user_agent
        self._now = now
        self._url = URL(target.url, encoded=True)
        self._deadlines = Deadlines(target.timeout.total_seconds())
        connect = min(CONNECT_TIMEOUT, target.timeout).total_seconds()
        connector = guarded_connector(egress, limit=target.concurrency + 2)
        if hasattr(connector, "_factory"):  # without it only the rarest broken answers are judged more strictly
            factory: Any = partial(WatchedHandler, loop=asyncio.get_running_loop())
            connector._factory = factory  # noqa: SLF001 - there is no public way to an answer's first bytes
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_NO_AUTO_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect),
        )
        is_short = fits() if short_way is None else short_way
        self._wire = Wire(self._session, self._url, connect_timeout=connect) if is_short else None
        self._credentials = credentials(target)

    async def send(self, claim: Claim, body: bytes, data: Any = Fetched.NOTHING) -> Sent:
        """Make one request for a claim; total but for cancellation.

        Args:
            claim: whose event, attempt number and target it is for.
            body: the event's bytes, sent as they are unless the target asks for another body.
            data: what was fetched for the event.
        """
        shape = await self._shaped(claim, body, data)
        if isinstance(shape, Unshaped):
            return Sent(Outcome(OutcomeKind.UNPREPARED, reason=shape.reason))
        headers, dropped = outgoing_headers(
            claim.event,
            self._target,
            attempt=claim.attempt,
            user_agent=self._user_agent,
            key_header=self._key_headers.get(claim.event.source),
            replayed=claim.replayed,
            shape=shape,
            proof_headers=self._proof_headers.get(claim.event.source, frozenset()),
        )
        if shape is None:
            return Sent(await self.post(headers, body), dropped)
        return Sent(await self.post(headers, shape.body, url=shape.url), dropped)

    async def _shaped(self, claim: Claim, body: bytes, data: Any) -> Shaped | Unshaped | None:
        """What the target is to get, None where that is what came in."""
        if not is_shaped(self._target, data):
            return None
        if len(body) > LARGEST_ON_THE_LOOP:
            return await asyncio.to_thread(shaped, self._target, claim.event, body, data)
        return shaped(self._target, claim.event, body, data)

    async def post(self, headers: Headers, body: bytes, *, url: str | None = None) -> Outcome:
        """Make one request with exactly these headers, to another URL of the target's origin where one is named; total
        but for cancellation."""
        _in_use.set(None)
        try:
            with self._deadlines.begin() as deadline:
                answer = await self._ask(headers, body, self._url if url is None else URL(url, encoded=True))
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            return self._broken(error)
        try:
            status = answer.status
            asked = answer.headers.get("Retry-After")
            wait = None if asked is None else parse_retry_after(asked, self._now())
            kind = meaning(status, self._target, retry_after=wait)
            if answer.content.at_eof():
                return _plain(kind, status) if wait is None else Outcome(kind, status, f"status {status}", wait)
            text = await _read(answer, deadline.at)
        finally:
            answer.release()
        return Outcome(kind, status, f"status {status}", wait, self._excerpt(text))

    async def _ask(self, headers: Headers, body: bytes, url: URL) -> Answer | aiohttp.ClientResponse:
        """Send, and wait for the head of the answer: the short way, or aiohttp's own where that does not do."""
        if self._wire is not None and len(body) <= LARGEST_BODY:
            return await self._wire.post(headers, body, None if url is self._url else url.raw_path_qs)
        return await self._session.post(url, data=body, headers=_one_spelling(headers), allow_redirects=False)

    def _broken(self, error: Exception) -> Outcome:
        """The outcome where no whole answer was had."""
        connection = _in_use.get()
        status = None if connection is None else status_line(connection.head)
        if status is not None and meaning(status, self._target, retry_after=None) is OutcomeKind.DELIVERED:
            return Outcome(OutcomeKind.DELIVERED, status, f"status {status}, the rest of the answer was broken")
        if getattr(error, "errno", None) in _OUR_SHORTAGE:
            return Outcome(OutcomeKind.INTERRUPTED, reason=f"short of resources: {_words(error)}")
        return Outcome(OutcomeKind.UNREACHABLE, reason=_fault(error, self._target.timeout))

    def _excerpt(self, answer: bytes) -> str:
        """The beginning of an answer; our secrets are taken out before it is cut, or a cut one would stay."""
        return blotted(answer.decode("utf-8", "replace"), self._credentials)[:EXCERPT]

    async def close(self) -> None:
        """Close the pool and the resolver."""
        self._deadlines.close()
        await self._session.close()


def _one_spelling(headers: Headers) -> Headers:
    """The same fields, each name spelled as it was first: aiohttp keeps only the last of several spellings."""
    first: dict[str, str] = {}
    return tuple((first.setdefault(name.lower(), name), value) for name, value in headers)


@lru_cache(maxsize=4096)
def _plain(kind: OutcomeKind, status: int) -> Outcome:
    """The outcome of an answer without a body: a value like any other, and by far the most frequent."""
    return Outcome(kind, status, f"status {status}")


async def _read(answer: Answer | aiohttp.ClientResponse, deadline: float) -> bytes:
    """The answer's body up to the cap. The status has said all that counts: a body that breaks or drips is no fault."""
    text = bytearray()
    content = answer.content
    try:
        async with asyncio.timeout_at(deadline):
            while len(text) < ANSWER_CAP and not content.at_eof():
                text += await content.readany()
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError):
        answer.close()
    if not content.at_eof():
        answer.close()
    return bytes(text)


def _fault(error: Exception, timeout: timedelta) -> str:
    """A transport fault in words, without host, path or credentials."""
    forbidden = refused_by_egress(error)
    if forbidden:
        return f"egress policy forbids it: {forbidden}"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "timeout: no connection"
        case TimeoutError():
            return f"timeout: no answer within {timeout.total_seconds():g} s"
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return f"DNS: {_words(error)}"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return f"TLS: {_words(error)}"
        case aiohttp.ClientConnectorError():
            return f"connect: {_words(error)}"
        case aiohttp.ServerDisconnectedError():
            return "connection closed without an answer"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return "malformed answer"
        case aiohttp.ClientOSError() | OSError():
            return f"connection broke: {_words(error)}"
    return f"request failed: {type(error).__name__}"


def _words(error: Exception) -> str:
    """The operating system's or TLS library's own words for a fault, without the address it was about."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return inner.verify_message
    if isinstance(inner, ssl.SSLError):
        return (inner.reason or "handshake failed").replace("_", " ").lower()
    code = getattr(inner, "errno", None)
    if code is None and (first := _INNER_ERRNO.search(str(inner))):
        code = int(first[1])  # several addresses failed, each in its own way: told as one text, which names them
    if isinstance(code, int) and code in errno.errorcode:
        return os.strerror(code)
    fallback = "unknown fault" if type(inner) is OSError else type(inner).__name__
    return getattr(inner, "strerror", None) or fallback
