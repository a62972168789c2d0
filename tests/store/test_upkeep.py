"""Upkeep over a real store: room is made in time, and each change is told once."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from relay.rules.fullness import Room
from relay.store import Condition, Retention, Store, StoreFull, StoreUnavailable
from relay.upkeep import Upkeep
from tests.support.store_backends import Backend, SqliteBackend
from tests.support.store_parts import NOW, Watch, an_event, emptied, killed, one, settlement, stored, taken

MIB = 1024**2
GIB = 1024 * MIB
DAY = timedelta(days=1)
BODY = bytes(19_000)


class Kept:
    """A store with its upkeep, whose limit may be changed."""

    def __init__(self, store: Store, limit: int) -> None:
        self.limit = limit
        self.told: list[tuple[int, int]] = []
        self.now = NOW
        self.store = store
        self.upkeep = Upkeep(
            store,
            lambda: Retention(7 * DAY, 30 * DAY, self.limit),
            now=lambda: self.now,
            nearly_full=lambda used, of: self.told.append((used, of)),
        )

    async def percent(self) -> int:
        await emptied(self.store)
        await self.upkeep.look()
        return self.upkeep.used * 100 // self.limit

    async def fill(self, percent: int, *targets: str) -> list[str]:
        """Accept until so much is in use."""
        ids: list[str] = []
        while await self.percent() < percent:
            ids.append((await stored(self.store, *targets, body=BODY)).id)
        return ids


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_from_ninety_percent_on_the_oldest_that_are_done_make_room(store: Store, backend: Backend) -> None:
    """Down below 85 %, oldest first; what is dead or pending stays, however old."""
    kept = Kept(store, 4 * MIB)
    dead, pending = await stored(store, "crm"), await stored(store, "crm")
    await killed(store, await one(store))
    events = await kept.fill(89)
    with capture_logs() as lines:
        assert await kept.upkeep.prune() == 0
        events += await kept.fill(90)
        gone = await kept.upkeep.prune()
    assert 0 < gone < len(events)
    assert await kept.percent() < 85
    assert backend.event_ids() == {dead.id, pending.id, *events[gone:]}
    assert [line["reason"] for line in lines if line["event"] == "events.pruned"] == ["size"]
    await stored(store, "crm")


@pytest.mark.only("sqlite")
async def test_a_reader_that_holds_the_log_makes_no_more_events_go(store: Store, backend: Backend) -> None:
    """A backup, say: what is deleted counts at once, though the log cannot be emptied, and new events are taken."""
    kept = Kept(store, 4 * MIB)
    await stored(store)
    assert isinstance(backend, SqliteBackend)
    with closing(sqlite3.connect(backend.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event").fetchall()
        events = []
        while kept.upkeep.used < 0.9 * kept.limit:
            events.append((await stored(store, body=BODY)).id)
            await kept.upkeep.look()
        assert 0 < await kept.upkeep.prune() < len(events) // 4
        assert kept.upkeep.used < 0.85 * kept.limit
        assert (await store.room()).log > 0.85 * kept.limit
        assert store.condition().accepting


@pytest.mark.row("F5")
async def test_when_only_others_are_left_new_events_are_refused_until_there_is_room(
    store: Store, backend: Backend
) -> None:
    """From 95 % on; below it they are taken. What is delivered makes the room, and nothing else went."""
    kept = Kept(store, 4 * MIB)
    events = await kept.fill(94, "crm")
    with capture_logs() as lines:
        assert await kept.upkeep.prune() == 0
        assert store.condition().accepting
        events += await kept.fill(95, "crm")
        assert await kept.upkeep.prune() == 0
        assert store.condition().full
        with pytest.raises(StoreFull):
            await store.accept(an_event(), ["crm"])
        first = await taken(store, limit=1)
        await store.settle(settlement(first[0]))
        while not store.condition().accepting:
            await store.settle(settlement(await one(store)))
            await kept.upkeep.prune()
    assert await kept.percent() < 93
    pending = {event_id for (event_id, _), row in backend.deliveries().items() if row.state == "pending"}
    assert backend.event_ids() == pending
    assert pending < set(events)
    told = [line["event"] for line in lines if line["event"] in ("store.full", "store.accepting")]
    assert told == ["store.full", "store.accepting"]
    await stored(store, "crm")


async def test_nearly_full_is_told_once_and_again_only_after_it_was_well(store: Store) -> None:
    """At 80 %, with bytes, limit, percent and what to do; the hook is told as often."""
    kept = Kept(store, 4 * MIB)
    with capture_logs() as lines:
        await kept.fill(79, "crm")
        assert kept.told == []
        await kept.fill(80, "crm")
        used = kept.upkeep.used
        await kept.fill(84, "crm")
        assert len(kept.told) == 1
        kept.limit = kept.upkeep.used * 100 // 77
        await kept.upkeep.look()
        kept.limit = kept.upkeep.used * 100 // 82
        await kept.upkeep.look()
        assert len(kept.told) == 1
        kept.limit = kept.upkeep.used * 100 // 70
        await kept.upkeep.look()
        kept.limit = kept.upkeep.used * 100 // 82
        await kept.upkeep.look()
    assert kept.told == [(used, 4 * MIB), (kept.upkeep.used, kept.limit)]
    first, _ = [line for line in lines if line["event"] == "store.nearly_full"]
    assert (first["log_level"], first["bytes"], first["limit"], first["percent"]) == ("warning", used, 4 * MIB, 80)
    assert "max_size" in first["reason"]
    assert "max_size" in first["advice"]


@pytest.mark.row("F6")
@pytest.mark.parametrize(
    ("room", "free", "needed"),
    [
        (
            Room(used=MIB, log=3 * MIB, free=MIB, disk=4 * GIB, owed=3 * MIB),
            f"{MIB} bytes are free on the disk",
            f"{3 * MIB} are needed for what waits in the log, {16 * MIB} are kept",
        ),
        (
            Room(used=MIB, log=0, free=MIB, disk=4 * GIB, vacant=GIB),
            f"{MIB} bytes are free on the disk",
            f"{16 * MIB} are kept",
        ),
        (
            Room(used=MIB, log=0, free=50 * MIB, disk=4 * GIB, vacant=MIB),
            f"{51 * MIB} bytes are free on the disk and in the store's file",
            f"{64 * MIB} are kept",
        ),
    ],
    ids=["the log needs more than is free", "the log has no room", "the reserve"],
)
async def test_on_a_full_disk_no_number_that_is_told_is_below_zero(
    store: Store, monkeypatch: pytest.MonkeyPatch, room: Room, free: str, needed: str
) -> None:
    """Senders, the log and the notice are told what is free, what is spoken for, and that nothing is left."""

    async def scarce() -> Room:
        return room

    monkeypatch.setattr(store, "room", scarce)
    kept = Kept(store, GIB)
    with capture_logs() as lines:
        await kept.upkeep.look()
    near, full = (line for line in lines if line["event"] in ("store.nearly_full", "store.full"))
    words = f"{free}, {needed} for what is stored already, and 0 are left for new events"
    assert full["reason"] == f"full: {words}"
    assert near["reason"] == f"{words}; new events are refused when none are left"
    assert near["free"] == full["free"] == max(0, room.takable)
    assert kept.told[0][0] <= room.disk
    with pytest.raises(StoreFull, match=words):
        await stored(store)


async def test_a_fault_of_who_is_told_does_not_stop_the_upkeep(store: Store) -> None:
    """The word is not the work."""

    def fail(_used: int, _limit: int) -> None:
        raise RuntimeError("a bug")

    await stored(store, "crm")
    upkeep = Upkeep(store, lambda: Retention(DAY, DAY, 1), now=lambda: NOW, nearly_full=fail)
    await upkeep.look()
    assert store.condition() != Condition(writable=True)


async def test_it_reacts_within_its_turn_and_prunes_by_age_as_well(store: Store, backend: Backend) -> None:
    """The loop itself: what is over goes at the first turn, what is too much at the next."""
    kept = Kept(store, 4 * MIB)
    old, unrouted = await stored(store, at=NOW - 8 * DAY), await stored(store)
    running = [asyncio.create_task(one) for one in (kept.upkeep.watch(), kept.upkeep.prune_for_ever())]
    await until(lambda: old.id not in backend.event_ids())
    assert unrouted.id in backend.event_ids()
    kept.limit = 1
    await until(lambda: backend.event_ids() == set())
    for task in running:
        task.cancel()


async def test_what_would_go_is_told_beforehand(store: Store, backend: Backend) -> None:
    """The count of a dry run is about that of the run, by age and by size."""
    kept = Kept(store, 4 * MIB)
    await stored(store, at=NOW - 8 * DAY)
    assert (await kept.upkeep.outlived()).events == 1
    await kept.fill(92)
    foretold = (await kept.upkeep.outlived()).events
    gone = await kept.upkeep.prune()
    assert abs(foretold - gone) <= 2
    assert gone > 1


async def test_an_outage_is_left_to_the_store_and_the_upkeep_goes_on(backend: Backend, watch: Watch) -> None:
    """A closed store is the worst of them: no turn raises."""
    store = await backend.open(watch)
    kept = Kept(store, 4 * MIB)
    await store.close()
    await kept.upkeep._prune_some()
    with pytest.raises(StoreUnavailable):
        await kept.upkeep.look()


@pytest.mark.row("F30")
async def test_after_a_leap_of_the_clock_nothing_goes_by_age_for_a_while(store: Store) -> None:
    """Ten years ahead all seems over; what a wrong clock says of ages is not believed at once. By hand it is."""
    kept = Kept(store, 100 * MIB)
    for _ in range(3):
        await stored(store)
    kept.now += timedelta(days=3650)
    kept.upkeep.doubt_clock()
    await kept.upkeep._prune_some()
    assert (await kept.upkeep.outlived()).events == 3
    assert await kept.upkeep.prune() == 3


@pytest.mark.row("F30")
@pytest.mark.parametrize(("away", "left"), [(timedelta(days=400), 3), (timedelta(hours=23), 0)], ids=str)
async def test_a_start_long_after_the_last_event_believes_its_clock_only_after_a_while(
    store: Store, away: timedelta, left: int
) -> None:
    """It may be a machine whose clock is not right yet."""
    kept = Kept(store, 100 * MIB)
    for _ in range(3):
        await stored(store)
    kept.now = NOW + timedelta(days=400)
    kept.upkeep.doubt_clock_since(kept.now - away)
    await kept.upkeep._prune_some()
    assert (await kept.upkeep.outlived()).events == left


@pytest.mark.row("F30")
async def test_events_of_a_time_to_come_hide_no_older_ones_from_retention(store: Store) -> None:
    """A clock that was years ahead for thousands of events has left them in the walk by age; it goes on behind them."""
    kept = Kept(store, 100 * MIB)
    ahead = NOW + timedelta(days=3650)
    await asyncio.gather(*(store.accept(an_event(at=ahead), ()) for _ in range(2100)))
    await stored(store)
    kept.now = NOW + timedelta(days=8)
    assert await kept.upkeep.prune() == 1
