"""Room made and room refused: what may go for want of it, what never does, and one event erased by hand."""

import asyncio
import itertools
import time
from datetime import timedelta
from typing import Any

import pytest

from relay.model import RELAY, OutcomeKind, RetryAt
from relay.store import Retention, Store, StoreFull, StoreUnavailable
from relay.store.grouping.ages import KEPT_AGAINST_SIZE, PRUNE_BATCH, PRUNE_SCAN, SCANS
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.checkpoints import CHECKPOINT_BYTES
from relay.store.sqlite.erasing import erase_ended
from relay.store.sqlite.pruning import Pruning
from relay.store.sqlite.reading import Reading
from tests.support.store_backends import Backend, SqliteBackend, kept
from tests.support.store_parts import NOW, SECOND, Watch, an_event, emptied, ids, killed, one, settlement, stored, taken

DAY = timedelta(days=1)
ALL = 1 << 40
"""More bytes than any of these stores has."""


async def all_oldest(store: Store) -> int:
    """Delete all that may go for want of room."""
    gone = 0
    while (number := await store.prune_oldest(ALL)) is not None:
        gone += number
    return gone


async def delivered(store: Store, *targets: str) -> str:
    event = await stored(store, *targets)
    for target in targets:
        await store.settle(settlement(await one(store, target)))
    return event.id


async def accepted(store: Store, number: int, *targets: str, body: bytes = b"{}") -> None:
    events = [an_event(body=body) for _ in range(number)]
    await asyncio.gather(*(store.accept(event, targets) for event in events))


@pytest.mark.row("F5")
async def test_what_has_a_delivery_pending_under_way_or_dead_never_goes_for_want_of_room(
    store: Store, backend: Backend
) -> None:
    """Only what has nothing left to be done; also where one target of several has it."""
    gone = await delivered(store, "crm")
    unrouted = await stored(store)
    half = await stored(store, "books", "crm")
    await store.settle(settlement(await one(store, "books")))
    dead = await stored(store, "dead")
    await killed(store, await one(store, "dead"))
    claimed, pending = await stored(store, "busy"), await stored(store, "busy")
    await one(store, "busy")
    assert await all_oldest(store) == 2
    assert backend.event_ids() == {half.id, dead.id, claimed.id, pending.id}
    assert gone not in backend.event_ids()
    assert unrouted.id not in backend.event_ids()
    assert await kept(store, "crm", "dead", "busy", "books") == backend.counted()


async def test_the_oldest_go_first_and_in_small_batches(store: Store, backend: Backend) -> None:
    """However young they are; large bodies make smaller batches."""
    await accepted(store, PRUNE_BATCH + 5)
    newest = await stored(store)
    assert await store.prune_oldest(ALL) == PRUNE_BATCH
    assert newest.id in backend.event_ids()
    assert [await store.prune_oldest(ALL) for _ in range(2)] == [6, None]
    await accepted(store, 12, body=bytes(1024 * 1024))
    assert [await store.prune_oldest(ALL) for _ in range(4)] == [4, 4, 4, None]
    await accepted(store, 9, body=bytes(10_000))
    assert [await store.prune_oldest(wanted) for wanted in (15_000, 1, ALL)] == [2, 1, 6]


@pytest.mark.only("sqlite")
async def test_what_must_stay_is_looked_at_once(backend: Backend, watch: Watch) -> None:
    """Many old ones that must stay cost one walk; what is delivered since is found all the same, and first."""
    store = await backend.open(watch)
    assert isinstance(store, SqliteStore)
    await accepted(store, PRUNE_SCAN + 100, "crm")
    assert await store.prune_oldest(ALL) is None
    place = store._writer.ledger.stays_to
    assert place >= PRUNE_SCAN + 100
    await accepted(store, 3)
    assert [await store.prune_oldest(ALL) for _ in range(2)] == [3, None]
    first = await one(store)
    await store.settle(settlement(first))
    assert store._writer.ledger.stays_to == 0
    assert await store.prune_oldest(ALL) == 1
    assert first.event.id not in backend.event_ids()
    await store.close()


class TimedReading(Reading):
    """A reading side that notes when each of its queries began and ended."""

    def __init__(self, inner: Reading) -> None:
        super().__init__(inner._path)
        self._opening = inner._opening
        self.times: list[tuple[float, float]] = []

    async def rows(self, query: str, values: Any = ()) -> list[Any]:
        began = time.monotonic()
        found = await super().rows(query, values)
        self.times.append((began, time.monotonic()))
        return found


@pytest.mark.only("sqlite")
async def test_a_round_by_age_past_many_that_must_stay_leaves_half_of_the_reader(
    backend: Backend, watch: Watch
) -> None:
    """After each look it pauses for as long as that took: views go on, also where every event is looked at."""
    store = await backend.open(watch)
    assert isinstance(store, SqliteStore)
    for _ in range(3):
        await accepted(store, PRUNE_SCAN, "crm")
    reading = TimedReading(store._reading)
    retention = Retention(delivered=30 * DAY, dead=DAY)
    assert await Pruning(reading, store._writer).prune(retention, NOW + 2 * DAY) == 0
    assert len(reading.times) >= 3
    for (began, ended), (again, _) in itertools.pairwise(reading.times):
        assert again - ended > (ended - began) / 2
    await store.close()


@pytest.mark.slow
async def test_a_walk_past_very_many_says_that_it_is_not_at_the_end(store: Store) -> None:
    """Who makes room can look up meanwhile."""
    for _ in range(SCANS + 1):
        await accepted(store, PRUNE_SCAN, "crm")
    await accepted(store, 7)
    assert [await store.prune_oldest(ALL) for _ in range(3)] == [0, 7, None]


@pytest.mark.only("sqlite")
async def test_what_has_become_busy_or_dead_since_the_look_is_spared(backend: Backend, watch: Watch) -> None:
    """What was decided on the reading side is judged again in the transaction."""
    store = await backend.open(watch)
    assert isinstance(store, SqliteStore)
    dead, pending = await stored(store, "crm"), await stored(store, "crm")
    await killed(store, await one(store))
    free = await stored(store)
    assert await store._writer.work(lambda tx: erase_ended(tx, [1, 2, 3], sparing=KEPT_AGAINST_SIZE)) == 1
    assert backend.event_ids() == {dead.id, pending.id}
    assert free.id not in backend.event_ids()
    await store.close()


@pytest.mark.row("F5", "B1")
async def test_a_barred_store_refuses_new_events_alone(store: Store, backend: Backend) -> None:
    """Claims, settlements, releases and health are written as ever; the store stays writable, so that lanes go on."""
    event, other = await stored(store, "crm"), await stored(store, "crm")
    store.bar("full: for a test")
    condition = store.condition()
    assert (condition.writable, condition.accepting, condition.reason) == (True, False, "full: for a test")
    store.bar("full: still")
    assert store.condition().since == condition.since
    with pytest.raises(StoreFull, match="still"):
        await store.accept(an_event(), ["crm"])
    first, second = await taken(store, limit=2)
    await store.settle(settlement(first))
    await store.settle(settlement(second, RetryAt(NOW + SECOND, 1), kind=OutcomeKind.FAILED, status=500))
    await store.release(await taken(store, now=NOW + SECOND))
    await store.change_health("crm", lambda health: health)
    states = {event_id: row.state for (event_id, _), row in backend.deliveries().items()}
    assert states == {event.id: "delivered", other.id: "pending"}
    store.bar("")
    assert store.condition().accepting
    await stored(store, "crm")


async def test_a_barred_store_takes_what_the_relay_says_of_itself(store: Store, backend: Backend) -> None:
    """Somebody is told that it is full; a store that is closed takes that no more than anything else."""
    store.bar("full: for a test")
    told = await stored(store, "ops", source=RELAY)
    assert backend.event_ids() == {told.id}
    assert ids(await taken(store, "ops")) == [told.id]
    await store.close()
    with pytest.raises(StoreUnavailable) as refused:
        await store.accept(an_event(source=RELAY), ["ops"])
    assert not isinstance(refused.value, StoreFull)


@pytest.mark.only("sqlite")
async def test_the_room_that_is_used_falls_with_what_is_deleted(store: Store) -> None:
    """The file does not shrink, but its free pages are used again and do not count."""
    empty = await store.room()
    await accepted(store, 50, body=bytes(100_000))
    full = await store.room()
    assert full.used >= empty.used + 5_000_000
    assert full.log > 0
    await all_oldest(store)
    await emptied(store)
    after = await store.room()
    assert after.log == 0
    assert after.used < empty.used + 200_000
    assert 0 < after.free <= after.disk


@pytest.mark.only("sqlite")
async def test_what_the_log_owes_the_file_is_known_beforehand(store: Store) -> None:
    """New pages in the log, until they are in their place; pages that were freed are vacant and owe nothing more."""
    await emptied(store)
    before = await store.room()
    assert (before.owed, before.log) == (0, 0)
    await accepted(store, 50, body=bytes(100_000))
    grown = await store.room()
    assert grown.owed >= 5_000_000
    await emptied(store)
    home = await store.room()
    assert (home.owed, home.used) == (0, grown.used)
    await all_oldest(store)
    after = await store.room()
    assert after.vacant >= 5_000_000
    await accepted(store, 40, body=bytes(100_000))
    assert (await store.room()).owed == 0


@pytest.mark.only("sqlite")
async def test_the_log_stays_small_however_fast_events_come(store: Store) -> None:
    """It is moved home by bytes as well, and then written anew from its beginning."""
    for _ in range(12):
        await accepted(store, 8, body=bytes(1024 * 1024))
    room = await store.room()
    assert room.used > 96 * 1024 * 1024
    assert room.log < 2 * CHECKPOINT_BYTES


@pytest.mark.parametrize("state", ["pending", "in_flight", "dead", "delivered", "unrouted"])
async def test_an_erased_event_is_gone_with_all_that_was_kept_of_it(store: Store, backend: Backend, state: str) -> None:
    """Whatever is still to be done with it; the counts stay true, and others are untouched."""
    event = await stored(store, *([] if state == "unrouted" else ["crm"]), key="order-1")
    other = await stored(store, "books")
    if state not in ("pending", "unrouted"):
        claim = await one(store)
        if state == "dead":
            await killed(store, claim)
        if state == "delivered":
            await store.settle(settlement(claim))
    assert await store.erase(event.id) == (0 if state == "unrouted" else 1)
    assert backend.event_ids() == {other.id}
    assert set(backend.deliveries()) == {(other.id, "books")}
    assert backend.attempts() == []
    assert await kept(store, "crm", "books") == backend.counted()
    assert await store.erase(event.id) is None
    assert not (await store.accept(an_event(key="order-1"), ["crm"])).duplicate


async def test_a_claim_on_an_erased_event_is_lost(store: Store, backend: Backend) -> None:
    """Its settlement and its release change nothing, also not the target's health; nothing hands it out again."""
    first, second, third = [await stored(store, "crm") for _ in range(3)]
    claims = await taken(store, limit=2)
    for event in (first, second, third):
        assert await store.erase(event.id) == 1
    assert (await store.settle(settlement(claims[0]))).ruling is None
    await store.release([claims[1]])
    assert await taken(store, limit=9) == []
    assert (backend.event_ids(), backend.deliveries(), backend.attempts()) == (set(), {}, [])
    assert await kept(store, "crm") == backend.counted()


@pytest.mark.only("sqlite")
@pytest.mark.parametrize("size", [200, 30_000, 300_000])
async def test_an_erased_event_is_overwritten_on_the_disk(backend: Backend, watch: Watch, size: int) -> None:
    """Neither the file nor its log holds a byte of the body, the headers or what a target said, while it runs."""
    store = await backend.open(watch)
    assert isinstance(store, SqliteStore)
    assert isinstance(backend, SqliteBackend)
    neighbours = [await stored(store, "crm", body=b"neighbour" * 20) for _ in range(30)]
    mark = b"an-erased-secret"
    event = await stored(store, "late", body=mark * (size // len(mark)), headers=(("X-Note", "an-erased-secret"),))
    neighbours += [await stored(store, "crm", body=b"neighbour" * 20) for _ in range(30)]
    await emptied(store)
    assert mark in backend.path.read_bytes()
    assert await store.erase(event.id) == 1
    files = [file for file in backend.path.parent.iterdir() if file.name.startswith("relay.db")]
    async with asyncio.timeout(20):  # the log is emptied as soon as the disk lets it
        while [file for file in files if mark in file.read_bytes()]:
            await asyncio.sleep(0.01)
    assert backend.event_ids() == {one.id for one in neighbours}
    assert store._writer.ledger.fresh_bytes == sum(len(one.body) for one in store._writer.ledger.fresh.values())
    assert event.id not in {one.id for one in store._writer.ledger.fresh.values()}
    await store.close()


async def test_what_would_go_is_counted_and_nothing_goes(store: Store, backend: Backend) -> None:
    """By age, and as many of the oldest as make the room that is wanted."""
    retention = Retention(delivered=7 * DAY, dead=30 * DAY)
    for _ in range(3):
        await stored(store, at=NOW - 8 * DAY)
    for _ in range(5):
        await stored(store, body=bytes(10_000))
    await stored(store, "crm", at=NOW - 100 * DAY)
    by_age = await store.outlived(retention, NOW, wanted=0)
    assert (by_age.events, by_age.is_whole) == (3, True)
    assert (await store.outlived(retention, NOW, wanted=25_000)).events == 6
    assert (await store.outlived(retention, NOW, wanted=1 << 40)).events == 8
    assert len(backend.event_ids()) == 9
