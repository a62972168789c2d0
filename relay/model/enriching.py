"""What is fetched for an event before it is delivered: who is asked, and how.

Law: an enricher is described by data. What a provider's own API has beyond that stands with the provider.
"""

from dataclasses import dataclass, field
from datetime import timedelta

from relay.model.receiving import Headers, Lookup


@dataclass(frozen=True, slots=True)
class Enricher:
    """Who is asked for more of an event. With a `lookup` the `url` is the API's base and the lookup says the rest; else
    `url`, `headers` and `body` are templates."""

    name: str
    url: str = field(repr=False)
    method: str = "GET"
    headers: Headers = field(default=(), repr=False)
    body: str | None = field(default=None, repr=False)
    timeout: timedelta = timedelta(seconds=10)
    take: str | None = None
    drop: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    lookup: Lookup | None = None
