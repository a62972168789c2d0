"""A target's credentials as words of a command that is run by hand.

Law: what is the same in each request is printed as it is, so that the command works; what is made for one request
alone, a signature or a token, stands as a name in capitals, with a remark that says what belongs there.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from relay.model import Headers, HmacCheck, OAuth2Client, QueryKey, Target
from relay.rules.signing import sign, wire_text, with_query_key


@dataclass(frozen=True, slots=True)
class Proof:
    """What a command needs beside the event and the target's own headers."""

    headers: Headers = ()
    url: str = ""
    options: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[str, ...] = ()


def proof_of(target: Target, event_id: str, url: str | None = None) -> Proof:
    """A target's credentials, and the way to it; `url` is that of the request where it is not the target's own."""
    url = url or target.url
    headers: list[tuple[str, str]] = []
    remarks: list[str] = []
    match target.auth:
        case None:
            pass
        case QueryKey():
            url = with_query_key(url, target.auth)
        case OAuth2Client():
            headers.append(("Authorization", "Bearer TOKEN"))
            remarks.append("TOKEN is an access token, fetched with the client's credentials and good for a while")
        case HmacCheck():
            headers.append((target.auth.header, f"{target.auth.prefix}SIGNATURE"))
            remarks.append("SIGNATURE is made anew for each request with the secret of auth")
        case static:
            headers += sign(static, b"", now=datetime.now(UTC), message_id=event_id)
    if target.sign is not None:
        headers += [("webhook-id", event_id), ("webhook-timestamp", "NOW"), ("webhook-signature", "v1,SIGNATURE")]
        remarks.append("NOW and SIGNATURE are made anew for each request with the first secret of sign")
    return Proof(tuple(headers), url, tuple(_options(target)), tuple(remarks))


def _options(target: Target) -> list[tuple[str, ...]]:
    options: list[tuple[str, ...]] = []
    if target.tls is not None:
        named = (("--cacert", target.tls.ca), ("--cert", target.tls.cert), ("--key", target.tls.key))
        options += [(option, path) for option, path in named if path is not None]
        options += [("--insecure",)] if target.tls.insecure else []
    if target.proxy is not None:
        options.append(("--proxy", target.proxy.url))
        if target.proxy.password is not None:
            options.append(("--proxy-user", f"{target.proxy.username}:{wire_text(target.proxy.password.value)}"))
    return options
