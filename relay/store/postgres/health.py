"""The health of targets in SQL: read, locked and written, many in one statement.

Law: whoever changes a health holds its row, and raises its version by one. So of two versions that were read the
greater is the later, whichever way they came.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from relay.model import HEALTH_FIELDS, TargetHealth
from relay.store.grouping.rows import health_from, health_row
from relay.store.postgres.types import Connection, Row

_COLUMNS = ", ".join(HEALTH_FIELDS)
_TYPES = {
    "failures": "int",
    "ramp": "int",
    "paced": "bool",
    "arrival_try": "bool",
    **dict.fromkeys(
        ("since", "counted_at", "wait_until", "succeeded_at", "took_at", "throttled_until", "probe_at", "probe_wait"),
        "bigint",
    ),
}
_UNNEST = ", ".join(f"${place}::{_TYPES.get(name, 'text')}[]" for place, name in enumerate(HEALTH_FIELDS, 1))
_SET = ", ".join(f"{name} = h.{name}" for name in HEALTH_FIELDS if name != "name")
_INSERT = f"INSERT INTO target ({_COLUMNS}) SELECT * FROM unnest({_UNNEST}) ON CONFLICT (name) DO NOTHING"
_UPDATE = f"""UPDATE target t SET {_SET}, version = t.version + 1 FROM unnest({_UNNEST}) AS h ({_COLUMNS})
    WHERE t.name = h.name"""


class Stored(NamedTuple):
    """A health as it is stored."""

    health: TargetHealth
    version: int


async def locked(db: Connection, names: Sequence[str], known: Mapping[str, TargetHealth]) -> dict[str, Stored]:
    """The health of these targets, locked in the order of their names until the transaction ends; a fresh one is stored
    where there is none."""
    query = f"SELECT version, {_COLUMNS} FROM target WHERE name = ANY($1::text[]) ORDER BY name FOR UPDATE"
    found = _stored(await db.fetch(query, sorted(names)), known)
    missing = sorted(set(names) - found.keys())
    if missing:
        await db.execute(_INSERT, *_columns([TargetHealth(name) for name in missing]))
        found |= _stored(await db.fetch(query, missing), known)
    return found


async def read(
    db: Connection, known: Mapping[str, TargetHealth], names: Sequence[str] | None = None
) -> dict[str, Stored]:
    """The health of these targets, of all where none are named."""
    query = f"SELECT version, {_COLUMNS} FROM target WHERE $1::text[] IS NULL OR name = ANY($1)"
    return _stored(await db.fetch(query, names), known)


async def write(db: Connection, healths: Sequence[TargetHealth]) -> None:
    """Store the healths of targets that are locked."""
    if healths:
        await db.execute(_UPDATE, *_columns(healths))


def _stored(rows: Sequence[Row], known: Mapping[str, TargetHealth]) -> dict[str, Stored]:
    """What is known already, where it is the same: its times are finer than those of a row."""
    found: dict[str, Stored] = {}
    for version, *row in rows:
        mine = known.get(row[0])
        same = mine if mine is not None and health_row(mine) == tuple(row) else health_from(row)
        found[row[0]] = Stored(same, version)
    return found


def _columns(healths: Sequence[TargetHealth]) -> list[list[object]]:
    return [list(column) for column in zip(*map(health_row, healths), strict=True)]
