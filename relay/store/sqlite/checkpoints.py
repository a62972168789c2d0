"""The log's pages moved home: when, and how much of the log is left.

Law: no answer waits for it but the one whose commit stands behind it; it waits for no reader. A log that is to be
emptied, because it counts or because it still holds what was erased, is tried again until a reader no longer needs it.
"""

import asyncio
import sqlite3
import time

from relay.store.sqlite.connection import BUSY_TIMEOUT_S, StoreConnection
from relay.store.sqlite.presence import Moved, Presence

CHECKPOINT_S = 0.5
IDLE_CHECKPOINT_S = 30.0
CHECKPOINT_COMMITS = 200
CHECKPOINT_BYTES = 16 * 1024 * 1024
"""Bytes of new events after which it is due at once, so that the log stays small however fast they come."""
EMPTY_AGAIN_S = 0.5
"""Between two tries to empty the log."""


class Checkpoints:
    """What was committed since the log was last moved home."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._commits = 0
        self._bytes = 0
        self._made_at = time.monotonic()
        self._emptied: asyncio.Future[None] | None = None
        self._tried_at = float("-inf")

    def committed(self, size: int) -> None:
        """A transaction more stands in the log, with so many bytes of new events."""
        self._commits += 1
        self._bytes += size

    @property
    def press(self) -> bool:
        """A checkpoint is to be thought of although there is something to write."""
        return self._commits >= CHECKPOINT_COMMITS or self._is_large or self._emptied is not None

    @property
    def _is_large(self) -> bool:
        return self._bytes >= CHECKPOINT_BYTES

    @property
    def pause(self) -> float | None:
        """Seconds until there is something to do here although nobody writes; None is never."""
        return None if self._emptied is None else max(0.0, self._tried_at + EMPTY_AGAIN_S - time.monotonic())

    def empty(self) -> "asyncio.Future[None]":
        """Ask for the log to be emptied, also on the disk; done when it is. One who waits no more changes nothing."""
        if self._emptied is None:
            self._emptied = asyncio.get_running_loop().create_future()
            self._tried_at = float("-inf")
        return self._emptied

    async def make_if_due(self, db: StoreConnection) -> None:
        """Move what is due."""
        now = time.monotonic()
        if self._emptied is not None and now - self._tried_at >= EMPTY_AGAIN_S:
            self._tried_at = now
            if (await db.run(self._presence.moving(cut_log))).is_done:
                emptied, self._emptied = self._emptied, None
                if not emptied.done():
                    emptied.set_result(None)
            self._commits, self._bytes, self._made_at = 0, 0, now
            return
        pause = CHECKPOINT_S if self._commits >= CHECKPOINT_COMMITS else IDLE_CHECKPOINT_S
        if self._is_large or (self._commits and now - self._made_at >= pause):
            self._commits, self._bytes, self._made_at = 0, 0, now
            await db.run(self._presence.moving(_move_home))


def _move_home(db: sqlite3.Connection) -> Moved:
    """Move home what no reader needs where it stands."""
    return _moved(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())


def cut_log(db: sqlite3.Connection) -> Moved:
    """Move everything home and cut the log to nothing, unless a reader still needs it: that one is not waited for."""
    db.execute("PRAGMA busy_timeout=0")
    try:
        return _moved(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
    finally:
        db.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")


def _moved(row: tuple[int, int, int]) -> Moved:
    """What a checkpoint tells: whether it was barred, the frames of the log, and how many of them are home."""
    is_barred, frames, home = row
    return Moved(is_all=frames == home >= 0, is_done=not is_barred)
