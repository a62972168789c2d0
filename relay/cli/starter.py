"""The verb that writes a starter config: `init`.

Law: what is written is accepted as it stands, proves what it receives, and holds no secret that anybody else has.
"""

import json
import os
import secrets
import textwrap
from pathlib import Path

import click

from relay.cli.parameters import FilePath
from relay.cli.terminal import Failure
from relay.providers import PROVIDERS

OWNER_ONLY = 0o600

_TEXT = """\
# Relay's configuration. Look it over with `relay check`, start it with `relay run`.
# Every key that exists: config.example.yaml in the repository, or `relay schema`.
# This file holds secrets: keep it readable for its owner alone, or move them into
# the environment ("${NAME}") or into files ("${file:/run/secrets/name}").

server:
  listen: 0.0.0.0:8080        # webhooks only: POST /hooks/SOURCE

admin:
  listen: 127.0.0.1:8081      # health, metrics, API; never public
  token: TOKEN

store:
  url: STORE

# Who may post to us, and how each one proves itself. Delete what you do not need.
# Providers that are known by name:
KNOWN
sources:
  xoxoday:
    provider: xoxoday
    # You choose this key. Set it in Xoxoday: Settings > API > Configure Webhook > Add Custom Header.
    secrets: [XOXODAY]

  plugandpay:
    provider: plugandpay
    # Replace it with your webhook key from Plug&Pay: Settings > Developers.
    secrets: [PLUGANDPAY]

  partner:                    # anybody else who signs with an HMAC
    provider: custom
    secrets: [PARTNER]
    verify: {scheme: hmac, header: X-Signature, algorithm: sha256, encoding: hex, prefix: "sha256="}
    event_type: type          # JMESPath into the JSON body
    dedupe_key: id

# Where events go. Put the address of your own application here.
targets:
  app:
    url: http://127.0.0.1:9000/hooks
    timeout: 15s

# Which events go where; without `match` a route takes all of its sources' events.
routes:
  - name: everything
    from: [xoxoday, plugandpay, partner]
    to: [app]
"""


@click.command()
@click.argument("path", required=False, default="config.yaml", metavar="[FILE|DIRECTORY]", type=FilePath())
def init(path: str) -> None:
    """Write a starter config with fresh secrets, by default config.yaml.

    It can be read by its owner alone, and a file that exists is never overwritten.
    """
    file = Path(path)
    if path.endswith(os.sep) or file.is_dir():
        file /= "config.yaml"
    try:
        write(file, text(store=store_beside(file)))
    except FileExistsError:
        raise Failure(f"{file} exists and is left as it is; name another file, or move it away") from None
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}") from None
    click.echo(next_steps(file))


def text(*, store: str) -> str:
    """A whole config, its secrets drawn anew."""
    filled = _TEXT.replace("KNOWN", _known())
    fresh = {name: secrets.token_hex(20) for name in ("TOKEN", "XOXODAY", "PLUGANDPAY", "PARTNER")}
    for mark, value in (fresh | {"STORE": store}).items():
        for place in (f": {mark}\n", f"[{mark}]"):
            filled = filled.replace(place, place.replace(mark, json.dumps(value, ensure_ascii=False)))
    return filled


def _known() -> str:
    """The names of all providers, as comments."""
    return textwrap.fill(", ".join(sorted(PROVIDERS)), 80, initial_indent="#   ", subsequent_indent="#   ")


def store_beside(file: Path) -> str:
    """The URL of a store in the config's directory, relative where that is the directory we are in."""
    path = str(file.absolute().parent / "relay.db")
    if file.absolute().parent == Path.cwd() or not path.isprintable() or any(mark in path for mark in "?#"):
        return "sqlite:///relay.db"
    return f"sqlite:///{path.replace('$', '$$')}"


def write(file: Path, content: str) -> None:
    """Create a file with this content for its owner alone, whole or not at all.

    Raises:
        FileExistsError: it exists, be it a broken link.
        OSError: it cannot be written.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(content)
    except OSError:
        file.unlink(missing_ok=True)
        raise


def next_steps(file: Path) -> str:
    """What to do with a config that was just written."""
    option = "" if file.absolute() == Path("config.yaml").absolute() else f" --config {file}"
    steps = (
        ("put the address of your application into it, under targets", ""),
        (f"relay check{option}", "is it whole?"),
        (f"relay run{option}", "start it"),
        (f"relay send xoxoday{option}", "in another terminal: one signed sample"),
    )
    lines = [f"wrote {file}, with fresh secrets, readable for you alone", "", "next:"]
    broad = max(len(what) for what, why in steps if why)
    for number, (what, why) in enumerate(steps, 1):
        remark = click.style(f"  # {why}", fg="bright_black") if why else ""
        lines.append(f"  {number}. {what.ljust(broad if why else 0)}{remark}")
    return "\n".join(lines)
