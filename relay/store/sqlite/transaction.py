"""What every verb works with: the transaction of its batch, and lists of values cut to what a statement takes."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

from relay.model import DeliveryState, Event, TargetHealth
from relay.store.grouping.changes import Changes, Rest
from relay.store.sqlite.ledger import Ledger

PARAMETERS = 500
"""Values bound in one statement."""
ROWS = 128
"""Rows written by one statement."""
FEW = 8
"""Rows that always go in one."""


@dataclass(slots=True)
class Transaction:
    """What a batch works with: the connection, what is committed, and what it changes."""

    db: sqlite3.Connection
    ledger: Ledger
    changes: Changes = field(default_factory=Changes)

    def health(self, name: str) -> TargetHealth:
        """A target's health as this transaction sees it."""
        return self.ledger.current(name, self.changes)

    def count(self, target: str, state: DeliveryState) -> int:
        """How many deliveries of a target are in a counted state, as this transaction sees it."""
        return self.ledger.counts[target, state] + self.changes.counts[target, state]

    def fresh(self, seq: int) -> Event | None:
        """An event that was stored a moment ago, by its number, where it is still remembered."""
        return self.changes.events.get(seq) or self.ledger.fresh.get(seq)

    def write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement with its `{rows}` replaced by the rows, many at a time.

        One run for each row, as `executemany` does it, would wait for the interpreter's lock as often: beside a busy
        event loop that is most of a commit's time. Parts beyond a few rows are powers of two, so that few texts have to
        be prepared.
        """
        done = 0
        while done < len(rows):
            left = len(rows) - done
            number = left if left <= FEW else min(ROWS, 1 << (left.bit_length() - 1))
            part = rows[done : done + number]
            self.db.execute(_with_rows(statement, number, len(part[0])), list(chain.from_iterable(part)))
            done += number

    def rest(self, target: str) -> Rest | None:
        """What is still to be made due at a target, as this transaction sees it."""
        return self.ledger.rest(target, self.changes)


def in_one_row(db: sqlite3.Connection, query: str, columns: int, values: Any) -> list[list[Any]]:
    """The rows of a query, fetched as one: each fetch of its own waits for the interpreter's lock.

    The columns hold numbers and text; what the disk has turned into bytes comes as text.
    """
    names = [f"c{number}" for number in range(columns)]
    parts = ", ".join(f"iif(typeof({name}) = 'blob', hex({name}), {name})" for name in names)
    table = f"WITH rows ({', '.join(names)}) AS ({query})"
    ((text,),) = db.execute(f"{table} SELECT json_group_array(json_array({parts})) FROM rows", values)
    rows: list[list[Any]] = json.loads(text)
    return rows


@lru_cache(maxsize=256)
def _with_rows(statement: str, rows: int, columns: int) -> str:
    return statement.format(rows=", ".join([f"({marks(columns)})"] * rows))


def marks(number: int) -> str:
    """So many places for bound values."""
    return ", ".join("?" * number)


def slices(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """The values in parts that one statement takes."""
    return (values[start : start + PARAMETERS] for start in range(0, len(values), PARAMETERS))
