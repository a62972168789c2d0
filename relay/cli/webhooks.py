"""A webhook on the command line: whose it is, its headers, its body.

Law: bytes are taken as they come, and a header as HTTP would read it; what is neither is a wrong command line.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from relay.cli.parameters import body_from
from relay.cli.terminal import Failure, safe
from relay.config.problems import suggestion
from relay.model import Headers, Source
from relay.rules.signing import octets

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


def headers(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> Headers:
    """The headers that `--header` means. One that is none is not repeated: it may well hold a key."""
    found: list[tuple[str, str]] = []
    for number, line in enumerate(given, 1):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise click.BadParameter(f"number {number} is not of the form 'Name: value'")
        found.append((match[1], match[2]))
    return tuple(found)


def data(_ctx: click.Context, _parameter: click.Parameter, given: str | None) -> bytes | None:
    """The bytes that `--data` means, None without it."""
    if given is None:
        return None
    if given == "-":
        return body_from(sys.stdin.buffer, "what stdin brings")
    if not given.startswith("@"):
        return octets(given)
    try:
        with Path(given[1:]).open("rb") as file:
            return body_from(file, given[1:])
    except OSError as error:
        raise click.BadParameter(f"cannot read {safe(given[1:])}: {error.strerror}") from None


data_option = click.option("--data", metavar="@FILE|-|TEXT", callback=data, help="The body, byte for byte.")
headers_option = click.option(
    "--header",
    "headers",
    metavar="'NAME: VALUE'",
    multiple=True,
    callback=headers,
    help="A header as it was sent; once for each.",
)


def source_named(name: str, sources: Iterable[Source]) -> Source:
    """The source of that name.

    Raises:
        Failure: there is none; says which was probably meant.
    """
    known = {source.name: source for source in sources}
    if name in known:
        return known[name]
    hint = suggestion(name, known) or f"; known: {', '.join(sorted(known))}"
    raise Failure(f'unknown source "{safe(name)}"{hint}')
