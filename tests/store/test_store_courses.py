"""What is still to be fetched or decided before a delivery is sent stays with it, until a replay decides anew."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from relay.model import Course, Event, Outcome, OutcomeKind, Rate, RetryAt, Route, Way
from relay.store.replays import Replayable, ReplayFilter, ReplayJob
from relay.store.sqlite import SqliteStore
from tests.support.store_backends import SqliteBackend
from tests.support.store_parts import (
    NOW,
    SECOND,
    Watch,
    an_event,
    failed,
    killed,
    one,
    settlement,
    stored,
    taken,
    towards,
)

LATER = NOW + timedelta(hours=1)
COURSE: Course = (
    Way("paid orders", "shop", ("data.mode == 'live'", 'data."a\\nb" == `"\u00e9"`')),
    Way("rest", "stock"),
)
PARTNER = frozenset({"partner"})
LIVE = (("X-Env", "live"),)


async def led(store: SqliteStore, *targets: str, course: Course = COURSE, **parts: Any) -> Event:
    """An event that reaches each target by a course."""
    event = an_event(**parts)
    await store.accept(event, targets, dict.fromkeys(targets, course))
    return event


def one_route(*targets: str, **parts: Any) -> list[Route]:
    """A config of today with a single route."""
    return [Route("today", PARTNER, targets, **parts)]


async def replayed(store: SqliteStore, event: Event, routes: Sequence[Route], **how: Any) -> None:
    """Replay an event by these routes of today."""
    anew = towards("crm", "books", routes=routes)
    assert (await store.replays.event(event.id, anew, now=LATER, **how)) is not None


async def test_a_claim_has_the_course_of_its_delivery(store: SqliteStore) -> None:
    """Each target its own; one without any goes as it came."""
    event = an_event()
    await store.accept(event, ["crm", "books"], {"crm": COURSE})
    assert (await one(store)).course == COURSE
    assert (await one(store, "books")).course == ()


async def test_a_course_outlives_tries_and_restarts(store: SqliteStore, backend: SqliteBackend) -> None:
    """A kill, a failed try and a claim given back leave it as it was."""
    await led(store, "crm")
    await failed(store, await one(store), again=NOW + SECOND)
    await store.release([await one(store, now=NOW + SECOND)])
    again = await backend.after_a_kill().open(Watch())
    assert (await one(again, now=LATER)).course == COURSE
    await again.close()


async def test_a_replay_takes_the_course_of_today(store: SqliteStore) -> None:
    """Where today's routes lead to the target, what they say is what counts: another enricher, or none."""
    event = await led(store, "crm")
    for routes, course in (
        (one_route("crm", enricher="stock", when="data.n"), (Way("today", "stock", ("data.n",)),)),
        (one_route("crm"), ()),
    ):
        await killed(store, await one(store, now=LATER), at=LATER)
        await replayed(store, event, routes)
        claim = await one(store, now=LATER)
        assert claim.course == course
        await store.release([claim])


async def test_a_replay_keeps_the_course_where_no_route_leads(store: SqliteStore) -> None:
    """Neither a route to another target nor one whose condition says no today takes it away."""
    event = await led(store, "crm")
    for routes in (one_route("books"), one_route("crm", when="body.n == `2`"), one_route("crm", types=("x",)), []):
        await killed(store, await one(store, now=LATER), at=LATER)
        await replayed(store, event, routes)
        (claim,) = await taken(store, now=LATER)
        assert claim.course == COURSE
        await store.settle(settlement(claim, RetryAt(LATER, 0)))


async def test_a_delivery_made_by_hand_goes_the_way_of_today_or_as_it_came(store: SqliteStore) -> None:
    """`--target` alone makes it: with the course of a route that leads there, else with none."""
    event = await stored(store, "crm")
    await replayed(store, event, one_route("books", enricher="stock"), target="books")
    assert (await one(store, "books", now=LATER)).course == (Way("today", "stock"),)
    other = await stored(store, "crm")
    await replayed(store, other, one_route("books", when="body.n == `2`"), target="books")
    assert (await one(store, "books", now=LATER)).course == ()


@pytest.mark.parametrize(
    ("parts", "is_taken"),
    [
        ({"when": "body.n == `1`"}, True),
        ({"when": "body.n == `2`"}, False),
        ({"when": "abs(body.s)"}, False),
        ({"when": "type == 'order.paid' && source == 'partner' && received_at == '2026-09-20T10:00:00.000Z'"}, True),
        ({"when": "headers.\"x-env\" == 'live'"}, True),
        ({"headers": (("x-ENV", "live"),)}, True),
        ({"headers": (("X-Env", "Live"),)}, False),
        ({"when": "data.n", "enricher": "shop"}, True),
    ],
)
async def test_an_unrouted_event_is_routed_anew_by_what_it_holds(
    store: SqliteStore, backend: SqliteBackend, parts: dict[str, Any], is_taken: bool
) -> None:
    """Headers and body are read from the store, and give the answer that they would have given at first."""
    event = await stored(store, headers=LIVE, body=b'{"n": 1, "s": "one"}')
    await replayed(store, event, one_route("crm", **parts))
    assert bool(backend.deliveries()) is is_taken
    record = await store.archive.event(event.id)
    assert record is not None
    assert record.routes == (("today",) if is_taken else ())


async def test_a_stored_replay_decides_anew_for_each_item(store: SqliteStore) -> None:
    """Dead ones take the course of today, or keep theirs; unrouted ones go where their bodies say."""
    led_there, elsewhere = await led(store, "crm", body=b'{"n": 1}'), await led(store, "crm", body=b'{"n": 2}')
    for claim in await taken(store, limit=9):
        await killed(store, claim)
    unrouted = [await stored(store, body=b'{"n": %d}' % number) for number in (1, 2)]
    anew = towards("crm", "books", routes=one_route("crm", "books", when="body.n == `1`", enricher="stock"))
    for state in (Replayable.DEAD, Replayable.UNROUTED):
        job = ReplayJob(f"rpl_{state}", ReplayFilter(state), Rate(9, SECOND), NOW)
        await store.replays.create(job)
        advanced = (await store.replays.advance(job.id, 9, anew, now=LATER)).job
        assert advanced is not None
        assert (advanced.done, advanced.skipped) == ((2, 0) if state is Replayable.DEAD else (1, 1))
    today = (Way("today", "stock"),)
    courses = {(claim.event.id, claim.course) for claim in await taken(store, now=LATER, limit=9)}
    assert courses == {(led_there.id, today), (elsewhere.id, COURSE), (unrouted[0].id, today)}


@pytest.mark.only("sqlite")
async def test_a_plain_replay_reads_no_body(store: SqliteStore, backend: SqliteBackend) -> None:
    """An event whose body is damaged is replayed all the same where no route asks for it, and by none that does."""
    event = await stored(store)
    await store.close()
    with closing(sqlite3.connect(backend.path)) as db:
        db.execute("UPDATE event SET body = 'x', headers = '{'")
        db.commit()
    store = await backend.open(Watch())
    for parts in ({"when": "`true`"}, {"headers": LIVE}, {"when": "source == 'partner'"}):
        await replayed(store, event, one_route("crm", **parts))
        assert backend.deliveries() == {}
    await replayed(store, event, one_route("crm"))
    assert set(backend.deliveries()) == {(event.id, "crm")}
    await store.close()


@pytest.mark.only("sqlite")
@pytest.mark.parametrize(
    "content",
    ["x", "[]]", "7", "[7]", '[["a"]]', '[["a", 1, []]]', '[["a", null, "b"]]', '[["a", null, [1]]]', b"\xff"],
)
async def test_a_damaged_course_is_dead_and_holds_up_nothing(
    store: SqliteStore, backend: SqliteBackend, content: object
) -> None:
    """It is never sent as if nothing were to be decided, and the next one goes."""
    damaged, sound = await led(store, "crm"), await led(store, "crm")
    await store.close()
    with closing(sqlite3.connect(backend.path)) as db:
        db.execute("UPDATE delivery SET course = ? WHERE event_seq = 1", (content,))
        db.commit()
    store = await backend.open(Watch())
    assert [(claim.event.id, claim.course) for claim in await taken(store, limit=9)] == [(sound.id, COURSE)]
    row = backend.deliveries()[damaged.id, "crm"]
    assert (row.state, row.reason) == ("dead", "its event or its own row is damaged in the store")
    await store.close()


@pytest.mark.only("sqlite")
async def test_failed_conditions_are_kept_with_their_event(store: SqliteStore, backend: SqliteBackend) -> None:
    """As they were told, for as long as the event; what the disk has damaged of them costs nothing else."""
    failures = (("paid", "abs() was given what it does not take"), ("paid > crm", "failed"))
    event = replace(an_event(), failed_conditions=failures)
    await store.accept(event, [])
    record = await store.archive.event(event.id)
    assert record is not None
    assert record.failed_conditions == failures
    await store.close()
    with closing(sqlite3.connect(backend.path)) as db:
        db.execute("UPDATE event SET failed_conditions = ?", (b"\xff",))
        db.commit()
    store = await backend.open(Watch())
    record = await store.archive.event(event.id)
    assert record is not None
    assert record.failed_conditions == ()
    await store.close()


async def test_a_delivery_that_waits_for_long_fills_no_table(store: SqliteStore) -> None:
    """Its reason is kept up to date; an attempt of it is the first wait alone, and its number does not run away."""
    event = await led(store, "crm")
    for number in range(5):
        claim = await one(store)
        assert claim.attempt == min(number, 1) + 1
        wait = Outcome(OutcomeKind.INTERRUPTED, reason=f"waiting: {number}", is_wait=True)
        await store.settle(settlement(claim, RetryAt(NOW, 0))._replace(outcome=wait))
    record = await store.archive.event(event.id)
    assert record is not None
    assert [(kept.number, kept.reason) for kept in record.attempts] == [(1, "waiting: 0")]
    (delivery,) = record.event.deliveries
    assert (delivery.attempts, delivery.reason) == (1, "waiting: 4")
