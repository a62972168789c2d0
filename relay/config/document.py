"""YAML into a tree whose every value knows its place.

Law: a document means what it says. Scalars resolve as in YAML 1.2's core schema, and less: `true`, `false`, `null`,
decimal numbers; `on`, `no`, `12:30`, `0123` and dates stay text. Tags, duplicate keys and several documents are
refused. Parser events are read one by one, so that no depth or size of input recurses or expands without bound, and
no message repeats input that may be a secret.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from relay.config.fingerprints import Fingerprint, fingerprint
from relay.config.problems import KeyPath, Place, Problem, key_name, key_text, quoted

LARGEST_FILE = 1024 * 1024
DEEPEST = 64

Value = str | int | float | bool | None

_LOADER: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?(0|[1-9][0-9]*)[eE][-+]?[0-9]+")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value, as YAML means it."""

    place: Place
    value: Value


@dataclass(frozen=True, slots=True)
class Listing:
    """A list."""

    place: Place
    items: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of a mapping and the place of its key."""

    key_place: Place
    node: "Node"


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; keys are text."""

    place: Place
    entries: dict[str, Entry] = field(default_factory=dict)


Node = Scalar | Listing | Table


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds: the tree (None when it could not be read) and what is wrong with it as YAML."""

    root: Node | None
    problems: tuple[Problem, ...]
    fingerprint: Fingerprint | None = None
    """Of the file's content; None where it could not be read."""

    def locate(self, path: KeyPath) -> Place | None:
        """The place of the key or item at `path`, or of the nearest one above it that was written."""
        place, node = None, self.root
        for step in path:
            if isinstance(node, Table) and isinstance(step, str) and step in node.entries:
                place, node = node.entries[step].key_place, node.entries[step].node
            elif isinstance(node, Listing) and isinstance(step, int) and step < len(node.items):
                node = node.items[step]
                place = node.place
            else:
                break
        return place


class _Broken(Exception):
    """The document cannot be read any further."""

    def __init__(self, message: str, place: Place | None = None, key: str = "") -> None:
        super().__init__(message)
        line, column = (place.line, place.column) if place else (None, None)
        self.problem = Problem(line, column, key, message)


Tellable = Callable[[KeyPath], KeyPath]
"""How much of a path may be told."""


def read(path: Path, *, tellable: Tellable = lambda path: path) -> Document:
    """Read and compose a file; total: what is wrong is in `problems`."""
    try:
        content = _bytes(path)
        return replace(compose(content, tellable=tellable), fingerprint=fingerprint(content))
    except _Broken as error:
        return Document(None, (error.problem,))


def compose(content: bytes, *, tellable: Tellable = lambda path: path) -> Document:
    """Compose one YAML document out of bytes; total."""
    try:
        text = _text(content)
        composer = _Composer(text, tellable)
        root = composer.document()
    except _Broken as error:
        return Document(None, (error.problem,))
    except yaml.MarkedYAMLError as error:
        return Document(None, (_syntax_problem(error, text),))
    except yaml.YAMLError:
        return Document(None, (Problem(None, None, "", "not valid YAML"),))
    return Document(root, tuple(composer.problems))


def _bytes(path: Path) -> bytes:
    try:
        # opened without O_NONBLOCK, a named pipe to which nobody writes would be waited for without end
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            os.set_blocking(file.fileno(), True)
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _Broken(f"cannot read config: {reason or 'not a usable path'}") from None
    if len(content) > LARGEST_FILE:
        raise _Broken("config larger than 1 MiB")
    return content


def _text(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        raise _Broken("not UTF-8 text", _place_after(before)) from None
    if bad := _NOT_YAML.search(text):
        raise _Broken(f"character U+{ord(bad.group()):04X} is not allowed in YAML", _place_after(text[: bad.start()]))
    return text


def _place_after(before: str) -> Place:
    lines = _LINE_BREAK.split(before)
    return Place(len(lines), len(lines[-1]) + 1)


def _mark_place(mark: Any) -> Place:
    """The place of a mark; the two parsers' marks share no class."""
    return Place(mark.line + 1, mark.column + 1)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = _mark_place(mark) if mark else None
    message = str(error.problem or "not valid YAML")
    if _is_tab(message, text, place):
        message = "YAML does not allow tabs for indentation"
    elif "nesting depth" in message:  # newer parsers have a bound of their own, and may meet it before ours
        message = f"nested deeper than {DEEPEST} levels"
    elif "tag" in message:
        message = 'a YAML tag is not allowed; quote a value that begins with "!"'
    elif _LOADER is yaml.SafeLoader:
        message = "not valid YAML"  # the pure-Python parser's phrases may repeat input
    else:
        message = " ".join(("not valid YAML:", message, *filter(None, (error.context,))))
    return Problem(place.line if place else None, place.column if place else None, "", message)


def _is_tab(message: str, text: str, place: Place | None) -> bool:
    if "tab character" in message:
        return True
    if place is None or "cannot start any token" not in message:
        return False
    lines = _LINE_BREAK.split(text)
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    return line[place.column - 1 : place.column] == "\t"


class _Composer:
    """Builds the tree from parser events; recursion is bounded by the depth it refuses."""

    def __init__(self, text: str, tellable: Tellable) -> None:
        self._tellable = tellable
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, Node | None] = {}
        self.problems: list[Problem] = []

    def document(self) -> Node | None:
        """The one document's tree, None when there is none."""
        root: Node | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Broken("more than one YAML document", _mark_place(event.start_mark))
                root = self._node(next(self._events), (), 0)
        return root

    def _node(self, event: yaml.Event, path: KeyPath, depth: int) -> Node:
        place = _mark_place(event.start_mark)
        if depth > DEEPEST:
            raise _Broken(f"nested deeper than {DEEPEST} levels", place)
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event, place, path)
        assert isinstance(event, yaml.NodeEvent)
        builders: dict[type[yaml.Event], Callable[[yaml.Event, Place, KeyPath, int], Node]] = {
            yaml.ScalarEvent: self._scalar,
            yaml.SequenceStartEvent: self._listing,
            yaml.MappingStartEvent: self._table,
        }
        if (tag := getattr(event, "tag", None)) is not None:
            self._refuse(place, path, _tag_message(tag))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = builders[type(event)](event, place, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _aliased(self, event: yaml.AliasEvent, place: Place, path: KeyPath) -> Node:
        if event.anchor not in self._anchors:
            raise _Broken('undefined alias; quote a value that begins with "*"', place, self._key_text(path))
        node = self._anchors[event.anchor]
        if node is None:
            raise _Broken("an alias cannot stand inside what it names", place, self._key_text(path))
        return node

    def _scalar(self, event: yaml.Event, place: Place, _path: KeyPath, _depth: int) -> Scalar:
        assert isinstance(event, yaml.ScalarEvent)
        return Scalar(place, _resolved(event.value) if event.implicit[0] else event.value)

    def _listing(self, _event: yaml.Event, place: Place, path: KeyPath, depth: int) -> Listing:
        listing = Listing(place)
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            listing.items.append(self._node(event, (*path, len(listing.items)), depth + 1))
        return listing

    def _table(self, _event: yaml.Event, place: Place, path: KeyPath, depth: int) -> Table:
        table = Table(place)
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key_place = _mark_place(event.start_mark)
            if not isinstance(event, yaml.ScalarEvent):
                raise _Broken("a key must be plain text", key_place, self._key_text(path))
            key = str(event.value)
            node = self._node(next(self._events), (*path, key), depth + 1)
            if key == "<<":
                self._refuse(key_place, path, 'merge keys ("<<") do not exist here; use an alias for a whole value')
            elif key in table.entries:
                first = table.entries[key].key_place.line
                name = f" {key_name(key)}" if self._tellable((*path, key)) == (*path, key) else ""
                self._refuse(key_place, (*path, key), f"duplicate key{name} (first in line {first})")
            else:
                table.entries[key] = Entry(key_place, node)
        return table

    def _refuse(self, place: Place, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(place.line, place.column, self._key_text(path), message))

    def _key_text(self, path: KeyPath) -> str:
        return key_text(self._tellable(path))


def _tag_message(tag: str) -> str:
    if tag.startswith(_CORE_TAG):
        return f"tag {quoted('!!' + tag.removeprefix(_CORE_TAG))} is not allowed"
    return 'a YAML tag is not allowed; quote a value that begins with "!"'


def _resolved(text: str) -> Value:
    """A plain scalar's meaning by YAML 1.2, section 10.3, without its octal and hexadecimal integers."""
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text in {"true", "True", "TRUE"}:
        return True
    if text in {"false", "False", "FALSE"}:
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text
