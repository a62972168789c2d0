"""How what is kept comes out of its rows as it is shown, and what bounds it.

Law: what may be damaged is shown as far as it can be read.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from relay.model import DeliveryState, Headers
from relay.store.archive import KeptAttempt, KeptDelivery, KeptEvent, KeptFetch, RefusedRequest, Tally
from relay.store.grouping.rows import (
    compact,
    course_from,
    headers_from,
    millis,
    moment,
    moment_if_sound,
    sound_moment,
)

SCAN = 20_000
"""Rows that one search looks at."""
KEPT_REFUSALS = 1000
KEPT_REFUSALS_FOR = timedelta(days=7)
TALLY_KEPT = timedelta(hours=2)
"""How long the minutes of the tally are kept; what counts is the last hour."""
HOUR = timedelta(hours=1)
LARGEST = (1 << 63) - 1
"""What a column holds; a stranger may declare more."""


def minute(at: datetime) -> int:
    """The minute since 1970 under which a tally stands."""
    return int(at.timestamp()) // 60


def kept_event(number: int, row: Sequence[Any], deliveries: Sequence[KeptDelivery]) -> KeptEvent:
    """An event from (id, source, type, received_at) and its deliveries."""
    event_id, source, type_, received_at = row
    return KeptEvent(number, str(event_id), str(source), str(type_), sound_moment(received_at), tuple(deliveries))


def kept_delivery(row: Sequence[Any]) -> KeptDelivery:
    """A delivery from (target, state, attempts, step, due_at, outcome, status, reason, settled_at, replays, course)."""
    target, state, attempts, step, due_at, outcome, status, reason, settled_at, replays, course = row
    return KeptDelivery(
        target=target,
        state=DeliveryState(state),
        attempts=attempts,
        step=step,
        due_at=sound_moment(due_at),
        outcome=outcome,
        status=status,
        reason=reason,
        settled_at=moment_if_sound(settled_at),
        replays=replays,
        enrichers=_enrichers(course),
    )


def _enrichers(course: str | bytes | None) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(way.enricher for way in course_from(course) if way.enricher is not None))
    except ValueError:
        return ()


def kept_fetch(enricher: str, row: Sequence[Any]) -> KeptFetch:
    """What an enricher has brought, from (fetched_at, size, data)."""
    fetched_at, size, data = row
    return KeptFetch(enricher, sound_moment(fetched_at), size, data)


def kept_attempt(row: Sequence[Any]) -> KeptAttempt:
    """An attempt from (target, number, began_at, duration, outcome, status, reason, excerpt)."""
    target, number, began_at, *rest = row
    return KeptAttempt(target, number, sound_moment(began_at), *rest)


def pairs(stored: str | bytes) -> Headers:
    """Pairs of texts from their column, none where it is damaged."""
    try:
        return headers_from(stored)
    except ValueError:
        return ()


def refusal_row(refusal: RefusedRequest, storable: Callable[[str], str]) -> tuple[Any, ...]:
    """A refusal as it is stored, its number aside; `storable` makes of what a stranger sent a text that can be."""
    return (
        millis(refusal.received_at),
        storable(refusal.source),
        refusal.remote and storable(refusal.remote),
        refusal.status,
        storable(refusal.reason),
        storable(refusal.detail),
        None if refusal.size is None else min(refusal.size, LARGEST),
        compact(refusal.headers),
    )


def refusal_from(row: Sequence[Any]) -> RefusedRequest:
    """A refusal from what `refusal_row` makes of it."""
    received_at, source, remote, status, reason, detail, size, headers = row
    at = moment(received_at)
    assert at is not None
    return RefusedRequest(at, source, remote, status, reason, detail, size, headers_from(headers))


def tally_from(rows: Iterable[Sequence[Any]], began_at: datetime | None) -> Tally:
    """A tally from its sums, (whether it is that of ever, kind, name, what, number)."""
    sums: tuple[dict[tuple[str, str, str], int], ...] = ({}, {})
    for is_ever, kind, name, what, number in rows:
        sums[bool(is_ever)][kind, name, what] = number
    last_hour, ever = sums
    return Tally(began_at, ever, last_hour)
