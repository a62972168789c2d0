"""What every verb works with: the transaction of its batch, and lists of values cut to what a statement takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiosqlite

from relay.model import TargetHealth
from relay.store.sqlite.ledger import Changes, Ledger, Rest

PARAMETERS = 500
"""Values bound in one statement."""


@dataclass(slots=True)
class Transaction:
    """What a batch works with: the connection, what is committed, and what it changes."""

    db: aiosqlite.Connection
    ledger: Ledger
    changes: Changes = field(default_factory=Changes)

    def health(self, name: str) -> TargetHealth:
        """A target's health as this transaction sees it."""
        return self.ledger.current(name, self.changes)

    def rest(self, target: str) -> Rest | None:
        """What is still to be made due at a target, as this transaction sees it."""
        return self.changes.rests[target] if target in self.changes.rests else self.ledger.rests.get(target)


def marks(number: int) -> str:
    """So many places for bound values."""
    return ", ".join("?" * number)


def slices(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """The values in parts that one statement takes."""
    return (values[start : start + PARAMETERS] for start in range(0, len(values), PARAMETERS))
