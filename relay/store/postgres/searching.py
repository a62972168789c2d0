"""Finding events, newest first.

Law: a search walks an index from where it is to go on, and looks at no more than `views.SCAN` rows of it. Lookups in
other tables are written as what the planner cannot turn into a walk over all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from relay.ids import first_id
from relay.model import DeliveryState
from relay.store.archive import EventQuery
from relay.store.grouping import views
from relay.store.grouping.changes import COUNTED
from relay.store.postgres.texts import glob_regex, storable
from relay.store.postgres.types import Connection

APART = timedelta(seconds=10)
"""By so much the order of ids may differ from that of numbers: an id is made when an event comes, on the clock of its
node; its number when it is stored, which is given up after seconds."""
SLICE = 1000
"""Events that are looked up at once."""


class Values(list[Any]):
    """The values of a statement that is put together."""

    def mark(self, value: object, type_: str) -> str:
        """The mark of one more value."""
        self.append(value)
        return f"${len(self)}::{type_}"


@dataclass(frozen=True, slots=True)
class Found:
    """The numbers of events, newest first, and where to go on."""

    numbers: list[int]
    next: int | None


async def found(db: Connection, query: EventQuery, *, limit: int, before: int | None) -> Found:
    """A page of the events that a query means."""
    low, high = await bounds(db, query)
    high = high if before is None else min(before, high)
    if query.unrouted or query.state is None or query.state not in COUNTED:
        return await _walk_events(db, query, low, high, limit)
    return await _walk_deliveries(db, query, low, high, limit)


async def bounds(db: Connection, query: EventQuery) -> tuple[int, int]:
    """The numbers between which events of a span of time lie: from the first on, and below the second. Others lie there
    too, but few; which are meant, `filters` says."""
    low, high = 0, 1 << 62
    if query.since is not None:
        last = "SELECT seq FROM event WHERE id < $1 ORDER BY id DESC LIMIT 1"
        low = await db.fetchval(last, first_id("evt", query.since - APART)) or 0
    if query.until is not None:
        first = "SELECT seq FROM event WHERE id >= $1 ORDER BY id LIMIT 1"
        high = await db.fetchval(first, first_id("evt", query.until + APART)) or high
    return low, high


def filters(query: EventQuery, values: Values) -> str:
    """What an event `e` itself must be like, its time too."""
    parts = ["TRUE"]
    if query.source is not None:
        parts.append(f"e.source = {values.mark(storable(query.source), 'text')}")
    if query.type is not None:
        parts.append(f"e.type ~ {values.mark(glob_regex(query.type), 'text')}")
    if query.since is not None:
        parts.append(f"e.id >= {values.mark(first_id('evt', query.since), 'text')}")
    if query.until is not None:
        parts.append(f"e.id < {values.mark(first_id('evt', query.until), 'text')}")
    return " AND ".join(parts)


async def _walk_events(db: Connection, query: EventQuery, low: int, high: int, limit: int) -> Found:
    """Look at events one after the other."""
    values = Values()
    looked_at = f"""SELECT seq, id, source, type FROM event WHERE seq >= {values.mark(low, "bigint")}
        AND seq < {values.mark(high, "bigint")} ORDER BY seq DESC LIMIT {values.mark(views.SCAN, "bigint")}"""
    bounding = tuple(values)
    where = f"{filters(query, values)} AND {_deliveries(query, values)}"
    rows = await db.fetch(
        f"SELECT e.seq FROM ({looked_at}) e WHERE {where} ORDER BY e.seq DESC LIMIT {values.mark(limit + 1, 'bigint')}",
        *values,
    )
    numbers = [row[0] for row in rows]
    if len(numbers) > limit:
        return Found(numbers[:limit], numbers[limit - 1])
    last = await db.fetchrow(f"SELECT min(seq), count(*) FROM ({looked_at}) e", *bounding)
    assert last is not None
    return Found(numbers, last[0] if last[1] == views.SCAN else None)


def _deliveries(query: EventQuery, values: Values) -> str:
    """What the deliveries of an event `e` must be like. A scalar is asked for one by one, where EXISTS might be made a
    join with all deliveries."""
    one = "SELECT 1 FROM delivery d WHERE d.event_seq = e.seq"
    if query.unrouted:
        return f"({one} LIMIT 1) IS NULL"
    if query.state is None and query.among is None:
        return "TRUE"
    if query.state is not None:
        one += f" AND d.state = {values.mark(query.state.value, 'text')}"
    if query.among is not None:
        one += f" AND d.target = ANY({values.mark(_names(query.among), 'text[]')})"
    return f"({one} LIMIT 1) IS NOT NULL"


async def _walk_deliveries(db: Connection, query: EventQuery, low: int, high: int, limit: int) -> Found:
    """Look at the deliveries in a state of which there is an index, target by target."""
    assert query.state is not None
    is_dead = query.state is DeliveryState.DEAD
    listed = "state = 'dead'" if is_dead else f"state IN ('pending', 'in_flight') AND state = '{query.state.value}'"
    candidates: set[int] = set()
    floor = 0
    for target in await _targets(db) if query.among is None else _names(query.among):
        rows = await db.fetch(
            f"""SELECT event_seq FROM delivery WHERE target = $1 AND {listed}
            AND event_seq >= $2 AND event_seq < $3 ORDER BY event_seq DESC LIMIT $4""",
            target,
            low,
            high,
            views.SCAN,
        )
        candidates.update(row[0] for row in rows)
        if len(rows) == views.SCAN:
            floor = max(floor, rows[-1][0])
    numbers = sorted((number for number in candidates if number >= floor), reverse=True)
    numbers = await _matching(db, numbers, query, limit + 1)
    if len(numbers) > limit:
        return Found(numbers[:limit], numbers[limit - 1])
    return Found(numbers, floor or None)


async def _targets(db: Connection) -> list[str]:
    """Every target that has had a delivery in a state of which a count is kept."""
    return [row[0] for row in await db.fetch("SELECT DISTINCT target FROM counted WHERE target <> '' ORDER BY target")]


def _names(targets: frozenset[str]) -> list[str]:
    return sorted(map(storable, targets))


async def _matching(db: Connection, numbers: Sequence[int], query: EventQuery, limit: int) -> list[int]:
    """The first of these events that are as the filters want them."""
    values = Values()
    part = values.mark([], "bigint[]")
    where = filters(query, values)
    if where == "TRUE":
        return list(numbers[:limit])
    matching: list[int] = []
    for start in range(0, len(numbers), SLICE):
        values[0] = numbers[start : start + SLICE]
        rows = await db.fetch(
            f"SELECT e.seq FROM event e WHERE e.seq = ANY({part}) AND {where} ORDER BY e.seq DESC", *values
        )
        matching += [row[0] for row in rows]
        if len(matching) >= limit:
            break
    return matching[:limit]
