"""The egress guard: no spelling of a forbidden address is dialled, and a refusal can be told from a failure."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.egress import EgressRefused, guarded_connector, refused_by_egress
from relay.rules.egress import METADATA_HOSTS, EgressPolicy, refusal

PRIVATE = EgressPolicy()
PUBLIC = EgressPolicy(policy="public")

NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::a9fe:a9fe%eth0",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:5601:5601",
    "2001:db8::5efe:169.254.169.254",
    "fe80::200:5efe:169.254.169.254",
    "::5efe:169.254.169.254",
]
CLOSED = [
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::2",
    "::7f00:1",
    "::ffff:0:7f00:1",
    "::5efe:7f00:1",
    "::ffff:0.0.0.0",
    "64:ff9b::224.0.0.1",
    "2002:e000:1::",
    "fe80::1",
    "ff02::1",
    "ff0e::1",
]
PRIVATE_ONLY = [
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "::ffff:127.0.0.1",
    "10.0.0.5",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "fd12:3456::1",
    "fec0::1",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "2002:808:808::",
    "2001:0:808:808::f7f7:f7f7",
    "2001:2::1",
    "2001:20::1",
    "2001:db8::1",
    "2620:0:2d0:200::5efe:8.8.8.8",
    "3fff::1",
    "5f00::1",
    "100::1",
    "4000::1",
]
OPEN = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]
GARBAGE = [
    "",
    "localhost",
    "127.1",
    "0x7f.1",
    "2130706433",
    "①②⑦.⓪.⓪.①",
    "127.0.0.1.",
    "[::1]",
    "1.2.3.4:80",
    "010.0.0.1",
]


@pytest.mark.row("T40", "B10", "B54")
@pytest.mark.parametrize("address", NEVER)
def test_metadata_is_closed_in_every_spelling_whatever_allow_says(address: str) -> None:
    """No policy and no `allow` opens a metadata address."""
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    for policy in ("private", "public"):
        assert refusal(address, EgressPolicy(policy=policy, allow=everything)) is not None


@pytest.mark.row("T40", "B10", "B54")
@pytest.mark.parametrize("address", CLOSED)
def test_closed_addresses_are_refused_under_both_policies(address: str) -> None:
    """Unspecified, multicast, reserved and link-local addresses are dialled under neither policy."""
    assert refusal(address, PRIVATE) is not None
    assert refusal(address, PUBLIC) is not None


@pytest.mark.row("T40", "B10", "B54")
@pytest.mark.parametrize("address", PRIVATE_ONLY)
def test_what_is_not_public_is_open_under_private_alone(address: str) -> None:
    """Policy `public` closes every address that is not globally routable."""
    assert refusal(address, PRIVATE) is None
    assert refusal(address, PUBLIC) is not None


@pytest.mark.row("B10")
@pytest.mark.parametrize("address", OPEN)
def test_public_addresses_are_open_under_both_policies(address: str) -> None:
    """A public address is dialled, also through a NAT64 gateway."""
    assert refusal(address, PRIVATE) is None
    assert refusal(address, PUBLIC) is None


@pytest.mark.row("T43")
@pytest.mark.parametrize("address", GARBAGE)
def test_what_is_no_canonical_address_is_refused(address: str) -> None:
    """The verdict is total: what cannot be parsed is not dialled."""
    assert refusal(address, PRIVATE) == "not an IP address"


def test_reasons_name_the_range() -> None:
    """A refusal says which kind of address it was."""
    assert refusal("169.254.169.254", PRIVATE) == "cloud metadata address"
    assert refusal("169.254.1.1", PRIVATE) == "link-local address"
    assert refusal("fe80::1", PRIVATE) == "link-local address"
    assert refusal("10.0.0.5", PUBLIC) == "private address"


def test_allow_opens_and_deny_wins() -> None:
    """`allow` opens what the policy closes, in the mapped spelling too; `deny` closes it again."""
    ten = ipaddress.ip_network("10.0.0.0/8")
    link_local = ipaddress.ip_network("fe80::/10")
    opened = EgressPolicy(policy="public", allow=(ten, link_local))
    assert refusal("10.0.0.5", opened) is None
    assert refusal("::ffff:10.0.0.5", opened) is None
    assert refusal("fe80::1%eth0", opened) is None
    assert refusal("192.168.0.1", opened) == "private address"
    closed = EgressPolicy(allow=(ten,), deny=(ten,))
    assert refusal("10.0.0.5", closed) == "closed by egress.deny"
    assert refusal("64:ff9b::10.0.0.5", closed) == "closed by egress.deny"


def spellings(v4: ipaddress.IPv4Address) -> list[str]:
    """Every IPv6 spelling of an IPv4 address that the guard knows."""
    number = int(v4)
    octets = v4.packed
    local = bytes.fromhex("0064ff9b0001")
    at_48 = local + octets[:2] + b"\0" + octets[2:] + bytes(5)
    at_56 = local + b"\0" + octets[:1] + b"\0" + octets[1:] + bytes(4)
    at_64 = local + bytes(2) + b"\0" + octets + bytes(3)
    raw = [at_48, at_56, at_64, local + bytes(6) + octets]
    return [
        *(str(ipaddress.IPv6Address(packed)) for packed in raw),
        f"::ffff:{v4}",
        f"::{v4}" if number > 1 else "::",
        f"::ffff:0:{v4}",
        f"64:ff9b::{v4}",
        str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)),
        str(ipaddress.IPv6Address((0x20010000 << 96) | (number << 64))),
        str(ipaddress.IPv6Address((0x20010000 << 96) | (0x01010101 << 64) | (number ^ 0xFFFFFFFF))),
        f"2a00:1450:4001:80b::5efe:{v4}",
        f"2a00:1450:4001:80b:200:5efe:{v4}",
    ]


FORBIDDEN = [
    "169.254.0.0/16",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "10.0.0.0/8",
    "127.0.0.0/8",
    "192.168.0.0/16",
    "172.16.0.0/12",
    "100.64.0.0/10",
]


@pytest.mark.row("T40", "B54")
@given(
    network=st.sampled_from([ipaddress.IPv4Network(text) for text in FORBIDDEN]),
    place=st.integers(min_value=0, max_value=2**32 - 1),
)
def test_every_spelling_of_a_forbidden_address_is_forbidden(network: ipaddress.IPv4Network, place: int) -> None:
    """What is closed as IPv4 is closed in each IPv6 spelling: all of it under `public`, metadata always."""
    v4 = network[place % network.num_addresses]
    assert refusal(str(v4), PUBLIC) is not None
    for spelling in spellings(v4):
        assert refusal(spelling, PUBLIC) is not None, spelling
    if v4 in ipaddress.IPv4Network("169.254.0.0/16"):
        for spelling in spellings(v4):
            assert refusal(spelling, PRIVATE) is not None, spelling


@given(st.text())
def test_the_verdict_is_total(text: str) -> None:
    """Any text gets a verdict, never an exception."""
    refusal(text, PRIVATE)
    refusal(text, PUBLIC)


class Answers(AbstractResolver):
    """A name server with one fixed answer."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.addresses
        ]

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A real HTTP server on a loopback port."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="here")

    runner = web.AppRunner(app := web.Application())
    app.router.add_get("/", answer)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def fetch(url: str, egress: EgressPolicy, *addresses: str) -> str:
    """The body at `url`, asked for through a guarded connector; names resolve to `addresses`."""
    resolver = Answers(*addresses)
    connector = guarded_connector(egress, limit=2, resolver=lambda: resolver)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(url) as response,
        ):
            return await response.text()
    finally:
        assert resolver.closed


async def refused(url: str, egress: EgressPolicy, *addresses: str) -> str | None:
    """The guard's reason for not fetching `url`."""
    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        await fetch(url, egress, *addresses)
    return refused_by_egress(caught.value)


async def test_an_allowed_host_is_reached_over_a_real_socket(port: int) -> None:
    """The guard lets through what the policy opens, by literal and by name."""
    assert await fetch(f"http://127.0.0.1:{port}/", PRIVATE) == "here"
    assert await fetch(f"http://crm.example:{port}/", PRIVATE, "127.0.0.1") == "here"


@pytest.mark.row("T40")
async def test_a_literal_is_judged_although_no_resolver_is_asked(port: int) -> None:
    """aiohttp never resolves a literal, so the socket itself is guarded."""
    assert await refused(f"http://127.0.0.1:{port}/", PUBLIC) == "loopback address (127.0.0.1)"
    mapped = ipaddress.ip_address("::ffff:127.0.0.1")  # its spelling changed with Python 3.13
    assert await refused(f"http://[{mapped}]:{port}/", PUBLIC) == f"loopback address ({mapped})"
    assert await refused("http://169.254.169.254/", PRIVATE) == "cloud metadata address (169.254.169.254)"


@pytest.mark.row("T41", "T43")
async def test_a_name_is_judged_by_the_address_that_is_dialled(port: int) -> None:
    """A harmless name that resolves to a forbidden address is refused before a byte is sent."""
    assert await refused(f"http://crm.example:{port}/", PUBLIC, "127.0.0.1") == "loopback address (127.0.0.1)"
    assert await refused(f"http://0x7f.1:{port}/", PUBLIC, "127.0.0.1") == "loopback address (127.0.0.1)"
    assert await refused("http://crm.example/", PRIVATE, "fd00:ec2::254") == "cloud metadata address (fd00:ec2::254)"


@pytest.mark.row("T42")
async def test_one_forbidden_answer_refuses_the_name_under_public() -> None:
    """A mixed answer is refused whole, so that no race between addresses decides."""
    reason = await refused("http://crm.example/", PUBLIC, "8.8.8.8", "10.0.0.5")
    assert reason == "private address (10.0.0.5)"


@pytest.mark.row("T42")
async def test_a_mixed_answer_is_dialled_where_allowed_under_private(port: int) -> None:
    """Under `private` the forbidden answers are left out and the others are dialled."""
    assert await fetch(f"http://crm.example:{port}/", PRIVATE, "169.254.169.254", "127.0.0.1") == "here"


@pytest.mark.row("T40")
@pytest.mark.parametrize("host", sorted(METADATA_HOSTS))
async def test_metadata_names_are_refused_whatever_they_resolve_to(host: str) -> None:
    """A name of a metadata service is refused before DNS is asked."""
    assert await refused(f"http://{host.upper()}./", PRIVATE, "127.0.0.1") == "cloud metadata host"


async def test_a_closed_port_is_no_egress_refusal() -> None:
    """A connect failure is told from a refusal by the policy."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        free = unused.getsockname()[1]
        assert await refused(f"http://127.0.0.1:{free}/", PRIVATE) is None


async def test_a_refusal_is_found_deep_in_a_chain() -> None:
    """Causes, contexts and groups are searched, cycles included."""
    refused_error = EgressRefused("private address (10.0.0.5)")
    middle = ExceptionGroup("all failed", [ValueError("other"), refused_error])
    outer = RuntimeError("outer")
    outer.__cause__ = middle
    middle.__context__ = outer
    assert refused_by_egress(outer) == "private address (10.0.0.5)"
    assert refused_by_egress(ValueError("nothing")) is None


async def test_each_connector_has_a_dns_channel_of_its_own() -> None:
    """Without a resolver handed in, a dedicated DNS client is made, used and closed with the connector."""
    for name, expected in (("localhost", None), ("nowhere.invalid", None)):
        connector = guarded_connector(PRIVATE, limit=1)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session:
            with pytest.raises((aiohttp.ClientConnectorError, asyncio.TimeoutError)) as caught:
                await session.get(f"http://{name}:1/")
            assert refused_by_egress(caught.value) == expected
        assert connector.closed


async def test_localhost_is_refused_under_public() -> None:
    """The real resolver's loopback answer is judged like any other."""
    connector = guarded_connector(PUBLIC, limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get("http://localhost:1/")
    assert (refused_by_egress(caught.value) or "").startswith("loopback address")
