"""What may be given on the command line: names of files, ids, names, bodies.

Law: what no relay and no system could take is refused in words, before anybody is asked.
"""

from typing import IO, Any
from urllib.parse import quote

import click

from relay.cli.terminal import safe

LARGEST_BODY = 64 * 1024 * 1024
"""Bytes of a body; as many as the largest `server.max_body`."""


class FilePath(click.Path):
    """A file by its name; an empty one is none, though the system's library takes it for the directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("is empty; it names no file", param, ctx)
        return super().convert(value, param, ctx)


def refuse_undecodable(ctx: click.Context) -> None:
    """Refuse what is not text in what a relay is asked for; the name of a file may be any bytes.

    Raises:
        click.BadParameter: names the first.
    """
    for parameter in ctx.command.params:
        given = ctx.params.get(parameter.name or "")
        texts = given if isinstance(given, tuple | list) else (given,)
        if isinstance(parameter.type, click.Path) or all(is_text(one) for one in texts):
            continue
        raise click.BadParameter("is not UTF-8 text", ctx, parameter)


def is_text(value: object) -> bool:
    """Whether a value of the command line can be sent: bytes that are not UTF-8 stand in it as lone surrogates."""
    return not isinstance(value, str) or not any("\ud800" <= letter <= "\udfff" for letter in value)


def segment(name: str, what: str) -> str:
    """An id as a segment of a path of the API.

    Raises:
        click.UsageError: none can be that.
    """
    if name in {"", ".", ".."} or not is_text(name):
        raise click.UsageError(f'"{safe(name)}" is no id of {what}')
    return quote(name, safe="")


def body_from(file: IO[bytes], name: str) -> bytes:
    """A body, whole.

    Raises:
        click.BadParameter: larger than any relay takes.
    """
    content = file.read(LARGEST_BODY + 1)
    if len(content) > LARGEST_BODY:
        raise click.BadParameter(f"{safe(name)} is larger than 64 MiB, which no relay takes")
    return content
