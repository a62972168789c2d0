"""The views in SQL: events, refusals and tallies, found newest first.

Law: every view is one snapshot, read beside the writer. What has a row for each node is shown as one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from relay.store.archive import (
    EventPage,
    EventQuery,
    EventRecord,
    KeptDelivery,
    KeptEvent,
    RefusalPage,
    RefusalQuery,
    RefusedRequest,
    Tally,
)
from relay.store.grouping import views
from relay.store.grouping.rows import millis, moment
from relay.store.postgres.reading import Reading
from relay.store.postgres.searching import Values, found
from relay.store.postgres.texts import storable
from relay.store.postgres.transaction import Transaction, Works
from relay.store.postgres.types import Connection

_FIRST = """SELECT event_seq, state, due_at FROM delivery
    WHERE target = t.name AND state IN ('pending', 'in_flight') ORDER BY event_seq LIMIT 1"""
"""The first by arrival of what is not over at a target."""
_DUE = "SELECT due_at FROM delivery WHERE target = t.name AND state = 'pending' ORDER BY due_at LIMIT 1"


class PostgresArchive:
    """The port's reading side on one database."""

    def __init__(self, reading: Reading, writer: Works) -> None:
        self._reading = reading
        self._writer = writer

    async def events(self, query: EventQuery, *, limit: int, before: int | None = None) -> EventPage:
        """See `Archive.events`."""

        async def read(db: Connection) -> EventPage:
            page = await found(db, query, limit=limit, before=before)
            return EventPage(tuple(await _kept_events(db, page.numbers)), page.next)

        return await self._reading.run(read)

    async def event(self, event_id: str, *, with_data: bool = False) -> EventRecord | None:
        """See `Archive.event`."""
        data = "data" if with_data else "NULL"
        return await self._reading.run(lambda db: _record(db, storable(event_id), data=data))

    async def refusals(self, query: RefusalQuery, *, limit: int, before: int | None = None) -> RefusalPage:
        """See `Archive.refusals`."""
        values = Values()
        where = ["TRUE"]
        if before is not None:
            where.append(f"seq < {values.mark(before, 'bigint')}")
        if query.source is not None:
            where.append(f"source = {values.mark(storable(query.source), 'text')}")
        if query.since is not None:
            where.append(f"received_at >= {values.mark(millis(query.since), 'bigint')}")
        if query.until is not None:
            where.append(f"received_at < {values.mark(millis(query.until), 'bigint')}")
        rows = await self._reading.rows(
            f"""SELECT seq, received_at, source, remote, status, reason, detail, size, headers FROM refusal
            WHERE {" AND ".join(where)} ORDER BY seq DESC LIMIT {values.mark(limit + 1, "bigint")}""",
            *values,
        )
        refusals = tuple(views.refusal_from(row[1:]) for row in rows[:limit])
        return RefusalPage(refusals, rows[limit - 1][0] if len(rows) > limit else None)

    async def keep_refusals(
        self, refusals: Sequence[RefusedRequest], *, counts: Mapping[str, int], at: datetime
    ) -> None:
        """See `Archive.keep_refusals`."""
        rows = [views.refusal_row(refusal, storable) for refusal in refusals[-views.KEPT_REFUSALS :]]

        async def keep(tx: Transaction) -> None:
            numbers = await tx.numbers("refusal", len(rows)) if rows else ()
            await tx.write(_REFUSAL_INSERT, [(number, *row) for number, row in zip(numbers, rows, strict=True)])
            for source, number in counts.items():
                tx.changes.tell("source", storable(source), "refused", millis(at), number)
            await tx.run(
                _forgetting(
                    "refusal",
                    """received_at < $1 OR
                    seq <= (SELECT seq FROM refusal ORDER BY seq DESC LIMIT 1 OFFSET $2)""",
                ),
                millis(at - views.KEPT_REFUSALS_FOR),
                views.KEPT_REFUSALS,
            )

        await self._writer.work(keep)

    async def overdue(self, targets: Sequence[str], before: datetime, *, ordered: Collection[str]) -> frozenset[str]:
        """See `Archive.overdue`."""
        some = f"SELECT t.name FROM unnest($1::text[]) t (name) WHERE ({_DUE}) <= $2::bigint"
        first = f"""SELECT t.name FROM unnest($1::text[]) t (name) CROSS JOIN LATERAL ({_FIRST}) d
            WHERE d.state = 'pending' AND d.due_at <= $2::bigint"""
        names: set[str] = set()
        for query, named in ((some, set(targets) - set(ordered)), (first, set(targets) & set(ordered))):
            if named:
                rows = await self._reading.rows(query, sorted(named), millis(before))
                names.update(row[0] for row in rows)
        return frozenset(names)

    async def firsts(self, targets: Sequence[str]) -> Mapping[str, str]:
        """See `Archive.firsts`."""
        query = f"""SELECT t.name, (SELECT e.id FROM event e WHERE e.seq = d.event_seq)
            FROM unnest($1::text[]) t (name) CROSS JOIN LATERAL ({_FIRST}) d"""
        rows = await self._reading.rows(query, list(targets))
        return {name: id_ for name, id_ in rows if id_ is not None}

    async def tally(self, now: datetime) -> Tally:
        """See `Archive.tally`."""

        async def read(db: Connection) -> Tally:
            birth = await db.fetchval("SELECT birth FROM numbering")
            rows = await db.fetch(
                """SELECT minute = 0, kind, name, what, sum(number)::bigint FROM tally
                WHERE minute = 0 OR minute > $1 GROUP BY minute = 0, kind, name, what""",
                views.minute(now - views.HOUR),
            )
            return views.tally_from(map(tuple, rows), moment(birth * 60_000))

        return await self._reading.run(read)


async def forget_outlived(tx: Transaction, now: datetime) -> None:
    """Delete the minutes of the tally that no view asks for any more, and the refusals that are too old."""
    await tx.run(_forgetting("refusal", "received_at < $1"), millis(now - views.KEPT_REFUSALS_FOR))
    await tx.run(_forgetting("tally", "minute > 0 AND minute < $1"), views.minute(now - views.TALLY_KEPT))


def _forgetting(table: str, where: str) -> str:
    """A statement that deletes these rows, but for those that another node is deleting at this moment: it waits for
    nobody, whatever this transaction holds already."""
    return f"""DELETE FROM {table}
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {where} FOR UPDATE SKIP LOCKED))"""


_REFUSAL_INSERT = """INSERT INTO refusal (seq, received_at, source, remote, status, reason, detail, size, headers)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[],
        $8::bigint[], $9::text[])"""


async def _kept_events(db: Connection, numbers: Sequence[int]) -> list[KeptEvent]:
    """These events with their deliveries, in this order."""
    deliveries: dict[int, list[KeptDelivery]] = {number: [] for number in numbers}
    query = """SELECT event_seq, target, state, attempts, step, due_at, outcome, status, reason, settled_at, replays,
            course
        FROM delivery WHERE event_seq = ANY($1::bigint[]) ORDER BY event_seq, target"""
    for number, *row in await db.fetch(query, list(numbers)):
        deliveries[number].append(views.kept_delivery(row))
    query = "SELECT seq, id, source, type, received_at FROM event WHERE seq = ANY($1::bigint[])"
    events: dict[int, Any] = {number: row for number, *row in await db.fetch(query, list(numbers))}
    return [views.kept_event(number, events[number], deliveries[number]) for number in numbers if number in events]


async def _record(db: Connection, event_id: str, *, data: str) -> EventRecord | None:
    query = """SELECT seq, verified, hops, size, sha256, headers,
            coalesce((SELECT r.routes FROM rerouted r WHERE r.event_seq = seq), routes), failed_conditions
        FROM event WHERE id = $1"""
    row = await db.fetchrow(query, event_id)
    if row is None:
        return None
    number, verified, hops, size, sha256, headers, routes, failed = row
    (event,) = await _kept_events(db, [number])
    query = """SELECT target, number, began_at, duration_ms, outcome, status, reason, excerpt FROM attempt
        WHERE event_seq = $1 ORDER BY target, number"""
    attempts = tuple(views.kept_attempt(tuple(row)) for row in await db.fetch(query, number))
    query = f"SELECT enricher, fetched_at, length(data), {data} FROM brought WHERE event_seq = $1 ORDER BY enricher"
    fetches = tuple(views.kept_fetch(enricher, rest) for enricher, *rest in await db.fetch(query, number))
    return EventRecord(
        event=event,
        headers=views.pairs(headers),
        verified=verified,
        hops=hops,
        size=size,
        sha256=sha256,
        routes=None if routes is None else tuple(map(str, json.loads(routes))),
        attempts=attempts,
        failed_conditions=views.pairs(failed) if failed else (),
        fetches=fetches,
    )
