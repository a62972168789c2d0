"""What the models know of a place in the document: which section reads it, and how much of its path may be told.

Law: a path names what the schema, or the user, gave a name. What stands as a key where a value belongs may be that
value itself, as in `secrets: {abc}` or `- abc:`, and is never told; nor is an unknown key that no person would make up.
"""

import re
import types
import typing
from typing import Any

from relay.config.fields import Section
from relay.config.problems import KeyPath
from relay.config.schema import DocumentSection

_SECRETIVE = re.compile(r"(?=.{10})(?=.*[0-9])(?=.*[A-Za-z])|.{40}", re.DOTALL)
"""An unknown key that may be a secret: letters and digits mixed, or longer than words are."""


def section_at(path: KeyPath) -> type[Section]:
    """The model that reads the mapping at `path`."""
    section: type[Section] = _kinds(path)[-1]
    return section


def tellable(path: KeyPath) -> KeyPath:
    """The path as far as its steps are names: an unknown key of a section is one, what stands below a value is not."""
    return path[: len(_kinds(path)) - 1]


def _kinds(path: KeyPath) -> list[Any]:
    """The types that read the document, and what each step leads to; it ends where a step is no name."""
    kinds: list[Any] = [DocumentSection]
    for step in path:
        kind = kinds[-1]
        if kind is None:
            break
        origin = typing.get_origin(kind)
        if origin is list and isinstance(step, int):
            kinds.append(bare(typing.get_args(kind)[0]))
        elif origin is dict and isinstance(step, str):
            kinds.append(bare(typing.get_args(kind)[1]))
        elif isinstance(kind, type) and issubclass(kind, Section) and isinstance(step, str):
            fields = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
            if step not in fields and _SECRETIVE.search(step):
                break
            kinds.append(bare(fields[step]) if step in fields else None)
        else:
            break
    return kinds


def bare(annotation: Any) -> Any:
    """A type without its metadata and its `None`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return bare(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return bare(next(part for part in typing.get_args(annotation) if part is not types.NoneType))
    return annotation
