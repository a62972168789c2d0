"""The views in SQL: events, refusals and tallies, found newest first.

Law: everything here runs on the reading connection. A search walks an index from where it is to go on, and looks at no
more than `SCAN` rows; what may be damaged on the disk is shown as far as it can be read.
"""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from relay.ids import first_id
from relay.model import DeliveryState
from relay.store.archive import (
    EventPage,
    EventQuery,
    EventRecord,
    KeptDelivery,
    KeptEvent,
    KeptFetch,
    RefusalPage,
    RefusalQuery,
    RefusedRequest,
    Tally,
)
from relay.store.grouping import views
from relay.store.grouping.changes import COUNTED
from relay.store.grouping.rows import millis, moment
from relay.store.sqlite.claiming import FIRST
from relay.store.sqlite.reading import Reading
from relay.store.sqlite.transaction import Transaction, marks, slices
from relay.store.sqlite.writer import Writer

_BEGAN = ("", "", "began")
"""What the row of the tally is called that says since when there is one."""


class SqliteArchive:
    """The port's reading side on one SQLite file."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer

    async def events(self, query: EventQuery, *, limit: int, before: int | None = None) -> EventPage:
        """See `Archive.events`."""
        known = tuple(sorted({target for target, _ in self._writer.ledger.counts}))

        def read(db: sqlite3.Connection) -> EventPage:
            found = _found(db, query, known, limit=limit, before=before)
            return EventPage(tuple(_kept_events(db, found.numbers)), found.next)

        return await self._reading.run(read)

    async def event(self, event_id: str, *, with_data: bool = False) -> EventRecord | None:
        """See `Archive.event`."""
        data = "data" if with_data else "NULL"
        return await self._reading.run(lambda db: _record(db, event_id, data=data))

    async def refusals(self, query: RefusalQuery, *, limit: int, before: int | None = None) -> RefusalPage:
        """See `Archive.refusals`."""
        where = ["seq < :before"] if before is not None else []
        where += ["source = :source"] if query.source is not None else []
        where += ["received_at >= :since"] if query.since is not None else []
        where += ["received_at < :until"] if query.until is not None else []
        rows = await self._reading.rows(
            f"""SELECT seq, received_at, source, remote, status, reason, detail, size, headers FROM refusal
            WHERE {" AND ".join(where) or "TRUE"} ORDER BY seq DESC LIMIT :limit""",
            {
                "before": before,
                "source": query.source,
                "since": query.since and millis(query.since),
                "until": query.until and millis(query.until),
                "limit": limit + 1,
            },
        )
        kept = rows[:limit]
        return RefusalPage(
            tuple(views.refusal_from(row[1:]) for row in kept), kept[-1][0] if len(rows) > limit else None
        )

    async def keep_refusals(
        self, refusals: Sequence[RefusedRequest], *, counts: Mapping[str, int], at: datetime
    ) -> None:
        """See `Archive.keep_refusals`."""
        rows = [views.refusal_row(refusal, _storable) for refusal in refusals[-views.KEPT_REFUSALS :]]

        def keep(tx: Transaction) -> None:
            tx.write(_REFUSAL_INSERT, rows)
            for source, number in counts.items():
                tx.changes.tell("source", source, "refused", millis(at), number)
            tx.db.execute(
                f"""DELETE FROM refusal WHERE received_at < ?
                OR seq <= (SELECT seq FROM refusal ORDER BY seq DESC LIMIT 1 OFFSET {views.KEPT_REFUSALS})""",
                (millis(at - views.KEPT_REFUSALS_FOR),),
            )

        await self._writer.work(keep)

    async def overdue(self, targets: Sequence[str], before: datetime, *, ordered: Collection[str]) -> frozenset[str]:
        """See `Archive.overdue`."""
        some = """SELECT value FROM json_each(?) t WHERE EXISTS (SELECT 1 FROM delivery d INDEXED BY delivery_due
            WHERE d.target = t.value AND d.state = 'pending' AND d.due_at <= ?)"""
        first = f"""SELECT value FROM json_each(?) t WHERE EXISTS (SELECT 1 FROM ({FIRST.format(target="t.value")})
            WHERE state = 'pending' AND due_at <= ?)"""
        found: set[str] = set()
        for query, named in ((some, set(targets) - set(ordered)), (first, set(targets) & set(ordered))):
            if named:
                rows = await self._reading.rows(query, (json.dumps(sorted(named)), millis(before)))
                found.update(name for (name,) in rows)
        return frozenset(found)

    async def firsts(self, targets: Sequence[str]) -> Mapping[str, str]:
        """See `Archive.firsts`."""
        query = f"""SELECT t.value, (SELECT CAST(e.id AS BLOB) FROM event e WHERE e.seq =
                (SELECT event_seq FROM ({FIRST.format(target="t.value")})))
            FROM json_each(?) t"""
        rows = await self._reading.rows(query, (json.dumps(list(targets)),))
        return {name: str(id_, "utf-8", "replace") for name, id_ in rows if id_ is not None}

    async def tally(self, now: datetime) -> Tally:
        """See `Archive.tally`."""
        rows = await self._reading.rows(
            """SELECT minute = 0, kind, name, what, sum(number) FROM tally
            WHERE minute = 0 OR minute > ? GROUP BY minute = 0, kind, name, what""",
            (views.minute(now - views.HOUR),),
        )
        began = [row[4] for row in rows if row[1:4] == _BEGAN]
        counted = [row for row in rows if row[1:4] != _BEGAN]
        return views.tally_from(counted, moment(began[0] * 60_000) if began else None)


def forget_outlived(tx: Transaction, now: datetime) -> None:
    """Delete the minutes of the tally that no view asks for any more, and the refusals that are too old."""
    tx.db.execute("DELETE FROM refusal WHERE received_at < ?", (millis(now - views.KEPT_REFUSALS_FOR),))
    tx.db.execute("DELETE FROM tally WHERE minute > 0 AND minute < ?", (views.minute(now - views.TALLY_KEPT),))


@dataclass(frozen=True, slots=True)
class _Found:
    """The numbers of events, newest first, and where to go on."""

    numbers: list[int]
    next: int | None


def _found(
    db: sqlite3.Connection, query: EventQuery, known: Sequence[str], *, limit: int, before: int | None
) -> _Found:
    low, high = bounds(db, query)
    high = high if before is None else min(before, high)
    if query.unrouted or query.state is None or query.state not in COUNTED:
        return _walk_events(db, query, low, high, limit)
    targets = known if query.among is None else sorted(query.among)
    return _walk_deliveries(db, query, targets, low, high, limit)


def bounds(db: sqlite3.Connection, query: EventQuery) -> tuple[int, int]:
    """The numbers between which events of a span of time lie: from the first on, and below the second.

    Ids sort by time and numbers by arrival; the two differ only where a clock was set back.
    """
    first = "SELECT seq FROM event WHERE id >= ? ORDER BY id LIMIT 1"
    low, high = 0, 1 << 62
    if query.since is not None:
        row = db.execute(first, (first_id("evt", query.since),)).fetchone()
        low = row[0] if row else high
    if query.until is not None:
        row = db.execute(first, (first_id("evt", query.until),)).fetchone()
        high = row[0] if row else high
    return low, high


def filters(query: EventQuery) -> tuple[str, dict[str, Any]]:
    """What an event `e` itself must be like."""
    parts = ["TRUE"]
    if query.source is not None:
        parts.append("e.source = :source")
    if query.type is not None:
        parts.append("e.type GLOB :type")
    values = {"source": query.source, "type": query.type and query.type.replace("[!", "[^")}
    return " AND ".join(parts), values


def _walk_events(db: sqlite3.Connection, query: EventQuery, low: int, high: int, limit: int) -> _Found:
    """Look at events one after the other."""
    where, values = filters(query)
    deliveries = "SELECT 1 FROM delivery d WHERE d.event_seq = e.seq"
    if query.unrouted:
        where += f" AND NOT EXISTS ({deliveries})"
    elif query.state is not None or query.among is not None:
        deliveries += " AND d.state = :state" if query.state is not None else ""
        deliveries += " AND d.target IN (SELECT value FROM json_each(:among))" if query.among is not None else ""
        where += f" AND EXISTS ({deliveries})"
    values |= {
        "state": query.state and query.state.value,
        "among": None if query.among is None else json.dumps(sorted(query.among)),
        "low": low,
        "high": high,
        "scan": views.SCAN,
        "limit": limit + 1,
    }
    looked_at = "SELECT seq FROM event WHERE seq >= :low AND seq < :high ORDER BY seq DESC LIMIT :scan"
    numbers = [
        row[0]
        for row in db.execute(
            f"""SELECT e.seq FROM ({looked_at}) s CROSS JOIN event e ON e.seq = s.seq
            WHERE {where} ORDER BY e.seq DESC LIMIT :limit""",
            values,
        )
    ]
    if len(numbers) > limit:
        return _Found(numbers[:limit], numbers[limit - 1])
    last = db.execute(f"SELECT min(seq), count(*) FROM ({looked_at})", values).fetchone()
    return _Found(numbers, last[0] if last[1] == views.SCAN else None)


def _walk_deliveries(
    db: sqlite3.Connection, query: EventQuery, targets: Sequence[str], low: int, high: int, limit: int
) -> _Found:
    """Look at the deliveries in a state of which there is an index, target by target."""
    assert query.state is not None
    index = "delivery_dead" if query.state is DeliveryState.DEAD else "delivery_open"
    listed = "state = 'dead'" if query.state is DeliveryState.DEAD else "state IN ('pending', 'in_flight')"
    candidates: set[int] = set()
    floor = 0
    for target in targets:
        rows = db.execute(
            f"""SELECT event_seq FROM delivery INDEXED BY {index} WHERE target = ? AND {listed} AND state = ?
            AND event_seq >= ? AND event_seq < ? ORDER BY event_seq DESC LIMIT ?""",
            (target, query.state.value, low, high, views.SCAN),
        ).fetchall()
        candidates.update(row[0] for row in rows)
        if len(rows) == views.SCAN:
            floor = max(floor, rows[-1][0])
    numbers = sorted((number for number in candidates if number >= floor), reverse=True)
    where, values = filters(query)
    numbers = numbers[: limit + 1] if where == "TRUE" else _matching(db, numbers, where, values, limit + 1)
    if len(numbers) > limit:
        return _Found(numbers[:limit], numbers[limit - 1])
    return _Found(numbers, floor or None)


def _matching(
    db: sqlite3.Connection, numbers: Sequence[int], where: str, values: dict[str, Any], limit: int
) -> list[int]:
    """The first of these events that are as the filters want them."""
    found: list[int] = []
    for part in slices(numbers):
        query = f"""SELECT e.seq FROM event e WHERE e.seq IN (SELECT value FROM json_each(:part)) AND {where}
            ORDER BY e.seq DESC"""
        found += [row[0] for row in db.execute(query, values | {"part": json.dumps(list(part))})]
        if len(found) >= limit:
            break
    return found[:limit]


_DELIVERY = """target, state, attempts, step, due_at, outcome, status, reason, settled_at, replays,
    CAST(course AS BLOB)"""


def _kept_events(db: sqlite3.Connection, numbers: Sequence[int]) -> list[KeptEvent]:
    """These events with their deliveries, in this order."""
    deliveries: dict[int, list[KeptDelivery]] = {number: [] for number in numbers}
    events: dict[int, Any] = {}
    for part in slices(numbers):
        query = f"SELECT event_seq, {_DELIVERY} FROM delivery WHERE event_seq IN ({marks(len(part))})"
        for number, *row in db.execute(query, part):
            deliveries[number].append(views.kept_delivery(row))
        query = f"SELECT seq, id, source, type, received_at FROM event WHERE seq IN ({marks(len(part))})"
        for number, *row in db.execute(query, part):
            events[number] = row
    return [views.kept_event(number, events[number], deliveries[number]) for number in numbers if number in events]


def _fetch(row: Sequence[Any]) -> KeptFetch:
    enricher, *rest = row
    return views.kept_fetch(str(enricher, "utf-8", "replace"), rest)


def _record(db: sqlite3.Connection, event_id: str, *, data: str) -> EventRecord | None:
    query = """SELECT seq, verified, hops, size, sha256, CAST(headers AS BLOB),
            coalesce((SELECT r.routes FROM rerouted r WHERE r.event_seq = seq), routes),
            CAST(failed_conditions AS BLOB)
        FROM event WHERE id = ?"""
    row = db.execute(query, (event_id,)).fetchone()
    if row is None:
        return None
    number, verified, hops, size, sha256, headers, routes, failed = row
    (event,) = _kept_events(db, [number])
    query = """SELECT target, number, began_at, duration_ms, outcome, status, reason, excerpt FROM attempt
        WHERE event_seq = ? ORDER BY target, number"""
    attempts = tuple(views.kept_attempt(row) for row in db.execute(query, (number,)))
    query = f"""SELECT CAST(enricher AS BLOB), fetched_at, length(data), {data} FROM brought WHERE event_seq = ?
        ORDER BY enricher"""
    fetches = tuple(map(_fetch, db.execute(query, (number,))))
    names = None if routes is None else tuple(map(str, json.loads(routes)))
    return EventRecord(
        event=event,
        headers=views.pairs(headers),
        verified=bool(verified),
        hops=hops,
        size=size,
        sha256=bytes(sha256),
        routes=names,
        attempts=attempts,
        failed_conditions=views.pairs(failed) if failed else (),
        fetches=fetches,
    )


_REFUSAL_INSERT = """INSERT INTO refusal (received_at, source, remote, status, reason, detail, size, headers)
    VALUES {rows}"""


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
