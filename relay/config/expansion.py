"""`${VAR}`, `${VAR:-default}`, `${VAR:?message}`, `$$` and `${file:/path}` in string scalars.

Law: expansion happens after parsing and inside one scalar, so a value can never change the document's shape; what is
expanded is marked, so that no message shows it.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from relay.config.document import DEEPEST, Listing, Node, Scalar, Table
from relay.config.fingerprints import Fingerprint, fingerprint
from relay.config.problems import KeyPath, Refused, Report

MOST_NODES = 20_000
LARGEST_SECRET_FILE = 4096

_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::([-?])(.*))?", re.DOTALL)


class Expanded(str):
    """Text that came, at least in part, from outside the file; never shown. It knows which parts did."""

    __slots__ = ("parts",)
    parts: tuple[tuple[str, bool], ...]
    """Each with whether it came from outside; no two of the file's own stand side by side."""

    def __new__(cls, parts: Iterable[tuple[str, bool]]) -> Self:
        kept = tuple(part for part in parts if any(part))
        made = super().__new__(cls, "".join(text for text, _ in kept))
        made.parts = kept
        return made

    def __repr__(self) -> str:
        return "Expanded(***)"


class Escaped(str):
    """Text of the file in which `$$` stood for a dollar sign: one that is meant."""

    __slots__ = ()


class TooLarge(Exception):
    """Aliases would make the document larger than it may be."""

    def __init__(self) -> None:
        super().__init__(f"holds more than {MOST_NODES:,} values or {DEEPEST} levels, aliases counted as copies")


def plain_values(root: Node, env: Mapping[str, str], report: Report) -> Any:
    """The tree as dicts, lists and scalars, expanded; what cannot be expanded is reported and left out.

    In a list None takes its place, so that the others keep their indexes. Null is refused below the top-level
    sections. Raises `TooLarge` past 20,000 nodes, aliases counted as copies.
    """
    return _Expander(env, report).value(root, ())


_LEFT_OUT = object()


class _Expander:
    def __init__(self, env: Mapping[str, str], report: Report) -> None:
        self._env = env
        self._report = report
        self._nodes = 0

    def value(self, node: Node, path: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > MOST_NODES or len(path) > DEEPEST:
            raise TooLarge
        if isinstance(node, Table):
            values = {key: self.value(entry.node, (*path, key)) for key, entry in node.entries.items()}
            return {key: value for key, value in values.items() if value is not _LEFT_OUT}
        if isinstance(node, Listing):
            items = [self.value(item, (*path, index)) for index, item in enumerate(node.items)]
            return [None if item is _LEFT_OUT else item for item in items]
        return self._scalar(node, path)

    def _scalar(self, node: Scalar, path: KeyPath) -> Any:
        if node.value is None and len(path) > 1:
            is_secret = "secrets" in path or path[-1] == "token"
            message = "secret must be a quoted string, found null" if is_secret else "found null; give it a value"
            self._report.refuse(path, message)
            return _LEFT_OUT
        if not isinstance(node.value, str) or "$" not in node.value:
            return node.value
        try:
            return expand(node.value, self._env, lambda warning: self._report.warn(path, warning), self._report.files)
        except Refused as refused:
            self._report.refuse(path, str(refused))
            return _LEFT_OUT


def expand(
    text: str, env: Mapping[str, str], warn: Callable[[str], None], files: dict[Path, Fingerprint | None]
) -> str:
    """Text with its references replaced, once; an `Expanded` when any was, an `Escaped` when only `$$` was. Which files
    were read for it is noted in `files`.

    Raises `Refused` for what is unset, empty, unreadable or not closed.
    """
    parts: list[tuple[str, bool]] = []
    own, end = "", 0
    for match in _REFERENCE.finditer(text):
        own += text[end : match.start()]
        end = match.end()
        if match.group() == "$$":
            own += "$"
            continue
        if match.group(1) is None:
            raise Refused('"${" is not closed by a "}" (a "$" that is meant is written "$$")')
        inside = match.group(1)
        is_file = inside.startswith("file:")
        value = _file(inside.removeprefix("file:"), warn, files) if is_file else _variable(inside, env)
        parts += (own, False), (value, True)
        own = ""
    own += text[end:]
    if parts:
        return Expanded([*parts, (own, False)])
    return Escaped(own) if "$$" in text else text


def _variable(inside: str, env: Mapping[str, str]) -> str:
    form = _VARIABLE.fullmatch(inside)
    if form is None:
        raise Refused("not a variable: write ${NAME}, ${NAME:-default}, ${NAME:?message} or ${file:/path}")
    name, operator, word = form.groups()
    value = env.get(name, "")
    if value:
        return _unicode(value, f"environment variable {name}")
    if operator == "-":
        return str(word)
    if operator == "?" and word:
        raise Refused(f"environment variable {name} is not set: {word}")
    raise Refused(f"environment variable {name} is not set")


def _unicode(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{what} is not UTF-8 text") from None
    return value


def _file(name: str, warn: Callable[[str], None], files: dict[Path, Fingerprint | None]) -> str:
    """The file's text without one trailing line break."""
    what = f"file {name}"
    files[Path(name)] = None
    try:
        # without O_NONBLOCK a named pipe would hold the start up for ever
        descriptor = os.open(Path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{what} is not a regular file")
            content = file.read(LARGEST_SECRET_FILE + 1)
    except OSError as error:
        raise Refused(f"cannot read {what}: {error.strerror}") from None
    except ValueError as error:
        raise error if isinstance(error, Refused) else Refused("not a usable file name") from None
    files[Path(name)] = fingerprint(content)
    if len(content) > LARGEST_SECRET_FILE:
        raise Refused(f"{what} is larger than 4 KiB")
    if status.st_mode & stat.S_IROTH:
        warn(f"{what} can be read by every user of this machine")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Refused(f"{what} is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Refused(f"{what} is empty")
    return text
