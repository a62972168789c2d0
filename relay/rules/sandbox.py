"""The environments that templates are filled in: Jinja2, sandboxed, strict, and bounded.

Law: whoever wrote a template is trusted with its text, whoever sent the event with nothing. Each kind of text has one
environment, which finishes every value as that text demands; no value can make one operation grow beyond a bound.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from jinja2 import StrictUndefined, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_batch, do_center, do_indent, do_round, sync_do_join, sync_do_slice
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context, pass_eval_context

from relay.rules.exactness import ascii_json
from relay.rules.expressions import as_text

LONGEST_TEXT = 4 * 1024 * 1024
"""Characters that a template may make."""
MOST_STEPS = 100_000
"""What the loops, filters and searches of a template may do in all while it is filled: an event may name how long each
of them is, and one within another multiplies."""
STEPS = "steps left"
"""Under this name a template finds them; no name of its own holds a space."""
LONGEST_POWER = 1000
WIDEST = 1000
"""What a width, an indent or a precision may be: an event may name it."""

_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[^%A-Za-z]*(?:\*|[0-9]{4,})")
_WIDE_BRACES = re.compile(r":[^{}]*(?:\{|[0-9]{4,})")
_TEAMS_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>&])")
_LINE_BREAKS = re.compile(r"\r\n|\r|\n")
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_COUNTING: Mapping[str, Callable[..., Any]] = {
    "center": do_center,
    "indent": do_indent,
    "batch": do_batch,
    "slice": sync_do_slice,
    "round": do_round,
}

Finish = Callable[[Any], Any]
_LOOPED, _SEARCHED = "looped over", "searched"


class Unfilled(Exception):
    """A template that could not be filled; the message is for people and holds no value of the event."""


def _in_url(value: Any) -> str:
    """One value as one part of a URL: it brings no separators, and may not be what means another place."""
    text = as_text(value)
    if not text:
        raise Unfilled("a value is empty")
    if text in {".", ".."}:
        raise Unfilled("a value is a dot segment")
    return quote(text, safe="", errors="replace")


def _in_slack(value: Any) -> str:
    """Slack reads `&`, `<` and `>` as control characters and nothing else (its guide to formatting text)."""
    return as_text(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _in_teams(value: Any) -> str:
    """The Markdown of an adaptive card's text, with each mark of it escaped; it takes two line breaks for one."""
    return _LINE_BREAKS.sub("\n\n", _TEAMS_MARKUP.sub(r"\\\1", as_text(value)))


def _as_text(value: Any) -> str:
    """As it stands in a text: null is nothing, and true is not Python's True."""
    return as_text(_known(value))


class Environment(ImmutableSandboxedEnvironment):
    """One environment for each kind of text: what is filled in is finished as the text demands."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, finish: Finish) -> None:
        super().__init__(
            undefined=StrictUndefined,
            autoescape=False,
            finalize=lambda value: finish(_known(value)),
            keep_trailing_newline=True,
        )
        self.filters |= {name: partial(_counted, original) for name, original in _COUNTING.items()}
        self.filters |= {"tojson": _to_json, "replace": _replaced, "join": _joined, "format": _formatted}
        self.filters |= {"safe": _known, "string": _as_text, _LOOPED: _looped, _SEARCHED: _searched}
        self.globals.pop("lipsum", None)

    def limit(self, tree: nodes.Template) -> None:
        """Have each loop, filter and search of a parsed template take the steps that it needs before it begins."""
        loops, filters = list(tree.find_all(nodes.For)), list(tree.find_all(nodes.Filter))
        for loop in loops:
            loop.iter = self._first(_LOOPED, loop.iter)
        for one in filters:
            one.node = None if one.node is None else self._first(_SEARCHED, one.node)
        for operand in tree.find_all(nodes.Operand):
            if operand.op in {"in", "notin"}:
                operand.expr = self._first(_SEARCHED, operand.expr)

    def _first(self, name: str, expression: Any) -> nodes.Filter:
        return nodes.Filter(expression, name, [], [], None, None, lineno=expression.lineno, environment=self)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`data.items` is the member of that name, where there is one, and not what Python calls so."""
        return obj[attribute] if isinstance(obj, dict) and attribute in obj else super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what grows beyond all bounds by one operator."""
        if operator == "%":
            return _formatted(left, right) if isinstance(left, str) else super().call_binop(context, "%", left, right)
        if operator == "**" and (abs(left) > LONGEST_POWER or abs(right) > LONGEST_POWER):
            raise SecurityError("too large")
        for side, other in ((left, right), (right, left)):
            if isinstance(side, str | bytes | list | tuple):
                _check_size(len(side) * (other if isinstance(other, int) else 1))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Refuse a method of a text that makes one beyond all bounds."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        _searched(context, owner)
        if isinstance(owner, str):
            if name in _PADDING:
                _check_counts((*args, *kwargs.values()))
            elif name == "replace" and len(args) > 1:
                _check_replacing(owner, *args[:2])
            elif name == "join":
                args = (_checked_items(owner, *args),)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """The sandbox's own `format` of a text, without widths beyond all bounds."""
        owner = getattr(value, "__self__", None)
        text = owner if isinstance(owner, str) and getattr(value, "__name__", "") in {"format", "format_map"} else ""
        if _WIDE_BRACES.search(text):
            raise SecurityError("too large")
        return super().wrap_str_format(value)


def _known(value: Any) -> Any:
    """A value that is there; a missing one raises what says its name. An `if` without `else` means to bring nothing."""
    if type(value) is Undefined:
        return None
    if isinstance(value, Undefined):
        str(value)
    return value


def _take(context: Context, steps: int) -> None:
    left: Any = context.resolve(STEPS)
    left[0] -= steps
    if left[0] < 0:
        raise Unfilled(f"it takes more than {MOST_STEPS} steps on this event")


@pass_context
def _looped(context: Context, items: Any) -> list[Any]:
    """What a loop goes over; one within another takes its steps each time anew."""
    listed = list(items)
    _take(context, 1 + len(listed))
    return listed


@pass_context
def _searched(context: Context, value: Any) -> Any:
    """What is looked through in one go, which is so much faster than a loop."""
    if isinstance(value, list | tuple | dict):
        _take(context, 1 + len(value) // 20)
    elif isinstance(value, str):
        _take(context, 1 + len(value) // 1000)
    return value


def _check_size(size: int) -> None:
    if size > LONGEST_TEXT:
        raise SecurityError("too large")


def _check_counts(values: Any) -> None:
    if any(isinstance(value, int | float) and abs(value) > WIDEST for value in values):
        raise SecurityError("too large")


def _check_replacing(text: str, old: Any, new: Any) -> None:
    _check_size(len(text) + text.count(str(old)) * len(str(new)))


def _checked_items(separator: str, items: Any) -> list[Any]:
    listed = list(items)
    _check_size(len(listed) * len(separator) + sum(len(item) for item in listed if isinstance(item, str)))
    return listed


def _counted(original: Callable[..., Any], value: Any, *args: Any, **kwargs: Any) -> Any:
    _check_counts((*args, *kwargs.values()))
    return original(value, *args, **kwargs)


def _replaced(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text = as_text(_known(value))
    _check_replacing(text, old, new)
    return text.replace(str(old), str(new), count)


@pass_eval_context
def _joined(context: EvalContext, value: Any, separator: str = "", attribute: Any = None) -> Any:
    return sync_do_join(context, _checked_items(str(separator), _known(value)), separator, attribute)


def _formatted(value: Any, *args: Any, **kwargs: Any) -> str:
    """Text with its `%` marks filled in."""
    text = str(_known(value))
    if _WIDE_PERCENT.search(text):
        raise SecurityError("too large")
    first = args[0] if len(args) == 1 and isinstance(args[0], dict | tuple) else args
    return text % (kwargs or first)


def _to_json(value: Any) -> str:
    return ascii_json(_known(value))


TEXT, URL, SLACK, TEAMS = (Environment(finish) for finish in (as_text, _in_url, _in_slack, _in_teams))
