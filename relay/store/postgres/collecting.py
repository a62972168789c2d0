"""Finding what a replay is to have, oldest first.

Law: everything here runs on the reading side, and a page looks at a bounded number of rows, so that other views are
answered between two of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from relay.ids import first_id
from relay.store.grouping.rerouting import Item
from relay.store.postgres.texts import glob_regex
from relay.store.postgres.types import Connection
from relay.store.replays import Replayable, ReplayFilter

PAGE = 2000
"""Dead deliveries of a target that are looked at for one page."""
SCAN = 5000
"""Events that are looked at for one page."""
APART = timedelta(minutes=5)
"""How far the clocks of two nodes may be apart, and a commit may take, for the order of the numbers to be that of the
times."""

_WITH_DEAD = """WITH RECURSIVE one (target) AS (
        (SELECT target FROM delivery WHERE state = 'dead' ORDER BY target LIMIT 1)
        UNION ALL
        SELECT (SELECT d.target FROM delivery d WHERE d.state = 'dead' AND d.target > one.target
            ORDER BY d.target LIMIT 1)
        FROM one WHERE one.target IS NOT NULL)
    SELECT target FROM one WHERE target IS NOT NULL"""
_DEAD = f"""SELECT d.event_seq, t.target FROM unnest($1::text[]) t (target) CROSS JOIN LATERAL (
        SELECT event_seq FROM delivery WHERE target = t.target AND state = 'dead'
            AND event_seq > $2 AND event_seq < $3 ORDER BY event_seq LIMIT {PAGE}) d"""
_LOOKED_AT = f"SELECT seq FROM event WHERE seq > $1 AND seq < $2 ORDER BY seq LIMIT {SCAN}"


@dataclass(frozen=True, slots=True)
class Page:
    """Items in their order, and the number of the event after which the next page begins; None at the end."""

    items: list[Item]
    next: int | None


async def with_dead(db: Connection) -> list[str]:
    """The targets that have dead deliveries: a step through the index for each."""
    return [target for (target,) in await db.fetch(_WITH_DEAD)]


async def limits(db: Connection, wanted: ReplayFilter) -> tuple[int, int]:
    """The numbers between which the events lie: after the first, and below the second. What is received from now on is
    not among them. They are a bound only: the order of the numbers is not that of the times to the second."""
    low, last = 0, await db.fetchval("SELECT coalesce(max(seq), 0) FROM event")
    high = last + 1
    if wanted.since is not None:
        query = "SELECT seq FROM event WHERE id < $1 ORDER BY id DESC LIMIT 1"
        low = await db.fetchval(query, first_id("evt", wanted.since - APART)) or 0
    if wanted.until is not None:
        query = "SELECT seq FROM event WHERE id >= $1 ORDER BY id LIMIT 1"
        high = min(high, await db.fetchval(query, first_id("evt", wanted.until + APART)) or high)
    return low, high


async def page(db: Connection, wanted: ReplayFilter, targets: Sequence[str], after: int, below: int) -> Page:
    """The items after one event's number and below another's; `targets` are those that may have dead deliveries."""
    if wanted.state is Replayable.DEAD:
        return await _dead(db, wanted, targets, after, below)
    return await _walk(db, wanted, after, below)


async def _dead(db: Connection, wanted: ReplayFilter, targets: Sequence[str], after: int, below: int) -> Page:
    """By the index of what is dead, target by target, as far as all of them were looked at."""
    found: dict[str, list[int]] = {target: [] for target in targets}
    for seq, target in await db.fetch(_DEAD, list(targets), after, below):
        found[target].append(seq)
    last = min([below - 1, *(max(seqs) for seqs in found.values() if len(seqs) == PAGE)])
    items = sorted((seq, target) for target, seqs in found.items() for seq in seqs if seq <= last)
    where, values = _filters(wanted, 2)
    query = f"SELECT e.seq FROM event e WHERE e.seq = ANY($1::bigint[]) AND {where}"
    fitting = {seq for (seq,) in await db.fetch(query, sorted({seq for seq, _ in items}), *values)}
    return Page([item for item in items if item[0] in fitting], last if last < below - 1 else None)


async def _walk(db: Connection, wanted: ReplayFilter, after: int, below: int) -> Page:
    """One event after the other: there is no index of what was delivered, for it would be as large as the history."""
    if wanted.state is Replayable.UNROUTED:
        where, values = _filters(wanted, 3)
        query = f"""SELECT e.seq, '' FROM ({_LOOKED_AT}) s JOIN event e ON e.seq = s.seq
            WHERE NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq) AND {where} ORDER BY e.seq"""
    else:
        where, values = _filters(wanted, 5)
        values = [wanted.state.value, wanted.target, *values]
        query = f"""SELECT e.seq, d.target FROM ({_LOOKED_AT}) s JOIN event e ON e.seq = s.seq
            JOIN delivery d ON d.event_seq = e.seq
            WHERE d.state = $3 AND ($4::text IS NULL OR d.target = $4) AND {where} ORDER BY e.seq, d.target"""
    items: list[Item] = [(seq, target) for seq, target in await db.fetch(query, after, below, *values)]
    row = await db.fetchrow(f"SELECT max(seq), count(*) FROM ({_LOOKED_AT}) s", after, below)
    assert row is not None
    last, number = row
    return Page(items, last if number == SCAN else None)


def _filters(wanted: ReplayFilter, first: int) -> tuple[str, list[Any]]:
    """What an event `e` itself must be like; the marks of the values begin with this number."""
    asked: list[tuple[str, Any]] = []
    if wanted.source is not None:
        asked.append(("e.source =", wanted.source))
    if wanted.type is not None:
        asked.append(("e.type ~", glob_regex(wanted.type)))
    if wanted.since is not None:
        asked.append(("e.id >=", first_id("evt", wanted.since)))
    if wanted.until is not None:
        asked.append(("e.id <", first_id("evt", wanted.until)))
    parts = [f"{text} ${place}" for place, (text, _) in enumerate(asked, first)]
    return " AND ".join(parts) or "TRUE", [value for _, value in asked]
