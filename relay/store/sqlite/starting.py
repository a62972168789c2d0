"""The steps of a start before the store takes anything, and what bars one told in words.

Law: what is found is judged before anything is changed; whoever reads why a start was refused learns what to do.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from relay.store import StoreError, StoreInUse, StoreUnusable
from relay.store.sqlite.connection import LocksFail, in_words, undo_cut_short
from relay.store.sqlite.copying import remove_copies
from relay.store.sqlite.file import Guard, lock_refusal, renew_log, set_aside
from relay.store.sqlite.foreign import foreign
from relay.store.sqlite.soundness import check_log


@asynccontextmanager
async def in_words_of_the_port(path: Path) -> AsyncIterator[None]:
    """Whatever bars the opening is told with the file and what the system says of it; nothing is left open by then."""
    try:
        yield
    except (sqlite3.Error, StoreInUse, LocksFail) as error:
        told = error if isinstance(error, StoreError) else in_words(path, error)
        refusal = await asyncio.to_thread(lock_refusal, path) if isinstance(told, StoreInUse | LocksFail) else None
        raise told if refusal is None else StoreUnusable(refusal) from None
    except (OSError, RuntimeError) as error:  # the latter is a loop of symbolic links
        raise StoreUnusable(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def guarded(path: Path, *, afresh: bool) -> tuple[Guard, Path | None, str | None]:
    """The held guard of a file that may be opened, what was set aside, and what to say of a log that is gone. This and
    what follows runs in threads: a disk that hangs must not make the process deaf to signals."""
    guard = Guard.acquire(path)
    try:
        if guard.is_blank and (whose := foreign(path)) is not None:
            guard.withdraw()
            raise StoreUnusable(whose)
        aside = set_aside(path, guard) if afresh else None
        undo_cut_short(path)
        guard.check(path)
        missing = guard.misses_log(path, check_log(path)) if path.exists() else None
        renew_log(path)
        return guard, aside, missing
    except BaseException:
        guard.release()
        raise


def resolved(path: Path) -> Path:
    """Where a store really is.

    Raises:
        StoreUnusable: it was moved away and a link put in its place, but not its log.
    """
    place, log = path.resolve(), path.with_name(path.name + "-wal")
    is_left = path.is_symlink() and log.exists() and log.stat().st_size > 0
    if is_left and log.resolve() != place.with_name(place.name + "-wal"):
        raise StoreUnusable(
            f"{log}: was left behind when the store was moved to {place}, and may hold what was stored last; move it "
            f"to {place}-wal, or away if it is not that store's, and start again"
        )
    return place


def tidy(path: Path, guard: Guard) -> None:
    """Remove what a kill has left of copies, and lock a file that is new."""
    remove_copies(path)
    guard.lock_file(path)
