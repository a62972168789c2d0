"""Replaying one event, and discarding: what had ended begins anew, what is held can be let go of."""

import asyncio
from datetime import timedelta

import pytest

from relay.model import Done, Event, OutcomeKind, RetryAt, Route, TargetHealth, TargetState
from relay.store import Retention
from relay.store.grouping.rerouting import DISCARD
from relay.store.replays import DISCARDED, NOT_CONFIGURED, ReplayedEvent
from relay.store.sqlite import SqliteStore
from tests.support.store_backends import Row, SqliteBackend, kept
from tests.support.store_parts import (
    NOW,
    SECOND,
    Watch,
    accepted_many,
    becomes,
    disabled,
    failed,
    ids,
    killed,
    one,
    settlement,
    stored,
    taken,
    towards,
)

LATER = NOW + timedelta(hours=1)
MS = round(LATER.timestamp() * 1000)
ALL = towards("crm", "books", "slow")


async def test_an_event_begins_anew_where_it_had_ended(store: SqliteStore, backend: SqliteBackend) -> None:
    """Delivered and dead ones are due now with a fresh schedule; their numbers go on rising, and they say so."""
    event = await stored(store, "crm", "books")
    await failed(store, await one(store), again=NOW + SECOND)
    await store.settle(settlement(await one(store, now=NOW + SECOND), Done()))
    await killed(store, await one(store, "books"))
    assert await kept(store, "crm", "books") == {("books", "dead"): 1}
    replayed = await store.replays.event(event.id, ALL, now=LATER)
    assert replayed == ReplayedEvent(event.id, event.source, ("books", "crm"))
    assert backend.deliveries() == {
        (event.id, "crm"): Row("pending", 2, 0, MS, None),
        (event.id, "books"): Row("pending", 1, 0, MS, None),
    }
    assert await kept(store, "crm", "books") == backend.counted() == {("crm", "pending"): 1, ("books", "pending"): 1}
    assert await taken(store, now=LATER - SECOND) == []
    claim = await one(store, now=LATER)
    assert (claim.attempt, claim.step, claim.first_try_at, claim.replayed) == (3, 0, None, True)
    assert backend.rows("SELECT DISTINCT replays, settled_at FROM delivery") == [(1, None)]


async def test_a_delivery_that_was_never_replayed_does_not_say_so(store: SqliteStore) -> None:
    """The mark is of the delivery, not of the event."""
    event = await stored(store, "crm", "books")
    await killed(store, await one(store))
    await store.replays.event(event.id, ALL, now=NOW)
    assert (await one(store)).replayed
    assert not (await one(store, "books")).replayed


@pytest.mark.row("H60")
async def test_what_waits_already_is_left_alone(store: SqliteStore, backend: SqliteBackend) -> None:
    """Pending with its place in the schedule, or under way with its claim: both are named and not touched."""
    event = await stored(store, "crm", "books", "slow")
    await failed(store, await one(store), again=LATER + SECOND, step=2)
    claim = await one(store, "books")
    await killed(store, await one(store, "slow"))
    before = backend.deliveries()
    replayed = await store.replays.event(event.id, ALL, now=LATER)
    assert replayed is not None
    assert (replayed.replayed, replayed.waiting) == (("slow",), ("books", "crm"))
    after = backend.deliveries()
    assert {key: after[key] for key in before if key[1] != "slow"} == {
        key: before[key] for key in before if key[1] != "slow"
    }
    assert (await store.settle(settlement(claim))).ruling is not None
    again = await store.replays.event(event.id, ALL, now=LATER, target="crm")
    assert again == ReplayedEvent(event.id, event.source, waiting=("crm",))


async def test_a_target_narrows_a_replay_and_makes_what_is_missing(store: SqliteStore, backend: SqliteBackend) -> None:
    """The others stay as they are; a delivery that no route had asked for is made, once."""
    event = await stored(store, "crm", "books")
    for name in ("crm", "books"):
        await killed(store, await one(store, name))
    replayed = await store.replays.event(event.id, ALL, now=LATER, target="crm")
    assert replayed == ReplayedEvent(event.id, event.source, ("crm",))
    assert backend.deliveries()[event.id, "books"].state == "dead"
    for _ in range(2):
        await store.replays.event(event.id, ALL, now=LATER, target="slow")
    assert backend.deliveries()[event.id, "slow"] == Row("pending", 0, 0, MS, None)
    claim = await one(store, "slow", now=LATER)
    assert (claim.attempt, claim.replayed) == (1, True)
    assert (await kept(store, "crm", "books", "slow")) == backend.counted()


async def test_an_unrouted_event_is_routed_anew(store: SqliteStore, backend: SqliteBackend) -> None:
    """By the routes of today, whose names it then has; while none wants it, nothing is made."""
    event = await stored(store, source="shop", kind="order.paid")
    assert await store.replays.event(event.id, towards("crm"), now=LATER) == ReplayedEvent(event.id, "shop")
    routes = [
        Route("orders", frozenset({"shop"}), ("crm", "books"), ("order.*",)),
        Route("else", frozenset(), ("slow",)),
    ]
    anew = towards("crm", "books", "slow", routes=routes)
    replayed = await store.replays.event(event.id, anew, now=LATER)
    assert replayed == ReplayedEvent(event.id, "shop", ("crm", "books"))
    record = await store.archive.event(event.id)
    assert record is not None
    assert record.routes == ("orders",)
    assert await kept(store, "crm", "books") == backend.counted() == {("crm", "pending"): 1, ("books", "pending"): 1}
    assert (await store.replays.event(event.id, anew, now=LATER)) == ReplayedEvent(
        event.id, "shop", waiting=("books", "crm")
    )


async def test_a_target_that_is_gone_is_skipped_with_the_reason(store: SqliteStore, backend: SqliteBackend) -> None:
    """It would wait for ever; nothing of it changes."""
    event = await stored(store, "crm", "gone")
    for name in ("crm", "gone"):
        await killed(store, await one(store, name))
    before = backend.deliveries()[event.id, "gone"]
    replayed = await store.replays.event(event.id, towards("crm"), now=LATER)
    assert replayed == ReplayedEvent(event.id, event.source, ("crm",), skipped=(("gone", NOT_CONFIGURED),))
    assert backend.deliveries()[event.id, "gone"] == before


async def test_an_unknown_event_is_none(store: SqliteStore) -> None:
    """Nothing is made of it."""
    assert await store.replays.event("evt_nobody", ALL, now=NOW, target="crm") is None
    assert await kept(store, "crm") == {}


async def test_a_replayed_event_is_kept_until_it_has_ended_again(store: SqliteStore, backend: SqliteBackend) -> None:
    """Retention never deletes what is pending, however old."""
    event = await stored(store, "crm")
    await store.settle(settlement(await one(store)))
    await store.replays.event(event.id, ALL, now=LATER)
    retention = Retention(timedelta(days=1), timedelta(days=1))
    assert await store.prune(retention, NOW + timedelta(days=9)) == 0
    assert backend.event_ids() == {event.id}


async def test_a_replay_for_a_disabled_target_is_held_and_leaves_when_it_is_enabled(
    store: SqliteStore, backend: SqliteBackend
) -> None:
    """With all that is held, in the order of arrival, also what was never tried."""
    first, second = await stored(store, "crm"), await stored(store, "books", at=NOW + SECOND)
    await killed(store, await one(store))
    third = await stored(store, "crm", at=NOW + 2 * SECOND)
    await store.change_health("crm", becomes(disabled()))
    await store.replays.event(first.id, ALL, now=LATER)
    await store.replays.event(second.id, ALL, now=LATER, target="crm")
    await store.change_health("crm", becomes(TargetHealth("crm")))
    assert ids(await taken(store, limit=9, now=LATER)) == [first.id, second.id, third.id]
    assert backend.deliveries()[first.id, "crm"].attempts == 2


async def test_a_replay_survives_a_restart(backend: SqliteBackend, store: SqliteStore, watch: Watch) -> None:
    """It is committed on return, like all else."""
    event = await stored(store, "crm")
    await killed(store, await one(store))
    await store.replays.event(event.id, ALL, now=LATER)
    left = backend.after_a_kill()
    await store.close()
    again = await left.open(watch)
    assert (await one(again, now=LATER)).replayed
    assert await kept(again, "crm") == left.counted() == {("crm", "in_flight"): 1}
    await again.close()


def always(_: TargetHealth) -> bool:
    return True


async def test_what_is_held_is_discarded(store: SqliteStore, backend: SqliteBackend) -> None:
    """Dead with the reason and what its last attempt came to; what is under way, has ended, or is of another target
    stays. It is counted, and can be replayed."""
    tried, fresh = await stored(store, "crm", "books"), await stored(store, "crm")
    under_way, done = await stored(store, "crm"), await stored(store, "crm")
    claims = await taken(store, limit=4)
    await store.settle(settlement(claims[0], RetryAt(LATER, 1), kind=OutcomeKind.FAILED, status=500))
    await store.release([claims[1]])
    await store.settle(settlement(claims[3]))
    assert await store.replays.discard("crm", permitted=always, now=LATER) == 2
    states = {key: row.state for key, row in backend.deliveries().items()}
    assert states == {
        (tried.id, "crm"): "dead",
        (tried.id, "books"): "pending",
        (fresh.id, "crm"): "dead",
        (under_way.id, "crm"): "in_flight",
        (done.id, "crm"): "delivered",
    }
    rows = backend.rows(
        "SELECT reason, settled_at, outcome, status FROM delivery WHERE state = 'dead' ORDER BY event_seq"
    )
    assert rows == [(DISCARDED, MS, "failed", 500), (DISCARDED, MS, None, None)]
    assert await kept(store, "crm", "books") == backend.counted()
    tally = await store.archive.tally(LATER)
    assert tally.ever["target", "crm", "dead"] == 2
    assert await store.replays.discard("crm", permitted=always, now=LATER) == 0
    await store.replays.event(fresh.id, ALL, now=LATER)
    assert backend.deliveries()[fresh.id, "crm"] == Row("pending", 0, 0, MS, None)


async def test_a_discard_stops_when_the_target_is_enabled(store: SqliteStore, backend: SqliteBackend) -> None:
    """The health that permits it is asked in each transaction; what was not discarded by then is delivered."""
    await stored(store, "crm")

    def is_disabled(health: TargetHealth) -> bool:
        return health.state is TargetState.DISABLED

    assert await store.replays.discard("crm", permitted=is_disabled, now=LATER) == 0
    await store.change_health("crm", becomes(disabled()))
    assert await store.replays.discard("crm", permitted=is_disabled, now=LATER) == 1


async def test_a_discard_goes_in_small_parts_and_spares_what_comes_meanwhile(
    store: SqliteStore, backend: SqliteBackend
) -> None:
    """No answer waits for a long transaction; what is received after the call is not what was asked for."""
    await accepted_many(store, DISCARD + 500, "crm")
    parts: list[str] = []
    coming: list[asyncio.Task[Event]] = []
    loop = asyncio.get_running_loop()

    def permitted(health: TargetHealth) -> bool:
        if not parts:
            loop.call_soon_threadsafe(lambda: coming.append(loop.create_task(stored(store, "crm"))))
        parts.append(health.name)
        return True

    assert await store.replays.discard("crm", permitted=permitted, now=LATER) == DISCARD + 500
    assert parts == ["crm", "crm"]
    late = await coming[0]
    assert backend.deliveries()[late.id, "crm"].state == "pending"
    assert await kept(store, "crm") == backend.counted() == {("crm", "pending"): 1, ("crm", "dead"): DISCARD + 500}


@pytest.mark.only("sqlite")
async def test_an_event_whose_type_was_damaged_fits_no_route(store: SqliteStore, backend: SqliteBackend) -> None:
    """The disk may have changed it; that is no reason for the store to fail."""
    event = await stored(store)
    db = store._writer._db
    assert db is not None
    await db.execute("UPDATE event SET type = CAST(x'ff00' AS TEXT)")
    anew = towards("crm", routes=[Route("r", frozenset({"partner"}), ("crm",), ("paid",))])
    assert await store.replays.event(event.id, anew, now=LATER) == ReplayedEvent(event.id, event.source)


@pytest.mark.only("sqlite")
@pytest.mark.parametrize("became", ["CAST(body AS TEXT)", "7", "x''", "CAST(x'ff' AS TEXT)"])
async def test_an_event_whose_body_was_damaged_fits_no_condition(store: SqliteStore, became: str) -> None:
    """Whatever kind of value the disk has made of it; but what is still the same bytes is sound."""
    event = await stored(store, body=b'{"paid": true}')
    db = store._writer._db
    assert db is not None
    await db.execute(f"UPDATE event SET body = {became}")
    anew = towards("crm", routes=[Route("r", frozenset({"partner"}), ("crm",), when="body.paid")])
    replayed = ("crm",) if became == "CAST(body AS TEXT)" else ()
    assert await store.replays.event(event.id, anew, now=LATER) == ReplayedEvent(event.id, event.source, replayed)


@pytest.mark.only("sqlite")
async def test_to_route_an_event_anew_writes_nothing_of_its_body(store: SqliteStore, backend: SqliteBackend) -> None:
    """However large it is: a replay of many must not hold up an answer."""
    events = [await stored(store, body=b"x" * 500_000) for _ in range(4)]
    log = backend.path.with_name(f"{backend.path.name}-wal")
    before = log.stat().st_size
    anew = towards("crm", routes=[Route("all", frozenset({"partner"}), ("crm",))])
    for event in events:
        replayed = await store.replays.event(event.id, anew, now=LATER)
        assert replayed is not None
        assert replayed.replayed == ("crm",)
    assert log.stat().st_size - before < 200_000
    record = await store.archive.event(events[0].id)
    assert record is not None
    assert record.routes == ("all",)
