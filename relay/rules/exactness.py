"""JSON that is read and written again without a digit lost.

Law: a number leaves as it was written, whether it is 1.10, 1E400 or longer than a machine word; so does the order of
keys. What is not JSON (RFC 8259: neither is NaN) is refused, never repaired.
"""

import json
from collections.abc import Callable
from typing import Any

from relay.model.numbers import Exact, number
from relay.model.receiving import LARGE, loads_in_turns


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def read(text: str | bytes) -> Any:
    """A value out of JSON text or bytes. Raises ValueError, or RecursionError where it is nested too deeply."""
    loads = loads_in_turns if len(text) > LARGE else json.loads
    return loads(text, parse_float=number, parse_constant=_refused)


def document(body: bytes) -> tuple[str, Any] | None:
    """The text of a body that is JSON, without the white space around it, and its value; None for any other body."""
    try:
        text = body.decode(json.detect_encoding(body)).removeprefix("\ufeff").strip(" \t\r\n")
        return text, read(text)
    except (ValueError, RecursionError):
        return None


_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


def ascii_json(value: Any) -> str:
    """Compact JSON in ASCII: the same whatever the text around it is encoded in. Raises as `json.dumps` does."""
    return _written(value, _ascii)


def text_json(value: Any) -> str:
    """Compact JSON that people can read. Raises as `json.dumps` does."""
    return _written(value, _text)


def _written(value: Any, dumps: Callable[[Any], str]) -> str:
    if not _has_exact(value):
        return dumps(value)  # at thirty times the speed of what follows
    parts: list[str] = []
    _write(value, dumps, parts.append)
    return "".join(parts)


def _has_exact(value: Any) -> bool:
    """Whether there is a number that the standard library would write in another way."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list | tuple):
            pending += one
        elif isinstance(one, Exact):
            return True
    return False


def _write(value: Any, dumps: Callable[[Any], str], put: Callable[[str], None]) -> None:
    if isinstance(value, Exact):
        put(value.text)
    elif isinstance(value, dict) and all(type(key) is str for key in value):
        mark = "{"
        for key, item in value.items():
            put(f"{mark}{dumps(key)}:")
            _write(item, dumps, put)
            mark = ","
        put("}" if value else "{}")
    elif isinstance(value, list | tuple):
        mark = "["
        for item in value:
            put(mark)
            _write(item, dumps, put)
            mark = ","
        put("]" if value else "[]")
    else:
        put(dumps(value))
