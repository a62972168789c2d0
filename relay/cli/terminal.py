"""What is put on a terminal: failures in words, tables, spans of time.

Law: nothing that came from outside reaches a terminal unescaped, and all fits into its width.
"""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

import click

_MISUSE = frozenset({400, 422})
"""Answers of a relay that was asked for something that makes no sense."""
LEAST = 12
"""Columns that a name keeps in a table that is too wide."""
NARROWEST = 40
WIDEST = 160


class Failure(click.ClickException):
    """What was asked for did not happen; the message says why and what to do."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the words on stderr."""
        click.echo(f"relay: {self.message}", file=file, err=file is None)


class Refused(Failure):
    """What a relay would not do; the words are its own."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status
        self.exit_code = 2 if status in _MISUSE else 1  # type: ignore[misc]  # click reads it from the instance


class Unanswered(Failure):
    """Nobody is there to do it, or whoever is does not answer."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers stand to the right."""

    title: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell; `style` is what `click.style` takes."""

    text: str
    colour: str | None = None


def safe(text: str) -> str:
    """Text from outside on one line: what a terminal might obey is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def width() -> int:
    """Columns to write in."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of a table, the titles first; what makes it wider than a terminal is cut from its first column."""
    widths = _widths(columns, rows)
    over = sum(widths) + 2 * (len(widths) - 1) - width()
    if over > 0 and sys.stdout.isatty():
        room = max(LEAST, len(columns[0].title), widths[0] - over)
        rows = [(Cell(cut(row[0].text, room), row[0].colour), *row[1:]) for row in rows]
        widths = _widths(columns, rows)
    titles = [Cell(column.title, "bright_black") for column in columns]
    return [_line(columns, widths, row) for row in (titles, *rows)]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[int]:
    return [max(len(column.title), *(len(row[index].text) for row in rows), 0) for index, column in enumerate(columns)]


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[Cell]) -> str:
    cells: list[str] = []
    for index, (column, size, cell) in enumerate(zip(columns, widths, row, strict=True)):
        is_last = index == len(columns) - 1
        padded = cell.text.rjust(size) if column.is_number else cell.text.ljust(0 if is_last else size)
        cells.append(click.style(padded, fg=cell.colour) if cell.colour else padded)
    return "  ".join(cells).rstrip()


def note(text: str) -> list[str]:
    """A remark below a table's row, wrapped to the width."""
    lines = textwrap.wrap(safe(text), width() - 4, break_on_hyphens=False) or [""]
    return [f"    {line}" for line in lines]


def cut(text: str, size: int) -> str:
    """A text of at most so many characters; what is cut off leaves an ellipsis."""
    return text if len(text) <= size else text[: max(0, size - 1)] + "…"


def clock(at: str) -> str:
    """A time of the API as a table shows it: month, day and time, UTC."""
    return f"{at[5:10]} {at[11:19]}"


def apart(at: str | None, now: datetime) -> str | None:
    """How far a time of the API lies from now, either way; None where there is none."""
    return None if at is None else span(abs((now - datetime.fromisoformat(at)).total_seconds()))


def span(seconds: float) -> str:
    """A span of time in its largest whole unit: `12s`, `4m`, `3h`, `2d`."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size or (whole >= size and whole % size == 0):
            return f"{whole // size}{unit}"
    return f"{whole}s"


def agreed(question: str) -> bool:
    """Ask on the terminal. No terminal, no answer and the end of the input are a no."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def plural(count: int, noun: str) -> str:
    """`1 source`, `2 sources`, `3 deliveries`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"
