"""The verb that answers "where would it go?": `route`.

Law: the config alone is read and nobody is asked; the verdict is that of the rules that the relay itself routes by. No
secret of the config reaches the output, whatever a condition holds.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from relay.cli import webhooks
from relay.cli.configs import config_option, loaded
from relay.cli.terminal import Failure, note, safe
from relay.config import Config
from relay.ids import fresh_id
from relay.model import NO_TYPE, RELAY, Content, Event, Fetched, Headers, Shaped, Source, Unshaped, Way
from relay.rules.exactness import read
from relay.rules.expressions import NOTHING_BROUGHT, View, view_from
from relay.rules.forwarding import storable_headers
from relay.rules.routing import Destination, Subject, Verdict, decided, destinations, judged, summed
from relay.rules.secrets import blotted, log_secrets
from relay.rules.shaping import shaped

MOST_SHOWN = 2000
"""Characters of a body that are put on a terminal."""

_UNKNOWN = object()
_MARKS = {True: ("+", "green"), False: ("x", "red"), None: ("?", "yellow")}


@dataclass(frozen=True, slots=True)
class Dry:
    """An event as it would be named and routed."""

    event: Event
    verdicts: tuple[Verdict, ...]
    destinations: tuple[Destination, ...]
    shapes: Mapping[str, Shaped | Unshaped]
    """What each target would get, as far as that is known without a fetch."""


def _fetched(_ctx: click.Context, _parameter: click.Parameter, given: str | None) -> Any:
    octets = webhooks.data(_ctx, _parameter, given)
    if octets is None:
        return None
    try:
        return _Fetched(read(octets))
    except (ValueError, RecursionError):
        raise click.BadParameter("is not JSON") from None


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What an enricher is said to have brought, which may be null."""

    data: Any


@click.command()
@webhooks.data_option
@click.option("--source", metavar="NAME", help="Whose it is; needed where the config has several.")
@click.option("--type", "type_", metavar="TYPE", help="Its type. Else as the source names it.")
@webhooks.headers_option
@click.option(
    "--enriched", metavar="@FILE|-|TEXT", callback=_fetched, help="JSON that an enricher would bring, as `data`."
)
@click.option("--output", type=click.Choice(["table", "json"]), default="table", help="json: one object, for programs.")
@config_option
def route(
    *,
    data: bytes | None,
    source: str | None,
    type_: str | None,
    headers: Headers,
    enriched: _Fetched | None,
    output: str,
    config: Path | None,
) -> None:
    """Tell where an event would go, and of each route and target why or why not.

    Also what it would get, where that is not simply what came. Reads the config alone; nothing is sent. Exit code 0
    when at least one target gets it, or may get it after a fetch; else 1.

    \b
    For example: relay route --source partner --data @body.json --header 'X-Env: live'
    """
    whole = loaded(config)
    dry = _routed(whole, _event(whole, source, type_, headers, data or b""), enriched)
    parties = (*whole.targets, *(one.as_target for one in whole.enrichers))
    shown = partial(blotted, secrets=frozenset(log_secrets(whole.sources, parties, whole.admin.token)))
    if output == "json":
        click.echo(shown(json.dumps(_plain(dry))))
    else:
        click.echo(shown("\n".join(_told(dry))))
    raise click.exceptions.Exit(1 if all(one.is_reached is False for one in dry.destinations) else 0)


def _event(config: Config, name: str | None, type_: str | None, headers: Headers, body: bytes) -> Event:
    """The event that a request would become."""
    source = None if name == RELAY else _source(config, name)
    content, now = Content(headers, body), datetime.now(UTC)
    named = None if source is None else source.event_type(content)
    return Event(
        id=fresh_id("evt", now),
        source=RELAY if source is None else source.name,
        type=type_ or named or NO_TYPE,
        received_at=now,
        headers=storable_headers(
            headers,
            key_header=None if source is None else source.key_header,
            forwarded=frozenset[str]().union(*(target.forward_headers for target in config.targets)),
        ),
        body=body,
        dedupe_key=None if source is None else source.dedupe_key(content),
    )


def _source(config: Config, name: str | None) -> Source:
    if name is not None:
        return webhooks.source_named(name, config.sources)
    if len(config.sources) > 1:
        raise Failure(f"whose is it? name one with --source: {', '.join(sorted(one.name for one in config.sources))}")
    return config.sources[0]


def _routed(config: Config, event: Event, fetched: _Fetched | None) -> Dry:
    """Where an event would go, and all that the routes say of it."""

    def view(data: Any = NOTHING_BROUGHT) -> View:
        content = Content(event.headers, event.body)
        parsed, form = content.json, content.declared_form
        return view_from(event.id, event.type, event.source, event.received_at, event.headers, parsed, form, data)

    subject = Subject(event.source, event.type, headers=lambda: event.headers, view=view)
    verdicts = tuple(judged(one, subject) for one in config.routes)
    found = summed(verdicts)
    after = None if fetched is None else view(fetched.data)
    reached = destinations(found, after)
    if fetched is not None:
        brought = {one.enricher: fetched.data for one in config.routes if one.enricher is not None}
        verdicts = tuple(decided(verdict, view(), brought) for verdict in verdicts)
    targets = {target.name: target for target in config.targets}
    shapes = {
        one.target: shaped(targets[one.target], event, event.body, data)
        for one in reached
        if one.is_reached and (data := _data(one, fetched)) is not _UNKNOWN
    }
    return Dry(event, verdicts, reached, shapes)


def _data(destination: Destination, fetched: "_Fetched | None") -> Any:
    """What would have been fetched for a target, `_UNKNOWN` where that was not said."""
    if not any(way.enricher is not None for way in destination.ways):
        return Fetched.NOTHING
    return _UNKNOWN if fetched is None else fetched.data


def _plain(dry: Dry) -> dict[str, Any]:
    """The answer as a program reads it."""
    return {
        "source": dry.event.source,
        "type": dry.event.type,
        "dedupe_key": dry.event.dedupe_key,
        "routes": [verdict.shown() for verdict in dry.verdicts],
        "targets": [
            {
                "target": one.target,
                "reached": one.is_reached,
                "reason": one.reason,
                "ways": [
                    {"route": way.route, "enrich": way.enricher, "conditions": list(way.conditions)} for way in one.ways
                ],
                "gets": _plain_shape(dry.shapes.get(one.target)),
            }
            for one in dry.destinations
        ],
    }


def _plain_shape(shape: Shaped | Unshaped | None) -> dict[str, Any] | None:
    """What a target would get, None where that is not known."""
    if shape is None:
        return None
    if isinstance(shape, Unshaped):
        return {"changed": None, "content_type": None, "body": None, "problem": shape.reason}
    text = shape.body.decode("utf-8", "replace")
    return {"changed": shape.is_changed, "content_type": shape.content_type, "body": text, "problem": None}


def _gets(shape: Shaped | Unshaped | None) -> Iterator[str]:
    """What a target would get, where it is not simply what came."""
    if isinstance(shape, Unshaped):
        yield from note(f"nothing could be sent: {shape.reason}")
    elif shape is not None and shape.is_changed:
        text = shape.body.decode("utf-8", "replace")
        more = f" … ({len(text)} characters)" if len(text) > MOST_SHOWN else ""
        yield from note(f"gets {shape.content_type}: {text[:MOST_SHOWN]}{more}")


def _told(dry: Dry) -> Iterator[str]:
    """The answer as a person reads it."""
    key = "no dedupe key" if dry.event.dedupe_key is None else f"dedupe key {safe(dry.event.dedupe_key)}"
    yield f"{click.style(dry.event.source, bold=True)}  {safe(dry.event.type)}  ({key})"
    yield ""
    for verdict in dry.verdicts:
        yield _marked(f"route {verdict.route}", verdict.because, is_good=verdict.because is None)
        for one in verdict.targets:
            if one.reason is not None:
                yield from note(f"{one.target}: {one.reason}")
    if not dry.verdicts:
        yield "  the config has no routes"
    yield ""
    for destination in dry.destinations:
        yield _marked(f"to {destination.target}", destination.reason, is_good=destination.is_reached)
        for way in destination.ways:
            yield from note(_way(way))
        yield from _gets(dry.shapes.get(destination.target))
    if not dry.destinations:
        yield "  no target gets it: it would be stored and go nowhere (event.unrouted)"


def _marked(name: str, reason: str | None, *, is_good: bool | None) -> str:
    mark, colour = _MARKS[is_good]
    return f"  {click.style(mark, fg=colour)} {name}" + (f": {safe(reason)}" if reason else "")


def _way(way: Way) -> str:
    fetched = f", fetches {way.enricher}" if way.enricher is not None else ""
    conditions = f", when {' and '.join(way.conditions)}" if way.conditions else ""
    return f"by {way.route}{fetched}{conditions}"
