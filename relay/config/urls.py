"""Target URLs: what is a usable address of a target, and what is doubtful about it.

Law: a URL is sent as it was written. It is judged as text, before any library normalises it, because libraries differ
over odd hosts; only an internationalised host is rewritten, to the punycode that is dialled anyway. URLs hold secrets
in their path, so no message repeats more than the host.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from yarl import URL

from relay.config.problems import Refused, quoted
from relay.config.settings import Address
from relay.config.values import ends_in_number, is_host_name
from relay.rules.egress import METADATA, EgressPolicy, is_metadata_host, refusal

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_AUTHORITY_END = re.compile(r"[/?#]")
_REST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]|^-]*")
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65535
_LOCAL_SUFFIXES = (".local", ".internal", ".localhost", ".lan", ".home", ".home.arpa", ".svc", ".test", ".invalid")
_ANY_HOSTS = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not bound
_LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class TargetUrl:
    """A URL that may be sent to. `host` is lower case, without brackets; `url` is what was written."""

    url: str
    scheme: str
    host: str
    port: int
    rewritten: bool = False
    """The host was written in another alphabet; `url` has its punycode."""


def parsed(url: str) -> TargetUrl:
    """The parts of an absolute http or https URL. Raises `Refused`."""
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise Refused("not a valid URL: holds white space, a control character or a backslash")
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise Refused("not an absolute http(s) URL with a host")
    if scheme[1].lower() not in {"http", "https"}:
        raise Refused("scheme must be http or https")
    if not url.startswith("//", scheme.end()):
        raise Refused("not an absolute http(s) URL with a host")
    start = scheme.end() + 2
    end = match.start() if (match := _AUTHORITY_END.search(url, start)) else len(url)
    authority, rest = url[start:end], url[end:]
    if "@" in authority:
        raise Refused("credentials in URLs are not allowed; send them with headers: {Authorization: …}")
    if "#" in rest:
        raise Refused("a fragment (#…) is never sent; remove it")
    if not _REST.fullmatch(rest):
        raise Refused("path and query must be ASCII with other characters percent-encoded")
    written, port = _split_port(authority, default=443 if scheme[1].lower() == "https" else 80)
    host = _host(written)
    rewritten = not written.isascii()
    whole = url if not rewritten else f"{url[:start]}{host}{authority[len(written) :]}{rest}"
    return TargetUrl(whole, scheme[1].lower(), host, port, rewritten)


def _split_port(authority: str, *, default: int) -> tuple[str, int]:
    host, colon, port = authority, "", ""
    if not authority.endswith("]"):
        before, colon, port = authority.rpartition(":")
        host = before if colon else authority
    if not host:
        raise Refused("not an absolute http(s) URL with a host")
    if not colon:
        return host, default
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= _HIGHEST_PORT:
        raise Refused(f"port out of range 1-{_HIGHEST_PORT}")
    return host, int(port)


def _host(written: str) -> str:
    if written.startswith("[") or ":" in written:
        return _bracketed(written)
    host = written.lower()
    if not host.isascii():
        try:
            host = URL(f"http://{host}/").raw_host or ""
        except ValueError:
            host = ""
        if ends_in_number(host):
            raise Refused("not a valid host name")
    if ends_in_number(host):
        return _dotted_quad(host)
    if not host.isascii() or not is_host_name(host):
        raise Refused("not a valid host name")
    return host


def _bracketed(written: str) -> str:
    try:
        if written.startswith("[") and written.endswith("]") and "%" not in written:
            return str(ipaddress.IPv6Address(written[1:-1]))
    except ValueError:
        pass
    raise Refused("not a valid host name: IPv6 stands in brackets, without a zone")


def _dotted_quad(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise Refused(f"{quoted(host)} is not a canonical IPv4 address") from None


def refuse_forbidden(url: TargetUrl, egress: EgressPolicy) -> None:
    """Raises `Refused` when it is plain already that egress forbids the host; names are judged again when dialled."""
    if is_metadata_host(url.host):
        raise Refused(f"{METADATA}, never allowed")
    literal = _literal(url.host)
    if literal is None or (reason := refusal(literal, egress)) is None:
        return
    opened = EgressPolicy(policy="private", allow=(ipaddress.ip_network(literal),))
    if refusal(literal, opened) is not None:
        raise Refused(f"{reason}, never allowed")
    is_denied = refusal(literal, replace(egress, deny=())) is None
    advice = "take it out of there" if is_denied else "name it under egress.allow"
    raise Refused(f"{url.host} is forbidden ({reason}); {advice} if it is meant")


def _literal(host: str) -> str | None:
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def warn_doubtful(url: TargetUrl, listen: Address, warn: Callable[[str], None]) -> None:
    """Tell what may be sent to but probably should not, or not like this."""
    if url.rewritten:
        warn(f"the host is read as {url.host}")
    if url.scheme == "http" and _is_public(url.host):
        warn("plain http to a public host: anyone on the way can read and change what is sent")
    if url.port == listen.port and _answers_at(listen.host, url.host):
        warn("this is the relay's own address: deliveries would come back as new events, a loop")


def _is_public(host: str) -> bool:
    if (literal := _literal(host)) is not None:
        return refusal(literal, EgressPolicy(policy="public")) is None
    name = f".{host.removesuffix('.')}"
    return name.count(".") > 1 and not name.endswith(_LOCAL_SUFFIXES)


def _answers_at(listening: str, host: str) -> bool:
    if listening in _ANY_HOSTS:
        return host in _LOOPBACK_HOSTS | _ANY_HOSTS
    return host == listening or (host in _LOOPBACK_HOSTS and listening in _LOOPBACK_HOSTS)
