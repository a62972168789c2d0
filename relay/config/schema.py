"""The document's shape: every key that is built, its type, its default and its description.

Law: no key is accepted that does nothing. A key of the contract that is not built yet stands in `later` and is refused
by name. Defaults are written as the user would write them and pass the same parsers. The editor's JSON Schema is made
from these models, so it cannot drift from what is accepted.
"""

from typing import Annotated, Any

from relay.config import values
from relay.config.downstream import EnricherSection, RouteSection, TargetSection
from relay.config.fields import (
    Drain,
    Format,
    Kept,
    Level,
    Listen,
    Marked,
    Networks,
    Policy,
    SecretValue,
    Section,
    Size,
    StoreSize,
    Timeout,
    setting,
    whole,
)
from relay.config.upstream import SourceSection

JUDGED_ON = frozenset({"secrets", "routes", "from", "to"})
"""Lists in which None stands for an item that was refused already, so that the others are judged all the same."""


class TlsSection(Section):
    """Serve HTTPS on the public listener."""

    cert: Marked = setting(description="PEM file with the certificate and its chain")
    key: Marked = setting(description="PEM file with the private key, unencrypted")


class ServerSection(Section):
    """The public listener: webhooks only."""

    listen: Listen = setting(default="0.0.0.0:8080", description="HOST:PORT; IPv6 in brackets")
    max_body: Size = setting(default="1MiB", description="Largest body that is accepted, 1B to 64MiB")
    trusted_proxies: Networks = setting(default=[], description="Networks whose X-Forwarded-For is believed")
    header_timeout: Timeout = setting(default="15s", description="Deadline for a request's headers")
    body_timeout: Timeout = setting(default="10s", description="Deadline for a request's body")
    drain_timeout: Drain = setting(default="20s", description="What attempts under way get when the process is stopped")
    max_connections: Annotated[int, whole(8, 100_000)] = setting(
        default=4096, description="Connections at a time; fewer where the process may open fewer files"
    )
    tls: TlsSection | None = setting(default=None, description="Certificate and key; without it plain HTTP is served")


class AdminSection(Section):
    """The admin listener: health, metrics, API."""

    listen: Listen = setting(default="127.0.0.1:8081", description="HOST:PORT; never the public one")
    token: SecretValue | None = setting(
        default=None, description="Bearer token, 16 characters or more; must be set when not on loopback"
    )


class RetentionSection(Section):
    """How long ended deliveries are kept, and how much; nothing else deletes."""

    delivered: Kept = setting(default="7d", description="Events that every target has")
    dead: Kept = setting(default="30d", description="Events with a dead delivery")
    max_size: StoreSize = setting(
        default="8GiB", description="What the store may take; the oldest events that are done go first, 1MiB to 1PiB"
    )


class StoreSection(Section):
    """Where events are kept."""

    url: Marked = setting(
        default="sqlite:///relay.db",
        description="sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database",
    )
    retention: RetentionSection = setting(default_factory=RetentionSection, description="How long events are kept")


class EgressSection(Section):
    """Which addresses targets may have; cloud metadata is closed always."""

    policy: Policy = setting(
        default="private", description="private: all but metadata and link-local; public: public addresses only"
    )
    allow: Networks = setting(default=[], description="Networks opened")
    deny: Networks = setting(default=[], description="Networks closed; wins over allow")


class LogSection(Section):
    """What is logged, and how."""

    level: Level = setting(default="info", description="Least level that is logged")
    format: Format = setting(default="auto", description="auto: console on a terminal, JSON lines elsewhere")


class DocumentSection(Section):
    """The configuration of Relay."""

    server: ServerSection = setting(default_factory=ServerSection, description="The public listener")
    admin: AdminSection = setting(default_factory=AdminSection, description="The admin listener")
    store: StoreSection = setting(default_factory=StoreSection, description="Where events are kept")
    egress: EgressSection = setting(default_factory=EgressSection, description="Where requests may go")
    log: LogSection = setting(default_factory=LogSection, description="What is logged")
    sources: dict[str, SourceSection] = setting(default={}, description="Who may post to us, by name")
    targets: dict[str, TargetSection] = setting(default={}, description="Where events go, by name")
    enrichers: dict[str, EnricherSection] = setting(
        default={}, description="Who is asked for more of an event, by name"
    )
    routes: list[RouteSection | None] = setting(default=[], description="Which events go where")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document, for editors."""
    schema = _tidied(DocumentSection.model_json_schema(by_alias=True))
    names = {"pattern": f"^{values.NAME.pattern}$"}
    for key in ("sources", "targets"):
        schema["properties"][key] |= {"propertyNames": names, "minProperties": 1}
    schema["properties"]["enrichers"] |= {"propertyNames": names}
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
