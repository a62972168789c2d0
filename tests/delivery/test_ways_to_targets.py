"""The way to a target over real sockets: a private authority, a client certificate, a proxy."""

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.delivery.sender import Sender
from relay.delivery.sessions import client_context
from relay.delivery.tokens import Tokens
from relay.model import Claim, ClientTls, Event, Outcome, OutcomeKind, Proxy, Secret, Target
from relay.rules.egress import EgressPolicy
from tests.support.certificates import Authority
from tests.support.proxy import proxying
from tests.support.scripted_target import closed_port, scripted, status
from tests.support.token_endpoint import token_endpoint

NOW = datetime(2031, 1, 1, tzinfo=UTC)
OK = status(200)
PASSWORD = "canary-proxy-password"

Send = Callable[..., Any]


@pytest.fixture
async def senders() -> AsyncIterator[Callable[..., Sender]]:
    """Builds senders that are closed in the end."""
    made: list[Sender] = []

    def make(url: str, egress: EgressPolicy | None = None, **settings: Any) -> Sender:
        target = Target("crm", url, timeout=timedelta(seconds=5), **settings)
        one = Sender(target, egress or EgressPolicy(), key_headers={}, user_agent="relay/test", now=lambda: NOW)
        made.append(one)
        return one

    yield make
    for sender in made:
        await sender.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def outcome(sender: Sender) -> Outcome:
    """What one request comes to."""
    event = Event("evt_1", "shop", "order.paid", NOW, (), b"{}")
    claim = Claim(event, "crm", attempt=1, step=0, token=1, lease_until=NOW + timedelta(minutes=1))
    return (await sender.send(claim, b"{}")).outcome


def tls(authority: Authority, **other: Any) -> ClientTls:
    return ClientTls(**({"ca": str(authority.ca)} | other))


# --- TLS ---


async def test_a_private_authority_is_trusted_where_it_is_named(senders: Send, authority: Authority) -> None:
    """And nowhere else; the same connection serves the next request."""
    async with scripted(OK, tls=authority.server()) as server:
        assert (await outcome(senders(server.url))).reason.startswith("TLS: ")
        trusting = senders(server.url, tls=tls(authority))
        for _ in range(2):
            assert (await outcome(trusting)).kind is OutcomeKind.DELIVERED
        assert len({request.connection for request in server.received}) == 1


async def test_another_authority_than_the_named_one_is_not_trusted(
    senders: Send, authority: Authority, tmp_path: Path
) -> None:
    """The system's authorities are no longer believed either."""
    other = Authority(tmp_path, "other")
    async with scripted(OK, tls=other.server()) as server:
        found = await outcome(senders(server.url, tls=tls(authority)))
        assert found.kind is OutcomeKind.UNREACHABLE
        assert found.reason.startswith("TLS: ")
        assert server.received == []


@pytest.mark.row("T48")
async def test_a_client_certificate_is_shown_to_who_asks(senders: Send, authority: Authority) -> None:
    """Without it such a target takes nothing."""
    cert, key = authority.issue("client")
    async with scripted(OK, tls=authority.server(clients=authority.ca)) as server:
        assert (await outcome(senders(server.url, tls=tls(authority)))).kind is OutcomeKind.UNREACHABLE
        assert server.received == []
        shown = tls(authority, cert=str(cert), key=str(key))
        assert (await outcome(senders(server.url, tls=shown))).kind is OutcomeKind.DELIVERED


@pytest.mark.row("T47")
async def test_certificates_are_checked_unless_the_yaml_says_otherwise(senders: Send, authority: Authority) -> None:
    """Only `insecure: true` of this one target believes whoever answers."""
    async with scripted(OK, tls=authority.server()) as server:
        assert (await outcome(senders(server.url))).kind is OutcomeKind.UNREACHABLE
        assert (await outcome(senders(server.url, tls=ClientTls(insecure=True)))).kind is OutcomeKind.DELIVERED


@pytest.mark.row("T47", "B6")
async def test_a_context_is_made_once_for_a_target_and_speaks_no_old_tls(senders: Send, authority: Authority) -> None:
    """TLS 1.2 at least, and no context for each attempt."""
    assert client_context(ClientTls()).minimum_version is ssl.TLSVersion.TLSv1_2
    async with scripted(OK, tls=authority.server()) as server:
        sender = senders(server.url, tls=tls(authority))
        context = sender._session.connector._ssl
        await outcome(sender)
        server.hang_up()
        await outcome(sender)
        assert isinstance(context, ssl.SSLContext)
        assert sender._session.connector._ssl is context


# --- a proxy ---


@pytest.mark.row("T45")
@pytest.mark.parametrize("is_secure", [True, False], ids=["https", "http"])
async def test_a_target_is_reached_through_its_proxy(senders: Send, authority: Authority, *, is_secure: bool) -> None:
    """By a tunnel for https, by the whole address for http; the proxy alone sees its credentials, in each request."""
    proof = b"Basic " + b64encode(f"me:{PASSWORD}".encode())
    async with (
        scripted(OK, tls=authority.server() if is_secure else None) as server,
        proxying(credentials=("me", PASSWORD)) as proxy,
    ):
        settings = {"tls": tls(authority)} if is_secure else {}
        sender = senders(server.url, proxy=Proxy(proxy.url, "me", Secret(PASSWORD.encode())), **settings)
        for _ in range(2):
            assert (await outcome(sender)).kind is OutcomeKind.DELIVERED
        assert len(server.received) == 2
        assert [request.all("proxy-authorization") for request in server.received] == [[], []]
        assert all(proof in head for head in proxy.asked)
        first_words = proxy.asked[0].split(b" ")[:2]
        wanted = f"127.0.0.1:{server.port}" if is_secure else server.url
        assert first_words == [b"CONNECT" if is_secure else b"POST", wanted.encode()]
        if is_secure:
            assert len(proxy.asked) == 1, "the tunnel is used again"
            assert b"relay-event-id" not in proxy.asked[0]


FAULTS = {
    "wrong credentials": (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "proxy: status 407, it wants other cred"),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "malformed answer"),
    "nothing": (b"", "connection closed without an answer"),
}


@pytest.mark.row("T45")
@pytest.mark.parametrize(("answer", "reason"), FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_what_a_proxy_does_instead_is_told(senders: Send, scheme: str, answer: bytes, reason: str) -> None:
    """Unreachable, with what is wrong; without the password, and without the target's address."""
    async with proxying(refusal=answer) as proxy:
        url = f"{scheme}://127.0.0.1:{closed_port()}/hooks"
        found = await outcome(senders(url, proxy=Proxy(proxy.url, "me", Secret(PASSWORD.encode()))))
        assert found.kind is OutcomeKind.UNREACHABLE
        assert found.reason.startswith(reason)
        assert PASSWORD not in found.reason


async def test_a_proxy_that_opens_no_way_is_told(senders: Send) -> None:
    """Its status is its own, not the target's."""
    async with proxying(refusal=b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as proxy:
        found = await outcome(senders("https://127.0.0.1:1/hooks", proxy=Proxy(proxy.url)))
        assert (found.kind, found.status) == (OutcomeKind.UNREACHABLE, None)
        assert found.reason == "proxy: status 502, it opens no way to the target"


@pytest.mark.parametrize("behind", [b"", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_tunnel_that_leads_nowhere_is_no_delivery(senders: Send, behind: bytes) -> None:
    """The proxy's own 200 says that it has opened a way; the event has been taken by nobody."""
    async with proxying(refusal=b"HTTP/1.1 200 Connection established\r\n\r\n" + behind) as proxy:
        found = await outcome(senders("https://127.0.0.1:1/hooks", proxy=Proxy(proxy.url)))
        assert (found.kind, found.status) == (OutcomeKind.UNREACHABLE, None)


async def test_a_proxy_that_is_down_is_told(senders: Send) -> None:
    """So that nobody looks for the fault at the target."""
    for scheme in ("https", "http"):
        found = await outcome(senders(f"{scheme}://crm.example/", proxy=Proxy(f"http://127.0.0.1:{closed_port()}")))
        assert found == Outcome(OutcomeKind.UNREACHABLE, reason="proxy: connect: Connection refused")


async def test_a_proxy_is_guarded_by_egress(senders: Send) -> None:
    """Its address is what is dialled."""
    async with proxying() as proxy:
        sender = senders("http://crm.example/", EgressPolicy(policy="public"), proxy=Proxy(proxy.url))
        assert (await outcome(sender)).reason.startswith("proxy: egress policy forbids it: loopback address")
        assert proxy.asked == []


@pytest.mark.row("T45", "B36")
async def test_no_proxy_variable_is_read(senders: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the YAML names a proxy; and what the YAML names no variable takes away."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost,*")
    async with scripted(OK) as server, proxying() as proxy:
        assert (await outcome(senders(server.url))).kind is OutcomeKind.DELIVERED
        assert proxy.asked == []
        assert (await outcome(senders(server.url, proxy=Proxy(proxy.url)))).kind is OutcomeKind.DELIVERED
        assert len(proxy.asked) == 1


async def test_a_token_is_fetched_through_the_targets_proxy() -> None:
    """Where a proxy is the only way out, the token endpoint is out there as well."""
    tokens = Tokens(EgressPolicy, user_agent="relay/test")
    async with token_endpoint() as endpoint, proxying(credentials=("me", PASSWORD)) as proxy:
        # the small proxy forwards heads alone, so that no body comes back: what counts is the way that was taken
        endpoint.answer = lambda _: status(503)
        with pytest.raises(Exception, match="the token endpoint answered 503"):
            await tokens.get(endpoint.client(), Proxy(proxy.url, "me", Secret(PASSWORD.encode())))
        assert len(proxy.asked) == len(endpoint.requests) == 3
        assert all(request.all("proxy-authorization") == [] for request in endpoint.requests)
    await tokens.close()
