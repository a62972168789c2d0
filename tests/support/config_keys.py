"""Every key that the config has, read from the models themselves, so that a new one cannot be forgotten."""

import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml

from relay.config.fields import Section
from relay.config.places import bare
from relay.config.schema import DocumentSection
from relay.config.values import SecretText

Path = tuple[str | int, ...]

NAMES = {"sources": "partner", "targets": "crm", "enrichers": "stock", "headers": "X-Own"}
"""What stands for a name that the user gives."""


@dataclass(frozen=True)
class Key:
    """One key: where it stands, and what it takes."""

    path: Path
    is_section: bool
    """It holds a mapping whose keys are known."""
    is_named: bool
    """It holds a mapping whose keys the user gives."""
    is_list: bool
    is_secret: bool

    @property
    def text(self) -> str:
        """The path as a person would say it, names and numbers left out."""
        steps = [step for step in self.path if isinstance(step, str)]
        return ".".join("*" if before in NAMES else step for before, step in zip(["", *steps], steps, strict=False))


def every_key() -> tuple[Key, ...]:
    """All keys of the document, holders before what they hold."""
    return tuple(_keys(DocumentSection, ()))


def _keys(section: type[Section], path: Path) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        here = (*path, field.alias or name)
        kind = bare(field.annotation)
        inner = section_of(kind)
        is_named = typing.get_origin(kind) is dict
        is_list = typing.get_origin(kind) is list
        item = bare(typing.get_args(kind)[-1]) if is_named or is_list else kind
        yield Key(here, inner is not None and not is_named and not is_list, is_named, is_list, item is SecretText)
        if is_named:
            here = (*here, NAMES[str(here[-1])])
        elif is_list:
            here = (*here, 0)
        if inner is not None:
            yield from _keys(inner, here)


def section_of(kind: Any) -> type[Section] | None:
    """The model behind a type, through lists, mappings and the like."""
    kind = bare(kind)
    if typing.get_origin(kind) in {dict, list}:
        return section_of(typing.get_args(kind)[-1])
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


NULL = "!null!"

BAD: dict[str, Any] = {
    "null": NULL,
    "empty text": "",
    "true": True,
    "a number": 7,
    "a negative number": -1,
    "a huge number": 999_999_999_999_999_999,
    "a fraction": 1.5,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "a list": [],
    "a list of lists": [[1]],
    "a mapping": {},
    "a mapping of strangers": {"zzz": 1},
    "an unset variable": "${NOT_SET}",
    "a variable that is not closed": "${NOT_CLOSED",
    "a malformed variable": "${NOT-A-NAME}",
    "a control character": "a\x1b[31mb",
    "a line break": "a\nb",
}


def holding(keys: Iterable[Key], value: Any) -> str:
    """A document in which each of these keys has a value, and nothing else stands but what holds them."""
    whole: dict[str, Any] = {}
    for key in keys:
        holder: Any = whole
        for step, following in zip(key.path, key.path[1:], strict=False):
            empty: Any = [] if isinstance(following, int) else {}
            if isinstance(holder, list):
                if not holder:
                    holder.append(empty)
                holder = holder[0]
            else:
                holder = holder.setdefault(step, empty)
        holder[key.path[-1]] = value
    for place in ("targets", "enrichers"):  # a section without its scheme is told of nothing else
        named = whole.get(place)
        for one in named.values() if isinstance(named, dict) else ():
            if isinstance(one, dict) and isinstance(one.get("auth"), dict):
                one["auth"].setdefault("scheme", "bearer")
    return yaml.safe_dump(whole, sort_keys=False, width=10**9).replace(f"'{NULL}'", "")


def by_depth() -> Iterator[tuple[Key, ...]]:
    """Groups of keys none of which holds another."""
    for _, keys in groupby(sorted(every_key(), key=lambda key: len(key.path)), key=lambda key: len(key.path)):
        yield tuple(keys)
