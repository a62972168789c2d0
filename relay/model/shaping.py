"""What a target gets in place of the bytes that came in, and what came of making it.

Law: templates stand here as text in which everything from outside the YAML is literal; two shapes that were written
alike are equal, so that a reload can tell what has changed. No repr shows a text that may hold a secret.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Literal

from relay.model.receiving import Headers


class Fetched(Enum):
    """Stands in the place of data where there is none."""

    NOTHING = auto()
    """Nothing was fetched for the event; what was fetched and is null is None."""


class BodyFormat(StrEnum):
    """How a body that we make is encoded."""

    JSON = "json"
    FORM = "form"


@dataclass(frozen=True, slots=True)
class RawBody:
    """The bytes as they came, whatever was fetched."""


@dataclass(frozen=True, slots=True)
class TemplateBody:
    """A Jinja2 template filled with the event."""

    template: str = field(repr=False)
    outside: frozenset[str] = field(default=frozenset(), repr=False)
    """What of it came from outside the YAML: likely a secret."""


@dataclass(frozen=True, slots=True)
class PickBody:
    """What a JMESPath expression finds."""

    expression: str


PresetName = Literal["slack", "teams", "cloudevents"]


@dataclass(frozen=True, slots=True)
class PresetBody:
    """What a known receiver takes; `text` is a template, None says source and type."""

    preset: PresetName
    text: str | None = field(default=None, repr=False)


Body = RawBody | TemplateBody | PickBody | PresetBody


@dataclass(frozen=True, slots=True)
class Shaped:
    """What one request is made of."""

    body: bytes = field(repr=False)
    is_changed: bool = False
    """The body is not the provider's: neither are its type and its signature."""
    content_type: str | None = None
    """None is the provider's own."""
    url: str | None = field(default=None, repr=False)
    """None is the target's own."""
    headers: Headers = field(default=(), repr=False)
    """The target's own headers that were filled in; the plain ones are not among them."""


@dataclass(frozen=True, slots=True)
class Unshaped:
    """Nothing can be sent of this event. The reason is for people and holds nothing of the event."""

    reason: str
