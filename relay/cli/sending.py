"""The verb that plays a provider: `send`.

Law: what is posted is signed by the very rule that the relay's check is made of, with the source's first secret, so a
refusal means that the relay has another config, not that this verb guessed.
"""

import contextlib
import http.client
import json
import secrets
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from relay.cli import webhooks
from relay.cli.configs import config_option, loaded
from relay.cli.endpoints import endpoint
from relay.cli.locating import reachable
from relay.cli.terminal import Failure, plural, safe
from relay.config import Config, TlsFiles
from relay.model import Headers, NoCheck, Source
from relay.providers import PROVIDERS
from relay.rules.signing import octets, sign

TIMEOUT = 30.0
"""Seconds."""
LARGEST_ANSWER = 64 * 1024

_HINTS = {
    401: "the relay does not believe it: does it run with this config? its log has the reason (request.refused)",
    403: "the source's allow_ips do not name this machine",
    404: "the relay has no such path: does it run with this config?",
    413: "larger than server.max_body",
    429: "over the source's rate",
    503: "the relay cannot store it now: `relay health --ready` says why",
}


@click.command()
@click.argument("source")
@click.option(
    "--data", metavar="@FILE|-|TEXT", callback=webhooks.data, help="The body, sent byte for byte. Else a fresh sample."
)
@click.option(
    "--header", "headers", metavar="'NAME: VALUE'", multiple=True, callback=webhooks.headers, help="Add or replace one."
)
@click.option("--url", help="Where to post. Else the config's server.listen.")
@click.option("--count", type=click.IntRange(1, 100_000), default=1, help="How many, one after another.")
@config_option
def send(
    source: str, *, data: bytes | None, headers: Headers, url: str | None, count: int, config: Path | None
) -> None:
    """Sign a sample as the provider of SOURCE would, with its first secret, and post it.

    Exit code 0 when every answer was 2xx, else 1.
    """
    whole = loaded(config)
    found = webhooks.source_named(source, whole.sources)
    post = _Post(url or _url(whole), found, tls=whole.server.tls if url is None else None)
    refused = 0
    for serial in range(count):
        now = datetime.now(UTC)
        body = sample(found, now, serial) if data is None else data
        status, answer = post(body, _merged(_signed(found, body, now, serial), headers))
        click.echo(f"{click.style(str(status), fg='green' if status < 300 else 'red')} {safe(answer)}")
        refused += not 200 <= status < 300
        if status in _HINTS and refused == 1:
            click.echo(f"relay: {_HINTS[status]}", err=True)
    if refused and count > 1:
        raise Failure(f"{refused} of {plural(count, 'request')} were refused")
    if refused:
        raise click.exceptions.Exit(1)


def sample(source: Source, now: datetime, serial: int) -> bytes:
    """A genuine body of the source's provider; for a custom source, a small JSON object with an id and a type."""
    provider = PROVIDERS.get(source.provider)
    if provider is not None:
        return provider.sample.body(now, serial)
    body = {"id": f"sample_{secrets.token_hex(8)}", "type": "sample", "created_at": now.isoformat(timespec="seconds")}
    return json.dumps(body).encode()


def _signed(source: Source, body: bytes, now: datetime, serial: int) -> Headers:
    """The headers with which the provider itself would send the body; of a body of the user's own, as of the sample."""
    provider = PROVIDERS.get(source.provider)
    own = provider.sample.sent(now, serial) if provider is not None else (("Content-Type", "application/json"),)
    return (*own, *sign(source.check, body, now=now, message_id=f"msg_{secrets.token_hex(12)}"))


def _merged(own: Headers, given: Headers) -> Headers:
    """The provider's headers, but for those that the user gives."""
    replaced = {name.lower() for name, _ in given}
    return (*(header for header in own if header[0].lower() not in replaced), *given)


def _url(config: Config) -> str:
    listen = config.server.listen
    if listen.port == 0:
        raise Failure(f"server.listen in {config.path} takes any free port; say which it is with --url")
    return f"{'https' if config.server.tls else 'http'}://{reachable(listen)}"


class _Post:
    """Posts to one address, over one connection where the relay keeps it."""

    def __init__(self, url: str, source: Source, *, tls: TlsFiles | None) -> None:
        to = endpoint(url, said_by="--url")
        self._base = to.base
        self._target = (to.path if to.path.strip("/") else source.path) + (f"?{to.query}" if to.query else "")
        self._connection: http.client.HTTPConnection
        if to.scheme == "https":
            context = ssl.create_default_context() if tls is None else _trusting(tls)
            self._connection = http.client.HTTPSConnection(to.host, to.port, timeout=TIMEOUT, context=context)
        else:
            self._connection = http.client.HTTPConnection(to.host, to.port, timeout=TIMEOUT)
        if isinstance(source.check, NoCheck):
            click.echo(f"relay: {source.name} proves nothing, so nothing is signed", err=True)

    def __call__(self, body: bytes, headers: Headers) -> tuple[int, str]:
        """Status and text of the answer. Raises `Failure` where there is none."""
        began = time.monotonic()
        try:
            self._connection.putrequest("POST", self._target, skip_accept_encoding=True)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self._connection.putheader(name, octets(value))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._connection.endheaders(body)  # a body that is too large is refused before all of it is sent
            response = self._connection.getresponse()
            return response.status, response.read(LARGEST_ANSWER).decode("utf-8", "replace")
        except ConnectionRefusedError:
            raise Failure(f"nobody listens at {self._base}: start the relay with `relay run`, or give --url") from None
        except TimeoutError:
            raise Failure(f"{self._base} did not answer within {time.monotonic() - began:.0f} s") from None
        except ssl.SSLError as error:
            raise Failure(
                f"TLS with {self._base} failed: {(error.reason or 'handshake').replace('_', ' ').lower()}"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Failure(f"no answer from {self._base}: {getattr(error, 'strerror', None) or error}") from None


def _trusting(files: TlsFiles) -> ssl.SSLContext:
    """A client that believes the config's own certificate and no other; the address need not stand in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(files.cert)
    return context
