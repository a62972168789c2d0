"""The reading side of the storage port: what is kept, as it is shown.

Law: a view sees what is committed. It costs what it shows and a bounded search, whatever is kept: a page that found
too little within its bound is short and says where to go on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from relay.model import DeliveryState, Headers


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events are meant; all that is given must hold.

    `state` and `among` hold for the same delivery: one in that state, to one of those targets.
    """

    source: str | None = None
    type: str | None = None
    """A glob, as those of routes."""
    since: datetime | None = None
    until: datetime | None = None
    state: DeliveryState | None = None
    among: frozenset[str] | None = None
    """Names of targets; None is any."""
    unrouted: bool = False
    """Those that no route wanted: they have no deliveries."""


@dataclass(frozen=True, slots=True)
class KeptDelivery:
    """One delivery as it stands; `outcome`, `status` and `reason` are those of its last attempt, or of its end."""

    target: str
    state: DeliveryState
    attempts: int
    step: int
    due_at: datetime
    outcome: str | None = None
    status: int | None = None
    reason: str | None = None
    settled_at: datetime | None = None
    replays: int = 0
    enrichers: tuple[str, ...] = ()
    """Who may be asked for more of its event before it is sent."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """One event without its headers and its body; `number` is its place in the order of arrival."""

    number: int
    id: str
    source: str
    type: str
    received_at: datetime
    deliveries: tuple[KeptDelivery, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptAttempt:
    """One attempt as it was recorded."""

    target: str
    number: int
    began_at: datetime
    duration_ms: int
    outcome: str
    status: int | None
    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class KeptFetch:
    """What an enricher has brought for an event; `data` is JSON, None where it was not asked for."""

    enricher: str
    fetched_at: datetime
    size: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event with all that is kept of it, but for its body. `routes` is None for one stored by a version that did
    not remember them."""

    event: KeptEvent
    headers: Headers
    verified: bool
    hops: int
    size: int
    sha256: bytes
    routes: tuple[str, ...] | None
    attempts: tuple[KeptAttempt, ...]
    failed_conditions: tuple[tuple[str, str], ...] = ()
    """See `Event.failed_conditions`."""
    fetches: tuple[KeptFetch, ...] = ()


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events, newest first; `next` is where the next page begins, None at the end."""

    events: tuple[KeptEvent, ...]
    next: int | None = None


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A request that was turned away: what came, from where, and why; without body and secrets."""

    received_at: datetime
    source: str
    remote: str | None
    status: int
    reason: str
    detail: str = ""
    size: int | None = None
    """Bytes that its head declared."""
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class RefusalQuery:
    """Which refusals are meant; all that is given must hold."""

    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RefusalPage:
    """Refusals, newest first; `next` is where the next page begins, None at the end."""

    refusals: tuple[RefusedRequest, ...]
    next: int | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How often what happened: by kind (`source` or `target`), name and result or outcome."""

    began_at: datetime | None = None
    ever: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    last_hour: Mapping[tuple[str, str, str], int] = field(default_factory=dict)


class Archive(Protocol):
    """Views of what is kept. Each raises `StoreUnavailable` where it cannot be read now."""

    async def events(self, query: EventQuery, *, limit: int, before: int | None = None) -> EventPage:
        """Events, newest first, from before a number on."""

    async def event(self, event_id: str, *, with_data: bool = False) -> EventRecord | None:
        """One event with all its attempts, None where there is none; what was fetched for it only `with_data`."""

    async def refusals(self, query: RefusalQuery, *, limit: int, before: int | None = None) -> RefusalPage:
        """Refused requests, newest first, from before a number on."""

    async def keep_refusals(
        self, refusals: Sequence[RefusedRequest], *, counts: Mapping[str, int], at: datetime
    ) -> None:
        """Add refusals to those that are kept, and forget the oldest beyond their bound; `counts` is how many were
        refused of each source, also where not all are kept."""

    async def overdue(self, targets: Sequence[str], before: datetime, *, ordered: Collection[str]) -> frozenset[str]:
        """Those of these targets for which a delivery was due before a time and is still pending; of those that are
        `ordered`, the first by arrival."""

    async def firsts(self, targets: Sequence[str]) -> Mapping[str, str]:
        """The id of the first event by arrival of which a delivery to each of these targets is not over."""

    async def tally(self, now: datetime) -> Tally:
        """What was counted, ever and in the last sixty minutes."""
