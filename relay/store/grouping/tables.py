"""What a store consists of, table by table, for whoever moves it into another kind of store.

Law: a row has one form whichever store it was read from, so that what both hold is compared by a checksum over the
same rows in the same order. A body stands there by the checksum of what is really stored.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from relay.model import HEALTH_FIELDS
from relay.store.grouping.rows import compact

ROWS = 1000
"""Rows that are moved in one transaction, at most."""
BYTES = 16 * 1024 * 1024
"""Bytes of bodies after which a transaction has enough rows."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `kind` is `number` (64 bits), `small` (32 bits), `flag`, `text`, `bytes` or `body`."""

    name: str
    kind: str
    is_optional: bool = False
    shifts: bool = False
    """It is a number that the destination gives anew."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns, and how many of the first are its key, by which it is read in order."""

    name: str
    columns: tuple[Column, ...]
    keys: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(column.name for column in self.columns)

    @property
    def body(self) -> int | None:
        """The place of what is long, None where nothing is."""
        return next((place for place, column in enumerate(self.columns) if column.kind == "body"), None)

    def key(self, row: Sequence[Any]) -> list[Any]:
        """What a row is found by."""
        return list(row[: self.keys])

    def shifted(self, row: Sequence[Any], by: int) -> tuple[Any, ...]:
        """The row with its numbers moved by so much."""
        return tuple(
            value + by if column.shifts and value is not None else value
            for column, value in zip(self.columns, row, strict=True)
        )


def _columns(words: str) -> tuple[Column, ...]:
    """Columns as `name:kind`, with `?` behind what may be NULL and `+` behind what is shifted."""
    found: list[Column] = []
    for word in words.split():
        name, _, kind = word.partition(":")
        found.append(Column(name, kind.rstrip("?+"), kind.endswith("?"), kind.endswith("+")))
    return tuple(found)


_HEALTH = {"failures": "small", "paced": "flag", "arrival_try": "flag", "ramp": "small?", "disabled_by": "text?"} | (
    dict.fromkeys(
        ("since", "counted_at", "wait_until", "succeeded_at", "took_at", "throttled_until", "probe_at", "probe_wait"),
        "number?",
    )
)

TABLES: tuple[Table, ...] = (
    Table(
        "event",
        _columns(
            "seq:number+ id:text source:text type:text received_at:number verified:flag hops:small dedupe:bytes? "
            "headers:text size:small sha256:bytes body:body routes:text? failed_conditions:text?"
        ),
    ),
    Table(
        "delivery",
        _columns(
            "event_seq:number+ target:text state:text due_at:number step:small attempts:small replays:small "
            "first_try_at:number? settled_at:number? status:small? outcome:text? reason:text? course:text?"
        ),
        2,
    ),
    Table(
        "attempt",
        _columns(
            "seq:number+ event_seq:number+ target:text number:small began_at:number duration_ms:number outcome:text "
            "status:small? reason:text excerpt:text"
        ),
    ),
    Table("target", _columns(" ".join(f"{name}:{_HEALTH.get(name, 'text')}" for name in HEALTH_FIELDS))),
    Table(
        "refusal",
        _columns(
            "seq:number+ received_at:number source:text remote:text? status:small reason:text detail:text "
            "size:number? headers:text"
        ),
    ),
    Table("rerouted", _columns("event_seq:number+ routes:text")),
    Table("brought", _columns("event_seq:number+ enricher:text fetched_at:number data:body"), 2),
    Table("tally", _columns("minute:number kind:text name:text what:text number:number"), 4),
    Table("heard", _columns("source:text at:number silence_told_at:number?")),
    Table(
        "replay",
        _columns(
            "seq:number id:text state:text filter:text rate:text total:number done:number skipped:number "
            "created_at:number ended_at:number? reason:text"
        ),
    ),
    Table("replay_item", _columns("replay_seq:number event_seq:number+ target:text"), 3),
)


@dataclass
class Sum:
    """How many rows there were, and the checksum of them all; the order counts."""

    rows: int = 0
    digest: bytes = bytes(32)

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take in rows, whose bodies stand as their own checksums."""
        for row in rows:
            text = compact([value.hex() if isinstance(value, bytes) else value for value in row])
            self.digest = hashlib.sha256(self.digest + text.encode()).digest()
            self.rows += 1


def summed(table: Table, row: Sequence[Any]) -> tuple[Any, ...]:
    """A row as it is summed up: what is long by its checksum."""
    place = table.body
    if place is None:
        return tuple(row)
    return (*row[:place], hashlib.sha256(row[place]).digest(), *row[place + 1 :])
