"""The sections of what goes out: targets and routes."""

from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from relay.config import templates, values
from relay.config.access import AuthSection, ClientTlsSection, ProxySection, SignSection
from relay.config.fields import (
    Condition,
    Fetching,
    Flag,
    HeaderNames,
    Marked,
    MatchedValue,
    OneOrMore,
    Parsed,
    RateLimit,
    SecretValue,
    Section,
    Statuses,
    Text,
    Texts,
    Timeout,
    Wait,
    one_of,
    setting,
    whole,
)
from relay.config.problems import Refused
from relay.config.templates import BodySection, Written
from relay.model import BodyFormat
from relay.providers import PROVIDERS

LOOKED_UP = tuple(name for name, one in sorted(PROVIDERS.items()) if one.lookup is not None)
"""Providers whose API is known."""
_NEVER_OR_COUNT = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 1000}, {"const": "never"}]}

_FORMATS = one_of(tuple(BodyFormat), what="format").schema


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


class RetrySection(Section):
    """When a delivery is tried again."""

    schedule: Annotated[list[Wait], OneOrMore()] = setting(
        default=["5s", "30s", "2m", "10m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"],
        max_length=100,
        description="Waits between tries; n waits are n + 1 tries, [] is a single one",
    )


class ProbeSection(Section):
    """When one held delivery of a disabled target is tried."""

    first: Wait = setting(default="1m", description="First wait; doubled after each failure")
    max: Wait = setting(default="15m", description="Longest wait")


class TargetSection(Section):
    """A downstream URL with its policy."""

    url: Annotated[Written, Parsed(templates.url)] = setting(
        description="Absolute http or https URL; templates may stand in its path and query"
    )
    headers: dict[str, Annotated[Written, Parsed(templates.header)]] = setting(
        default={}, description="Headers added to each request; values may be templates"
    )
    body: Annotated[BodySection | None, BeforeValidator(templates.body_mapping)] = setting(
        default=None,
        validate_default=False,
        description="What is sent: raw is the bytes as they came, the default where nothing was fetched",
        json_schema_extra={"x-word": "raw"},
    )
    format: Annotated[BodyFormat | None, Parsed(templates.format_of, _FORMATS)] = setting(
        default=None, validate_default=False, description="How a body from template or pick is encoded"
    )
    timeout: Timeout = setting(default="15s", description="For a whole attempt, 100ms to 10m")
    concurrency: Annotated[int, whole(1, 1024)] = setting(default=8, description="Attempts at a time")
    retry: RetrySection = setting(default_factory=RetrySection, description="When a delivery is tried again")
    disable_after: Annotated[int | None, Parsed(_disable_after, _NEVER_OR_COUNT)] = setting(
        default=3, description="Counted failures that disable the target, or never"
    )
    probe: Annotated[ProbeSection | None, BeforeValidator(_probe)] = setting(
        default_factory=ProbeSection,
        validate_default=False,
        description="Tries at a disabled target, or never",
        json_schema_extra={"x-word": "never"},
    )
    success: Statuses | None = setting(default=None, description="Statuses that mean delivered; every 2xx by default")
    refusals: Statuses = setting(default=[400, 413, 415, 422], description="Statuses that refuse one event alone")
    forward_headers: HeaderNames = setting(
        default=[], description="Received headers to send on that are left out by default"
    )
    strip_headers: HeaderNames = setting(default=[], description="Received headers to leave out")
    rate: RateLimit | None = setting(
        default=None, description="Requests of all kinds in a span, 1/s or 150/5m; the others wait"
    )
    limit_group: Marked | None = setting(default=None, description="Targets of one group share one rate")
    ordered: Flag = setting(default=False, description="One at a time, by arrival; a failing event holds back the rest")
    auth: AuthSection | None = setting(default=None, description="How a request proves that it is ours")
    sign: SignSection | None = setting(default=None, description="Standard Webhooks over what is sent")
    tls: ClientTlsSection | None = setting(default=None, description="Whom to trust, and the certificate to show")
    proxy: ProxySection | None = setting(default=None, description="HTTP proxy, http://HOST:PORT")
    success_when: Marked | None = setting(
        default=None, description="JMESPath on a JSON answer that must hold before it means delivered"
    )


class EnricherSection(Section):
    """Who is asked for more of an event before it is delivered."""

    provider: Annotated[str, one_of(LOOKED_UP, what="provider")] | None = setting(
        default=None, description="Whose own API is asked; it knows the URL, the headers and what is asked"
    )
    token: SecretValue | None = setting(default=None, description="provider: the token for its API")
    base_url: Text | None = setting(default=None, description="provider: where its API is, where that is elsewhere")
    include: Texts = setting(default=[], description="plugandpay: what is included with the object")
    url: Annotated[Written | None, Parsed(templates.url)] = setting(
        default=None,
        validate_default=False,
        description="Absolute http or https URL; templates may stand in its path and query",
    )
    method: Annotated[str, one_of(("GET", "POST"), what="method")] = setting(default="GET", description="GET or POST")
    headers: dict[str, Annotated[Written, Parsed(templates.header)]] = setting(
        default={}, description="Headers of each request; values may be templates"
    )
    body: Annotated[Written | None, Parsed(templates.template_of)] = setting(
        default=None, validate_default=False, description="POST: a template, filled with the event"
    )
    auth: AuthSection | None = setting(default=None, description="How a request proves that it is ours")
    timeout: Fetching = setting(default="10s", description="For a whole fetch, 100ms to 30s")
    take: Annotated[str | None, Parsed(templates.expression)] = setting(
        default=None, validate_default=False, description="JMESPath of what counts in the answer; all of it by default"
    )
    drop: Texts = setting(default=[], description="JMESPath of what is removed before it is stored")


class MatchSection(Section):
    """Which events a route takes."""

    type: Texts | None = setting(default=None, description="Globs on the event type; any may match")
    headers: dict[str, MatchedValue] = setting(
        default={}, description="Headers and what they must say, each exactly; all must hold"
    )


class DestinationSection(Section):
    """A target of a route, with a condition of its own."""

    target: Marked = setting(description="Name of a target")
    when: Condition | None = setting(default=None, description="JMESPath on the event; goes there where that holds")


class NameAlone:
    """A destination in whose place the mere name of a target may stand."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(_destination, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


def _destination(value: Any, mapping: core_schema.ValidatorFunctionWrapHandler) -> Any:
    if value is None or isinstance(value, dict):
        return mapping(value)
    return DestinationSection.model_construct(target=values.marked(value), when=None)


class RouteSection(Section):
    """Which events of which sources go to which targets."""

    name: Marked = setting(description="Name of the route")
    sources: Annotated[list[Marked | None], OneOrMore()] = setting(alias="from", description="Names of sources")
    match: MatchSection | None = setting(default=None, description="What it takes; everything by default")
    enrich: Marked | None = setting(default=None, description="Name of an enricher, whose answer is `data`")
    when: Condition | None = setting(default=None, description="JMESPath on the event; takes it where that holds")
    targets: Annotated[list[Annotated[DestinationSection | None, NameAlone()]], OneOrMore()] = setting(
        alias="to", description="Names of targets, or {target: NAME, when: CONDITION}"
    )
