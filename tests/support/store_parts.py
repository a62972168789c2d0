"""Events, settlements and a watcher for the tests of the store."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from relay.model import (
    Claim,
    Decision,
    DisabledBy,
    Done,
    Event,
    GiveUp,
    Headers,
    Outcome,
    OutcomeKind,
    RetryAt,
    Route,
    TargetHealth,
    TargetState,
    Turn,
)
from relay.store import Rule, Ruling, Settlement, Store
from relay.store.replays import Destinations

NOW = datetime(2026, 9, 20, 10, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LEASE = timedelta(minutes=1)

_numbers = itertools.count(1)


@dataclass
class Watch:
    """A watcher that remembers what it was told."""

    commits: int = 0
    outages: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)

    def committed(self, seconds: float) -> None:
        self.commits += 1

    def unavailable(self, reason: str) -> None:
        self.outages.append(reason)

    def recovered(self, seconds: float) -> None:
        self.recoveries.append(seconds)


def an_event(
    name: str | None = None,
    *,
    key: str | None = None,
    source: str = "partner",
    body: bytes = b'{"n": 1}',
    at: datetime = NOW,
    headers: Headers = (("Content-Type", "application/json"),),
    kind: str = "order.paid",
) -> Event:
    """An event with an id of its own."""
    return Event(
        id=name or f"evt_{next(_numbers):06}",
        source=source,
        type=kind,
        received_at=at,
        headers=headers,
        body=body,
        dedupe_key=key,
    )


async def stored(store: Store, *targets: str, at: datetime = NOW, **parts: object) -> Event:
    """An event that was accepted for some targets."""
    event = an_event(at=at, **parts)  # type: ignore[arg-type]
    accepted = await store.accept(event, targets)
    assert not accepted.duplicate
    return event


async def accepted_many(store: Store, number: int, *targets: str, at: datetime = NOW) -> list[Event]:
    """Many events for some targets, in few commits."""
    events = [an_event(at=at) for _ in range(number)]
    await asyncio.gather(*(store.accept(event, targets) for event in events))
    return events


def towards(*targets: str, routes: Sequence[Route] = ()) -> Destinations:
    """A config of today with these targets and routes."""
    return Destinations(frozenset(targets), tuple(routes))


async def taken(
    store: Store,
    target: str = "crm",
    *,
    limit: int = 1,
    turn: Turn = Turn.DUE,
    now: datetime = NOW,
    lease: timedelta = LEASE,
    since: datetime | None = None,
) -> list[Claim]:
    """The claims made by one call."""
    claimed = await store.claim(target, limit=limit, turn=turn, now=now, lease=lease, since=since)
    return list(claimed.claims)


async def one(store: Store, target: str = "crm", **how: object) -> Claim:
    """The single claim that there is to be had."""
    (claim,) = await taken(store, target, **how)  # type: ignore[arg-type]
    return claim


def ids(claims: Sequence[Claim]) -> list[str]:
    """The events of claims, in their order."""
    return [claim.event.id for claim in claims]


def ruled(decision: Decision, health: TargetHealth | None = None, *, releases_held: bool = False) -> Rule:
    """A rule that decides so whatever the health is; it leaves the health alone where none is given."""
    return lambda before: Ruling(decision, health or before, releases_held=releases_held)


def settlement(
    claim: Claim,
    decision: Decision | None = None,
    *,
    kind: OutcomeKind = OutcomeKind.DELIVERED,
    at: datetime = NOW,
    rule: Rule | None = None,
    health: TargetHealth | None = None,
    releases_held: bool = False,
    status: int | None = 200,
    may_wait: bool = False,
) -> Settlement:
    """One attempt to be recorded, of a second's length."""
    if rule is None:
        rule = ruled(decision or Done(), health, releases_held=releases_held)
    reason = "" if kind is OutcomeKind.DELIVERED else f"it said {kind.value}"
    return Settlement(
        claim, Outcome(kind, status, reason), began_at=at, ended_at=at + SECOND, rule=rule, may_wait=may_wait
    )


async def failed(store: Store, claim: Claim, *, again: datetime, at: datetime = NOW, step: int = 1) -> None:
    """Record a failed try that is to be made again at a time."""
    settled = await store.settle(settlement(claim, RetryAt(again, step), kind=OutcomeKind.FAILED, at=at, status=500))
    assert settled.ruling is not None


async def killed(store: Store, claim: Claim, *, at: datetime = NOW) -> None:
    """Record a try that was the last."""
    await store.settle(settlement(claim, GiveUp("no more"), kind=OutcomeKind.FAILED, at=at, status=500))


async def emptied(store: Store) -> None:
    """Have the log emptied, however long the disk takes."""
    while not await store.empty_log():
        pass


def disabled(name: str = "crm", *, by: DisabledBy = DisabledBy.FAILURES, at: datetime = NOW) -> TargetHealth:
    """The health of a target that is disabled."""
    return TargetHealth(name, TargetState.DISABLED, by, reason="it failed", since=at, failures=3)


def becomes(health: TargetHealth) -> Callable[[TargetHealth], TargetHealth]:
    """A change to just this health."""
    return lambda _: health
