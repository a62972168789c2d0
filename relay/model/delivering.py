"""What goes out: targets, the claims on deliveries, what became of an attempt, and a target's health."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from relay.model.credentials import Auth, ClientTls, Proxy
from relay.model.proving import StandardWebhooksCheck
from relay.model.receiving import Event, Headers, Rate
from relay.model.shaping import Body, BodyFormat


class Word(StrEnum):
    """A text out of a fixed few. It hashes as text does: an enum's own hash is Python, and dear in the keys of
    counts."""

    __hash__ = str.__hash__


class DeliveryState(Word):
    """Where a delivery stands. A pending delivery of a disabled target is shown as held."""

    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    DELIVERED = "delivered"
    DEAD = "dead"
    SKIPPED = "skipped"


ENDED = frozenset({DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.SKIPPED})
"""The states in which nothing more happens to a delivery by itself."""

DELIVERY_MOVES: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.PENDING: frozenset({DeliveryState.IN_FLIGHT, DeliveryState.DEAD}),
    DeliveryState.IN_FLIGHT: frozenset(
        {DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.SKIPPED}
    ),
    DeliveryState.DELIVERED: frozenset({DeliveryState.PENDING}),
    DeliveryState.DEAD: frozenset({DeliveryState.PENDING}),
    DeliveryState.SKIPPED: frozenset({DeliveryState.PENDING}),
}
"""The legal moves of a delivery: it is claimed before it is tried, only a claim ends it by what a target said, a hand
may let go of what is held, and a replay begins anew what had ended."""


class TargetState(Word):
    """Whether deliveries leave for a target."""

    ACTIVE = "active"
    DISABLED = "disabled"


TARGET_MOVES: Mapping[TargetState, frozenset[TargetState]] = {
    TargetState.ACTIVE: frozenset({TargetState.DISABLED}),
    TargetState.DISABLED: frozenset({TargetState.ACTIVE}),
}


class DisabledBy(Word):
    """Why a target is disabled; only the first is probed and ended by a success."""

    FAILURES = "failures"
    GONE = "gone"
    HAND = "by hand"


class OutcomeKind(Word):
    """What became of an attempt, as the contract names it."""

    DELIVERED = "delivered"
    THROTTLED = "throttled"
    REFUSED = "refused"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    GONE = "gone"
    UNPREPARED = "unprepared"
    INTERRUPTED = "interrupted"
    SKIPPED = "skipped"
    """Nothing was to be sent: no attempt at all."""


OUTCOMES = tuple(kind for kind in OutcomeKind if kind is not OutcomeKind.SKIPPED)
"""What an attempt can come to."""


@dataclass(frozen=True, slots=True)
class StatusSet:
    """A set of HTTP status codes as ranges, both ends included."""

    ranges: tuple[tuple[int, int], ...]

    def __contains__(self, status: int) -> bool:
        for low, high in self.ranges:  # noqa: SIM110 - `any` would turn a generator for each answer
            if low <= status <= high:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Way:
    """One way by which an event may reach a target: through which route, what is fetched for it before, and which
    conditions are still to be decided on what that brings."""

    route: str
    enricher: str | None = None
    conditions: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Nothing is fetched and nothing is left to be decided."""
        return self.enricher is None and not self.conditions


Course = tuple[Way, ...]
"""The ways of one delivery in the order of the routes, as they were decided when the event was received or replayed;
the first whose conditions hold is taken, and where none does the delivery is skipped. Empty: it goes as it came."""


@dataclass(frozen=True, slots=True)
class Target:
    """A downstream URL with its policy."""

    name: str
    url: str = field(repr=False)
    """Of a templated URL what stands before its first template."""
    headers: Headers = field(default=(), repr=False)
    timeout: timedelta = timedelta(seconds=15)
    concurrency: int = 8
    schedule: tuple[timedelta, ...] = ()
    """Waits between tries: n waits are n + 1 tries; empty is a single try."""
    disable_after: int | None = 3
    """Counted failures that disable the target; None is never."""
    probe_first: timedelta | None = timedelta(minutes=1)
    """First wait of the probes of a disabled target, doubled up to `probe_max`; None is never probed."""
    probe_max: timedelta = timedelta(minutes=15)
    success: StatusSet | None = None
    """Statuses that mean delivered; None means every 2xx."""
    refusals: StatusSet = StatusSet(((400, 400), (413, 413), (415, 415), (422, 422)))
    forward_headers: frozenset[str] = frozenset()
    strip_headers: frozenset[str] = frozenset()
    rate: Rate | None = None
    """Requests in a span, of all kinds; that of its group where it is in one."""
    limit_group: str | None = None
    """Targets of one group share one rate."""
    ordered: bool = False
    """One at a time, by arrival; what fails holds back what came after it."""
    body: Body | None = None
    """None is not said: the bytes as they came, or with what was fetched where something was."""
    format: BodyFormat | None = None
    url_template: str | None = field(default=None, repr=False)
    header_templates: Headers = field(default=(), repr=False)
    """Those of its own headers that are templates."""
    auth: Auth | None = None
    sign: StandardWebhooksCheck | None = None
    """Its secrets sign each request, the newest first."""
    tls: ClientTls | None = None
    proxy: Proxy | None = None
    success_when: str | None = None
    """An expression on the JSON answer that must hold before it means delivered."""

    @property
    def address(self) -> str:
        """Where it is, as far as the YAML says."""
        return self.url_template or self.url

    @property
    def own_headers(self) -> Headers:
        """All headers that the YAML adds, the templates among them as they are written."""
        return self.headers + self.header_templates

    @property
    def access(self) -> tuple[object, ...]:
        """All that decides whether it lets us in: a change of any of it is worth a new try."""
        return (self.address, self.own_headers, self.auth, self.sign, self.tls, self.proxy)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt came to. `reason` is for people and never holds a secret."""

    kind: OutcomeKind
    status: int | None = None
    reason: str = ""
    retry_after: timedelta | None = None
    excerpt: str = ""
    is_wait: bool = False
    """Nothing was begun: the delivery waits for what it lacks, or for its turn."""


class Turn(Word):
    """Which delivery of a target may go next."""

    DUE = "due"
    """The one due longest."""
    PROBE = "probe"
    """Of a disabled target: the newest never tried, else the one tried longest ago."""
    ARRIVAL = "arrival"
    """Of a disabled target: the newest never tried that came after the disabling."""
    FIRST = "first"
    """Of an ordered target, disabled or not: the first by arrival, once it is due and nothing else is under way."""

    @property
    def spends_steps(self) -> bool:
        """Whether a failed try brings the delivery nearer to its end."""
        return self in (Turn.DUE, Turn.FIRST)


class Claim(NamedTuple):
    """The sole right to try one delivery once, until `lease_until`.

    `attempt` counts every request begun for the delivery, from 1; it is stored before the request is sent.
    `step` is the place in the retry schedule. `took_at` is the begin of the latest attempt that the target
    had taken when the claim was made. `token` is the fence: settling with a lost claim changes nothing.
    """

    event: Event
    target: str
    attempt: int
    step: int
    token: int
    lease_until: datetime
    turn: Turn = Turn.DUE
    first_try_at: datetime | None = None
    took_at: datetime | None = None
    body_deferred: bool = False
    """The body is large and left in the store; it is fetched when it is sent."""
    replayed: bool = False
    """The delivery was asked for again by hand."""
    course: Course = ()

    @property
    def delivery_id(self) -> str:
        """The delivery's public name: one event, one target."""
        return f"{self.event.id}/{self.target}"


@dataclass(frozen=True, slots=True)
class Done:
    """The delivery is delivered."""


DONE = Done()
"""It says no more than that, so one does for all."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """The delivery waits until `at`, then stands at `step` of its schedule."""

    at: datetime
    step: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The delivery is dead, kept with its reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skip:
    """A condition on what was fetched said no: nothing is sent, kept with its reason."""

    reason: str


Decision = Done | RetryAt | GiveUp | Skip


class TargetHealth(NamedTuple):
    """All that is remembered of a target's conduct; stored with every change, so that a restart forgets nothing.

    A tuple, because each success makes one anew, and nothing else with so many parts is made as fast.
    """

    name: str
    state: TargetState = TargetState.ACTIVE
    disabled_by: DisabledBy | None = None
    reason: str = ""
    since: datetime | None = None
    failures: int = 0
    counted_events: tuple[str, ...] = ()
    counted_at: datetime | None = None
    """When the last counted failure was recorded."""
    wait_until: datetime | None = None
    """No failure that began earlier counts, and no paced attempt begins earlier: drawn once, stored."""
    paced: bool = False
    """One attempt at a time, since a counted failure or a throttle."""
    succeeded_at: datetime | None = None
    """When the last success was recorded."""
    took_at: datetime | None = None
    """When the latest-begun successful attempt began."""
    throttled_until: datetime | None = None
    probe_at: datetime | None = None
    probe_wait: timedelta | None = None
    arrival_try: bool = False
    """All counted failures were of one event: the next arrival is tried at once, beside the probes."""
    ramp: int | None = None
    """Concurrency allowed since it was enabled, growing by one with each success; None is all of it."""
    url_digest: str = ""
    settings_digest: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether a success changes no more than when the last one was."""
        return not (
            self.failures
            or self.disabled_by
            or self.counted_events
            or self.counted_at
            or self.wait_until
            or self.paced
            or self.throttled_until
            or self.ramp is not None
        )

    def succeeded(self, at: datetime, began_at: datetime) -> "TargetHealth":
        """The same with another last success, of an attempt that began then."""
        took_at = began_at if self.took_at is None or began_at > self.took_at else self.took_at
        return TargetHealth._make((*self[:_SUCCESS], at, took_at, *self[_SUCCESS + 2 :]))


HEALTH_FIELDS = TargetHealth._fields
_SUCCESS = HEALTH_FIELDS.index("succeeded_at")
"""Behind it stands `took_at`."""
