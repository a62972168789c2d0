"""Tells people what happens to the relay itself, as events of the built-in source `relay`.

Law: a message is a normal event. It is accepted into the store, routed by the YAML, delivered with retries, shown and
counted like any other; nobody can post one. What no route takes is not stored. What is gathered waits in memory: a
tidy stop sends it, a crash loses it, and each note's own line in the log is there all the same.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from relay.delivery.observing import Attempted
from relay.ids import fresh_id
from relay.model import RELAY, Event, GiveUp, Headers, Route, Source, TargetHealth
from relay.rules import notices
from relay.rules.notices import KINDS, SOURCE_SILENT, Batch, Box, Expectation, Note
from relay.rules.routing import CONDITION_FAILED, Routed, meant, routed, subject_of, targets_of
from relay.store import Accepted, Store, StoreUnavailable

LAST_WORDS = timedelta(seconds=1)
"""At a stop, how long storing what is gathered may take."""
_HEADERS: Headers = (("Content-Type", "application/json"),)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what is done."""

    every: timedelta = timedelta(minutes=1)
    """At most one message of a kind to a target in this."""
    look: timedelta = timedelta(seconds=10)
    """How often it is looked for silent sources."""


CONTRACT = Pace()


def names_of(sources: Iterable[Source], routes: Iterable[Route]) -> tuple[str, ...]:
    """The sources that events may come from: those of the config, and `relay` where a route takes its events."""
    own = (RELAY,) if any(RELAY in route.sources for route in routes) else ()
    return (*(source.name for source in sources), *own)


class Notifier:
    """Gathers notes and sends them. `configure` at the start and at each reload, `run` as a loop, `close` at the end.

    It observes attempts (`relay.delivery.lane.Observer`); what it is told costs next to nothing and never blocks.
    """

    def __init__(
        self,
        store: Store,
        *,
        count: Callable[[str, str], None],
        held: Callable[[str], int],
        last_event: Callable[[str], datetime | None],
        now: Callable[[], datetime],
        pace: Pace = CONTRACT,
    ) -> None:
        """`count` is told of each stored message: its source, and that it was accepted. `held` knows how many
        deliveries wait at a target, `last_event` when a source was heard last."""
        self._store = store
        self._count = count
        self._held = held
        self._last_event = last_event
        self._now = now
        self._pace = pace
        self._routes: dict[str, tuple[Route, ...]] = {}
        self._targets: dict[str, tuple[str, ...]] = {}
        self._boxes: dict[tuple[str, str], Box] = {}
        self._expected: dict[str, Expectation] = {}
        self._changed = asyncio.Event()
        self._keeping: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Task[Accepted] | None = None
        """The message that was handed to the store last."""

    def configure(self, sources: Iterable[Source], routes: Sequence[Route]) -> None:
        """Take a config: who carries which kind, and which sources are expected. What is remembered of those that were
        there before stays; what waited for a target that carries a kind no longer is let go."""
        self._routes = {kind: meant(RELAY, kind, routes) for kind in KINDS}
        self._targets = {kind: targets_of(found) for kind, found in self._routes.items()}
        keys = [(kind, target) for kind, targets in self._targets.items() for target in targets]
        self._boxes = {key: self._boxes.get(key, Box()) for key in keys}
        fresh = Expectation(timedelta.max, self._now())
        self._expected = {
            source.name: replace(self._expected.get(source.name, fresh), every=source.expect_every)
            for source in sources
            if source.expect_every is not None
        }
        self._changed.set()

    def clock_set_back(self) -> None:
        """What is silent is so from now on, where it would be from a time to come."""
        now = self._now()
        self._expected = {name: replace(one, since=min(one.since, now)) for name, one in self._expected.items()}

    def remember(self, told: Iterable[str]) -> None:
        """The silence of these sources was told before this start: each is told once."""
        for name in told:
            expectation, last = self._expected.get(name), self._last_event(name)
            if expectation is not None and last is not None:
                self._expected[name] = replace(expectation, told=last)

    def attempted(self, attempt: Attempted) -> None:
        """See `Observer`: a delivery that was given up is told."""
        ruling = attempt.settled.ruling
        if ruling is None or not isinstance(ruling.decision, GiveUp):
            return
        note = notices.delivery_dead(attempt.claim, attempt.sent.outcome, ruling.decision.reason, at=attempt.ended_at)
        if note is not None:
            self._take(note)

    def disabled(self, health: TargetHealth) -> None:
        """See `Observer`: told to all but the target itself."""
        self._take(notices.target_disabled(health, held=self._held(health.name), at=self._now()))

    def enabled(self, health: TargetHealth) -> None:
        """See `Observer`: told to all but the target itself."""
        self._take(notices.target_enabled(health, held=self._held(health.name), at=self._now()))

    def nearly_full(self, size: int, limit: int) -> None:
        """Tell that the store will soon take nothing; both in bytes."""
        self._take(notices.store_nearly_full(size, limit, at=self._now()))

    def reload_refused(self, problems: int | Sized) -> None:
        """Tell that a new config was refused; only the number of its problems goes out."""
        number = problems if isinstance(problems, int) else len(problems)
        self._take(notices.config_reload_refused(number, at=self._now()))

    async def run(self) -> None:
        """Send for ever what is ready, and look for silent sources."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            self._listen()
            await self._send_ready()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rest(loop.time())):
                    await self._changed.wait()

    async def close(self) -> None:
        """Send what is gathered, whatever the minute says; what cannot be stored now is lost, and that is told. What
        `run` was sending when it was ended is waited for, not sent again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS.total_seconds()):
                if self._sending is not None:
                    await asyncio.wait({self._sending})
                self._boxes = {key: replace(box, free_at=-math.inf) for key, box in self._boxes.items()}
                await self._send_ready()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        for batch, targets in notices.ready(self._boxes, math.inf).items():
            reason = "the relay stops and the store does not take it"
            log.warning("relay.notice_lost", type=batch.kind, count=batch.count, targets=len(targets), reason=reason)

    def _take(self, note: Note) -> None:
        for target in notices.carriers(note, self._targets.get(note.kind, ())):
            box = self._boxes[note.kind, target]
            self._boxes[note.kind, target] = notices.put(box, note)
            if box.gathered is None:
                self._changed.set()

    def _rest(self, at: float) -> float | None:
        """Seconds for which nothing will be ready by itself."""
        ready_at = notices.ready_at(self._boxes)
        waits = [] if ready_at is None else [max(0.0, ready_at - at)]
        if self._expected:
            waits.append(self._pace.look.total_seconds())
        return min(waits, default=None)

    def _listen(self) -> None:
        """Tell once of each source that has been silent for longer than expected."""
        now = self._now()
        for name, expectation in self._expected.items():
            last = self._last_event(name)
            self._expected[name] = notices.listened(expectation, last, now)
            if self._expected[name] is not expectation:
                note = notices.source_silent(name, last, expectation.every, at=now)
                log.warning(SOURCE_SILENT, source=name, reason=note.sentence, **dict(note.details))
                self._take(note)
                keeping = asyncio.create_task(self._keep_told(name, now), name=f"silence of {name}")
                self._keeping.add(keeping)
                keeping.add_done_callback(self._keeping.discard)

    async def _keep_told(self, source: str, now: datetime) -> None:
        with suppress(StoreUnavailable):  # then a start may tell it once more
            await self._store.silence_told(source, now)

    async def _send_ready(self) -> None:
        """Send what is ready, one message after the other, each as it stands when its turn comes: notes may have joined
        it meanwhile, and a reload may have taken its targets away. Who stops waiting stops no message."""
        loop = asyncio.get_running_loop()
        while found := notices.ready(self._boxes, loop.time()):
            batch, targets = next(iter(found.items()))
            self._boxes.update(((batch.kind, target), Box()) for target in targets)
            event, addressed = self._event(batch, targets)
            if not addressed.targets:  # the conditions of its routes say no
                continue
            self._sending = self._send(batch, event, addressed)
            with suppress(StoreUnavailable):  # the outage is told by the store
                await asyncio.shield(self._sending)

    def _send(self, batch: Batch, event: Event, addressed: Routed) -> "asyncio.Task[Accepted]":
        """Begin to store a message. Its notes have left their boxes, so that what comes meanwhile is gathered."""
        storing = self._store.accept(event, addressed.targets, addressed.courses)
        sending = asyncio.create_task(storing, name="notice")
        sending.add_done_callback(partial(self._sent, batch, addressed.targets, event))
        return sending

    def _sent(self, batch: Batch, targets: Sequence[str], event: Event, sending: "asyncio.Task[Accepted]") -> None:
        """A message was stored, or not: then it is gathered again with what came meanwhile, and goes a minute later.
        Whoever was refused cannot know whether it was stored after all, and twice a minute would be a flood."""
        is_stored = not sending.cancelled() and sending.exception() is None
        left = None if is_stored else batch
        free_at = asyncio.get_running_loop().time() + self._pace.every.total_seconds()
        for key in self._boxes.keys() & {(batch.kind, target) for target in targets}:  # a reload may have come between
            self._boxes[key] = Box(notices.joined(left, self._boxes[key].gathered), free_at)
        if not is_stored:
            return
        self._count(RELAY, "accepted")
        log.info(
            "event.accepted",
            source=RELAY,
            type=event.type,
            event_id=event.id,
            targets=len(targets),
            bytes=len(event.body),
            count=batch.count,
        )

    def _event(self, batch: Batch, targets: Sequence[str]) -> tuple[Event, Routed]:
        """The message as an event, and those of these targets that it goes to after all."""
        now = self._now()
        event = Event(fresh_id("evt", now), RELAY, batch.kind, now, _HEADERS, batch.body, hops=batch.hops)
        routes = self._routes[batch.kind]
        found = routed(subject_of(event, event.body), routes)
        for place, reason in found.failed:
            log.warning(CONDITION_FAILED, source=RELAY, route=place, event_id=event.id, type=event.type, reason=reason)
        wanted = tuple(name for name in targets if name in found.targets)
        leading = {route.name for route in routes if not set(wanted).isdisjoint(route.targets)}
        names = tuple(name for name in found.routes if name in leading)
        event = replace(event, routes=names, failed_conditions=found.failed)
        return event, replace(found, routes=names, targets=wanted)
