"""Problems with their places, and the report that gathers them.

Law: every problem is reported at once, each once, each with its place; no message holds a secret's value. A problem
that only follows from another one (its key could not be read) is left out.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from relay.config.fingerprints import Fingerprint

KeyPath = tuple[str | int, ...]
"""Where a value stands in the document: mapping keys and list indexes from the top."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BEFORE_A_VALUE = re.compile(r"[:=]|(?<=Bearer)\s|(?<=Basic)\s", re.IGNORECASE)
_LONGEST_SHOWN = 60


class Refused(ValueError):
    """A value is not acceptable; the message is fit to be shown."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line and a column, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong (or, as a warning, doubtful) and where; a problem of the whole file has no place and no key."""

    line: int | None
    column: int | None
    key: str
    message: str

    def at(self, file: str | Path) -> str:
        """The problem as one line, the file named as the user typed it."""
        place = f"{file}" if self.line is None else f"{file}:{self.line}:{self.column}"
        return _one_line(": ".join(filter(None, (place, self.key, self.message))))


class ConfigRefused(Exception):
    """The config is not fit to run. `problems` has every reason, by line; `str()` is one line a problem. `files` are
    those it was read from, each with its content's fingerprint, as far as they are known."""

    def __init__(
        self, path: Path, problems: Iterable[Problem], files: Mapping[Path, Fingerprint | None] | None = None
    ) -> None:
        self.path = path
        self.files = dict(files or {})
        self.problems = tuple(sorted(problems, key=_by_place))
        super().__init__("\n".join(problem.at(path) for problem in self.problems))


class Report:
    """Gathers the problems and warnings of one document, and which files it was read from."""

    def __init__(
        self, locate: Callable[[KeyPath], Place | None], tellable: Callable[[KeyPath], KeyPath] = lambda path: path
    ) -> None:
        """`locate` knows the places of the document, `tellable` how much of a path may be told."""
        self.files: dict[Path, Fingerprint | None] = {}
        """Fingerprints of the contents that were read; None where a file could not be."""
        self._locate = locate
        self._tellable = tellable
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._refused: set[KeyPath] = set()
        self._holders: set[KeyPath] = set()
        """All that hold something refused: sets, because a file may have thousands of faults."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All refusals, by line."""
        return tuple(sorted(self._problems, key=_by_place))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """All warnings, by line."""
        return tuple(sorted(self._warnings, key=_by_place))

    def refuse(self, path: KeyPath, message: str) -> None:
        """Add a problem, unless the value at `path` or one that holds it was refused already."""
        if not self._is_within(path):
            self._problems.append(self._problem(path, message))
            self.mark_broken(path)

    def warn(self, path: KeyPath, message: str) -> None:
        """Add a warning."""
        self._warnings.append(self._problem(path, message))

    def warner(self, path: KeyPath) -> Callable[[str], None]:
        """What warns of the value at `path`."""
        return lambda message: self.warn(path, message)

    def mark_broken(self, path: KeyPath) -> None:
        """Take `path` as refused, because the problem is told elsewhere."""
        self._refused.add(path)
        self._holders.update(path[:length] for length in range(len(path)))

    def is_broken(self, path: KeyPath) -> bool:
        """Whether the value at `path` is not what the user wrote, since it, a part or a holder of it was refused."""
        return path in self._holders or self._is_within(path)

    def _is_within(self, path: KeyPath) -> bool:
        return any(path[:length] in self._refused for length in range(len(path) + 1))

    def _problem(self, path: KeyPath, message: str) -> Problem:
        place = self._locate(path)
        if path and isinstance(path[-1], int) and place == self._locate(path[:-1]):
            path = path[:-1]  # the only item of a list that was written without one
        line, column = (place.line, place.column) if place else (None, None)
        return Problem(line, column, key_text(self._tellable(path)), message)


def key_text(path: KeyPath) -> str:
    """The path as people write it: `targets.crm.timeout`, `routes[0].to[1]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_KEY.fullmatch(step) else key_name(step)
            text = f"{text}.{name}" if text else name
    return text


def key_name(key: str) -> str:
    """A key in quotes; of one that may be a header with its value, as in `"X-Key: abc"`, the header alone."""
    mark = _BEFORE_A_VALUE.search(key)
    return quoted(key if mark is None else f"{key[: mark.end()]}…")


def quoted(text: str) -> str:
    """Text in quotes on one line: what cannot be printed is escaped, what is long is cut."""
    short = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
    return json.dumps(short, ensure_ascii=not short.isprintable())


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` for the nearest known word, or nothing."""
    near = nearest(word, known)
    return f"; did you mean {quoted(near)}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    if len(word) > _LONGEST_SHOWN:
        return None
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)), None)


def kind(value: object) -> str:
    """What a YAML value is, in words."""
    names = {bool: "boolean", int: "integer", float: "number", list: "list", dict: "mapping", type(None): "null"}
    return names.get(type(value), "string")


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _by_place(problem: Problem) -> tuple[int, int, str]:
    return (problem.line or 0, problem.column or 0, problem.key)
