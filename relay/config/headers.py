"""The names of headers that the YAML has sent, to a target or to an enricher.

Law: what frames a request is the connection's own, and a header is set once.
"""

from collections.abc import Iterable

from relay.config import values
from relay.config.problems import KeyPath, Report
from relay.rules.forwarding import HOP_BY_HOP


def check(names: Iterable[str], path: KeyPath, report: Report) -> None:
    """Report the names that may not be set."""
    seen: dict[str, str] = {}
    for name in names:
        lower = name.lower()
        if not values.HEADER_NAME.fullmatch(name):
            report.refuse((*path, name), "not a valid header name")
        elif reason := reserved(lower):
            report.refuse((*path, name), reason)
        elif lower in seen:
            report.refuse((*path, name), f"the same header as {seen[lower]}")
        seen[lower] = name


def reserved(lower: str) -> str | None:
    """Why a header, its name in lower case, cannot be set; None where it can."""
    if lower in HOP_BY_HOP or lower.startswith("proxy-"):
        return "set by the connection itself; it cannot be configured"
    if lower.startswith("relay-"):
        return "relay- headers are the relay's own"
    return None
