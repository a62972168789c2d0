"""Whether a request is genuine.

Law: total. Whatever a stranger sends becomes a `VerifiedRequest` or a named `Refusal`, never an exception; the check
comes from the config alone, and nothing in a request chooses or weakens it. Proofs are never decoded: the one
canonical spelling of the right digest is computed and compared, byte for byte and in constant time, with what came.
So a cut, doubled, padded, re-spelled or empty proof cannot match, and no decoder is there to be fooled.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    Check,
    Headers,
    HmacCheck,
    NoCheck,
    ReceivedRequest,
    Secret,
    StandardWebhooksCheck,
    VerifiedRequest,
)
from relay.rules.signing import (
    as_hmac,
    basic_credentials,
    digest_text,
    octets,
    signed_bytes,
    signed_fields,
    timestamp_place,
)

MOST_SIGNATURES = 8
"""Entries of a list of proofs; more would buy a stranger processor time."""

LONGEST_ID = 256
"""Characters of a signed message id."""

FAR_AHEAD = timedelta(days=3650)
"""A timestamp later than this is a mistaken unit or a corner of an integer, not a late or early request."""

_SECONDS = re.compile(rb"[0-9]{1,10}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SHAPES = {
    ("hex", "sha1"): re.compile(rb"[0-9A-Fa-f]{40}"),
    ("hex", "sha256"): re.compile(rb"[0-9A-Fa-f]{64}"),
    ("hex", "sha512"): re.compile(rb"[0-9A-Fa-f]{128}"),
    ("base64", "sha1"): re.compile(rb"[A-Za-z0-9+/]{27}="),
    ("base64", "sha256"): re.compile(rb"[A-Za-z0-9+/]{43}="),
    ("base64", "sha512"): re.compile(rb"[A-Za-z0-9+/]{86}=="),
}
"""The full digest of each algorithm in each encoding, and nothing shorter or longer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not believed. `reason` is one word for logs and counters, `detail` is for people.

    Neither holds a byte of what was sent.
    """

    reason: str
    detail: str = ""
    skew_s: int | None = None
    """Seconds that a request is ahead of our clock, where that alone is wrong with it."""


_SIGNED = (HmacCheck, StandardWebhooksCheck)
"""The checks of a body's signature; a tuple, for `isinstance` is asked of each request and makes a union anew."""


class HeaderClaim(NamedTuple):
    """What the headers of a request say about its body, well formed but not yet believed."""

    headers: Headers
    check: HmacCheck | StandardWebhooksCheck
    """By which they were read."""
    scheme: HmacCheck
    proofs: Sequence[bytes]
    timestamp: bytes
    message_id: bytes


def _lines(headers: Headers, name: str) -> list[str]:
    wanted = name.lower()
    return [value for key, value in headers if key.lower() == wanted]


def _proof_lines(headers: Headers, name: str, *, most: int = 1) -> list[str] | Refusal:
    """The lines of the header that carries the proof: one, unless the check knows of several."""
    lines = _lines(headers, name)
    if not any(lines):
        return Refusal("missing_signature", f"no {name} header") if len(lines) < 2 else _too_many(lines, name)
    return lines if len(lines) <= most else _too_many(lines, name)


def _too_many(lines: Sequence[str], name: str) -> Refusal:
    return Refusal("ambiguous_signature", f"{len(lines)} {name} headers")


def _matching_key(proofs: Sequence[bytes], expected: Sequence[bytes | None]) -> int | None:
    """The index of the first key whose proof is among those sent; None stands for a key that can prove nothing."""
    for index, wanted in enumerate(expected):
        for proof in proofs:
            if wanted is not None and hmac.compare_digest(proof, wanted):
                return index
    return None


def _usable(secrets: Sequence[Secret]) -> list[bytes | None]:
    return [secret.value or None for secret in secrets]


def _static_key(headers: Headers, check: ApiKeyCheck | BearerCheck | BasicCheck) -> int | Refusal:
    """Which secret the request carries in the clear."""
    lines = _proof_lines(headers, check.header)
    if isinstance(lines, Refusal):
        return lines
    expected = _usable(check.secrets)
    sent = octets(lines[0])
    if not isinstance(check, ApiKeyCheck):
        wanted = b"bearer" if isinstance(check, BearerCheck) else b"basic"
        scheme, _, credentials = sent.partition(b" ")
        if scheme.lower() != wanted:
            return Refusal("bad_signature", f"{check.header} is not of the {wanted.decode()} scheme")
        sent = credentials.lstrip(b" ")
    if isinstance(check, BasicCheck):
        expected = [basic_credentials(check.username, secret) if secret.value else None for secret in check.secrets]
    key = _matching_key([sent], expected)
    return Refusal("bad_signature", f"{check.header} matches no secret") if key is None else key


def signed_timestamp(headers: Headers, scheme: HmacCheck) -> bytes | Refusal:
    """The timestamp as sent: ASCII digits, whole seconds, in a header of its own or in an entry of the proof's list."""
    place, listing = timestamp_place(scheme), scheme.listing
    if listing is not None and listing.timestamp_prefix:
        entries = _entries(headers, scheme)
        if isinstance(entries, Refusal):
            return entries
        mark = listing.timestamp_prefix
        found = [entry.removeprefix(mark) for entry in entries if entry.startswith(mark)]
        kind = "entries"
    else:
        found, kind = _lines(headers, scheme.timestamp_header or ""), "headers"
    if len(found) > 1:
        return Refusal("ambiguous_signature", f"{len(found)} {place} {kind}")
    if not found:
        return Refusal("bad_timestamp", f"no {place}" + (" header" if kind == "headers" else ""))
    sent = octets(found[0])
    if _SECONDS.fullmatch(sent) is None:
        return Refusal("bad_timestamp", f"{place} is not a number of whole seconds")
    return sent


def _signed_id(headers: Headers, check: HmacCheck) -> bytes | Refusal:
    """The message id as sent; a dot in it would move the border between what is signed."""
    lines = _lines(headers, check.id_header or "")
    if len(lines) > 1:
        return Refusal("ambiguous_signature", f"{len(lines)} {check.id_header} headers")
    if not lines or not lines[0]:
        return Refusal("bad_id", f"no {check.id_header or 'id'} header")
    sent = lines[0]
    if len(sent) > LONGEST_ID or "." in sent or _CONTROL.search(sent) is not None:
        return Refusal("bad_id", f"{check.id_header} is longer than {LONGEST_ID}, or has a dot or a control character")
    return octets(sent)


def _spelled(check: HmacCheck, sent: Sequence[str]) -> list[bytes]:
    """Those that can be proofs, in the canonical spelling of their encoding, without their prefix."""
    prefix = octets(check.prefix)
    shape = _SHAPES[check.encoding, check.algorithm]
    spelled: list[bytes] = []
    for one in map(octets, sent):
        bare = one.removeprefix(prefix)
        if (one.startswith(prefix) or check.prefix_optional) and shape.fullmatch(bare) is not None:
            spelled.append(bare.lower() if check.encoding == "hex" else bare)
    return spelled


def _entries(headers: Headers, scheme: HmacCheck) -> list[str] | Refusal:
    """What the proof header holds: the entries of its list, else its one line."""
    listing = scheme.listing
    if listing is None:
        return _proof_lines(headers, scheme.header)
    most = MOST_SIGNATURES if listing.many_lines else 1
    lines = _proof_lines(headers, scheme.header, most=most)
    if isinstance(lines, Refusal):
        return lines
    sent = listing.separator.join(lines).split(listing.separator, MOST_SIGNATURES)
    if len(sent) > MOST_SIGNATURES:
        return Refusal("ambiguous_signature", f"more than {MOST_SIGNATURES} signatures in {scheme.header}")
    return [entry.strip(" \t") for entry in sent] if listing.many_lines else sent


def _scheme(check: HmacCheck | StandardWebhooksCheck) -> HmacCheck:
    return check if isinstance(check, HmacCheck) else as_hmac(check)


def _claim(headers: Headers, check: HmacCheck | StandardWebhooksCheck) -> HeaderClaim | Refusal:
    """What the headers claim, or what is wrong with them whatever the body is."""
    scheme = _scheme(check)
    sent = _entries(headers, scheme)
    if isinstance(sent, Refusal):
        return sent
    signed = signed_fields(scheme.signed)
    message_id = _signed_id(headers, scheme) if "id" in signed else b""
    if isinstance(message_id, Refusal):
        return message_id
    timestamp = signed_timestamp(headers, scheme) if "timestamp" in signed else b""
    if isinstance(timestamp, Refusal):
        return timestamp
    spelled = _spelled(scheme, sent)
    if not spelled:
        return Refusal("bad_signature", f"{scheme.header} holds no {scheme.algorithm} digest in {scheme.encoding}")
    return HeaderClaim(headers, check, scheme, spelled, timestamp, message_id)


def untimely(timestamp: bytes, tolerance: timedelta, now: datetime) -> Refusal | None:
    """What is wrong with the time of a request whose signature is right; whole seconds, both ends in time."""
    ahead = int(timestamp) - int(now.timestamp())
    if ahead > FAR_AHEAD.total_seconds():
        skew = ahead if ahead < 10 * FAR_AHEAD.total_seconds() else None  # ours may have been set back by decades
        return Refusal("bad_timestamp", "the timestamp is years ahead; is it in milliseconds?", skew)
    if abs(ahead) > tolerance.total_seconds():
        return Refusal("stale_timestamp", f"skew_s={ahead:+d}", ahead)
    return None


def _signature(claim: HeaderClaim, body: bytes, now: datetime) -> int | Refusal:
    """Which secret signed the request.

    The time is judged last, so that `stale_timestamp` speaks of a genuine sender and a wrong clock or a replay.
    """
    scheme = claim.scheme
    message = signed_bytes(scheme.signed, body=body, timestamp=claim.timestamp, message_id=claim.message_id)
    expected = [
        digest_text(key, message, algorithm=scheme.algorithm, encoding=scheme.encoding) if key else None
        for key in _usable(scheme.secrets)
    ]
    key_index = _matching_key(claim.proofs, expected)
    if key_index is None:
        return Refusal("bad_signature", f"{scheme.header} matches no secret")
    refusal = untimely(claim.timestamp, scheme.tolerance, now) if claim.timestamp else None
    return key_index if refusal is None else refusal


def prove_headers(headers: Headers, check: Check) -> Refusal | None:
    """What can be refused before a byte of the body is read: None means go on, not that anything is proven.

    Static keys are judged completely; of a signature, whether it is there, is one, and is well formed.
    """
    found = claimed(headers, check)
    return found if isinstance(found, Refusal) else None


def claimed(headers: Headers, check: Check) -> HeaderClaim | Refusal | None:
    """What `prove_headers` refuses, else what the headers claim of a body, for `verify`; None where they claim nothing
    of it."""
    if isinstance(check, _SIGNED):
        return _claim(headers, check)
    key = 0 if isinstance(check, NoCheck) else _static_key(headers, check)
    return key if isinstance(key, Refusal) else None


def unproven(request: ReceivedRequest) -> VerifiedRequest:
    """A request that the YAML lets through without proof: the target will see `relay-verified: false`."""
    return VerifiedRequest(headers=request.headers, body=request.body, remote=request.remote, proven=False)


def verify(
    request: ReceivedRequest, check: Check, now: datetime, claim: HeaderClaim | Refusal | None = None
) -> VerifiedRequest | Refusal:
    """Judge a whole request by its source's check, at `now`; total, and complete without `prove_headers`.

    The result says which secret matched. With several secrets any may match; an empty one never does. `claim` is what
    `claimed` has found in these very headers by this very check, so that they are not read twice; any other is passed
    over.
    """
    if isinstance(check, NoCheck):
        return unproven(request)
    if isinstance(check, _SIGNED):
        if not isinstance(claim, HeaderClaim) or claim.headers is not request.headers or claim.check is not check:
            claim = _claim(request.headers, check)
        key = claim if isinstance(claim, Refusal) else _signature(claim, request.body, now)
    else:
        key = _static_key(request.headers, check)
    if isinstance(key, Refusal):
        return key
    return VerifiedRequest(
        headers=request.headers, body=request.body, remote=request.remote, proven=True, key_index=key
    )
