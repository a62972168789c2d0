"""How the nouns stand in rows and come back out of them."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from relay.model import HEALTH_FIELDS, Course, DisabledBy, Event, Headers, TargetHealth, TargetState, Way

Row = tuple[Any, ...]

compact = json.JSONEncoder(separators=(",", ":")).encode
"""JSON as columns hold it. Made once: `json.dumps` makes an encoder a call where the separators are not its own."""
_compact_names = lru_cache(maxsize=256)(compact)
"""The same of names out of the config, which are the same again and again."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def millis(at: datetime) -> int:
    """Milliseconds since 1970, rounded down; exact, where a float would lose one now and then."""
    return (at - _EPOCH) // MILLISECOND


def moment(value: int | None) -> datetime | None:
    """The aware UTC time of a column, None for NULL."""
    return None if value is None else _EPOCH + timedelta(milliseconds=value)


def moment_if_sound(value: object) -> datetime | None:
    """The same of a column that the disk may have changed: None where it holds no time."""
    try:
        return moment(value) if isinstance(value, int) else None
    except OverflowError:
        return None


def sound_moment(value: object) -> datetime:
    """The same, and the beginning of time where it holds none."""
    return moment_if_sound(value) or _EPOCH


def dedupe_digest(source: str, key: str) -> bytes:
    """A dedupe key, made short and scoped to its source: the same id of two sources is two events."""
    text = f"{source}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def event_row(seq: int, event: Event, dedupe: bytes | None, sha256: bytes) -> Row:
    """An event as `EVENT_INSERT` takes it."""
    return (
        seq,
        event.id,
        event.source,
        event.type,
        millis(event.received_at),
        int(event.verified),
        event.hops,
        dedupe,
        compact(event.headers),
        len(event.body),
        sha256,
        event.body,
        _compact_names(event.routes),
        compact(event.failed_conditions) if event.failed_conditions else None,
    )


def headers_from(stored: str | bytes) -> Headers:
    """Header fields from their column. Raises ValueError where it is damaged."""
    try:
        return tuple((name, value) for name, value in json.loads(stored))
    except TypeError as error:
        raise ValueError(str(error)) from None


def course_text(course: Course) -> str | None:
    """A course as its column holds it; NULL where a delivery goes as it came."""
    return compact([(way.route, way.enricher, way.conditions) for way in course]) if course else None


def course_from(stored: str | bytes | None) -> Course:
    """A course from its column. Raises ValueError where it is damaged."""
    try:
        return () if stored is None else tuple(map(_way, json.loads(stored)))
    except TypeError as error:
        raise ValueError(str(error)) from None


def _way(parts: Any) -> Way:
    route, enricher, conditions = parts
    texts = (route, *conditions) if enricher is None else (route, enricher, *conditions)
    if not isinstance(conditions, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a way")
    return Way(route, enricher, tuple(conditions))


def event_from(row: Sequence[Any], headers: Headers, body: bytes) -> Event:
    """An event from (id, source, type, received_at, verified, hops), its headers and its body."""
    event_id, source, type_, received_at, verified, hops = row
    return Event(
        id=event_id,
        source=source,
        type=type_,
        received_at=_EPOCH + timedelta(milliseconds=received_at),
        headers=headers,
        body=body,
        verified=bool(verified),
        hops=hops,
    )


_TIMES = frozenset({"since", "counted_at", "wait_until", "succeeded_at", "took_at", "throttled_until", "probe_at"})
_TIME_PLACES = tuple(place for place, name in enumerate(HEALTH_FIELDS) if name in _TIMES)
_WORD_PLACES = HEALTH_FIELDS.index("state"), HEALTH_FIELDS.index("disabled_by")
_EVENTS_PLACE, _WAIT_PLACE = HEALTH_FIELDS.index("counted_events"), HEALTH_FIELDS.index("probe_wait")


def health_row(health: TargetHealth) -> Row:
    """A target's health as `HEALTH_UPSERT` takes it."""
    row: list[Any] = [*health]
    for place in _TIME_PLACES:
        if row[place] is not None:
            row[place] = millis(row[place])
    for place in _WORD_PLACES:
        if row[place] is not None:
            row[place] = str(row[place])
    wait = health.probe_wait
    row[_EVENTS_PLACE] = json.dumps(health.counted_events) if health.counted_events else "[]"
    row[_WAIT_PLACE] = None if wait is None else round(wait / MILLISECOND)
    return tuple(row)


def health_from(row: Sequence[Any]) -> TargetHealth:
    """A target's health from a row of `HEALTH_SELECT`."""
    values = dict(zip(HEALTH_FIELDS, row, strict=True))
    for name in _TIMES:
        values[name] = moment(values[name])
    values["state"] = TargetState(values["state"])
    values["disabled_by"] = values["disabled_by"] and DisabledBy(values["disabled_by"])
    values["counted_events"] = tuple(json.loads(values["counted_events"]))
    values["paced"] = bool(values["paced"])
    values["arrival_try"] = bool(values["arrival_try"])
    wait = values["probe_wait"]
    values["probe_wait"] = None if wait is None else timedelta(milliseconds=wait)
    return TargetHealth(**values)
