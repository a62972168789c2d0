"""What the providers' rules share: how a name is read out of a request, and when it is believed to be one.

Law: total. No content of a body or a header makes a reader raise; it only leaves a name out. A name is text that every
store and every header can carry, and an id keeps its own digits, however many bits it has.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from relay.model import Content

JSON = "application/json"

LONGEST_TYPE = 200
"""Characters of a type that are believed to be one."""
LONGEST_KEY = 200
"""Characters of a dedupe key that are kept as they are; a longer one is kept as its SHA-256."""


def member(value: Any, *path: str) -> Any:
    """What stands in a JSON object under a key, and in that under the next; None where there is no such place."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def exact(value: Any) -> str | None:
    """An id in its own digits or characters; None for what cannot name anything exactly."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return text if 0 < len(text) <= LONGEST_KEY else None


def type_name(value: Any) -> str | None:
    """A value that may be an event's type: text that is neither empty, nor too long, nor unprintable."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TYPE:
        return None
    return value if value.isprintable() else None


def first_type(*values: Any) -> str | None:
    """The first value that may be an event's type."""
    return next((name for value in values if (name := type_name(value)) is not None), None)


def joined(kind: Any, action: Any) -> str | None:
    """`kind.action`, or the kind alone where the action is none, so that `kind.*` is a glob for all its actions."""
    name, more = type_name(kind), type_name(action)
    return name if name is None or more is None else type_name(f"{name}.{more}") or name


def key_of(value: Any) -> str | None:
    """A dedupe key out of an id: as it is, or as its SHA-256 where it is long or unprintable; None for no id."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    text = str(value)
    if len(text) <= LONGEST_KEY and text.isprintable():
        return text
    return _hashed(text.encode("utf-8", "surrogatepass"))


def key_of_json(text: str) -> str:
    """A dedupe key out of the JSON of a value that is neither a text nor a number; no text has the same one."""
    return _hashed(b"\xff" + text.encode("utf-8", "surrogatepass"))  # no text begins with that byte in UTF-8


def _hashed(octets: bytes) -> str:
    return f"sha256:{sha256(octets).hexdigest()}"


def json_in(text: str | None) -> Any:
    """The JSON that a field of a form holds, None where it holds none."""
    return None if text is None else Content((), text.encode("utf-8", "surrogatepass")).json


def compact(value: Any) -> bytes:
    """JSON without white space, as most senders write it."""
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class TypeInHeader:
    """Names events after a header."""

    header: str

    def __call__(self, content: Content) -> str | None:
        return type_name(content.header(self.header))


@dataclass(frozen=True, slots=True)
class KeyInHeader:
    """Keys events by the first of some headers that is there."""

    headers: tuple[str, ...]

    def __call__(self, content: Content) -> str | None:
        return next((key for name in self.headers if (key := key_of(content.header(name))) is not None), None)


@dataclass(frozen=True, slots=True)
class TypeInBody:
    """Names events after the first of some members of the JSON body that may be a type."""

    members: tuple[str, ...]

    def __call__(self, content: Content) -> str | None:
        document = content.json
        for name in self.members:
            if (found := type_name(member(document, name))) is not None:
                return found
        return None


@dataclass(frozen=True, slots=True)
class KeyInBody:
    """Keys events by a member of the JSON body."""

    name: str

    def __call__(self, content: Content) -> str | None:
        return key_of(member(content.json, self.name))


def nameless(_content: Content) -> None:
    """Names nothing: the type stays unknown, or every request is an event of its own."""
