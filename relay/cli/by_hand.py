"""An event as a command that sends it again by hand.

Law: a command that is printed can be pasted: every word of it is quoted for the shell. It sends what the relay would
send, as far as that is known here; where it is not, that is said in its place, and no other request is made up.
"""

import base64
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from relay.cli.proving import Proof, proof_of
from relay.cli.terminal import Failure
from relay.config import Config, ConfigRefused, find, load
from relay.model import Event, Fetched, Shaped, Target, Unshaped
from relay.rules.exactness import read
from relay.rules.forwarding import HOP_BY_HOP, is_of_the_body
from relay.rules.shaping import shaped

MOST_TEXT = 64 * 1024
"""Bytes of a body that stand in the command itself."""


def commands(event: Mapping[str, Any], target: str | None, path: Path | None) -> list[str]:
    """A command for each target that the event goes to, or for the one that was asked for.

    Args:
        event: as the API shows it, with its body.
        target: the only one that is asked for.
        path: of the config, None for the default.
    """
    config = _config(path)
    targets = {one.name: one for one in config.targets} if config is not None else {}
    names = [target] if target is not None else [one["target"] for one in event["deliveries"]]
    if not names:
        raise Failure("the event was unrouted; name a target: --target NAME")
    attempts = {one["target"]: one["attempts"] for one in event["deliveries"]}
    known = [targets[name] for name in names if name in targets]
    if any(one.own_headers or one.auth or one.proxy for one in known) and sys.stdout.isatty():
        click.echo("these commands hold the targets' own headers and credentials", err=True)
    proofs = {one.name: one.proof_headers for one in config.sources} if config is not None else {}
    return [
        _told(event, name, targets.get(name), attempts.get(name, 0) + 1, proofs.get(event["source"], frozenset()))
        for name in names
    ]


def _config(path: Path | None) -> Config | None:
    """The config that is at hand, for the API tells no addresses; None where there is no whole one."""
    try:
        return load(find(path, os.environ), os.environ)
    except ConfigRefused:
        return None


def _told(event: Mapping[str, Any], name: str, target: Target | None, attempt: int, proofs: frozenset[str]) -> str:
    remark = f"# {event['id']} to {name}"
    body = base64.b64decode(event["body_base64"])
    data = _fetched(event, name)
    if isinstance(data, Unshaped):
        return f"{remark}: cannot be told here what it would get\n# {data.reason}"
    shape = Shaped(body) if target is None else shaped(target, _event(event), body, data)
    if isinstance(shape, Unshaped):
        return f"{remark}: cannot be told here what it would get\n# {shape.reason}"
    proof = Proof() if target is None else proof_of(target, event["id"], shape.url)
    command = _command(event, target, shape, proof, attempt=attempt, proofs=proofs)
    if target is None:
        return f"{remark}; URL is its address in your config\n{command}"
    return "\n".join((remark, *(f"# {one}" for one in proof.remarks), command))


def _fetched(event: Mapping[str, Any], name: str) -> Any:
    """What was fetched for an event's delivery, parsed; why nothing can be said where it is still to be fetched."""
    asked: list[str] = next((one["enrichers"] for one in event["deliveries"] if one["target"] == name), [])
    kept = {one["enricher"]: one["data"] for one in event["fetched"]}
    found = next((enricher for enricher in asked if enricher in kept), None)
    if found is not None:
        return read(kept[found])
    return Unshaped(f"enricher {asked[0]} has not brought anything for it yet") if asked else Fetched.NOTHING


def _event(event: Mapping[str, Any]) -> Event:
    """The event as templates see it; a value that the API has masked is not there."""
    headers = tuple((name, value) for name, value in event["headers"] if value != "***")
    at = datetime.fromisoformat(event["received_at"])
    return Event(event["id"], event["source"], event["type"], at, headers, b"")


def _command(
    event: Mapping[str, Any],
    target: Target | None,
    shape: Shaped,
    proof: Proof,
    *,
    attempt: int,
    proofs: frozenset[str],
) -> str:
    own = shape.headers if target is None else target.headers + shape.headers + proof.headers
    replaced = {key.lower() for key, _ in own}
    headers = [*_forwarded(event["headers"], replaced, proofs if shape.is_changed else None), *own]
    headers += [
        ("relay-event-id", event["id"]),
        ("relay-source", event["source"]),
        ("relay-attempt", str(attempt)),
        ("relay-replay", "1"),
    ]
    if all(key.lower() != "content-type" for key, _ in headers):
        headers.append(("Content-Type", shape.content_type or ""))  # or curl would name one of its own
    text = _text(shape.body)
    words = ["curl -sS -i -X POST", *(f"-H {shlex.quote(f'{key}: {value}'.rstrip())}" for key, value in headers)]
    words.append("--data-binary @-" if text is None else f"--data-raw {shlex.quote(text)}")
    words += (shlex.join(option) for option in proof.options)
    words.append('"$URL"' if target is None else shlex.quote(proof.url))
    command = " \\\n  ".join(words)
    if text is None:
        command = f"base64 -d <<'BODY' | {command}\n{base64.encodebytes(shape.body).decode()}BODY"
    return command


def _text(body: bytes) -> str | None:
    """A body that can stand in a command; None for one that cannot."""
    if len(body) >= MOST_TEXT or b"\0" in body:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _forwarded(
    headers: Sequence[Sequence[str]], replaced: set[str], proofs: frozenset[str] | None
) -> list[tuple[str, str]]:
    """The provider's headers as they can be sent again: what was masked, belongs to a connection, or is about another
    body, cannot."""
    left_out = HOP_BY_HOP | replaced | {"accept-encoding", "user-agent"}
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in left_out
        and value != "***"
        and not (proofs is not None and is_of_the_body(name.lower(), proofs))
    ]
