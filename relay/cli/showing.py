"""The verb that tells all of one event: `show`; also as a command that sends it again by hand.

Law: what came from outside is made safe for the terminal, line by line.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from relay.cli.by_hand import commands
from relay.cli.calling import access, call, for_programs, output_option, remembered
from relay.cli.events import COLOURS, EVENTS, state_text
from relay.cli.parameters import segment
from relay.cli.terminal import Failure, apart, note, plural, safe, width

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
    path = f"{EVENTS}/{segment(event_id, 'an event')}" + ("?body=true" if body or curl else "")
    found = call(access(ctx), "GET", path)
    if target is not None:
        found["deliveries"] = [one for one in found["deliveries"] if one["target"] == target]
        if not found["deliveries"] and not curl:
            raise Failure(f'the event has no delivery to "{safe(target)}"')
    if curl:
        click.echo("\n\n".join(commands(found, target, remembered(ctx, "config"))))
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
    for index, one in enumerate(event["fetched"]):
        since = apart(one["fetched_at"], now)
        lines += _field("" if index else "fetched", f"by {one['enricher']}, {one['bytes']} bytes, {since} ago")
    for index, (name, value) in enumerate(event["headers"]):
        lines += _field("" if index else "headers", f"{name}: {value}")
    for delivery in event["deliveries"]:
        lines += ["", *_delivery(delivery, now)]
    if with_body:
        lines += ["", *_body(event)]
        for one in event["fetched"]:
            lines += ["", *note(f"fetched by {one['enricher']}:"), safe(one["data"][:MOST_TEXT])]
    return lines


def _routes(event: Mapping[str, Any]) -> str:
    if event["routes"]:
        return ", ".join(event["routes"])
    if event["routes"] is None:
        return "not recorded: it was stored by an earlier version"
    return "none took it; today's config says why:" if event["routing"] else "none took it"


def _telling(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What today's routes say, as far as it tells something: nothing of one that took the event and simply does."""
    took = event["routes"] or ()
    return [
        one
        for one in event["routing"]
        if not (one["takes"] and one["route"] in took) or any(inner["reason"] for inner in one["targets"])
    ]


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
    if delivery["state"] == "skipped":
        lines += note(f"nothing was sent: {delivery['reason'] or 'no reason was kept'}; relay replay ID decides anew")
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
