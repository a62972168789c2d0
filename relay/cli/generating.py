"""The verb that prints what runs several relays on one database: `generate`.

Law: what is printed is complete, and holds no secret and no default for one: until those are filled in, nothing starts.
"""

import re
from importlib.resources import files

import click

from relay import __version__
from relay.cli.terminal import safe

IMAGE = "relay"
"""What the README builds."""
MOST_REPLICAS = 100

_IMAGE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/:@-]{0,253}[A-Za-z0-9])?")


def _image(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The name of an image, with or without registry, tag and digest: nothing but what such a name is made of."""
    if not _IMAGE_NAME.fullmatch(value):
        raise click.BadParameter(f'"{safe(value)}" is no name of an image', ctx, param)
    return value


@click.command()
@click.argument("kind", type=click.Choice(["compose", "kubernetes"]))
@click.option(
    "--replicas", type=click.IntRange(1, MOST_REPLICAS), default=2, show_default=True, help="Relays on one database."
)
@click.option("--image", metavar="NAME", callback=_image, default=IMAGE, show_default=True, help="Relay's image.")
def generate(kind: str, replicas: int, image: str) -> None:
    """Print a file that runs several relays on one PostgreSQL database.

    compose has PostgreSQL and a balancer in it; kubernetes expects a database. What must be filled in is said at its
    top.
    """
    click.echo(text(kind, replicas=replicas, image=image), nl=False)


def text(kind: str, *, replicas: int, image: str) -> str:
    """The whole file, as it is to be stored."""
    filled = (files(__package__) / "generated" / f"{kind}.yaml").read_text(encoding="utf-8")
    values = {
        "VERSION": __version__,
        "RELAYS": "one relay" if replicas == 1 else f"{replicas} relays",
        "REPLICAS": str(replicas),
        "LEAST": str(min(1, replicas - 1)),  # of a single one, none: it could never be moved
        "IMAGE": image,
    }
    for name, value in values.items():
        filled = filled.replace(f"@{name}@", value)
    return filled
