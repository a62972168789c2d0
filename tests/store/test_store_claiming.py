"""Claiming: one holder at a time, numbers that never fall, and the turns of a disabled target."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from relay.model import Claim, Done, OutcomeKind, RetryAt, TargetHealth, Turn
from relay.store import Ruling, Store
from tests.support.store_backends import Backend
from tests.support.store_parts import (
    LEASE,
    NOW,
    SECOND,
    Watch,
    becomes,
    disabled,
    failed,
    ids,
    one,
    settlement,
    stored,
    taken,
)

NOBODY: frozenset[int] = frozenset()


async def tried(store: Store, *claims: Claim, at: datetime) -> None:
    """Record a failed probe of each claim, begun at a time; the target stays disabled."""
    for claim in claims:
        await store.settle(
            settlement(claim, RetryAt(at, claim.step), kind=OutcomeKind.FAILED, at=at, health=disabled(), status=500)
        )


async def test_a_claimed_delivery_is_nobody_elses(store: Store, backend: Backend) -> None:
    """Two calls never get the same delivery, not even in one commit."""
    events = [await stored(store, "crm") for _ in range(10)]
    parts = await asyncio.gather(*(taken(store, limit=3) for _ in range(5)))
    got = [event_id for part in parts for event_id in ids(part)]
    assert sorted(got) == sorted(event.id for event in events)
    assert {row.state for row in backend.deliveries().values()} == {"in_flight"}
    assert await taken(store) == []


async def test_a_claim_takes_no_more_than_it_asked_for_and_only_its_target(store: Store) -> None:
    """The limit holds, and targets are apart."""
    for _ in range(5):
        await stored(store, "crm", "books")
    assert len(await taken(store, "crm", limit=2)) == 2
    assert len(await taken(store, "books", limit=9)) == 5
    assert await taken(store, "nobody", limit=9) == []


async def test_what_is_due_longest_comes_first(store: Store) -> None:
    """Of what is due the order is that of the due times, then of arrival; what is not due stays."""
    a, b, c, d = [await stored(store, "crm", at=NOW + n * SECOND) for n in range(4)]
    for claim, again in zip(await taken(store, limit=3, now=NOW + 9 * SECOND), (30, 20, 60), strict=True):
        await failed(store, claim, again=NOW + again * SECOND)
    assert ids(await taken(store, limit=9, now=NOW + 40 * SECOND)) == [d.id, b.id, a.id]
    assert ids(await taken(store, limit=9, now=NOW + 60 * SECOND)) == [c.id]


async def test_of_several_with_one_due_time_the_first_to_come_goes_first(store: Store) -> None:
    """Ties are broken by arrival."""
    events = [await stored(store, "crm") for _ in range(6)]
    assert ids(await taken(store, limit=4)) == [event.id for event in events[:4]]


async def test_a_scarce_claim_says_when_the_next_falls_due(store: Store) -> None:
    """Where fewer were had than asked, `next_due_at` is the earliest of what waits; None where nothing does."""
    for _ in range(2):
        await stored(store, "crm")
    first, second = await taken(store, limit=2)
    await failed(store, first, again=NOW + 70 * SECOND)
    await failed(store, second, again=NOW + 50 * SECOND)
    claimed = await store.claim("crm", limit=1, turn=Turn.DUE, now=NOW, lease=LEASE)
    assert claimed.claims == ()
    assert claimed.next_due_at == NOW + 50 * SECOND
    empty = await store.claim("books", limit=1, turn=Turn.DUE, now=NOW, lease=LEASE)
    assert empty.next_due_at is None


async def test_attempt_numbers_rise_and_are_stored_before_the_request(store: Store, backend: Backend) -> None:
    """Every claim has a higher number, and it is on the disk when the claim is handed out."""
    event = await stored(store, "crm")
    for number in range(1, 6):
        claim = await one(store, now=NOW + number * LEASE)
        assert claim.attempt == number
        assert backend.deliveries()[event.id, "crm"].attempts == number
        await failed(store, claim, again=NOW, step=number)
    assert [row[2] for row in backend.attempts()] == [1, 2, 3, 4, 5]


async def test_numbers_never_fall_however_claims_end(backend: Backend) -> None:
    """Settled, lost to its lease, lost to a restart or to a kill: the number goes on rising."""
    store = await backend.open(Watch())
    await stored(store, "crm")
    await failed(store, await one(store), again=NOW)
    assert (await one(store)).attempt == 2
    assert await store.reclaim(NOW + 2 * LEASE, alive=NOBODY) == 1
    assert (await one(store)).attempt == 3
    await store.close()
    store = await backend.open(Watch())
    claim = await one(store)
    assert claim.attempt == 4
    await store.release([claim])
    assert (await one(store)).attempt == 4
    killed = await backend.after_a_kill().open(Watch())
    assert (await one(killed)).attempt == 5
    await killed.close()
    await store.close()


async def test_a_claim_that_is_released_was_never_made(store: Store, backend: Backend) -> None:
    """The number is taken again, the delivery is due as before, and the claim settles nothing any more."""
    event = await stored(store, "crm")
    before = backend.deliveries()[event.id, "crm"]
    claim = await one(store)
    await store.release([claim])
    assert backend.deliveries()[event.id, "crm"] == before
    assert (await store.settle(settlement(claim))).ruling is None
    await store.release([claim])
    assert backend.deliveries()[event.id, "crm"] == before
    await store.release([])


async def test_releasing_a_lost_claim_touches_nobody_elses(store: Store, backend: Backend) -> None:
    """A claim that was reclaimed and made anew is not given back by its former holder."""
    event = await stored(store, "crm")
    old = await one(store)
    await store.reclaim(NOW + 2 * LEASE, alive=NOBODY)
    new = await one(store)
    await store.release([old])
    row = backend.deliveries()[event.id, "crm"]
    assert (row.state, row.attempts) == ("in_flight", 2)
    assert (await store.settle(settlement(new))).ruling is not None


@pytest.mark.row("B25")
async def test_a_lease_that_ended_is_taken_back_but_for_the_living(store: Store, backend: Backend) -> None:
    """What is claimed under an ended lease is due again; a claim that is alive here is not, however old."""
    for _ in range(3):
        await stored(store, "crm")
    dead, alive = await one(store), await one(store)
    young = await one(store, lease=10 * LEASE)
    assert await store.reclaim(NOW + LEASE, alive=NOBODY) == 0, "a lease lasts to its very end"
    assert await store.reclaim(NOW + 2 * LEASE, alive=frozenset({alive.token})) == 1
    states = {event_id: row.state for (event_id, _), row in backend.deliveries().items()}
    assert states == {dead.event.id: "pending", alive.event.id: "in_flight", young.event.id: "in_flight"}
    assert (await store.settle(settlement(alive))).ruling is not None
    assert (await store.settle(settlement(dead))).ruling is None


@pytest.mark.row("B25", "B65")
async def test_a_start_takes_back_all_claims_at_once(backend: Backend, store: Store) -> None:
    """After a kill nothing waits for a lease: every claim of the process before is due now."""
    events = [await stored(store, "crm", "books") for _ in range(4)]
    await taken(store, "crm", limit=9, lease=timedelta(days=1))
    after = backend.after_a_kill()
    reopened = await after.open(Watch())
    assert {row.state for row in after.deliveries().values()} == {"pending"}
    assert ids(await taken(reopened, "crm", limit=9)) == [event.id for event in events]
    await reopened.close()


async def test_a_retry_waits_through_a_restart(backend: Backend) -> None:
    """A restart neither resets nor bunches the schedule."""
    store = await backend.open(Watch())
    await stored(store, "crm")
    await failed(store, await one(store), again=NOW + timedelta(hours=5), step=3)
    await store.close()
    store = await backend.open(Watch())
    assert await taken(store, now=NOW + timedelta(hours=4, minutes=59)) == []
    claim = await one(store, now=NOW + timedelta(hours=5))
    assert (claim.step, claim.attempt, claim.first_try_at) == (3, 2, NOW)
    await store.close()


async def test_what_we_broke_off_is_not_a_first_try(store: Store) -> None:
    """The first try is the first that was not cut off by ourselves; one that could not even be prepared is a try, or
    an event that never can be would wait for ever."""
    await stored(store, "crm")
    await store.settle(settlement(await one(store), RetryAt(NOW, 0), kind=OutcomeKind.INTERRUPTED, status=None))
    claim = await one(store)
    assert claim.first_try_at is None
    await failed(store, claim, again=NOW, at=NOW + 5 * SECOND)
    claim = await one(store)
    assert claim.first_try_at == NOW + 5 * SECOND
    await failed(store, claim, again=NOW, at=NOW + 50 * SECOND)
    assert (await one(store)).first_try_at == NOW + 5 * SECOND


async def test_a_claim_knows_what_its_target_has_taken(store: Store) -> None:
    """`took_at` is that of the stored health at the moment of the claim."""
    await stored(store, "crm")
    await store.change_health("crm", becomes(disabled()))
    assert (await one(store)).took_at is None

    await stored(store, "crm")
    await store.change_health("crm", lambda health: health._replace(took_at=NOW + 7 * SECOND))
    assert (await one(store)).took_at == NOW + 7 * SECOND


async def test_a_probe_takes_the_newest_that_was_never_tried(store: Store) -> None:
    """Never tried goes before tried, and among those the newest first."""
    events = [await stored(store, "crm") for _ in range(4)]
    await tried(store, await one(store, turn=Turn.PROBE), at=NOW)
    got = [ids(await taken(store, turn=Turn.PROBE))[0] for _ in range(3)]
    assert got == [events[2].id, events[1].id, events[0].id]


async def test_once_all_were_tried_the_one_tried_longest_ago_is_probed(store: Store) -> None:
    """No two bad events can keep a healthy target shut: the probes go round."""
    events = [await stored(store, "crm") for _ in range(4)]
    claims = {claim.event.id: claim for claim in await taken(store, limit=4)}
    order = [events[2].id, events[0].id, events[3].id, events[1].id]
    for number, event_id in enumerate(order):
        await tried(store, claims[event_id], at=NOW + number * SECOND)
    for number in range(8):
        claim = await one(store, turn=Turn.PROBE, now=NOW + timedelta(minutes=number + 1))
        assert claim.event.id == order[number % 4], number
        await tried(store, claim, at=NOW + timedelta(minutes=number + 1))


async def test_a_probe_does_not_ask_what_is_due(store: Store) -> None:
    """A held delivery is probed whatever its due time says."""
    await stored(store, "crm")
    await failed(store, await one(store), again=NOW + timedelta(days=1))
    assert len(await taken(store, turn=Turn.PROBE)) == 1


async def test_a_probe_of_a_target_without_deliveries_finds_nothing(store: Store) -> None:
    """And what is under way is not probed a second time."""
    assert await taken(store, turn=Turn.PROBE) == []
    await stored(store, "crm")
    await one(store, turn=Turn.PROBE)
    assert await taken(store, turn=Turn.PROBE) == []


async def test_an_arrival_is_what_came_since_the_disabling_and_was_never_tried(store: Store) -> None:
    """The newest of those goes; what was there before, or was tried, does not."""
    since = NOW + 10 * SECOND
    await stored(store, "crm")
    assert await taken(store, turn=Turn.ARRIVAL, since=since) == []
    for seconds in (10, 20, 30):
        await stored(store, "crm", at=NOW + seconds * SECOND)
    claim = await one(store, turn=Turn.ARRIVAL, since=since)
    assert claim.event.received_at == NOW + 30 * SECOND
    assert claim.turn is Turn.ARRIVAL
    await tried(store, claim, at=NOW + 31 * SECOND)
    assert (await one(store, turn=Turn.ARRIVAL, since=since)).event.received_at == NOW + 20 * SECOND
    assert (await one(store, turn=Turn.ARRIVAL, since=since)).event.received_at == NOW + 10 * SECOND
    assert await taken(store, turn=Turn.ARRIVAL, since=since) == []


async def test_a_fence_lets_nobody_settle_what_another_holds(store: Store, backend: Backend) -> None:
    """After a reclaim the former holder's settlement changes neither delivery, nor attempts, nor health."""
    event = await stored(store, "crm")
    old = await one(store)
    await store.reclaim(NOW + 2 * LEASE, alive=NOBODY)
    asked: list[TargetHealth] = []

    def rule(health: TargetHealth) -> Ruling:
        asked.append(health)
        return Ruling(Done(), health)

    lost = await store.settle(settlement(old, rule=rule))
    assert (lost.ruling, asked) == (None, [])
    new = await one(store)
    assert (await store.settle(settlement(old, health=disabled()))).ruling is None
    assert backend.deliveries()[event.id, "crm"].state == "in_flight"
    assert backend.attempts() == []
    assert (await store.target_health("crm")).failures == 0
    settled = await store.settle(settlement(new))
    assert settled.ruling is not None
    assert isinstance(settled.ruling.decision, Done)


@pytest.mark.row("B57")
async def test_the_same_claim_settles_once(store: Store, backend: Backend) -> None:
    """Told twice, also within one commit, an attempt is recorded once and counted once."""
    event = await stored(store, "crm")
    claim = await one(store)
    twice = await asyncio.gather(store.settle(settlement(claim)), store.settle(settlement(claim, RetryAt(NOW, 1))))
    again = await store.settle(settlement(claim))
    assert [settled.ruling is not None for settled in (*twice, again)] == [True, False, False]
    assert backend.deliveries()[event.id, "crm"].state == "delivered"
    assert backend.attempts() == [(event.id, "crm", 1, "delivered")]


async def test_a_claim_of_another_event_settles_nothing(store: Store) -> None:
    """An event that is not in the store, and a target that was never claimed."""

    await stored(store, "crm", "books")
    claim = await one(store)
    assert (await store.settle(settlement(claim._replace(target="books")))).ruling is None
    assert (await store.settle(settlement(claim._replace(event=replace(claim.event, id="evt_none"))))).ruling is None


# --- in order ---


async def first(store: Store, now: datetime = NOW) -> list[str]:
    """What an ordered target gets next."""
    return ids(await taken(store, turn=Turn.FIRST, limit=9, now=now))


async def test_in_order_only_the_first_is_taken_and_alone(store: Store) -> None:
    """Whatever limit was asked for, by arrival, and nothing while anything is under way, not even in one commit."""
    a, b, _ = [await stored(store, "crm", at=NOW - n * SECOND) for n in range(3)]
    await stored(store, "books")
    both = await asyncio.gather(*(taken(store, turn=Turn.FIRST, limit=9) for _ in range(2)))
    (claim,) = [one for part in both for one in part]
    assert claim.event.id == a.id
    assert await first(store) == []
    await store.settle(settlement(claim))
    assert await first(store) == [b.id]


async def test_in_order_a_first_that_is_not_due_holds_back_the_rest(store: Store) -> None:
    """The others are due and wait all the same; the claim says when the first is."""
    a, b = [await stored(store, "crm") for _ in range(2)]
    claim = await one(store, turn=Turn.FIRST)
    await store.settle(settlement(claim, RetryAt(NOW + 30 * SECOND, 1), kind=OutcomeKind.REFUSED))
    claimed = await store.claim("crm", limit=1, turn=Turn.FIRST, now=NOW + 29 * SECOND, lease=LEASE)
    assert (claimed.claims, claimed.next_due_at) == ((), NOW + 30 * SECOND)
    again = await one(store, turn=Turn.FIRST, now=NOW + 30 * SECOND)
    assert (again.event.id, again.attempt, again.step) == (a.id, 2, 1)
    claimed = await store.claim("crm", limit=1, turn=Turn.FIRST, now=NOW + 31 * SECOND, lease=LEASE)
    assert (claimed.claims, claimed.next_due_at) == ((), None), "nothing is due beside what is under way"
    await store.settle(settlement(again))
    assert await first(store, NOW + 31 * SECOND) == [b.id]


async def test_in_order_a_later_one_under_way_is_waited_for_too(store: Store) -> None:
    """As it is where order was switched on a moment ago, or where an earlier event was replayed."""
    a, b = [await stored(store, "crm") for _ in range(2)]
    held = await taken(store, limit=2)
    await store.release(held[:1])
    assert held[1].event.id == b.id
    assert await first(store) == []
    await store.settle(settlement(held[1]))
    assert await first(store) == [a.id]


async def test_in_order_a_lost_claim_is_first_again(backend: Backend) -> None:
    """After a lease that ended, and after a kill: nothing that came later goes before it."""
    store = await backend.open(Watch())
    a = await stored(store, "crm")
    await stored(store, "crm")
    assert await first(store) == [a.id]
    assert await store.reclaim(NOW + 2 * LEASE, alive=NOBODY) == 1
    assert await first(store) == [a.id]
    left = backend.after_a_kill()
    await store.close()
    store = await left.open(Watch())
    assert await first(store) == [a.id]
    await store.close()


async def test_in_order_the_first_of_a_disabled_target_keeps_its_own_time(store: Store) -> None:
    """What fails while the target is disabled is tried again by its schedule; enabling makes it due at once, and so
    does another config."""
    await stored(store, "crm")
    for change in (lambda _: TargetHealth("crm"), lambda health: health._replace(settings_digest="mended")):
        await store.change_health("crm", lambda _: disabled()._replace(url_digest="url", settings_digest="old"))
        claim = await one(store, turn=Turn.FIRST)
        health = disabled()._replace(url_digest="url", settings_digest="old")
        later = RetryAt(NOW + 600 * SECOND, 1)
        await store.settle(settlement(claim, later, kind=OutcomeKind.FAILED, health=health, status=500))
        assert await first(store, NOW + 599 * SECOND) == []
        await store.change_health("crm", change)
        (again,) = await taken(store, turn=Turn.FIRST)
        await store.release([again])


async def test_the_first_of_a_target_is_known(store: Store) -> None:
    """By its id, pending or under way, until it is over; nothing where nothing waits."""
    a, b = [await stored(store, "crm") for _ in range(2)]
    assert await store.archive.firsts(["crm", "books"]) == {"crm": a.id}
    claim = await one(store, turn=Turn.FIRST)
    assert await store.archive.firsts(["crm"]) == {"crm": a.id}
    await store.settle(settlement(claim))
    assert await store.archive.firsts(["crm"]) == {"crm": b.id}


async def test_of_an_ordered_target_only_the_first_is_overdue(store: Store) -> None:
    """What it holds back is not, however long it is due."""
    await stored(store, "crm", "books", at=NOW - 600 * SECOND)
    claim = await one(store, turn=Turn.FIRST)
    await stored(store, "crm", at=NOW - 600 * SECOND)
    assert await store.archive.overdue(["crm"], NOW, ordered=["crm"]) == frozenset()
    await store.settle(settlement(claim, RetryAt(NOW + 600 * SECOND, 1), kind=OutcomeKind.FAILED, status=500))
    assert await store.archive.overdue(["crm", "books"], NOW, ordered=["crm"]) == {"books"}
    assert await store.archive.overdue(["crm", "books"], NOW, ordered=[]) == {"crm", "books"}
    assert await store.archive.overdue(["crm"], NOW + 601 * SECOND, ordered=["crm", "gone"]) == {"crm"}
