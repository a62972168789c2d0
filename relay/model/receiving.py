"""What comes in: requests, the checks that prove them, and the events they become.

Law: what is unverified cannot become an event, because `Event` is built from a `VerifiedRequest` alone.
"""

import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from relay.model.numbers import Exact, number
from relay.model.proving import ApiKeyCheck, BasicCheck, BearerCheck, Check, HmacCheck, NoCheck, StandardWebhooksCheck

Headers = tuple[tuple[str, str], ...]
"""Header fields in the order received; bytes that are not UTF-8 stand as lone surrogates, as aiohttp decodes them."""

NO_TYPE = "unknown"
"""The type of an event in which its source's rule finds none."""

RELAY = "relay"
"""The built-in source of the relay's own events; no other may have its name, so no stranger's event has it."""

FORM_TYPE = "application/x-www-form-urlencoded"
MOST_FIELDS = 1000
"""Fields of a form that are read; a form with more has none."""

LARGE = 64 * 1024
"""Bytes of JSON beyond which others have turns while it is parsed."""
loads_in_turns = partial(
    json.loads,
    object_hook=lambda found: found,
    parse_int=lambda text: int(text),  # noqa: PLW0108 - `int` itself would be no Python between two values
)
"""`json.loads` that calls Python now and then, which changes no value: in C alone it holds the interpreter's lock from
the first byte to the last, and a thread of its own would help nobody."""

_decoder = json.JSONDecoder(parse_float=number, parse_constant=Exact)  # `json.loads` would make one for each text
_WHITE_SPACE = " \t\n\r"
"""As JSON has it around a value (RFC 8259, section 2)."""

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


Found = TypeVar("Found")


class _Once(Generic[Found]):
    """What is worked out where it is first asked for; `cached_property` takes a lock for that, which costs as much as
    the answer. Two threads that ask at once work out the same."""

    def __init__(self, work_out: Callable[[Any], Found]) -> None:
        self._work_out = work_out
        self.__doc__ = work_out.__doc__

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, asked: Any, _owner: type) -> Found:
        found = asked.__dict__[self._name] = self._work_out(asked)
        return found


@dataclass(frozen=True)
class Content:
    """The headers and body of a request as the naming rules of a source read them."""

    headers: Headers
    body: bytes = field(repr=False)

    @_Once
    def json(self) -> Any:
        """The body as JSON, or None when it is none: content never refuses an authentic request. A number knows the
        text that it was written in, because two that make one float may be the ids of two events."""
        body = self.body
        try:
            if len(body) > LARGE:
                return loads_in_turns(body, parse_float=number, parse_constant=Exact)
            text = body.decode(json.detect_encoding(body), "surrogatepass").strip(_WHITE_SPACE)
            found, end = _decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        return found if end == len(text) else None

    @_Once
    def form(self) -> Mapping[str, str]:
        """The fields of a form body, of a repeated one the first; none where the body is no such form."""
        form: dict[str, str] = {}
        try:
            text = self.body.decode("utf-8", "replace")
            fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            return form
        for name, value in fields:
            form.setdefault(name, value)
        return form

    @property
    def declared_form(self) -> Mapping[str, str] | None:
        """The fields of a body that says of itself that it is a form, None of any other."""
        declared = (self.header("Content-Type") or "").partition(";")[0].strip().lower()
        return self.form if declared == FORM_TYPE else None

    def header(self, name: str) -> str | None:
        """The first value of a header, whatever its case, or None."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


Namer = Callable[[Content], str | None]
"""Reads a name (an event type, a dedupe key) out of a request; total, None where there is none."""


Challenge = Callable[[Content], bytes | None]
"""Reads out of a request what its sender wants to be told at once, to see that we are there; total, None if nothing."""


def _no_headers(_now: datetime, _serial: int) -> Headers:
    return ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A genuine request of a provider, unsigned: what `relay send` and `relay demo` sign and post."""

    content_type: str
    body: Callable[[datetime, int], bytes]
    """Builds a body from the time and a serial number, so that two samples are two events."""
    headers: Callable[[datetime, int], Headers] = _no_headers
    """Builds what the provider says of it in headers, from the same two; without the proof."""

    def sent(self, now: datetime, serial: int) -> Headers:
        """All headers but the proof."""
        return (("Content-Type", self.content_type), *self.headers(now, serial))


@dataclass(frozen=True, slots=True)
class Vector:
    """A request, and the secret that proves it: what holds a provider's check against the outside."""

    secret: str
    """As somebody writes it into the YAML; empty where the provider signs nothing."""
    headers: Headers
    body: bytes
    at: datetime
    """A moment at which it is valid."""
    by_vendor: bool
    origin: str
    """The page that it is from, or `ours`."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider as data."""

    name: str
    check: Check
    event_type: Namer
    dedupe_key: Namer
    sample: Sample
    title: str
    vectors: tuple[Vector, ...]
    challenge: Challenge | None = None
    """What its sender asks once when it is given the URL, and is answered with; no event."""
    secret_prefix: str = ""
    """What its secrets begin with."""
    secret_format: str | None = None
    """Regular expression of a usual secret; another is warned about, never refused."""
    secret_hint: str = ""
    signed: bool = True
    """False for a provider whose requests carry no proof: an address list or an unguessable path is then demanded."""
    gives_up_after: int | None = None
    """After so many answers other than 200 the sender may switch the URL off."""
    revival: str = ""
    """Where to switch the URL on again, and how to fetch what was missed."""
    lookup: "Lookup | None" = None
    """How its API is asked for what its webhook is about."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a provider's API for one event: a path below its base URL, and a body where it is a POST."""

    path: str = field(repr=False)
    query: str = ""
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Unasked:
    """Why nothing can be asked for an event; for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Throttle:
    """An answer that says 200 and means that there were too many."""

    wait: timedelta
    reason: str


def _faultless(_document: Any) -> None:
    """200 means what it says."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """How a provider's own API is asked for what its webhook is about."""

    base_url: str
    ask: Callable[[Content, tuple[str, ...]], Asked | Unasked]
    """From a webhook, and what the user wants included."""
    take: str
    """JMESPath of what counts in the answer."""
    headers: Headers = ()
    never: frozenset[str] = frozenset()
    """Names, in lower case, of members that are never stored, wherever they stand in the answer."""
    includes: frozenset[str] = frozenset()
    """What can be included; nothing where the API has no such choice."""
    fault: Callable[[Any], Throttle | Unasked | None] = _faultless
    """What an answer that says 200 means otherwise."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in a span; a burst of at most one second's worth, and at least one."""

    count: int
    span: timedelta


@dataclass(frozen=True, slots=True)
class Source:
    """Who may post to us, and how we prove it is them."""

    name: str
    provider: str
    path: str = field(repr=False)
    check: Check
    event_type: Namer
    dedupe_key: Namer
    challenge: Challenge | None = None
    enforce: bool = True
    allow_ips: tuple[IPNetwork, ...] = ()
    rate: Rate | None = None
    status: int = 200
    gives_up_after: int | None = None
    revival: str = ""
    expect_every: timedelta | None = None
    """A silence longer than this is told; None expects nothing."""

    @property
    def rotates(self) -> bool:
        """Whether it has several secrets, of which an old one is to be retired some day."""
        return not isinstance(self.check, NoCheck) and len(self.check.secrets) > 1

    @property
    def key_header(self) -> str | None:
        """The header, lower case, whose value is this source's shared key itself; None where none travels."""
        if isinstance(self.check, ApiKeyCheck | BearerCheck | BasicCheck):
            return self.check.header.lower()
        return None

    @property
    def proof_headers(self) -> frozenset[str]:
        """The headers, lower case, that prove a body or belong to what was signed with it."""
        check = self.check
        match check:
            case HmacCheck():
                names = (check.header, check.timestamp_header, check.id_header)
            case StandardWebhooksCheck():
                names = (check.header, "webhook-id", "webhook-timestamp")
            case _:
                return frozenset()
        return frozenset(name.lower() for name in names if name is not None)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came over the wire, believed by nobody yet."""

    headers: Headers
    body: bytes = field(repr=False)
    remote: str


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request that its source's check has proven, or that the YAML lets through unproven (`proven` False)."""

    headers: Headers
    body: bytes = field(repr=False)
    remote: str
    proven: bool
    key_index: int | None = None
    """Which of the source's secrets matched, so that an old one can be retired."""


@dataclass(frozen=True, slots=True)
class Event:
    """One accepted webhook: bytes and headers as received."""

    id: str
    source: str
    type: str
    received_at: datetime
    headers: Headers
    body: bytes = field(repr=False)
    verified: bool = True
    hops: int = 0
    dedupe_key: str | None = None
    routes: tuple[str, ...] = ()
    """Names of the routes that took it when it was received."""
    failed_conditions: tuple[tuple[str, str], ...] = ()
    """Routes, or `route > target`, whose conditions could not be evaluated on it and count as a no; each with why."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which events of which sources go to which targets; `types` are globs, empty means every type."""

    name: str
    sources: frozenset[str]
    targets: tuple[str, ...]
    types: tuple[str, ...] = ()
    headers: Headers = ()
    """What headers must say, each exactly; of a repeated header the first counts."""
    when: str | None = None
    """A condition, as JMESPath on the view of an event."""
    enricher: str | None = None
    """What is fetched for an event before it is sent to any of the targets."""
    target_conditions: tuple[tuple[str, str], ...] = ()
    """Those of the targets that have a condition of their own, each with it."""

    @property
    def is_plain(self) -> bool:
        """Its sources and types alone decide, and nothing is fetched."""
        return not (self.headers or self.when or self.enricher or self.target_conditions)
