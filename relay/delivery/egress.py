"""The egress guard: which addresses may be dialled, decided on the concrete address, after DNS.

Law: the address judged is the address dialled. The verdict is pure; the connector asks it for every DNS answer and
once more when the socket is made, so that no spelling of a host, no second DNS answer and no literal slips past.
"""

import asyncio
import errno
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from pycares import AresError

from relay.rules.egress import EgressPolicy, is_metadata_host, refusal

AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]

DNS_TIMEOUT = 2.0
"""Seconds for the first question to a name server; c-ares waits longer at each further try."""
DNS_TRIES = 2
DNS_CACHE_SECONDS = 30
KEEPALIVE_S = 30.0
"""Seconds for which a connection is kept that nobody uses."""


class EgressRefused(OSError):
    """The egress policy forbids an address; no byte was sent to it. `reason` is fit for a log line."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"forbidden by egress: {reason}")
        self.reason = reason


class _GuardedResolver(AbstractResolver):
    """Hands on only answers that may be dialled; under policy `public` one forbidden answer refuses the name.

    A resolver that has not found a name is not asked again: c-ares keeps such an answer for up to an hour, so that a
    target whose name comes into being would stay unknown for as long.
    """

    def __init__(self, make: Callable[[], AbstractResolver], egress: EgressPolicy) -> None:
        self._make = make
        self._inner = make()
        self._egress = egress
        self._under_way = 0
        self._is_stale = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host` that may be dialled.

        Raises `EgressRefused` when none may, or when one may not under policy `public`; OSError when DNS fails.
        """
        if is_metadata_host(host):
            raise EgressRefused("cloud metadata host")
        answers = await self._found(host, port, family)
        verdicts = [(answer, refusal(answer["host"], self._egress)) for answer in answers]
        permitted = [answer for answer, reason in verdicts if reason is None]
        refused = next((f"{reason} ({answer['host']})" for answer, reason in verdicts if reason is not None), None)
        if refused is not None and (self._egress.policy == "public" or not permitted):
            raise EgressRefused(refused)
        return permitted

    async def _found(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        if self._is_stale and not self._under_way:
            await self._renew()
        self._under_way += 1
        try:
            return await self._inner.resolve(host, port, family)
        except OSError:
            self._is_stale = True
            raise
        finally:
            self._under_way -= 1

    async def _renew(self) -> None:
        with suppress(OSError):  # short of threads or descriptors: the old one still asks
            fresh = self._make()
            before, self._inner, self._is_stale = self._inner, fresh, False
            await before.close()

    async def close(self) -> None:
        await self._inner.close()


class _GuardedConnector(aiohttp.TCPConnector):
    """A connector that also closes its resolver, which aiohttp leaves open when it was handed in."""

    def __init__(
        self,
        egress: EgressPolicy,
        *,
        limit: int,
        keepalive: float,
        ssl_context: bool | ssl.SSLContext,
        resolver: Callable[[], AbstractResolver],
    ) -> None:
        self._egress = egress
        self._guarded_resolver = _GuardedResolver(resolver, egress)
        super().__init__(
            limit=limit,
            keepalive_timeout=keepalive,
            ssl=ssl_context,
            resolver=self._guarded_resolver,
            ttl_dns_cache=DNS_CACHE_SECONDS,
            socket_factory=self._socket,
        )

    def _socket(self, info: AddrInfo) -> socket.socket:
        family, kind, protocol, _, dialled = info
        address = str(dialled[0])
        if reason := refusal(address, self._egress):
            raise EgressRefused(f"{reason} ({address})")
        return socket.socket(family, kind, protocol)

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        """A kept connection over which nothing has come since its last answer: what has would be taken for the next
        one, or is the target's farewell."""
        while (kept := await super()._get(key, traces)) is not None and has_unread(kept.transport):
            kept.close()
        return kept

    async def close(self, *, abort_ssl: bool = False) -> None:
        await super().close(abort_ssl=abort_ssl)
        await self._guarded_resolver.close()


def has_unread(transport: asyncio.Transport | None) -> bool:
    """Whether something has arrived that the loop has not taken up yet."""
    number = -1 if transport is None else descriptor(transport)
    return number < 0 or bool(unread((number,)))


def descriptor(transport: asyncio.Transport) -> int:
    """The file descriptor of a connection, -1 where it has none any more."""
    one = transport.get_extra_info("socket")
    return -1 if one is None else int(one.fileno())


def unread(descriptors: Iterable[int]) -> set[int]:
    """Over which of these sockets something has arrived that nobody has read: one call of the system for all."""
    poll = select.poll()
    for one in descriptors:
        poll.register(one, select.POLLIN)
    return {one for one, _ in poll.poll(0)}


def own_resolver() -> AbstractResolver:
    """A DNS client that shares nothing with any other. Raises OSError where none is to be had."""
    try:
        return aiohttp.AsyncResolver(timeout=DNS_TIMEOUT, tries=DNS_TRIES)
    except (AresError, RuntimeError) as error:
        raise OSError(errno.ENOMEM, "no resolver is to be had") from error


def guarded_connector(
    egress: EgressPolicy,
    *,
    limit: int,
    keepalive: float = KEEPALIVE_S,
    ssl: bool | ssl.SSLContext = True,
    resolver: Callable[[], AbstractResolver] = own_resolver,
) -> aiohttp.TCPConnector:
    """A connector for one target that dials nothing the policy forbids; to be made while an event loop runs.

    In: at most `limit` connections, idle ones kept `keepalive` seconds; `resolver` makes what asks DNS.
    Its DNS channel and cache are its own, so that a name server that hangs for one target costs the others nothing.
    A forbidden address surfaces as aiohttp's `ClientConnectorError`; `refused_by_egress` tells it from a failure.
    """
    return _GuardedConnector(
        egress,
        limit=limit,
        keepalive=keepalive,
        ssl_context=ssl,
        resolver=resolver,
    )


def refused_by_egress(error: BaseException) -> str | None:
    """The egress guard's reason when it is behind `error` (its causes and contexts are searched), else None."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        if isinstance(link, EgressRefused):
            return link.reason
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)
        waiting.extend((link.__context__, link.__cause__))
    return None
