"""What is taken out of fetched data before anything is stored.

Law: pure and total. A path that finds nothing removes nothing; one that could not be walked is refused when the config
is read, so that nobody believes a secret removed that is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from relay.rules.expressions import NoExpression, compiled, is_chosen


class _All(Enum):
    ITEMS = auto()
    """Every element of a list; those of lists within it too."""
    VALUES = auto()
    """Every member of an object."""
    MERGED = auto()
    """What a projection has found, lists in it merged: their elements, and as it is what is no list."""


@dataclass(frozen=True, slots=True)
class _Those:
    """The elements of a list for which a condition holds."""

    condition: Any


_Step = str | int | _All | _Those


@lru_cache(maxsize=256)
def steps(text: str) -> tuple[_Step, ...]:
    """A path, step by step: names, `[0]`, `[*]` or `[]`, `.*` and `[?…]`.

    Raises:
        NoExpression: it is no JMESPath, or computes something that stands nowhere in the document.
    """
    found = list(_steps(compiled(text).parsed))
    while found and found[-1] is _All.MERGED:
        found.pop()  # whatever is merged goes with what holds it
    if not found:
        raise NoExpression("finds the whole document; name what is to be removed from it")
    return tuple(found)


def _steps(node: Any) -> Iterator[_Step]:
    kind, children = node["type"], node.get("children", ())
    match kind:
        case "current" | "identity":
            return
        case "field" | "index":
            yield node["value"]
        case "subexpression" | "index_expression":
            for child in children:
                yield from _steps(child)
        case "projection" | "value_projection" | "filter_projection":
            yield from _steps(children[0])
            if kind == "filter_projection":
                yield _Those(children[2])
            elif children[0]["type"] != "flatten":
                yield _All.VALUES if kind == "value_projection" else _All.ITEMS
            yield from _steps(children[1])
        case "flatten":
            yield from _steps(children[0])
            yield _All.MERGED if children[0]["type"].endswith("projection") else _All.ITEMS
        case _:
            raise NoExpression("is not a path: only names, [0], [*], .* and [?…] can be removed")


def without(document: Any, paths: tuple[str, ...]) -> Any:
    """A parsed document without what the paths find; it is changed in place."""
    for path in paths:
        *way, last = steps(path)
        holders = [document]
        for step in way:
            holders = [inner for holder in holders for inner in _behind(step, holder)]
        for holder in holders:
            _remove(last, holder)
    return document


def without_members(document: Any, names: frozenset[str]) -> Any:
    """A parsed document without the members of these names (in lower case), wherever they stand; changed in place."""
    pending = [document] if names else []
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for name in [name for name in value if name.lower() in names]:
                del value[name]
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return document


def _behind(step: _Step, value: Any) -> Iterator[Any]:
    """The values that one step leads to, as they stand in the document."""
    if isinstance(value, dict):
        if isinstance(step, str) and step in value:
            yield value[step]
        elif step is _All.VALUES:
            yield from value.values()
        elif step is _All.MERGED:
            yield value
    elif isinstance(value, list):
        if isinstance(step, int) and -len(value) <= step < len(value):
            yield value[step]
        elif step is _All.ITEMS or step is _All.MERGED:
            for element in value:
                yield element
                yield from element if isinstance(element, list) else ()
        elif isinstance(step, _Those):
            yield from (element for element in value if is_chosen(step.condition, element))


def _remove(step: _Step, value: Any) -> None:
    if isinstance(value, dict):
        if isinstance(step, str):
            value.pop(step, None)
        elif step is _All.VALUES:
            value.clear()
    elif isinstance(value, list):
        if isinstance(step, int) and -len(value) <= step < len(value):
            del value[step]
        elif step is _All.ITEMS:
            value.clear()
        elif isinstance(step, _Those):
            value[:] = [element for element in value if not is_chosen(step.condition, element)]
