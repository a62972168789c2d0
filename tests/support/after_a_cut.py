"""What a store that a power cut has left is worth: opened as the program opens it, held against the promises."""

import hashlib
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from relay.store import StoreError
from relay.store.sqlite import SqliteStore
from tests.support.power_cut import Cut, Image, Model
from tests.support.store_parts import Watch

DATABASE = "relay.db"
INDEX = b"\xa5" * 32768
"""What an index of the log may hold after a cut: nothing of it is synced, all of it must be made anew."""


@dataclass
class Sent:
    """What the senders had answered, as they know it themselves."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    """By event id."""
    targets: tuple[str, ...] = ("crm", "books")


@contextmanager
def laid_out(image: Image) -> Iterator[Path]:
    """The files of an image in a directory of their own, in memory where there is such a place; the database's path."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="power-cut-") as name:
        home = Path(name)
        for file, content in image.items():
            (home / file).write_bytes(INDEX if file.endswith("-shm") else content)
        yield home / DATABASE


def open_deliveries(image: Image) -> set[tuple[str, str]]:
    """Event and target of each delivery that is still to be made."""
    with laid_out(image) as path, closing(sqlite3.connect(path)) as db:
        query = """SELECT e.id, d.target FROM delivery d JOIN event e ON e.seq = d.event_seq
            WHERE d.state IN ('pending', 'in_flight')"""
        return set(db.execute(query))


async def wrongs(cut: Cut, sent: Sent) -> list[str]:
    """All that is wrong with what a cut has left, in words; empty where every promise is kept."""
    with laid_out(cut.image) as path:
        try:
            store = await SqliteStore.open(path, Watch())
        except StoreError as error:
            return [f"refused: {str(error).replace(str(path.parent), '…')}"]
        try:
            found = []
            if store.missing is not None and cut.model in {Model.STRICT, Model.NAMED}:
                # in the moment between an emptied log and what is noted next it may be called missing: nothing is lost
                found.append(f"misses its log: {store.missing.replace(str(path.parent), '…')}")
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
                return [*found, *_damage(db), *_broken_promises(db, cut, sent)]
        finally:
            await store.close()


def _damage(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("PRAGMA integrity_check").fetchall()
    return [] if rows == [("ok",)] else [f"damaged: {rows[0][0]}"]


def _broken_promises(db: sqlite3.Connection, cut: Cut, sent: Sent) -> list[str]:
    stored = {event_id: (sha256, body) for event_id, sha256, body in db.execute("SELECT id, sha256, body FROM event")}
    states: dict[str, dict[str, str]] = defaultdict(dict)
    query = "SELECT e.id, d.target, d.state FROM delivery d JOIN event e ON e.seq = d.event_seq"
    for event_id, target, state in db.execute(query):
        states[event_id][target] = state
    found = []
    for event_id, (sha256, body) in stored.items():  # also of what was not answered: it is there whole or not at all
        if hashlib.sha256(body).digest() != sha256 or sent.bodies.get(event_id, body) != body:
            found.append(f"another body: {event_id}")
        if sorted(states[event_id]) != sorted(sent.targets):
            found.append(f"deliveries of {event_id}: {sorted(states[event_id])}")
    for what, event_id, *target in sorted(cut.promised):
        if event_id not in sent.bodies:
            continue  # erased by hand
        if event_id not in stored:
            found.append(f"lost: {what} {event_id}")
        elif what == "delivered" and states[event_id][target[0]] != "delivered":
            found.append(f"forgotten: {event_id} was delivered to {target[0]}")
    return found
