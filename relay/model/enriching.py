"""What is fetched for an event before it is delivered: who is asked, and how.

Law: an enricher is described by data. What a provider's own API has beyond that stands with the provider.
"""

from dataclasses import dataclass, field
from datetime import timedelta

from relay.model.credentials import Auth
from relay.model.delivering import Target
from relay.model.receiving import Headers, Lookup
from relay.model.shaping import TemplateBody


@dataclass(frozen=True, slots=True)
class Enricher:
    """Who is asked for more of an event. With a `lookup` the `url` is the API's base and the lookup says the rest."""

    name: str
    url: str = field(repr=False)
    """Where a template begins with `url_template`, what stands before its first tag."""
    url_template: str | None = field(default=None, repr=False)
    method: str = "GET"
    headers: Headers = field(default=(), repr=False)
    header_templates: Headers = field(default=(), repr=False)
    body: TemplateBody | None = None
    auth: Auth | None = None
    timeout: timedelta = timedelta(seconds=10)
    take: str | None = None
    """What counts of an answer, JMESPath; None is all of it."""
    drop: tuple[str, ...] = ()
    """Paths of what is not stored."""
    include: tuple[str, ...] = ()
    lookup: Lookup | None = None

    @property
    def as_target(self) -> Target:
        """It as something that requests are sent to: its secrets stand in the same places."""
        return Target(
            self.name,
            self.url,
            self.headers,
            url_template=self.url_template,
            header_templates=self.header_templates,
            body=self.body,
            auth=self.auth,
        )
