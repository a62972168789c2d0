"""The rules that name an event: JMESPath into the body, or a header.

Law: compiled once, when the config is read; afterwards total. No content makes a namer raise: what cannot be read is
no name, because an authentic request is never refused for its content. A namer is a value: two of one rule are equal,
so that a reload sees which sources have changed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from relay.config import values
from relay.config.expansion import Expanded
from relay.config.expressions import expression
from relay.config.problems import Refused
from relay.model import Content, Namer
from relay.providers.reading import key_of, type_name
from relay.rules.expressions import EVALUATION_FAULTS

_HEADER = "header:"


@dataclass(frozen=True, slots=True)
class _EventType:
    """Names events; a name that is empty, too long or not printable is none."""

    read: Namer

    def __call__(self, content: Content) -> str | None:
        return type_name(self.read(content))


@dataclass(frozen=True, slots=True)
class _DedupeKey:
    """Keys events; an empty key is none, a long one is hashed."""

    read: Namer

    def __call__(self, content: Content) -> str | None:
        return key_of(self.read(content))


@dataclass(frozen=True, slots=True)
class _Header:
    """Reads a header."""

    name: str

    def __call__(self, content: Content) -> str | None:
        return content.header(self.name)


@dataclass(frozen=True, slots=True)
class _Expression:
    """Reads by JMESPath out of the document that `document` makes of a request."""

    rule: str
    document: Callable[[Content], Any]
    compiled: Any = field(compare=False)

    def __call__(self, content: Content) -> str | None:
        try:
            return _rendered(self.compiled.search(self.document(content)))
        except EVALUATION_FAULTS:
            return None


def event_type_namer(rule: str, *, form: bool) -> Namer:
    """A namer of event types; a name that is empty, too long or not printable is none. Raises `Refused`."""
    return _EventType(_reader(rule, form=form))


def dedupe_key_namer(rule: str, *, form: bool) -> Namer:
    """A namer of dedupe keys; an empty one is none, a long one is hashed. Raises `Refused`."""
    return _DedupeKey(_reader(rule, form=form))


def _reader(rule: str, *, form: bool) -> Namer:
    if rule.startswith(_HEADER):
        name = rule.removeprefix(_HEADER).strip()
        if isinstance(rule, Expanded) and not values.HEADER_NAME.fullmatch(name):
            raise Refused("the expanded value is not header: and a valid header name")
        return _Header(values.header_name(name))
    compiled = expression(rule, instead=" (header:NAME takes a header)")
    return _Expression(str(rule), _form if form else _json, compiled)


def _json(content: Content) -> Any:
    return content.json


def _form(content: Content) -> Any:
    """The fields of a form body as `form`; of a repeated field the first counts."""
    return {"form": content.form}


def _rendered(value: Any) -> str | None:
    """A string as it is, null as no name, anything else as compact JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
