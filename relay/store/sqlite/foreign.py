"""A file that never was a store of ours: told from one that was, so that not even a start afresh moves it.

Law: it is only read. What a cut may have left of a store's very first start is not taken for another's file.
"""

from pathlib import Path

from relay.store import StoreUnusable
from relay.store.sqlite.schema import APPLICATION_ID

_MAGIC = b"SQLite format 3\0"
_HEADER = 100
_BEGIN = 105
"""Bytes of the header, and behind it of what ends with the number of tables (sqlite.org/fileformat2.html, section
1.6)."""


def foreign(database: Path) -> str | None:
    """What to say of a file of which nothing is remembered, where it is no store either; None where it may be one, or
    there is none.

    Raises:
        StoreUnusable: it cannot be read.
    """
    try:
        with database.open("rb") as file:
            begin = file.read(_BEGIN)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnusable(f"{database}: cannot be read: {error.strerror}") from None
    if not begin:
        return None
    if begin.startswith(_MAGIC) and len(begin) >= _HEADER:
        return f"{database}: a database of another program; choose another store.url" if _is_of_another(begin) else None
    if any(database.with_name(database.name + end).exists() for end in ("-wal", "-journal")):
        return None
    return f"{database}: file is not a database, nor ever a store of relay's; choose another store.url"


def _is_of_another(begin: bytes) -> bool:
    """Whether a database holds something and is not marked as ours; the mark comes with the first table, and stands in
    the same sector."""
    application, version = begin[68:72], begin[60:64]
    if any(application):
        return int.from_bytes(application, "big") != APPLICATION_ID
    tables = begin[_HEADER + 3 :]
    return any(version) or any(tables)
