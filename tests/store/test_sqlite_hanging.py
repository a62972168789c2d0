"""A disk that neither answers nor fails, a file that goes away, and bugs around the writer: none passes in silence."""

import asyncio
import threading
import time
from typing import Any

import pytest

from relay.model import TargetHealth
from relay.store import StoreUnavailable
from relay.store.grouping.writer import PATIENCE_S
from relay.store.sqlite import SqliteStore
from tests.support.store_backends import SqliteBackend
from tests.support.store_hangs import hanging, until
from tests.support.store_parts import Watch, an_event, one, settlement, stored


@pytest.fixture
def backend(backend: SqliteBackend) -> SqliteBackend:
    """A file of its own."""
    return backend


@pytest.mark.slow
@pytest.mark.row("F7")
async def test_a_disk_that_hangs_is_told_as_an_outage(backend: SqliteBackend, watch: Watch) -> None:
    """Readiness tells the truth with nothing but a settlement waiting; both changes are told once."""
    store = await backend.open(watch)
    await stored(store, "crm")
    claim = await one(store)
    async with hanging(store):
        settling = asyncio.ensure_future(store.settle(settlement(claim)))
        assert store.condition().writable
        await until(lambda: not store.condition().writable)
        condition = store.condition()
        assert "slow" in condition.reason
        assert condition.since is not None
        await until(lambda: len(watch.outages) == 1)
    assert (await settling).ruling is not None
    await until(lambda: len(watch.recoveries) == 1)
    assert store.condition().writable
    assert len(watch.outages) == 1
    assert watch.recoveries[0] > 3
    assert await store.close()


@pytest.mark.slow
@pytest.mark.row("F29")
async def test_a_standstill_of_our_own_is_no_slow_disk(backend: SqliteBackend, watch: Watch) -> None:
    """What waited while the whole process stood still is neither refused nor told as an outage."""
    store = await backend.open(watch)
    async with hanging(store):
        waiting = asyncio.create_task(store.accept(an_event(), ["crm"]))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(time.sleep, PATIENCE_S + 1.5)
        await asyncio.sleep(PATIENCE_S / 5)
        assert not waiting.done()
    assert not (await waiting).duplicate
    assert watch.outages == []
    assert await store.close()


@pytest.mark.slow
async def test_a_close_does_not_wait_for_a_disk_that_hangs(backend: SqliteBackend, watch: Watch) -> None:
    """It says so in time, who waits is refused, and the lock is held as long as the disk may still write."""
    store = await backend.open(watch)
    async with hanging(store):
        accepting = asyncio.create_task(store.accept(an_event(), ["crm"]))
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await store.close() is False
        assert 2.5 < time.monotonic() - began < 4
        with pytest.raises(StoreUnavailable):
            await accepting
        assert not store.task.done()
    assert await store.close() is True
    assert store.task.done()
    store = await backend.open(watch)
    assert await store.close() is True


class Deaf(Watch):
    """A watcher with a bug."""

    def committed(self, seconds: float) -> None:
        super().committed(seconds)
        raise KeyError("commits")


async def test_a_watcher_that_fails_stops_nothing_and_is_told_once(backend: SqliteBackend) -> None:
    """The commit stands, and the next ones are made."""
    watch = Deaf()
    store = await backend.open(watch)
    events = [await stored(store, "crm") for _ in range(3)]
    assert backend.event_ids() == {event.id for event in events}
    (told,) = watch.outages
    assert "KeyError" in told
    assert watch.recoveries == [0.0]
    assert watch.commits == 3
    assert await store.close()


class Unspeakable(ValueError):
    """An error that fails whoever looks at it, as a bug of the loop would."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_a_bug_of_the_loop_is_an_outage_that_ends(backend: SqliteBackend, watch: Watch) -> None:
    """Whatever the writer stumbles over is told; a settlement survives it, the rest is refused, and it goes on."""
    store = await backend.open(watch)
    event = await stored(store, "crm")
    claim = await one(store)

    def stumble(_: TargetHealth) -> TargetHealth:
        raise Unspeakable

    refused = asyncio.create_task(store.change_health("crm", stumble))
    settling = asyncio.ensure_future(store.settle(settlement(claim)))
    with pytest.raises(StoreUnavailable, match="the writer failed: RuntimeError: no words"):
        await refused
    assert (await settling).ruling is not None
    assert backend.deliveries()[event.id, "crm"].state == "delivered"
    assert (len(watch.outages), len(watch.recoveries)) == (1, 1)
    assert not store.task.done()
    await stored(store, "crm")
    assert await store.close()


async def test_a_recovery_that_cannot_have_a_thread_is_tried_again(
    backend: SqliteBackend, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is none of the database's ends a try, not the writer."""
    store = await backend.open(watch)
    start, failures = threading.Thread.start, [RuntimeError("can't start new thread")]

    def exhausted(thread: threading.Thread) -> Any:
        if failures and "_connection_worker_thread" in thread.name:
            raise failures.pop()
        return start(thread)

    monkeypatch.setattr(threading.Thread, "start", exhausted)
    store._writer._fall_out(OSError("the disk is ill"))
    store._writer._inbox.stir()
    await until(lambda: store.condition().writable)
    assert failures == []
    assert not store.task.done()
    await stored(store, "crm")
    assert await store.close()


async def refusal(store: SqliteStore) -> str:
    """With which words the next event is refused."""
    with pytest.raises(StoreUnavailable) as refused:
        await store.accept(an_event(), ["crm"])
    return str(refused.value)


@pytest.mark.row("F8")
async def test_a_file_that_vanishes_in_use_is_noticed_by_the_next_commit(backend: SqliteBackend, watch: Watch) -> None:
    """What is written to a file without a name is lost with the process: it is not promised. Put back, it goes on."""
    store = await backend.open(watch)
    await stored(store, "crm")
    kept = backend.path.with_name("kept.db")
    kept.hardlink_to(backend.path)
    backend.path.unlink()
    words = await refusal(store)
    assert f"{backend.path}: vanished while it was in use" in words
    assert "backup" in words
    assert watch.outages == [words]
    assert not store.condition().writable
    await until(lambda: store._writer._failed_tries > 0)
    assert not backend.path.exists()
    kept.rename(backend.path)
    await until(lambda: store.condition().writable)
    last = await stored(store, "crm")
    assert last.id in backend.event_ids()
    assert await store.close()


@pytest.mark.slow
@pytest.mark.row("F8")
@pytest.mark.parametrize(("content", "became"), [(b"", "emptied"), (b"another", "replaced")])
async def test_a_file_that_is_replaced_in_use_is_left_alone(
    backend: SqliteBackend, watch: Watch, content: bytes, became: str
) -> None:
    """The new one is neither written nor taken for ours."""
    store = await backend.open(watch)
    other = backend.path.with_name("other.db")
    other.write_bytes(content)
    other.rename(backend.path)
    assert f"{became} while it was in use" in await refusal(store)
    await until(lambda: store._writer._failed_tries > 1)
    assert not store.condition().writable
    assert await store.close()
    assert backend.path.read_bytes() == content
