"""What a body may have been before somebody touched it.

Law: total and bounded. Every change is one that frameworks, editors, shells or proxies are known to make.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

LARGEST_JSON = 8 * 1024 * 1024
"""Bytes; a larger body is not written anew."""

_BOM = b"\xef\xbb\xbf"
_COMPACT = (",", ":")

_TOUCHES: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("the body without its last newline", lambda body: body.removesuffix(b"\n").removesuffix(b"\r")),
    ("the body with a newline at its end", lambda body: body + b"\n"),
    ("the body with CRLF at its end", lambda body: body + b"\r\n"),
    ("the body without white space around it", bytes.strip),
    ("the body with CRLF where it has LF", lambda body: body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")),
    ("the body with LF where it has CRLF", lambda body: body.replace(b"\r\n", b"\n")),
    ("the body without any newline", lambda body: body.replace(b"\r", b"").replace(b"\n", b"")),
    ("the body without its byte order mark", lambda body: body.removeprefix(_BOM)),
    ("the body with a byte order mark", lambda body: _BOM + body),
    ("the body in Latin-1", lambda body: body.decode().encode("latin-1")),
    ("the body as UTF-8 made of Latin-1", lambda body: body.decode("latin-1").encode()),
    ("an empty body", lambda _body: b""),
)
_WRITTEN: tuple[tuple[str, json.JSONEncoder], ...] = (
    ("the JSON written compactly", json.JSONEncoder(separators=_COMPACT, ensure_ascii=False)),
    ("the JSON written compactly in ASCII", json.JSONEncoder(separators=_COMPACT)),
    ("the JSON with a space behind commas and colons", json.JSONEncoder(ensure_ascii=False)),
    ("the JSON with such spaces, in ASCII", json.JSONEncoder()),
    ("the JSON indented by 2", json.JSONEncoder(indent=2, ensure_ascii=False)),
    ("the JSON indented by 4", json.JSONEncoder(indent=4, ensure_ascii=False)),
    ("the JSON with sorted keys", json.JSONEncoder(separators=_COMPACT, ensure_ascii=False, sort_keys=True)),
)


def variants(body: bytes) -> list[tuple[str, bytes]]:
    """The body as it is, nameless, and then what it may have been: each with its name, none twice."""
    found = {body: ""}
    for name, changed in _changed(body):
        found.setdefault(changed, name)
    return [(name, changed) for changed, name in found.items()]


def _changed(body: bytes) -> Iterator[tuple[str, bytes]]:
    for name, touch in _TOUCHES:
        try:
            yield name, touch(body)
        except UnicodeError:
            continue
    if len(body) > LARGEST_JSON:
        return
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    for name, encoder in _WRITTEN:
        try:
            written = _written(value, encoder, most=4 * len(body) + 4096)
        except (ValueError, RecursionError):
            continue
        yield name, written
        if encoder.ensure_ascii:
            yield f"{name}, as PHP does", written.replace(b"/", b"\\/")


def _written(value: Any, encoder: json.JSONEncoder, *, most: int) -> bytes:
    """The value as JSON; indentation multiplies what is nested deeply, so what grows too large is a `ValueError`."""
    if not encoder.indent:
        return encoder.encode(value).encode()
    parts: list[str] = []
    size = 0
    for part in encoder.iterencode(value):
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError
    return "".join(parts).encode()
