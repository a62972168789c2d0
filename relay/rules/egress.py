"""Which addresses requests may go to.

Law: pure and total, with a table of its own: the standard library's idea of a public address lets through 6to4, NAT64,
ISATAP and multicast. Metadata of a cloud is never opened, however its address is spelled.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from relay.model import IPNetwork

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA_HOSTS = frozenset(
    {
        "instance-data.ec2.internal",
        "metadata.azure.com",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "metadata.tencentyun.com",
    }
)
"""Names that mean a cloud's metadata service, lower case, without a trailing dot; their answers are judged too."""

METADATA = "cloud metadata address"
LINK_LOCAL = "link-local address"


def _table(*rows: tuple[str, str]) -> tuple[tuple[IPNetwork, str], ...]:
    return tuple((ipaddress.ip_network(network), reason) for network, reason in rows)


_NEVER = _table(
    ("169.254.169.254/32", METADATA),  # AWS, Azure, Google, DigitalOcean, OpenStack, Oracle
    ("169.254.170.0/24", METADATA),  # AWS container credentials
    ("169.254.42.42/32", METADATA),  # Scaleway
    ("169.254.0.23/32", METADATA),  # Tencent
    ("169.254.0.0/16", LINK_LOCAL),
    ("100.100.100.200/32", METADATA),  # Alibaba
    ("168.63.129.16/32", METADATA),  # Azure wire server
    ("192.0.0.192/32", METADATA),  # Oracle classic
    ("fd00:ec2::/32", METADATA),  # AWS: metadata, pod identity, DNS, time
    ("fd20:ce::254/128", METADATA),  # Google
    ("fd00:c1::a9fe:a9fe/128", METADATA),  # Oracle
    ("fd00:42::42/128", METADATA),  # Scaleway
    ("fd00:a9fe:a9fe::1/128", METADATA),  # Akamai (Linode)
    ("fe80::a9fe:a9fe/128", METADATA),  # OpenStack, Hetzner
)
"""Closed whatever the YAML says."""

_CLOSED = _table(
    ("0.0.0.0/8", "unspecified address"),
    ("224.0.0.0/4", "multicast address"),
    ("255.255.255.255/32", "broadcast address"),
    ("240.0.0.0/4", "reserved address"),
    ("::/128", "unspecified address"),
    ("fe80::/10", LINK_LOCAL),
    ("ff00::/8", "multicast address"),
)
"""Closed under both policies, unless `allow` opens it."""

_NOT_PUBLIC = _table(
    ("10.0.0.0/8", "private address"),
    ("100.64.0.0/10", "shared address of a carrier's NAT"),
    ("127.0.0.0/8", "loopback address"),
    ("172.16.0.0/12", "private address"),
    ("192.0.0.0/24", "address for protocol assignments"),
    ("192.0.2.0/24", "address for documentation"),
    ("192.88.99.0/24", "6to4 relay address"),
    ("192.168.0.0/16", "private address"),
    ("198.18.0.0/15", "address for benchmarks"),
    ("198.51.100.0/24", "address for documentation"),
    ("203.0.113.0/24", "address for documentation"),
    ("::1/128", "loopback address"),
    ("100::/64", "discard address"),
    ("64:ff9b:1::/48", "local NAT64 address"),
    ("2001::/32", "Teredo address"),
    ("2001::/23", "address for protocol assignments"),
    ("2001:db8::/32", "address for documentation"),
    ("2002::/16", "6to4 address"),
    ("3ffe::/16", "6bone address"),
    ("3fff::/20", "address for documentation"),
    ("5f00::/16", "segment routing address"),
    ("fc00::/7", "private address"),
    ("fec0::/10", "site-local address"),
)
"""Closed under policy `public` as well (IANA's special-purpose registries, RFC 6890)."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_LOW = ipaddress.IPv6Network("::/8")
_LOOPBACK = ipaddress.IPv6Address("::1")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_ISATAP = 0x00005EFE
_ISATAP_MASK = 0xFCFFFFFF  # the universal and group bits of an interface identifier may be set


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Where requests may go: `private` is all but metadata and link-local, `public` is public addresses only."""

    policy: Literal["private", "public"] = "private"
    allow: tuple[IPNetwork, ...] = ()
    """Networks opened beyond the policy; metadata stays closed."""
    deny: tuple[IPNetwork, ...] = ()
    """Networks closed; wins over `allow`."""


def refusal(address: str, egress: EgressPolicy) -> str | None:
    """Why `address` (an IP literal, a zone id is ignored) may not be dialled, or None when it may; total and pure.

    An IPv6 address that embeds an IPv4 address is judged by that one as well, so no spelling reaches what is closed.
    """
    try:
        literal = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "not an IP address"
    views = (literal, *_embedded(literal))
    for view in (*views, *_possibly_embedded(literal)):
        if reason := _listed(view, _NEVER):
            return reason
    if any(view in network for view in views for network in egress.deny):
        return "closed by egress.deny"
    dialled = _dialled(literal)
    if any(view in network for view in (literal, dialled) for network in egress.allow):
        return None
    judged = (dialled, *(view for view in views if view != literal))
    return next((reason for view in judged if (reason := _policy_refusal(view, egress))), None)


def _policy_refusal(address: IPAddress, egress: EgressPolicy) -> str | None:
    if reason := _listed(address, _CLOSED):
        return reason
    if address in _LOW and address != _LOOPBACK and address not in _LOCAL_NAT64:
        return "reserved address"
    if egress.policy == "private":
        return None
    if reason := _listed(address, _NOT_PUBLIC):
        return reason
    if isinstance(address, ipaddress.IPv6Address):
        if _is_isatap(address):
            return "ISATAP address"
        if address not in _GLOBAL_UNICAST:
            return "reserved address"
    return None


def _listed(address: IPAddress, table: tuple[tuple[IPNetwork, str], ...]) -> str | None:
    return next((reason for network, reason in table if address in network), None)


def _dialled(address: IPAddress) -> IPAddress:
    """The address that answers in the end: the IPv4 one where the kernel or a NAT64 gateway translates."""
    if isinstance(address, ipaddress.IPv6Address) and (address in _MAPPED or address in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_isatap(address: ipaddress.IPv6Address) -> bool:
    return (int(address) >> 32) & _ISATAP_MASK == _ISATAP


def _embedded(address: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address spells (RFC 4291, 6052, 3056, 4380, 5214, 7915)."""
    if not isinstance(address, ipaddress.IPv6Address):
        return
    number = int(address)
    low = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    compatible = address in _COMPATIBLE and int(low) > int(_LOOPBACK)
    local_nat64 = address in _LOCAL_NAT64 and not (number >> 32) & 0xFFFFFFFFFFFF
    if compatible or local_nat64 or any(address in network for network in (_MAPPED, _TRANSLATED, _NAT64)):
        yield low
    elif address in _SIX_TO_FOUR:
        yield ipaddress.IPv4Address((number >> 80) & 0xFFFFFFFF)
    elif address in _TEREDO:
        yield ipaddress.IPv4Address((number >> 64) & 0xFFFFFFFF)
        yield ipaddress.IPv4Address(int(low) ^ 0xFFFFFFFF)
    if _is_isatap(address):
        yield low


def _possibly_embedded(address: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    """Every reading of a local NAT64 address, whose prefix length only its network knows (RFC 6052, section 2.2)."""
    if address not in _LOCAL_NAT64:
        return
    octets = address.packed
    for places in ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15)):
        yield ipaddress.IPv4Address(bytes(octets[place] for place in places))


def is_metadata_host(host: str) -> bool:
    """Whether a host name is that of a cloud's metadata service, whatever its case or trailing dot."""
    return host.lower().rstrip(".") in METADATA_HOSTS
