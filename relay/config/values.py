"""Single values: durations, sizes, addresses, rates, names; each parser takes what YAML gave and returns the thing.

Law: a parser raises `Refused` and nothing else, and its message says what would be right. What was expanded from the
environment is not repeated.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from relay.config.expansion import Escaped, Expanded
from relay.config.problems import Refused, key_name, kind, quoted, suggestion
from relay.config.settings import Address
from relay.model import IPNetwork, Rate, StatusSet
from relay.rules.rate import RATE as RATE
from relay.rules.rate import rate_from

DURATION = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB|TiB|PiB)")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ROUTE_NAME = re.compile(r"(?=.{1,64}$)[a-z0-9][a-z0-9_-]*( [a-z0-9_-]+)*")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
PATH = re.compile(r"(/[A-Za-z0-9_-]{1,64})+/?")

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4, "PiB": 1024**5}
_DIGITS = re.compile(r"[-+]?[1-9][0-9]{18,}")
"""A whole number that is longer than any that we take; the YAML leaves it text."""
_STATUS = re.compile(r"([1-5][0-9]{2})(?:\s*-\s*([1-5][0-9]{2}))?")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LONGEST_HOST = 253
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class SecretText:
    """A secret as it was given; `inline` when the file itself holds it."""

    text: str = field(repr=False)
    inline: bool
    bare_dollars: bool = True
    """Its dollar signs are as they stand in the file, and may have been meant as a variable's."""


def shown(value: Any) -> str:
    """A value as a message may show it."""
    if isinstance(value, Expanded):
        return "the expanded value"
    if isinstance(value, bool):
        return quoted(str(value).lower())
    return quoted(str(value)) if isinstance(value, str | int | float) else f"a {kind(value)}"


def text(value: Any) -> str:
    """A string that is not empty and has no control characters."""
    if not isinstance(value, str):
        raise Refused(f"must be a string, found {kind(value)}")
    if not value.strip():
        raise Refused("must not be empty")
    if not value.isprintable():
        raise Refused("holds a character that cannot be printed")
    return str(value)


def secret(value: Any) -> SecretText:
    """A secret's text, not judged yet."""
    if not isinstance(value, str):
        raise Refused(f"secret must be a quoted string, found {kind(value)}")
    bare = not isinstance(value, Expanded | Escaped)
    return SecretText(str(value), inline=not isinstance(value, Expanded), bare_dollars=bare)


def integer(value: Any, *, low: int, high: int) -> int:
    """A whole number; its digits may come from the environment."""
    if isinstance(value, Expanded) and re.fullmatch(r"-?[0-9]{1,18}", value):
        value = int(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        raise Refused(f"needs at least {low}" if value.startswith("-") else f"must be at most {high}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(f"must be a whole number, found {kind(value)}")
    if not low <= value <= high:
        raise Refused(f"needs at least {low}, found {value}" if value < low else f"must be at most {high}")
    return value


def boolean(value: Any) -> bool:
    """`true` or `false`; never from the environment, because what opens a source is to stand in the file."""
    if not isinstance(value, bool):
        raise Refused(f"must be true or false, found {kind(value)}")
    return value


def scheme(value: Any, *, known: tuple[str, ...]) -> str:
    """A scheme of verification; never from the environment, because what opens a source is to stand in the file."""
    if isinstance(value, Expanded):
        raise Refused("must stand in the file itself, not in a variable")
    return choice(value, known, what="scheme")


def marked(value: Any) -> str:
    """Text that is not empty; what was expanded stays marked, so that no message shows it."""
    text(value)
    return value  # type: ignore[no-any-return] # text() refuses all but strings


def template(value: Any) -> str:
    """Text that is not empty; line breaks may be meant."""
    if not isinstance(value, str) or not value:
        raise Refused(f"must be a string, found {kind(value) if value != '' else 'nothing'}")
    return str(value)


def prefix(value: Any) -> str:
    """What stands in a header before a digest."""
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise Refused("must be a string of printable ASCII")
    return str(value)


def choice(value: Any, known: tuple[str, ...], *, what: str = "value") -> str:
    """One of the known words."""
    if not isinstance(value, str):
        raise Refused(f"must be one of {', '.join(known)}; found {kind(value)}")
    if value not in known:
        near = "" if isinstance(value, Expanded) else suggestion(value, known)
        raise Refused(f"unknown {what} {shown(value)}{near or '; known: ' + ', '.join(known)}")
    return str(value)


def duration(value: Any, *, low: timedelta, high: timedelta) -> timedelta:
    """A span such as `500ms 5s 2m 1h 7d`, from `low` to `high`."""
    number, unit = _with_unit(value, DURATION, example="15s", unit="s", what="a duration (500ms, 5s, 2m, 1h, 7d)")
    span = number * _UNITS[unit]
    if not _milliseconds(low) <= span <= _milliseconds(high):
        raise Refused(f"must be {duration_text(low)} to {duration_text(high)}")
    return timedelta(milliseconds=span)


def size(value: Any, *, low: int, high: int) -> int:
    """A size in bytes, such as `512KiB` or `1MiB`, from `low` to `high`."""
    number, unit = _with_unit(value, SIZE, example="1MiB", unit="B", what="a size (512B, 64KiB, 1MiB, 1GiB)")
    if not low <= number * _SIZES[unit] <= high:
        raise Refused(f"must be {size_text(low)} to {size_text(high)}")
    return number * _SIZES[unit]


def _with_unit(value: Any, pattern: re.Pattern[str], *, example: str, unit: str, what: str) -> tuple[int, str]:
    if isinstance(value, str) and (match := pattern.fullmatch(value)):
        return int(match[1]), match[2]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Refused(f"must be {what}, found {kind(value)}")
    if re.fullmatch(r"[0-9]{1,15}", str(value)):
        hint = f"did you mean {value}{unit}?" if not isinstance(value, Expanded) else f"such as {example}"
        raise Refused(f"{shown(value)} needs a unit ({hint})")
    raise Refused(f"{shown(value)} is not {what}")


def _milliseconds(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


def duration_text(span: timedelta) -> str:
    """A span as the YAML writes it, in the largest unit that fits."""
    count = _milliseconds(span)
    if count == 0:
        return "0s"
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if count % _UNITS[unit] == 0)
    return f"{count // _UNITS[unit]}{unit}"


def size_text(count: int) -> str:
    """A size as the YAML writes it, in the largest unit that fits."""
    unit = next(unit for unit in reversed(_SIZES) if count % _SIZES[unit] == 0)
    return f"{count // _SIZES[unit]}{unit}"


def network(value: Any) -> IPNetwork:
    """An IP network or a single address; IPv4 in IPv6 spelling is taken as the IPv4 it means."""
    if not isinstance(value, str):
        raise Refused(f"must be a string such as 10.0.0.0/8, found {kind(value)}")
    if "%" in value:
        raise Refused(f"{shown(value)} is not an IP network: an address stands without a zone")
    try:
        net = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise Refused(f"{shown(value)} is not an IP network (write 10.0.0.0/8 or 10.0.0.5)") from None
    if "/" in value and ipaddress.ip_interface(value).ip != net.network_address:
        raise Refused(f"{shown(value)} is not an IP network: bits are set outside the prefix; did you mean {net}?")
    if isinstance(net, ipaddress.IPv6Network) and net.subnet_of(_MAPPED):
        low = ipaddress.IPv4Address(int(net.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((low, net.prefixlen - 96))
    return net


def address(value: Any) -> Address:
    """`HOST:PORT` to listen on; IPv6 in brackets; port 0 takes a free one."""
    if not isinstance(value, str):
        raise Refused(f"must be a string such as 0.0.0.0:8080, found {kind(value)}")
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _HIGHEST_PORT:
        raise Refused(f"{shown(value)} is not HOST:PORT with a port up to {_HIGHEST_PORT}")
    if host.startswith("[") and host.endswith("]"):
        if not _is_ip(host[1:-1], 6):
            raise Refused(f"{shown(value)} is not a listen address: no IPv6 address stands in the brackets")
        return Address(host[1:-1], int(port))
    if ":" in host:
        raise Refused(f"{shown(value)} is not a listen address: write IPv6 in brackets, [::]:{port}")
    if not host:
        raise Refused(f"{shown(value)} has no host: write 0.0.0.0:{port} for every address")
    if not _is_ip(host, 4) and not (is_host_name(host) and not ends_in_number(host)):
        raise Refused(f"{shown(value)} is not a listen address: not a valid host")
    return Address(str(host), int(port))


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def is_host_name(host: str) -> bool:
    """Whether a name follows RFC 1123; underscores pass, because container networks use them."""
    name = host.removesuffix(".")
    return len(name) <= _LONGEST_HOST and all(_HOST_LABEL.fullmatch(label) for label in name.split("."))


def ends_in_number(host: str) -> bool:
    """Whether resolvers may take a name for a numeric IPv4 address (WHATWG URL, "ends in a number")."""
    last = host.removesuffix(".").rpartition(".")[2]
    return bool(re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", last))


def rate(value: Any) -> Rate:
    """`100/s` or `150/5m`."""
    if not isinstance(value, str) or RATE.fullmatch(value) is None:
        raise Refused(f"{shown(value)} is not a rate (write 100/s or 150/5m)")
    found = rate_from(value)
    if found is None:
        raise Refused("the span of a rate must be 1ms to 1d")
    return found


def statuses(value: Any) -> StatusSet:
    """HTTP status codes: 200, "200-299", or a list of such; 200 to 599."""
    items = value if isinstance(value, list) else [value]
    return StatusSet(tuple(_status_range(item) for item in items))


def _status_range(value: Any) -> tuple[int, int]:
    match = _STATUS.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if match is None:
        raise Refused(f"{shown(value)} is not a status or a range of them (write 200 or 200-299)")
    low, high = int(match[1]), int(match[2] or match[1])
    if low < 200 or low > high:
        raise Refused(f"{shown(value)} is not a range from 200 to 599, low to high")
    return low, high


def header_name(value: Any) -> str:
    """A header field's name (RFC 9110, section 5.1)."""
    if not isinstance(value, str) or not HEADER_NAME.fullmatch(value):
        shown_name = shown(value) if not isinstance(value, str) or isinstance(value, Expanded) else key_name(value)
        raise Refused(f"{shown_name} is not a valid header name")
    return str(value)


def marked_header_name(value: Any) -> str:
    """A header field's name that a message may repeat, unless it was expanded."""
    header_name(value)
    return value  # type: ignore[no-any-return] # header_name() refuses all but strings


def header_value(value: Any) -> str:
    """A header field's value, never shown."""
    if not isinstance(value, str):
        raise Refused(f"must be a quoted string, found {kind(value)}")
    if not _HEADER_VALUE.fullmatch(value):
        raise Refused("not a valid header value: only printable ASCII may be sent")
    if value != value.strip():
        raise Refused("begins or ends with white space, which a header cannot carry")
    return str(value)


def matched_value(value: Any) -> str:
    """What a received header must say, exactly; of any script, for senders write what they like."""
    if not isinstance(value, str):
        raise Refused(f"must be a quoted string, found {kind(value)}")
    if not value.isprintable():
        raise Refused("holds a character that no header can have")
    if value != value.strip():
        raise Refused("begins or ends with white space, which a header cannot carry")
    return str(value)


def listen_path(value: Any) -> str:
    """A path to receive on: segments of letters, digits, `_` and `-`."""
    if not isinstance(value, str) or not PATH.fullmatch(value):
        raise Refused("path must be segments of /[A-Za-z0-9_-]{1,64}")
    return str(value)
