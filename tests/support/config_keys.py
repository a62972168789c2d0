"""Every key that the config has, read from the models themselves, so that a new one cannot be forgotten."""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.config.fields import Section
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
        kind = _bare(field.annotation)
        inner = section_of(kind)
        is_named = typing.get_origin(kind) is dict
        is_list = typing.get_origin(kind) is list
        item = _bare(typing.get_args(kind)[-1]) if is_named or is_list else kind
        yield Key(here, inner is not None and not is_named and not is_list, is_named, is_list, item is SecretText)
        if is_named:
            here = (*here, NAMES[str(here[-1])])
        elif is_list:
            here = (*here, 0)
        if inner is not None:
            yield from _keys(inner, here)


def section_of(kind: Any) -> type[Section] | None:
    """The model behind a type, through lists, mappings and the like."""
    kind = _bare(kind)
    if typing.get_origin(kind) in {dict, list}:
        return section_of(typing.get_args(kind)[-1])
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _bare(annotation: Any) -> Any:
    """A type without its metadata and its `None`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return _bare(next(part for part in typing.get_args(annotation) if part is not types.NoneType))
    return annotation
