"""Carries the claims of one target through send, decide, settle and tell.

Law: an attempt ends with what it began with, its URL and its connections, also when the target is changed meanwhile;
the connections of before are closed when the last attempt over them has ended. What an attempt at another address or
with other headers came to says nothing of the target as it is now, and does not touch its health.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from random import Random
from typing import Any, NamedTuple, Protocol

from relay.delivery.preparing import LONGEST, Brings, prepared
from relay.delivery.sender import Sent
from relay.model import DONE, Claim, DisabledBy, Fetched, Outcome, OutcomeKind, Target, TargetHealth, TargetState, Turn
from relay.rules.health import Enable, Keep, judge
from relay.rules.retry import decide, waiting
from relay.store import Ruling, Settled, Settlement, Store, StoreUnavailable, StoreUnusable

LONGEST_PAUSE = timedelta(minutes=1)
"""How long the probes of a target wait for what one of them waits for."""
SOON = timedelta(seconds=5)
"""When a delivery is tried again that had not in time what it lacks."""
LAST_WORDS = timedelta(seconds=1)
"""At an end, how long the record of interrupted attempts may take."""
_DELIVERED, _INTERRUPTED, _ARRIVAL = OutcomeKind.DELIVERED, OutcomeKind.INTERRUPTED, Turn.ARRIVAL
"""An enum's members are slow to look up, and these are for each attempt."""


class SendsOne(Protocol):
    """The outermost edge: what makes one request."""

    async def send(self, claim: Claim, body: bytes, data: Any = Fetched.NOTHING) -> Sent:
        """Make one request for a claim, with what was fetched for it; never raise for what the target did."""

    async def close(self) -> None:
        """Let go of its connections."""


class Attempted(NamedTuple):
    """One attempt as it was recorded: what the log and the counters are told."""

    claim: Claim
    sent: Sent
    began_at: datetime
    ended_at: datetime
    settled: Settled


class Observer(Protocol):
    """Who is told of attempts; called on the event loop after the commit, must not block."""

    def attempted(self, attempt: Attempted) -> None:
        """An attempt was recorded."""

    def disabled(self, health: TargetHealth) -> None:
        """A target was disabled by what was recorded."""

    def enabled(self, health: TargetHealth) -> None:
        """A target was enabled by what was recorded."""


class Observers:
    """Several observers as one, told in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def attempted(self, attempt: Attempted) -> None:
        for observer in self._observers:
            observer.attempted(attempt)

    def disabled(self, health: TargetHealth) -> None:
        for observer in self._observers:
            observer.disabled(health)

    def enabled(self, health: TargetHealth) -> None:
        for observer in self._observers:
            observer.enabled(health)


class Owner(Protocol):
    """The lane whose claims are carried; called on the event loop."""

    def flows(self, now: datetime) -> bool:
        """Whether the target is well, so that a slot is free as soon as its answer is there."""

    def slot_freed(self, *, flows: bool) -> None:
        """An attempt needs its slot no more; whether the target is well at that moment."""

    def ended(self) -> None:
        """An attempt is over, recorded or not."""

    def given_back(self) -> None:
        """Claims were given back, or could not be."""

    def interrupted(self, wait: timedelta) -> None:
        """An attempt came to nothing by a fault of ours, which lasts for so long at least."""

    async def cleared(self, claim: Claim) -> Outcome | None:
        """What was prepared is about to be sent: None where it may be, else why it must not be sent now."""

    def learned(self, settled: Settled) -> None:
        """An attempt was recorded; the target's health is what it has left."""

    def broke(self, error: BaseException) -> None:
        """An attempt ended by a bug."""


class Carrier:
    """The attempts of one target that are under way, the claims that are held for it, and its health as last stored."""

    def __init__(
        self,
        target: Target,
        store: Store,
        sender: SendsOne,
        observer: Observer,
        *,
        brings: Brings,
        health: TargetHealth,
        now: Callable[[], datetime],
        rng: Random,
        owner: Owner,
    ) -> None:
        self.target = target
        self.health = health
        self.under_way = 0
        """Attempts that hold a slot."""
        self.arrival_under_way = False
        self._sender = sender
        self._store = store
        self._observer = observer
        self._brings = brings
        self._now = now
        self._rng = rng
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._preparing: set[str] = set()
        self._alive: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._why = ""

    @property
    def alive(self) -> frozenset[int]:
        """The tokens of the claims that are held."""
        return frozenset(+self._alive)

    @property
    def preparing(self) -> int:
        """Attempts under way that are still to be cleared before they are sent."""
        return len(self._preparing)

    @property
    def busy(self) -> int:
        """Attempts that are not over, recorded or not."""
        return len(self._tasks)

    def hold(self, claims: Iterable[Claim]) -> None:
        """These claims are held until they are carried or given back."""
        self._alive.update(claim.token for claim in claims)

    def begin(self, claim: Claim) -> None:
        """Begin an attempt."""
        self.under_way += 1
        if claim.course:
            self._preparing.add(claim.delivery_id)
        if claim.turn is _ARRIVAL:
            self.arrival_under_way = True
        self._start(self._attempt(claim), f"attempt {claim.event.id}/{claim.target}", self._over)

    def give_back(self, claims: list[Claim]) -> None:
        """Release claims under which nothing was begun."""
        self._start(self._release(claims), f"release {self.target.name}", self._forget)

    async def try_out(self, claim: Claim, body: bytes) -> Sent:
        """Send once for a claim that no delivery stands behind; nothing is recorded."""
        task = self._start(self._sender.send(claim, body), f"test {self.target.name}", self._forget)
        await asyncio.wait([task])
        return Sent(Outcome(OutcomeKind.INTERRUPTED, reason="cut short")) if task.cancelled() else task.result()

    def change(self, target: Target, sender: SendsOne) -> None:
        """Make every further attempt with these; those under way end with what they have."""
        before, self.target, self._sender = self._sender, target, sender
        closing = asyncio.create_task(_close_after(frozenset(self._tasks), before), name=f"close {target.name}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def finish(self, patience: timedelta, *, why: str) -> None:
        """Let what is under way finish within `patience`, interrupt the rest and record it with the reason. May be
        cancelled where it is not the end after all: then `change` brings a new sender."""
        self._why = why
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience.total_seconds())
            self._cut |= late
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_WORDS.total_seconds())
        await self._sender.close()
        if self._closing:
            await asyncio.wait(self._closing, timeout=LAST_WORDS.total_seconds())

    def _start(
        self, work: Coroutine[Any, Any, Any], name: str, over: "Callable[[asyncio.Task[Any]], None]"
    ) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(over)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        self._cut.discard(task)

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self._forget(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._owner.broke(error)
        self._owner.ended()

    async def _release(self, claims: list[Claim]) -> None:
        try:
            with suppress(StoreUnavailable):  # then the lease ends, and they are reclaimed
                await self._store.release(claims)
        finally:
            for claim in claims:
                self._let_go(claim)
            self._owner.given_back()

    async def _attempt(self, claim: Claim) -> None:
        """Send, decide, settle, tell."""
        began_at = self._now()
        target, frees_at_once = self.target, False
        try:
            sent = await self._send(claim, self._sender)
            ended_at = self._now()
            frees_at_once = sent.outcome.kind is _DELIVERED and self._owner.flows(ended_at)
            if frees_at_once:
                self._free_slot(flows=True)
            if sent.outcome.kind is _INTERRUPTED:
                self._interrupted(sent.outcome)
            settled = await self._store.settle(
                Settlement(
                    claim,
                    sent.outcome,
                    began_at,
                    ended_at,
                    self._rule(claim, sent.outcome, began_at, target),
                    may_wait=frees_at_once,
                )
            )
        finally:
            self._let_go(claim)
            if claim.turn is _ARRIVAL:
                self.arrival_under_way = False
            if not frees_at_once:
                self._free_slot(flows=self._owner.flows(self._now()))
        was = self.health.disabled_by
        self._owner.learned(settled)
        self._observer.attempted(Attempted(claim, sent, began_at, ended_at, settled))
        self._tell(was)

    def _interrupted(self, outcome: Outcome) -> None:
        """A fault of ours would meet the next attempt as well. What waits for something of its own holds up no other,
        unless the target takes but one that it chooses itself."""
        if outcome.retry_after is None:
            self._owner.interrupted(timedelta(0))
        elif self.health.state is TargetState.DISABLED:
            self._owner.interrupted(min(outcome.retry_after, LONGEST_PAUSE))

    def _let_go(self, claim: Claim) -> None:
        if claim.course:
            self._preparing.discard(claim.delivery_id)
        left = self._alive[claim.token] - 1
        if left > 0:
            self._alive[claim.token] = left
        else:
            del self._alive[claim.token]

    def _free_slot(self, *, flows: bool) -> None:
        self.under_way -= 1
        self._owner.slot_freed(flows=flows)

    async def _send(self, claim: Claim, sender: SendsOne) -> Sent:
        try:
            body = await self._store.body(claim.event.id) if claim.body_deferred else claim.event.body
            if not claim.course:
                return await sender.send(claim, body)
            data = await self._prepared(claim, body)
            return Sent(data) if isinstance(data, Outcome) else await sender.send(claim, body, data)
        except asyncio.CancelledError:
            if asyncio.current_task() not in self._cut:
                raise
            return Sent(Outcome(OutcomeKind.INTERRUPTED, reason=self._why))
        except (StoreUnavailable, StoreUnusable) as error:
            is_short = isinstance(error, StoreUnavailable)
            return Sent(Outcome(OutcomeKind.INTERRUPTED if is_short else OutcomeKind.UNPREPARED, reason=str(error)))

    async def _prepared(self, claim: Claim, body: bytes) -> Any | Outcome:
        """What was fetched for a claim that may be sent now, or the outcome where nothing is to be sent."""
        try:
            async with asyncio.timeout(LONGEST.total_seconds()):
                data = await prepared(claim, body, self._brings)
        except TimeoutError:
            return waiting("the fetch is not over", SOON)
        if isinstance(data, Outcome):
            return data
        hindrance = await self._owner.cleared(claim)
        self._preparing.discard(claim.delivery_id)
        return data if hindrance is None else hindrance

    def _rule(
        self, claim: Claim, outcome: Outcome, began_at: datetime, sent_to: Target
    ) -> Callable[[TargetHealth], Ruling]:
        def rule(health: TargetHealth) -> Ruling:
            now, target = self._now(), self.target
            is_news = sent_to is target or _is_alike(sent_to, target)
            if outcome.kind is _DELIVERED and is_news and health.is_clean:  # nearly always; the rest would say the same
                return Ruling(DONE, health.succeeded(now, began_at))
            decision = decide(outcome, claim, schedule=target.schedule, began_at=began_at, now=now, rng=self._rng)
            verdict = (
                judge(
                    health, outcome, claim, target=target, began_at=began_at, now=now, rng=self._rng, decision=decision
                )
                if is_news
                else Keep(health)
            )
            return Ruling(decision, verdict.health, releases_held=isinstance(verdict, Enable))

        return rule

    def _tell(self, was: DisabledBy | None) -> None:
        """Tell when the target was disabled, for another reason than before, or enabled."""
        if self.health.disabled_by is not was:
            is_active = self.health.state is TargetState.ACTIVE
            (self._observer.enabled if is_active else self._observer.disabled)(self.health)


def _is_alike(sent_to: Target, target: Target) -> bool:
    """Whether an attempt at the one tells of the other: what `at_start` takes for a change is another."""
    return sent_to.access == target.access


async def _close_after(tasks: "frozenset[asyncio.Task[Any]]", sender: SendsOne) -> None:
    if tasks:
        await asyncio.wait(tasks)
    await sender.close()
