"""A store moved from SQLite to PostgreSQL, while no relay runs on either.

Law: what was committed on the other side is never moved again, whatever cuts the moving off; and nobody begins on the
other side before both sides were read to their ends and found to hold the same.
"""

import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relay.store.grouping.changes import COUNTED
from relay.store.grouping.tables import TABLES, Sum, Table, summed
from relay.store.postgres.arriving import Arriving, arriving, storable_row
from relay.store.sqlite.leaving import Leaving, leaving

Moved = Callable[[str, int, int], None]
"""Told what goes on, `copy` or `verify`, and how many rows are done, of how many."""

KEPT_COUNTS = "kept counts"


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found of one table: rows on both sides, the checksums over them, and where they part first."""

    what: str
    rows: int
    copied: int
    checksum: str
    copied_checksum: str
    differs: str | None = None

    @property
    def is_equal(self) -> bool:
        """Both sides hold the same."""
        return (self.rows, self.checksum) == (self.copied, self.copied_checksum) and self.differs is None


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy has come to."""

    tables: tuple[Compared, ...]
    rows: int
    """Rows that this call has moved; what was moved before is not among them."""
    was_done: bool = False
    """The copy had come to its end before this call, which has done nothing."""

    @property
    def is_equal(self) -> bool:
        """All that was moved is on the other side, and nothing else."""
        return all(one.is_equal for one in self.tables)


async def copy(source: Path, url: str, moved: Moved) -> Copied:
    """Move all that a SQLite store holds into a PostgreSQL database, go on with that where it was cut off, and verify
    it. A copy that is not equal has not ended: no relay starts on it.

    Args:
        source: the file; nothing in it changes but what a start of a relay would change.
        url: `postgresql://user:password@host:port/database`; it must hold no events of its own.
        moved: told how far it is.

    Raises:
        StoreInUse: a relay runs on one of both, or another copy is under way.
        StoreUnusable: one of both must not be used as it is, or what the other one holds is not of this copy.
        StoreUnavailable: the database cannot be reached; what is moved stays moved.
    """
    async with leaving(source) as old, arriving(url) as new:
        await new.begin(str(old.path), old.identity)
        if new.result is not None:
            return Copied(_read_result(new.result), 0, was_done=True)
        number, before = sum([await old.count(table) for table in TABLES]), new.progress.moved
        await _fill(old, new, number, moved)
        tables = await _compared(old, new, number, moved)
        copied = Copied(tables, new.progress.moved - before)
        if copied.is_equal:
            await new.end(json.dumps([asdict(one) for one in tables]))
        return copied


def _read_result(result: str) -> tuple[Compared, ...]:
    return tuple(Compared(**one) for one in json.loads(result))


async def _fill(old: Leaving, new: Arriving, number: int, moved: Moved) -> None:
    """Move table by table, in the order of their keys; a table ends with a part that is empty."""
    while new.progress.part < len(TABLES):
        table = TABLES[new.progress.part]
        rows = await old.rows(table, new.progress.key)
        await new.add(table, rows, ends=not rows)
        moved("copy", new.progress.moved, number)


async def _compared(old: Leaving, new: Arriving, number: int, moved: Moved) -> tuple[Compared, ...]:
    found: list[Compared] = []
    counts: Counter[tuple[str, str]] = Counter()
    done = 0
    for table in TABLES:
        here, there, differs = Sum(), Sum(), None
        async with aclosing(_pairs(old, new, table)) as pairs:
            async for mine, others in pairs:
                here.add(mine)
                there.add(others)
                differs = differs or _first_difference(table, mine, others)
                if table.name == "delivery":
                    counts.update((target, state) for _, target, state, *_ in mine)
                done += len(mine)
                moved("verify", done, number)
        found.append(Compared(table.name, here.rows, there.rows, here.digest.hex(), there.digest.hex(), differs))
    found.append(_compared_counts(counts, await new.sum_counted()))
    return tuple(found)


def _compared_counts(counts: Counter[tuple[str, str]], kept: Any) -> Compared:
    states = {str(state) for state in COUNTED}
    sides = [
        sorted((target, state, number) for (target, state), number in side.items() if state in states)
        for side in (counts, kept)
    ]
    here, there = Sum(), Sum()
    here.add(sides[0])
    there.add(sides[1])
    apart = sorted({*sides[0]} ^ {*sides[1]})
    differs = f"{apart[0][0]}, {apart[0][1]}" if apart else None
    return Compared(KEPT_COUNTS, here.rows, there.rows, here.digest.hex(), there.digest.hex(), differs)


async def _pairs(old: Leaving, new: Arriving, table: Table) -> AsyncGenerator[tuple[list[Any], list[Any]]]:
    """Parts of both sides, as long as each other until one of them ends."""
    async with aclosing(new.rows(table)) as pages:
        waiting: list[tuple[Any, ...]] = []
        after: Sequence[Any] | None = None
        is_over = False
        while rows := await old.rows(table, after):
            after = table.key(rows[-1])
            while len(waiting) < len(rows) and not is_over:
                page = await anext(pages, None)
                waiting += page or ()
                is_over = page is None
            yield [storable_row(summed(table, row)) for row in rows], waiting[: len(rows)]
            waiting = waiting[len(rows) :]
        yield [], waiting
        async for page in pages:
            yield [], page


def _first_difference(table: Table, here: Sequence[Sequence[Any]], there: Sequence[Sequence[Any]]) -> str | None:
    """Where two parts differ first: the row's key, and which of its columns."""
    for mine, other in zip(here, there, strict=False):
        if tuple(mine) == tuple(other):
            continue
        if table.key(mine) != table.key(other):
            is_missing = table.key(mine) < table.key(other)
            return f"{_named(table, mine)}: not copied" if is_missing else f"{_named(table, other)}: only in the copy"
        columns = [name for name, one, two in zip(table.names, mine, other, strict=True) if one != two]
        return f"{_named(table, mine)}: {', '.join(columns)}"
    if len(here) > len(there):
        return f"{_named(table, here[len(there)])}: not copied"
    if len(there) > len(here):
        return f"{_named(table, there[len(here)])}: only in the copy"
    return None


def _named(table: Table, row: Sequence[Any]) -> str:
    if table.name == "event":
        return f"event {row[1]}"
    return ", ".join(f"{name} {value}" for name, value in zip(table.names, table.key(row), strict=False))
