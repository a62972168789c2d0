"""Claims made of deliveries as they are stored, for the lanes that have bid for them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from relay.model import Claim, Course, Event, TargetHealth, Turn
from relay.rules.health import flows
from relay.store.grouping.changes import INLINE_BODY, Changes
from relay.store.grouping.rows import millis
from relay.store.grouping.wishes import AcceptWish, Handing


class Healths(Protocol):
    """A transaction that knows the health of targets."""

    def health(self, name: str) -> TargetHealth:
        """A target's health as the transaction sees it."""


class Handed:
    """The bids that hold in one transaction: a target that was settled in it may be well no more."""

    def __init__(
        self, healths: Healths, changes: Changes, handing: Handing | None, wishes: Sequence[AcceptWish]
    ) -> None:
        """`changes` is told what is claimed, and when: a claim is one, however it came about."""
        self._changes = changes
        self._left: dict[str, int] = {}
        if handing is None:
            return
        self._handing = handing
        self._took_at: dict[str, datetime | None] = {}
        self.until = {target: millis(bid.until) for target, bid in handing.bids.items()}
        """When the claims of a target end, in milliseconds."""
        now = max(wish.event.received_at for wish in wishes)
        for target, bid in handing.bids.items():
            health = healths.health(target)
            if flows(health, now):
                self._left[target] = bid.count
                self._took_at[target] = health.took_at

    def claim(self, event: Event, target: str, course: Course) -> Claim | None:
        """The claim on a delivery that is about to be stored; None where it is to wait. Large bodies do, for they are
        read from the store when they are sent."""
        left = self._left.get(target, 0)
        if left <= 0 or len(event.body) > INLINE_BODY:
            return None
        self._left[target] = left - 1
        until, took_at = self._handing.bids[target].until, self._took_at[target]
        claim = Claim(event, target, 1, 0, self._handing.token, until, Turn.DUE, None, took_at, course=course)
        self._changes.handed.append(claim)
        self._changes.clock = event.received_at
        return claim
