"""The verb that tells how much came and how much arrived: `stats`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from relay.cli.calling import access, call, for_programs, output_option
from relay.cli.terminal import Cell, Column, safe, table

STATS = "/api/v1/stats"
RESULTS = ("accepted", "unrouted", "duplicate", "refused")
OUTCOMES = ("delivered", "throttled", "refused", "failed", "unreachable", "gone", "unprepared", "interrupted", "dead")


@click.command()
@output_option
@click.pass_context
def stats(ctx: click.Context) -> None:
    """Show what came of each source and what reached each target: in the last hour, and ever."""
    found = call(access(ctx), "GET", STATS)
    if for_programs(ctx):
        click.echo(json.dumps(found))
        return
    since = str(found["since"] or "the first start")[:16].replace("T", " ")
    parts = [("in the last hour", found["last_hour"]), (f"since {since}", found["totals"])]
    lines: list[str] = []
    for title, counts in parts:
        lines += [click.style(title, bold=True), *_table("SOURCE", counts["sources"], RESULTS), ""]
        lines += [*_table("TARGET", counts["targets"], OUTCOMES), ""]
    click.echo("\n".join(lines[:-1]))


def _table(title: str, counts: Mapping[str, Mapping[str, int]], known: Sequence[str]) -> list[str]:
    """One table; an outcome that never was has no column, but for the first and the last."""
    shown = [
        what for what in known if what in (known[0], known[-1]) or any(each.get(what, 0) for each in counts.values())
    ]
    columns = (Column(title), *(Column(what.upper(), is_number=True) for what in shown))
    return table(columns, [[Cell(safe(name)), *_numbers(each, shown)] for name, each in counts.items()])


def _numbers(counts: Mapping[str, Any], shown: Sequence[str]) -> list[Cell]:
    return [Cell(str(counts.get(what, 0)), "red" if what == "dead" and counts.get(what) else None) for what in shown]
