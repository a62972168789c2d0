"""The verbs about what is kept: `prune` and `backup`.

Law: what deletes says how much went, and asks before it takes a single event away for good. A backup bears its name
only when it is whole, checked and on the disk; nothing that exists is written over unasked.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import click

from relay.cli.calling import access, call, download, for_programs, output_option
from relay.cli.parameters import FilePath
from relay.cli.terminal import Failure, plural, safe

PRUNE, BACKUP = "/api/v1/prune", "/api/v1/backup"
LONGEST_PRUNE = timedelta(hours=1)
"""Millions of events go in small batches, so that the relay answers meanwhile."""


SIDE_FILES = ("-wal", "-shm", ".guard")
"""What stands beside a store."""


@click.command()
@click.option("--event", metavar="ID", help="Erase this one event and all that was kept of it, whatever its state.")
@click.option("--dry-run", is_flag=True, help="Tell what would go; delete nothing.")
@click.option("--yes", is_flag=True, help="Erase the event without asking.")
@output_option
@click.pass_context
def prune(ctx: click.Context, event: str | None, *, dry_run: bool, yes: bool) -> None:
    """Delete what has outlived its retention now, or erase one event.

    A relay prunes by itself every minute, and when it is nearly full; this does not wait for that. An erased event is
    overwritten in the store; backups that were made before still hold it.
    """
    to = access(ctx)
    if event is None:
        found = call(to, "POST", PRUNE, body={"dry_run": dry_run}, patience=LONGEST_PRUNE)
        least = "at least " if found.get("more") else ""
        words = f"{least}{plural(int(found['pruned']), 'event')} {'would be ' if dry_run else ''}pruned"
    else:
        asked = call(to, "POST", PRUNE, body={"event": event, "dry_run": True})
        what = f"{safe(event)} with {plural(int(asked['deliveries']), 'delivery')} and all that is kept of it"
        if not dry_run and not yes:
            _ask(f"Erase {what}? It cannot be undone.")
        found = asked if dry_run else call(to, "POST", PRUNE, body={"event": event})
        words = f"{what} {'would be erased' if dry_run else 'is erased'}"
    click.echo(json.dumps(found) if for_programs(ctx) else words)


def _ask(question: str) -> None:
    """Go on only after a yes; no answer is a no."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise Failure("nothing was erased; --yes does it without asking")


@click.command()
@click.argument("file", type=FilePath(dir_okay=False, allow_dash=True))
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@output_option
@click.pass_context
def backup(ctx: click.Context, file: str, *, force: bool) -> None:
    """Copy the store of a running relay to FILE, or to stdout where FILE is "-".

    The copy is consistent and whole in itself: to go on from it, stop the relay, move relay.db and the files beside it
    away, put the copy in its place, and start.
    """
    to = access(ctx)
    if file == "-":
        if sys.stdout.isatty():
            raise Failure("a backup is no text for a terminal: relay backup - > FILE")
        with _progress() as progress:
            download(to, BACKUP, _into(sys.stdout.buffer, "stdout", progress))
        sys.stdout.buffer.flush()
        return
    target = Path(file)
    if not force:
        _refuse_existing(target)
    _refuse_store(target)
    try:
        part = target.with_name(target.name + ".part")
        with _gathering(part) as gathered:
            size = _fetched(ctx, part, gathered)
            if not force:
                _refuse_existing(target)
            part.replace(target)
            _sync(target.parent)
    except OSError as error:
        raise Failure(f"{target}: {error.strerror}; no backup was made") from None
    told = {"file": str(target), "bytes": size}
    click.echo(json.dumps(told) if for_programs(ctx) else f"{target}: {size} bytes, whole")


def _refuse_store(target: Path) -> None:
    """Never write over a store, nor beside one in its files' names, whatever was asked for."""
    names = (target.name, *(target.name.removesuffix(end) for end in SIDE_FILES if target.name.endswith(end)))
    if any(target.with_name(name + ".guard").exists() for name in names):
        raise Failure(f"{target} is a store that a relay uses, or one of its files; name another file")


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise Failure(f"{target} exists and was not touched; name another file, or say --force")


@contextlib.contextmanager
def _gathering(part: Path) -> Iterator[BinaryIO]:
    """The file in which a backup is gathered, ours alone, and gone if nothing comes of it."""
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"{part} is being written by another relay backup; wait for its end") from None
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, 0)
            yield file
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _fetched(ctx: click.Context, part: Path, file: BinaryIO) -> int:
    """Fetch a copy into a file, see that it is on the disk and whole; returns its bytes."""
    from relay.store import StoreUnusable  # noqa: PLC0415 - needed by this verb alone
    from relay.store.sqlite.copying import verify_copy  # noqa: PLC0415

    with _progress() as progress:
        size = download(access(ctx), BACKUP, _into(file, str(part), progress))
    file.flush()
    os.fsync(file.fileno())
    try:
        verify_copy(part)
    except StoreUnusable as error:
        raise Failure(f"what came is no whole copy and was not kept: {error}") from None
    return size


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Progress:
    """A bar on a terminal, whose length is known when the first part comes; elsewhere nothing."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._bar: click._termui_impl.ProgressBar[int] | None = None

    def moved(self, number: int, total: int) -> None:
        """So many bytes more, of so many."""
        if self._bar is None and sys.stderr.isatty():
            bar = click.progressbar(length=total, label="Backup", file=sys.stderr)
            self._bar = self._stack.enter_context(bar)
        if self._bar is not None:
            self._bar.update(number)


@contextlib.contextmanager
def _progress() -> Iterator[_Progress]:
    with contextlib.ExitStack() as stack:
        yield _Progress(stack)


def _into(file: BinaryIO, name: str, progress: _Progress) -> Callable[[bytes, int], None]:
    """What takes the parts of a download."""

    def take(part: bytes, total: int) -> None:
        try:
            file.write(part)
        except OSError as error:
            raise Failure(f"cannot write {name}: {error.strerror}; no backup was made") from None
        progress.moved(len(part), total)

    return take
