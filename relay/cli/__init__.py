"""Turns argv into a call; one module a family of verbs.

Law: a verb is imported when it is called, so that `relay health` in a container costs little. Whatever happens, a user
reads words and gets an exit code of the contract; a traceback is a bug of ours.
"""

import difflib
import errno
import gc
import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module

import click

from relay import __version__

INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C ended: 128 + SIGINT."""


_UNWRITABLE = frozenset({errno.EPIPE, errno.ENOSPC})


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb is, and what it does in one line of the overview."""

    module: str
    sentence: str


FAMILIES: Mapping[str, Mapping[str, Verb]] = {
    "Start here": {
        "demo": Verb("demo", "See it work: the real gateway, two targets, genuine samples."),
        "init": Verb("starter", "Write a starter config with fresh secrets."),
        "check": Verb("configs", "Tell everything that is wrong with a config."),
        "run": Verb("running", "Receive and deliver, until it is stopped."),
    },
    "While it runs": {
        "send": Verb("sending", "Sign a sample as its provider would, and post it."),
        "verify": Verb("verifying", "Tell why a webhook is believed or not, step by step."),
        "route": Verb("routing", "Tell where an event would go, and why not elsewhere."),
        "events": Verb("events", "Show events and where their deliveries stand; or what was refused."),
        "show": Verb("showing", "Show one event: headers, routes, every attempt."),
        "stats": Verb("stats", "Show what came and what arrived, by source and target."),
        "targets": Verb("targets", "Show the targets; enable, disable or test one."),
        "replay": Verb("replays", "Send again what is dead, or has ended in another way."),
        "tail": Verb("tail", "Watch what is accepted, refused and attempted, live."),
        "prune": Verb("keeping", "Delete what has outlived its retention, or erase one event."),
        "backup": Verb("keeping", "Copy the store while it runs."),
        "copy": Verb("moving", "Move the store from SQLite to PostgreSQL."),
        "health": Verb("asking", "Ask whether it is alive, or ready."),
    },
    "Reference": {
        "generate": Verb("generating", "Print what runs several relays: for Compose, or Kubernetes."),
        "bench": Verb("bench", "Measure what a relay does on this machine."),
        "schema": Verb("configs", "Print the config's JSON Schema, for editors."),
        "version": Verb("asking", "Print the version."),
    },
}

_VERBS = {name: verb for family in FAMILIES.values() for name, verb in family.items()}


class Overview(click.Group):
    """The verbs in their families, each imported when it is needed."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """All verbs, in the order they are shown."""
        return list(_VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, None where there is none."""
        verb = _VERBS.get(cmd_name)
        if verb is None:
            return None
        command: click.Command = getattr(import_module(f"relay.cli.{verb.module}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that the arguments begin with; an unknown one ends with exit code 2."""
        if not args[0].startswith("-") and args[0] not in _VERBS:
            near = difflib.get_close_matches(args[0].lower(), _VERBS, n=2, cutoff=0.65)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command {click.format_filename(args[0])!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview: one section a family."""
        for family, verbs in FAMILIES.items():
            with formatter.section(family):
                formatter.write_dl([(name.ljust(8), verb.sentence) for name, verb in verbs.items()])

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Where more is."""
        formatter.write_paragraph()
        formatter.write_text("relay COMMAND --help tells more about one.")


@click.command(
    "relay", cls=Overview, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "--version", prog_name="relay", message="%(prog)s %(version)s")
@click.pass_context
def relay(ctx: click.Context) -> None:
    """A webhook gateway: receives, proves, commits, then delivers to every target."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line of this process and exit."""
    _collect_seldom()
    _hold_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        code = _outcome()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _tell_unwritten(error)
        code = code or 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    _drop_unwritten()
    sys.exit(code)


def _collect_seldom() -> None:
    """Look for garbage in cycles less often: what is imported stays, and to look through it again and again took an
    eighth of a start; requests leave few cycles behind, and it took a seventh of the processor."""
    gc.set_threshold(50_000, 20, 50)


def _hold_standard_streams() -> None:
    """Let nothing that is opened later be taken for stdin, stdout or stderr, where whoever started us has closed them:
    words for stderr would go into a socket, or into the event loop's own file, which ends the process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this


def _outcome() -> int:
    """The exit code of the verb that was asked for."""
    colour = False if os.environ.get("NO_COLOR") else None
    try:
        code = relay.main(prog_name="relay", standalone_mode=False, color=colour)
    except click.ClickException as error:
        with suppress(OSError):  # the code holds also where the words can go nowhere
            error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _tell_unwritten(error: OSError) -> None:
    """Say that the output takes no more, where that can be said; a reader that went away early is not worth words."""
    if error.errno != errno.EPIPE:
        with suppress(OSError):
            click.echo(f"relay: cannot write: {error.strerror}", err=True)


def _drop_unwritten() -> None:
    """Let go of what a stream did not take: the interpreter's own last flush would end with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
