"""Large sets of replays: gathered, cut off and thrown away in small parts, and found without walking the history."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from relay.ids import fresh_id
from relay.model import Rate
from relay.store import StoreUnavailable
from relay.store.grouping.jobs import CUT_OFF, PART
from relay.store.replays import JobState, Replayable, ReplayFilter, ReplayJob
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.collecting import PAGE, SCAN
from relay.store.sqlite.statements import EVENT_INSERT
from relay.store.sqlite.transaction import ROWS
from tests.support.store_backends import SqliteBackend
from tests.support.store_parts import NOW, SECOND, Watch, towards

LATER = NOW + timedelta(hours=1)
ALL = towards("crm", "books")


async def with_history(directory: Path, number: int, state: str, *targets: str) -> tuple[SqliteStore, SqliteBackend]:
    """A store with so many events whose deliveries have ended, made without the port because it is quicker."""
    backend = SqliteBackend(directory)
    await (await backend.open(Watch())).close()
    with closing(sqlite3.connect(backend.path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.executemany(
            EVENT_INSERT.format(rows="(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)"),
            (
                (seq, f"evt_{seq:09}", "s", "t", seq, 1, 0, None, "[]", 0, bytes(32), b"")
                for seq in range(1, number + 1)
            ),
        )
        db.executemany(
            f"INSERT INTO delivery (event_seq, target, state, due_at, settled_at) VALUES (?, ?, '{state}', 0, 0)",
            ((seq, target) for seq in range(1, number + 1) for target in targets),
        )
        db.execute("COMMIT")
    return await backend.open(Watch()), backend


def a_job(what: Replayable, limit: int | None = None) -> ReplayJob:
    """A job that is still to be stored."""
    return ReplayJob(fresh_id("rpl", NOW), ReplayFilter(what, limit=limit), Rate(50, SECOND), NOW)


def sets(backend: SqliteBackend) -> list[list[tuple[int, str]]]:
    """What is left of each job's set, in order."""
    rows = backend.rows("SELECT replay_seq, event_seq, target FROM replay_item ORDER BY replay_seq, event_seq, target")
    return [[(seq, target) for job, seq, target in rows if job == one] for one in sorted({row[0] for row in rows})]


@pytest.mark.parametrize(("what", "number"), [(Replayable.DEAD, PAGE + 300), (Replayable.DELIVERED, SCAN + 300)])
async def test_a_large_set_is_whole(tmp_path: Path, what: Replayable, number: int) -> None:
    """Of several pages, each item once; a limit keeps the oldest, wherever it cuts."""
    store, backend = await with_history(tmp_path, number, what.value, "crm", "books")
    job = await store.replays.create(a_job(what))
    await store.replays.create(a_job(what, limit=number + 1))
    whole = [(seq, target) for seq in range(1, number + 1) for target in ("books", "crm")]
    assert job.total == len(whole)
    assert sets(backend) == [whole, whole[: number + 1]]
    assert await store.replays.count(job.filter) == {"crm": number, "books": number}
    await store.close()


async def test_no_transaction_of_a_large_set_is_long(tmp_path: Path) -> None:
    """It is written, and thrown away, at most a thousand items at a time."""
    store, _ = await with_history(tmp_path, 2 * PART + 10, "dead", "crm")
    seen: list[str] = []
    connection = store._writer._db
    assert connection is not None
    await connection.set_trace_callback(seen.append)
    job = await store.replays.create(a_job(Replayable.DEAD))
    await connection.set_trace_callback(lambda _: None)
    transactions = "\n".join(seen).split("BEGIN IMMEDIATE")
    statements = [text.count("INSERT INTO replay_item") for text in transactions]
    assert job.total == 2 * PART + 10
    assert 0 < max(statements) <= PART / ROWS + ROWS.bit_length()
    await store.replays.steer(job.id, JobState.CANCELLED, "by hand", now=LATER)
    assert [await store.replays.sweep() for _ in range(4)] == [PART, PART, 10, 0]
    await store.close()


async def test_a_set_that_was_cut_off_never_runs(tmp_path: Path) -> None:
    """Neither in this process nor in the next: it is not shown while it is gathered, then cancelled with the reason."""
    store, backend = await with_history(tmp_path, 4 * PART, "dead", "crm")
    job = a_job(Replayable.DEAD)
    db = store._writer._db
    assert db is not None
    ((pages,),) = await db.execute_fetchall("PRAGMA page_count")
    await db.execute(f"PRAGMA max_page_count={pages + 12}")  # as on a disk that is nearly full
    with pytest.raises(StoreUnavailable):
        await store.replays.create(job)
    assert 0 < len(sets(backend)[0]) < 4 * PART
    assert await store.replays.jobs(9) == []
    async with asyncio.timeout(20):
        while not store.condition().writable:
            await asyncio.sleep(0.01)
    assert await store.replays.steer(job.id, JobState.RUNNING, "", now=LATER) is None
    left = backend.after_a_kill()
    for again, files in ((store, backend), (await left.open(Watch()), left)):
        assert await again.replays.interrupt("restart") == []
        while await again.replays.sweep():
            pass
        assert sets(files) == []
        (shown,) = await again.replays.jobs(9)
        assert (shown.id, shown.state, shown.reason, shown.done) == (job.id, JobState.CANCELLED, CUT_OFF, 0)
        advanced = await again.replays.advance(job.id, 9, ALL, now=LATER)
        assert (advanced.job, advanced.targets) == (shown, frozenset())
        await again.close()


async def test_a_set_that_is_being_gathered_is_not_swept(tmp_path: Path) -> None:
    """A sweep between two of its parts leaves it alone."""
    store, backend = await with_history(tmp_path, 4 * PART, "dead", "crm")
    gathering = asyncio.create_task(store.replays.create(a_job(Replayable.DEAD)))
    swept = 0
    while not gathering.done():
        swept += await store.replays.sweep()
    assert (swept, (await gathering).total, len(sets(backend)[0])) == (0, 4 * PART, 4 * PART)
    await store.close()


async def test_a_job_and_its_turns_go_by_key(tmp_path: Path) -> None:
    """What is dead is found by its index; items, deliveries and events by their keys, whatever else is kept."""
    store, backend = await with_history(tmp_path, 50, "dead", "crm", "books")
    seen: list[str] = []
    for connection in (store._writer._db, await store._reading.connection()):
        assert connection is not None
        await connection.set_trace_callback(seen.append)
    job = await store.replays.create(a_job(Replayable.DEAD))
    await store.replays.advance(job.id, 20, ALL, now=LATER)
    await store.replays.event("evt_000000050", ALL, now=LATER)
    await store.replays.discard("crm", permitted=lambda _: True, now=LATER)
    await store.replays.steer(job.id, JobState.CANCELLED, "by hand", now=LATER)
    await store.replays.sweep()
    await store.close()
    verbs = ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")
    with closing(sqlite3.connect(backend.path)) as db:
        plans = {
            statement: [row[3] for row in db.execute("EXPLAIN QUERY PLAN " + statement)]
            for statement in seen
            if statement.lstrip().startswith(verbs)
        }
    tables = ("delivery", "event", "attempt", "replay_item", "i", "e", "d")
    walked = [(step, text) for text, plan in plans.items() for step in plan if step.startswith("SCAN ")]
    assert [found for found in walked if found[0].split()[1] in tables] == []
    assert any("INDEX delivery_dead (target=?" in step for plan in plans.values() for step in plan)
