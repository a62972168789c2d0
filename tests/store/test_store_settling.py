"""Settling: an attempt, what follows for its delivery and its target's health are one thing on the disk."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model import DisabledBy, Done, GiveUp, OutcomeKind, RetryAt, TargetHealth, TargetState, Turn
from relay.store import Ruling, Store
from relay.store.grouping.rows import health_from, health_row, millis, moment
from tests.support.store_backends import Backend, SqliteBackend, kept
from tests.support.store_parts import (
    LEASE,
    NOW,
    SECOND,
    Watch,
    becomes,
    disabled,
    failed,
    ids,
    killed,
    one,
    ruled,
    settlement,
    stored,
    taken,
)

FULL_HEALTH = TargetHealth(
    name="crm",
    state=TargetState.DISABLED,
    disabled_by=DisabledBy.FAILURES,
    reason='it said 500: "naïve" 🙂',
    since=NOW + timedelta(milliseconds=1),
    failures=7,
    counted_events=("evt_1", "evt_2", "evt_2"),
    counted_at=NOW + timedelta(milliseconds=2),
    wait_until=NOW + timedelta(milliseconds=3),
    paced=True,
    succeeded_at=NOW + timedelta(milliseconds=4),
    took_at=NOW + timedelta(milliseconds=5),
    throttled_until=NOW + timedelta(milliseconds=6),
    probe_at=NOW + timedelta(milliseconds=7),
    probe_wait=timedelta(minutes=4, milliseconds=8),
    arrival_try=True,
    ramp=3,
    url_digest="aa",
    settings_digest="bb",
)


async def test_delivered_ends_a_delivery(store: Store, backend: Backend) -> None:
    """A delivered one is never claimed again, and its attempt is on record."""
    event = await stored(store, "crm")
    settled = await store.settle(settlement(await one(store)))
    assert settled.ruling is not None
    assert not settled.was_disabled
    assert backend.deliveries()[event.id, "crm"].state == "delivered"
    assert backend.attempts() == [(event.id, "crm", 1, "delivered")]
    assert await taken(store, now=NOW + timedelta(days=365)) == []
    assert await taken(store, turn=Turn.PROBE) == []


async def test_a_retry_is_due_when_it_was_told(store: Store, backend: Backend) -> None:
    """Pending again at its step, not a millisecond sooner."""
    event = await stored(store, "crm")
    again = NOW + timedelta(seconds=31, milliseconds=7)
    await failed(store, await one(store), again=again, step=4)
    row = backend.deliveries()[event.id, "crm"]
    assert (row.state, row.step, row.attempts) == ("pending", 4, 1)
    assert await taken(store, now=again - timedelta(milliseconds=1)) == []
    assert (await one(store, now=again)).step == 4


async def test_a_dead_delivery_keeps_its_reason_and_is_counted(store: Store, backend: Backend) -> None:
    """Kept with the reason, shown, and never claimed."""
    event = await stored(store, "crm")
    await killed(store, await one(store))
    row = backend.deliveries()[event.id, "crm"]
    assert (row.state, row.reason) == ("dead", "no more")
    assert await kept(store, "crm") == {("crm", "dead"): 1}
    assert await taken(store, now=NOW + timedelta(days=365)) == []


async def test_settlements_of_one_commit_each_see_the_health_that_the_one_before_left(store: Store) -> None:
    """Two attempts on one target may settle at once: no count is lost."""
    for _ in range(20):
        await stored(store, "crm")

    def counting(health: TargetHealth) -> Ruling:
        return Ruling(Done(), health._replace(failures=health.failures + 1))

    claims = await taken(store, limit=20)
    settled = await asyncio.gather(*(store.settle(settlement(claim, rule=counting)) for claim in claims))
    assert [one.ruling.health.failures for one in settled if one.ruling] == list(range(1, 21))
    assert (await store.target_health("crm")).failures == 20


async def test_targets_have_health_of_their_own(store: Store) -> None:
    """A target that nothing is known of is healthy; what befalls one leaves the other alone."""
    assert await store.target_health("crm") == TargetHealth("crm")
    await store.change_health("crm", becomes(disabled()))
    assert await store.target_health("books") == TargetHealth("books")


@pytest.mark.row("B71")
async def test_health_survives_a_restart_in_every_field(backend: Backend, store: Store) -> None:
    """A wait under way, the counted events, the ramp: a restart forgets nothing."""
    untouched = {name for name, value in TargetHealth._field_defaults.items() if getattr(FULL_HEALTH, name) == value}
    assert untouched == set(), "the sample sets every field to something"
    assert await store.change_health("crm", becomes(FULL_HEALTH)) == FULL_HEALTH
    after = await backend.after_a_kill().open(Watch())
    assert await after.target_health("crm") == FULL_HEALTH
    await after.close()


async def test_health_that_a_settlement_left_survives_a_kill(backend: Backend, store: Store) -> None:
    """Ruling and record are one transaction."""
    await stored(store, "crm")
    await store.settle(
        settlement(await one(store), RetryAt(NOW, 0), kind=OutcomeKind.GONE, status=410, health=FULL_HEALTH)
    )
    after = await backend.after_a_kill().open(Watch())
    assert await after.target_health("crm") == FULL_HEALTH
    await after.close()


TIMES = st.integers(-600_000_000_000, 7_000_000_000_000).map(moment)
SPANS = st.timedeltas(timedelta(0), timedelta(days=400)).map(lambda s: s // SECOND * SECOND + timedelta(milliseconds=7))
HEALTHS = st.builds(
    TargetHealth,
    name=st.just("crm"),
    state=st.just(TargetState.DISABLED),
    disabled_by=st.sampled_from(DisabledBy),
    counted_events=st.lists(st.text("abc_123"), max_size=4).map(tuple),
    since=st.none() | TIMES,
    counted_at=st.none() | TIMES,
    wait_until=st.none() | TIMES,
    succeeded_at=st.none() | TIMES,
    took_at=st.none() | TIMES,
    throttled_until=st.none() | TIMES,
    probe_at=st.none() | TIMES,
    probe_wait=st.none() | SPANS,
    ramp=st.none() | st.integers(0, 1000),
)


@given(health=HEALTHS)
def test_health_comes_back_from_its_row_as_it_went_in(health: TargetHealth) -> None:
    """Whatever the values, to the millisecond."""
    assert health_from(health_row(health)) == health


@given(value=st.integers(0, 7_000_000_000_000))
def test_a_time_that_is_stored_again_and_again_does_not_creep(value: int) -> None:
    """Milliseconds to a time and back are the same milliseconds."""
    at = moment(value)
    assert at is not None
    assert millis(at) == value


async def test_what_a_disabled_target_holds_is_due_by_arrival(store: Store, backend: Backend) -> None:
    """A try that failed while its target was disabled, or that disabled it, does not wait for its step as well."""
    event = await stored(store, "crm", at=NOW)
    claim = await one(store)
    later = RetryAt(NOW + timedelta(hours=3), 1)
    await store.settle(settlement(claim, later, kind=OutcomeKind.FAILED, status=500, health=disabled()))
    row = backend.deliveries()[event.id, "crm"]
    assert (row.state, row.step, row.due_at) == ("pending", 1, millis(NOW))


async def held_in_disorder(store: Store) -> list[str]:
    """Five held deliveries whose own due times are in no order of arrival; two of them have passed."""
    events = [await stored(store, "crm", at=NOW + n * SECOND) for n in range(5)]
    claims = await taken(store, limit=4, now=NOW + 10 * SECOND)
    for claim, again in zip(claims, (90, 30, 7200, 60), strict=True):
        await failed(store, claim, again=NOW + again * SECOND, at=NOW + 10 * SECOND)
    await store.change_health("crm", becomes(disabled(at=NOW + 11 * SECOND)))
    return [event.id for event in events]


async def test_enabling_makes_what_was_held_due_oldest_first(store: Store) -> None:
    """However their own times stood, what was held leaves by order of arrival, at once."""
    order = await held_in_disorder(store)
    await store.change_health("crm", lambda health: health._replace(state=TargetState.ACTIVE, disabled_by=None))
    assert ids(await taken(store, limit=9, now=NOW + 100 * SECOND)) == order


async def test_a_success_that_enables_makes_what_was_held_due_oldest_first(store: Store) -> None:
    """The same when a probe brings the target back."""
    order = await held_in_disorder(store)
    probe = await one(store, turn=Turn.PROBE, now=NOW + 100 * SECOND)
    active = TargetHealth("crm", took_at=NOW + 100 * SECOND)
    settled = await store.settle(settlement(probe, at=NOW + 100 * SECOND, health=active, releases_held=True))
    assert settled.was_disabled
    order.remove(probe.event.id)
    assert ids(await taken(store, limit=9, now=NOW + 102 * SECOND)) == order


async def test_enabling_frees_nothing_of_other_targets(store: Store, backend: Backend) -> None:
    """The schedule of a neighbour stands."""
    event = await stored(store, "crm", "books")
    again = NOW + timedelta(hours=2)
    for target in ("crm", "books"):
        await failed(store, await one(store, target), again=again)
    await store.change_health("crm", becomes(disabled()))
    await store.change_health("crm", becomes(TargetHealth("crm")))
    rows = backend.deliveries()
    assert rows[event.id, "crm"].due_at == millis(NOW)
    assert rows[event.id, "books"].due_at == millis(again)


async def test_a_failure_settled_after_the_enabling_keeps_its_wait(store: Store, backend: Backend) -> None:
    """A commit that brings a success and then a failure: the second waits for its step, it was never held."""
    first, second = await stored(store, "crm"), await stored(store, "crm")
    claims = await taken(store, limit=2)
    await store.change_health("crm", becomes(disabled()))
    again = NOW + timedelta(minutes=5)
    back = settlement(claims[0], health=TargetHealth("crm"), releases_held=True)
    late = settlement(claims[1], RetryAt(again, 1), kind=OutcomeKind.FAILED, status=500)
    await asyncio.gather(store.settle(back), store.settle(late))
    rows = backend.deliveries()
    assert rows[first.id, "crm"].state == "delivered"
    assert rows[second.id, "crm"].due_at == millis(again)


async def test_a_failure_settled_before_the_enabling_leaves_with_the_rest(store: Store, backend: Backend) -> None:
    """One commit that brings a failure, the disabling and a success: the first was held like all others."""
    events = [await stored(store, "crm") for _ in range(3)]
    claims = await taken(store, limit=3)
    again = RetryAt(NOW + timedelta(minutes=5), 1)
    await asyncio.gather(
        store.settle(settlement(claims[0], again, kind=OutcomeKind.FAILED, status=500)),
        store.settle(settlement(claims[1], again, kind=OutcomeKind.FAILED, status=500, health=disabled())),
        store.settle(settlement(claims[2], health=TargetHealth("crm"), releases_held=True)),
    )
    rows = backend.deliveries()
    assert [rows[event.id, "crm"].due_at for event in events[:2]] == [millis(NOW)] * 2


async def test_a_change_that_leaves_a_target_active_frees_nothing(store: Store, backend: Backend) -> None:
    """Only an enabling makes due."""
    event = await stored(store, "crm")
    await failed(store, await one(store), again=NOW + LEASE)
    await store.change_health("crm", lambda health: health._replace(failures=1))
    assert backend.deliveries()[event.id, "crm"].due_at == millis(NOW + LEASE)


DECIDE: dict[str, Callable[[int], Done | GiveUp | RetryAt]] = {
    "done": lambda n: Done(),
    "dead": lambda n: GiveUp("no more"),
    "again": lambda n: RetryAt(NOW + n * SECOND, 1),
}


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.sampled_from(["accept", "claim", "done", "dead", "again", "release", "reclaim"]), max_size=25))
def test_kept_counts_equal_a_fresh_count_of_the_table(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After any sequence of verbs, and after a restart."""

    async def walk() -> None:
        backend = SqliteBackend(tmp_path_factory.mktemp("counts"))
        store = await backend.open(Watch())
        held = []
        for number, step in enumerate(steps):
            if step == "accept":
                await stored(store, "crm", "books")
            elif step == "claim":
                held += await taken(store, "crm", limit=2, now=NOW + number * SECOND)
            elif step == "reclaim":
                await store.reclaim(NOW + timedelta(days=1), alive=frozenset({held[0].token} if held else ()))
            elif held and step == "release":
                await store.release([held.pop()])
            elif held:
                await store.settle(settlement(held.pop(), rule=ruled(DECIDE[step](number))))
            assert await kept(store, "crm", "books") == backend.counted()
        await store.close()
        store = await backend.open(Watch())
        assert await kept(store, "crm", "books") == backend.counted()
        await store.close()

    asyncio.run(walk())


async def test_the_backlog_names_its_oldest(store: Store) -> None:
    """Age counts from receipt, of what is neither delivered nor dead; a target without deliveries has none."""
    for seconds in (0, 10, 20):
        await stored(store, "crm", at=NOW + seconds * SECOND)
    later = NOW + 30 * SECOND
    assert [one.oldest_received_at for one in await store.backlog(["crm", "books"])] == [NOW, None]
    await store.settle(settlement(await one(store, now=later)))
    await killed(store, await one(store, now=later))
    (backlog,) = await store.backlog(["crm"])
    assert backlog.oldest_received_at == NOW + 20 * SECOND
    await one(store, now=later)
    (backlog,) = await store.backlog(["crm"])
    assert (backlog.oldest_received_at, backlog.in_flight, backlog.dead) == (NOW + 20 * SECOND, 1, 1)
