"""The verb that watches: `tail`.

Law: once it was connected it shows everything that happens, each thing once: a connection that is lost is made again
behind the last thing that was shown. A program gets the stream's own objects, one a line.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import aiohttp
import click
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from relay.admin.reading import moment
from relay.cli.calling import (
    ANSWER,
    Access,
    NoConnection,
    Unready,
    access,
    begin_stream,
    call,
    first_tries,
    for_programs,
    in_words,
    output_option,
    session,
)
from relay.cli.messages import Messages
from relay.cli.occurrences import day, line
from relay.cli.stats import STATS
from relay.cli.terminal import NARROWEST, Failure, safe
from relay.config.problems import suggestion
from relay.model import RELAY

STREAM = "/api/v1/stream"
SILENCE = timedelta(seconds=45)
"""Three pings of the relay's: whoever misses them is not connected any more."""
SHORTEST_WAIT, LONGEST_WAIT = timedelta(seconds=0.3), timedelta(seconds=5)
"""Between two tries to connect again."""

_STRANGE = "what comes is not a relay's stream"

Show = Callable[[dict[str, Any]], None]


def _moment(_ctx: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    if given is not None:
        moment(given, datetime.now(UTC), click.BadParameter)
    return given


@click.command()
@click.option("--source", help="Only what came from this source.")
@click.option("--target", help="Only what goes to this target.")
@click.option("--failed", is_flag=True, help="Only refused requests, and attempts that did not deliver.")
@click.option("--since", metavar="SPAN|TIME", callback=_moment, help="First what was kept since then: 10m, 24h.")
@output_option
@click.pass_context
def tail(ctx: click.Context, *, source: str | None, target: str | None, failed: bool, since: str | None) -> None:
    """Watch what is accepted, refused and attempted, live, until Ctrl-C.

    A relay that is restarted meanwhile is waited for, and nothing is left out.
    """
    wanted = {"source": source, "target": target, "failed": "true" if failed else None, "since": since}
    to = access(ctx)
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    show = _as_object if for_programs(ctx) else _Lines().show
    try:
        _refuse_unknown(to, sources=source, targets=target)
        asyncio.run(_Tail(to, f"{STREAM}?{query}" if query else STREAM, show).run())
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)


def _refuse_unknown(to: Access, **names: str | None) -> None:
    """Refuse the name of a source or a target of which nothing can ever be shown.

    Raises:
        Failure: names those that there are.
    """
    if all(name is None for name in names.values()):
        return
    try:
        counts = call(to, "GET", STATS)["totals"]
    except Unready:
        return  # what cannot be looked up now may be there
    for what, name in names.items():
        known = {*counts[what], RELAY} if what == "sources" else set(counts[what])
        if name is not None and name not in known:
            near = suggestion(name, known) or f"; known: {', '.join(sorted(known)) or 'none'}"
            raise Failure(f'unknown {what.removesuffix("s")} "{safe(name)}"{near}')


class _Tail:
    """Follows one relay, whatever becomes of the connection."""

    def __init__(self, to: Access, path: str, show: Show) -> None:
        self._to = to
        self._path = path
        self._show = show
        self._position: str | None = None

    async def run(self) -> None:
        """Show what happens, for ever.

        Raises:
            Failure: it was never connected, or has no right to be.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=SILENCE.total_seconds())
        async with session(self._to, timeout) as opened:
            async with in_words(self._to, ANSWER):
                response: aiohttp.ClientResponse = await first_tries()(self._begin, opened)
            while True:
                await self._follow(response)
                _say("connection lost, reconnecting")
                await asyncio.sleep(SHORTEST_WAIT.total_seconds())
                response = await self._again()(self._begin, opened)
                _say("back")

    def _again(self) -> AsyncRetrying:
        """How a relay that is gone is waited for: for ever, with growing waits."""
        return AsyncRetrying(
            wait=wait_exponential(multiplier=SHORTEST_WAIT.total_seconds(), max=LONGEST_WAIT.total_seconds()),
            retry=retry_if_exception_type((NoConnection, Unready, aiohttp.ClientError, OSError, TimeoutError)),
        )

    async def _begin(self, opened: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        headers = {} if self._position is None else {"Last-Event-ID": self._position}
        async with asyncio.timeout(ANSWER.total_seconds()):
            return await begin_stream(opened, self._to, self._path, headers)

    async def _follow(self, response: aiohttp.ClientResponse) -> None:
        """Show what one connection brings until it ends."""
        messages = Messages()
        async with response:
            async for part in _parts(response):
                try:
                    messages.feed(part)
                except ValueError:
                    raise Failure(_STRANGE) from None
                for message in messages.taken():
                    self._show(_understood(message.data))
                    self._position = message.id or self._position
                self._position = messages.last_id or self._position


async def _parts(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What comes, as it comes, until the connection ends, however it does."""
    while True:
        try:
            part = await response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return
        if not part:
            return
        yield part


def _understood(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "kind" not in found:
        raise Failure(_STRANGE)
    return found


def _as_object(told: dict[str, Any]) -> None:
    click.echo(json.dumps(told))


class _Lines:
    """Prints a line for a person, and the day where it is another than before."""

    def __init__(self) -> None:
        self._day = day({"at": datetime.now(UTC).isoformat()})

    def show(self, told: dict[str, Any]) -> None:
        """Print one thing that happened."""
        if told["kind"] == "reset":
            _say(str(told.get("reason", "")))
            return
        try:
            today, words = day(told), line(told, _width())
        except (KeyError, TypeError, ValueError):
            raise Failure(f"{_STRANGE} as this version knows it; --output json shows it as it is") from None
        if today != self._day:
            self._day = today
            click.echo(click.style(today, fg="bright_black"))
        click.echo(words)


def _width() -> int | None:
    """Columns to write in; what is no terminal has no end of them."""
    return max(NARROWEST, shutil.get_terminal_size((80, 24)).columns) if sys.stdout.isatty() else None


def _say(words: str) -> None:
    click.echo(f"relay: {words}", err=True)
