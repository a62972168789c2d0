"""Sending again what had ended, and letting go of what is held: this part of the storage port.

Law: what waits already is left alone, so that nothing pending is ever doubled. A job has a fixed set of items, and an
item leaves the set in the very transaction that replays it: killed anywhere, each is replayed exactly once.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from relay.model import Rate, Route, TargetHealth

NOT_CONFIGURED = "not in the config"
"""Why a delivery of a target that is gone cannot be replayed."""
DISCARDED = "discarded by hand"
"""The reason that a discarded delivery keeps."""


class Replayable(StrEnum):
    """What a job replays: deliveries that have ended in one way, or events that no route wanted."""

    DEAD = "dead"
    DELIVERED = "delivered"
    SKIPPED = "skipped"
    UNROUTED = "unrouted"


@dataclass(frozen=True, slots=True)
class ReplayFilter:
    """Which deliveries are meant; all that is given must hold. `since` and `until` are of when the event was received,
    `type` is a glob, and `limit` keeps the oldest so many."""

    state: Replayable
    since: datetime | None = None
    until: datetime | None = None
    source: str | None = None
    type: str | None = None
    target: str | None = None
    limit: int | None = None


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


JOB_MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.RUNNING: frozenset({JobState.PAUSED, JobState.DONE, JobState.CANCELLED}),
    JobState.PAUSED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.DONE: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""The legal moves of a job: what is over stays over."""


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """A stored replay. `total` is the size of its set, `done` what was replayed of it, `skipped` what was not to be
    replayed any more when its turn came."""

    id: str
    filter: ReplayFilter
    rate: Rate
    created_at: datetime
    state: JobState = JobState.RUNNING
    total: int = 0
    done: int = 0
    skipped: int = 0
    ended_at: datetime | None = None
    reason: str = ""
    is_here: bool = field(default=True, compare=False)
    """It is carried by who asks, where it runs; False of one that another node has."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return not JOB_MOVES[self.state]


@dataclass(frozen=True, slots=True)
class Destinations:
    """Where an event may go by the config of today: the targets that there are, and the routes."""

    known: Container[str]
    routes: Sequence[Route]


@dataclass(frozen=True, slots=True)
class ReplayedEvent:
    """What a replay did with one event, by target: begun anew, left alone because it waits already, or skipped with
    the reason."""

    event_id: str
    source: str
    replayed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Advanced:
    """A job after some of its items had their turn, None where there is no such job; and the targets for which
    something is due by that."""

    job: ReplayJob | None
    targets: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Steered:
    """A job as it was and as it is now; the same where the move was not legal."""

    before: ReplayJob
    job: ReplayJob


class Replays(Protocol):
    """Replays and discards. Each verb raises `StoreUnavailable` during an outage; what of it was told before stands."""

    async def event(
        self, event_id: str, destinations: Destinations, *, now: datetime, target: str | None = None
    ) -> ReplayedEvent | None:
        """Begin anew the deliveries of an event that have ended (of one target, if it is given, where a missing
        delivery is made), with a fresh schedule and due now. Where the routes of today lead there, by their course;
        else by the one that is stored, and by none where the delivery is made. An event without deliveries is routed
        anew. None where there is no such event."""

    async def count(self, wanted: ReplayFilter) -> Mapping[str, int]:
        """How many items a job would have, by target; those of unrouted events stand under the empty name."""

    async def create(self, job: ReplayJob) -> ReplayJob:
        """Store a job with the set that its filter finds now, and return it with its total. A set that was cut off
        while it was gathered never runs."""

    async def jobs(self, limit: int) -> list[ReplayJob]:
        """Jobs, newest first."""

    async def job(self, job_id: str) -> ReplayJob | None:
        """One job, None where there is none."""

    async def advance(self, job_id: str, number: int, destinations: Destinations, *, now: datetime) -> Advanced:
        """Give up to so many items of a running job their turn, oldest first, in one transaction with their removal
        from the set; the last one ends the job. What is not in the state that the filter asked for any more, whose
        event or target is gone, or which no route wants is skipped. A job that does not run, or not here, is left as it
        is."""

    async def steer(self, job_id: str, to: JobState, reason: str, *, now: datetime) -> Steered | None:
        """Move a job, where that is legal; None where there is none. After the return nothing more of a job that is
        paused or cancelled is replayed. One that is to run does so here, unless it runs elsewhere already."""

    async def interrupt(self, reason: str) -> list[ReplayJob]:
        """Pause all jobs that run, as a start does, but for those of other nodes that live, and return them."""

    @property
    def adopt_every(self) -> timedelta | None:
        """How often to ask for the jobs of nodes that are gone; None where no other node can be."""

    async def adopt(self) -> list[ReplayJob]:
        """Let the jobs that ran on nodes that are gone run here, and return them; each is taken over by one node."""

    async def sweep(self) -> int:
        """Remove a small part of the sets that will never be replayed; return how many items, 0 when none is left."""

    async def discard(self, target: str, *, permitted: Callable[[TargetHealth], bool], now: datetime) -> int:
        """Turn what waits at a target into dead, in small parts, for as long as its health permits it; return how many.
        What was received after the call is spared."""
