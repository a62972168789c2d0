"""The verb that is the relay itself: `run`."""

import signal
from pathlib import Path
from types import FrameType

import click

from relay.cli.configs import config_option, loaded


@click.command()
@config_option
@click.option("--new-store", is_flag=True, help="Begin with an empty store although the old one is gone or unusable.")
@click.option(
    "--watch", is_flag=True, help="Look at the config's files every 2 s, and reload when they hold another content."
)
@click.pass_context
def run(ctx: click.Context, config: Path | None, *, new_store: bool, watch: bool) -> None:
    """Receive webhooks and deliver them, until SIGTERM or Ctrl-C. SIGHUP reads the config again; a bad one changes
    nothing and is told in the log.

    Exit codes: 0 stopped as asked, 1 failure, 69 cannot listen, 74 store unusable, 75 store in use by another
    process, 78 config refused.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to reload yet, and no reason to end
    whole = loaded(config)
    from relay import process  # noqa: PLC0415 - the whole gateway; a refused config is told without it

    ctx.exit(process.run(whole, new_store=new_store, watch=watch))


def _leave(_number: int, _frame: FrameType | None) -> None:
    """A stop that comes before the gateway heeds signals itself. In a container the process is the first of all, and
    the kernel drops a signal that such a one has not asked for."""
    raise SystemExit(0)
