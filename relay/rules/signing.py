"""What a provider puts into a request to prove it; also how a target that asks for it gets Standard Webhooks.

Law: the signed bytes are built here and nowhere else, so the verifier, `relay send` and the tests cannot drift apart.
The documented vectors of the providers hold both against the outside.
"""

import hmac
import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, quote_plus

from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    Check,
    Headers,
    HmacCheck,
    NoCheck,
    ProofList,
    QueryKey,
    Secret,
    StandardWebhooksCheck,
)

_FIELD = re.compile(r"\{(body|timestamp|id)\}")

_STANDARD_STEM = "webhook-"
_STANDARD_LIST = ProofList(separator=" ")


def octets(text: str) -> bytes:
    """The bytes a header value had on the wire; total, also for surrogates that no wire could have made."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def wire_text(value: bytes) -> str:
    """The inverse of `octets`: bytes as aiohttp reads them from a header, and writes them into one."""
    return value.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=256)
def _pieces(signed: str) -> tuple[tuple[bytes, str], ...]:
    """The template cut into literals and field names, in order: a value that looks like a field stays a value."""
    parts = _FIELD.split(signed)
    names = [*parts[1::2], ""]
    return tuple((literal.encode(), name) for literal, name in zip(parts[0::2], names, strict=True))


@lru_cache(maxsize=256)
def signed_fields(signed: str) -> frozenset[str]:
    """Which of `body`, `timestamp` and `id` a template signs."""
    return frozenset(name for _, name in _pieces(signed) if name)


def signed_bytes(signed: str, *, body: bytes, timestamp: bytes, message_id: bytes) -> bytes:
    """The very bytes a digest covers."""
    if signed == "{body}":
        return body
    values = {"body": body, "timestamp": timestamp, "id": message_id, "": b""}
    return b"".join(literal + values[name] for literal, name in _pieces(signed))


def digest_text(
    key: bytes, message: bytes, *, algorithm: Literal["sha256", "sha512", "sha1"], encoding: Literal["hex", "base64"]
) -> bytes:
    """The keyed digest (RFC 2104) in its one canonical spelling: lower-case hex, or padded base64 (RFC 4648, 4)."""
    keyed = _keyed(key, algorithm).copy()
    keyed.update(message)
    return keyed.hexdigest().encode() if encoding == "hex" else b64encode(keyed.digest())


@lru_cache(maxsize=256)
def _keyed(key: bytes, algorithm: str) -> hmac.HMAC:
    """A digest that has taken in the key and nothing more; copies of it go on. Unlike `hmac.digest` it keeps the
    interpreter's lock over a short message, where giving it up costs more than the digest."""
    return hmac.new(key, digestmod=algorithm)


def basic_credentials(username: str, secret: Secret) -> bytes:
    """`user:password` in base64 (RFC 7617, section 2)."""
    return b64encode(octets(username) + b":" + secret.value)


def form_basic(client_id: str, secret: Secret) -> str:
    """A client's credentials for `Authorization: Basic`, each form-encoded first (RFC 6749, section 2.3.1)."""
    encoded = Secret(quote_plus(secret.value).encode())
    return basic_credentials(quote_plus(client_id), encoded).decode()


def with_query_key(url: str, key: QueryKey) -> str:
    """The URL with the key in its query, percent-encoded, behind what stands there already."""
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{quote(key.name, safe='')}={quote(key.value.value, safe='')}"


def as_hmac(check: StandardWebhooksCheck) -> HmacCheck:
    """Standard Webhooks v1 as the HMAC it is.

    A signature header of another stem brings its own id and timestamp, as the `svix-` headers do.
    """
    header = check.header.lower()
    stem = header.removesuffix("signature") if header.endswith("-signature") else _STANDARD_STEM
    return HmacCheck(
        header=header,
        encoding="base64",
        prefix="v1,",
        signed="{id}.{timestamp}.{body}",
        timestamp_header=f"{stem}timestamp",
        id_header=f"{stem}id",
        tolerance=check.tolerance,
        listing=_STANDARD_LIST,
        secrets=check.secrets,
    )


def signs_time(check: Check) -> bool:
    """Whether a check's proof covers the time of a request."""
    if isinstance(check, StandardWebhooksCheck):
        return True
    return isinstance(check, HmacCheck) and "timestamp" in signed_fields(check.signed)


def timestamp_place(scheme: HmacCheck) -> str:
    """Where the signed timestamp stands, for people."""
    if scheme.listing is not None and scheme.listing.timestamp_prefix:
        return f"{scheme.listing.timestamp_prefix} in {scheme.header}"
    return scheme.timestamp_header or "timestamp"


def proof_value(scheme: HmacCheck, digests: Sequence[bytes], timestamp: bytes) -> str:
    """What the proof header holds: one digest, or the list of them all. An optional prefix is left off."""
    prefix = "" if scheme.prefix_optional else scheme.prefix
    proofs = [prefix + digest.decode() for digest in digests]
    if scheme.listing is None:
        return proofs[0]
    mark = scheme.listing.timestamp_prefix
    entries = [mark + wire_text(timestamp), *proofs] if mark else proofs
    return scheme.listing.separator.join(entries)


def _hmac_headers(
    check: HmacCheck, body: bytes, *, now: datetime, message_id: str, keys: tuple[Secret, ...]
) -> Headers:
    timestamp = str(int(now.timestamp()))
    message = signed_bytes(check.signed, body=body, timestamp=timestamp.encode(), message_id=octets(message_id))
    digests = [digest_text(key.value, message, algorithm=check.algorithm, encoding=check.encoding) for key in keys]
    signed = signed_fields(check.signed)
    headers: list[tuple[str, str]] = []
    if check.id_header is not None and "id" in signed:
        headers.append((check.id_header, message_id))
    if check.timestamp_header is not None and "timestamp" in signed:
        headers.append((check.timestamp_header, timestamp))
    return (*headers, (check.header, proof_value(check, digests, timestamp.encode())))


def sign(check: Check, body: bytes, *, now: datetime, message_id: str) -> Headers:
    """The headers the provider itself would send with `body` at `now`, made with the check's first secret.

    A Standard Webhooks signature lists one proof for each secret, newest first, as its senders do while rotating.
    An optional prefix is left off. Empty for a check that proves nothing, or that has no secret to prove with.
    """
    keys = () if isinstance(check, NoCheck) else tuple(key for key in check.secrets if key.value)
    if isinstance(check, NoCheck) or not keys:
        return ()
    match check:
        case ApiKeyCheck():
            return ((check.header, wire_text(keys[0].value)),)
        case BearerCheck():
            return ((check.header, f"Bearer {wire_text(keys[0].value)}"),)
        case BasicCheck():
            return ((check.header, f"Basic {basic_credentials(check.username, keys[0]).decode()}"),)
        case HmacCheck():
            return _hmac_headers(check, body, now=now, message_id=message_id, keys=keys[:1])
    return _hmac_headers(as_hmac(check), body, now=now, message_id=message_id, keys=keys)
