"""The stored replays on one SQLite file: their sets, their counts, their states.

Law: a set is gathered in parts, found on the reading connection and written a small transaction at a time, while its
job is `collecting`: a state that is never shown and never runs, and whose sets a start throws away.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from relay.model import DeliveryState, TargetHealth
from relay.rules.rate import written
from relay.store.grouping.jobs import CUT_OFF, JOB_COLUMNS, PART, filter_text, job_from, moved_to
from relay.store.grouping.rerouting import DISCARD, Item
from relay.store.grouping.rows import millis
from relay.store.replays import (
    Advanced,
    Destinations,
    JobState,
    ReplayedEvent,
    ReplayFilter,
    ReplayJob,
    Steered,
)
from relay.store.sqlite.collecting import limits, page
from relay.store.sqlite.reading import Reading
from relay.store.sqlite.replaying import discard_part, replay_event, take_items
from relay.store.sqlite.transaction import Transaction
from relay.store.sqlite.writer import Writer

_SHOWN = f"SELECT {JOB_COLUMNS} FROM replay WHERE state != 'collecting'"


class SqliteReplays:
    """The port's replays and discards on one SQLite file."""

    adopt_every: timedelta | None = None
    """See `Replays.adopt_every`: nobody else has the file."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer
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
        """See `Replays.create`."""
        self._collecting.add(job.id)
        try:
            seq: int = await self._writer.work(lambda tx: _insert(tx, job))
            total = 0
            async for items in self._items(job.filter):
                for start in range(0, len(items), PART):
                    await self._writer.work(partial(_add, seq=seq, items=items[start : start + PART]))
                total += len(items)
            await self._writer.work(lambda tx: _begin(tx, seq, total))
        finally:
            self._collecting.discard(job.id)
        return replace(job, total=total)

    async def _items(self, wanted: ReplayFilter) -> AsyncIterator[list[Item]]:
        """What a filter finds, oldest first, a page at a time."""
        after, below = await self._reading.run(lambda db: limits(db, wanted))
        targets = [wanted.target] if wanted.target is not None else self._with_dead()
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

    def _with_dead(self) -> list[str]:
        counts = self._writer.ledger.counts
        return sorted({target for (target, state), n in counts.items() if state is DeliveryState.DEAD and n > 0})

    async def jobs(self, limit: int) -> list[ReplayJob]:
        """See `Replays.jobs`."""
        rows = await self._reading.rows(f"{_SHOWN} ORDER BY seq DESC LIMIT ?", (limit,))
        return [job_from(row) for row in rows]

    async def job(self, job_id: str) -> ReplayJob | None:
        """See `Replays.job`."""
        rows = await self._reading.rows(f"{_SHOWN} AND id = ?", (job_id,))
        return job_from(rows[0]) if rows else None

    async def advance(self, job_id: str, number: int, destinations: Destinations, *, now: datetime) -> Advanced:
        """See `Replays.advance`."""
        advanced: Advanced = await self._writer.work(lambda tx: _advance(tx, job_id, number, destinations, now))
        return advanced

    async def steer(self, job_id: str, to: JobState, reason: str, *, now: datetime) -> Steered | None:
        """See `Replays.steer`."""
        steered: Steered | None = await self._writer.work(lambda tx: _steer(tx, job_id, to, reason, now))
        return steered

    async def interrupt(self, reason: str) -> list[ReplayJob]:
        """See `Replays.interrupt`."""
        jobs: list[ReplayJob] = await self._writer.work(lambda tx: _interrupt(tx, reason))
        return jobs

    async def adopt(self) -> list[ReplayJob]:
        """See `Replays.adopt`."""
        return []

    async def sweep(self) -> int:
        """See `Replays.sweep`."""
        number: int = await self._writer.work(lambda tx: _sweep(tx, frozenset(self._collecting)))
        return number

    async def discard(self, target: str, *, permitted: Callable[[TargetHealth], bool], now: datetime) -> int:
        """See `Replays.discard`."""
        last, after, number = self._writer.ledger.next_seq - 1, 0, 0

        def part(tx: Transaction) -> list[int]:
            return discard_part(tx, target, after=after, last=last, now=now) if permitted(tx.health(target)) else []

        while True:
            seqs: list[int] = await self._writer.work(part)
            number += len(seqs)
            if len(seqs) < DISCARD:
                return number
            after = seqs[-1]


def _insert(tx: Transaction, job: ReplayJob) -> int:
    cursor = tx.db.execute(
        "INSERT INTO replay (id, state, filter, rate, total, created_at) VALUES (?, 'collecting', ?, ?, 0, ?)",
        (job.id, filter_text(job.filter), written(job.rate), millis(job.created_at)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _add(tx: Transaction, *, seq: int, items: Sequence[Item]) -> None:
    tx.write("INSERT INTO replay_item (replay_seq, event_seq, target) VALUES {rows}", [(seq, *item) for item in items])


def _begin(tx: Transaction, seq: int, total: int) -> None:
    tx.db.execute("UPDATE replay SET state = 'running', total = ? WHERE seq = ?", (total, seq))


def _found(tx: Transaction, job_id: str) -> tuple[int, ReplayJob] | None:
    row = tx.db.execute(f"{_SHOWN} AND id = ?", (job_id,)).fetchone()
    return None if row is None else (row[0], job_from(row))


def _advance(tx: Transaction, job_id: str, number: int, destinations: Destinations, now: datetime) -> Advanced:
    found = _found(tx, job_id)
    if found is None:
        return Advanced(None)
    seq, job = found
    if job.state is not JobState.RUNNING:
        return Advanced(job)
    taken = take_items(tx, seq, job.filter.state, number, destinations, now)
    job = replace(job, done=job.done + taken.replayed, skipped=job.skipped + taken.skipped)
    if tx.db.execute("SELECT 1 FROM replay_item WHERE replay_seq = ? LIMIT 1", (seq,)).fetchone() is None:
        job = replace(job, state=JobState.DONE, ended_at=now)
    _write(tx, seq, job)
    return Advanced(job, taken.targets)


def _steer(tx: Transaction, job_id: str, to: JobState, reason: str, now: datetime) -> Steered | None:
    found = _found(tx, job_id)
    if found is None:
        return None
    seq, before = found
    job = moved_to(before, to, reason, now)
    if job is None:
        return Steered(before, before)
    _write(tx, seq, job)
    return Steered(before, job)


def _write(tx: Transaction, seq: int, job: ReplayJob) -> None:
    tx.db.execute(
        "UPDATE replay SET state = ?, done = ?, skipped = ?, ended_at = ?, reason = ? WHERE seq = ?",
        (job.state.value, job.done, job.skipped, job.ended_at and millis(job.ended_at), job.reason, seq),
    )


def _interrupt(tx: Transaction, reason: str) -> list[ReplayJob]:
    rows = tx.db.execute(f"{_SHOWN} AND state = 'running' ORDER BY seq").fetchall()
    jobs = [replace(job_from(row), state=JobState.PAUSED, reason=reason) for row in rows]
    for row, job in zip(rows, jobs, strict=True):
        _write(tx, row[0], job)
    return jobs


def _sweep(tx: Transaction, collecting: frozenset[str]) -> int:
    """Cancel what was cut off while it was gathered, and remove a part of what cancelled jobs still have."""
    for seq, job_id, at in tx.db.execute(
        "SELECT seq, id, created_at FROM replay WHERE state = 'collecting'"
    ).fetchall():
        if job_id not in collecting:
            values = (CUT_OFF, at, seq)
            tx.db.execute("UPDATE replay SET state = 'cancelled', reason = ?, ended_at = ? WHERE seq = ?", values)
    left = """SELECT i.replay_seq, i.event_seq, i.target FROM replay r CROSS JOIN replay_item i ON i.replay_seq = r.seq
        WHERE r.state = 'cancelled' LIMIT ?"""
    return tx.db.execute(f"DELETE FROM replay_item WHERE (replay_seq, event_seq, target) IN ({left})", (PART,)).rowcount
