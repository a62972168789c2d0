"""The verb that tells all of one event: `show`; also as a command that sends it again by hand.

Law: what came from outside is made safe for the terminal, line by line. A command that is printed can be pasted: every
word of it is quoted for the shell.
"""

import base64
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from relay.cli.calling import access, call, for_programs, output_option, remembered
from relay.cli.events import COLOURS, EVENTS, state_text
from relay.cli.terminal import Failure, apart, note, plural, safe, width
from relay.config import ConfigRefused, find, load
from relay.model import Target
from relay.rules.forwarding import HOP_BY_HOP

MOST_TEXT = 64 * 1024
"""Characters of a body that are put on a terminal."""
_LABEL = 12


@click.command()
@click.argument("event_id", metavar="ID")
@click.option("--body", is_flag=True, help="Also the body.")
@click.option("--curl", is_flag=True, help="Print a command for each target that sends the event again by hand.")
@click.option("--target", metavar="NAME", help="Only what goes to this target.")
@output_option
@click.pass_context
def show(ctx: click.Context, *, event_id: str, body: bool, curl: bool, target: str | None) -> None:
    """Show one event: its headers, the routes that took it, every delivery and every attempt. Times are UTC."""
    if curl and (body or for_programs(ctx)):
        raise click.UsageError("--curl prints commands alone; it goes with neither --body nor --output json")
    path = f"{EVENTS}/{quote(event_id, safe='')}" + ("?body=true" if body or curl else "")
    found = call(access(ctx), "GET", path)
    if target is not None:
        found["deliveries"] = [one for one in found["deliveries"] if one["target"] == target]
        if not found["deliveries"] and not curl:
            raise Failure(f'the event has no delivery to "{safe(target)}"')
    if curl:
        click.echo("\n\n".join(_commands(found, target, remembered(ctx, "config"))))
    elif for_programs(ctx):
        click.echo(json.dumps(found))
    else:
        click.echo("\n".join(_told(found, datetime.now(UTC), with_body=body)))


def _told(event: Mapping[str, Any], now: datetime, *, with_body: bool) -> list[str]:
    lines = [f"{click.style(event['id'], bold=True)}  {safe(event['source'])}  {safe(event['type'])}"]
    proof = "proven" if event["verified"] else click.style("not proven", fg="yellow")
    received = str(event["received_at"]).replace("T", " ")
    lines += _field("received", f"{received} ({apart(event['received_at'], now)} ago), {proof}")
    lines += _field("body", f"{event['size']} bytes, sha256 {str(event['sha256'])[:16]}…")
    lines += _field("routes", _routes(event))
    for verdict in _telling(event):
        lines += _field("", _verdict(verdict, is_unrouted=not event["deliveries"]))
        lines += [line for one in verdict["targets"] if one["reason"] for line in _field("", _destination(one))]
    for failure in event["failed_conditions"]:
        lines += _field("", f"when it was received, the `when` of {failure['route']} failed: {failure['reason']}")
    for index, (name, value) in enumerate(event["headers"]):
        lines += _field("" if index else "headers", f"{name}: {value}")
    for delivery in event["deliveries"]:
        lines += ["", *_delivery(delivery, now)]
    if with_body:
        lines += ["", *_body(event)]
    return lines


def _routes(event: Mapping[str, Any]) -> str:
    if event["routes"]:
        return ", ".join(event["routes"])
    if event["routes"] is None:
        return "not recorded: it was stored by an earlier version"
    return "none took it; today's config says why:" if event["routing"] else "none took it"


def _telling(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What today's routes say, as far as it tells something: of an event that some took, not those which are not meant
    for it, and nothing of one that simply takes it."""
    if not event["deliveries"] and not event["routes"]:
        return list(event["routing"])
    took = event["routes"] or ()
    return [one for one in event["routing"] if one["targets"] or one["takes"] is not (one["route"] in took)]


def _verdict(verdict: Mapping[str, Any], *, is_unrouted: bool) -> str:
    advice = "; replay it" if is_unrouted else ""
    reason = f"takes it by today's config{advice}" if verdict["takes"] else verdict["reason"]
    return f"{verdict['route']}: {reason}"


def _destination(one: Mapping[str, Any]) -> str:
    return f"  {one['target']}: {one['reason']}"


def _field(name: str, text: str) -> list[str]:
    """A label and a text, which may be styled; a longer one is wrapped beside the label."""
    if len(click.unstyle(text)) <= width() - _LABEL - 2:
        parts = [text if click.unstyle(text) != text else safe(text)]
    else:
        size = width() - _LABEL - 2
        plain = safe(click.unstyle(text))
        parts = [plain[start : start + size] for start in range(0, len(plain), size)]
    label = click.style(name.ljust(_LABEL), fg="bright_black")
    return [f"  {label}{parts[0]}", *(f"  {' ' * _LABEL}{part}" for part in parts[1:])]


def _delivery(delivery: Mapping[str, Any], now: datetime) -> list[str]:
    state = click.style(state_text(delivery, now), fg=COLOURS.get(str(delivery["state"])))
    lines = [f"{click.style(delivery['target'], bold=True)}  {state}"]
    if delivery["state"] == "held":
        lines += note(f"its target takes none now: relay targets; relay targets enable {delivery['target']}")
    if delivery["held_back_by"]:
        lines += note(f"its target takes events in order, and {safe(str(delivery['held_back_by']))} comes first")
    if delivery["state"] == "dead":
        lines += note(f"given up: {delivery['reason'] or 'no reason was kept'}; relay replay ID sends it again")
    if delivery["replays"]:
        lines += note(f"replayed {plural(delivery['replays'], 'time')}")
    for attempt in delivery["attempt_log"]:
        lines += _attempt(attempt)
    return lines


def _attempt(attempt: Mapping[str, Any]) -> list[str]:
    colour = "green" if attempt["outcome"] == "delivered" else "yellow"
    began = str(attempt["began_at"])
    words = [
        f"  #{attempt['number']}".ljust(6),
        f"{began[5:10]} {began[11:23]}",
        click.style(str(attempt["outcome"]).ljust(11), fg=colour),
        str(attempt["status"] or "-").rjust(3),
        f"{attempt['duration_ms']} ms".rjust(9),
    ]
    reason = safe(str(attempt["reason"]))
    shown = ["  ".join(words)]
    if reason and reason != f"status {attempt['status']}":
        shown += [f"    {line}" for line in note(reason)]
    if attempt["excerpt"] and attempt["outcome"] != "delivered":
        shown += [f"    {line}" for line in note(f"it answered: {attempt['excerpt'][:400]}")]
    return shown


def _body(event: Mapping[str, Any]) -> list[str]:
    text = event["body"]
    if text is None:
        return [f"(not text: --output json has its {event['size']} bytes in body_base64)"]
    cut = [] if len(text) <= MOST_TEXT else [f"(cut: {len(text)} characters)"]
    return [*(safe(line.expandtabs()) for line in text[:MOST_TEXT].split("\n")), *cut]


def _commands(event: Mapping[str, Any], target: str | None, config: Path | None) -> list[str]:
    """A command for each target that the event goes to, or for the one that was asked for."""
    targets = _targets(config)
    names = [target] if target is not None else [one["target"] for one in event["deliveries"]]
    if not names:
        raise Failure("the event was unrouted; name a target: --target NAME")
    attempts = {one["target"]: one["attempts"] for one in event["deliveries"]}
    if any(name in targets and targets[name].headers for name in names) and sys.stdout.isatty():
        click.echo("these commands hold the targets' own headers, credentials included", err=True)
    return [_command(event, name, targets.get(name), attempts.get(name, 0) + 1) for name in names]


def _targets(config: Path | None) -> dict[str, Target]:
    """The targets of the config that is at hand: the API tells no addresses. None where there is no whole one."""
    try:
        return {target.name: target for target in load(find(config, os.environ), os.environ).targets}
    except ConfigRefused:
        return {}


def _command(event: Mapping[str, Any], name: str, target: Target | None, attempt: int) -> str:
    body = base64.b64decode(event["body_base64"])
    is_plain = event["body"] is not None and "\0" not in event["body"] and len(body) < MOST_TEXT
    own = target.headers if target is not None else ()
    headers = [*_forwarded(event["headers"], {key.lower() for key, _ in own}), *own]
    headers += [
        ("relay-event-id", event["id"]),
        ("relay-source", event["source"]),
        ("relay-attempt", str(attempt)),
        ("relay-replay", "1"),
    ]
    if all(key.lower() != "content-type" for key, _ in headers):
        headers.append(("Content-Type", ""))  # or curl would name one of its own
    words = ["curl -sS -i -X POST", *(f"-H {shlex.quote(f'{key}: {value}'.rstrip())}" for key, value in headers)]
    words.append(f"--data-raw {shlex.quote(event['body'])}" if is_plain else "--data-binary @-")
    words.append(shlex.quote(target.url) if target is not None else '"$URL"')
    command = " \\\n  ".join(words)
    if not is_plain:
        command = f"base64 -d <<'BODY' | {command}\n{base64.encodebytes(body).decode()}BODY"
    remark = f"# {event['id']} to {name}"
    return f"{remark}\n{command}" if target is not None else f"{remark}; URL is its address in your config\n{command}"


def _forwarded(headers: Sequence[Sequence[str]], replaced: set[str]) -> list[tuple[str, str]]:
    """The provider's headers as they can be sent again: what was masked, or belongs to a connection, cannot."""
    left_out = HOP_BY_HOP | replaced | {"accept-encoding", "user-agent"}
    return [(name, value) for name, value in headers if name.lower() not in left_out and value != "***"]
