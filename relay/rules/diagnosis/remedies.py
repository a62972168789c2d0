"""What explains a signature, in words: how it was made, and what to change in the YAML or at the sender.

Law: a remedy opens nothing. It names what was seen to match; whoever runs the relay decides.
"""

import json
import re
from collections.abc import Iterator

from relay.model import HmacCheck, StandardWebhooksCheck
from relay.rules.diagnosis.digests import Digest
from relay.rules.diagnosis.signatures import ITS_OWN, Layout, Match, scheme_of
from relay.rules.diagnosis.steps import sentence
from relay.rules.signing import signed_fields

_TAKEN = {"sha256", "sha512", "sha1"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_CHANGED = "It was changed after it was signed, on its way or in this copy: take, sign and check the raw bytes."
_EMPTY = "The sender has to sign the bytes that it sends."
_NO_HMAC = "It is a plain hash and no HMAC, which the relay does not take."
_LISTED = "A timestamp beside the proof is read with provider: stripe, whose verify: {header: …} may name this header."
_ALONE = "The relay reads a header that holds a prefix and the digest, nothing else."
_SPELLINGS = "The relay takes a digest in hex or in padded base64."

Verify = dict[str, str]
"""Keys of `verify` and their values as YAML."""


def remedy(match: Match, check: HmacCheck | StandardWebhooksCheck) -> str:
    """How the digest was made, and what would make it match."""
    if match.is_plain:
        return f"The {match.digest.algorithm} in {match.digest.header} covers this body, but: {_NO_HMAC}"
    if not match.key.is_of_source:
        return sentence(f"The digest does match {match.key.how}.", match.key.fix)
    hows, verify, notes = _spelling(match.digest, scheme_of(check))
    if match.layout.how:
        hows.append(match.layout.how)
        verify |= _signed(match.layout)
        if match.layout.timestamp_header == ITS_OWN:
            verify, notes = {}, [_LISTED]
    if match.body:
        hows.append(f"{'with' if match.layout.how else 'over'} {match.body}")
        notes.append(_EMPTY if match.body == "an empty body" else _CHANGED)
    if match.key.how:
        hows.append(match.key.how)
        notes.append(match.key.fix)
    if not hows:
        return "The digest itself is right."
    return sentence(f"The digest does match {', '.join(hows)}.", *_written(verify, check), *notes)


def unlike(digest: Digest, check: HmacCheck | StandardWebhooksCheck) -> str:
    """How a digest that nothing explains is spelled otherwise than the check wants; empty where it is not."""
    hows, verify, notes = _spelling(digest, scheme_of(check))
    if not hows:
        return ""
    return sentence(f"What looks like a digest is there {', '.join(hows)}.", *_written(verify, check), *notes)


def _spelling(digest: Digest, scheme: HmacCheck) -> tuple[list[str], Verify, list[str]]:
    """How a digest's spelling is not the check's: in words, as keys of `verify`, and what no key can mend."""
    hows: list[str] = []
    verify: Verify = {}
    notes: list[str] = []
    if digest.header.lower() != scheme.header.lower():
        hows.append(f"in header {digest.header}, not {scheme.header}")
        verify["header"] = digest.header
    if digest.algorithm != scheme.algorithm:
        hows.append(f"as {digest.algorithm}")
        if digest.algorithm in _TAKEN:
            verify |= {"algorithm": digest.algorithm}
            verify |= {"allow_weak": "true"} if digest.algorithm == "sha1" else {}
        else:
            notes.append("The relay takes sha256 and sha512.")
    if digest.encoding != scheme.encoding:
        hows.append(f"in {digest.encoding}")
        if digest.encoding in {"hex", "base64"}:
            verify["encoding"] = digest.encoding
        else:
            notes.append(_SPELLINGS)
    if scheme.listing is None and not digest.is_alone:
        hows.append("beside other values")
        notes.append(_ALONE)
    elif digest.before != scheme.prefix and (digest.before or not scheme.prefix_optional):
        hows.append(f'behind "{digest.before}"' if digest.before else f'without "{scheme.prefix}" before it')
        verify["prefix"] = digest.before
    return hows, verify, notes


def _signed(layout: Layout) -> Verify:
    """The keys of `verify` that describe what was signed."""
    fields = signed_fields(layout.signed)
    headers = {"timestamp": layout.timestamp_header, "id": layout.id_header}
    named = {f"{field}_header": header for field, header in headers.items() if field in fields and header}
    return {"signed": layout.signed, **{key: header for key, header in named.items() if header != ITS_OWN}}


def _written(verify: Verify, check: HmacCheck | StandardWebhooksCheck) -> Iterator[str]:
    """The keys as somebody would write them."""
    if not verify:
        return
    if isinstance(check, StandardWebhooksCheck):
        yield "Standard Webhooks leaves no choice here: the sender has to follow it."
        return
    pairs = (f"{key}: {value if _PLAIN.fullmatch(value) else json.dumps(value)}" for key, value in verify.items())
    yield f"If the sender means it so, write under verify: {', '.join(pairs)}."
