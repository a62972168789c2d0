"""What a request must pass before anything is proven: its head, our room, and its body within deadline and size.

Law: checks run cheapest first, and more than what is allowed is never read. A request under way keeps the limits it
began with when they change.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from aiohttp import web
from aiohttp.client_exceptions import ClientError

from relay.connections import is_one_too_many, is_plainly_framed, speaks_http_1
from relay.listener import invite_body, peer_of
from relay.model import IPNetwork, Source
from relay.rules.addresses import AddressRefusal, allowed, client_address, looks_like_a_proxy

SMALL = 64 * 1024
"""Bytes of a body up to which it counts among the small ones, as most do."""
MEMORY_FOR_SMALL, MEMORY = 16 * 1024 * 1024, 64 * 1024 * 1024
"""Bytes of small and of other bodies that may be in hand at once, from the first byte to the answer, over all
connections: a few who send large ones slowly shut out no others."""
STANDSTILL_S = 1.0
"""A deadline that is noticed so much later was missed by ourselves: the process was stopped, or starved."""
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


class Held:
    """What one request's body takes of our memory, until its answer."""

    __slots__ = ("_in_hand", "_size")

    def __init__(self, in_hand: list[int]) -> None:
        """`in_hand` are the bytes of all, of small bodies and of others."""
        self._in_hand = in_hand
        self._size = 0

    def __enter__(self) -> Self:
        """Nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """The answer is made."""
        self._in_hand[self._size > SMALL] -= self._size

    def add(self, size: int) -> bool:
        """Count bytes that came; False where they are more than there is room for."""
        self._in_hand[self._size > SMALL] -= self._size
        self._size += size
        self._in_hand[self._size > SMALL] += self._size
        return _is_within(self._in_hand, self._size)


class Intake:
    """Judges heads and reads bodies, for all sources."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """Of the requests that come from now on."""
        self.draining = False
        """Whether every further request is turned away."""
        self._in_hand = [0, 0]

    @property
    def in_hand(self) -> int:
        """Bytes of bodies, from the first byte that comes to the answer."""
        return sum(self._in_hand)

    def held(self) -> Held:
        """For the time of one request."""
        return Held(self._in_hand)

    def check_head(self, request: web.BaseRequest, source: Source) -> str | Turned:
        """What the head alone decides; returns the client's address."""
        if not speaks_http_1(request):
            return Turned(505, "http_version", closes=True)
        if is_one_too_many(request):
            return Turned(503, "connections", retry_after=RETRY_SOON, closes=True)
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
        return None if _is_within(self._in_hand, length, more=length) else _NO_MEMORY

    def at_hand(self, request: web.BaseRequest, held: Held) -> bytes | Turned | None:
        """A body that came whole with its head, as nearly all do; None where there is something to wait for."""
        content = request.content
        if not content.is_eof() or content.exception() is not None or "Expect" in request.headers:
            return None
        body = content.read_nowait()
        if len(body) > self.limits.max_body:
            return _too_large(self.limits)
        return body if held.add(len(body)) else _NO_MEMORY

    async def read(self, request: web.BaseRequest, held: Held) -> bytes | Turned:
        """The body, within its deadline and size; more is not read. It is asked for where the sender waits for that."""
        limits = self.limits
        parts: list[bytes] = []
        size = 0
        ends_at = asyncio.get_running_loop().time() + limits.body_timeout.total_seconds()
        try:
            if not await invite_body(request):
                return Turned(417, "expect", closes=True)
            async with asyncio.timeout_at(ends_at):
                while part := await request.content.readany():
                    size += len(part)
                    has_room = held.add(len(part))
                    if size > limits.max_body:
                        return _too_large(limits)
                    if not has_room:
                        return _NO_MEMORY
                    parts.append(part)
        except TimeoutError:
            if asyncio.get_running_loop().time() - ends_at > STANDSTILL_S:  # nobody here has looked whether it came
                return Turned(503, "stood_still", retry_after=RETRY_SOON, closes=True)
            return Turned(408, "body_timeout", f"{size} bytes came", closes=True)
        except (web.RequestPayloadError, ClientError, OSError) as error:
            return Turned(400, "broken_body", type(error).__name__, closes=True)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_within(in_hand: list[int], size: int, *, more: int = 0) -> bool:
    """Whether there is room for what is in hand, and for so many bytes more, of a body of this size."""
    return in_hand[1] + more <= MEMORY if size > SMALL else in_hand[0] + more <= MEMORY_FOR_SMALL


_NO_MEMORY = Turned(503, "memory", "too many bytes of bodies are in hand", retry_after=RETRY_SOON, closes=True)


def _too_large(limits: Limits) -> Turned:
    return Turned(413, "too_large", f"limit {limits.max_body}", closes=True)
