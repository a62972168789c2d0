"""What a signature that the relay does not believe was made of: tries the usual mistakes until one explains it.

Law: only a digest that matches is an explanation. Nothing here judges a request; whatever is found, `verify` has the
last word. Secrets are tried, never told; the work is bounded.
"""

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import new as hashed
from itertools import product

from relay.model import Headers, HmacCheck, Secret, Source, StandardWebhooksCheck
from relay.rules.diagnosis.bodies import variants
from relay.rules.diagnosis.digests import Digest, digests
from relay.rules.diagnosis.steps import Posted
from relay.rules.signing import as_hmac, octets, signed_bytes, signed_fields

MOST_WORK = 512 * 1024 * 1024
"""Bytes that are hashed before the search gives up."""
_COST = 1024
"""What one digest costs beside its message, in bytes."""
_MOST_CHANGES = 2
"""Mistakes at a time, beside those of spelling: three at once explain anything."""
_MOST_VALUES = 3

_SIGNED = (
    "{body}",
    "{timestamp}.{body}",
    "{timestamp}:{body}",
    "v0:{timestamp}:{body}",
    "{timestamp}{body}",
    "{body}{timestamp}",
    "{timestamp}\n{body}",
    "{id}.{timestamp}.{body}",
    "{timestamp}.{id}.{body}",
    "{id}{timestamp}{body}",
    "{id}.{body}",
    "{id}{body}",
)
"""What senders are known to sign."""

_TIMES = re.compile(r"timestamp|-time$|-ts$|^date$", re.IGNORECASE)
_IDS = re.compile(r"(?:^|-)(?:id|delivery|uuid|nonce)$", re.IGNORECASE)
_IN_LIST = re.compile(r"(?:^|[,; ])t=([0-9]{10,16})(?=[,; ]|$)")
ITS_OWN = "its own header"
"""Where a timestamp stands that is beside the proof, which the check does not look for there."""
_WHITE = (b"\n", b"\r\n", b" ")
_QUOTES = (b'"', b"'")

_COPY = "The sender's copy of the secret is not what the config has: copy it anew."
_BYTES = "The relay signs with the text of the secret: the sender has to do the same."
_DECODES = "Where the sender follows Standard Webhooks, use verify: {scheme: standard_webhooks}, which decodes it."


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may have been used; `how` is empty for one that should be."""

    how: str
    value: bytes = field(repr=False)
    fix: str = ""
    is_of_source: bool = True
    """Whether it was made of a secret of the source itself."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What may have been signed; `how` is empty for what should be."""

    how: str
    signed: str
    timestamp: bytes = b""
    message_id: bytes = b""
    timestamp_header: str | None = None
    id_header: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """What explains a digest."""

    digest: Digest
    body: str
    layout: Layout
    key: Key
    is_plain: bool = False
    """Whether it is a plain hash with the key beside the message, no HMAC."""


def scheme_of(check: HmacCheck | StandardWebhooksCheck) -> HmacCheck:
    """The check as the HMAC that it is."""
    return check if isinstance(check, HmacCheck) else as_hmac(check)


def explained(sent: Posted, scheme: HmacCheck, *, others: Sequence[Source]) -> Match | None:
    """What one of the digests in the headers was made of; None where no usual mistake explains any.

    `others` are sources whose secrets may have been used by mistake. The fewest changes win.
    """
    found = digests(sent.headers, scheme.header)
    wanted = {digest.raw: digest for digest in reversed(found)}
    algorithms = {digest.algorithm for digest in found}
    if not found:
        return None
    bodies = variants(sent.body or b"")
    layouts = _layouts(sent, scheme)
    keys = _keys(scheme.secrets, others)
    spent = 0
    for body, layout, key in _tries(bodies, layouts, keys):
        message = signed_bytes(layout.signed, body=body[1], timestamp=layout.timestamp, message_id=layout.message_id)
        for algorithm in algorithms:
            digest = wanted.get(hmac.digest(key.value, message, algorithm))
            if digest is not None:
                return Match(digest, body[0], layout, key)
            spent += len(message) + _COST
        if spent > MOST_WORK:
            return None
    return _plain(sent.body or b"", wanted, scheme.secrets)


def _tries(
    bodies: Sequence[tuple[str, bytes]], layouts: Sequence[Layout], keys: Sequence[Key]
) -> Iterator[tuple[tuple[str, bytes], Layout, Key]]:
    """What is tried, the fewest changes first."""
    for changes in range(_MOST_CHANGES + 1):
        for body, layout, key in product(bodies, layouts, keys):
            if bool(body[0]) + bool(layout.how) + bool(key.how) == changes:
                yield body, layout, key


def _plain(body: bytes, wanted: dict[bytes, Digest], secrets: Sequence[Secret]) -> Match | None:
    """A hash that is no HMAC: of the body alone, or with the key before or behind it."""
    keys = [secret.value for secret in secrets]
    messages = [body, *(key + body for key in keys), *(body + key for key in keys)]
    for message, algorithm in product(messages, {digest.algorithm for digest in wanted.values()}):
        digest = wanted.get(hashed(algorithm, message).digest())
        if digest is not None:
            return Match(digest, "", Layout("", "{body}"), Key("", b""), is_plain=True)
    return None


def _layouts(sent: Posted, scheme: HmacCheck) -> list[Layout]:
    """What may have been signed: first as the check says, then what other senders sign."""
    own = (scheme.timestamp_header, scheme.id_header)
    times = _times(sent, scheme)
    ids = _values(sent.headers, scheme.id_header, _IDS)
    found: list[Layout] = []
    for signed in dict.fromkeys((scheme.signed, *_SIGNED)):
        fields = signed_fields(signed)
        for (time_header, timestamp), (id_header, message_id) in product(
            times if "timestamp" in fields else [(own[0], b"")], ids if "id" in fields else [(own[1], b"")]
        ):
            is_own = signed == scheme.signed and (time_header, id_header) == own
            how = "" if is_own else _said_layout(signed, fields, time_header, id_header)
            found.append(Layout(how, signed, timestamp, message_id, time_header, id_header))
    return found


def _said_layout(signed: str, fields: frozenset[str], time_header: str | None, id_header: str | None) -> str:
    named = {"timestamp": time_header, "id": id_header}
    where = [f"{field} from {named[field]}" for field in ("timestamp", "id") if field in fields]
    shown = signed.replace("\n", "\\n")
    return f'over "{shown}"' + (f" ({', '.join(where)})" if where else "")


def _values(headers: Headers, own: str | None, names: re.Pattern[str]) -> list[tuple[str | None, bytes]]:
    """The values that may be a timestamp or an id, with their headers; that of the check's own header first."""
    wanted = (own or "").lower()
    named = [header for header in headers if names.search(header[0]) or header[0].lower() == wanted]
    ordered = sorted(named, key=lambda header: header[0].lower() != wanted)
    return [(own if name.lower() == wanted else name, octets(value)) for name, value in ordered[:_MOST_VALUES]]


def _times(sent: Posted, scheme: HmacCheck) -> list[tuple[str | None, bytes]]:
    """The values that may be a timestamp, where the check has it first; some senders put it into the proof's own
    header: `t=1700000000,v1=…`."""
    elsewhere = _values(sent.headers, scheme.timestamp_header, _TIMES)
    listed = [octets(found[1]) for value in sent.values(scheme.header)[:1] if (found := _IN_LIST.search(value))]
    if scheme.listing is not None and scheme.listing.timestamp_prefix:
        return [(None, time) for time in listed] + elsewhere
    return elsewhere + [(ITS_OWN, time) for time in listed]


def _keys(secrets: Sequence[Secret], others: Sequence[Source]) -> list[Key]:
    """The keys that may have been used, the right ones first."""
    found = [Key("", secret.value) for secret in secrets]
    for secret in secrets:
        found += _respelled(secret.value)
    found.append(Key("with an empty key", b"", "The sender has no secret: set it there.", is_of_source=False))
    for other in others:
        fix = f"It belongs to source {other.name}, or the two secrets are mixed up."
        how = f"with the secret of source {other.name}"
        for secret in getattr(other.check, "secrets", ()):
            found.append(Key(how, secret.value, fix, is_of_source=False))
            found += (Key(f"{how}, decoded", key, fix, is_of_source=False) for key in _inside(secret.value))
    unique: dict[bytes, Key] = {}
    for key in found:
        unique.setdefault(key.value, key)
    return list(unique.values())


def _respelled(secret: bytes) -> Iterator[Key]:
    """The forms in which a sender may have taken a secret."""
    yield Key("with the secret without the white space around it", secret.strip(), _COPY)
    for white in _WHITE:
        yield Key("with white space behind the secret", secret + white, _COPY)
        yield Key("with white space before the secret", white + secret, _COPY)
    for quote in _QUOTES:
        yield Key("with the secret in quotes", quote + secret + quote, _COPY)
        yield Key("with the secret without its quotes", secret.strip(quote), _COPY)
    yield Key("with the secret in lower case", secret.lower(), _COPY)
    yield Key("with the secret in upper case", secret.upper(), _COPY)
    for inner in _inside(secret):
        advice = _DECODES if secret.startswith(b"whsec_") else _BYTES
        yield Key("with the bytes that the secret is a text of", inner, advice)
    encoded = b64encode(secret)
    for text in (encoded, encoded.rstrip(b"="), b"whsec_" + encoded):
        yield Key("with the text of the secret, not decoded", text, "The sender has to decode its base64 first.")


def _inside(secret: bytes) -> Iterator[bytes]:
    """The bytes of which a secret may be the text: behind a prefix, in base64, in hex."""
    bare = secret.removeprefix(b"whsec_")
    text = bare.decode("latin-1")
    decoders: tuple[Callable[[], bytes], ...] = (
        lambda: b64decode(bare, validate=True),
        lambda: b64decode(bare + b"=" * (-len(bare) % 4), altchars=b"-_", validate=True),
        lambda: bytes.fromhex(text),
    )
    for decode in decoders:
        try:
            yield decode()
        except ValueError:
            continue
    yield bare
