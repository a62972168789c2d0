"""Which headers are kept of a webhook, and which leave with it for a target.

Law: a target gets what the provider sent, so that it can check the provider's signature itself, except what belongs to
a connection (RFC 9110, section 7.6.1), to a message's framing, to us, or to a secret that is not the target's to see.
A header that cannot be sent as it came is left out and named, never changed and never a reason to fail.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from functools import lru_cache
from urllib.parse import quote

from relay.model import Event, Headers, Shaped, Target

MOST_HOPS = 5
"""A webhook that passed more relays than this goes in circles."""

MOST_KNOWN = 64
"""Events whose lines are kept for their other targets."""
LONGEST_KNOWN = 4096
"""Characters of such lines: what senders make longer must not fill the memory."""

NEVER_KEPT = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Never stored unless a target asks for it by name."""

HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Never forwarded, whatever the YAML says: a wrong one breaks or smuggles the request that carries it."""

_WITHHELD = frozenset({"accept-encoding", "authorization", "cookie", "forwarded", "user-agent", "via", "x-real-ip"})
"""Not forwarded unless the target asks: credentials, claims about addresses, and what describes a client not us."""

_OF_THE_BODY = re.compile(
    r"signature|hmac|(?:^|[-_])sig(?:$|[-_])|^(?:content-|repr-)?digest$|^content-(?:md5|encoding|type|language)$|^etag$"
    r"|^webhook-(?:id|timestamp)$"
)
"""Names of headers that describe or prove the bytes they came with."""
_ALWAYS_OURS = frozenset({"content-encoding", "content-type"})
"""Of a changed body, whatever a target asks for: the provider's would not be true."""

_CALL_NAMES = frozenset({"webhook-id", "webhook-signature"})
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_DIGITS = re.compile(r"[0-9]+")
_REPLAY = ("relay-replay", "1")
_PLAIN_ASCII = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class _Fate(Enum):
    """What becomes of a provider's header on its way to one target."""

    PASS = auto()
    LEAVE = auto()
    NAMES_CALL = auto()
    """Passes, and is the provider's own name of its call."""
    CONNECTION = auto()
    """Stays behind, and names others that do."""
    NO_NAME = auto()
    """Is not a header name (RFC 9110, section 5.1)."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one target's YAML says of headers, worked out once for all that say the same."""

    passage: "_Passage"
    own: Headers
    user_agent: Headers
    webhook_id: bool
    known: "dict[str, _Lines]" = field(default_factory=dict)
    """The lines of events that were sent last, by the event's id: most go to several targets."""


@dataclass(frozen=True, slots=True)
class _Lines:
    """The header lines of one event, the number of its attempt left open between the two halves.

    Its headers and time tell it from another one of its id."""

    before: str
    after: str
    many: int
    dropped: tuple[str, ...]
    headers: Headers
    received_at: datetime


def _is_never_forwarded(low: str) -> bool:
    return low in HOP_BY_HOP or low.startswith(("proxy-", "relay-"))


def _is_withheld(low: str) -> bool:
    return low in _WITHHELD or low.startswith("x-forwarded-")


def is_of_the_body(low: str, proofs: frozenset[str]) -> bool:
    """Whether a header, its name in lower case, describes or proves the bytes it came with; `proofs` are those of the
    source's own check."""
    return low in proofs or _OF_THE_BODY.search(low) is not None


@lru_cache(maxsize=1024)
def _plan(
    forward: frozenset[str],
    strip: frozenset[str],
    headers: Headers,
    user_agent: str,
    key_header: str | None,
    filled: frozenset[str] = frozenset(),
    proofs: frozenset[str] | None = None,
) -> _Plan:
    """The plan for one target and one source. The target's own headers may set `Host`, but nothing of the framing.

    `filled` are the names of its headers that are templates. `proofs` are the source's headers that prove a body, None
    where the body leaves as it came.
    """
    own = tuple(
        (name, value) for name, value in headers if not _is_never_forwarded(name.lower()) or name.lower() == "host"
    )
    blocked = strip | {name.lower() for name, _ in own} | filled
    if key_header is not None and key_header not in forward:
        blocked |= {key_header}

    named = frozenset(name.lower() for name, _ in own) | filled
    return _Plan(
        passage=_passage(forward, frozenset(blocked), proofs),
        own=own,
        user_agent=() if "user-agent" in named | forward else (("User-Agent", user_agent),),
        webhook_id="webhook-id" not in blocked,
    )


@lru_cache(maxsize=1024)
def _passage(forward: frozenset[str], blocked: frozenset[str], proofs: frozenset[str] | None) -> "_Passage":
    """One for all targets that let the same through."""

    @lru_cache(maxsize=512)
    def fate(name: str) -> _Fate:
        low = name.lower()
        if _NAME.fullmatch(name) is None:
            return _Fate.NO_NAME
        if low == "connection":
            return _Fate.CONNECTION
        if _is_never_forwarded(low) or low in blocked or (_is_withheld(low) and low not in forward):
            return _Fate.LEAVE
        if proofs is not None and (low in _ALWAYS_OURS or (low not in forward and is_of_the_body(low, proofs))):
            return _Fate.LEAVE
        return _Fate.NAMES_CALL if low in _CALL_NAMES else _Fate.PASS

    return _Passage(fate)


def storable_headers(
    headers: Headers, *, key_header: str | None, forwarded: frozenset[str], keys: Collection[str] = ()
) -> Headers:
    """What is stored of a request's headers: all as received but credentials that no target is to get.

    `key_header` is the source's own key header, `forwarded` what any target names in `forward_headers`, lower case;
    `keys` are the source's own, which some senders repeat elsewhere.
    """
    dropped = _dropped(key_header, forwarded)
    kept = tuple([header for header in headers if header[0].lower() not in dropped])
    if not keys or not _holds_any("\n".join([value for _, value in kept]), keys):
        return kept
    return tuple(one for one in kept if one[0].lower() in forwarded or not _holds_any(one[1], keys))


@lru_cache(maxsize=256)
def _dropped(key_header: str | None, forwarded: frozenset[str]) -> frozenset[str]:
    return NEVER_KEPT - forwarded if key_header is None else (NEVER_KEPT | {key_header}) - forwarded


def _holds_any(text: str, keys: Collection[str]) -> bool:
    for key in keys:  # noqa: SIM110 - `any` over a generator takes three times as long for the one key there is
        if key in text:
            return True
    return False


def incoming_hops(headers: Headers) -> int | None:
    """How many relays a request passed: its highest `relay-hops`, 0 without one, None if one is no number."""
    values = [value.strip() for name, value in headers if name.lower() == "relay-hops"]
    if not values:
        return 0
    if any(_DIGITS.fullmatch(value) is None for value in values):
        return None
    return max(int(value) if len(value) < 10 else MOST_HOPS + 1 for value in values)


@lru_cache(maxsize=1024)
def rfc3339(at: datetime) -> str:
    """A time as headers, logs and the API show it: UTC, milliseconds, `Z` (RFC 3339)."""
    at = at if at.tzinfo is UTC else at.astimezone(UTC)
    return at.isoformat(timespec="milliseconds")[:-6] + "Z"


def header_text(text: str) -> str:
    """Text as a header value that survives the wire: control, non-ASCII and `%` are percent-encoded as UTF-8."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    return quote(text, safe=_PLAIN_ASCII, errors="surrogatepass")


class _Passage:
    """What passes of a provider's headers. An event goes to several targets, so the last answer is kept."""

    def __init__(self, fate: Callable[[str], _Fate]) -> None:
        self._fate = fate
        self._last: tuple[Headers, tuple[Headers, tuple[str, ...], bool]] = ((), ((), (), False))

    def of(self, headers: Headers) -> tuple[Headers, tuple[str, ...], bool]:
        """What a target gets, what could not be sent, and whether the provider named its call."""
        known, passing = self._last
        if headers is not known:
            passing = _from_provider(headers, self._fate)
            self._last = headers, passing
        return passing


def _from_provider(headers: Headers, fate_of: Callable[[str], _Fate]) -> tuple[Headers, tuple[str, ...], bool]:
    kept: list[tuple[str, str]] = []
    dropped: list[str] = []
    listed: set[str] = set()
    named = False
    passes, leave = _Fate.PASS, _Fate.LEAVE  # an enum's members are slow to look up
    for header in headers:
        name, value = header
        fate = fate_of(name)
        if fate is leave:
            continue
        if fate is not passes:
            if fate is _Fate.CONNECTION:
                listed.update(option.strip().lower() for option in value.split(","))
                continue
            named = named or fate is _Fate.NAMES_CALL
        if fate is not _Fate.NO_NAME and (value.isprintable() or _UNSENDABLE.search(value) is None):
            kept.append(header)
        else:
            dropped.append(name)
    if listed:
        kept = [header for header in kept if header[0].lower() not in listed]
    return tuple(kept), tuple(dropped), named


def outgoing_headers(
    event: Event,
    target: Target,
    *,
    attempt: int,
    user_agent: str,
    key_header: str | None = None,
    replayed: bool = False,
    shape: Shaped | None = None,
    proof_headers: frozenset[str] = frozenset(),
) -> tuple[Headers, tuple[str, ...]]:
    """The headers of one attempt, and the names of those that could not be sent.

    In order: the provider's that may pass, the target's own (which win over the provider's of the same name), ours.
    `key_header` is the source's shared-key header in lower case: it is stored as soon as one target asks for it, and
    this keeps it from the others. `webhook-id` is ours only where the provider named its call by no header of its own.
    `shape` is what was made of the event; with another body, what proves the provider's stays behind: `proof_headers`,
    lower case, and whatever is named like one.
    """
    own_way = () if shape is None else _of(shape, proof_headers)
    plan = _plan(target.forward_headers, target.strip_headers, target.headers, user_agent, key_header, *own_way)
    before, after, dropped = _halves(event, plan, shape)
    out = (*before, ("relay-attempt", str(attempt)), *after)
    return (*out, _REPLAY) if replayed else out, dropped


def outgoing_lines(
    event: Event,
    target: Target,
    *,
    attempt: int,
    user_agent: str,
    key_header: str | None = None,
    replayed: bool = False,
) -> tuple[str, int, tuple[str, ...]]:
    """The same headers as `outgoing_headers` gives without a shape, as the lines that go over the wire: their text, how
    many they are, and the names of those that could not be sent."""
    plan = _plan(target.forward_headers, target.strip_headers, target.headers, user_agent, key_header)
    lines = plan.known.get(event.id)
    if lines is None or lines.headers is not event.headers or lines.received_at is not event.received_at:
        lines = _lines(event, plan)
        if len(plan.known) >= MOST_KNOWN:
            plan.known.clear()
        if len(lines.before) <= LONGEST_KNOWN:
            plan.known[event.id] = lines
    text = f"{lines.before}relay-attempt: {attempt}\r\n{lines.after}"
    return (
        (text + as_lines((_REPLAY,)), lines.many + 1, lines.dropped) if replayed else (text, lines.many, lines.dropped)
    )


def _lines(event: Event, plan: _Plan) -> _Lines:
    before, after, dropped = _halves(event, plan, None)
    many = len(before) + 1 + len(after)
    return _Lines(as_lines(before), as_lines(after), many, dropped, event.headers, event.received_at)


def as_lines(headers: Iterable[tuple[str, str]]) -> str:
    """Headers as they stand in a message (RFC 9112, section 5); whoever sends them sees that none breaks it."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def _halves(
    event: Event, plan: _Plan, shape: Shaped | None
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], tuple[str, ...]]:
    """What stands before the number of the attempt, what stands behind it, and the names of what could not be sent."""
    kept, dropped, named = plan.passage.of(event.headers)
    out = [*kept, *plan.own]
    if shape is not None:
        out += shape.headers
        if shape.content_type is not None and all(name.lower() != "content-type" for name, _ in out):
            out.append(("Content-Type", shape.content_type))
    out += plan.user_agent
    out += (
        ("relay-event-id", event.id),
        ("relay-source", event.source),
        ("relay-event-type", header_text(event.type)),
    )
    after = [("relay-received-at", rfc3339(event.received_at)), ("relay-hops", str(event.hops + 1))]
    if not event.verified:
        after.append(("relay-verified", "false"))
    if plan.webhook_id and not named:
        after.append(("webhook-id", event.id))
    return out, after, dropped


def _of(shape: Shaped, proof_headers: frozenset[str]) -> tuple[frozenset[str], frozenset[str] | None]:
    """What a shape means for a plan: the names it fills, and which proofs stay behind."""
    return frozenset(name.lower() for name, _ in shape.headers), proof_headers if shape.is_changed else None
