"""What the YAML says of an event in JMESPath, and the view of an event that expressions and templates see.

Law: total. An expression that fails on an event is a `Failed` with its reason, never an exception, for whoever wrote
the expression is not whoever sends the event. What cannot parse was refused when the config was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jmespath
from jmespath.exceptions import IncompleteExpressionError, JMESPathError, LexerError
from jmespath.functions import Functions, signature
from jmespath.visitor import Options, TreeInterpreter

from relay.model import Content, Event, Headers
from relay.rules.exactness import ascii_json, document, text_json
from relay.rules.forwarding import rfc3339

LONGEST_EXPRESSION = 1000
NOTHING_BROUGHT: Any = None
"""`data` of an event for which nothing was fetched."""

EVALUATION_FAULTS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""What jmespath is seen to raise on odd data; its own errors are ValueErrors."""

_INTERPRETER = TreeInterpreter()

VIEWED = ("id", "type", "source", "received_at", "headers", "body", "form", "data")
"""The members of the view."""
WHOLE = "@"
"""Stands for the view as such."""

_HEADERS = {"type": "field", "value": "headers", "children": []}
_PROJECTIONS = frozenset({"index_expression", "projection", "value_projection", "filter_projection", "flatten"})
_BEHIND_THE_FIRST = _PROJECTIONS | {"subexpression", "pipe"}
"""Nodes whose later parts are evaluated on what their first one has found."""

View = Mapping[str, Any]
"""`id`, `type`, `source`, `received_at`, `headers` in lower case, `body` (parsed JSON, or null), `form` (the fields of
a form, or null) and `data`."""


class NoExpression(ValueError):
    """A text that is no expression; the message says why."""

    def __init__(
        self, message: str, *, unknown_function: str | None = None, is_syntax: bool = False, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.unknown_function = unknown_function
        self.detail = detail
        """What is wrong, and where, as far as that is known."""
        self.is_syntax = is_syntax
        """It is not JMESPath at all."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An expression that could not be evaluated on an event."""

    reason: str


def view_of(event: Event, body: bytes, data: Any = NOTHING_BROUGHT) -> View:
    """What expressions and templates see of an event; of a repeated header the first counts, and a number of the body
    is shown as it was written."""
    read = document(body)
    parsed, form = (read[1], None) if read is not None else (None, Content(event.headers, body).declared_form)
    return view_from(event.id, event.type, event.source, event.received_at, event.headers, parsed, form, data)


def view_from(
    id_: str,
    type_: str,
    source: str,
    received_at: datetime,
    headers: Headers,
    parsed: Any,
    form: Mapping[str, str] | None,
    data: Any = NOTHING_BROUGHT,
) -> View:
    """The same of what is to become an event, its body parsed already, as JSON or as a form."""
    first: dict[str, str] = {}
    for name, value in headers:
        first.setdefault(name.lower(), value)
    return {
        "id": id_,
        "type": type_,
        "source": source,
        "received_at": rfc3339(received_at),
        "headers": first,
        "body": parsed,
        "form": form,
        "data": data,
    }


def compiled(text: str) -> Any:
    """An expression that can be evaluated.

    Raises:
        NoExpression: it does not parse, is too long, or calls a function that there is not.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise NoExpression(f"expression longer than {LONGEST_EXPRESSION} characters")
    try:
        expression = jmespath.compile(text)
    except RecursionError:
        raise NoExpression("expression nested too deep") from None
    except (JMESPathError, *EVALUATION_FAULTS) as error:
        raise NoExpression("is not a JMESPath expression", is_syntax=True, detail=_detail(error)) from None
    _check_functions(expression.parsed)
    return expression


def _detail(error: Exception) -> str:
    """Where an expression stops being one."""
    place, token = getattr(error, "lex_position", None), getattr(error, "token_value", None)
    if isinstance(error, IncompleteExpressionError):
        return "it ends too early"
    if isinstance(error, LexerError):
        return f"{str(error.message).lower()}, column {error.lexer_position + 1}"
    if token is None or not isinstance(place, int):
        return ""
    is_number = getattr(error, "token_type", None) == "NUMBER"
    hint = f" (a number stands in backticks: `{token}`)" if is_number else ""
    return f"unexpected {token}, column {place + 1}{hint}"


@lru_cache(maxsize=1024)
def _expression(text: str) -> Any:
    return compiled(text)


def _check_functions(node: Any) -> None:
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
                raise NoExpression(f'unknown JMESPath function "{name}"', unknown_function=name)
            signature = known[name]["signature"]
            variadic = bool(signature) and signature[-1].get("variadic")
            if given < len(signature) or (given > len(signature) and not variadic):
                raise NoExpression(f'JMESPath function "{name}" takes {len(signature)} arguments, found {given}')
        pending.extend(node.get("children", ()))


class _Functions(Functions):  # type: ignore[misc]  # jmespath has no types
    """What expressions may call."""

    @signature({"types": []})  # type: ignore[untyped-decorator]
    def _func_to_string(self, value: Any) -> str:
        """JMESPath's own would write a number as the float that it makes."""
        return value if isinstance(value, str) else ascii_json(value)


_OPTIONS = Options(custom_functions=_Functions())


def search(expression: Any, document: Any) -> Any:
    """What a compiled expression finds in a document. Raises `EVALUATION_FAULTS`."""
    return expression.search(document, options=_OPTIONS)


def found(text: str, document: Any) -> Any | Failed:
    """What an expression finds in a document, None where nothing is there."""
    try:
        return search(_expression(text), document)
    except EVALUATION_FAULTS as error:
        return Failed(_words(error))


def holds(text: str, view: View) -> bool | Failed:
    """Whether a condition holds. As in JMESPath, null, false and what is empty do not."""
    value = found(text, view)
    if isinstance(value, Failed):
        return value
    return bool(value) or (isinstance(value, int | float) and not isinstance(value, bool))


def _words(error: Exception) -> str:
    """jmespath's own words without the values, which are the sender's."""
    if isinstance(error, RecursionError):
        return "the document is nested too deeply"
    kind = type(error).__name__.removesuffix("Error")
    function = getattr(error, "function_name", None)
    if function:
        return f"{function}() was given what it does not take"
    if isinstance(error, TypeError) and "not supported between" in str(error):
        return "a text and a number cannot be compared; to_number(…) makes a number of a text"
    return f"failed on this event ({kind})"


def reads_data(text: str) -> bool:
    """Whether an expression looks at `data`, so that it cannot be decided before that was fetched."""
    return not reads(text).isdisjoint(("data", WHOLE))


@lru_cache(maxsize=1024)
def reads(text: str) -> frozenset[str]:
    """The members of the view that an expression looks at, and `WHOLE` where it looks at the view as such."""
    try:
        return _reads(_expression(text).parsed)
    except EVALUATION_FAULTS:
        return frozenset({WHOLE})  # it fails on every event, which is told of each


def _reads(node: Mapping[str, Any]) -> frozenset[str]:
    """What a node reads that is evaluated on the whole view."""
    kind, children = node["type"], node.get("children", ())
    match kind:
        case "field":
            return frozenset({node["value"]})
        case "current" | "identity":
            return frozenset({WHOLE})
        case "literal" | "expref":
            return frozenset()
        case "subexpression" | "pipe":
            first, *rest = children
            return _reads(rest[0]) if first["type"] == "current" and rest else _reads(first)
        case _ if kind in _PROJECTIONS:
            return _reads(children[0])
    return frozenset[str]().union(*map(_reads, children))


def header_names(text: str) -> frozenset[str]:
    """The names of headers that an expression on the view looks for, as it writes them."""
    names: set[str] = set()
    pending: list[Any] = [_expression(text).parsed]
    while pending:
        node = pending.pop()
        children = [one for one in node.get("children", ()) if isinstance(one, dict)]
        is_on_headers = node["type"] == "subexpression" and children[0] == _HEADERS
        if is_on_headers and children[1]["type"] == "field":
            names.add(children[1]["value"])
        pending.extend(children[:1] if node["type"] in _BEHIND_THE_FIRST else children)
    return frozenset(names)


def as_text(value: Any) -> str:
    """A value as text: a string as it is, null as nothing, the rest as compact JSON. Raises as `json.dumps` does."""
    if value is None or isinstance(value, str):
        return value or ""
    return text_json(value)


def is_chosen(condition: Any, element: Any) -> bool:
    """Whether the parsed condition of a filter chooses an element; one that cannot be evaluated on it does: it is asked
    what is to be removed, and a doubt must not keep a secret."""
    try:
        return bool(_INTERPRETER.visit(condition, element))
    except EVALUATION_FAULTS:
        return True
