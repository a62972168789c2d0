"""Whose request it is: the peer, or what a trusted proxy says."""

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import SECRET, Gateway, Start, request, wired

KEY = {"X-Key": SECRET.decode()}
BEHIND = {"trusted_proxies": ["127.0.0.1", "10.9.0.0/16"]}


async def relay_for(start: Start, *networks: str, **server: object) -> Gateway:
    return await start({"key": SOURCES["key"] | {"allow_ips": list(networks)}}, server=server)


async def post(relay: Gateway, *forwarded: str, headers: dict[str, str] = KEY) -> int:
    pairs = [*headers.items(), *(("X-Forwarded-For", line) for line in forwarded)]
    return (await relay.post("/hooks/key", b"{}", pairs)).status


@pytest.mark.row("H17")
async def test_address_and_key_are_both_needed(start: Start) -> None:
    """The address is looked at first: a stranger's key is not even compared."""
    relay = await relay_for(start, "10.0.0.0/8")
    answer = await relay.post("/hooks/key", b"{}", KEY)
    line = await relay.turned_away(answer, 403, "ip_not_allowed", source="key")
    assert "127.0.0.1" in line["detail"]


@pytest.mark.row("C29")
async def test_a_forgotten_proxy_is_named(start: Start) -> None:
    """A client from a private network, where no provider is, is told to be a proxy as long as none is configured."""
    relay = await relay_for(start, "52.76.120.90/32")
    line = await relay.turned_away(await relay.post("/hooks/key", b"{}", KEY), 403, "ip_not_allowed", source="key")
    assert line["detail"].endswith("looks like a proxy of yours: name its network in server.trusted_proxies")


@pytest.mark.row("C29")
async def test_a_client_behind_a_named_proxy_is_only_named(start: Start) -> None:
    """Where the proxies are known, a private client is just a client."""
    relay = await relay_for(start, "52.76.120.90/32", **BEHIND)
    answer = await relay.post("/hooks/key", b"{}", [*KEY.items(), ("X-Forwarded-For", "10.1.2.3")])
    line = await relay.turned_away(answer, 403, "ip_not_allowed", source="key")
    assert line["detail"] == "client 10.1.2.3"


@pytest.mark.row("H17")
async def test_the_right_address_alone_proves_nothing(start: Start) -> None:
    """An address is an additional check."""
    relay = await relay_for(start, "127.0.0.0/8")
    assert await post(relay, headers={"X-Key": "nobody-knows-this-one"}) == 401
    assert await post(relay) == 200


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "True-Client-IP", "Forwarded", "CF-Connecting-IP"])
@pytest.mark.row("H18", "H20", "T10")
async def test_what_a_client_says_of_itself_is_not_believed(start: Start, name: str) -> None:
    """No proxy is trusted unless the YAML names it, and then its `X-Forwarded-For` alone is read."""
    relay = await relay_for(start, "10.0.0.0/8")
    assert await post(relay, headers=KEY | {name: "10.0.0.1", "Forwarded": 'for="[2001:db8::1]";by=_x'}) == 403


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(["192.0.2.7"], 200, id="client"),
        pytest.param(["192.0.2.7:4711"], 200, id="port"),
        pytest.param(["::ffff:192.0.2.7"], 200, id="mapped"),
        pytest.param(["[2001:db8::7]:443"], 200, id="v6 and port"),
        pytest.param(["fe80::7%eth0"], 403, id="zone"),
        pytest.param(["192.0.2.7, 10.9.1.1"], 200, id="over trusted ones"),
        pytest.param(["192.0.2.7", "10.9.1.1,10.9.1.2"], 200, id="lines are joined"),
        pytest.param(["192.0.2.7, 203.0.113.9"], 403, id="the leftmost is a claim"),
        pytest.param(["203.0.113.9"], 403, id="other"),
        pytest.param(["192.0.2.7, unknown"], 403, id="unknown"),
        pytest.param(["_hidden"], 403, id="hidden"),
        pytest.param(["192.0.2.7, \xff\xfe"], 403, id="no text"),
        pytest.param([], 403, id="the proxy itself"),
        pytest.param(["10.9.1.1"], 403, id="all trusted"),
        pytest.param(["192.0.2.7" + ", 10.9.1.1" * 49], 200, id="50 hops"),
        pytest.param(["192.0.2.7" + ", 10.9.1.1" * 50], 400, id="51 hops"),
        pytest.param([","] * 60, 400, id="empty hops"),
    ],
)
@pytest.mark.row("T10", "T11", "H21")
async def test_the_rightmost_untrusted_address_is_the_client(start: Start, lines: list[str], status: int) -> None:
    """What cannot be read there fails closed."""
    relay = await relay_for(start, "192.0.2.0/24", "2001:db8::/32", **BEHIND)
    assert await post(relay, *lines) == status
    assert relay.counted("key") == {"accepted" if status == 200 else "refused": 1}


@pytest.mark.row("T10")
async def test_the_log_names_the_client_and_not_the_proxy(start: Start) -> None:
    """Also of what is refused; the answer to 403 tells nobody which addresses are good."""
    relay = await relay_for(start, "192.0.2.0/24", **BEHIND)
    assert await post(relay, "192.0.2.7") == 200
    assert await post(relay, "192.0.2.8", headers={}) == 401
    assert await post(relay, "203.0.113.9") == 403
    assert await post(relay, "nonsense") == 403
    assert (await relay.told("event.accepted"))["remote"] == "192.0.2.7"
    assert [line["remote"] for line in await relay.log("request.refused")] == ["192.0.2.8", "203.0.113.9", "127.0.0.1"]


@pytest.mark.row("H21", "T11")
async def test_an_ipv4_client_of_a_listener_on_all_of_ipv6_is_the_ipv4_client(start: Start) -> None:
    """`[::]` takes both kinds, and a v4-mapped peer is seen as IPv4."""
    relay = await relay_for(start, "127.0.0.0/8", listen="[::]:0")
    port = relay.hooks[1]
    for host, status in (("127.0.0.1", 200), ("::1", 403)):
        async with wired((host, port)) as wire:
            await wire.send(request("/hooks/key", b"{}", KEY))
            assert (await wire.answer()).status == status
