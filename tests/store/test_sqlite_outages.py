"""Outages by real means: what is refused, what waits, and that nothing is sent again because a mark failed."""

import asyncio
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relay.model import OutcomeKind, RetryAt
from relay.store import StoreUnavailable
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.transaction import Transaction
from tests.support.small_disk import can_mount
from tests.support.store_backends import SqliteBackend, kept
from tests.support.store_parts import LEASE, NOW, Watch, an_event, ids, one, settlement, stored, taken
from tests.support.store_processes import told

LARGE = b"x" * 200_000
AT_ONCE_S = 1.0
"""Far above what a refusal takes, far below any wait for a lock."""


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    """A file of its own."""
    return SqliteBackend(tmp_path)


@pytest.fixture
async def store(backend: SqliteBackend, watch: Watch) -> AsyncIterator[SqliteStore]:
    """An open store, closed in the end."""
    opened = await backend.open(watch)
    yield opened
    await opened.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that will be so."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


async def fill(store: SqliteStore) -> None:
    """Let the file grow no more; the limit is the connection's own and ends with it."""
    db = store._writer._db
    assert db is not None
    ((pages,),) = await db.execute_fetchall("PRAGMA page_count")
    await db.execute(f"PRAGMA max_page_count={pages}")


async def refused_at_once(call: Awaitable[Any]) -> None:
    """The call is told that the store cannot take it, without a wait."""
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(call, AT_ONCE_S)


@pytest.mark.row("F5", "F4")
async def test_a_full_store_refuses_and_recovers_by_itself(
    store: SqliteStore, backend: SqliteBackend, watch: Watch
) -> None:
    """No partial transaction, one word to the watcher each way, and no restart."""
    first = await stored(store, "crm")
    await fill(store)
    results = await asyncio.gather(
        *(store.accept(an_event(body=LARGE), ["crm"]) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, StoreUnavailable) for result in results)
    condition = store.condition()
    assert not condition.writable
    assert condition.since is not None
    assert "full" in condition.reason
    await refused_at_once(store.accept(an_event(), ["crm"]))
    assert backend.event_ids() == {first.id}
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm", body=LARGE)
    assert backend.event_ids() == {first.id, last.id}
    assert (len(watch.outages), len(watch.recoveries)) == (1, 1)
    assert await kept(store, "crm") == backend.counted()


@pytest.mark.slow
@pytest.mark.row("B38", "B56", "B1")
async def test_a_mark_that_cannot_be_written_is_kept_and_written_first(
    store: SqliteStore, backend: SqliteBackend, watch: Watch
) -> None:
    """In an outage claims are refused, settlements wait; when the store is back they are written before any claim, so
    that nothing is sent again."""
    events = [await stored(store, "crm", body=LARGE) for _ in range(3)]
    done, again, _ = await taken(store, limit=3)
    with closing(sqlite3.connect(backend.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        late = NOW + 10 * LEASE
        settling = [
            asyncio.ensure_future(store.settle(settlement(done))),
            asyncio.ensure_future(
                store.settle(settlement(again, RetryAt(late, 1), kind=OutcomeKind.FAILED, status=500))
            ),
        ]
        await until(lambda: not store.condition().writable)
        assert "locked by another program" in store.condition().reason
        await refused_at_once(taken(store, limit=9, now=late))
        await refused_at_once(store.accept(an_event(), ["crm"]))
        await refused_at_once(store.release([done]))
        await refused_at_once(store.reclaim(late, alive=frozenset()))
        await refused_at_once(store.change_health("crm", lambda health: health))
        assert (await store.target_health("crm")).failures == 0
        assert await store.body(events[0].id) == LARGE
        assert not any(task.done() for task in settling)
        other.execute("ROLLBACK")
    first_words: list[str] = []
    settling[0].add_done_callback(lambda _: first_words.append("settled"))
    await until(lambda: store.condition().writable)
    claiming = asyncio.create_task(taken(store, limit=9, now=NOW))  # may come of the very transaction of the marks
    claiming.add_done_callback(lambda _: first_words.append("claimed"))
    claims = await claiming
    assert first_words == ["settled", "claimed"]
    assert claims == []
    assert [settled.ruling is not None for settled in await asyncio.gather(*settling)] == [True, True]
    states = {event_id: row.state for (event_id, _), row in backend.deliveries().items()}
    assert [states[event.id] for event in events] == ["delivered", "pending", "in_flight"]
    assert ids(await taken(store, limit=9, now=late)) == [again.event.id]
    assert (len(watch.outages), len(watch.recoveries)) == (1, 1)


async def test_settlements_keep_their_order_through_an_outage(
    store: SqliteStore, backend: SqliteBackend, watch: Watch
) -> None:
    """Those of the failed commit come before those that were handed in since."""
    for _ in range(6):
        await stored(store, "crm")
    claims = await taken(store, limit=6)
    judged: list[str] = []

    def rule_of(name: str) -> Callable[[Any], Any]:
        plain = settlement(claims[0]).rule

        def rule(health: Any) -> Any:
            judged.append(name)
            return plain(health)

        return rule

    await fill(store)
    big = store.accept(an_event(body=LARGE), ["crm"])
    settling = [asyncio.ensure_future(store.settle(settlement(one, rule=rule_of(one.event.id)))) for one in claims[:3]]
    with pytest.raises(StoreUnavailable):
        await big
    settling += [asyncio.ensure_future(store.settle(settlement(one, rule=rule_of(one.event.id)))) for one in claims[3:]]
    await asyncio.gather(*settling)
    last = dict.fromkeys(reversed(judged))  # each is judged again in the commit that succeeds
    assert [*reversed(last)] == ids(claims)


async def test_settlements_of_a_failing_commit_stay_before_those_that_came_meanwhile(
    store: SqliteStore, backend: SqliteBackend
) -> None:
    """What is handed in while a commit fails is written after what failed with it: of two probes the later has the last
    word."""
    for _ in range(2):
        await stored(store, "crm")
    first, second = await taken(store, limit=2)
    judged: list[str] = []
    is_begun, go_on = threading.Event(), threading.Event()

    def rule_of(claim: Any, *, waits: bool) -> Callable[[Any], Any]:
        plain = settlement(claim).rule

        def rule(health: Any) -> Any:
            is_begun.set()
            if waits:
                go_on.wait(20)
            judged.append(claim.event.id)
            return plain(health)

        return rule

    await fill(store)
    failing = asyncio.ensure_future(store.settle(settlement(first, rule=rule_of(first, waits=True))))
    big = asyncio.create_task(store.accept(an_event(body=LARGE), ["crm"]))
    await until(is_begun.is_set)
    later = asyncio.ensure_future(store.settle(settlement(second, rule=rule_of(second, waits=False))))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(failing, later)
    with pytest.raises(StoreUnavailable):
        await big
    assert judged[0] == first.event.id
    assert judged[-2:] == [first.event.id, second.event.id]


@pytest.mark.slow
async def test_a_close_in_an_outage_ends_and_tells_who_waits(backend: SqliteBackend, watch: Watch) -> None:
    """What cannot be written is not waited for; its delivery is taken back at the next start."""
    store = await backend.open(watch)
    event = await stored(store, "crm")
    claim = await one(store)
    with closing(sqlite3.connect(backend.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        settling = asyncio.ensure_future(store.settle(settlement(claim)))
        await until(lambda: not store.condition().writable)
        async with asyncio.timeout(15):
            await store.close()
        with pytest.raises(StoreUnavailable):
            await settling
    store = await backend.open(Watch())
    again = await one(store)
    assert (again.event.id, again.attempt) == (event.id, 2)
    await store.close()


@pytest.mark.slow
async def test_a_store_that_vanishes_in_an_outage_is_not_made_anew(
    store: SqliteStore, backend: SqliteBackend, watch: Watch
) -> None:
    """Recovering onto an empty file would be total loss that looks like health; put back, it is used again."""
    event = await stored(store, "crm")
    away = backend.path.parent / "away"
    away.mkdir()
    await fill(store)
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(body=LARGE), ["crm"])
    for end in ("", "-wal", "-shm"):
        shutil.move(backend.path.with_name(backend.path.name + end), away)
    async with asyncio.timeout(20):
        while store._writer._failed_tries < 2:
            await asyncio.sleep(0.01)
    assert not store.condition().writable
    assert not backend.path.exists()
    for file in away.iterdir():
        shutil.move(file, backend.path.parent)
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm")
    assert backend.event_ids() == {event.id, last.id}


async def test_a_write_test_that_was_cut_short_does_not_bar_the_next(backend: SqliteBackend, watch: Watch) -> None:
    """A kill between the test's making and its clearing leaves its table; a later outage ends all the same."""
    store = await backend.open(watch)
    await store.close()
    with closing(sqlite3.connect(backend.path)) as db:
        db.execute("CREATE TABLE write_test (filler)")
    store = await backend.open(watch)
    await fill(store)
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(body=LARGE), ["crm"])
    await until(lambda: store.condition().writable)
    await stored(store, "crm")
    assert backend.rows("SELECT count(*) FROM sqlite_schema WHERE name = 'write_test'") == [(0,)]
    await store.close()


@pytest.mark.row("F4")
async def test_a_program_that_looks_in_after_an_outage_does_not_take_the_log_away(
    store: SqliteStore, backend: SqliteBackend
) -> None:
    """The locks outlive the recovery: who leaves does not take itself for the last, and what is promised is kept."""
    first = await stored(store, "crm")
    assert await store.body(first.id) == first.body  # from now on the connection that reads has its lock
    await fill(store)
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(body=LARGE), ["crm"])
    await until(lambda: store.condition().writable)
    look = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM event'); db.close()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", look, str(backend.path))
    assert await process.wait() == 0
    event = await stored(store, "crm")
    assert event.id in backend.after_a_kill().event_ids()


@pytest.mark.row("B1", "B35")
async def test_a_lock_that_nobody_holds_any_more_ends_with_the_outage(store: SqliteStore) -> None:
    """A connection that reads may be what holds it: a recovery lets go of that too, and views open it anew."""
    event = await stored(store, "crm")
    reader = await store._reading.connection()
    await reader.execute_fetchall("BEGIN")
    await reader.execute_fetchall("SELECT * FROM event")
    store._writer._fall_out(sqlite3.OperationalError("locking protocol"))
    store._writer._inbox.stir()
    await until(lambda: store.condition().writable)
    assert await store.body(event.id) == event.body
    assert await store._reading.connection() is not reader
    with pytest.raises(ValueError, match=r"closed|active"):
        await reader.execute_fetchall("SELECT 1")


@pytest.mark.row("F5")
async def test_views_keep_their_connection_where_the_disk_is_merely_full(store: SqliteStore) -> None:
    """There may be no room to make the index anew."""
    reader = await store._reading.connection()
    await fill(store)
    with pytest.raises(StoreUnavailable):
        await store.accept(an_event(body=LARGE), ["crm"])
    await until(lambda: store.condition().writable)
    assert await store._reading.connection() is reader


async def test_a_poison_and_an_outage_in_one_batch_are_told_apart(
    store: SqliteStore, backend: SqliteBackend, watch: Watch
) -> None:
    """The broken event gets its own error or the outage's; the settlement among them survives either way."""
    await stored(store, "crm")
    claim = await one(store)
    await fill(store)
    results = await asyncio.gather(
        store.settle(settlement(claim)),
        store.accept(an_event(kind="\udcff"), ["crm"]),
        store.accept(an_event(body=LARGE), ["crm"]),
        store.accept(an_event(body=LARGE), ["crm"]),
        return_exceptions=True,
    )
    assert not isinstance(results[0], BaseException)
    assert results[0].ruling is not None
    assert isinstance(results[1], UnicodeEncodeError | StoreUnavailable)
    assert [type(result) for result in results[2:]] == [StoreUnavailable] * 2
    await until(lambda: store.condition().writable)
    assert (len(watch.outages), len(watch.recoveries)) == (1, 1)


@pytest.mark.slow
@pytest.mark.row("F7")
async def test_an_event_that_waits_too_long_for_its_commit_is_refused(
    store: SqliteStore, backend: SqliteBackend, watch: Watch
) -> None:
    """A sender is told to come again rather than left hanging; until the commit the store is not said to be well."""
    go_on = threading.Event()

    def slow(_: Transaction) -> None:
        go_on.wait(30)

    blocking = asyncio.ensure_future(store._writer.work(slow))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="slow: no commit within 3 s"):
        await store.accept(an_event(), ["crm"])
    assert not store.condition().writable
    go_on.set()
    await blocking
    await stored(store, "crm")
    assert store.condition().writable
    await until(lambda: len(watch.recoveries) == 1)
    assert watch.outages == ["slow: no commit within 3 s"]


async def test_more_than_the_queue_holds_is_refused(store: SqliteStore, backend: SqliteBackend, watch: Watch) -> None:
    """Memory is bounded: beyond 64 MiB of waiting bodies events are turned away, and later taken again."""
    body = b"x" * (1024 * 1024)
    events = [an_event(body=body) for _ in range(80)]
    accepting = asyncio.gather(*(store.accept(event, ["crm"]) for event in events), return_exceptions=True)
    await asyncio.sleep(0)
    assert "overloaded" in store.condition().reason
    results = await accepting
    assert store.condition().writable
    refused = [result for result in results if isinstance(result, StoreUnavailable)]
    assert len(refused) == 80 - 65
    assert all("overloaded" in str(error) for error in refused)
    await stored(store, "crm", body=body)
    assert len(backend.event_ids()) == 66


def assert_survived(file: Path, said: dict[str, Any]) -> None:
    """No promise was broken, the settlement waited and was recorded once, and each change was told once."""
    assert said["refused"] > 0
    assert said["waits"]
    assert said["claims_refused"]
    assert said["settled"]
    assert (len(said["outages"]), said["recoveries"]) == (1, 1), said
    assert str(file) in said["outages"][0]


@pytest.mark.row("F4", "F6", "B1")
async def test_a_limit_on_files_is_an_outage_that_ends(backend: SqliteBackend) -> None:
    """A write that the system refuses: accepted is only what is kept, and what waits is written when there is room."""
    (said,) = told(backend.path, "small_files")
    assert_survived(backend.path, said)
    assert backend.event_ids() == {said["first"], *said["promised"]}
    assert backend.deliveries()[said["first"], "crm"].state == "delivered"


@pytest.mark.row("F6", "B38")
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_a_full_disk_is_an_outage_that_ends(tmp_path: Path) -> None:
    """On a file system without a byte left, then with room again."""
    mount = f'mount -t tmpfs -o size=2m none {tmp_path} && exec "$@"'
    (said,) = told(tmp_path / "relay.db", "full_disk", within=["unshare", "-m", "sh", "-c", mount, "sh"])
    assert_survived(tmp_path / "relay.db", said)
