"""Stores as earlier versions have written them, each in the midst of its work.

Law: a file of `tests/store/schemas` was written by the version that had its schema, and is never edited. A change of
the schema adds the next.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from relay.store.sqlite.schema import MIGRATIONS

SCHEMAS = Path(__file__).parents[1] / "store" / "schemas"
VERSIONS = range(1, len(MIGRATIONS) + 1)

STANDING = {
    ("evt_delivered", "crm"): "delivered",
    ("evt_delivered", "books"): "delivered",
    ("evt_dead", "crm"): "dead",
    ("evt_dead", "books"): "delivered",
    ("evt_retrying", "crm"): "pending",
    ("evt_retrying", "books"): "delivered",
    ("evt_held", "crm"): "delivered",
    ("evt_held", "books"): "pending",
    ("evt_under_way", "crm"): "in_flight",
    ("evt_under_way", "books"): "pending",
    ("evt_fresh", "crm"): "pending",
    ("evt_fresh", "books"): "pending",
}
"""How each delivery stood when the process was killed; `books` was disabled, and `evt_unrouted` had no delivery."""


def body_of(event_id: str) -> bytes:
    """The bytes with which an event of theirs came."""
    name = event_id.removeprefix("evt_").encode()
    return name if name == b"unrouted" else b'{"id": "%b", "bytes": "\x00\xff"}' % name


def restored(version: int, file: Path) -> Path:
    """The store that a version has left, as a database file."""
    with closing(sqlite3.connect(file)) as db:
        db.executescript((SCHEMAS / f"schema-{version}.sql").read_text())
        db.execute("PRAGMA journal_mode=WAL")
    return file


def standing(file: Path) -> dict[tuple[str, str], str]:
    """Event and target of each delivery, and its state."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as db:
        query = "SELECT e.id, d.target, d.state FROM delivery d JOIN event e ON e.seq = d.event_seq"
        return {(event_id, target): state for event_id, target, state in db.execute(query)}
