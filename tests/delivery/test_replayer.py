"""The carrier of stored replays: paced, steered at once, and no danger to the deliveries of others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay.delivery.replayer import Replayer
from relay.model import Rate
from relay.store import StoreUnavailable
from relay.store.replays import (
    Advanced,
    Destinations,
    JobState,
    Replayable,
    ReplayedEvent,
    ReplayFilter,
    ReplayJob,
    Replays,
    Steered,
)
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.replays import SqliteReplays
from tests.support.store_parts import NOW, SECOND, Watch, accepted_many, killed, taken, towards

DEAD = ReplayFilter(Replayable.DEAD)
FAST, SLOW = Rate(100_000, SECOND), Rate(1, 3600 * SECOND)


@dataclass
class Told:
    """Remembers what it is told."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    woken: set[str] = field(default_factory=set)

    def event_replayed(self, replayed: ReplayedEvent) -> None:
        self.lines.append(("event", replayed.event_id))

    def replay_started(self, job: ReplayJob) -> None:
        self.lines.append(("started", job.reason))

    def replay_paused(self, job: ReplayJob) -> None:
        self.lines.append(("paused", job.reason))

    def replay_finished(self, job: ReplayJob) -> None:
        self.lines.append(("finished", job.state.value))

    def wake(self, targets: Iterable[str]) -> None:
        self.woken.update(targets)


class Failing(SqliteReplays):
    """A store whose verbs fail as they are told to, before or after they have done their work."""

    fault: Exception | None = None
    lost_answer: Exception | None = None

    async def advance(self, job_id: str, number: int, destinations: Destinations, *, now: datetime) -> Advanced:
        if self.fault is not None:
            raise self.fault
        return await super().advance(job_id, number, destinations, now=now)

    async def steer(self, job_id: str, to: JobState, reason: str, *, now: datetime) -> Steered | None:
        steered = await super().steer(job_id, to, reason, now=now)
        if self.lost_answer is not None:
            raise self.lost_answer
        return steered


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store in which five deliveries are dead."""
    opened = await SqliteStore.open(tmp_path / "relay.db", Watch())
    await accepted_many(opened, 5, "crm")
    for claim in await taken(opened, limit=5):
        await killed(opened, claim)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def carrying(replays: Replays, told: Told) -> AsyncIterator[Replayer]:
    """A replayer that runs."""
    replayer = Replayer(
        replays,
        destinations=lambda: towards("crm"),
        wake=told.wake,
        witness=told,
        now=lambda: datetime.now(UTC),
    )
    await replayer.start()
    task = asyncio.create_task(replayer.run())
    try:
        yield replayer
        assert not task.done(), "it ended by itself"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    """Look again and again until it holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_job_is_carried_to_its_end_and_its_targets_are_woken(store: SqliteStore) -> None:
    """Beginning and end are told once; what is due is not left to the next look of a lane."""
    told = Told()
    async with carrying(store.replays, told) as replayer:
        job = await replayer.begin(DEAD, FAST)
        await until(lambda: ("finished", "done") in told.lines)
        assert told.lines == [("started", ""), ("finished", "done")]
        found = await store.replays.job(job.id)
        assert found is not None
        assert (found.done, found.state) == (5, JobState.DONE)
    assert told.woken == {"crm"}


async def test_a_fault_pauses_its_job_and_nothing_else(store: SqliteStore) -> None:
    """A bug in a replay must not end the deliveries of all: it is told with the job, which can be resumed."""
    told, replays = Told(), Failing(store._reading, store._writer)
    replays.fault = RuntimeError("no such luck")
    async with carrying(replays, told) as replayer:
        job = await replayer.begin(DEAD, FAST)
        await until(lambda: len(told.lines) == 2)
        assert told.lines[1] == ("paused", "a fault of ours: RuntimeError: no such luck")
        replays.fault = None
        await replayer.resume(job.id)
        await until(lambda: told.lines[-1] == ("finished", "done"))


async def test_an_outage_is_waited_for(store: SqliteStore) -> None:
    """A job that could not advance goes on by itself."""
    told, replays = Told(), Failing(store._reading, store._writer)
    replays.fault = StoreUnavailable("the disk is full")
    async with carrying(replays, told) as replayer:
        await replayer.begin(DEAD, FAST)
        await replayer.begin(DEAD, FAST)  # wakes it, so that it has tried
        replays.fault = None
        await until(lambda: told.lines.count(("finished", "done")) == 2)


async def test_a_resume_whose_answer_was_lost_can_be_asked_for_again(store: SqliteStore) -> None:
    """The store has it as running; the second call carries it on."""
    told, replays = Told(), Failing(store._reading, store._writer)
    async with carrying(replays, told) as replayer:
        job = await replayer.begin(DEAD, SLOW)
        await replayer.pause(job.id)
        replays.lost_answer = StoreUnavailable("the disk is full")
        with pytest.raises(StoreUnavailable):
            await replayer.resume(job.id)
        replays.lost_answer = None
        assert told.lines[-1] == ("paused", "by hand")
        resumed = await replayer.resume(job.id)
        assert resumed is not None
        assert (resumed.state, told.lines[-1]) == (JobState.RUNNING, ("started", ""))


async def test_what_ran_before_the_start_stands_still(store: SqliteStore) -> None:
    """An operator watches a replay: it is not begun anew behind his back."""
    told = Told()
    job = await store.replays.create(ReplayJob("rpl_1", DEAD, FAST, NOW))
    async with carrying(store.replays, told) as replayer:
        assert told.lines == [("paused", "the relay was restarted")]
        await replayer.event("evt_nobody", None)
        found = await store.replays.job(job.id)
        assert found is not None
        assert (found.state, found.done) == (JobState.PAUSED, 0)


async def test_a_cancelled_set_is_swept_away(store: SqliteStore) -> None:
    """Soon, and also one that the process before has left."""
    told = Told()

    async def left() -> int:
        return int((await store._reading.rows("SELECT count(*) FROM replay_item"))[0][0])

    job = await store.replays.create(ReplayJob("rpl_1", DEAD, FAST, NOW))
    await store.replays.steer(job.id, JobState.CANCELLED, "by hand", now=NOW)
    async with carrying(store.replays, told) as replayer:
        async with asyncio.timeout(20):
            while await left():
                pass
        job = await replayer.begin(DEAD, SLOW)
        cancelled = await replayer.cancel(job.id)
        assert cancelled is not None
        assert cancelled.state is JobState.CANCELLED
        paused = await replayer.pause(job.id)
        assert paused is not None
        assert paused.state is JobState.CANCELLED
        assert await replayer.resume("rpl_nobody") is None
        async with asyncio.timeout(20):
            while await left():
                pass


class OneOfTwo(Failing):
    """A store that has another node, whose jobs can be taken over or be taken away again."""

    adopt_every = timedelta(milliseconds=10)
    elsewhere = True

    async def adopt(self) -> list[ReplayJob]:
        return [] if self.elsewhere else [job for job in await self.jobs(9) if job.state is JobState.RUNNING]

    async def advance(self, job_id: str, number: int, destinations: Destinations, *, now: datetime) -> Advanced:
        if self.elsewhere:
            job = await self.job(job_id)
            assert job is not None
            return Advanced(replace(job, is_here=False))
        return await super().advance(job_id, number, destinations, now=now)

    async def steer(self, job_id: str, to: JobState, reason: str, *, now: datetime) -> Steered | None:
        steered = await super().steer(job_id, to, reason, now=now)
        assert steered is not None
        return replace(steered, job=replace(steered.job, is_here=not self.elsewhere))


async def test_a_node_carries_its_own_jobs_and_those_of_one_that_is_gone(store: SqliteStore) -> None:
    """One that runs elsewhere is let go of and not begun by a resume; once its node is gone, it goes on here."""
    told, replays = Told(), OneOfTwo(store._reading, store._writer)
    async with carrying(replays, told) as replayer:
        job = await replayer.begin(DEAD, FAST)
        await until(lambda: not replayer._running)
        await replayer.resume(job.id)
        assert (replayer._running, told.lines) == ({}, [("started", "")])
        replays.elsewhere = False
        await until(lambda: ("finished", "done") in told.lines)
        assert told.lines[1:] == [("started", ""), ("finished", "done")]
