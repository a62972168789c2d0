"""The rules that name an event: JMESPath into the body, or a header.

Law: compiled once, when the config is read; afterwards total. No content makes a namer raise: what cannot be read is
no name, because an authentic request is never refused for its content. A namer is a value: two of one rule are equal,
so that a reload sees which sources have changed.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions

from relay.config import values
from relay.config.problems import Refused, quoted, suggestion
from relay.model import Content

Namer = Callable[[Content], str | None]

LONGEST_TYPE = 200
"""Characters of a type that are believed to be one."""
LONGEST_KEY = 200
"""Characters of a dedupe key that are kept as they are; a longer one is kept as its SHA-256."""

_LONGEST_EXPRESSION = 1000
_MOST_FIELDS = 1000
_HEADER = "header:"
_EVALUATION_FAULTS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""What jmespath is seen to raise on odd data; its own errors are ValueErrors."""


def nameless(_content: Content) -> None:
    """Names nothing."""


@dataclass(frozen=True, slots=True)
class _EventType:
    """Names events; a name that is empty, too long or not printable is none."""

    read: Namer

    def __call__(self, content: Content) -> str | None:
        name = self.read(content)
        return name if name and len(name) <= LONGEST_TYPE and name.isprintable() else None


@dataclass(frozen=True, slots=True)
class _DedupeKey:
    """Keys events; an empty key is none, a long one is hashed."""

    read: Namer

    def __call__(self, content: Content) -> str | None:
        key = self.read(content)
        if not key:
            return None
        octets = key.encode("utf-8", "surrogatepass")
        if len(key) > LONGEST_KEY or not key.isprintable():
            return f"sha256:{hashlib.sha256(octets).hexdigest()}"
        return key


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
        except _EVALUATION_FAULTS:
            return None


def event_type_namer(rule: str, *, form: bool) -> Namer:
    """A namer of event types; a name that is empty, too long or not printable is none. Raises `Refused`."""
    return _EventType(_reader(rule, form=form))


def dedupe_key_namer(rule: str, *, form: bool) -> Namer:
    """A namer of dedupe keys; an empty one is none, a long one is hashed. Raises `Refused`."""
    return _DedupeKey(_reader(rule, form=form))


def _reader(rule: str, *, form: bool) -> Namer:
    if rule.startswith(_HEADER):
        return _Header(values.header_name(rule.removeprefix(_HEADER).strip()))
    return _Expression(rule, _form if form else _json, _compiled(rule))


def _compiled(rule: str) -> Any:
    if len(rule) > _LONGEST_EXPRESSION:
        raise Refused(f"expression longer than {_LONGEST_EXPRESSION} characters")
    try:
        expression = jmespath.compile(rule)
    except (JMESPathError, *_EVALUATION_FAULTS):
        raise Refused(f"{values.shown(rule)} is not a JMESPath expression (header:NAME takes a header)") from None
    _refuse_unknown_functions(expression.parsed)
    return expression


def _refuse_unknown_functions(node: Any) -> None:
    """jmespath finds a wrong function only when it calls it, which is too late for us."""
    known = Functions.FUNCTION_TABLE
    pending = [node]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        if node.get("type") == "function_expression":
            name, given = node["value"], len(node["children"])
            if name not in known:
                raise Refused(f"unknown JMESPath function {quoted(name)}{suggestion(name, known)}")
            signature = known[name]["signature"]
            variadic = bool(signature) and signature[-1].get("variadic")
            if given < len(signature) or (given > len(signature) and not variadic):
                raise Refused(f"JMESPath function {quoted(name)} takes {len(signature)} arguments, found {given}")
        pending.extend(node.get("children", ()))


def _json(content: Content) -> Any:
    return content.json


def _form(content: Content) -> Any:
    """The fields of a form body as `form`; of a repeated field the first counts."""
    form: dict[str, str] = {}
    fields = parse_qsl(content.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    for name, value in fields:
        form.setdefault(name, value)
    return {"form": form}


def _rendered(value: Any) -> str | None:
    """A string as it is, null as no name, anything else as compact JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
