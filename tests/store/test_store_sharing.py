"""Many callers, few commits: they share the disk's time and nothing else."""

import asyncio
import contextlib

import pytest

from relay.model import Done, TargetHealth
from relay.store import Ruling, Store, StoreUnavailable
from tests.support.store_backends import Backend, kept
from tests.support.store_parts import NOW, Watch, an_event, ids, one, settlement, stored, taken


class Poison(Exception):
    """What a broken rule raises."""


def broken(health: TargetHealth) -> Ruling:
    """A rule with a bug."""
    raise Poison(health.name)


async def test_many_events_share_few_commits(store: Store, watch: Watch, backend: Backend) -> None:
    """Five hundred tasks that accept at once wait for a handful of fsyncs, and all are stored."""
    before = watch.commits
    results = await asyncio.gather(*(store.accept(an_event(), ["crm", "books"]) for _ in range(500)))
    assert watch.commits - before <= 5
    assert len({result.event_id for result in results}) == 500
    assert len(backend.deliveries()) == 1000
    assert await kept(store, "crm", "books") == backend.counted()


async def test_at_rest_an_event_waits_for_nobody(store: Store, watch: Watch) -> None:
    """One event is one commit; nothing lingers for company."""
    before = watch.commits
    await stored(store, "crm")
    assert watch.commits - before == 1


@pytest.mark.row("F36")
@pytest.mark.parametrize("yields", range(12))
async def test_a_caller_that_gives_up_costs_the_others_nothing(store: Store, backend: Backend, yields: int) -> None:
    """Cancelled before, during or after its commit: every other event is stored, and the store goes on."""
    events = [an_event() for _ in range(20)]
    tasks = [asyncio.create_task(store.accept(event, ["crm"])) for event in events]
    for _ in range(yields):
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kept_ids = {result.event_id for result in results if not isinstance(result, BaseException)}
    assert kept_ids >= {event.id for event in events[1::2]}
    last = await stored(store, "crm")
    assert backend.event_ids() >= kept_ids | {last.id}
    assert backend.event_ids() <= {event.id for event in events} | {last.id}
    assert await kept(store, "crm") == backend.counted()


@pytest.mark.row("F36")
async def test_a_settlement_whose_caller_gave_up_is_recorded_all_the_same(store: Store, backend: Backend) -> None:
    """What came of an attempt is a fact, whoever waits for its record."""
    event = await stored(store, "crm")
    task = asyncio.ensure_future(store.settle(settlement(await one(store))))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await stored(store, "crm")
    assert backend.deliveries()[event.id, "crm"].state == "delivered"


async def test_a_broken_rule_fails_alone(store: Store, backend: Backend) -> None:
    """One settlement whose rule raises is told so; its batch mates are recorded, its own claim stands."""
    for _ in range(9):
        await stored(store, "crm")
    claims = await taken(store, limit=9)
    results = await asyncio.gather(
        *(store.settle(settlement(claim, rule=broken if number == 4 else None)) for number, claim in enumerate(claims)),
        store.accept(an_event("evt_mate"), ["crm"]),
        return_exceptions=True,
    )
    assert [isinstance(result, Poison) for result in results] == [number == 4 for number in range(10)]
    states = {event_id: row.state for (event_id, _), row in backend.deliveries().items()}
    assert states.pop("evt_mate") == "pending"
    assert states.pop(claims[4].event.id) == "in_flight"
    assert set(states.values()) == {"delivered"}
    assert await kept(store, "crm") == backend.counted()
    assert (await store.settle(settlement(claims[4]))).ruling is not None


@pytest.mark.parametrize(
    "poison",
    [
        an_event("evt_poison", kind="lone \udcff surrogate"),
        an_event("evt_poison", source="\ud800"),
        an_event("evt_mate"),
    ],
    ids=["type", "source", "id-taken"],
)
async def test_an_event_that_cannot_be_bound_fails_alone(store: Store, backend: Backend, poison: object) -> None:
    """Ninety-nine others that arrive with it are stored, in few commits more."""
    first = await stored(store, "crm", name="evt_mate")
    mates = [an_event() for _ in range(99)]
    events = [*mates[:50], poison, *mates[50:]]
    results = await asyncio.gather(
        *(store.accept(event, ["crm"]) for event in events),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert [isinstance(result, Exception) for result in results] == [event is poison for event in events]
    assert backend.event_ids() == {event.id for event in mates} | {first.id}
    assert await kept(store, "crm") == backend.counted()


async def test_one_poisonous_operation_costs_few_commits(store: Store, watch: Watch) -> None:
    """It is found by halving: hundreds that came with it do not each wait for an fsync of their own."""
    before = watch.commits
    events = [an_event(kind="\udcff" if number == 300 else "fine") for number in range(500)]
    results = await asyncio.gather(*(store.accept(event, ["crm"]) for event in events), return_exceptions=True)
    assert sum(isinstance(result, Exception) for result in results) == 1
    assert watch.commits - before <= 12


async def test_a_change_of_health_that_raises_fails_alone(store: Store) -> None:
    """And leaves the health as it was."""

    def raises(_: TargetHealth) -> TargetHealth:
        raise Poison

    results = await asyncio.gather(
        store.change_health("crm", raises),
        store.change_health("books", lambda health: health),
        store.accept(an_event(), ["crm"]),
        return_exceptions=True,
    )
    assert [type(result) for result in results[:1]] == [Poison]
    assert not any(isinstance(result, BaseException) for result in results[1:])
    assert await store.target_health("crm") == TargetHealth("crm")


async def test_several_healths_change_together_or_not_at_all(store: Store) -> None:
    """One transaction for all: where one of them cannot be changed, none is."""

    def fails(health: TargetHealth) -> TargetHealth:
        return health._replace(failures=1)

    def raises(_: TargetHealth) -> TargetHealth:
        raise Poison

    with pytest.raises(Poison):
        await store.change_healths({"crm": fails, "books": raises})
    assert await store.target_health("crm") == TargetHealth("crm")
    changed = await store.change_healths({"crm": fails, "books": fails})
    assert changed == {name: TargetHealth(name, failures=1) for name in ("crm", "books")}
    assert await store.target_health("books") == changed["books"]


@pytest.mark.parametrize("words", ["the account is closed", "no active connection to the bank", "closed"])
async def test_words_of_an_error_do_not_make_an_outage(store: Store, watch: Watch, words: str) -> None:
    """A rule that raises with words like those of a lost connection is a broken rule, nothing more."""
    await stored(store, "crm")
    claim = await one(store)

    def raises(_: TargetHealth) -> Ruling:
        raise ValueError(words)

    with pytest.raises(ValueError, match=words):
        await store.settle(settlement(claim, rule=raises))
    assert watch.outages == []
    assert store.condition().writable
    assert (await store.settle(settlement(claim))).ruling is not None


async def test_all_verbs_in_one_commit_agree(store: Store, watch: Watch, backend: Backend) -> None:
    """A commit that settles, changes, accepts and claims leaves counts that are those of the table."""
    for _ in range(5):
        await stored(store, "crm")
    first = await taken(store, limit=3)
    before = watch.commits
    _, _, _, claimed = await asyncio.gather(
        asyncio.gather(*(store.settle(settlement(claim, Done())) for claim in first[:2])),
        store.release(first[2:]),
        asyncio.gather(*(store.accept(an_event("evt_new" + str(n)), ["crm"]) for n in range(2))),
        taken(store, limit=9, now=NOW),
    )
    assert watch.commits - before <= 2
    assert len(claimed) == 5
    assert first[2].event.id in ids(claimed)
    assert await kept(store, "crm") == backend.counted() == {("crm", "in_flight"): 5}


@pytest.mark.row("B69")
async def test_after_the_close_every_verb_says_so(backend: Backend, watch: Watch) -> None:
    """Nobody waits for a store that is gone: not one call hangs."""
    store = await backend.open(watch)
    await stored(store, "crm")
    claim = await one(store)
    await store.close()
    for verb in (
        lambda: store.accept(an_event(), ["crm"]),
        lambda: taken(store),
        lambda: store.settle(settlement(claim)),
        lambda: store.release([claim]),
        lambda: store.change_health("crm", lambda health: health),
    ):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(verb(), 5)
    assert not store.condition().writable


async def test_a_close_writes_what_still_waits(backend: Backend, watch: Watch) -> None:
    """What was handed in before the close is on the disk after it."""
    store = await backend.open(watch)
    event = await stored(store, "crm")
    claim = await one(store)
    late = [asyncio.create_task(store.accept(an_event(), ["crm"])) for _ in range(3)]
    settled = asyncio.ensure_future(store.settle(settlement(claim)))
    await asyncio.sleep(0)
    await store.close()
    assert len({(await task).event_id for task in late}) == 3
    assert (await settled).ruling is not None
    assert len(backend.event_ids()) == 4
    assert backend.deliveries()[event.id, "crm"].state == "delivered"
