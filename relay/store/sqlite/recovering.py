"""The file opened anew in an outage, and tried before anything is promised again.

Law: what SQLite holds of a file in this process, its locks and its index of the log, is one for all connections and
lasts until none is left. A call that failed may have left a lock there that nobody owns and all wait for; so unless the
disk was merely full, no connection of before is kept, those that read included.
"""

import json
import sqlite3
from collections.abc import Collection
from functools import partial
from pathlib import Path

from relay.store.sqlite.checkpoints import cut_log
from relay.store.sqlite.connection import StoreConnection, open_writer, primary_code
from relay.store.sqlite.ledger import Ledger

WRITE_TEST = 256 * 1024
"""Bytes that must fit before a store counts as recovered."""


def taints(error: BaseException) -> bool:
    """Whether an error may have left a lock behind. On a full disk the connections that read are better kept: views go
    on, and the index need not be made anew, for which there may be no room."""
    return primary_code(error) != sqlite3.SQLITE_FULL


async def open_anew(path: Path, ledger: Ledger, refused: Collection[int]) -> StoreConnection:
    """Open, write and delete something as large as a busy transaction, and learn anew what is committed: a commit whose
    fsync failed may have reached the disk all the same. Claims that were refused with it are given back then, or what
    they hold would wait for the end of a lease that nobody has.

    Args:
        refused: the tokens of those claims.

    Raises:
        StoreError, sqlite3.Error: it does not work yet; nothing is left open.
    """
    connection = await open_writer(path)
    try:
        await connection.run(cut_log)  # on a full disk this is the room to write in
        await connection.run(_try_to_write)
        await connection.run(partial(_give_back, tokens=refused))
        await connection.run(ledger.load)
    except BaseException:
        await connection.close()
        raise
    return connection


def _give_back(db: sqlite3.Connection, *, tokens: Collection[int]) -> None:
    """Make due again what stands under claims that nobody got; the number that no request carried is taken again."""
    db.execute(
        """UPDATE delivery SET state = 'pending', attempts = attempts - 1, claim = NULL, lease_until = NULL
        WHERE state = 'in_flight' AND claim IN (SELECT value FROM json_each(?))""",
        (json.dumps([*tokens]),),
    )


def _try_to_write(db: sqlite3.Connection) -> None:
    """Commit something as large as a busy transaction, and delete it."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("DROP TABLE IF EXISTS write_test")
    db.execute(f"CREATE TABLE write_test AS SELECT zeroblob({WRITE_TEST}) AS filler")
    db.execute("COMMIT")
    db.execute("DROP TABLE write_test")
