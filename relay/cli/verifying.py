"""The verb that answers "why 401?": `verify`.

Law: the config alone is read and nobody is asked; the verdict is that of the rules that the relay itself judges by. No
secret reaches the output, whatever was typed.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from relay.cli import webhooks
from relay.cli.configs import config_option, loaded
from relay.cli.terminal import safe, width
from relay.model import Headers
from relay.providers import PROVIDERS
from relay.rules.addresses import client_address
from relay.rules.diagnosis import Diagnosis, Posted, Step, Surroundings, diagnose

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "bright_black")}
_PLAIN_MARKS = {True: "+", False: "x", None: "-"}
"""For terminals that cannot show the others."""
_INDENT = 15


def _remote(_ctx: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    if given is None:
        return None
    address = client_address(given, (), ())
    if not isinstance(address, str):
        raise click.BadParameter(f"{safe(given)} is not an IP address")
    return address


def _at(_ctx: click.Context, _parameter: click.Parameter, given: str | None) -> datetime:
    if given is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(given)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter(f"{safe(given)} is not a time with its zone, such as 2026-09-20T10:15:31Z")


@click.command()
@click.argument("source")
@webhooks.headers_option
@webhooks.data_option
@click.option("--remote", metavar="IP", callback=_remote, help="Who connected; behind a proxy, the proxy.")
@click.option("--at", metavar="TIME", callback=_at, help="Judge it as of then, such as 2026-09-20T10:15:31Z. Else now.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", help="json: one object, for programs.")
@config_option
def verify(
    source: str,
    *,
    headers: Headers,
    data: bytes | None,
    remote: str | None,
    at: datetime,
    output: str,
    config: Path | None,
) -> None:
    """Tell, step by step, why a webhook of SOURCE is believed or not, and what would have matched.

    Reads the config alone. Exit code 0 when it is proven, or the source proves nothing; else 1.

    \b
    For example: relay verify partner --data @body.json \\
                   --header 'X-Signature: sha256=…'
    """
    whole = loaded(config)
    found = webhooks.source_named(source, whole.sources)
    provider = PROVIDERS.get(found.provider)
    surroundings = Surroundings(
        sources=whole.sources,
        routes=whole.routes,
        max_body=whole.server.max_body,
        trusted_proxies=whole.server.trusted_proxies,
        hint=provider.secret_hint if provider is not None else "",
    )
    diagnosis = diagnose(Posted(headers, data, remote), found, surroundings, at)
    if output == "json":
        click.echo(json.dumps(_plain(diagnosis)))
    else:
        click.echo("\n".join(_told(diagnosis)))
    is_fine = diagnosis.proven or (diagnosis.proves_nothing and diagnosis.is_accepted)
    raise click.exceptions.Exit(0 if is_fine else 1)


def _plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as a program reads it."""
    return {
        "source": diagnosis.source,
        "proven": diagnosis.proven,
        "status": diagnosis.status,
        "steps": [_plain_step(step) for step in diagnosis.steps],
        "event_type": diagnosis.event_type,
        "dedupe_key": diagnosis.dedupe_key,
        "routes": list(diagnosis.routes),
        "targets": list(diagnosis.targets),
    }


def _plain_step(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {"step": step.name, "ok": step.ok, "said": step.said}
    if step.advice:
        found["advice"] = step.advice
    if step.expected:
        found["expected"] = step.expected
    return found


def _told(diagnosis: Diagnosis) -> Iterator[str]:
    """The diagnosis as a person reads it."""
    yield _headline(diagnosis)
    yield ""
    for step in diagnosis.steps:
        yield from _lines(step)


def _headline(diagnosis: Diagnosis) -> str:
    is_good = diagnosis.proven or (diagnosis.proves_nothing and diagnosis.is_accepted)
    if diagnosis.proves_nothing:
        verdict = "nothing to prove"
    elif diagnosis.proven:
        verdict = "proven"
    else:
        verdict = "not proven, but let through" if diagnosis.is_accepted else "not proven"
    colour = "green" if is_good else "yellow" if diagnosis.is_accepted else "red"
    styled = click.style(verdict, fg=colour, bold=True)
    return f"{diagnosis.source}: {styled}; the relay answers {diagnosis.status}"


def _lines(step: Step) -> Iterator[str]:
    mark, colour = _MARKS[step.ok]
    arrow = "→ "
    if not _shows(mark + arrow):
        mark, arrow = _PLAIN_MARKS[step.ok], "> "
    head, *rest = _wrapped(step.said)
    yield f"  {click.style(mark, fg=colour)} {step.name:<{_INDENT - 4}}{head}"
    yield from (" " * _INDENT + line for line in rest)
    if step.expected:
        yield " " * _INDENT + "for the bytes given here it would be:"
        yield f"    {click.style(safe(step.expected), fg='green')}"
    if step.advice:
        for line in _wrapped(arrow + step.advice):
            yield " " * _INDENT + click.style(line, fg="yellow")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(safe(text), width() - _INDENT, break_on_hyphens=False) or [""]


def _shows(mark: str) -> bool:
    """Whether stdout can carry a character."""
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
