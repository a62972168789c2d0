"""Digests as they stand in headers, in whatever spelling a sender gave them.

Law: total and bounded over what strangers send. A digest is known by its length; whose it is, another module tries.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass

from relay.model import Headers

ALGORITHMS = {20: "sha1", 28: "sha224", 32: "sha256", 48: "sha384", 64: "sha512"}
"""The algorithm by the bytes of its digest."""

_LONGEST_VALUE = 4096
_MOST_HEADERS = 100
_MOST_DIGESTS = 64
_TOKEN = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_PREFIX = re.compile(r"[A-Za-z0-9-]{1,12}[=:, ]$")


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest in a header."""

    header: str
    raw: bytes
    encoding: str
    before: str
    """The prefix before it, such as `sha256=`."""
    is_alone: bool
    """Whether the header holds nothing but a prefix and this."""

    @property
    def algorithm(self) -> str:
        """What makes digests of this length."""
        return ALGORITHMS[len(self.raw)]


def digests(headers: Headers, first: str) -> list[Digest]:
    """All that may be a digest, those in the header `first` before all others."""
    wanted = first.lower()
    ordered = sorted(headers[:_MOST_HEADERS], key=lambda header: header[0].lower() != wanted)
    return [digest for name, value in ordered for digest in _in_value(name, value)][:_MOST_DIGESTS]


def _in_value(name: str, value: str) -> Iterator[Digest]:
    value = value.strip()
    if len(value) > _LONGEST_VALUE:
        return
    for token in _TOKEN.finditer(value):
        prefix = _PREFIX.search(value[: token.start()])
        before = prefix[0] if prefix else ""
        is_alone = len(before) == token.start() and token.end() == len(value)
        for encoding, raw in _decoded(token[0]):
            yield Digest(name, raw, encoding, before, is_alone)


def _decoded(token: str) -> Iterator[tuple[str, bytes]]:
    """What a token means, if it is a digest: hex, base64 in its kinds, or one in the other."""
    if _HEX.fullmatch(token) and len(token) // 2 in ALGORITHMS:
        yield "hex", bytes.fromhex(token)
    bare = token.rstrip("=")
    padded = bare + "=" * (-len(bare) % 4)
    try:
        decoded = b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        return
    if len(decoded) in ALGORITHMS:
        kind = "URL-safe base64" if set("-_") & set(token) else "base64"
        yield kind if token == padded else f"{kind} without its padding", decoded
    inner = decoded.decode("latin-1")
    if _HEX.fullmatch(inner) and len(inner) // 2 in ALGORITHMS:
        yield "base64 of its hex text", bytes.fromhex(inner)
