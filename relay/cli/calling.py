"""How a verb reaches the admin API of a running relay.

Law: a call that was not answered is told as what it is (nobody there, no token, not a relay), with the way out. Only a
connection that was never made is tried again, so nothing is asked for twice.
"""

import asyncio
import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import click
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from relay.cli.configs import admin_value
from relay.cli.locating import admin_url, config_path
from relay.cli.terminal import Failure, Refused, Unanswered, safe
from relay.config import keys, values

CONNECTS = 3
CONNECT_PAUSE = timedelta(seconds=0.3)
"""Between two tries to connect: a relay that is just starting is reached."""
ANSWER = timedelta(seconds=10)

_KEY = "relay.cli.calling."

Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Access:
    """Where the admin API is, who said so, and the token for it."""

    url: str
    said_by: str
    token: str | None = field(default=None, repr=False)


class _Unanswered(Exception):
    """No connection could be made; nothing was asked."""


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
            "--config", metavar="FILE", type=click.Path(path_type=Path), help="The config to find both in."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def access(ctx: click.Context) -> Access:
    """What the options, the environment and the config say about the relay to talk to."""
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


async def _call(to: Access, method: str, path: str, body: object, patience: timedelta) -> Any:
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {to.token}"} if to.token else {})
    timeout = aiohttp.ClientTimeout(total=patience.total_seconds(), sock_connect=3)
    tries = AsyncRetrying(
        stop=stop_after_attempt(CONNECTS),
        wait=wait_fixed(CONNECT_PAUSE.total_seconds()),
        retry=retry_if_exception_type(_Unanswered),
        reraise=True,
    )
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        try:
            return await tries(_ask, session, method, to, path, body)
        except _Unanswered as error:
            raise Unanswered(
                f"no relay answers at {to.url} ({to.said_by}): {error}\n"
                "start one with `relay run`, or say where it is with --admin URL or $RELAY_ADMIN_URL"
            ) from None
        except TimeoutError:
            raise Unanswered(f"{to.url} did not answer within {patience.total_seconds():g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            words = f"{to.url} ({to.said_by}) does not answer as a relay does: {type(error).__name__}"
            raise Unanswered(words) from None


async def _ask(session: aiohttp.ClientSession, method: str, to: Access, path: str, body: object) -> Any:
    try:
        async with session.request(method, f"{to.url}{path}", json=body, allow_redirects=False) as response:
            return _understood(to, response, await response.read())
    except aiohttp.ClientConnectorError as error:
        code = error.os_error.errno or 0
        raise _Unanswered(os.strerror(code) if code in errno.errorcode else str(error.os_error)) from None
    except aiohttp.ConnectionTimeoutError:
        raise _Unanswered("no connection within 3 s") from None


def _understood(to: Access, response: aiohttp.ClientResponse, content: bytes) -> Any:
    """What a relay says; an answer that is no relay's, or a refusal, is a `Failure`."""
    if response.status == 401:
        had = "refuses this token" if to.token else "wants a token"
        raise Failure(f"the relay at {to.url} {had}: give --token, $RELAY_ADMIN_TOKEN, or admin.token in the config")
    said = _parsed(content)
    if response.status == 200 and isinstance(said, dict):
        return said
    if response.content_type == "application/problem+json" and isinstance(said, dict):
        raise Refused(safe(str(said.get("detail") or said.get("title") or response.status)), response.status)
    raise Failure(
        f"{to.url} ({to.said_by}) answered {response.status}, but not as a relay's admin API does; "
        "it has a port of its own, admin.listen"
    )


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
