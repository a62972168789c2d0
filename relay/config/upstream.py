"""The sections of what comes in: sources, and how their requests are proven."""

from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator

from relay.config import values
from relay.config.fields import (
    Expected,
    Flag,
    ListenPath,
    Marked,
    Networks,
    OneOrMore,
    Parsed,
    RateLimit,
    SecretValue,
    Section,
    Text,
    Tolerance,
    one_of,
    setting,
    whole,
)
from relay.config.hmacs import HmacKeys
from relay.config.problems import Refused, kind
from relay.providers import PROVIDERS

CUSTOM = "custom"
SCHEMES = ("api_key", "hmac", "basic", "bearer", "standard_webhooks", "none")
PROVIDER_NAMES = (*sorted(PROVIDERS), CUSTOM)


def _verify(value: Any) -> Any:
    if isinstance(value, str):
        if values.scheme(value, known=SCHEMES) != "none":
            raise Refused(f"write a mapping: {{scheme: {value}, …}}")
        return {"scheme": "none"}
    if not isinstance(value, dict):
        raise Refused(f'must be a mapping {{scheme: …}} or "none", found {kind(value)}')
    return value


class VerifySection(HmacKeys):
    """How a request is proven; with a named provider, what differs from the provider's own check."""

    scheme: Annotated[str, Parsed(partial(values.scheme, known=SCHEMES), {"enum": list(SCHEMES)})] | None = setting(
        default=None, description="Kind of proof; a named provider has its own"
    )
    username: Text | None = setting(default=None, description="basic: the user name; the secrets are its passwords")
    tolerance: Tolerance | None = setting(
        default=None, description="How far a signed time may lie from now; 5m by default"
    )


class RespondSection(Section):
    """The answer to an accepted request."""

    status: Annotated[int, whole(200, 299)] = setting(default=200, description="Status of the answer, 200 to 299")


class SourceSection(Section):
    """Who may post to us, and how we prove it is them."""

    provider: Annotated[str, one_of(PROVIDER_NAMES, what="provider")] = setting(
        description="A known sender, or custom with verify"
    )
    secrets: Annotated[list[SecretValue | None], OneOrMore()] = setting(
        default=[], description="Keys that prove a request; several while rotating"
    )
    verify: Annotated[VerifySection, BeforeValidator(_verify)] | None = setting(
        default=None, description='How a request is proven, or "none"', json_schema_extra={"x-word": "none"}
    )
    enforce: Flag = setting(default=True, description="false: verify, log and count, but let everything through")
    path: ListenPath | None = setting(default=None, description="Path to receive on; /hooks/NAME by default")
    allow_ips: Networks = setting(default=[], description="Networks that may post; all by default")
    rate: RateLimit | None = setting(default=None, description="Requests in a span, 100/s or 150/5m; beyond it 429")
    respond: RespondSection = setting(default_factory=RespondSection, description="The answer to an accepted request")
    expect_every: Expected | None = setting(
        default=None, description="A silence longer than this is told as source.silent, 1m to 365d"
    )
    event_type: Marked | None = setting(default=None, description="JMESPath into the JSON body, or header:NAME")
    dedupe_key: Marked | None = setting(default=None, description="JMESPath into the JSON body, or header:NAME")
