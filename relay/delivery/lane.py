"""One target's lane: claims its due deliveries and carries each through send, decide and settle.

Law: the due query is the truth and a wake-up is only a hint; what may begin is asked of `permit` each time, on the
health that the last settlement has stored. Claims are made ahead while a target is well, so that neither claiming nor
settling holds up a slot, and are given back unused as soon as it is not.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Protocol

from relay.delivery.sender import Sent
from relay.model import Claim, DisabledBy, Outcome, OutcomeKind, Target, TargetHealth, TargetState, Turn
from relay.rules.health import Enable, Go, Permit, Wait, judge, permit
from relay.rules.retry import decide
from relay.store import Ruling, Settled, Settlement, Store, StoreUnavailable, StoreUnusable

LEASE_MARGIN = timedelta(seconds=10)
"""A lease outlasts the longest attempt by this."""
AHEAD = timedelta(seconds=20)
"""How long a claim may wait for its slot; one that waited longer is given back."""
WINDOW = 256
"""Most claims made ahead of the slots: half as many again as were used since the last, so none where nobody answers."""
UNSETTLED = 1000
"""Attempts that may wait for the store to record them before no more are begun."""
LOOK_AGAIN = timedelta(seconds=10)
"""However quiet it is, the store is asked so often."""
LAST_WORDS = timedelta(seconds=2)
"""At a stop, how long the record of interrupted attempts may take."""
BREATH = timedelta(seconds=1)
"""Pause after a fault of our own: a shortage of resources, or a store that takes nothing."""


class SendsOne(Protocol):
    """The outermost edge: what makes one request."""

    async def send(self, claim: Claim, body: bytes) -> Sent:
        """Make one request for a claim; never raise for what the target did."""

    async def close(self) -> None:
        """Let go of its connections."""


@dataclass(frozen=True, slots=True)
class Attempted:
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


class Lane:
    """The deliveries of one target. `run` is its loop; it may be run again after it failed."""

    def __init__(
        self,
        target: Target,
        store: Store,
        sender: SendsOne,
        observer: Observer,
        *,
        health: TargetHealth,
        now: Callable[[], datetime],
        rng: Random,
    ) -> None:
        self.target = target
        self.beat = 0.0
        self._store = store
        self._sender = sender
        self._observer = observer
        self._health = health
        self._now = now
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._ready: deque[Claim] = deque()
        self._attempts: set[asyncio.Task[None]] = set()
        self._alive: Counter[int] = Counter()
        self._fetch: asyncio.Task[None] | None = None
        self._under_way = 0
        self._used = 0
        self._ahead = 0
        self._at_once = False
        self._arrivals = True
        self._arrival_under_way = False
        self._due_at: datetime | None = now()
        self._asked_at = now()
        self._paused_until: datetime | None = None
        self._draining = False
        self._broken: BaseException | None = None

    @property
    def health(self) -> TargetHealth:
        """The target's health as last stored."""
        return self._health

    @property
    def alive(self) -> frozenset[int]:
        """The tokens of the claims that this lane still holds."""
        return frozenset(+self._alive)

    @property
    def sender(self) -> SendsOne:
        """What sends to this target."""
        return self._sender

    def neglected_since(self, moment: datetime) -> bool:
        """Whether something has been due since before a moment although a slot is free and no wait is left."""
        if self._due_at is None or self._due_at > moment or self._ready:
            return False
        allowed = self._permit(self._now())
        return self._health.state is TargetState.ACTIVE and isinstance(allowed, Go) and self._asked_at < moment

    def wake(self) -> None:
        """Something has become due."""
        now = self._now()
        self._due_at = min(self._due_at or now, now)
        self._arrivals = True
        self._changed.set()

    def health_changed(self, health: TargetHealth) -> None:
        """An operator has changed the target's health in the store."""
        self._health = health
        self._at_once = False
        self.wake()

    async def run(self) -> None:
        """Deliver until drained; raises only for a bug."""
        while not self._draining:
            self.beat = self._loop.time()
            if self._broken is not None:
                broken, self._broken = self._broken, None
                raise broken
            self._changed.clear()
            alarm = self._loop.call_later(self._pump().total_seconds(), self._changed.set)
            await self._changed.wait()
            alarm.cancel()

    async def drain(self, patience: timedelta) -> None:
        """Begin nothing more, let what is under way finish within `patience`, interrupt the rest and record it."""
        self._draining = True
        self._changed.set()
        if self._fetch is not None:
            await asyncio.wait([self._fetch], timeout=LAST_WORDS.total_seconds())
        self._give_back()
        if self._attempts:
            _, late = await asyncio.wait(self._attempts, timeout=patience.total_seconds())
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_WORDS.total_seconds())
        await self._sender.close()

    def _pump(self) -> timedelta:
        """Begin what may begin, fetch what can be had, and say how long nothing will change by itself."""
        now = self._now()
        if self._paused_until is not None and now < self._paused_until:
            return self._paused_until - now
        if not self._store.condition().writable or len(self._attempts) > UNSETTLED:
            return BREATH
        allowed = self._permit(now)
        if isinstance(allowed, Go) and allowed.turn is Turn.DUE:
            self._begin_ready(allowed.count, now)
            allowed = self._permit(now)
        if self._flows(now):
            self._top_up(now)
            return self._until(None, now)
        if isinstance(allowed, Wait) or allowed.turn is not Turn.DUE:
            self._give_back()
        if isinstance(allowed, Go):
            self._fetch_some(allowed.count - len(self._ready), allowed.turn, now)
            return self._until(None, now)
        return self._until(allowed.until, now)

    def _permit(self, now: datetime) -> Permit:
        return permit(
            self._health,
            concurrency=self.target.concurrency,
            under_way=self._under_way,
            at_once=self._at_once,
            arrivals=self._arrivals and not self._arrival_under_way,
            now=now,
        )

    def _flows(self, now: datetime) -> bool:
        """Whether the target is well, so that claims may be made ahead."""
        health = self._health
        throttled = health.throttled_until is not None and now < health.throttled_until
        return health.state is TargetState.ACTIVE and not health.paced and health.ramp is None and not throttled

    def _until(self, permitted: datetime | None, now: datetime) -> timedelta:
        waits = [at - now for at in (permitted, self._due_at) if at is not None and at > now]
        return min([LOOK_AGAIN, *waits])

    def _begin_ready(self, count: int, now: datetime) -> None:
        latest = now + self.target.timeout + LEASE_MARGIN
        stale: list[Claim] = []
        while self._ready and count > 0:
            claim = self._ready.popleft()
            if claim.lease_until < latest:
                stale.append(claim)
                continue
            self._begin(claim)
            count -= 1
        if stale:
            self._release(stale)

    def _top_up(self, now: datetime) -> None:
        free = max(0, self.target.concurrency - self._under_way)
        wanted = min(WINDOW, max(self._ahead, 3 * self._used // 2)) + free
        if len(self._ready) <= wanted // 2:
            self._fetch_some(wanted - len(self._ready), Turn.DUE, now)

    def _fetch_some(self, limit: int, turn: Turn, now: datetime) -> None:
        """Start a fetch, unless one is under way or nothing can be due."""
        if self._fetch is not None or limit <= 0:
            return
        is_due = self._due_at is not None and self._due_at <= now
        self._at_once = self._at_once and is_due
        if is_due or now - self._asked_at > LOOK_AGAIN:
            self._asked_at = now
            self._ahead, self._used = min(WINDOW, 3 * self._used // 2), 0
            self._fetch = asyncio.create_task(self._claim(limit, turn), name=f"claim {self.target.name}")

    async def _claim(self, limit: int, turn: Turn) -> None:
        now = self._now()
        self._due_at = None
        try:
            claimed = await self._store.claim(
                self.target.name,
                limit=limit,
                turn=turn,
                now=now,
                lease=AHEAD + self.target.timeout + LEASE_MARGIN,
                since=self._health.since,
            )
        except StoreUnavailable:
            self._due_at = self._due_at or now
            self._paused_until = now + BREATH
        except Exception as error:  # noqa: BLE001 - a bug ends the loop loudly, not this task silently
            self._broken, self._due_at = error, now
        else:
            self._take(claimed.claims, claimed.next_due_at, full=len(claimed.claims) == limit, turn=turn)
        finally:
            self._fetch = None
            self._changed.set()

    def _take(self, claims: tuple[Claim, ...], next_due_at: datetime | None, *, full: bool, turn: Turn) -> None:
        if turn is not Turn.ARRIVAL:
            self._at_once = self._at_once and bool(claims)
        elif not claims:
            self._arrivals = False
            full = True
        known = [at for at in (self._due_at, next_due_at) if at is not None]
        self._due_at = self._now() if full else min(known, default=None)
        self._alive.update(claim.token for claim in claims)
        self._ready.extend(claims)
        if self._draining:
            self._give_back()
        elif turn is not Turn.DUE:
            self._begin_chosen(turn)

    def _begin_chosen(self, turn: Turn) -> None:
        """Begin the probe or arrival that was claimed, unless the target's state has changed meanwhile."""
        allowed = self._permit(self._now())
        if isinstance(allowed, Go) and allowed.turn is turn and self._ready:
            self._arrival_under_way = self._arrival_under_way or turn is Turn.ARRIVAL
            self._begin(self._ready.popleft())
        self._give_back()

    def _give_back(self) -> None:
        if self._ready:
            claims = list(self._ready)
            self._ready.clear()
            self._release(claims)
            self._due_at = self._now()

    def _release(self, claims: list[Claim]) -> None:
        task = asyncio.create_task(self._release_all(claims), name=f"release {self.target.name}")
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    async def _release_all(self, claims: list[Claim]) -> None:
        try:
            with suppress(StoreUnavailable):  # then the lease ends, and they are reclaimed
                await self._store.release(claims)
        finally:
            for claim in claims:
                self._let_go(claim)
            self._changed.set()

    def _begin(self, claim: Claim) -> None:
        self._under_way += 1
        self._at_once = False
        task = asyncio.create_task(self._attempt(claim), name=f"attempt {claim.delivery_id}")
        self._attempts.add(task)
        task.add_done_callback(self._attempt_over)

    def _attempt_over(self, task: "asyncio.Task[None]") -> None:
        self._attempts.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()
        self._changed.set()

    async def _attempt(self, claim: Claim) -> None:
        """Send, decide, settle, tell."""
        began_at = self._now()
        frees_at_once = False
        try:
            sent = await self._send(claim)
            ended_at = self._now()
            frees_at_once = sent.outcome.kind is OutcomeKind.DELIVERED and self._flows(ended_at)
            if frees_at_once:
                self._slot_free()
            if sent.outcome.kind is OutcomeKind.INTERRUPTED:
                self._paused_until = ended_at + BREATH
            settled = await self._store.settle(
                Settlement(claim, sent.outcome, began_at, ended_at, self._rule(claim, sent.outcome, began_at))
            )
        finally:
            self._let_go(claim)
            self._arrival_under_way = self._arrival_under_way and claim.turn is not Turn.ARRIVAL
            if not frees_at_once:
                self._slot_free()
        was = self._health.disabled_by
        self._learn(settled)
        self._observer.attempted(Attempted(claim, sent, began_at, ended_at, settled))
        self._tell(was)

    def _let_go(self, claim: Claim) -> None:
        self._alive[claim.token] -= 1
        if self._alive[claim.token] <= 0:
            del self._alive[claim.token]

    def _slot_free(self) -> None:
        self._under_way -= 1
        self._used += 1
        self._changed.set()

    async def _send(self, claim: Claim) -> Sent:
        try:
            body = await self._store.body(claim.event.id) if claim.body_deferred else claim.event.body
            return await self._sender.send(claim, body)
        except asyncio.CancelledError:
            if not self._draining:
                raise
            return Sent(Outcome(OutcomeKind.INTERRUPTED, reason="relay is stopping"))
        except (StoreUnavailable, StoreUnusable) as error:
            is_short = isinstance(error, StoreUnavailable)
            return Sent(Outcome(OutcomeKind.INTERRUPTED if is_short else OutcomeKind.UNPREPARED, reason=str(error)))

    def _rule(self, claim: Claim, outcome: Outcome, began_at: datetime) -> Callable[[TargetHealth], Ruling]:
        def rule(health: TargetHealth) -> Ruling:
            now = self._now()
            verdict = judge(health, outcome, claim, target=self.target, began_at=began_at, now=now, rng=self._rng)
            decision = decide(outcome, claim, schedule=self.target.schedule, began_at=began_at, now=now, rng=self._rng)
            return Ruling(decision, verdict.health, releases_held=isinstance(verdict, Enable))

        return rule

    def _learn(self, settled: Settled) -> None:
        """Take over the stored health, and look when the delivery itself is due again."""
        if settled.ruling is None:
            return
        if settled.ruling.health.failures > self._health.failures:
            self._at_once = settled.ruling.health.paced
        self._health = settled.ruling.health
        at = getattr(settled.ruling.decision, "at", None)
        if settled.ruling.releases_held or self._health.state is TargetState.DISABLED:
            at = self._now()
        if at is not None:
            self._due_at = at if self._due_at is None else min(self._due_at, at)

    def _tell(self, was: DisabledBy | None) -> None:
        """Tell when the target was disabled, for another reason than before, or enabled."""
        if self._health.disabled_by is not was:
            is_active = self._health.state is TargetState.ACTIVE
            (self._observer.enabled if is_active else self._observer.disabled)(self._health)
