"""JSON as a form, as PHP and Rails read it.

Law: pure. Every value arrives as the text that JSON has for it, null as nothing; what is inside another value is named
by its way there: `a[b][0]`. An empty list or mapping has nothing to send.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_plus

from relay.rules.expressions import as_text

LONGEST_FORM = 4 * 1024 * 1024
"""Characters; names repeat their way, so that deep data could grow far beyond its own size."""


class NoForm(ValueError):
    """A value that no form can hold; the message says why."""


def form(value: Any) -> str:
    """`application/x-www-form-urlencoded` (the URL standard, section 5) of an object.

    Raises:
        NoForm: it is no object, or too large or too deep.
    """
    if not isinstance(value, dict):
        raise NoForm("a form is made of an object, and this is none")
    parts: list[str] = []
    size = 0
    try:
        for name, text in _fields(value):
            parts.append(f"{_encoded(name)}={_encoded(text)}")
            size += len(parts[-1]) + 1
            if size > LONGEST_FORM:
                raise NoForm(f"the form is longer than {LONGEST_FORM} characters")
    except RecursionError:
        raise NoForm("the data is nested too deeply for a form") from None
    return "&".join(parts)


def _encoded(text: str) -> str:
    return quote_plus(text, errors="replace")


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _fields(item, f"{name}[{key}]" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _fields(item, f"{name}[{index}]")
    else:
        yield name, as_text(value)
