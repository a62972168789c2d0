"""The stored replays in PostgreSQL: their sets, their counts, their states.

Law: a set is gathered in parts, found on the reading side and written a small transaction at a time, while its job is
`collecting`: a state that is never shown and never runs, and whose sets are thrown away once nobody gathers them. A job
belongs to the node that runs it. Whoever changes one has its row locked, so that it is paused, taken over and done in
one order for all.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from relay.model import TargetHealth
from relay.rules.rate import written
from relay.store import StoreUnavailable
from relay.store.grouping.jobs import CUT_OFF, JOB_COLUMNS, PART, filter_text, job_from, moved_to
from relay.store.grouping.rerouting import DISCARD, Item
from relay.store.grouping.rows import millis
from relay.store.postgres.collecting import limits, page, with_dead
from relay.store.postgres.node import IS_ALIVE
from relay.store.postgres.reading import Reading
from relay.store.postgres.replaying import discard_part, replay_event, take_items
from relay.store.postgres.transaction import Known, Transaction, Works
from relay.store.postgres.types import Row
from relay.store.replays import Advanced, Destinations, JobState, ReplayedEvent, ReplayFilter, ReplayJob, Steered

ADOPT_EVERY = timedelta(seconds=15)

_COLUMNS = f"{JOB_COLUMNS}, node"
_SHOWN = f"SELECT {_COLUMNS} FROM replay WHERE state != 'collecting'"
_LIVING = f"SELECT id FROM node WHERE {IS_ALIVE}"
_ADD = """INSERT INTO replay_item (replay_seq, event_seq, target)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[])"""
# Job by job, each step by a key: a walk over all items would pass those of the jobs that run.
_UNSWEPT = """SELECT r.seq FROM replay r
    CROSS JOIN LATERAL (SELECT 1 FROM replay_item x WHERE x.replay_seq = r.seq LIMIT 1) one
    WHERE r.state = 'cancelled' ORDER BY r.seq LIMIT 1"""
_SWEPT = f"""DELETE FROM replay_item WHERE ctid = ANY(ARRAY(
    SELECT i.ctid FROM replay_item i WHERE i.replay_seq = ({_UNSWEPT})
    ORDER BY i.event_seq, i.target LIMIT {PART} FOR UPDATE SKIP LOCKED))"""


class PostgresReplays:
    """The port's replays and discards for one node of a PostgreSQL database."""

    adopt_every: timedelta | None = ADOPT_EVERY
    """See `Replays.adopt_every`."""

    def __init__(self, reading: Reading, writer: Works, known: Known) -> None:
        self._reading = reading
        self._writer = writer
        self._known = known
        self._collecting: set[str] = set()

    async def event(
        self, event_id: str, destinations: Destinations, *, now: datetime, target: str | None = None
    ) -> ReplayedEvent | None:
        """See `Replays.event`."""
        found: ReplayedEvent | None = await self._writer.work(
            lambda tx: replay_event(tx, event_id, destinations, target=target, now=now)
        )
        return found

    async def count(self, wanted: ReplayFilter) -> Counter[str]:
        """See `Replays.count`."""
        number: Counter[str] = Counter()
        async for items in self._items(wanted):
            number.update(target for _, target in items)
        return number

    async def create(self, job: ReplayJob) -> ReplayJob:
        """See `Replays.create`. Raises `StoreUnavailable` too where the others took this node for gone meanwhile."""
        self._collecting.add(job.id)
        try:
            seq: int = await self._writer.work(lambda tx: _insert(tx, job))
            total = 0
            async for items in self._items(job.filter):
                for start in range(0, len(items), PART):
                    part = partial(_add, seq=seq, items=items[start : start + PART])
                    _still_gathering(is_so=await self._writer.work(part))
                total += len(items)
            _still_gathering(is_so=await self._writer.work(lambda tx: _begin(tx, seq, total)))
        finally:
            self._collecting.discard(job.id)
        return replace(job, total=total)

    async def _items(self, wanted: ReplayFilter) -> AsyncIterator[list[Item]]:
        """What a filter finds, oldest first, a page at a time."""
        after, below = await self._reading.run(lambda db: limits(db, wanted))
        targets = [wanted.target] if wanted.target is not None else await self._reading.run(with_dead)
        left = wanted.limit
        while left is None or left > 0:
            found = await self._reading.run(partial(page, wanted=wanted, targets=targets, after=after, below=below))
            items = found.items[:left]
            left = None if left is None else left - len(items)
            if items:
                yield items
            if found.next is None:
                return
            after = found.next

    async def jobs(self, limit: int) -> list[ReplayJob]:
        """See `Replays.jobs`."""
        rows = await self._reading.rows(f"{_SHOWN} ORDER BY seq DESC LIMIT $1", limit)
        return [_job(row, self._known) for row in rows]

    async def job(self, job_id: str) -> ReplayJob | None:
        """See `Replays.job`."""
        rows = await self._reading.rows(f"{_SHOWN} AND id = $1", job_id)
        return _job(rows[0], self._known) if rows else None

    async def advance(self, job_id: str, number: int, destinations: Destinations, *, now: datetime) -> Advanced:
        """See `Replays.advance`."""
        advanced: Advanced = await self._writer.work(lambda tx: _advance(tx, job_id, number, destinations, now))
        return advanced

    async def steer(self, job_id: str, to: JobState, reason: str, *, now: datetime) -> Steered | None:
        """See `Replays.steer`."""
        steered: Steered | None = await self._writer.work(lambda tx: _steer(tx, job_id, to, reason, now))
        return steered

    async def interrupt(self, reason: str) -> list[ReplayJob]:
        """See `Replays.interrupt`. What another node runs that lives goes on."""
        jobs: list[ReplayJob] = await self._writer.work(lambda tx: _interrupt(tx, reason))
        return jobs

    async def adopt(self) -> list[ReplayJob]:
        """See `Replays.adopt`."""
        query = f"SELECT 1 FROM replay WHERE state = 'running' AND node != $1 AND node NOT IN ({_LIVING}) LIMIT 1"
        if not await self._reading.rows(query, self._known.node):
            return []
        jobs: list[ReplayJob] = await self._writer.work(_adopt)
        return jobs

    async def sweep(self) -> int:
        """See `Replays.sweep`. What another node gathers that lives is left alone."""
        gathering = frozenset(self._collecting)
        query = f"""SELECT EXISTS ({_UNSWEPT}) OR EXISTS (SELECT 1 FROM replay WHERE state = 'collecting'
            AND id != ALL($1::text[]) AND (node = $2 OR node NOT IN ({_LIVING})))"""
        ((is_unswept,),) = await self._reading.rows(query, sorted(gathering), self._known.node)
        if not is_unswept:
            return 0
        number: int = await self._writer.work(lambda tx: _sweep(tx, gathering | self._collecting))
        return number

    async def discard(self, target: str, *, permitted: Callable[[TargetHealth], bool], now: datetime) -> int:
        """See `Replays.discard`."""
        ((last,),) = await self._reading.rows("SELECT coalesce(max(seq), 0) FROM event")
        after, number = 0, 0

        async def part(tx: Transaction) -> list[int]:
            await tx.lock_health([target])
            if not permitted(tx.health(target)):
                return []
            return await discard_part(tx, target, after=after, last=last, now=now)

        while True:
            seqs: list[int] = await self._writer.work(part)
            number += len(seqs)
            if len(seqs) < DISCARD:
                return number
            after = seqs[-1]


def _still_gathering(*, is_so: bool) -> None:
    if not is_so:
        raise StoreUnavailable(CUT_OFF)


async def _insert(tx: Transaction, job: ReplayJob) -> int:
    ((seq,),) = await tx.rows(
        """INSERT INTO replay (id, state, node, filter, rate, total, created_at)
        VALUES ($1, 'collecting', $2, $3, $4, 0, $5) RETURNING seq""",
        job.id,
        tx.known.node,
        filter_text(job.filter),
        written(job.rate),
        millis(job.created_at),
    )
    return int(seq)


async def _add(tx: Transaction, *, seq: int, items: list[Item]) -> bool:
    """Add to a set; False where it was given up, because this node seemed to be gone."""
    if not await tx.rows("SELECT 1 FROM replay WHERE seq = $1 AND state = 'collecting' FOR UPDATE", seq):
        return False
    await tx.write(_ADD, [(seq, *item) for item in items])
    return True


async def _begin(tx: Transaction, seq: int, total: int) -> bool:
    query = "UPDATE replay SET state = 'running', total = $1 WHERE seq = $2 AND state = 'collecting'"
    return await tx.run(query, total, seq) > 0


async def _found(tx: Transaction, job_id: str) -> tuple[int, ReplayJob, int] | None:
    """A job, locked, with its number and its node."""
    rows = await tx.rows(f"{_SHOWN} AND id = $1 FOR UPDATE", job_id)
    return (rows[0]["seq"], _job(rows[0], tx.known), rows[0]["node"]) if rows else None


async def _advance(tx: Transaction, job_id: str, number: int, destinations: Destinations, now: datetime) -> Advanced:
    found = await _found(tx, job_id)
    if found is None:
        return Advanced(None)
    seq, job, _ = found
    if job.state is not JobState.RUNNING or not job.is_here:
        return Advanced(job)
    taken = await take_items(tx, seq, job.filter.state, number, destinations, now)
    job = replace(job, done=job.done + taken.replayed, skipped=job.skipped + taken.skipped)
    if not await tx.rows("SELECT 1 FROM replay_item WHERE replay_seq = $1 LIMIT 1", seq):
        job = replace(job, state=JobState.DONE, ended_at=now)
    await _write(tx, seq, job)
    return Advanced(job, taken.targets)


async def _steer(tx: Transaction, job_id: str, to: JobState, reason: str, now: datetime) -> Steered | None:
    found = await _found(tx, job_id)
    if found is None:
        return None
    seq, before, node = found
    job = moved_to(before, to, reason, now)
    if job is not None:
        job = replace(job, is_here=before.is_here or to is JobState.RUNNING)
        await _write(tx, seq, job)
    elif before.state is to is JobState.RUNNING and not before.is_here and node not in await _living(tx):
        job = replace(before, is_here=True)
    if job is not None and job.is_here and not before.is_here:
        await _take_over(tx, [seq])
    return Steered(before, job or before)


async def _write(tx: Transaction, seq: int, job: ReplayJob) -> None:
    await tx.run(
        "UPDATE replay SET state = $1, done = $2, skipped = $3, ended_at = $4, reason = $5 WHERE seq = $6",
        job.state.value,
        job.done,
        job.skipped,
        job.ended_at and millis(job.ended_at),
        job.reason,
        seq,
    )


async def _take_over(tx: Transaction, seqs: list[int]) -> None:
    await tx.run("UPDATE replay SET node = $1 WHERE seq = ANY($2::bigint[])", tx.known.node, seqs)


async def _living(tx: Transaction) -> list[int]:
    """The nodes that have told of themselves lately, by the database's clock."""
    return [node for (node,) in await tx.rows(_LIVING)]


async def _running(tx: Transaction, others_than: list[int]) -> list[Row]:
    """The jobs that run on none of these nodes, locked."""
    query = f"{_SHOWN} AND state = 'running' AND node != ALL($1::int[]) ORDER BY seq FOR UPDATE"
    return await tx.rows(query, others_than)


async def _interrupt(tx: Transaction, reason: str) -> list[ReplayJob]:
    rows = await _running(tx, [node for node in await _living(tx) if node != tx.known.node])
    jobs = [replace(_job(row, tx.known), state=JobState.PAUSED, reason=reason) for row in rows]
    for row, job in zip(rows, jobs, strict=True):
        await _write(tx, row["seq"], job)
    return jobs


async def _adopt(tx: Transaction) -> list[ReplayJob]:
    rows = await _running(tx, [*await _living(tx), tx.known.node])
    await _take_over(tx, [row["seq"] for row in rows])
    return [replace(_job(row, tx.known), is_here=True) for row in rows]


async def _sweep(tx: Transaction, collecting: frozenset[str]) -> int:
    """Cancel what was cut off while it was gathered, and remove a part of what cancelled jobs still have."""
    others = [node for node in await _living(tx) if node != tx.known.node]
    await tx.run(
        """UPDATE replay SET state = 'cancelled', reason = $1, ended_at = created_at
        WHERE state = 'collecting' AND id != ALL($2::text[]) AND node != ALL($3::int[])""",
        CUT_OFF,
        sorted(collecting),
        others,
    )
    return await tx.run(_SWEPT)


def _job(row: Row, known: Known) -> ReplayJob:
    return replace(job_from(tuple(row)[:-1]), is_here=row["node"] == known.node)
