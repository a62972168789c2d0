"""What of the port is the same for every store whose writer commits in groups."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from relay.model import RELAY, Course, DeliveryState, Event, Turn
from relay.store import (
    AS_THEY_CAME,
    Accepted,
    Claimant,
    Claimed,
    Condition,
    Outlived,
    Retention,
    Settled,
    Settlement,
    StoreFull,
)
from relay.store.grouping.changes import COUNTED, Remembered
from relay.store.grouping.pruning import GroupPruning
from relay.store.grouping.wishes import AcceptWish, ClaimWish
from relay.store.grouping.writer import GroupWriter

Writes = TypeVar("Writes", bound=GroupWriter[Any])
Prunes = TypeVar("Prunes", bound=GroupPruning)


class GroupStore(Generic[Writes, Prunes]):
    """The verbs that only hand on to a writer and its pruning, and those that tell what is remembered."""

    def __init__(self, writer: Writes, pruning: Prunes) -> None:
        self._writer = writer
        self._pruning = pruning
        self._remembered: Remembered = writer.remembered
        self._full: Condition | None = None

    @property
    def idle(self) -> bool:
        """Nothing waits to be written."""
        return self._writer.idle

    @property
    def is_busy(self) -> bool:
        """Something is being written, or is to be at once; what may wait a little does."""
        return self._writer.is_busy

    @property
    def task(self) -> "asyncio.Task[None]":
        """The writing task, to be watched: it ends only by `close` or by a bug."""
        return self._writer.task

    async def accept(
        self, event: Event, targets: Sequence[str], courses: Mapping[str, Course] = AS_THEY_CAME
    ) -> Accepted:
        """See `Store.accept`."""
        if self._full is not None and event.source != RELAY:
            raise StoreFull(self._full.reason)
        result: Accepted = await self._writer.accept(AcceptWish(event, targets, courses))
        return result

    def serve(self, claimant: Claimant | None) -> None:
        """See `Store.serve`."""
        self._writer.claimant = claimant

    async def claim(
        self, target: str, *, limit: int, turn: Turn, now: datetime, lease: timedelta, since: datetime | None = None
    ) -> Claimed:
        """See `Store.claim`."""
        wish = ClaimWish(target, limit, turn, now, lease, since, self._writer.token())
        result: Claimed = await self._writer.claim(wish)
        return result

    def settle(self, settlement: Settlement) -> "asyncio.Future[Settled]":
        """See `Store.settle`."""
        return self._writer.settle(settlement)

    def waiting(self) -> dict[str, int]:
        """How many deliveries wait, by target; also for targets that nobody delivers to now."""
        counts = self._remembered.counts
        return {target: n for (target, state), n in counts.items() if state is DeliveryState.PENDING and n > 0}

    def counted(self) -> dict[str, int]:
        """How many deliveries are in each state of which a count is kept, over all targets."""
        counts = self._remembered.counts.items()
        return {state.value: sum(n for (_, each), n in counts if each is state) for state in COUNTED}

    def pending(self, target: str) -> int:
        """How many deliveries wait at a target."""
        return self._remembered.pending(target)

    def last_received(self) -> Mapping[str, datetime]:
        """See `Store.last_received`."""
        return self._remembered.heard

    def silences_told(self) -> frozenset[str]:
        """See `Store.silences_told`."""
        return self._remembered.silences_told

    async def prune(self, retention: Retention, now: datetime) -> int:
        """See `Store.prune`."""
        return await self._pruning.prune(retention, now)

    async def prune_oldest(self, wanted: int) -> int | None:
        """See `Store.prune_oldest`."""
        return await self._pruning.prune_oldest(wanted)

    async def outlived(self, retention: Retention, now: datetime, *, wanted: int) -> Outlived:
        """See `Store.outlived`."""
        return await self._pruning.outlived(retention, now, wanted=wanted)

    async def erase(self, event_id: str) -> int | None:
        """See `Store.erase`."""
        return await self._pruning.erase(event_id)

    def bar(self, reason: str) -> None:
        """See `Store.bar`."""
        since = datetime.now(UTC) if self._full is None else self._full.since
        self._full = Condition(writable=True, reason=reason, since=since, full=True) if reason else None

    def condition(self) -> Condition:
        """See `Store.condition`."""
        condition = self._writer.condition()
        return condition if self._full is None or not condition.writable else self._full
