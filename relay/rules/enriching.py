"""What an enricher is asked for an event, what its answer means, and how long one that fails is left alone.

Law: pure and total. A failed fetch is never the target's failure: either the event, or what the YAML says of the
enricher, is at fault (`Refused`), or the enricher itself is (`Failing`, `Throttled`), and then who needs it waits.
Reasons say what to do and hold nothing of the answer.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random

from relay.model import Content, Enricher, Event, Headers, Throttle, Unasked
from relay.rules.dropping import without, without_members
from relay.rules.exactness import ascii_json, read
from relay.rules.expressions import Failed, found, view_of
from relay.rules.retry import jittered
from relay.rules.shaping import JSON_TYPE, Unshapeable, filled, filled_header, filled_url
from relay.rules.templating import TEXT

WAITS = tuple(timedelta(seconds=s) for s in (5, 30, 120, 600, 900))
"""How long an enricher that failed is left alone, failure after failure; the last wait is that of all that follow."""
THROTTLE = timedelta(seconds=5)
"""The wait of a 429 that does not say how long."""
_PASSING = frozenset({408, 425, 500, 502, 504})


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to an enricher."""

    method: str
    url: str
    headers: Headers
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Brought:
    """What the enricher had, as it is stored."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be had for this event, or with these settings; a step of the delivery's schedule."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failing:
    """The enricher does not answer, or says that it cannot."""

    reason: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """The enricher asks for a pause."""

    reason: str
    wait: timedelta


Answer = Brought | Refused | Failing | Throttled


def asked(enricher: Enricher, event: Event, body: bytes) -> Ask | Refused:
    """The request for one event."""
    view = view_of(event, body)
    try:
        own = tuple((name, filled_header(name, text, view)) for name, text in enricher.header_templates)
        if enricher.lookup is not None:
            return _by_lookup(enricher, event, body, own)
        url = enricher.url if enricher.url_template is None else filled_url(enricher.url_template, view)
        content = None if enricher.body is None else filled("body", enricher.body.template, TEXT, view)
    except Unshapeable as reason:
        return Refused(f"enricher {enricher.name}: {reason}")
    sent = None if content is None else content.encode("utf-8", "replace")
    return Ask(enricher.method, url, _all_headers(enricher, own), sent)


def _by_lookup(enricher: Enricher, event: Event, body: bytes, own: Headers) -> Ask | Refused:
    assert enricher.lookup is not None
    wanted = enricher.lookup.ask(Content(event.headers, body), enricher.include)
    if isinstance(wanted, Unasked):
        return Refused(f"enricher {enricher.name}: {wanted.reason}")
    query = f"?{wanted.query}" if wanted.query else ""
    method = "GET" if wanted.body is None else "POST"
    return Ask(method, enricher.url.rstrip("/") + wanted.path + query, _all_headers(enricher, own), wanted.body)


def _all_headers(enricher: Enricher, filled_in: Headers) -> Headers:
    """The headers of the YAML, and those that the API demands where the YAML does not say otherwise."""
    own = (*enricher.headers, *filled_in)
    named = {name.lower() for name, _ in own}
    if enricher.lookup is not None:
        demanded = enricher.lookup.headers
    else:
        demanded = (("Accept", JSON_TYPE), *([("Content-Type", JSON_TYPE)] if enricher.body is not None else []))
    return (*(header for header in demanded if header[0].lower() not in named), *own)


def answered(enricher: Enricher, status: int, body: bytes, *, retry_after: timedelta | None) -> Answer:
    """What an answer means. `body` is whole: an answer that is cut off is the caller's to refuse."""
    name = enricher.name
    if status == 429 or (status == 503 and retry_after is not None):
        return Throttled(f"enricher {name}: status {status}", THROTTLE if retry_after is None else retry_after)
    if status >= 500 or status in _PASSING:
        return Failing(f"enricher {name}: status {status}")
    if not 200 <= status < 300:
        return Refused(f"enricher {name}: status {status}{_advice(name, status)}")
    return _taken(enricher, body)


def _advice(name: str, status: int) -> str:
    if 300 <= status < 400:
        return ": it redirects, which is not followed; is its URL right, and its Accept header?"
    match status:
        case 401:
            return f": the token is not accepted; check the token or auth of enrichers.{name}"
        case 403:
            return f": the token may not read this; check what it is allowed, or enrichers.{name}"
        case 404:
            return ": not there, or not there yet"
    return ""


def _taken(enricher: Enricher, body: bytes) -> Answer:
    """What counts in a good answer, without what must not be stored."""
    name = enricher.name
    try:
        document = read(body)
    except (ValueError, RecursionError):
        return Refused(f"enricher {name}: its answer is not JSON; is its URL right?")
    if enricher.lookup is not None:
        fault = enricher.lookup.fault(document)
        if isinstance(fault, Throttle):
            return Throttled(f"enricher {name}: {fault.reason}", fault.wait)
        if fault is not None:
            return Refused(f"enricher {name}: {fault.reason}")
    data = document if enricher.take is None else found(enricher.take, document)
    if data is None or isinstance(data, Failed):
        where = f"nothing at {enricher.take}" if enricher.take else "null"
        return Refused(f"enricher {name}: its answer has {where}")
    try:
        kept = without(data if enricher.lookup is None else without_members(data, enricher.lookup.never), enricher.drop)
        return Brought(ascii_json(kept).encode())
    except (ValueError, RecursionError):
        return Refused(f"enricher {name}: its answer cannot be kept as JSON")


@dataclass(frozen=True, slots=True)
class Pace:
    """How an enricher has behaved: failures on end, and until when it is left alone."""

    failures: int = 0
    failed_at: datetime | None = None
    wait_until: datetime | None = None
    reason: str = ""

    def wait(self, now: datetime) -> timedelta | None:
        """How long nobody may ask, None where somebody may."""
        return None if self.wait_until is None or now >= self.wait_until else self.wait_until - now

    def set_back(self) -> "Pace":
        """The same after the clock was set back: when somebody may ask is not known any more, so one may now."""
        return replace(self, failed_at=None, wait_until=None)


def paced(pace: Pace, answer: Answer, *, began_at: datetime, now: datetime, rng: Random) -> Pace:
    """The pace after an answer. Fetches that fail together are one failure: what began before the last one was recorded
    counts no more. Whoever answers at all, if only to refuse, is alive; but a pause that was asked for is kept by
    those that were under way."""
    match answer:
        case Throttled(reason=reason, wait=wait):
            return replace(pace, wait_until=max(now + wait, pace.wait_until or now), reason=reason)
        case Failing(reason=reason):
            if pace.failed_at is not None and began_at <= pace.failed_at:
                return pace
            wait = jittered(WAITS[min(pace.failures, len(WAITS) - 1)], rng)
            return Pace(pace.failures + 1, now, now + wait, reason)
    is_asked_for = not pace.failures and pace.wait(now) is not None
    return pace if is_asked_for else Pace()
