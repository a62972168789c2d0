"""The verb that sends again what had ended: `replay`.

Law: what is about to be sent is counted and asked about first, and no answer is a no. The work is the relay's: whoever
watches it here may go away and come back, and nothing is sent twice by that.
"""

import json
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from relay.cli.calling import Access, access, call, for_programs, output_option
from relay.cli.parameters import segment
from relay.cli.terminal import Failure, Refused, Unanswered, agreed, plural, safe

EVENTS, REPLAYS = "/api/v1/events", "/api/v1/replays"
LOOK = 0.2
"""Seconds between two looks at a job."""
PATIENCE_S = 30.0
"""How long a relay that went away while it was watched is waited for."""
GATHERING = timedelta(minutes=10)
"""How long the set of a job may take to be counted or stored."""
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class _How:
    """How a job is shown and steered."""

    to: Access
    as_json: bool

    def say(self, shown: dict[str, Any], *lines: str) -> None:
        """The object for a program, or the lines for a person."""
        click.echo(json.dumps(shown) if self.as_json else "\n".join(lines))


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--state", type=click.Choice(["dead", "delivered", "skipped", "unrouted"]), help="What is replayed.")
@click.option("--since", metavar="TIME", help="Received since: a span back (24h, 7d) or a time (2026-03-01T12:00:00Z).")
@click.option("--until", metavar="TIME", help="Received before, likewise.")
@click.option("--source", metavar="NAME", help="Of this source.")
@click.option("--type", "kind", metavar="GLOB", help="Of a type that fits.")
@click.option("--target", metavar="NAME", help="To this target; with IDs a delivery that is missing is made.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The oldest N.")
@click.option("--rate", metavar="RATE", help="How fast: 50/s (the default), 150/5m.")
@click.option("--dry-run", is_flag=True, help="Count, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--resume", metavar="JOB", help="Let a paused replay go on, and watch it.")
@click.option("--cancel", metavar="JOB", help="End a replay; what it has sent stays sent.")
@output_option
@click.pass_context
def replay(ctx: click.Context, /, ids: tuple[str, ...], **given: Any) -> None:
    """Send again what had ended: single events, or all that a filter finds.

    \b
    relay replay evt_01J…                       every target that has ended with it
    relay replay evt_01J… --target crm          only crm, also if it was never asked to
    relay replay --state dead --since 24h       counts first, then asks

    What waits or is under way is left alone. Each is tried by a fresh schedule, carries relay-replay: 1, and is held
    where its target is disabled. Events that no route wanted (--state unrouted, or their IDs) are routed anew. Many
    are sent by the relay, oldest first, at --rate; Ctrl-C pauses it.
    """
    wanted = {name: value for name, value in given.items() if value}
    _check(ids, wanted)
    how = _How(access(ctx), for_programs(ctx))
    if ids:
        ctx.exit(_replay_events(how, ids, wanted.get("target")))
    if "cancel" in wanted:
        job = _steer(how.to, wanted["cancel"], "cancel")
        how.say(job, f"{job['id']} is cancelled: {_counts(job)}")
        return
    if "resume" in wanted:
        ctx.exit(_follow(how, _steer(how.to, wanted["resume"], "resume")))
    ctx.exit(_replay_many(how, wanted))


def _check(ids: tuple[str, ...], wanted: dict[str, Any]) -> None:
    """Events, a filter, or one job: exactly one of them."""
    options = wanted.keys() - {"yes"}
    steering = options & {"resume", "cancel"}
    if steering and (len(options) > 1 or ids):
        raise click.UsageError(f"--{min(steering)} stands alone: a replay keeps what it began with")
    if ids and options - {"target"}:
        raise click.UsageError("give IDs, or a filter, not both; only --target goes with IDs")
    if not ids and not steering and "state" not in options:
        raise click.UsageError("say what: IDs of events, or --state dead with --since, --source, --type, --target")


def _replay_events(how: _How, ids: Iterable[str], target: str | None) -> int:
    """Replay events one after the other; one that the relay refuses does not keep it from the next."""
    code = 0
    for event_id in ids:
        try:
            body = {} if target is None else {"target": target}
            found = call(how.to, "POST", f"{EVENTS}/{segment(event_id, 'an event')}/replay", body=body)
        except Refused as refused:
            click.echo(f"relay: {safe(event_id)}: {refused.message}", err=True)
            code = 1
            continue
        how.say(found, f"{safe(event_id)}: {_told(found)}")
    return code


def _told(found: dict[str, Any]) -> str:
    """What a replay of one event came to."""
    parts = [f"replayed to {', '.join(found['replayed'])}"] if found["replayed"] else []
    parts += [f"left alone, it waits already: {', '.join(found['waiting'])}"] if found["waiting"] else []
    parts += [f"skipped {one['target']}: {one['reason']}" for one in found["skipped"]]
    return safe("; ".join(parts)) or "nothing to do: no route wants it"


def _replay_many(how: _How, wanted: dict[str, Any]) -> int:
    names = {"kind": "type"}
    body = {names.get(name, name): value for name, value in wanted.items() if name not in {"yes", "dry_run"}}
    counted = _begun(how.to, body | {"dry_run": True})
    what = _what(wanted["state"], counted)
    if not counted["total"]:
        how.say(counted, f"{what}: nothing to do")
        return 0
    if "dry_run" in wanted:
        how.say(counted, what, "nothing was done: --dry-run")
        return 0
    if "yes" not in wanted and not agreed(f"{what}. Replay them?"):
        raise Failure(f"nothing was replayed: {what}. Say yes with --yes")
    try:
        job = _begun(how.to, body)
    except KeyboardInterrupt:
        click.echo(
            f"relay: interrupted before {how.to.url} answered: the replay may begin. {_running(how.to)}", err=True
        )
        return INTERRUPTED
    return _follow(how, job)


def _running(to: Access) -> str:
    """Which replays run now, as far as that can be had."""
    try:
        ids = [str(job["id"]) for job in call(to, "GET", REPLAYS)["replays"] if job["state"] == "running"]
    except Failure as failure:
        return failure.message
    return "\n".join(("What runs now:", *map(_further, ids))) if ids else "None runs now."


def _begun(to: Access, body: dict[str, Any]) -> dict[str, Any]:
    """Have a filter counted or replayed."""
    found: dict[str, Any] = call(to, "POST", REPLAYS, body=body, patience=GATHERING)
    return found


def _what(state: str, counted: dict[str, Any]) -> str:
    """`412 dead deliveries of 3 targets`."""
    if state == "unrouted":
        return plural(int(counted["total"]), "unrouted event")
    targets = plural(len(counted["targets"]), "target")
    return plural(int(counted["total"]), f"{state} delivery") + (f" of {targets}" if counted["total"] else "")


def _steer(to: Access, job_id: str, verb: str) -> dict[str, Any]:
    found: dict[str, Any] = call(to, "POST", f"{REPLAYS}/{segment(job_id, 'a replay')}/{verb}", body={})
    return found


def _counts(job: dict[str, Any]) -> str:
    skipped = f", {job['skipped']} skipped" if job["skipped"] else ""
    return f"{job['done']} of {job['total']} replayed{skipped}"


def _follow(how: _How, job: dict[str, Any]) -> int:
    """Watch a job to its end, also over a restart of the relay; Ctrl-C pauses it."""
    job_id = str(job["id"])
    try:
        with _bar(job) as bar:
            while job["state"] == "running":
                time.sleep(LOOK)
                job = _looked_at(how.to, job_id)
                if bar is not None:
                    bar.update(job["done"] + job["skipped"] - bar.pos)
    except KeyboardInterrupt:
        return _pause(how, job_id)
    return _over(how, job)


def _bar(job: dict[str, Any]) -> AbstractContextManager[Any]:
    """A progress bar where somebody watches."""
    if sys.stderr is None or not sys.stderr.isatty():
        return nullcontext()
    bar: AbstractContextManager[Any] = click.progressbar(length=int(job["total"]), label="replayed", file=sys.stderr)
    return bar


def _looked_at(to: Access, job_id: str) -> dict[str, Any]:
    """A job as it is now. A relay that is away may be restarting: it is asked again for a while."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            found: dict[str, Any] = call(to, "GET", f"{REPLAYS}/{segment(job_id, 'a replay')}")
        except (Unanswered, Refused) as error:
            is_lost = isinstance(error, Refused) and error.status != 503
            if is_lost or time.monotonic() > end:
                raise Failure(f"{error.message}\n{_further(job_id)}") from None
            time.sleep(LOOK)
        else:
            return found


def _pause(how: _How, job_id: str) -> int:
    try:
        job = _steer(how.to, job_id, "pause")
    except Failure as failure:
        raise Failure(f"{job_id} could not be paused and may go on: {failure.message}\n{_further(job_id)}") from None
    how.say(job, f"\n{job_id} is paused: {_counts(job)}", _further(job_id))
    return INTERRUPTED


def _over(how: _How, job: dict[str, Any]) -> int:
    """The last word on a job that runs no more; 0 where all of it had its turn."""
    if job["state"] == "done":
        how.say(job, f"{_counts(job)}; {job['id']} is done")
        return 0
    why = f" ({safe(str(job['reason']))})" if job["reason"] else ""
    lines = [f"{job['id']} is {job['state']}{why}: {_counts(job)}"]
    if job["state"] == "paused":
        lines.append(_further(str(job["id"])))
    how.say(job, *lines)
    return 1


def _further(job_id: str) -> str:
    return f"relay replay --resume {job_id}   # goes on; --cancel {job_id} ends it"
