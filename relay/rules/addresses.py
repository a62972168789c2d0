"""Whose request this is, and whether that address may post.

Law: what a client says of itself is never believed. `X-Forwarded-For` counts only from a trusted peer, is read from
the right, and stops at the first address that is not a trusted proxy; what cannot be read there fails closed.
`Forwarded`, `X-Real-IP` and their kin are never read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from relay.model import IPNetwork

MOST_HOPS = 50
"""Addresses in `X-Forwarded-For`, all lines together."""

_LONGEST = 100
"""Characters of an address with brackets, zone and port; RFC 4291 needs 45 for the address."""

_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?")
_V4_AND_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")
_MAPPED = b"\x00" * 10 + b"\xff\xff"
_MAPPED_PREFIX = 96

_Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class AddressRefusal:
    """Why no client address is known.

    `reason` is `ip_unknown` (the peer has none), `bad_forwarded_for` or `too_many_hops`; `status` is the answer's.
    """

    reason: str
    status: int


@lru_cache(maxsize=4096)
def _parsed(text: str) -> _Address | None:
    """An address in whatever form it came: port, brackets and zone taken off, v4-mapped seen as IPv4."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if (found := _BRACKETED.fullmatch(text)) is not None:
        text = found[1]
        if ":" not in text:
            return None
    elif (found := _V4_AND_PORT.fullmatch(text)) is not None:
        text = found[1]
    try:
        address = ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=4096)
def _written(text: str) -> str:
    """An address that can be read, in its canonical form."""
    return str(_parsed(text))


def _within(address: _Address, network: IPNetwork) -> bool:
    if address.version == network.version:
        return address in network
    # An IPv4 network may be written in its v4-mapped form; ::/0 and the like still mean IPv6 alone.
    is_mapped = network.version == 6 and network.prefixlen >= _MAPPED_PREFIX
    return is_mapped and IPv6Address(_MAPPED + address.packed) in network


def _in_any(address: _Address, networks: Sequence[IPNetwork]) -> bool:
    return any(_within(address, network) for network in networks)


def allowed(address: str, networks: Sequence[IPNetwork]) -> bool:
    """Whether an address lies in one of the networks; an address that cannot be read does not."""
    parsed = _parsed(address)
    return parsed is not None and _in_any(parsed, networks)


def looks_like_a_proxy(peer: str) -> bool:
    """Whether an address is one of a private network, where providers of webhooks are not but proxies are."""
    parsed = _parsed(peer)
    return parsed is not None and parsed.is_private


def client_address(
    peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[IPNetwork]
) -> str | AddressRefusal:
    """The client's address in canonical form, or why it is not known.

    `forwarded_for` are the values of all `X-Forwarded-For` lines in order. They are joined and walked from the right
    over trusted proxies; the first other address is the client. If all are trusted, the leftmost is.
    """
    address = None if peer is None else _parsed(peer)
    if peer is None or address is None:
        return AddressRefusal("ip_unknown", 403)
    if not forwarded_for or not _in_any(address, trusted):
        return _written(peer)
    if sum(line.count(",") + 1 for line in forwarded_for) > MOST_HOPS:
        return AddressRefusal("too_many_hops", 400)
    hops = [hop for line in forwarded_for for hop in line.split(",") if hop.strip()]
    for hop in reversed(hops):
        parsed = _parsed(hop)
        if parsed is None:
            return AddressRefusal("bad_forwarded_for", 403)
        address = parsed
        if not _in_any(address, trusted):
            break
    return str(address)
