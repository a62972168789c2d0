"""The storage port: the verbs, what each guarantees, and its errors.

Law: no SQL and no word of a particular database stands above this floor. Every store keeps the same promises, and one
behaviour suite proves them for each. A verb either guarantees its effect to be committed and fsynced when it
returns, or raises.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from relay.model import Claim, Course, Decision, Event, Outcome, TargetHealth, Turn
from relay.rules.fullness import Room
from relay.store.archive import Archive

AS_THEY_CAME: Mapping[str, Course] = {}
"""The courses of deliveries for which nothing is fetched or left to be decided."""

COPY_TYPE = "application/vnd.sqlite3"
"""The media type of a copy."""


class StoreError(Exception):
    """A store that cannot do what was asked. The message is for people and says where and what to do."""


class StoreUnusable(StoreError):
    """The store must not be used as it is: corrupt, truncated, emptied, vanished, foreign or of a newer schema."""


class StoreInUse(StoreError):
    """Another process has the store."""


class StoreUnavailable(StoreError):
    """The store cannot take it now: full, broken, slow or overloaded. Nothing was promised; it may work later."""


class StoreFull(StoreUnavailable):
    """No new event of others is taken until there is room; all else goes on."""


class CopyUnderWay(StoreError):
    """A copy is being made or fetched already."""


class NoRoomForCopy(StoreError):
    """A copy does not fit beside the store."""


class NoCopies(StoreError):
    """A store of this kind is copied by other means; the message says by which."""


class Copy(Protocol):
    """A copy of a store, whole in itself."""

    @property
    def size(self) -> int:
        """Bytes."""

    def parts(self) -> AsyncIterator[bytes]:
        """Its bytes, in order, `size` in all; raises `StoreUnavailable` where the disk does not give them."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an event that was handed in: its id, or the first one's where it is a duplicate."""

    event_id: str
    duplicate: bool
    same_body: bool = True
    """False for a duplicate key that came with another body."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The claims that were made; `next_due_at` is when the next delivery falls due where fewer were had than asked."""

    claims: tuple[Claim, ...]
    next_due_at: datetime | None = None


class Ruling(NamedTuple):
    """What the rules say of one settled attempt: of the delivery and of its target."""

    decision: Decision
    health: TargetHealth
    releases_held: bool = False
    """The target is enabled by this: what it held is due."""


Rule = Callable[[TargetHealth], Ruling]
"""Judges an attempt by the target's health as stored at that moment; pure, called inside the transaction, in whatever
thread that runs."""


class Settlement(NamedTuple):
    """One attempt to be recorded: the claim it was made under, what came of it, and the rule to apply."""

    claim: Claim
    outcome: Outcome
    began_at: datetime
    ended_at: datetime
    rule: Rule
    may_wait: bool = False
    """Nothing hangs on its being recorded at once: it may wait for others, to share their transaction."""


class Settled(NamedTuple):
    """A settlement that was committed; `ruling` is None where the claim had been lost and nothing was changed."""

    ruling: Ruling | None
    was_disabled: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """Kept counts of a target's deliveries; `oldest_received_at` is of those neither delivered nor dead."""

    target: str
    pending: int
    in_flight: int
    dead: int
    oldest_received_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long events are kept after their last delivery ended, and how many bytes the store may take."""

    delivered: timedelta
    dead: timedelta
    max_size: int = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Outlived:
    """How many events would be deleted now; `is_whole` is False where there are more than were looked at."""

    events: int
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class LongestWaits:
    """How long a delivery of one target may wait at most."""

    by_step: tuple[timedelta, ...]
    """At each step of its schedule, from 0; the last is that of all that follow."""
    asked: timedelta
    """Where it was asked to, or waits for something of its own."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether the store takes writes in time, why not, and since when.

    A store that is `full` is writable: it refuses new events, and what it has is delivered and settled.
    """

    writable: bool
    reason: str = ""
    since: datetime | None = None
    full: bool = False

    @property
    def accepting(self) -> bool:
        """New events are taken."""
        return self.writable and not self.full


@dataclass(frozen=True, slots=True)
class Bid:
    """How many deliveries of a target may be claimed as they are stored, and until when such a claim holds."""

    count: int
    until: datetime


class Claimant(Protocol):
    """Who delivers: has deliveries claimed by the transaction that stores them, and hears of those that were not.
    Called on the event loop; must not block."""

    def bid(self, target: str) -> Bid | None:
        """What would be taken over of a target now."""

    def stored(self, claims: Sequence[Claim], waiting: Iterable[str]) -> None:
        """Deliveries were stored by one transaction: these are claimed, in the order of their events, and at these
        targets others wait."""

    def healths_seen(self, healths: Mapping[str, TargetHealth]) -> None:
        """Others who work on the same store have changed the health of these targets."""


class Watcher(Protocol):
    """Who is told of what happens in the store: counters, log lines. Called on the event loop; must not block."""

    def committed(self, seconds: float) -> None:
        """A transaction was committed and took so long."""

    def unavailable(self, reason: str) -> None:
        """The store has stopped taking writes; told once an outage."""

    def recovered(self, seconds: float) -> None:
        """It takes writes again after so long."""


class Store(Protocol):
    """Events, deliveries and target health, kept safe.

    `accept`, `claim`, `release` and the health verbs raise `StoreUnavailable` during an outage; `settle` waits for
    its end, so that nothing is sent again just because a mark failed.
    """

    @property
    def archive(self) -> Archive:
        """Its reading side."""

    async def accept(
        self, event: Event, targets: Sequence[str], courses: Mapping[str, Course] = AS_THEY_CAME
    ) -> Accepted:
        """Store an event and one pending, due delivery for each target, in one transaction, unless its dedupe key is
        known for its source; `courses` are those of the targets that have one. On return it is committed and fsynced.
        A caller that gives up waiting changes nothing for others; the event may or may not be stored then. What the
        claimant bids for is claimed for it by the same transaction, as by `claim`; it hears of all after the commit."""

    def serve(self, claimant: Claimant | None) -> None:
        """Ask this one from now on what it would have claimed as it is stored; None: nobody."""

    async def claim(
        self, target: str, *, limit: int, turn: Turn, now: datetime, lease: timedelta, since: datetime | None = None
    ) -> Claimed:
        """Take up to `limit` pending deliveries of a target for this process alone, until `now + lease`. Their
        attempt numbers are raised and stored before return. Deliveries due longest come first; the turns of a
        disabled target choose as `Turn` says, `since` being when it was disabled. By the turn of an ordered target no
        more than one is taken, and none while any is held; `next_due_at` is then that of the first alone."""

    def settle(self, settlement: Settlement) -> "asyncio.Future[Settled]":
        """Record an attempt, what follows for its delivery and the target's health in one transaction that still
        holds the claim. Survives an outage of the store; a lost claim changes nothing. One that `may_wait` is recorded
        within some hundredths of a second, together with others."""

    async def release(self, claims: Iterable[Claim]) -> None:
        """Give back claims under which no request was begun; their attempt numbers are lowered again."""

    async def reclaim(self, now: datetime, *, alive: frozenset[int]) -> int:
        """Make due again what was claimed under a lease that has ended, but for the claims that are alive here;
        return how many."""

    async def shorten_waits(self, longest: Mapping[str, LongestWaits], *, now: datetime) -> int:
        """Make due again in time what waits for longer than it may, as it does once the clock was set back; return how
        many deliveries. Sources that were heard in a time to come were heard now."""

    async def target_health(self, name: str) -> TargetHealth:
        """The stored health of a target; a fresh one where none is stored."""

    async def change_health(self, name: str, change: Callable[[TargetHealth], TargetHealth]) -> TargetHealth:
        """Apply a pure change to a target's health in one transaction and return the result; where it enables the
        target, what it held is due, oldest first; of very much the younger part a moment later. So it is where another
        config of a disabled target is taken up."""

    async def change_healths(
        self, changes: Mapping[str, Callable[[TargetHealth], TargetHealth]]
    ) -> dict[str, TargetHealth]:
        """As `change_health` for several targets by name, in one transaction: all of them or none."""

    async def body(self, event_id: str) -> bytes:
        """The body of an event, checked against its checksum; raises `StoreUnusable` where the event is damaged or
        gone, `StoreUnavailable` where it cannot be read now."""

    async def brought(self, event_id: str, enricher: str) -> bytes | None:
        """What an enricher has brought for an event, JSON, None where nothing is kept; raises `StoreUnavailable` where
        it cannot be read now."""

    async def keep_brought(self, event_id: str, enricher: str, data: bytes, *, now: datetime) -> None:
        """Keep what was fetched for an event for as long as the event itself; for one that is gone nothing is kept."""

    async def backlog(self, targets: Sequence[str]) -> list[Backlog]:
        """The kept counts of these targets; costs the same whatever waits."""

    def last_received(self) -> Mapping[str, datetime]:
        """When each source was last heard, by an event or a duplicate, however long ago and whatever was deleted
        since; kept, so that asking costs nothing."""

    def silences_told(self) -> frozenset[str]:
        """The sources whose silence had been told before this start, and lasted until then."""

    async def silence_told(self, source: str, now: datetime) -> None:
        """Remember that a source's silence was told; the next event ends it."""

    async def prune(self, retention: Retention, now: datetime) -> int:
        """Delete one small batch of events whose time is over; return how many, 0 when there is nothing left."""

    async def prune_oldest(self, wanted: int) -> int | None:
        """Delete one small batch of the oldest events that have nothing left to be done: every delivery was made or
        skipped, or there was none; no more than make `wanted` bytes of room, roughly. Return how many; 0 where none
        of those looked at may go, but the next call looks further; None when all that is left must stay. One caller
        at a time."""

    async def outlived(self, retention: Retention, now: datetime, *, wanted: int) -> Outlived:
        """How many events `prune` would delete, and `prune_oldest` to make `wanted` bytes of room; roughly, and
        nothing is deleted."""

    async def erase(self, event_id: str) -> int | None:
        """Delete one event and all that was kept of it, whatever is still to be done with it, and overwrite it on the
        disk; return how many deliveries went with it, None where there is no such event. Claims on it are lost."""

    async def room(self) -> Room:
        """What the store takes, and what its file system has left."""

    async def empty_log(self) -> bool:
        """Give back what was written and is in its place already; False where that must wait and goes on by itself."""

    def bar(self, reason: str) -> None:
        """Refuse new events with `StoreFull` from now on, and nothing else; no reason ends it. The relay's own events
        are taken all the same: they are few and small, and a full store is what people must hear of."""

    def copy(self) -> AbstractAsyncContextManager[Copy]:
        """A consistent copy of all that is committed now, made while everything goes on, and gone with the block.

        Raises:
            NoCopies: it is not for us to make one.
            CopyUnderWay: another one is being made or fetched.
            NoRoomForCopy: it does not fit beside the store; nothing is left of it.
            StoreUnavailable: the store cannot be read now.
        """

    def condition(self) -> Condition:
        """Whether the store takes writes now."""

    async def close(self) -> bool:
        """Write what can still be written, and let go of the store, within about three seconds. True when all was
        closed; False where the disk hangs: whoever waits was refused, but a thread that cannot be ended is left, and
        the process must leave without waiting for it."""
