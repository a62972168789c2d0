"""Templates of the YAML, filled with what an event says: Jinja2, sandboxed and strict.

Law: pure and total. Whoever wrote the template is trusted with its text, whoever sent the event with nothing: a value
is never read as a template, cannot leave the part of a URL that it stands in, and cannot make a text grow beyond a
bound or work without end. What a template lacks is `Unfilled` with a reason that holds nothing of the event.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError

from relay.rules.expressions import VIEWED
from relay.rules.sandbox import LONGEST_TEXT, MOST_STEPS, SLACK, STEPS, TEAMS, TEXT, URL, Environment, Unfilled

__all__ = [
    "SLACK",
    "TEAMS",
    "TEXT",
    "URL",
    "NoTemplate",
    "Unfilled",
    "assembled",
    "filler",
    "forbidden_names",
    "is_template",
    "literal",
    "literals",
    "skeleton",
    "unknown_names",
]

LONGEST_TEMPLATE = 100_000

_MARKS = ("{{", "{%", "{#")
_BRACES = re.compile(r"\{+")
_EVALUATION_FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)
_COMPILER_FAULTS = (SyntaxError, MemoryError)
"""What Python raises for the code of a template that is nested deeper than it compiles."""
_NAME = re.compile(r"'(?:[^']* has no attribute )?'?([A-Za-z_][A-Za-z0-9_]{0,63})'")
_OTHERS: tuple[type[nodes.Node], ...] = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)

_INSIDE = re.compile(r"__\w+__")

Part = tuple[str, bool]
"""Text, and whether it came from outside the YAML."""


class NoTemplate(ValueError):
    """A text that is no template; the message says why and where."""


def is_template(text: str) -> bool:
    """Whether a text holds anything to be filled in."""
    return any(mark in text for mark in _MARKS)


def literal(text: str) -> str:
    """A text that means itself inside a template: what came from the environment is no template."""
    return _BRACES.sub(r"{% raw %}\g<0>{% endraw %}", text)


def assembled(parts: Sequence[Part]) -> str | None:
    """One template out of its own parts and those from outside, which mean themselves; None where its own parts leave
    nothing to be filled in. No two own parts stand side by side.

    Raises:
        NoTemplate: a part from outside stands where the template has code, or it is no template at all.
    """
    own = "".join(text for text, is_outside in parts if not is_outside)
    stand_in = next(word for number in count() if (word := f"outside{number}") not in own)
    marked = "".join(stand_in if is_outside else text for text, is_outside in parts)
    if not is_template(marked):
        return None
    is_raw = False
    for kind, text in _tokens(marked):
        is_raw = kind == "raw_begin" or (is_raw and kind != "raw_end")
        if stand_in in text and (is_raw or kind != "data"):
            raise NoTemplate("a ${…} stands inside {{ }}, {% %} or {# #}; put it beside them")
    last = len(parts) - 1
    return "".join(
        literal(text)
        if is_outside
        # a brace before what comes from outside would open a tag together with its first character
        else text[:-1] + literal("{")
        if text.endswith("{") and index != last
        else text
        for index, (text, is_outside) in enumerate(parts)
    )


def skeleton(text: str, stand_in: str) -> str:
    """A template with each of its tags replaced.

    Raises:
        NoTemplate: it does not parse.
    """
    made: list[str] = []
    in_tag = False
    for kind, value in _tokens(text):
        if kind in {"raw_begin", "raw_end"}:
            continue
        if kind == "data":
            made.append(value)
        elif not in_tag:
            made.append(stand_in)
        in_tag = kind != "data" and not kind.endswith("_end")
    return "".join(made)


def literals(text: str) -> tuple[str, ...]:
    """What a template sends as it stands."""
    return tuple(part for part in skeleton(text, "\0").split("\0") if part)


def _tokens(text: str) -> list[tuple[str, str]]:
    try:
        return [(kind, value) for _, kind, value in TEXT.lex(text)]
    except TemplateError as error:
        raise NoTemplate(_told(error)) from None


def unknown_names(text: str) -> tuple[str, ...]:
    """The names that a template reads and no event has."""
    return tuple(sorted(meta.find_undeclared_variables(TEXT.parse(text)) - set(VIEWED)))


def forbidden_names(text: str) -> tuple[str, ...]:
    """What a template reads of Python's own insides, which the sandbox forbids whatever the event."""
    tree = TEXT.parse(text)
    named = [node.attr for node in tree.find_all(nodes.Getattr)]
    named += [node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)]
    return tuple(sorted({str(name) for name in named if _INSIDE.fullmatch(str(name))}))


@dataclass(frozen=True, slots=True)
class Filler:
    """A template that was read, ready to be filled."""

    template: Template
    source: str = field(default="", repr=False)

    def filled(self, view: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            Unfilled: a value is missing, or the text or the work is too long, or something else of the template failed.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self.template.generate({**view, STEPS: [MOST_STEPS]}):
                size += len(part)
                if size > LONGEST_TEXT:
                    raise Unfilled(f"it makes more than {LONGEST_TEXT} characters")
                parts.append(part)
        except Unfilled:
            raise
        except _EVALUATION_FAULTS as error:
            raise Unfilled(self._words(error)) from None
        return "".join(parts)

    def _words(self, error: Exception) -> str:
        if isinstance(error, SecurityError):
            return "it does what the sandbox forbids"
        if isinstance(error, UndefinedError):
            names = [name for name in _NAME.findall(str(error)) if name in self.source]  # not one that the event names
            return f"it needs {names[-1]!r}, which this event has not" if names else "a value is missing"
        if isinstance(error, RecursionError):
            return "it or the data is nested too deeply"
        return f"it failed on this event ({type(error).__name__})"


@lru_cache(maxsize=1024)
def filler(text: str, environment: Environment = TEXT) -> Filler:
    """A template of one kind.

    Raises:
        NoTemplate: it does not parse.
    """
    if len(text) > LONGEST_TEMPLATE:
        raise NoTemplate(f"a template longer than {LONGEST_TEMPLATE} characters")
    try:
        tree = environment.parse(text)
        if any(True for _ in tree.find_all(_OTHERS)):
            raise NoTemplate("is not a template: it names another one, and there is no place for them")
        environment.limit(tree)
        return Filler(environment.from_string(tree), text)
    except NoTemplate:
        raise
    except (TemplateError, *_COMPILER_FAULTS, *_EVALUATION_FAULTS) as error:
        raise NoTemplate(_told(error)) from None


def _told(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"is not a template: {error.message} (line {error.lineno} of it)"
    if isinstance(error, (*_COMPILER_FAULTS, RecursionError)):
        return "is not a template: it is nested too deep, or one thing is tied to too many others"
    return f"is not a template: {type(error).__name__}"
