"""URLs on the command line: what a verb may talk to.

Law: a wrong one is a wrong command line, told before anything is sent. The standard library alone: `relay health` is
started every few seconds.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

import click


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The parts of an http or https URL; `path` is empty where none was written, else it begins with a slash."""

    scheme: str
    netloc: str
    host: str
    port: int | None
    path: str
    query: str

    @property
    def base(self) -> str:
        """Scheme, host and port as they were written."""
        return f"{self.scheme}://{self.netloc}"


def endpoint(url: str, *, said_by: str) -> Endpoint:
    """The parts of a URL; without a scheme it is taken as http.

    Raises:
        click.UsageError: it is none, in the words of who said it.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme in {"http", "https"} and parts.hostname and url.isprintable() and " " not in url:
            return Endpoint(parts.scheme, parts.netloc, parts.hostname, parts.port, parts.path, parts.query)
    except ValueError:
        pass
    raise click.UsageError(f"{said_by} is not a URL such as http://127.0.0.1:8081")
