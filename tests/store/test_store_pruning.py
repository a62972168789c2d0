"""Retention: only what is over is deleted, by its age, a small batch at a time."""

import asyncio
from datetime import timedelta

import pytest

from relay.model import OutcomeKind, RetryAt
from relay.store import Retention, Store
from relay.store.grouping.ages import OPEN, PRUNE_BATCH, PRUNE_SCAN
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.erasing import erase_ended
from tests.support.store_backends import Backend, kept
from tests.support.store_parts import NOW, SECOND, Watch, an_event, killed, one, settlement, stored, taken

DAY = timedelta(days=1)
KEPT = Retention(delivered=7 * DAY, dead=30 * DAY)


async def pruned(store: Store, days: float, *, retention: Retention = KEPT) -> int:
    """Prune until there is nothing left; return how many events went."""
    gone = 0
    while number := await store.prune(retention, NOW + days * DAY):
        assert number <= PRUNE_BATCH
        gone += number
    return gone


async def test_delivered_and_dead_events_go_when_their_time_is_over(store: Store, backend: Backend) -> None:
    """Each kind by its own age, counted from its end; with the event goes all that was kept of it."""
    delivered = await stored(store, "crm")
    await store.settle(settlement(await one(store), at=NOW + DAY))
    dead = await stored(store, "crm")
    await killed(store, await one(store), at=NOW + DAY)
    assert await pruned(store, 7.9) == 0
    assert await pruned(store, 8.1) == 1
    assert backend.event_ids() == {dead.id}
    assert delivered.id not in {row[0] for row in backend.attempts()}
    assert await pruned(store, 30.9) == 0
    assert await pruned(store, 31.1) == 1
    assert (backend.event_ids(), backend.deliveries(), backend.attempts()) == (set(), {}, [])
    assert await kept(store, "crm") == {}


async def test_an_unrouted_event_goes_by_the_age_of_the_delivered(store: Store, backend: Backend) -> None:
    """What no route wanted is kept for a while, so that its absence has an answer."""
    await stored(store)
    assert await pruned(store, 6.9) == 0
    assert await pruned(store, 7.1) == 1
    assert backend.event_ids() == set()


async def test_what_is_pending_or_under_way_is_never_deleted(store: Store, backend: Backend) -> None:
    """However old: only retention deletes, and never what is still to be delivered."""
    pending, waiting, claimed = [await stored(store, "crm") for _ in range(3)]
    got = await taken(store, limit=3)
    await store.release([got[0]])
    await store.settle(settlement(got[1], RetryAt(NOW + DAY, 1), kind=OutcomeKind.FAILED, status=500))
    assert await pruned(store, 10_000) == 0
    assert backend.event_ids() == {pending.id, waiting.id, claimed.id}


async def test_an_event_stays_as_long_as_one_of_its_deliveries_must(store: Store, backend: Backend) -> None:
    """The slowest target rules."""
    event = await stored(store, "crm", "books", "slow")
    await store.settle(settlement(await one(store, "crm")))
    assert await pruned(store, 1000) == 0
    await killed(store, await one(store, "books"))
    assert await pruned(store, 1000) == 0
    await store.settle(settlement(await one(store, "slow", now=NOW + 999 * DAY), at=NOW + 999 * DAY))
    assert await pruned(store, 1000) == 0
    assert await kept(store, "crm", "books", "slow") == {("books", "dead"): 1}
    assert await pruned(store, 1007) == 1
    assert event.id not in backend.event_ids()
    assert await kept(store, "books") == {}


async def test_a_key_is_new_again_once_its_event_is_gone(store: Store) -> None:
    """A duplicate is known for as long as its event is kept."""
    await stored(store, "crm", key="order-1")
    await store.settle(settlement(await one(store)))
    assert await pruned(store, 8) == 1
    assert not (await store.accept(an_event(key="order-1"), ["crm"])).duplicate


async def accepted(store: Store, number: int, *targets: str, days: float = 0) -> None:
    """Many events, in few commits."""
    events = [an_event(at=NOW + days * DAY) for _ in range(number)]
    await asyncio.gather(*(store.accept(event, targets) for event in events))


async def test_pruning_goes_in_small_batches(store: Store, backend: Backend) -> None:
    """No answer waits for a large deletion, and the end is told by 0."""
    await accepted(store, 2 * PRUNE_BATCH + 10)
    sizes = [await store.prune(KEPT, NOW + 8 * DAY) for _ in range(4)]
    assert sizes == [PRUNE_BATCH, PRUNE_BATCH, 10, 0]
    assert backend.event_ids() == set()


async def test_pruning_moves_on_past_what_must_stay(store: Store, backend: Backend) -> None:
    """Many old events that must stay hide nothing that stands behind them: 0 means that nothing is left."""
    await accepted(store, PRUNE_SCAN + 500, "crm")
    await accepted(store, 30)
    assert await pruned(store, 8) == 30
    assert len(backend.event_ids()) == PRUNE_SCAN + 500
    assert await pruned(store, 8) == 0


async def test_an_event_from_a_wrong_clock_does_not_stop_the_pruning(store: Store, backend: Backend) -> None:
    """One event that claims to be of next year, among many that must stay, hides nothing behind it."""
    await accepted(store, PRUNE_SCAN, "crm")
    await stored(store, at=NOW + 365 * DAY)
    await accepted(store, 30)
    assert await pruned(store, 8) == 30


@pytest.mark.parametrize("dead", [DAY, 30 * DAY])
async def test_retention_works_either_way_round(store: Store, backend: Backend, dead: timedelta) -> None:
    """Dead events may be kept for a shorter time than delivered ones."""
    await stored(store, "crm")
    await killed(store, await one(store))
    kept_days = dead / DAY
    retention = Retention(delivered=7 * DAY, dead=dead)
    assert await pruned(store, kept_days - 0.1, retention=retention) == 0
    assert await pruned(store, kept_days + 0.1, retention=retention) == 1


@pytest.mark.only("sqlite")
async def test_a_prune_that_was_decided_on_spares_what_has_become_busy(backend: Backend, watch: Watch) -> None:
    """Between the look and the deletion an event may get a delivery to make; it is then left alone."""
    store = await backend.open(watch)
    assert isinstance(store, SqliteStore)
    free, busy = await stored(store, "crm"), await stored(store, "crm")
    await store.settle(settlement(await one(store, now=NOW + SECOND)))
    assert await store._writer.work(lambda tx: erase_ended(tx, [1, 2], sparing=OPEN)) == 1
    assert backend.event_ids() == {busy.id}
    assert free.id not in backend.event_ids()
    await store.close()
