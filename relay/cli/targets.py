"""The verbs about targets: their list, `enable`, `disable`, `test`, `discard`.

Law: a program gets the API's own objects, one a line; a person gets a table and, below a target that is not well, what
is wrong with it and how to end it.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from relay.cli.calling import ANSWER, Access, access, call, for_programs, output_option
from relay.cli.terminal import Cell, Column, Failure, agreed, apart, note, plural, safe, table
from relay.config.problems import suggestion

TARGETS = "/api/v1/targets"
LONGEST_TEST = timedelta(minutes=11)
"""Longer than any target's own timeout."""

LONGEST_DISCARD = timedelta(minutes=10)
_PATIENCE = {"test": LONGEST_TEST, "discard": LONGEST_DISCARD}

_COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("PENDING", is_number=True),
    Column("HELD", is_number=True),
    Column("IN FLIGHT", is_number=True),
    Column("DEAD", is_number=True),
    Column("OLDEST", is_number=True),
    Column("SUCCESS", is_number=True),
)
_COLOURS = {"active": "green", "disabled": "red", "throttled": "yellow"}


@click.group(invoke_without_command=True)
@output_option
@click.pass_context
def targets(ctx: click.Context) -> None:
    """Show the targets of a running relay; enable, disable or test one, or discard what it holds."""
    if ctx.invoked_subcommand is None:
        _list(ctx)


@targets.command("list")
@output_option
@click.pass_context
def list_targets(ctx: click.Context) -> None:
    """Show every target with what waits for it."""
    _list(ctx)


@targets.command()
@click.argument("name")
@output_option
@click.pass_context
def enable(ctx: click.Context, name: str) -> None:
    """Switch a target on: what it holds leaves, oldest first."""
    found = _steer(ctx, name, "enable", {})
    _show(ctx, found, lambda: [f"{name} is {found['state']}; {plural(_waiting(found), 'delivery')} waiting"])


@targets.command()
@click.argument("name")
@click.option("--reason", metavar="TEXT", help="Why, for who finds it disabled; at most 200 characters.")
@output_option
@click.pass_context
def disable(ctx: click.Context, name: str, reason: str | None) -> None:
    """Switch a target off until it is enabled: its deliveries are held, none is lost."""
    found = _steer(ctx, name, "disable", {"reason": reason} if reason else {})
    held = f"{name} is {found['state']}; {plural(_waiting(found), 'delivery')} held, none is lost"
    _show(ctx, found, lambda: [held, f"relay targets enable {name}   # ends it"])


@targets.command()
@click.argument("name")
@output_option
@click.pass_context
def test(ctx: click.Context, name: str) -> None:
    """Send one marked request to a target, which changes neither its state nor its count.

    Exit code 0 when the target took it, else 1.
    """
    found = _steer(ctx, name, "test", {})
    is_taken = found["outcome"] == "delivered"
    outcome = click.style(str(found["outcome"]), fg="green" if is_taken else "red")
    lines = [f"{name}: {outcome}, {safe(str(found['reason']))}, in {found['duration_ms']:g} ms"]
    if found["excerpt"] and not is_taken:
        lines += note(f"it answered: {str(found['excerpt'])[:400]}")
    _show(ctx, found, lambda: lines)
    ctx.exit(0 if is_taken else 1)


@targets.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
def discard(ctx: click.Context, name: str, yes: bool) -> None:  # noqa: FBT001 - a flag of the command line
    """Let go of what a disabled target holds: it becomes dead, and can still be replayed."""
    dry = _steer(ctx, name, "discard", {"dry_run": True})
    held = plural(int(dry["discarded"]), "held delivery")
    if not dry["discarded"]:
        _show(ctx, dry | {"dry_run": False}, lambda: [f"{name} holds nothing; nothing was done"])
        return
    if not yes and not agreed(f"{held} of {name} will be dead. Go on?"):
        raise Failure(f"nothing was discarded: {held} of {name} stay. Say yes with --yes")
    found = _steer(ctx, name, "discard", {})
    gone = f"{name}: {plural(int(found['discarded']), 'delivery')} discarded, now dead"
    _show(ctx, found, lambda: [gone, f"relay replay --state dead --target {name}   # takes them up again"])


def _list(ctx: click.Context) -> None:
    found = _all(access(ctx))
    if for_programs(ctx):
        for target in found:
            click.echo(json.dumps(target))
        return
    click.echo("\n".join(_overview(found, datetime.now(UTC))))


def _all(to: Access) -> list[dict[str, Any]]:
    found = call(to, "GET", TARGETS).get("targets")
    if not isinstance(found, list):
        raise Failure(f"{to.url} does not answer as a relay does")
    return found


def _steer(ctx: click.Context, name: str, verb: str, body: object) -> dict[str, Any]:
    """Do something to one target. The names are asked for first: a wrong one gets them all as the answer."""
    to = access(ctx)
    known = [str(target["name"]) for target in _all(to)]
    if name not in known:
        hint = suggestion(name, known) or f"; known: {', '.join(sorted(known))}"
        raise Failure(f'unknown target "{safe(name)}"{hint}')
    patience = _PATIENCE.get(verb, ANSWER)
    found: dict[str, Any] = call(to, "POST", f"{TARGETS}/{name}/{verb}", body=body, patience=patience)
    return found


def _show(ctx: click.Context, found: dict[str, Any], words: Callable[[], Sequence[str]]) -> None:
    click.echo(json.dumps(found) if for_programs(ctx) else "\n".join(words()))


def _waiting(target: dict[str, Any]) -> int:
    return int(target["pending"]) + int(target["held"])


def _overview(found: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    """The table, with remarks below the targets that need somebody."""
    lines = table(_COLUMNS, [_row(target, now) for target in found])
    shown = lines[:1]
    for target, line in zip(found, lines[1:], strict=True):
        shown.append(line)
        for remark in _remarks(target, now):
            shown += note(remark)
    return shown


def _row(target: dict[str, Any], now: datetime) -> list[Cell]:
    state = str(target["state"])
    if state == "active" and target["throttled_until"]:
        state = "throttled"
    held, dead = int(target["held"]), int(target["dead"])
    return [
        Cell(safe(str(target["name"]))),
        Cell(state, _COLOURS.get(state)),
        Cell(str(target["pending"])),
        Cell(str(held), "red" if held else None),
        Cell(str(target["in_flight"])),
        Cell(str(dead), "red" if dead else None),
        Cell(apart(target["oldest_pending_at"], now) or "-"),
        _success(target["success_rate"]),
    ]


def _success(rate: float | None) -> Cell:
    """The share of the last hour's attempts that were delivered; never rounded up to all of them."""
    if rate is None:
        return Cell("-")
    return Cell(f"{int(rate * 100)}%", None if rate == 1 else "yellow")


def _next_probe(at: str | None, now: datetime) -> str:
    if at is None:
        return "not probed, only enable ends it"
    return f"next probe in {apart(at, now)}" if datetime.fromisoformat(at) > now else "a probe is due"


def _remarks(target: dict[str, Any], now: datetime) -> list[str]:
    name = target["name"]
    if not target["configured"]:
        return [
            f"{target['reason']}; put it back and reload, or let go of what it holds",
            f"relay targets discard {name}",
        ]
    if target["state"] == "disabled":
        since = f" {ago} ago" if (ago := apart(target["since"], now)) else ""
        why = str(target["reason"]) or "no reason was given"
        return [
            f"disabled{since}: {why}; {_next_probe(target['next_probe_at'], now)}",
            f"relay targets enable {name}",
        ]
    if target["throttled_until"]:
        return [f"it asked us to wait: {apart(target['throttled_until'], now)} more"]
    if target["failures"]:
        pace = "; one attempt at a time until a success" if target["paced"] else "; the next success sets it to 0"
        return [f"{plural(int(target['failures']), 'failure')} counted{pace}"]
    return []
