"""The verbs about the YAML: `check` and `schema`; and how every verb reads it.

Law: what is wrong with a config is told in the config's own lines, on stderr, with exit code 78.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from relay.cli.parameters import FilePath
from relay.cli.terminal import plural
from relay.config import Config, ConfigRefused, find, json_schema, load
from relay.config.document import Entry, Table, read
from relay.config.expansion import TooLarge, plain_values
from relay.config.places import tellable
from relay.config.problems import Refused, Report

REFUSED = 78

Parsed = TypeVar("Parsed")

config_option = click.option(
    "--config",
    metavar="FILE",
    type=FilePath(path_type=Path),
    help="The YAML. Else $RELAY_CONFIG, ./config.yaml, /etc/relay/config.yaml.",
)


class Unfit(click.ClickException):
    """A config that is not fit to run; every problem is one line with its place."""

    exit_code = REFUSED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the problems on stderr."""
        click.echo(self.message, file=file, err=file is None)


def loaded(explicit: Path | None) -> Config:
    """The config that a verb is to work with, whole and checked.

    Raises:
        Unfit: there is none, or it is refused.
    """
    try:
        return load(find(explicit, os.environ), os.environ)
    except ConfigRefused as refused:
        raise Unfit(str(refused)) from None


def admin_value(path: Path, key: str, parse: Callable[[Any], Parsed]) -> Parsed | None:
    """One value of the section `admin`, None where it is not written.

    The rest of the file is not judged: who asks a running relay need not have the variables with its secrets.

    Raises:
        Unfit: the file is no YAML mapping, or this value is refused.
    """
    document = read(path, tellable=tellable)
    if not isinstance(document.root, Table):
        loaded(path)
        return None
    section = document.root.entries.get("admin")
    if section is None or not isinstance(section.node, Table) or key not in section.node.entries:
        return None
    wanted = Table(section.node.place, {key: section.node.entries[key]})
    root = Table(document.root.place, {"admin": Entry(section.key_place, wanted)})
    report = Report(document.locate, tellable)
    try:
        plain = plain_values(root, os.environ, report)
        if not report.problems:
            return parse(plain["admin"][key])
    except (Refused, TooLarge) as refused:
        report.refuse(("admin", key), str(refused))
    raise Unfit(str(ConfigRefused(path, report.problems)))


@click.command()
@click.argument("file", required=False, type=FilePath(path_type=Path))
@config_option
def check(file: Path | None, config: Path | None) -> None:
    """Tell everything that is wrong with a config, and what is doubtful.

    Nothing is bound and no file is created. Exit code 0 when the config is fit to run, else 78.
    """
    if file is not None and config is not None and file != config:
        raise click.UsageError("name the file once: relay check FILE")
    whole = loaded(config or file)
    for warning in whole.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning.at(whole.path)}", err=True)
    counts = (("source", whole.sources), ("target", whole.targets), ("route", whole.routes))
    click.echo(f"config ok: {', '.join(plural(len(items), noun) for noun, items in counts)}")


@click.command()
def schema() -> None:
    """Print the config's JSON Schema, so that an editor knows every key.

    For example: relay schema > schema.json, and "# yaml-language-server: $schema=schema.json" in the first line.
    """
    click.echo(json.dumps(json_schema(), indent=2))
