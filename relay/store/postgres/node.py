"""This node among others: its number, its life, and what it is to know of what the others do.

Law: a number is taken again only from a node that has not been heard for `GONE_S`; a life is never given twice, and all
claims of a node begin with it. What is read here are hints and gauges: what is decided is decided in a transaction.
"""

import os
import socket
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version

from relay.model import DeliveryState, TargetHealth
from relay.store.grouping.rows import moment
from relay.store.postgres import health
from relay.store.postgres.health import Stored
from relay.store.postgres.types import Connection

GONE_S = 60
"""A node that was not heard for so long is gone: what it alone does, others may take over."""

ROOM = "bytes"
"""What is stored, in bytes, is kept among the counts, under no target."""

NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The time of the database, in milliseconds."""
IS_ALIVE = f"beat_at >= {NOW} - {GONE_S * 1000}"
"""What a row of `node` says of one that was heard."""
_TAKE_OVER = f"""UPDATE node SET life = nextval('life'), name = $1, version = $2, started_at = {NOW}, beat_at = {NOW}
    WHERE id = (SELECT id FROM node WHERE NOT {IS_ALIVE} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, life"""
_JOIN = f"""INSERT INTO node (life, name, version, started_at, beat_at)
    VALUES (nextval('life'), $1, $2, {NOW}, {NOW}) RETURNING id, life"""


@dataclass(frozen=True, slots=True)
class Node:
    """A node's number, under which its part of the counts stands, and the life that it leads there."""

    id: int
    life: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node as the others see it."""

    name: str
    version: str
    started_at: datetime
    heard_at: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """What one look has found."""

    counts: Counter[tuple[str, DeliveryState]]
    health: dict[str, Stored]
    heard: dict[str, datetime]
    nodes: tuple[Neighbour, ...]
    silences_told: frozenset[str] = frozenset()


def name() -> str:
    """How this process is called among the nodes: the machine, and the process on it."""
    return f"{socket.gethostname()}:{os.getpid()}"


async def join(db: Connection) -> Node:
    """Become a node, in a transaction."""
    values = name(), version("relay-gateway")
    row = await db.fetchrow(_TAKE_OVER, *values) or await db.fetchrow(_JOIN, *values)
    assert row is not None
    return Node(*row)


async def beat(db: Connection, node: Node) -> bool:
    """Say that this node is alive; False where another one has taken its number meanwhile."""
    query = f"UPDATE node SET beat_at = {NOW} WHERE id = $1 AND life = $2"
    return bool(await db.execute(query, node.id, node.life) == "UPDATE 1")


async def leave(db: Connection, node: Node) -> None:
    """Be gone at once: the number is free."""
    await db.execute("UPDATE node SET beat_at = 0 WHERE id = $1 AND life = $2", node.id, node.life)


@dataclass(frozen=True, slots=True)
class Clock:
    """The database's clock as it was seen once; what has passed since is told by a clock of ours that nobody sets."""

    at: datetime
    seen_at: float

    @classmethod
    async def read(cls, db: Connection) -> "Clock":
        """Ask the database for its time; half of what the answer takes is its way to us."""
        before = time.monotonic()
        at: datetime = await db.fetchval("SELECT clock_timestamp()")
        return cls(at, (before + time.monotonic()) / 2)

    def now(self) -> datetime:
        """Its time at this moment."""
        return self.at + timedelta(seconds=time.monotonic() - self.seen_at)


async def look(db: Connection, known: dict[str, TargetHealth]) -> Look:
    """Read what the nodes have counted and heard together, and the health of every target; cheap, whatever is kept."""
    counts: Counter[tuple[str, DeliveryState]] = Counter()
    for target, state, number in await db.fetch("SELECT target, state, sum(number)::bigint FROM counted GROUP BY 1, 2"):
        if target:
            counts[target, DeliveryState(state)] = number
    rows = await db.fetch("SELECT source, max(at), max(silence_told_at) > max(at) FROM heard GROUP BY source")
    alive = f"SELECT name, version, started_at, beat_at FROM node WHERE {IS_ALIVE} ORDER BY id"
    return Look(
        counts,
        await health.read(db, known),
        {source: at for source, value, _ in rows if (at := moment(value)) is not None},
        tuple(
            Neighbour(name_, version_, _moment(started_at), _moment(beat_at))
            for name_, version_, started_at, beat_at in await db.fetch(alive)
        ),
        frozenset(source for source, _, told in rows if told),
    )


def _moment(value: int) -> datetime:
    at = moment(value)
    assert at is not None
    return at


async def health_of(db: Connection, known: dict[str, TargetHealth], name_: str) -> TargetHealth | None:
    """The health of one target, None where none is stored."""
    found = await health.read(db, known, [name_])
    return found[name_].health if found else None
