"""Carries the replays: each running job gives its items their turn at its own rate, side by side with the others.

Law: what a job has done is told by the store alone; here is nothing that a restart would miss but the pace. A job that
ran when the relay stopped is paused by the next start, because whoever watches it must say that it goes on. Of several
nodes each carries its own jobs; those of one that is gone go on at another.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from relay.ids import fresh_id
from relay.model import Rate
from relay.rules.rate import Bucket, take_some
from relay.store import StoreUnavailable
from relay.store.replays import Destinations, JobState, ReplayedEvent, ReplayFilter, ReplayJob, Replays

RESTARTED = "the relay was restarted"
BY_HAND = "by hand"

BATCH = 200
"""Items that have their turn in one transaction: an answer that arrives meanwhile waits for a few milliseconds."""
TICK = timedelta(milliseconds=100)
"""Between two transactions of a job that waits for its rate."""
GAP = timedelta(milliseconds=5)
"""Between two of one that its rate does not hold up."""
BREATH = timedelta(seconds=1)
"""Pause while the store takes nothing."""
SWEEP_PAUSE = timedelta(milliseconds=50)


class Witness(Protocol):
    """Who is told of replays; called on the event loop after the commit, must not block."""

    def event_replayed(self, replayed: ReplayedEvent) -> None:
        """One event was replayed by hand."""

    def replay_started(self, job: ReplayJob) -> None:
        """A job began, or goes on."""

    def replay_paused(self, job: ReplayJob) -> None:
        """A job stands still until it is resumed."""

    def replay_finished(self, job: ReplayJob) -> None:
        """A job is done or cancelled."""


@dataclass(slots=True)
class _Pace:
    """At what rate a job goes, and what is left of it now."""

    rate: Rate
    bucket: Bucket = field(default_factory=Bucket)


class Replayer:
    """Begins, carries and steers replays. Build inside a running loop, `start`, then have `run` looked after."""

    def __init__(
        self,
        replays: Replays,
        *,
        destinations: Callable[[], Destinations],
        wake: Callable[[Iterable[str]], None],
        witness: Witness,
        now: Callable[[], datetime],
    ) -> None:
        """`destinations` tells the config of the moment, `wake` that something is due at some targets."""
        self._replays = replays
        self._destinations = destinations
        self._wake = wake
        self._witness = witness
        self._now = now
        self._running: dict[str, _Pace] = {}
        self._unswept = True
        self._looked_at = time.monotonic()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Pause what ran when the process before ended, and tell of it."""
        for job in await self._replays.interrupt(RESTARTED):
            self._witness.replay_paused(job)

    async def event(self, event_id: str, target: str | None) -> ReplayedEvent | None:
        """Replay one event now; see `Replays.event`."""
        replayed = await self._replays.event(event_id, self._destinations(), now=self._now(), target=target)
        if replayed is not None and replayed.replayed:
            self._wake(replayed.replayed)
            self._witness.event_replayed(replayed)
        return replayed

    async def begin(self, wanted: ReplayFilter, rate: Rate) -> ReplayJob:
        """Store a job for what a filter finds now, and let it run."""
        now = self._now()
        try:
            job = await self._replays.create(ReplayJob(fresh_id("rpl", now), wanted, rate, now))
        except BaseException:
            self._sweep_soon()
            raise
        self._go_on(job)
        return job

    async def resume(self, job_id: str) -> ReplayJob | None:
        """Let a paused job go on; None where there is none. One that is over stays as it is."""
        return await self._steer(job_id, JobState.RUNNING, "")

    async def pause(self, job_id: str) -> ReplayJob | None:
        """Let a job stand still at once, likewise."""
        return await self._steer(job_id, JobState.PAUSED, BY_HAND)

    async def cancel(self, job_id: str) -> ReplayJob | None:
        """End a job at once, likewise; what it has replayed stays so."""
        return await self._steer(job_id, JobState.CANCELLED, BY_HAND)

    async def _steer(self, job_id: str, to: JobState, reason: str) -> ReplayJob | None:
        steered = await self._replays.steer(job_id, to, reason, now=self._now())
        if steered is None:
            return None
        job = steered.job
        if to is JobState.RUNNING:
            is_to_go_on = job.state is to and job.is_here
            if is_to_go_on and job_id not in self._running:  # also one whose first answer an outage swallowed
                self._go_on(job)
            return job
        if steered.before == job:
            return job
        self._running.pop(job_id, None)
        if to is JobState.PAUSED:
            self._witness.replay_paused(job)
        else:
            self._witness.replay_finished(job)
            self._sweep_soon()
        return job

    def _go_on(self, job: ReplayJob) -> None:
        self._running[job.id] = _Pace(job.rate)
        self._witness.replay_started(job)
        self._changed.set()

    def _sweep_soon(self) -> None:
        self._unswept = True
        self._changed.set()

    async def run(self) -> None:
        """Carry the jobs for ever. While the store takes nothing they wait; raises only for a bug."""
        while True:
            self._changed.clear()
            try:
                pause = await self._turn()
            except StoreUnavailable:
                pause = BREATH
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause is None else pause.total_seconds()):
                    await self._changed.wait()

    async def _turn(self) -> timedelta | None:
        """Do what is to be done now; return how long to wait then, None until something changes."""
        every = self._replays.adopt_every
        if every is None:
            return await self._carry()
        if time.monotonic() - self._looked_at >= every.total_seconds():
            await self._look_after_others()
        wait = await self._carry()
        return every if wait is None else min(wait, every)

    async def _look_after_others(self) -> None:
        """Let what nodes that are gone have left running go on here, and sweep up what they were gathering."""
        for job in await self._replays.adopt():
            self._go_on(job)
        self._unswept = True
        self._looked_at = time.monotonic()

    async def _carry(self) -> timedelta | None:
        """Give some items of each job their turn, or sweep; return as `_turn`."""
        waits = [wait for job_id, pace in list(self._running.items()) if (wait := await self._advance(job_id, pace))]
        if not waits and self._unswept:
            self._unswept = await self._replays.sweep() > 0
            return SWEEP_PAUSE if self._unswept else None
        return min(waits, default=None)

    async def _advance(self, job_id: str, pace: _Pace) -> timedelta | None:
        """Give as many items their turn as the rate allows; return how long the job waits, None where it runs no
        more."""
        pace.bucket, number, wait = take_some(pace.bucket, pace.rate, self._now(), BATCH)
        if number:
            try:
                advanced = await self._replays.advance(job_id, number, self._destinations(), now=self._now())
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a fault in one replay must not end the deliveries of all
                self._running.pop(job_id, None)
                await self._steer(job_id, JobState.PAUSED, f"a fault of ours: {type(error).__name__}: {error}")
                return None
            self._wake(advanced.targets)
            job = advanced.job
            if job is None or job.state is not JobState.RUNNING or not job.is_here:
                self._ended(job_id, pace, job)
                return None
        return GAP if wait is None else max(wait, TICK)

    def _ended(self, job_id: str, pace: _Pace, job: ReplayJob | None) -> None:
        """Forget a job that runs no more, or elsewhere, unless it was resumed meanwhile; who moved it has told so."""
        if self._running.get(job_id) is pace:
            del self._running[job_id]
        if job is not None and job.state is JobState.DONE:
            self._witness.replay_finished(job)
