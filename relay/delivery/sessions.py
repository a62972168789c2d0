"""Where every client session is made, so that nothing leaves but through the egress guard.

Law: no redirect, cookie or proxy variable is followed by what is made here, and certificates are checked unless the
YAML says otherwise. A TLS context is made once for a session, never for a request.
"""

import asyncio
import ssl
from functools import partial
from typing import Any

import aiohttp
from yarl import URL

from relay.delivery.egress import guarded_connector
from relay.delivery.hearing import TunnelledHandler, WatchedHandler
from relay.model import ClientTls, Headers, Proxy
from relay.rules.egress import EgressPolicy
from relay.rules.signing import basic_credentials

_NO_AUTO_HEADERS = frozenset({"Content-Type", "User-Agent", "Accept", "Accept-Encoding"})


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
        handler = TunnelledHandler if only_through_tls else WatchedHandler
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
