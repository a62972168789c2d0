"""What the YAML says in JMESPath, accepted or refused: the one place where such a text is judged.

Law: what is accepted parses and calls only functions that there are; a condition reads nothing that an event does not
have. What is wrong is told with where it is wrong, but for a text that a variable was expanded into.
"""

import json
from typing import Any

from jmespath.functions import Functions

from relay.config import values
from relay.config.expansion import Expanded
from relay.config.problems import Refused, kind, quoted, suggestion
from relay.rules.expressions import VIEWED, WHOLE, NoExpression, compiled, header_names, reads
from relay.rules.forwarding import NEVER_KEPT

_LITERALS = frozenset({"true", "false", "null"})


def expression(text: str, *, instead: str = "") -> Any:
    """An expression that can be evaluated; `instead` is what else may stand in its place, for people. Raises
    `Refused`."""
    try:
        return compiled(text)
    except NoExpression as error:
        if error.unknown_function is not None:
            if isinstance(text, Expanded):
                raise Refused("the expanded value calls a JMESPath function that does not exist") from None
            near = suggestion(error.unknown_function, Functions.FUNCTION_TABLE)
            raise Refused(f"unknown JMESPath function {quoted(error.unknown_function)}{near}") from None
        if not error.is_syntax:
            raise Refused(str(error)) from None
        detail = f": {quoted(error.detail)[1:-1]}" if error.detail and not isinstance(text, Expanded) else ""
        raise Refused(f"{values.shown(text)} {error}{instead or detail}") from None


def condition(value: Any) -> str:
    """A condition on an event: an expression that reads members of the view alone. Raises `Refused`."""
    if not isinstance(value, str):
        raise Refused(f"must be a string, found {kind(value)}")
    if not value.strip():
        raise Refused("must not be empty")
    expression(value)
    check_names(value)
    return str(value)


def check_names(text: str) -> None:
    """Refuse an expression on an event that reads what no event has."""
    strangers = sorted(reads(text) - {*VIEWED, WHOLE})
    if strangers:
        raise Refused(_strange(text, strangers[0]))
    for name in sorted(header_names(text)):
        shown = "a header's name in the expanded value" if isinstance(text, Expanded) else quoted(name)
        if name.lower() in NEVER_KEPT:
            raise Refused(f"{shown} is a credential, which is not kept of an event")
        if name != name.lower():
            raise Refused(f"{shown} must stand in lower case, as all names of headers do here")


def _strange(text: str, name: str) -> str:
    """What to say of a name that no event has."""
    has = f"is nothing that an event has ({', '.join(VIEWED)})"
    if isinstance(text, Expanded):
        return f"a name in the expanded value {has}"
    if name in _LITERALS:
        hint = f"a literal stands in backticks: `{name}`"
    elif json.dumps(name) in text:
        hint = f"a text stands in single quotes: '{name}'"
    else:
        hint = f"did you mean body.{name}?"
    return f"{quoted(name)} {has}; {hint}"
