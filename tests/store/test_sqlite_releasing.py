"""What a disabled target held becomes due in parts, and nothing of it is forgotten or takes another's turn."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.model import OutcomeKind, RetryAt, TargetHealth
from relay.store.grouping.rows import millis
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.releasing import RELEASE
from relay.store.sqlite.statements import EVENT_INSERT
from tests.support.store_parts import NOW, SECOND, Watch, an_event, becomes, disabled, ids, one, settlement, taken

HELD = 2 * RELEASE + 500
LATER = millis(NOW) + 10_000_000


async def holding(file: Path) -> SqliteStore:
    """A store with a disabled target that holds very much, all of it tried and waiting for its step."""
    await (await SqliteStore.open(file, Watch())).close()
    start = millis(NOW) - HELD
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.executemany(
            EVENT_INSERT.format(rows="(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)"),
            ((n, f"evt_{n}", "s", "t", start + n, 1, 0, None, "[]", 0, bytes(32), b"") for n in range(1, HELD + 1)),
        )
        db.executemany(
            "INSERT INTO delivery (event_seq, target, state, due_at, attempts) VALUES (?, 'crm', 'pending', ?, 1)",
            ((n, LATER - n) for n in range(1, HELD + 1)),
        )
        db.execute("COMMIT")
    store = await SqliteStore.open(file, Watch())
    await store.change_health("crm", becomes(disabled()))
    return store


def waiting(file: Path) -> int:
    """How many are not yet due."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM delivery WHERE due_at > ?", (millis(NOW),)).fetchone()[0])


@pytest.mark.row("F38")
async def test_very_much_that_was_held_is_released_in_parts_oldest_first(file: Path) -> None:
    """An event that arrives meanwhile is answered between the parts; what is claimed is the oldest; nothing stays."""
    store = await holding(file)
    await store.change_health("crm", becomes(TargetHealth("crm")))
    assert HELD - 2 * RELEASE <= waiting(file) <= HELD - RELEASE
    accepted = asyncio.create_task(store.accept(an_event(), ["books"]))
    claims = await taken(store, limit=5)
    assert ids(claims) == [f"evt_{n}" for n in range(1, 6)]
    await accepted
    async with asyncio.timeout(20):
        while not store.idle:
            await asyncio.sleep(0.01)
    assert waiting(file) == 0
    assert ids(await taken(store, limit=HELD)) == [f"evt_{n}" for n in range(6, HELD + 1)]
    await store.close()


async def test_a_failure_settled_between_two_parts_keeps_its_wait(file: Path) -> None:
    """It was tried after the enabling, so it was never held; a close finishes what is left."""
    store = await holding(file)
    with_probe = await one(store, now=NOW + 20_000 * SECOND)
    assert with_probe.event.id == f"evt_{HELD}"
    enabling = asyncio.create_task(store.change_health("crm", becomes(TargetHealth("crm"))))
    await asyncio.sleep(0)
    await enabling
    again = RetryAt(NOW + 3600 * SECOND, 1)
    await store.settle(settlement(with_probe, again, kind=OutcomeKind.FAILED, status=500))
    await store.close()
    with closing(sqlite3.connect(file)) as db:
        rows = db.execute("SELECT event_seq, due_at FROM delivery WHERE due_at > ?", (millis(NOW),)).fetchall()
    assert rows == [(HELD, millis(again.at))]
