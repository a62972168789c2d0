"""The verb that moves a store: `copy`.

Law: it is done only when both sides hold the same, which is read back and not believed; what bars it is told with what
to do, and the same command goes on where it was cut off.
"""

import asyncio
import contextlib
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.calling import for_programs, output_option
from relay.cli.terminal import Cell, Column, Failure, note, plural, safe, table
from relay.store.locations import SQLITE, refusal_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.store.moving import Compared, Copied

UNUSABLE, IN_USE = 74, 75
_LABELS = {"copy": "Copying", "verify": "Verifying"}


class _Barred(Failure):
    """A store that could not be moved, or not be moved to."""

    def __init__(self, words: str, code: int) -> None:
        super().__init__(safe(words))
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance


@click.command()
@click.argument("source")
@click.argument("destination")
@output_option
@click.pass_context
def copy(ctx: click.Context, source: str, destination: str) -> None:
    """Move a store from SQLite to PostgreSQL: relay copy sqlite:///relay.db postgresql://user@host/database

    Stop the relay first. All is moved: events, deliveries, attempts, refusals, the state of targets, counts and paused
    replays. Then both sides are read and compared. Cut off, the same command goes on where it was; until it has ended
    well no relay starts on the destination. The file stays as it was. A password is taken from PGPASSWORD or ~/.pgpass.

    Exit codes: 0 copied and equal, 1 not equal, 74 a store cannot be used, 75 one is in use.
    """
    file = _file(source)
    _check_destination(destination)
    from relay.store import StoreError, StoreInUse  # noqa: PLC0415 - needed by this verb alone
    from relay.store.moving import copy as moved  # noqa: PLC0415

    try:
        with contextlib.ExitStack() as stack:
            copied = asyncio.run(moved(file, destination, _Progress(stack).moved))
    except StoreInUse as error:
        raise _Barred(str(error), IN_USE) from None
    except StoreError as error:
        raise _Barred(str(error), UNUSABLE) from None
    if for_programs(ctx):
        click.echo(json.dumps(_for_programs(copied)))
    else:
        for line in _for_people(copied):
            click.echo(line)
    if not copied.is_equal:
        raise Failure("the copy is not equal, and no relay starts on it; drop its schema relay and copy anew")


def _file(source: str) -> Path:
    """The file that the first argument names."""
    if not source.startswith(SQLITE) or not source.removeprefix(SQLITE):
        raise click.BadParameter(
            f"{_shown(source)!r} is no SQLite store; write sqlite:///relative.db or sqlite:////absolute.db",
            param_hint="SOURCE",
        )
    return Path(source.removeprefix(SQLITE)).absolute()


def _check_destination(destination: str) -> None:
    """Refuse what names no database, or one whose driver is not here."""
    if refusal := refusal_of(destination):
        raise click.BadParameter(f"it {refusal}", param_hint="DESTINATION")
    if importlib.util.find_spec("asyncpg") is None:
        raise Failure("PostgreSQL's driver is missing: pip install 'relay-gateway[postgres]'")


def _shown(url: str) -> str:
    """An argument as it may be repeated: without whatever stands before an @."""
    scheme, sign, rest = url.rpartition("://")
    return safe(f"{scheme}{sign}{rest.rpartition('@')[2]}")


class _Progress:
    """Bars on a terminal, one for each thing that goes on; elsewhere nothing."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._what = ""
        self._done = 0
        self._bar: click._termui_impl.ProgressBar[int] | None = None

    def moved(self, what: str, done: int, number: int) -> None:
        """So many rows are done, of so many."""
        if not sys.stderr.isatty():
            return
        if what != self._what:
            self._stack.close()
            self._what, self._done = what, 0
            bar = click.progressbar(length=number, label=_LABELS[what], file=sys.stderr)
            self._bar = self._stack.enter_context(bar)
        if self._bar is not None:
            self._bar.update(done - self._done)
            self._done = done


def _for_programs(copied: "Copied") -> dict[str, object]:
    return {
        "equal": copied.is_equal,
        "already_copied": copied.was_done,
        "rows_moved": copied.rows,
        "tables": [{**asdict(one), "equal": one.is_equal} for one in copied.tables],
    }


def _for_people(copied: "Copied") -> "Iterator[str]":
    columns = (Column("WHAT"), Column("ROWS", is_number=True), Column("COPIED", is_number=True), Column("CHECKSUM"))
    lines = table(columns, [_cells(one) for one in copied.tables])
    yield lines[0]
    for line, one in zip(lines[1:], copied.tables, strict=True):
        yield line
        if one.differs:
            yield from note(f"differs first at {one.differs}")
    if copied.was_done:
        yield "It was copied before, and found to be equal; nothing was done."
    elif copied.is_equal:
        yield f"{plural(copied.rows, 'row')} copied; both sides are equal. Set store.url to the destination and start."


def _cells(one: "Compared") -> tuple[Cell, ...]:
    told = Cell("equal", "green") if one.is_equal else Cell("DIFFERS", "red")
    return Cell(one.what), Cell(str(one.rows)), Cell(str(one.copied)), told
