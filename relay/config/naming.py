"""The rules that name an event: JMESPath into the body, or a header.

Law: compiled once, when the config is read; afterwards total. No content makes a namer raise: what cannot be read is
no name, because an authentic request is never refused for its content. A namer is a value: two of one rule are equal,
so that a reload sees which sources have changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from relay.config import values
from relay.config.expansion import Expanded
from relay.config.expressions import expression
from relay.config.problems import Refused
from relay.model import Content, Namer
from relay.providers.reading import key_of, key_of_json, type_name
from relay.rules.exactness import text_json
from relay.rules.expressions import EVALUATION_FAULTS, search

_HEADER = "header:"
_MADE = frozenset({"multi_select_list", "multi_select_dict"})
"""Expressions such as `[a, b]`, which find nothing but what they make."""


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
            return _rendered(search(self.compiled, self.document(content)))
        except EVALUATION_FAULTS:
            return None


@dataclass(frozen=True, slots=True)
class _FoundKey:
    """Keys events by what an expression finds: a text or a number by its own characters, anything else by its JSON."""

    read: _Expression

    def __call__(self, content: Content) -> str | None:
        """Where an expression may find both, `true` has another key than the text that looks like it."""
        read = self.read
        try:
            value = search(read.compiled, read.document(content))
            text = _rendered(value)
        except EVALUATION_FAULTS:
            return None
        is_like_a_text = isinstance(value, bool | list | dict) and read.compiled.parsed["type"] not in _MADE
        return key_of_json(text) if is_like_a_text and text is not None else key_of(text)


def event_type_namer(rule: str, *, form: bool) -> Namer:
    """A namer of event types; a name that is empty, too long or not printable is none. Raises `Refused`."""
    return _EventType(_reader(rule, form=form))


def dedupe_key_namer(rule: str, *, form: bool) -> Namer:
    """A namer of dedupe keys; an empty one is none, a long one is hashed. Raises `Refused`."""
    read = _reader(rule, form=form)
    return _FoundKey(read) if isinstance(read, _Expression) else _DedupeKey(read)


def _reader(rule: str, *, form: bool) -> _Header | _Expression:
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
    """A string as it is, null as no name, anything else as compact JSON, in which a number is as it was written."""
    if value is None or isinstance(value, str):
        return value
    return text_json(value)
