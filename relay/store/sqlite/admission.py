"""New events only as far as the disk carries them, as seen by the one who writes.

Law: between two looks of whoever keeps the store within its bounds, no burst uses up what settling needs. It looks by
bytes written, not by time, so that at rest it costs nothing and under load next to nothing.
"""

import sqlite3
from functools import partial
from pathlib import Path

from relay.store import StoreFull
from relay.store.grouping.operations import Batch, Operation
from relay.store.grouping.wishes import AcceptWish
from relay.store.sqlite.checkpoints import cut_log
from relay.store.sqlite.connection import StoreConnection
from relay.store.sqlite.presence import Presence
from relay.store.sqlite.reading import room_of

LOOK_BYTES = 8 * 1024 * 1024
"""Bytes after which it looks again, where there is plenty."""
COMMIT_BYTES = 64 * 1024
"""What a transaction may take in the log beside what it is handed: pages that many share."""
OPERATION_BYTES = 2048
"""What an operation may take beside a body: its rows and what stands in indexes."""
NO_ROOM = "full: so much would not leave the disk what is kept for what is stored already"


class Admission:
    """What may be written to one file before the next look."""

    def __init__(self, path: Path, presence: Presence) -> None:
        self._path = path
        self._presence = presence
        self._credit = 0

    async def admit(self, batch: Batch, db: StoreConnection) -> None:
        """Refuse the last of a batch's new events where the disk has no room for them all; the rest stays as it is, and
        has what the log gives back."""
        wanted = COMMIT_BYTES + len(batch) * OPERATION_BYTES + batch.size
        if wanted > self._credit:
            new = wanted if batch.accepts else 0
            allowed = await db.run(partial(_allowed, path=self._path, presence=self._presence, wanted=new))
            if allowed < new:
                _refuse_beyond(batch, allowed)
            self._credit = max(min(allowed // 2, LOOK_BYTES), wanted)
        self._credit -= wanted


def _allowed(db: sqlite3.Connection, *, path: Path, presence: Presence, wanted: int) -> int:
    """Bytes that the disk has room for; a log that could be given back does not lessen them."""
    try:
        room = room_of(db, path)
        if room.log and (room.allowance < wanted or room.has_large_log):
            presence.moving(cut_log)(db)
            room = room_of(db, path)
    except OSError:
        return wanted  # what bars the look bars the commit, and that one says why
    return room.allowance


def _refuse_beyond(batch: Batch, allowed: int) -> None:
    """Keep as many new events, in order, as fit."""
    left = allowed - COMMIT_BYTES
    fitting: list[Operation[AcceptWish]] = []
    for operation in batch.accepts:
        left -= len(operation.wish.event.body) + OPERATION_BYTES
        if left < 0:
            operation.refuse(StoreFull(NO_ROOM))
        else:
            fitting.append(operation)
    batch.accepts = fitting
