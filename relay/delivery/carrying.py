"""Carries the claims of one target through send, decide, settle and tell.

Law: an attempt ends with what it began with, its URL and its connections, also when the target is changed meanwhile;
the connections of before are closed when the last attempt over them has ended. What an attempt at another address or
with other headers came to says nothing of the target as it is now, and does not touch its health.

An attempt is no task: what it waits for, a request, a task or the store, tells it once what came of it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Protocol

from relay.delivery.observing import Attempted, Observer
from relay.delivery.preparing import LONGEST, Brings, prepared
from relay.delivery.sender import ComeTo, Sent
from relay.model import DONE, Claim, Fetched, Outcome, OutcomeKind, Target, TargetHealth, TargetState, Turn
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

    def begin(self, claim: Claim, body: bytes, come_to: ComeTo) -> "UnderWay | None":
        """The same at once and without a task, where it is to be had so; None where nothing was begun."""

    async def close(self) -> None:
        """Let go of its connections."""


class UnderWay(Protocol):
    """A request that was sent."""

    def cancel(self) -> None:
        """Give it up; nothing more is told of it."""


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


class _Attempt:
    """One attempt from its beginning to its end, and what it waits for meanwhile."""

    __slots__ = ("began_at", "claim", "ended", "ended_at", "frees_at_once", "is_cut", "sent", "target", "waits_for")

    def __init__(self, claim: Claim, target: Target, began_at: datetime) -> None:
        self.claim = claim
        self.target = target
        self.began_at = self.ended_at = began_at
        self.sent: Sent | None = None
        self.waits_for: UnderWay | asyncio.Future[Any] | None = None
        self.frees_at_once = self.is_cut = False
        self.ended: asyncio.Future[None] | None = None
        """Where somebody waits for it."""


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
        self._attempts: set[_Attempt] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        """What else is under way."""
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
        return len(self._attempts)

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
        attempt = _Attempt(claim, self.target, self._now())
        self._attempts.add(attempt)
        posting = None
        try:
            if not (claim.course or claim.body_deferred):
                posting = self._sender.begin(claim, claim.event.body, partial(self._came, attempt))
        except Exception as bug:  # noqa: BLE001 - it ends this attempt, and not those that are to begin with it
            self._over(attempt, bug)
            return
        if posting is None:
            self._go_on(attempt, self._send(claim, self._sender))
        elif attempt.waits_for is None:  # else it has come to something already
            attempt.waits_for = posting

    def give_back(self, claims: list[Claim]) -> None:
        """Release claims under which nothing was begun."""
        self._start(self._release(claims), f"release {self.target.name}")

    async def try_out(self, claim: Claim, body: bytes) -> Sent:
        """Send once for a claim that no delivery stands behind; nothing is recorded."""
        task = self._start(self._sender.send(claim, body), f"test {self.target.name}")
        await asyncio.wait([task])
        return Sent(Outcome(OutcomeKind.INTERRUPTED, reason="cut short")) if task.cancelled() else task.result()

    def change(self, target: Target, sender: SendsOne) -> None:
        """Make every further attempt with these; those under way end with what they have."""
        before, self.target, self._sender = self._sender, target, sender
        closing = asyncio.create_task(_close_after(self._all(), before), name=f"close {target.name}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def finish(self, patience: timedelta, *, why: str) -> None:
        """Let what is under way finish within `patience`, interrupt the rest and record it with the reason. May be
        cancelled where it is not the end after all: then `change` brings a new sender."""
        self._why = why
        if under_way := self._all():
            await asyncio.wait(under_way, timeout=patience.total_seconds())
            for task in self._tasks:
                task.cancel()
            for attempt in (*self._attempts,):
                self._cut(attempt)
            if late := self._all():
                await asyncio.wait(late, timeout=LAST_WORDS.total_seconds())
        await self._sender.close()
        if self._closing:
            await asyncio.wait(self._closing, timeout=LAST_WORDS.total_seconds())

    def _all(self) -> "frozenset[asyncio.Future[Any]]":
        """What is done when all that is under way now is over."""
        for attempt in self._attempts:
            attempt.ended = attempt.ended or self._loop.create_future()
        return frozenset([*self._tasks, *(attempt.ended for attempt in self._attempts if attempt.ended)])

    def _start(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _release(self, claims: list[Claim]) -> None:
        try:
            with suppress(StoreUnavailable):  # then the lease ends, and they are reclaimed
                await self._store.release(claims)
        finally:
            for claim in claims:
                self._let_go(claim)
            self._owner.given_back()

    def _go_on(self, attempt: _Attempt, work: Coroutine[Any, Any, Sent]) -> None:
        """Send, or wait for the rest of the answer, in a task."""
        claim = attempt.claim
        attempt.waits_for = task = self._loop.create_task(work, name=f"attempt {claim.event.id}/{claim.target}")
        task.add_done_callback(partial(self._sent, attempt))

    def _sent(self, attempt: _Attempt, task: "asyncio.Task[Sent]") -> None:
        if not task.cancelled():
            error = task.exception()
            self._came(attempt, task.result()) if error is None else self._over(attempt, error)
        elif attempt.is_cut:
            self._came(attempt, self._interruption())
        else:
            self._over(attempt)

    def _cut(self, attempt: _Attempt) -> None:
        """Interrupt an attempt, and record it; one that is being recorded is over."""
        attempt.is_cut = True
        assert attempt.waits_for is not None
        is_posting = not isinstance(attempt.waits_for, asyncio.Future)
        attempt.waits_for.cancel()
        if is_posting:
            self._came(attempt, self._interruption())

    def _interruption(self) -> Sent:
        return Sent(Outcome(OutcomeKind.INTERRUPTED, reason=self._why))

    def _came(self, attempt: _Attempt, came: Sent | Coroutine[Any, Any, Sent]) -> None:
        """Decide and settle, once it is known what was sent and what came of it."""
        if not isinstance(came, Sent):
            self._go_on(attempt, came)
            return
        try:
            attempt.waits_for = recording = self._settle(attempt, came)
            recording.add_done_callback(partial(self._recorded, attempt))
        except Exception as error:  # noqa: BLE001 - whoever has called is not to fail by it
            self._over(attempt, error)

    def _settle(self, attempt: _Attempt, sent: Sent) -> "asyncio.Future[Settled]":
        outcome = sent.outcome
        attempt.sent, attempt.ended_at = sent, self._now()
        attempt.frees_at_once = outcome.kind is _DELIVERED and self._owner.flows(attempt.ended_at)
        if attempt.frees_at_once:
            self._free_slot(flows=True)
        if outcome.kind is _INTERRUPTED:
            self._interrupted(outcome)
        rule = self._rule(attempt.claim, outcome, attempt.began_at, attempt.target)
        return self._store.settle(
            Settlement(attempt.claim, outcome, attempt.began_at, attempt.ended_at, rule, attempt.frees_at_once)
        )

    def _recorded(self, attempt: _Attempt, recording: "asyncio.Future[Settled]") -> None:
        if recording.cancelled():
            self._over(attempt)
        elif (error := recording.exception()) is not None:
            self._over(attempt, error)
        else:
            self._over(attempt, settled=recording.result())

    def _over(self, attempt: _Attempt, error: BaseException | None = None, *, settled: Settled | None = None) -> None:
        """Let go of what an attempt held, and tell of it where it was recorded."""
        self._attempts.remove(attempt)  # first: one that ended twice would free a slot twice, and stall its target
        try:
            self._let_go(attempt.claim)
            if attempt.claim.turn is _ARRIVAL:
                self.arrival_under_way = False
            if not attempt.frees_at_once:
                self._free_slot(flows=self._owner.flows(self._now()))
            if settled is not None:
                self._tell(attempt, settled)
        except Exception as bug:  # noqa: BLE001 - whatever it is, it is the lane's to tell
            error = bug
        if attempt.ended is not None:
            attempt.ended.set_result(None)
        if error is not None:
            self._owner.broke(error)
        self._owner.ended()

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

    def _tell(self, attempt: _Attempt, settled: Settled) -> None:
        """Tell what was recorded, and of the target when that disabled it, for another reason than before, or enabled
        it."""
        assert attempt.sent is not None
        was = self.health.disabled_by
        self._owner.learned(settled)
        self._observer.attempted(Attempted(attempt.claim, attempt.sent, attempt.began_at, attempt.ended_at, settled))
        if self.health.disabled_by is not was:
            is_active = self.health.state is TargetState.ACTIVE
            (self._observer.enabled if is_active else self._observer.disabled)(self.health)


def _is_alike(sent_to: Target, target: Target) -> bool:
    """Whether an attempt at the one tells of the other: what `at_start` takes for a change is another."""
    return sent_to.access == target.access


async def _close_after(under_way: "frozenset[asyncio.Future[Any]]", sender: SendsOne) -> None:
    if under_way:
        await asyncio.wait(under_way)
    await sender.close()
