"""The document's shape: every key that is built, its type, its default and its description.

Law: no key is accepted that does nothing. A key of the contract that is not built yet stands in `later` and is refused
by name. Defaults are written as the user would write them and pass the same parsers. The editor's JSON Schema is made
from these models, so it cannot drift from what is accepted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from relay.config import values
from relay.config.problems import Refused, kind
from relay.config.settings import Address
from relay.config.values import SecretText
from relay.model import IPNetwork, Rate, StatusSet
from relay.providers import PROVIDERS

CUSTOM = "custom"
SCHEMES = ("api_key", "hmac", "basic", "bearer", "standard_webhooks", "none")
PROVIDER_NAMES = (*sorted(PROVIDERS), CUSTOM)

JUDGED_ON = frozenset({"secrets", "routes", "from", "to"})
"""Lists in which None stands for an item that was refused already, so that the others are judged all the same."""

_REFERENCE = r"\$\{"
"""What a string of any type may be instead: a variable that is expanded later."""
_DAY = timedelta(days=1)


def _key(**settings: Any) -> Any:
    """A key; its default stands as the user would write it, so it has another type than the parsed value."""
    return Field(**settings)


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A value that `parse` reads whole; editors see `schema`."""

    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


class OneOrMore:
    """A list in whose place its only item may stand."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(_listed, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def _matching(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"{pattern}|{_REFERENCE}"}


def _one_of(known: tuple[str, ...], *, what: str) -> Parsed:
    schema = {"anyOf": [{"enum": list(known)}, {"type": "string", "pattern": _REFERENCE}]}
    return Parsed(partial(values.choice, known=known, what=what), schema)


def _span(low: timedelta, high: timedelta) -> Parsed:
    return Parsed(partial(values.duration, low=low, high=high), _matching(r"^[0-9]+(ms|s|m|h|d)$"))


def _whole(low: int, high: int) -> Parsed:
    whole = {"type": "integer", "minimum": low, "maximum": high}
    schema = {"anyOf": [whole, {"type": "string", "pattern": _REFERENCE}]}
    return Parsed(partial(values.integer, low=low, high=high), schema)


def _disable_after(value: Any) -> int | None:
    if value == "never":
        return None
    try:
        return values.integer(value, low=1, high=1000)
    except Refused:
        raise Refused("must be 1 or more (up to 1000), or never") from None


def _probe(value: Any) -> Any:
    if value == "never":
        return None
    if not isinstance(value, dict):
        raise Refused("must be a mapping {first: 1m, max: 15m}, or never")
    return value


def _verify(value: Any) -> Any:
    if isinstance(value, str):
        if values.scheme(value, known=SCHEMES) != "none":
            raise Refused(f"write a mapping: {{scheme: {value}, …}}")
        return {"scheme": "none"}
    if not isinstance(value, dict):
        raise Refused(f'must be a mapping {{scheme: …}} or "none", found {kind(value)}')
    return value


def _targets_of_route(value: Any) -> str:
    if isinstance(value, dict):
        raise Refused("a target with conditions (a mapping) is not built yet in this version; write its name")
    return values.name(value)


_STATUS = {"type": ["integer", "string"]}
_NEVER_OR_COUNT = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 1000}, {"const": "never"}]}

Text = Annotated[str, Parsed(values.text)]
SecretValue = Annotated[SecretText, Parsed(values.secret)]
Flag = Annotated[bool, Parsed(values.boolean, {"type": "boolean"})]
Listen = Annotated[Address, Parsed(values.address, _matching("^.+:[0-9]{1,5}$"))]
Size = Annotated[int, Parsed(partial(values.size, low=1, high=64 * 1024**2), _matching(f"^{values.SIZE.pattern}$"))]
StoreSize = Annotated[
    int, Parsed(partial(values.size, low=1024**2, high=1024**5), _matching(f"^{values.SIZE.pattern}$"))
]
HeaderName = Annotated[str, Parsed(values.header_name, _matching(f"^{values.HEADER_NAME.pattern}$"))]
HeaderValue = Annotated[str, Parsed(values.header_value)]
ListenPath = Annotated[str, Parsed(values.listen_path, _matching(f"^{values.PATH.pattern}$"))]
Networks = Annotated[list[Annotated[IPNetwork, Parsed(values.network)]], OneOrMore()]
Texts = Annotated[list[Text], OneOrMore()]
HeaderNames = Annotated[list[HeaderName], OneOrMore()]
Timeout = Annotated[timedelta, _span(timedelta(milliseconds=100), timedelta(minutes=10))]
Drain = Annotated[timedelta, _span(timedelta(0), timedelta(minutes=10))]
Kept = Annotated[timedelta, _span(timedelta(seconds=1), 3650 * _DAY)]
Wait = Annotated[timedelta, _span(timedelta(milliseconds=100), 30 * _DAY)]
Expected = Annotated[timedelta, _span(timedelta(minutes=1), 365 * _DAY)]
Tolerance = Annotated[timedelta, _span(timedelta(seconds=1), 7 * _DAY)]
RateLimit = Annotated[Rate, Parsed(values.rate, _matching(f"^{values.RATE.pattern}$"))]
Statuses = Annotated[StatusSet, Parsed(values.statuses, {"anyOf": [_STATUS, {"type": "array", "items": _STATUS}]})]
Policy = Annotated[Literal["private", "public"], _one_of(("private", "public"), what="policy")]
Level = Annotated[
    Literal["debug", "info", "warning", "error"], _one_of(("debug", "info", "warning", "error"), what="level")
]
Format = Annotated[Literal["auto", "json", "console"], _one_of(("auto", "json", "console"), what="format")]
Algorithm = Annotated[Literal["sha256", "sha512", "sha1"], _one_of(("sha256", "sha512", "sha1"), what="algorithm")]
Encoding = Annotated[Literal["hex", "base64"], _one_of(("hex", "base64"), what="encoding")]


class Section(BaseModel):
    """A mapping of the document; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)
    later: ClassVar[frozenset[str]] = frozenset()
    """Keys of the contract that are not built yet."""


class TlsSection(Section):
    """Serve HTTPS on the public listener."""

    cert: Text = _key(description="PEM file with the certificate and its chain")
    key: Text = _key(description="PEM file with the private key, unencrypted")


class ServerSection(Section):
    """The public listener: webhooks only."""

    listen: Listen = _key(default="0.0.0.0:8080", description="HOST:PORT; IPv6 in brackets")
    max_body: Size = _key(default="1MiB", description="Largest body that is accepted, 1B to 64MiB")
    trusted_proxies: Networks = _key(default=[], description="Networks whose X-Forwarded-For is believed")
    header_timeout: Timeout = _key(default="15s", description="Deadline for a request's headers")
    body_timeout: Timeout = _key(default="10s", description="Deadline for a request's body")
    drain_timeout: Drain = _key(default="20s", description="What attempts under way get when the process is stopped")
    tls: TlsSection | None = _key(default=None, description="Certificate and key; without it plain HTTP is served")


class AdminSection(Section):
    """The admin listener: health, metrics, API."""

    listen: Listen = _key(default="127.0.0.1:8081", description="HOST:PORT; never the public one")
    token: SecretValue | None = _key(
        default=None, description="Bearer token, 16 characters or more; must be set when not on loopback"
    )


class RetentionSection(Section):
    """How long ended deliveries are kept, and how much; nothing else deletes."""

    delivered: Kept = _key(default="7d", description="Events that every target has")
    dead: Kept = _key(default="30d", description="Events with a dead delivery")
    max_size: StoreSize = _key(
        default="8GiB", description="What the store may take; the oldest events that are done go first, 1MiB to 1PiB"
    )


class StoreSection(Section):
    """Where events are kept."""

    url: Text = _key(default="sqlite:///relay.db", description="sqlite:///relative.db or sqlite:////absolute.db")
    retention: RetentionSection = _key(default_factory=RetentionSection, description="How long events are kept")


class EgressSection(Section):
    """Which addresses targets may have; cloud metadata is closed always."""

    policy: Policy = _key(
        default="private", description="private: all but metadata and link-local; public: public addresses only"
    )
    allow: Networks = _key(default=[], description="Networks opened")
    deny: Networks = _key(default=[], description="Networks closed; wins over allow")


class LogSection(Section):
    """What is logged, and how."""

    level: Level = _key(default="info", description="Least level that is logged")
    format: Format = _key(default="auto", description="auto: console on a terminal, JSON lines elsewhere")


class VerifySection(Section):
    """How a request is proven; with a named provider, what differs from the provider's own check."""

    scheme: Annotated[str, Parsed(partial(values.scheme, known=SCHEMES), {"enum": list(SCHEMES)})] | None = _key(
        default=None, description="Kind of proof; a named provider has its own"
    )
    header: HeaderName | None = _key(default=None, description="api_key, hmac: the header with the key or signature")
    username: Text | None = _key(default=None, description="basic: the user name; the secrets are its passwords")
    algorithm: Algorithm | None = _key(default=None, description="hmac: the digest; sha1 needs allow_weak")
    allow_weak: Flag = _key(default=False, description="hmac: accept sha1")
    encoding: Encoding | None = _key(default=None, description="hmac: how the digest is written; hex by default")
    prefix: Annotated[str, Parsed(values.prefix)] | None = _key(
        default=None, description='hmac: what stands before the digest, as "sha256="'
    )
    signed: Annotated[str, Parsed(values.template)] | None = _key(
        default=None, description='hmac: what is signed, of {body}, {timestamp}, {id}; "{body}" by default'
    )
    timestamp_header: HeaderName | None = _key(default=None, description="hmac: the header behind {timestamp}")
    id_header: HeaderName | None = _key(default=None, description="hmac: the header behind {id}")
    tolerance: Tolerance | None = _key(
        default=None, description="How far a signed time may lie from now; 5m by default"
    )


class RespondSection(Section):
    """The answer to an accepted request."""

    status: Annotated[int, _whole(200, 299)] = _key(default=200, description="Status of the answer, 200 to 299")


class SourceSection(Section):
    """Who may post to us, and how we prove it is them."""

    provider: Annotated[str, _one_of(PROVIDER_NAMES, what="provider")] = _key(
        description="A known sender, or custom with verify"
    )
    secrets: Annotated[list[SecretValue | None], OneOrMore()] = _key(
        default=[], description="Keys that prove a request; several while rotating"
    )
    verify: Annotated[VerifySection, BeforeValidator(_verify)] | None = _key(
        default=None, description='How a request is proven, or "none"', json_schema_extra={"x-word": "none"}
    )
    enforce: Flag = _key(default=True, description="false: verify, log and count, but let everything through")
    path: ListenPath | None = _key(default=None, description="Path to receive on; /hooks/NAME by default")
    allow_ips: Networks = _key(default=[], description="Networks that may post; all by default")
    rate: RateLimit | None = _key(default=None, description="Requests in a span, 100/s or 150/5m; beyond it 429")
    respond: RespondSection = _key(default_factory=RespondSection, description="The answer to an accepted request")
    expect_every: Expected | None = _key(
        default=None, description="A silence longer than this is told as source.silent, 1m to 365d"
    )
    event_type: Text | None = _key(default=None, description="JMESPath into the JSON body, or header:NAME")
    dedupe_key: Text | None = _key(default=None, description="JMESPath into the JSON body, or header:NAME")


class RetrySection(Section):
    """When a delivery is tried again."""

    schedule: Annotated[list[Wait], OneOrMore()] = _key(
        default=["5s", "30s", "2m", "10m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"],
        max_length=100,
        description="Waits between tries; n waits are n + 1 tries, [] is a single one",
    )


class ProbeSection(Section):
    """When one held delivery of a disabled target is tried."""

    first: Wait = _key(default="1m", description="First wait; doubled after each failure")
    max: Wait = _key(default="15m", description="Longest wait")


class TargetSection(Section):
    """A downstream URL with its policy."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"auth", "body", "format", "limit_group", "ordered", "proxy", "rate", "sign", "success_when", "tls"}
    )
    url: Text = _key(description="Absolute http or https URL")
    headers: dict[str, HeaderValue] = _key(default={}, description="Headers added to each request")
    timeout: Timeout = _key(default="15s", description="For a whole attempt, 100ms to 10m")
    concurrency: Annotated[int, _whole(1, 1024)] = _key(default=8, description="Attempts at a time")
    retry: RetrySection = _key(default_factory=RetrySection, description="When a delivery is tried again")
    disable_after: Annotated[int | None, Parsed(_disable_after, _NEVER_OR_COUNT)] = _key(
        default=3, description="Counted failures that disable the target, or never"
    )
    probe: Annotated[ProbeSection | None, BeforeValidator(_probe)] = _key(
        default_factory=ProbeSection,
        validate_default=False,
        description="Tries at a disabled target, or never",
        json_schema_extra={"x-word": "never"},
    )
    success: Statuses | None = _key(default=None, description="Statuses that mean delivered; every 2xx by default")
    refusals: Statuses = _key(default=[400, 413, 415, 422], description="Statuses that refuse one event alone")
    forward_headers: HeaderNames = _key(
        default=[], description="Received headers to send on that are left out by default"
    )
    strip_headers: HeaderNames = _key(default=[], description="Received headers to leave out")


class MatchSection(Section):
    """Which events a route takes."""

    later: ClassVar[frozenset[str]] = frozenset({"headers"})
    type: Texts = _key(description="Globs on the event type; any may match")


class RouteSection(Section):
    """Which events of which sources go to which targets."""

    later: ClassVar[frozenset[str]] = frozenset({"enrich", "when"})
    name: Text = _key(description="Name of the route")
    sources: Annotated[list[Annotated[str, Parsed(values.name)] | None], OneOrMore()] = _key(
        alias="from", description="Names of sources"
    )
    match: MatchSection | None = _key(default=None, description="What it takes; everything by default")
    targets: Annotated[list[Annotated[str, Parsed(_targets_of_route)] | None], OneOrMore()] = _key(
        alias="to", description="Names of targets"
    )


class DocumentSection(Section):
    """The configuration of Relay."""

    later: ClassVar[frozenset[str]] = frozenset({"enrichers"})
    server: ServerSection = _key(default_factory=ServerSection, description="The public listener")
    admin: AdminSection = _key(default_factory=AdminSection, description="The admin listener")
    store: StoreSection = _key(default_factory=StoreSection, description="Where events are kept")
    egress: EgressSection = _key(default_factory=EgressSection, description="Where requests may go")
    log: LogSection = _key(default_factory=LogSection, description="What is logged")
    sources: dict[str, SourceSection] = _key(default={}, description="Who may post to us, by name")
    targets: dict[str, TargetSection] = _key(default={}, description="Where events go, by name")
    routes: list[RouteSection | None] = _key(default=[], description="Which events go where")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document, for editors."""
    schema = _tidied(DocumentSection.model_json_schema(by_alias=True))
    names = {"pattern": f"^{values.NAME.pattern}$"}
    for key in ("sources", "targets"):
        schema["properties"][key] |= {"propertyNames": names, "minProperties": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://relay.invalid/config.schema.json",
        **schema,
        "title": "Relay configuration",
        "required": ["sources", "targets"],
    }


def _tidied(node: Any) -> Any:
    """Without pydantic's titles and nulls, and with the words that may stand in place of a mapping."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _tidied(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
    if "default" in kept and kept["default"] is None:
        del kept["default"]
    word = kept.pop("x-word", None)
    if "anyOf" in kept:
        choices = [choice for choice in kept.pop("anyOf") if choice != {"type": "null"}]
        choices += [{"const": word}] if word else []
        kept |= {"anyOf": choices} if len(choices) > 1 else choices[0]
    return kept
