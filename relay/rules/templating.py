"""Templates of the YAML, filled with what an event says: Jinja2, sandboxed and strict.

Law: pure and total. Whoever wrote the template is trusted with its text, whoever sent the event with nothing: a value
is never read as a template, cannot leave the part of a URL that it stands in, and cannot make a text grow beyond a
bound. What a template lacks is `Unfilled` with a reason that holds nothing of the event.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from relay.rules.expressions import as_text

LONGEST_TEXT = 4 * 1024 * 1024
"""Characters that a template may make."""
LONGEST_TEMPLATE = 100_000
LONGEST_POWER = 1000

_MARKS = ("{{", "{%", "{#")
_EVALUATION_FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)
_NAME = re.compile(r"'(?:[^']* has no attribute )?'?([A-Za-z_][A-Za-z0-9_]{0,63})'")

Finish = Callable[[Any], Any]


class NoTemplate(ValueError):
    """A text that is no template; the message says why and where."""


class Unfilled(Exception):
    """A template that could not be filled; the message is for people and holds no value of the event."""


def is_template(text: str) -> bool:
    """Whether a text holds anything to be filled in."""
    return any(mark in text for mark in _MARKS)


def literal(text: str) -> str:
    """A text that means itself inside a template: what came from the environment is no template."""
    return text.replace("{", "{{ '{' }}") if "{" in text else text


def _plain(value: Any) -> str:
    return as_text(value)


def _in_url(value: Any) -> str:
    """One value as one part of a URL: it brings no separators, and may not be what means another place."""
    text = as_text(value)
    if not text:
        raise Unfilled("a value of the URL is empty")
    if text.strip(".") == "" and len(text) < 3:
        raise Unfilled("a value of the URL is a dot segment")
    return quote(text, safe="", errors="replace")


def _in_slack(value: Any) -> str:
    """Slack reads `&`, `<` and `>` as control characters and nothing else (its guide to formatting text)."""
    return as_text(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_TEAMS_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>&])")


def _in_teams(value: Any) -> str:
    """The Markdown of an adaptive card's text, with each mark of it escaped."""
    return _TEAMS_MARKUP.sub(r"\\\1", as_text(value))


class _Environment(ImmutableSandboxedEnvironment):
    """One environment for each kind of text: what is filled in is finished as the text demands."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, finish: Finish) -> None:
        super().__init__(
            undefined=StrictUndefined,
            autoescape=False,
            finalize=lambda value: finish(_known(value)),
            keep_trailing_newline=True,
        )
        self.filters["tojson"] = _to_json
        self.globals.pop("lipsum", None)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`data.items` is the member of that name, where there is one, and not what Python calls so."""
        return obj[attribute] if isinstance(obj, dict) and attribute in obj else super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what grows beyond all bounds by one operator."""
        if any(
            isinstance(side, str | list | tuple) and len(side) * _times(other) > LONGEST_TEXT
            for side, other in ((left, right), (right, left))
        ):
            raise SecurityError("too large")
        if operator == "**" and (abs(left) > LONGEST_POWER or abs(right) > LONGEST_POWER):
            raise SecurityError("too large")
        return super().call_binop(context, operator, left, right)


def _times(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _known(value: Any) -> Any:
    """A value that is there; a missing one raises what says its name."""
    if isinstance(value, Undefined):
        str(value)
    return value


def _to_json(value: Any) -> str:
    """JSON in ASCII: the same whatever the text around it is encoded in."""
    return json.dumps(_known(value), allow_nan=False)


TEXT, URL, SLACK, TEAMS = (_Environment(finish) for finish in (_plain, _in_url, _in_slack, _in_teams))


@dataclass(frozen=True, slots=True)
class Filler:
    """A template that was read, ready to be filled."""

    template: Template

    def filled(self, view: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            Unfilled: a value is missing, or the text is too long, or something else of the template failed.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self.template.generate(view):
                size += len(part)
                if size > LONGEST_TEXT:
                    raise Unfilled(f"the template makes more than {LONGEST_TEXT} characters")
                parts.append(part)
        except Unfilled:
            raise
        except _EVALUATION_FAULTS as error:
            raise Unfilled(_words(error)) from None
        return "".join(parts)


@lru_cache(maxsize=1024)
def filler(text: str, environment: ImmutableSandboxedEnvironment = TEXT) -> Filler:
    """A template of one kind.

    Raises:
        NoTemplate: it does not parse.
    """
    if len(text) > LONGEST_TEMPLATE:
        raise NoTemplate(f"a template longer than {LONGEST_TEMPLATE} characters")
    try:
        return Filler(environment.from_string(text))
    except TemplateSyntaxError as error:
        raise NoTemplate(f"is not a template: {error.message} (line {error.lineno} of it)") from None
    except (TemplateError, *_EVALUATION_FAULTS) as error:
        raise NoTemplate(f"is not a template: {type(error).__name__}") from None


def _words(error: Exception) -> str:
    if isinstance(error, SecurityError):
        return "the template does what the sandbox forbids"
    if isinstance(error, UndefinedError):
        names = _NAME.findall(str(error))
        return f"the template needs {names[-1]!r}, which this event has not" if names else "a value is missing"
    if isinstance(error, RecursionError):
        return "the template or its data is nested too deeply"
    return f"the template failed on this event ({type(error).__name__})"
