"""The verb that answers "where is my webhook?": `events`, and what was turned away.

Law: a program gets the API's own objects, one a line; a person gets a table in which every line fits the terminal.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import click

from relay.cli.calling import Access, access, call, for_programs, output_option
from relay.cli.terminal import Cell, Column, Failure, apart, clock, cut, note, plural, safe, table, width

EVENTS = "/api/v1/events"
REFUSALS = "/api/v1/refusals"
PAGE = 200
MOST = 100_000
LONGEST_NAME = 20
"""Characters of a name in a table of narrow terminals."""

STATES = ("pending", "in_flight", "delivered", "dead", "skipped", "held", "unrouted")
COLOURS = {"delivered": "green", "dead": "red", "held": "red", "pending": "yellow", "in_flight": "cyan"}

_EVENT_COLUMNS = (Column("RECEIVED (UTC)"), Column("SOURCE"), Column("TYPE"), Column("ID"), Column("DELIVERIES"))
_REFUSAL_COLUMNS = (Column("RECEIVED (UTC)"), Column("SOURCE"), Column("STATUS"), Column("FROM"), Column("REASON"))


@click.command()
@click.option("--source", metavar="NAME", help="Of this source.")
@click.option("--type", "type_", metavar="GLOB", help="Of a type that fits, as order_*.")
@click.option("--target", metavar="NAME", help="With a delivery to this target.")
@click.option("--state", type=click.Choice(STATES), help="With a delivery in this state (to that target); or unrouted.")
@click.option("--since", metavar="WHEN", help="Received since: a span back from now (30m, 24h, 7d) or a time.")
@click.option("--until", metavar="WHEN", help="Received before; likewise.")
@click.option("--limit", type=click.IntRange(1, MOST), default=50, show_default=True, help="How many at most.")
@click.option("--cursor", metavar="MARK", help="Go on where an earlier call has ended.")
@click.option("--refused", is_flag=True, help="What was turned away instead, and why: 401, 403, 408, 413.")
@output_option
@click.pass_context
def events(ctx: click.Context, /, *, limit: int, refused: bool, **given: str | None) -> None:
    """Show events, newest first, and where their deliveries stand."""
    filters = {"type" if name == "type_" else name: value for name, value in given.items() if value is not None}
    if refused and (wrong := sorted(filters.keys() & {"type", "target", "state"})):
        raise click.UsageError(f"--{wrong[0]} does not go with --refused: what was turned away became no event")
    if filters.get("state") == "unrouted" and "target" in filters:
        raise click.UsageError("--target does not go with --state unrouted: such an event has none")
    found = _Pages(access(ctx), REFUSALS if refused else EVENTS, filters, limit)
    if for_programs(ctx):
        for one in found:
            click.echo(json.dumps(one))
    else:
        rows = list(found)
        click.echo("\n".join(_refusals(rows) if refused else _events(rows, datetime.now(UTC))))
    if found.next is not None and found.is_cut:
        click.echo(f"there is more: --cursor {found.next}", err=True)


class _Pages:
    """Objects of a list of the API, fetched page after page, up to a number."""

    def __init__(self, to: Access, path: str, filters: Mapping[str, str], limit: int) -> None:
        self._to = to
        self._path = path
        self._filters = dict(filters)
        self._limit = limit
        self.next: str | None = None
        self.is_cut = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        left = self._limit
        while left > 0:
            page = self._page(min(left, PAGE))
            yield from page
            left -= len(page)
            if self.next is None:
                return
            self._filters["cursor"] = self.next
        self.is_cut = True

    def _page(self, limit: int) -> list[dict[str, Any]]:
        answer = call(self._to, "GET", f"{self._path}?{urlencode(self._filters | {'limit': str(limit)})}")
        found = answer.get("events", answer.get("refusals"))
        if not isinstance(found, list):
            raise Failure(f"{self._to.url} does not answer as a relay does")
        self.next = answer.get("next_cursor")
        return found


def _events(found: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    """The table; where the deliveries do not fit beside an event, they stand below it."""
    if not found:
        return ["no events"]
    whole = [[*_cells(event), Cell(deliveries_text(event, now))] for event in found]
    lines = table(_EVENT_COLUMNS, whole)
    if all(len(click.unstyle(line)) <= width() for line in lines):
        return lines
    lines = table(_EVENT_COLUMNS[:-1], [_cells(event) for event in found])
    shown = lines[:1]
    for event, line in zip(found, lines[1:], strict=True):
        shown += [line, *note(deliveries_text(event, now))]
    return shown


def _cells(event: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(clock(event["received_at"])),
        Cell(cut(safe(event["source"]), LONGEST_NAME)),
        Cell(cut(safe(event["type"]), LONGEST_NAME)),
        Cell(safe(event["id"]), worst_colour(event)),
    ]


def worst_colour(event: Mapping[str, Any]) -> str | None:
    """The colour of the delivery that needs somebody most."""
    states = {delivery["state"] for delivery in event["deliveries"]}
    return next((COLOURS[state] for state in ("dead", "held", "pending", "in_flight") if state in states), None)


def deliveries_text(event: Mapping[str, Any], now: datetime) -> str:
    """Where an event's deliveries stand, in a few words each."""
    return ", ".join(f"{delivery['target']} {state_text(delivery, now)}" for delivery in event["deliveries"]) or (
        "unrouted: no route took it"
    )


def state_text(delivery: Mapping[str, Any], now: datetime) -> str:
    """Where one delivery stands: its state, and what the last attempt came to where it has not arrived."""
    state = str(delivery["state"])
    if state == "delivered":
        return state
    words = [state]
    if delivery["attempts"]:
        words.append(f"after {plural(delivery['attempts'], 'attempt')}")
    if delivery["outcome"]:
        status = f" {delivery['status']}" if delivery["status"] else ""
        words.append(f"({delivery['outcome']}{status})")
    if delivery["next_attempt_at"]:
        is_due = datetime.fromisoformat(delivery["next_attempt_at"]) <= now
        words.append("due now" if is_due else f"next in {apart(delivery['next_attempt_at'], now)}")
    return " ".join(words)


def _refusals(found: Sequence[dict[str, Any]]) -> list[str]:
    if not found:
        return ["nothing is kept of requests turned away with 401, 403, 408 or 413 (the last 1,000, seven days)"]
    lines = table(
        _REFUSAL_COLUMNS,
        [
            [
                Cell(clock(one["received_at"])),
                Cell(cut(safe(one["source"]), LONGEST_NAME)),
                Cell(str(one["status"]), "red"),
                Cell(safe(str(one["remote"] or "-"))),
                Cell(safe(one["reason"])),
            ]
            for one in found
        ],
    )
    shown = lines[:1]
    for one, line in zip(found, lines[1:], strict=True):
        shown.append(line)
        shown += note(one["detail"]) if one["detail"] else []
    if any(one["status"] == 401 for one in found):
        shown += ["", "why a 401? relay verify SOURCE --header 'Name: value' --data @body"]
    return shown
