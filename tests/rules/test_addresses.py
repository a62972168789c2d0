"""Whose request it is: forwarded addresses are believed from the right, and only from a trusted peer."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.rules.addresses import AddressRefusal, allowed, client_address

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.row("T10", "H18")
def test_a_forwarded_address_from_an_untrusted_peer_is_ignored() -> None:
    """A stranger's X-Forwarded-For changes nothing: the peer is the client."""
    assert client_address("203.0.113.9", ["10.0.0.1"], TRUSTED) == "203.0.113.9"
    assert client_address("203.0.113.9", ["10.0.0.1"], ()) == "203.0.113.9"


@pytest.mark.row("T10")
def test_the_rightmost_address_that_is_no_trusted_proxy_is_the_client() -> None:
    """What the client wrote itself stands further left and is not read; all lines count as one."""
    assert client_address("10.0.0.1", ["10.9.9.9, junk, 198.51.100.7"], TRUSTED) == "198.51.100.7"
    assert client_address("10.0.0.1", ["1.1.1.1", "198.51.100.7, 10.2.2.2"], TRUSTED) == "198.51.100.7"
    assert client_address("fd00::1", ["198.51.100.7,,fd00::2, "], TRUSTED) == "198.51.100.7"


def test_a_chain_of_nothing_but_trusted_proxies_ends_at_its_left() -> None:
    """When every hop is trusted the one furthest away is the client; without hops it is the peer."""
    assert client_address("10.0.0.1", ["10.3.3.3, 10.2.2.2"], TRUSTED) == "10.3.3.3"
    assert client_address("10.0.0.1", [" , "], TRUSTED) == "10.0.0.1"
    assert client_address("10.0.0.1", [], TRUSTED) == "10.0.0.1"


@pytest.mark.row("T10", "T11")
@pytest.mark.parametrize(
    "hop", ["unknown", "_hidden", "1.2.3", "300.1.1.1", "1.2.3.4:x", "[1.2.3.4]", "[::1", "٣.1.1.1", "x" * 500]
)
def test_a_hop_that_cannot_be_read_fails_closed(hop: str) -> None:
    """An unreadable hop is refused where the walk reaches it."""
    assert client_address("10.0.0.1", [f"198.51.100.7, {hop}"], TRUSTED) == AddressRefusal("bad_forwarded_for", 403)


def test_more_than_fifty_hops_are_malformed() -> None:
    """Fifty are read, one more is a 400."""
    assert client_address("10.0.0.1", [",".join(["10.1.1.1"] * 50)], TRUSTED) == "10.1.1.1"
    too_many = AddressRefusal("too_many_hops", 400)
    assert client_address("10.0.0.1", [",".join(["10.1.1.1"] * 51)], TRUSTED) == too_many
    assert client_address("10.0.0.1", ["10.1.1.1"] * 51, TRUSTED) == too_many


@pytest.mark.row("T11")
@pytest.mark.parametrize("peer", [None, "", "unix:", "@"])
def test_a_peer_without_an_address_fails_closed(peer: str | None) -> None:
    """A closed or local socket has no address, and no list allows it."""
    assert client_address(peer, ["198.51.100.7"], TRUSTED) == AddressRefusal("ip_unknown", 403)
    assert not allowed(peer or "", [ip_network("0.0.0.0/0"), ip_network("::/0")])


@pytest.mark.row("T11", "H21")
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("10.0.0.1:5555", "10.0.0.1"),
        ("[::ffff:10.0.0.1]:443", "10.0.0.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        (" 10.0.0.1 ", "10.0.0.1"),
    ],
)
def test_one_address_has_one_form_however_it_is_written(written: str, meant: str) -> None:
    """Mapped, bracketed, zoned and ported spellings are the address they mean."""
    assert client_address(written, [], ()) == meant
    assert allowed(written, [ip_network(meant)])


@pytest.mark.row("H21")
def test_a_network_in_mapped_form_means_its_addresses() -> None:
    """::ffff:10.0.0.0/104 is 10.0.0.0/8, while ::/0 stays IPv6."""
    assert allowed("10.1.2.3", [ip_network("::ffff:10.0.0.0/104")])
    assert not allowed("11.1.2.3", [ip_network("::ffff:10.0.0.0/104")])
    assert not allowed("10.1.2.3", [ip_network("::/0")])
    assert not allowed("2001:db8::1", [ip_network("0.0.0.0/0")])
    assert not allowed("10.1.2.3", [])


@pytest.mark.row("H20")
def test_a_forwarded_header_of_the_newer_kind_is_no_address() -> None:
    """RFC 7239 syntax is not read, also not in the place of the older header."""
    assert client_address("10.0.0.1", ['for="[2001:db8::1]"'], TRUSTED) == AddressRefusal("bad_forwarded_for", 403)


@given(peer=st.none() | st.text(), lines=st.lists(st.text(max_size=80), max_size=4))
def test_whatever_is_forwarded_becomes_an_address_or_a_refusal(peer: str | None, lines: list[str]) -> None:
    """The walk is total."""
    everyone = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    for result in (client_address(peer, lines, everyone), client_address("10.0.0.1", lines, everyone)):
        assert isinstance(result, AddressRefusal) or allowed(result, everyone)


V4 = st.ip_addresses(v=4).map(str) | st.sampled_from(["10.0.0.1", "10.9.9.9", "198.51.100.7"])
V6 = st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None).map(str)  # type: ignore[union-attr]
WRITTEN = st.one_of(
    V4.map(lambda text: (text, text)),
    V4.map(lambda text: (text, f"{text}:4711")),
    V4.map(lambda text: (text, f"::ffff:{text}")),
    V4.map(lambda text: (text, f" [::FFFF:{text}]:443 ")),
    V6.map(lambda text: (text, text.upper())),
    V6.map(lambda text: (text, f"[{text}]:1")),
    V6.map(lambda text: (text, f"\t{text}%eth0")),
    st.just(("10.0.0.1", "10.0.0.1")),
)


@pytest.mark.row("T10", "T11", "H18", "H21")
@settings(deadline=None)
@given(hops=st.lists(WRITTEN, max_size=8), peer=WRITTEN, lines=st.integers(1, 3), forged=st.lists(st.text(max_size=9)))
def test_the_client_is_who_a_plain_reading_says(
    hops: list[tuple[str, str]], peer: tuple[str, str], lines: int, forged: list[str]
) -> None:
    """However addresses are written and spread over lines, and whatever the client wrote itself before them: the walk
    goes from the peer to the left as long as it meets trusted proxies, and never beyond the first stranger."""
    walk = [ip_address(text) for text, _ in [*hops, peer]]
    trusted = [any(one in network for network in TRUSTED if network.version == one.version) for one in walk]
    wanted = next((one for one, is_ours in zip(reversed(walk), reversed(trusted), strict=True) if not is_ours), walk[0])
    written = [text for _, text in hops]
    size = len(written) // lines + 1
    headers = [",".join(written[start : start + size]) for start in range(0, len(written), size)]
    assert client_address(peer[1], headers, TRUSTED) == str(wanted)
    if not all(trusted):
        before = [text.replace(",", "") for text in forged]
        assert client_address(peer[1], [",".join(before), *headers], TRUSTED) == str(wanted)
