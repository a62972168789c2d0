"""Finding what a replay is to have, oldest first.

Law: everything here runs on the reading connection, and a page looks at a bounded number of rows, so that other views
are answered between two of them.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from relay.store.archive import EventQuery
from relay.store.grouping.rerouting import Item
from relay.store.replays import Replayable, ReplayFilter
from relay.store.sqlite.archive import bounds, filters

PAGE = 2000
"""Dead deliveries of a target that are looked at for one page."""
SCAN = 5000
"""Events that are looked at for one page."""


@dataclass(frozen=True, slots=True)
class Page:
    """Items in their order, and the number of the event after which the next page begins; None at the end."""

    items: list[Item]
    next: int | None


def limits(db: sqlite3.Connection, wanted: ReplayFilter) -> tuple[int, int]:
    """The numbers between which the events lie: after the first, and below the second. What is received from now on is
    not among them."""
    low, high = bounds(db, _query(wanted))
    ((last,),) = db.execute("SELECT coalesce(max(seq), 0) FROM event")
    return low - 1, min(high, last + 1)


def page(db: sqlite3.Connection, wanted: ReplayFilter, targets: Sequence[str], after: int, below: int) -> Page:
    """The items after one event's number and below another's; `targets` are those that may have dead deliveries."""
    if wanted.state is Replayable.DEAD:
        return _dead(db, wanted, targets, after, below)
    return _walk(db, wanted, after, below)


def _dead(db: sqlite3.Connection, wanted: ReplayFilter, targets: Sequence[str], after: int, below: int) -> Page:
    """By the index of what is dead, target by target, as far as all of them were looked at."""
    found: list[Item] = []
    last = below - 1
    for target in targets:
        rows = db.execute(
            f"""SELECT event_seq FROM delivery INDEXED BY delivery_dead WHERE target = ? AND state = 'dead'
            AND event_seq > ? AND event_seq < ? ORDER BY event_seq LIMIT {PAGE}""",
            (target, after, below),
        ).fetchall()
        found += [(seq, target) for (seq,) in rows]
        if len(rows) == PAGE:
            last = min(last, rows[-1][0])
    items = sorted(item for item in found if item[0] <= last)
    where, values = filters(_query(wanted))
    seqs = json.dumps(sorted({seq for seq, _ in items}))
    query = f"SELECT e.seq FROM event e WHERE e.seq IN (SELECT value FROM json_each(:seqs)) AND {where}"
    fitting = {seq for (seq,) in db.execute(query, values | {"seqs": seqs})}
    return Page([item for item in items if item[0] in fitting], last if last < below - 1 else None)


def _walk(db: sqlite3.Connection, wanted: ReplayFilter, after: int, below: int) -> Page:
    """One event after the other: there is no index of what was delivered, for it would be as large as the history."""
    where, values = filters(_query(wanted))
    looked_at = f"SELECT seq FROM event WHERE seq > :after AND seq < :below ORDER BY seq LIMIT {SCAN}"
    values |= {"after": after, "below": below, "state": wanted.state.value, "target": wanted.target}
    if wanted.state is Replayable.UNROUTED:
        query = f"""SELECT e.seq, '' FROM ({looked_at}) s CROSS JOIN event e ON e.seq = s.seq
            WHERE NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event_seq = e.seq) AND {where} ORDER BY e.seq"""
    else:
        query = f"""SELECT e.seq, d.target FROM ({looked_at}) s CROSS JOIN event e ON e.seq = s.seq
            CROSS JOIN delivery d ON d.event_seq = e.seq
            WHERE d.state = :state AND (:target IS NULL OR d.target = :target) AND {where}
            ORDER BY e.seq, d.target"""
    items: list[Item] = db.execute(query, values).fetchall()
    last, number = db.execute(f"SELECT max(seq), count(*) FROM ({looked_at})", values).fetchone()
    return Page(items, last if number == SCAN else None)


def _query(wanted: ReplayFilter) -> EventQuery:
    return EventQuery(source=wanted.source, type=wanted.type, since=wanted.since, until=wanted.until)
