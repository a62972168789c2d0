"""The reading side: queries on a connection that cannot write, so that no view holds up an answer.

Law: a view sees what is committed and nothing else. What the disk has damaged is told as damage, all else that bars a
read as an outage.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from relay.rules.fullness import Room
from relay.store import StoreUnavailable
from relay.store.sqlite.connection import StoreConnection, in_words, is_damage

Result = TypeVar("Result")

DEADLINE_S = 30.0
"""How long a read may take; the longest of views are over in a fraction of it, so that it is the disk which hangs."""


class Reading:
    """The reading connection of one file."""

    def __init__(self, path: Path, connection: StoreConnection) -> None:
        self._path = path
        self._connection = connection

    async def rows(self, query: str, values: Any = ()) -> list[Any]:
        """The rows of one query."""
        return await self.run(lambda db: db.execute(query, values).fetchall())

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Call `work` with the connection, in its thread.

        Raises:
            StoreUnusable: what is read is damaged.
            StoreUnavailable: it cannot be read now.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._connection.run(work)
        except TimeoutError:
            raise StoreUnavailable(f"{self._path}: the disk did not answer within {DEADLINE_S:g} s") from None
        except (sqlite3.Error, ValueError, OSError) as error:
            if is_damage(error):
                raise in_words(self._path, error) from None
            raise StoreUnavailable(f"{self._path}: {error}") from None

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


def room_of(db: sqlite3.Connection, path: Path) -> Room:
    """What a store takes: its pages in use, wherever they stand, and its log. A page that was freed is vacant and used
    again: the file does not shrink. New pages that stand in the log alone are still to be added to the file."""
    ((pages,),) = db.execute("PRAGMA page_count").fetchall()
    ((unused,),) = db.execute("PRAGMA freelist_count").fetchall()
    ((size,),) = db.execute("PRAGMA page_size").fetchall()
    log = path.with_name(path.name + "-wal")
    in_log = log.stat().st_size if log.exists() else 0
    in_place = path.stat().st_size
    disk = os.statvfs(path.parent)
    return Room(
        used=(pages - unused) * size,
        log=in_log,
        free=disk.f_bavail * disk.f_frsize,
        disk=disk.f_blocks * disk.f_frsize,
        owed=max(0, pages * size - in_place),
        vacant=unused * size,
    )
