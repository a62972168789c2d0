"""What a request must pass before anything is proven: its head, our room, and its body within deadline and size.

Law: checks run cheapest first, and more than what is allowed is never read. A request under way keeps the limits it
began with when they change.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from aiohttp import web
from aiohttp.client_exceptions import ClientError

from relay.listener import invite_body, is_plainly_framed, peer_of, speaks_http_1
from relay.model import IPNetwork, Source
from relay.rules.addresses import AddressRefusal, allowed, client_address, looks_like_a_proxy

MEMORY = 64 * 1024 * 1024
"""Bytes of bodies that may be in hand at once, over all connections."""
RETRY_SOON = 2
"""Seconds that a sender is asked to wait when we are at fault."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take."""

    max_body: int
    body_timeout: timedelta
    trusted_proxies: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Turned:
    """A request that is turned away: the answer, and the reason that only the log is told."""

    status: int
    reason: str
    detail: str = ""
    retry_after: int | None = None
    closes: bool = False


class Intake:
    """Judges heads and reads bodies, for all sources."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """Of the requests that come from now on."""
        self.draining = False
        """Whether every further request is turned away."""
        self._in_hand = 0

    def check_head(self, request: web.BaseRequest, source: Source) -> str | Turned:
        """What the head alone decides; returns the client's address."""
        if not speaks_http_1(request):
            return Turned(505, "http_version", closes=True)
        if request.method != "POST":
            return Turned(405, "method")
        if self.draining:
            return Turned(503, "draining", retry_after=RETRY_SOON, closes=True)
        remote = self.client(request)
        if isinstance(remote, AddressRefusal):
            return Turned(remote.status, remote.reason)
        if source.allow_ips and not allowed(remote, source.allow_ips):
            return Turned(403, "ip_not_allowed", self._whence(remote))
        return remote

    def _whence(self, client: str) -> str:
        """The address that is not allowed, and the usual reason why a genuine sender's is not."""
        if self.limits.trusted_proxies or not looks_like_a_proxy(client):
            return f"client {client}"
        return f"client {client} looks like a proxy of yours: name its network in server.trusted_proxies"

    def client(self, request: web.BaseRequest) -> str | AddressRefusal:
        """The address of who sent a request."""
        lines = request.headers.getall("X-Forwarded-For", ())
        return client_address(peer_of(request), lines, self.limits.trusted_proxies)

    def check_room(self, request: web.BaseRequest) -> Turned | None:
        """Whether the body may come: its coding, its declared length, our memory."""
        if not is_plainly_framed(request):
            return Turned(400, "transfer_encoding", closes=True)
        length = request.content_length or 0
        if length > self.limits.max_body:
            return _too_large(self.limits)
        if self._in_hand + length > MEMORY:
            return Turned(503, "memory", retry_after=RETRY_SOON, closes=True)
        return None

    async def read(self, request: web.BaseRequest) -> bytes | Turned:
        """The body, within its deadline and size; more is not read. It is asked for where the sender waits for that."""
        limits = self.limits
        parts: list[bytes] = []
        size = 0
        try:
            if not await invite_body(request):
                return Turned(417, "expect", closes=True)
            if request.content.is_eof():  # it came whole with its head, as nearly all do
                body = request.content.read_nowait()
                is_small = len(body) <= limits.max_body
                return body if is_small else _too_large(limits)
            async with asyncio.timeout(limits.body_timeout.total_seconds()):
                while part := await request.content.readany():
                    size += len(part)
                    self._in_hand += len(part)
                    if size > limits.max_body:
                        return _too_large(limits)
                    if self._in_hand > MEMORY:
                        return Turned(503, "memory", retry_after=RETRY_SOON, closes=True)
                    parts.append(part)
        except TimeoutError:
            return Turned(408, "body_timeout", f"{size} bytes came", closes=True)
        except (web.RequestPayloadError, ClientError, OSError) as error:
            return Turned(400, "broken_body", type(error).__name__, closes=True)
        finally:
            self._in_hand -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limits: Limits) -> Turned:
    return Turned(413, "too_large", f"limit {limits.max_body}", closes=True)
