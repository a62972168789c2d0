"""One target's lane: claims its due deliveries and says when each may begin.

Law: the due query is the truth and a wake-up is only a hint; what may begin is asked of `permit` each time, on the
health that the last settlement has stored. Claims are made ahead while a target is well, so that neither claiming nor
settling holds up a slot, and are given back unused as soon as it is not; never further ahead than the target's rate
allows, and never at an ordered target. An attempt takes the token of its rate when it begins, or, where something has
to be fetched first, when it is about to be sent; and at no other time.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from random import Random

from relay.delivery.carrying import LAST_WORDS, Carrier, SendsOne
from relay.delivery.limits import NAP, Share, Turnstile
from relay.delivery.observing import Observer
from relay.delivery.preparing import LONGEST, Brings
from relay.delivery.sender import Sent
from relay.model import Claim, Done, Outcome, Target, TargetHealth, TargetState, Turn
from relay.rules.health import Go, Permit, flows, permit
from relay.rules.retry import waiting
from relay.store import Bid, Settled, Store, StoreUnavailable

LEASE_MARGIN = timedelta(seconds=10)
"""A lease outlasts the longest attempt by this."""
QUEUED = timedelta(seconds=20)
"""How long an attempt that was prepared may wait for the token of its rate."""
AHEAD = timedelta(seconds=20)
"""How long a claim may wait for its slot; one that waited longer is given back."""
WINDOW = 256
"""Most claims made ahead of the slots: half as many again as were used since the last, so none where nobody answers."""
UNSETTLED = 1000
"""Attempts that may wait for the store to record them before no more are begun."""
SPAN_AHEAD = timedelta(seconds=10)
"""Claims are made no sooner before their rate lets them begin: well within `AHEAD`, so that they do not go stale."""
FIRST_AHEAD = timedelta(milliseconds=250)
"""The same for the one claim of an ordered target: an earlier event that is replayed meanwhile comes before it."""
LOOK_AGAIN = timedelta(seconds=10)
"""However quiet it is, the store is asked so often."""
BREATH = timedelta(seconds=1)
"""Pause after a fault of our own: a shortage of resources, or a store that takes nothing."""
_ACTIVE = TargetState.ACTIVE
"""An enum's members are slow to look up, and this one is for each attempt."""


class Lane:
    """The deliveries of one target. `run` is its loop; it may be run again after it failed."""

    def __init__(
        self,
        target: Target,
        store: Store,
        sender: SendsOne,
        observer: Observer,
        *,
        brings: Brings,
        health: TargetHealth,
        share: Share | None,
        now: Callable[[], datetime],
        rng: Random,
    ) -> None:
        """`share` is the target's part in its rate, None where it asks for none."""
        self.beat = self._begun_at = asyncio.get_running_loop().time()
        self._store = store
        self._now = now
        self._carrier = Carrier(
            target, store, sender, observer, brings=brings, health=health, now=now, rng=rng, owner=self
        )
        self._loop = asyncio.get_running_loop()
        self._longest = _longest(target)
        self._changed = asyncio.Event()
        self._turnstile = Turnstile(share, now=now, called=self._changed.set)
        self._ready: deque[Claim] = deque()
        self._fetch: asyncio.Task[None] | None = None
        self._used = 0
        self._ahead = 0
        self._at_once = False
        self._arrivals = True
        self._due_at: datetime | None = now()
        self._asked_at = self.beat
        self._paused_until = self.beat
        self._draining = False
        self._broken: BaseException | None = None

    @property
    def target(self) -> Target:
        """The target as the config has it now."""
        return self._carrier.target

    @property
    def health(self) -> TargetHealth:
        """The target's health as last stored."""
        return self._carrier.health

    @property
    def alive(self) -> frozenset[int]:
        """The tokens of the claims that this lane still holds."""
        return self._carrier.alive

    async def try_out(self, claim: Claim, body: bytes) -> Sent:
        """Send once for a claim that no delivery stands behind; nothing is recorded. It does not wait for the target's
        rate, but what follows does."""
        if self._turnstile.share is not None:
            self._turnstile.share.overdraw(self._now())
        return await self._carrier.try_out(claim, body)

    def idle_for(self, span: timedelta) -> bool:
        """Whether nothing was begun for so long although a slot and a token are free, no wait is left, and the target
        is active."""
        if self._draining or self._loop.time() - self._begun_at < span.total_seconds():
            return False
        health, now = self._carrier.health, self._now()
        is_active = health.state is TargetState.ACTIVE and (health.since is None or now - health.since >= span)
        share = self._turnstile.share
        has_token = share is None or share.free_for(span, now)
        return is_active and has_token and isinstance(self._permit(now), Go)

    def wake(self) -> None:
        """Something has become due."""
        now = self._now()
        self._due_at = min(self._due_at or now, now)
        self._arrivals = True
        self._changed.set()

    def health_changed(self, health: TargetHealth) -> None:
        """An operator has changed the target's health in the store."""
        self._carrier.health = health
        self._at_once = False
        self.wake()

    def change(self, target: Target, sender: SendsOne, health: TargetHealth, share: Share | None) -> None:
        """Go on with another config of the same target, and with its health as stored under that; also where the lane
        was draining. What is under way counts on and ends with what it began with."""
        self._carrier.change(target, sender)
        self._longest = _longest(target)
        self._carrier.health = health
        self._turnstile.step_aside(self._now())
        self._turnstile.share = share
        self._draining = False
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

    async def drain(self, patience: timedelta, *, why: str) -> None:
        """Begin nothing more, let what is under way finish within `patience`, interrupt the rest and record it. May be
        cancelled where `change` takes the lane up again."""
        self._draining = True
        self._turnstile.step_aside(self._now())
        self._changed.set()
        began = self._loop.time()
        if self._fetch is not None:
            await asyncio.wait([self._fetch], timeout=LAST_WORDS.total_seconds())
        self._give_back()
        left = patience - timedelta(seconds=self._loop.time() - began)
        await self._carrier.finish(max(timedelta(0), left), why=why)

    def _pump(self) -> timedelta:
        """Begin what may begin, fetch what can be had, and say how long nothing will change by itself."""
        now = self._now()
        pause = timedelta(seconds=self._paused_until - self._loop.time())
        if pause > timedelta(0):  # as a span: what is less than its smallest would be waited for for ever
            self._turnstile.step_aside(now)
            return pause
        if not self._store.condition().writable or self._carrier.busy > UNSETTLED:
            self._turnstile.step_aside(now)
            return BREATH
        self._turnstile.asks_at = None
        allowed = self._permit(now)
        if self._ready and isinstance(allowed, Go):
            self._begin_ready(allowed, now)
            allowed = self._permit(now)
        flows = self.flows(now)
        turn = Turn.DUE if flows else getattr(allowed, "turn", None)
        if self._ready and not (
            self._ready[0].turn is self._ready[-1].turn is turn and self._turnstile.is_soon(now, self._span_ahead())
        ):
            self._give_back()
        if flows:
            wanted = self._wanted()
            if len(self._ready) <= wanted // 2:
                self._fetch_some(wanted - len(self._ready), Turn.DUE, now)
        elif isinstance(allowed, Go):
            self._fetch_some(allowed.count - len(self._ready), allowed.turn, now)
        if not (isinstance(allowed, Go) and (self._ready or self._fetch or self._is_due(now))):
            self._turnstile.step_aside(now)
        return self._until(None if flows or isinstance(allowed, Go) else allowed.until, now)

    def _permit(self, now: datetime) -> Permit:
        return permit(
            self._carrier.health,
            concurrency=self.target.concurrency,
            under_way=self._carrier.under_way,
            at_once=self._at_once,
            arrivals=self._arrivals and not self._carrier.arrival_under_way,
            now=now,
            ordered=self.target.ordered,
        )

    def _until(self, permitted: datetime | None, now: datetime) -> timedelta:
        waits = [at - now for at in (permitted, self._due_at) if at is not None and at > now]
        if self._turnstile.asks_at is not None:
            waits.append(max(NAP, self._turnstile.asks_at - now))
        return min([LOOK_AGAIN, *waits])

    def _begin_ready(self, allowed: Go, now: datetime) -> None:
        latest = now + self._longest
        ready, count = self._ready, allowed.count
        stale: list[Claim] = []
        while ready and count > 0 and ready[0].turn is allowed.turn:
            if ready[0].lease_until < latest:
                stale.append(ready.popleft())
                continue
            if not ready[0].course and not self._turnstile.passes(now):
                break
            self._at_once = False
            self._begun_at = self._loop.time()
            self._carrier.begin(ready.popleft())
            count -= 1
        if stale:
            self._carrier.give_back(stale)
            self._due_at = now

    async def cleared(self, claim: Claim) -> Outcome | None:
        """Take the token of an attempt that was prepared: None where it may be sent, else why it must not be. What its
        target has said meanwhile counts."""
        now, health = self._now(), self._carrier.health
        if health.throttled_until is not None and now < health.throttled_until:
            return waiting("the target has asked for a pause", health.throttled_until - now)
        if health.state is TargetState.DISABLED and claim.turn is Turn.DUE:
            return waiting("the target was disabled", timedelta(0))
        wait = await self._turnstile.token(by=now + QUEUED)
        return None if wait is None else waiting("the target's rate lets others go first", wait)

    def _span_ahead(self) -> timedelta:
        return FIRST_AHEAD if self.target.ordered else SPAN_AHEAD

    def _is_due(self, now: datetime) -> bool:
        return self._due_at is not None and self._due_at <= now

    def _wanted(self) -> int:
        """Claims to have in hand while the target is well."""
        free = max(0, self.target.concurrency - self._carrier.under_way)
        return min(WINDOW, max(self._ahead, 3 * self._used // 2)) + free

    def bid(self) -> Bid | None:
        """What may be claimed for this lane as it is stored: nothing while older deliveries wait in the store, and
        nothing where more than a free slot decides what goes next, or nothing is to begin."""
        now = self._now()
        if self._draining or self._loop.time() < self._paused_until or self._carrier.busy > UNSETTLED:
            return None
        has_older = self._fetch is not None or self._is_due(now)
        if has_older or self._turnstile.share is not None or not self.flows(now):
            return None
        return Bid(self._wanted() - len(self._ready), now + AHEAD + self._longest)

    def take_over(self, claims: Sequence[Claim]) -> None:
        """These were claimed for this lane as they were stored: what has a slot begins as soon as those who wait for
        the same commit have their answers, the rest waits for one."""
        self._carrier.hold(claims)
        self._ready.extend(claims)
        self._loop.call_soon(self._begin_taken)

    def _begin_taken(self) -> None:
        now = self._now()
        try:
            if self._draining or not self.flows(now):
                self._give_back()
            elif isinstance(allowed := self._permit(now), Go):
                self._begin_ready(allowed, now)
        except Exception as error:  # noqa: BLE001 - a bug ends the loop loudly, not this call silently
            self.broke(error)

    def _fetch_some(self, limit: int, turn: Turn, now: datetime) -> None:
        """Start a fetch, unless one is under way or nothing can be due."""
        if self._fetch is not None or limit <= 0:
            return
        is_due = self._is_due(now)
        self._at_once = self._at_once and is_due
        if not is_due and self._loop.time() - self._asked_at <= LOOK_AGAIN.total_seconds():
            return
        affordable = self._turnstile.affordable(now, self._span_ahead())
        if affordable is not None:
            limit = min(limit, affordable - len(self._ready) - self._carrier.preparing)
        if limit > 0:
            self._asked_at = self._loop.time()
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
                lease=AHEAD + self._longest,
                since=self._carrier.health.since,
            )
        except StoreUnavailable:
            self._due_at = self._due_at or now
            self.interrupted(timedelta(0))
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
        self._carrier.hold(claims)
        self._ready.extend(claims)
        if self._draining:
            self._give_back()

    def _give_back(self) -> None:
        if self._ready:
            claims = list(self._ready)
            self._ready.clear()
            self._carrier.give_back(claims)
            self._due_at = self._now()

    def flows(self, now: datetime) -> bool:
        """Whether the target is well, so that claims may be made ahead; an ordered one takes what comes next only when
        the one before is recorded."""
        return not self._carrier.target.ordered and flows(self._carrier.health, now)

    def slot_freed(self, *, flows: bool) -> None:
        """An attempt needs its slot no more. Where all is well and nothing waits for a slot, there is nothing to do."""
        self._used += 1
        if self._ready or self._due_at is not None or not flows:
            self._changed.set()

    def ended(self) -> None:
        """An attempt is over: at an ordered target the next may be due, and the store may take another record."""
        is_ordered = self._carrier.target.ordered
        if is_ordered:
            self._due_at = self._now()
        if is_ordered or self._carrier.busy >= UNSETTLED:
            self._changed.set()

    def given_back(self) -> None:
        """Claims are given back, and may be made again."""
        self._changed.set()

    def interrupted(self, wait: timedelta) -> None:
        """Begin nothing while a fault of ours lasts, for so long at least by a clock that nobody sets."""
        self._paused_until = self._loop.time() + (wait + BREATH).total_seconds()

    def broke(self, error: BaseException) -> None:
        """An attempt ended by a bug."""
        self._broken = error
        self._changed.set()

    def learned(self, settled: Settled) -> None:
        """Take over the stored health, and look when the delivery itself is due again."""
        ruling = settled.ruling
        if ruling is None:
            return
        health = ruling.health
        if health.failures > self._carrier.health.failures:
            self._at_once = health.paced
        self._carrier.health = health
        if health.state is _ACTIVE and isinstance(ruling.decision, Done) and not ruling.releases_held:
            return  # as nearly all are
        at = getattr(ruling.decision, "at", None)
        if ruling.releases_held or health.state is TargetState.DISABLED:
            at = self._now()
        if at is not None:
            self._due_at = at if self._due_at is None else min(self._due_at, at)
            self._changed.set()


def _longest(target: Target) -> timedelta:
    """How long an attempt may take, from its beginning to its record."""
    return LONGEST + QUEUED + target.timeout + LEASE_MARGIN
