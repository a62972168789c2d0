"""The verbs that ask little and cost little: `health`, for a container's health check, and `version`.

Law: health is asked for every few seconds, so little is imported here, and it always ends within its timeout.
"""

import http.client
import json
import os
from pathlib import Path

import click

from relay import __version__
from relay.cli.endpoints import endpoint
from relay.cli.parameters import FilePath
from relay.cli.terminal import Failure, safe

TIMEOUT = 3.0
"""Seconds."""
LARGEST_ANSWER = 64 * 1024


@click.command()
@click.option("--admin", metavar="URL", help="The relay's admin address. Else $RELAY_ADMIN_URL, the config.")
@click.option("--config", metavar="FILE", type=FilePath(path_type=Path), help="The config to find it in.")
@click.option("--ready", is_flag=True, help="Ask whether it should get traffic, not just whether it is alive.")
def health(admin: str | None, config: Path | None, *, ready: bool) -> None:
    """Ask a running relay whether it is alive; exit code 0 if so, else 1."""
    url = admin or (os.environ.get("RELAY_ADMIN_URL") if config is None else None)
    if not url:
        from relay.cli.locating import admin_url  # noqa: PLC0415 - reads the config; not needed where the URL is given

        url, _ = admin_url(admin, config)
    status, answer = _asked(url, "/readyz" if ready else "/healthz")
    if status != 200:
        reasons = _told(answer, "reasons")
        shown = f": {safe(', '.join(map(str, reasons)))}" if isinstance(reasons, list) else ""
        raise Failure(f"{url} answered {status}{shown}")
    if _told(answer, "status") != ("ready" if ready else "ok"):
        raise Failure(f"what answers at {url} is not a relay's admin API")
    click.echo("ready" if ready else "alive")


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"relay {__version__}")


def _asked(base: str, path: str) -> tuple[int, bytes]:
    """Status and body of one GET."""
    to = endpoint(base, said_by="the admin address")
    connect = http.client.HTTPSConnection if to.scheme == "https" else http.client.HTTPConnection
    connection = connect(to.host, to.port, timeout=TIMEOUT)
    try:
        connection.request("GET", to.path.rstrip("/") + path)
        response = connection.getresponse()
        return response.status, response.read(LARGEST_ANSWER)
    except TimeoutError:
        raise Failure(f"{base} did not answer within {TIMEOUT:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise Failure(
            f"no relay answers at {base}: {getattr(error, 'strerror', None) or type(error).__name__}"
        ) from None


def _told(answer: bytes, key: str) -> object:
    """A value of a relay's answer, None where there is none."""
    try:
        return json.loads(answer)[key]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
