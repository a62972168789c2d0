"""How a verb reaches the admin API of a running relay.

Law: a call that was not answered is told as what it is (nobody there, no token, not a relay), with the way out. Only a
connection that was never made is tried again, so nothing is asked for twice.
"""

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import click
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from relay.cli.configs import admin_value
from relay.cli.locating import admin_url, config_path
from relay.cli.parameters import FilePath, refuse_undecodable
from relay.cli.terminal import Failure, Refused, Unanswered, safe
from relay.config import keys, values

CONNECTS = 3
CONNECT_PAUSE = timedelta(seconds=0.3)
"""Between two tries to connect: a relay that is just starting is reached."""
ANSWER = timedelta(seconds=10)
LONGEST_SILENCE = timedelta(minutes=30)
"""Before the first byte of a download: what is fetched is made first."""
PART = 256 * 1024
LARGEST_PROBLEM = 64 * 1024

STREAM_TYPE = "text/event-stream"

_KEY = "relay.cli.calling."

Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Access:
    """Where the admin API is, who said so, and the token for it."""

    url: str
    said_by: str
    token: str | None = field(default=None, repr=False)


class NoConnection(Exception):
    """No connection could be made; nothing was asked."""


class Unready(Refused):
    """There is a relay, but it does not answer this call now."""


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Keep an option for all contexts, so that it may stand before or behind the verb's second word."""
    if value is not None:
        ctx.meta[_KEY + str(parameter.name)] = value
    return value


def remembered(ctx: click.Context, name: str) -> Any:
    """An option as it was given last, None where it was not."""
    return ctx.meta.get(_KEY + name)


def remembered_option(*declaration: str, **settings: Any) -> Callable[[Wrapped], Wrapped]:
    """An option that is read with `remembered`."""
    return click.option(*declaration, callback=_remember, expose_value=False, **settings)


def admin_options(function: Wrapped) -> Wrapped:
    """The options with which a running relay is found."""
    options = (
        remembered_option(
            "--admin", metavar="URL", help="The relay's admin address. Else $RELAY_ADMIN_URL, the config."
        ),
        remembered_option("--token", metavar="TOKEN", help="Its token. Else $RELAY_ADMIN_TOKEN, the config."),
        remembered_option(
            "--config", metavar="FILE", type=FilePath(path_type=Path), help="The config to find both in."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def output_option(function: Wrapped) -> Wrapped:
    """The options of a verb that shows something: where the relay is, and for whom it is printed. They may stand before
    or behind its second word."""
    output = remembered_option(
        "--output", type=click.Choice(["table", "json"]), help="json: one object a line, for programs."
    )
    return admin_options(output(function))


def for_programs(ctx: click.Context) -> bool:
    """Whether JSON is wanted."""
    return bool(remembered(ctx, "output") == "json")


def access(ctx: click.Context) -> Access:
    """What the options, the environment and the config say about the relay to talk to, once all that it is to be asked
    for is text."""
    refuse_undecodable(ctx)
    config: Path | None = remembered(ctx, "config")
    url, said_by = admin_url(remembered(ctx, "admin"), config)
    token = remembered(ctx, "token") or os.environ.get("RELAY_ADMIN_TOKEN")
    if not token and (path := config_path(config)) is not None:
        secret = admin_value(path, "token", lambda value: keys.admin_token(values.secret(value)))
        token = secret.value.decode() if secret is not None else None
    if token and not (token.isascii() and token.isprintable()):
        raise click.UsageError("the token holds characters that a header cannot carry")
    return Access(url, said_by, token or None)


def call(to: Access, method: str, path: str, *, body: object = None, patience: timedelta = ANSWER) -> Any:
    """Make one call and return what it answered.

    Args:
        to: the relay.
        path: below the admin address.
        body: sent as JSON, unless None.
        patience: how long the answer may take once the connection stands.

    Raises:
        Refused: the relay would not; the words are its own.
        Unanswered: nobody is there, or does not answer.
        Failure: there is no such answer for another reason; the message says why and what to do.
    """
    return asyncio.run(_call(to, method, path, body, patience))


def download(to: Access, path: str, take: Callable[[bytes, int], None]) -> int:
    """Fetch a file in parts; each goes to `take` with the length of the whole. Returns that length.

    Raises:
        Failure: there is no such answer, or it was cut short.
    """
    return asyncio.run(_download(to, path, take))


async def _call(to: Access, method: str, path: str, body: object, patience: timedelta) -> Any:
    timeout = aiohttp.ClientTimeout(total=patience.total_seconds(), sock_connect=3)
    async with session(to, timeout) as opened, in_words(to, patience):
        return await first_tries()(_ask, opened, method, to, path, body)


async def _download(to: Access, path: str, take: Callable[[bytes, int], None]) -> int:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=LONGEST_SILENCE.total_seconds())
    async with session(to, timeout) as opened, in_words(to, LONGEST_SILENCE):
        length: int = await first_tries()(_fetch, opened, to, path, take)
        return length


def session(to: Access, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A client of the admin API."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {to.token}"} if to.token else {})
    return aiohttp.ClientSession(headers=headers, timeout=timeout)


def first_tries() -> AsyncRetrying:
    """How often it is tried to reach a relay of which nothing was heard yet."""
    return AsyncRetrying(
        stop=stop_after_attempt(CONNECTS),
        wait=wait_fixed(CONNECT_PAUSE.total_seconds()),
        retry=retry_if_exception_type(NoConnection),
        reraise=True,
    )


@contextlib.asynccontextmanager
async def in_words(to: Access, patience: timedelta) -> AsyncIterator[None]:
    """Whatever bars an answer becomes an `Unanswered` that says why and what to do."""
    try:
        yield
    except NoConnection as error:
        raise Unanswered(
            f"no relay answers at {to.url} ({to.said_by}): {error}\n"
            "start one with `relay run`, or say where it is with --admin URL or $RELAY_ADMIN_URL"
        ) from None
    except TimeoutError:
        raise Unanswered(f"{to.url} did not answer within {patience.total_seconds():g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unanswered(f"{to.url} ({to.said_by}) does not answer as a relay does: {type(error).__name__}") from None


async def _ask(opened: aiohttp.ClientSession, method: str, to: Access, path: str, body: object) -> Any:
    async with await _requested(opened, method, to, path, json=body) as response:
        return _understood(to, response, await response.read())


async def _fetch(opened: aiohttp.ClientSession, to: Access, path: str, take: Callable[[bytes, int], None]) -> int:
    async with await _requested(opened, "GET", to, path) as response:
        length = response.content_length
        if response.status != 200 or length is None:
            _understood(to, response, await response.content.read(LARGEST_PROBLEM))
            raise Failure(f"{to.url} ({to.said_by}) does not answer as a relay does")
        came = 0
        with contextlib.suppress(aiohttp.ClientPayloadError, ConnectionError):
            async for part in response.content.iter_chunked(PART):
                take(part, length)
                came += len(part)
        if came != length:
            raise Failure(f"the relay at {to.url} stopped after {came} of {length} bytes; nothing was kept")
        return length


async def begin_stream(
    opened: aiohttp.ClientSession, to: Access, path: str, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """Begin a call whose answer is a stream of server-sent events, and return that.

    Raises:
        NoConnection: nobody is there.
        Unready: not now.
        Failure: no relay, no right to it, or a refusal in its own words.
    """
    response = await _requested(opened, "GET", to, path, headers={"Accept": STREAM_TYPE, **headers})
    if response.status == 200 and response.content_type == STREAM_TYPE:
        return response
    async with response:
        _understood(to, response, await response.read())
    raise Failure(f"{to.url} ({to.said_by}) does not answer as a relay does")


async def _requested(
    opened: aiohttp.ClientSession, method: str, to: Access, path: str, **settings: Any
) -> aiohttp.ClientResponse:
    try:
        return await opened.request(method, f"{to.url}{path}", allow_redirects=False, **settings)
    except aiohttp.ClientConnectorError as error:
        code = error.os_error.errno or 0
        raise NoConnection(os.strerror(code) if code in errno.errorcode else "no such host") from None
    except aiohttp.ConnectionTimeoutError:
        raise NoConnection("no connection within 3 s") from None


def _understood(to: Access, response: aiohttp.ClientResponse, content: bytes) -> Any:
    """What a relay says; an answer that is no relay's, or a refusal, is a `Failure`."""
    if response.status == 401:
        had = "refuses this token" if to.token else "wants a token"
        raise Failure(f"the relay at {to.url} {had}: give --token, $RELAY_ADMIN_TOKEN, or admin.token in the config")
    said = _parsed(content)
    if response.status == 200 and isinstance(said, dict):
        return said
    if response.content_type == "application/problem+json" and isinstance(said, dict):
        refused = Refused if response.status < 500 else Unready
        raise refused(safe(str(said.get("detail") or said.get("title") or response.status)), response.status)
    raise Failure(
        f"{to.url} ({to.said_by}) answered {response.status}, but not as a relay's admin API does; "
        "it has a port of its own, admin.listen"
    )


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
