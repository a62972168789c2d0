"""What is kept is shown: events by every filter, page by page; refusals; tallies."""

from collections.abc import Sequence
from datetime import timedelta
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ids import first_id, fresh_id
from relay.model import DeliveryState, Event
from relay.store import Retention, Store
from relay.store.archive import EventQuery, KeptEvent, RefusalQuery, RefusedRequest
from relay.store.grouping import views
from tests.support.store_parts import NOW, SECOND, an_event, failed, killed, one, settlement, stored, taken

MINUTE = timedelta(minutes=1)


async def found(store: Store, *, limit: int = 50, **query: object) -> list[str]:
    """The ids of the events that a query finds, over all its pages; a page holds no more than it may."""
    ids: list[str] = []
    before = None
    for _ in range(1000):
        page = await store.archive.events(EventQuery(**query), limit=limit, before=before)  # type: ignore[arg-type]
        assert len(page.events) <= limit
        ids += [event.id for event in page.events]
        before = page.next
        if before is None:
            return ids
    raise AssertionError("the pages never end")


async def accepted(store: Store, *targets: str, at: object = NOW, **parts: object) -> Event:
    """An event whose id is of its time, as the relay's own are."""
    return await stored(store, *targets, at=at, name=fresh_id("evt", at), **parts)  # type: ignore[arg-type]


async def test_events_come_newest_first_with_their_deliveries(store: Store) -> None:
    """Each delivery says its state, its attempts and what the last one came to."""
    first = await accepted(store, "crm", "books")
    second = await accepted(store, "crm", at=NOW + SECOND)
    await failed(store, await one(store, "books"), again=NOW + MINUTE)
    page = await store.archive.events(EventQuery(), limit=9)
    assert [event.id for event in page.events] == [second.id, first.id]
    assert page.next is None
    (books, crm) = page.events[1].deliveries
    assert (books.target, books.state, books.attempts, books.step) == ("books", DeliveryState.PENDING, 1, 1)
    assert (books.outcome, books.status, books.due_at) == ("failed", 500, NOW + MINUTE)
    assert (crm.target, crm.state, crm.attempts, crm.outcome) == ("crm", DeliveryState.PENDING, 0, None)


async def test_every_filter_holds(store: Store) -> None:
    """Source, type, time, state and targets are joined by "and"; a state and a target hold for the same delivery."""
    old = await accepted(store, "crm", "books", source="partner", kind="order.paid", at=NOW - MINUTE)
    new = await accepted(store, "crm", source="other", kind="order.sent")
    lone = await accepted(store, source="other", kind="ping", at=NOW + SECOND)
    await store.settle(settlement(await one(store)))
    await killed(store, await one(store, "books"))
    delivered, dead, pending = DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.PENDING
    crm, books = frozenset({"crm"}), frozenset({"books"})
    assert await found(store, source="other") == [lone.id, new.id]
    assert await found(store, type="order.*") == [new.id, old.id]
    assert await found(store, type="order.[!s]*") == [old.id]
    assert await found(store, since=NOW) == [lone.id, new.id]
    assert await found(store, until=NOW) == [old.id]
    assert await found(store, since=NOW + timedelta(days=1)) == []
    assert await found(store, state=delivered) == [old.id]
    assert await found(store, state=dead) == [old.id]
    assert await found(store, state=dead, among=crm) == []
    assert await found(store, state=dead, among=books) == [old.id]
    assert await found(store, state=delivered, among=books) == []
    assert await found(store, state=pending) == [new.id]
    assert await found(store, state=pending, source="partner") == []
    assert await found(store, state=pending, source="other", type="order.*") == [new.id]
    assert await found(store, among=books) == [old.id]
    assert await found(store, unrouted=True) == [lone.id]
    assert await found(store, unrouted=True, source="partner") == []


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_pages_leave_nothing_out_and_show_nothing_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """However small the page and however short the search behind it, all pages together are all events."""
    monkeypatch.setattr(views, "SCAN", 3)
    events = [await accepted(store, *["crm", "books"][: number % 3], at=NOW + number * SECOND) for number in range(17)]
    newest_first = [event.id for event in reversed(events)]
    routed = [event.id for number, event in reversed(list(enumerate(events))) if number % 3]
    assert await found(store, limit=limit) == newest_first
    assert await found(store, limit=limit, state=DeliveryState.PENDING) == routed
    assert await found(store, limit=limit, state=DeliveryState.PENDING, source="partner") == routed
    assert await found(store, limit=limit, state=DeliveryState.PENDING, source="nobody") == []
    assert await found(store, limit=limit, unrouted=True) == [one for one in newest_first if one not in routed]


async def test_one_event_is_shown_whole(store: Store) -> None:
    """Headers, size, checksum, the routes that took it, and every attempt in order."""
    event = an_event(headers=(("X-One", "1"), ("x-one", "\udc80")), body=b"12345")
    routed = type(event)(**{name: getattr(event, name) for name in event.__slots__} | {"routes": ("all", "paid ones")})
    await store.accept(routed, ["crm"])
    await failed(store, await one(store), again=NOW)
    claim = await one(store)
    await store.settle(settlement(claim, at=NOW + MINUTE))
    record = await store.archive.event(event.id)
    assert record is not None
    assert record.headers == event.headers
    assert (record.size, record.routes, record.verified, record.hops) == (5, ("all", "paid ones"), True, 0)
    assert [(one.number, one.outcome, one.status) for one in record.attempts] == [
        (1, "failed", 500),
        (2, "delivered", 200),
    ]
    assert record.event == KeptEvent(ANY, event.id, "partner", "order.paid", NOW, ANY)
    assert await store.archive.event("evt_nobody") is None


async def test_refusals_are_kept_up_to_their_bounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest stay; what is older than a week goes."""
    monkeypatch.setattr(views, "KEPT_REFUSALS", 5)

    def refusals(numbers: Sequence[int], *, at: object = NOW) -> list[RefusedRequest]:
        return [
            RefusedRequest(at, "partner", "10.0.0.1", 401, f"reason {number}", size=1 << 70, headers=(("A", "b"),))  # type: ignore[arg-type]
            for number in numbers
        ]

    archive = store.archive
    await archive.keep_refusals(refusals([1], at=NOW - timedelta(days=6)), counts={"partner": 1}, at=NOW)
    assert len((await archive.refusals(RefusalQuery(), limit=9)).refusals) == 1
    await archive.keep_refusals(refusals([2], at=NOW), counts={"partner": 1}, at=NOW + timedelta(days=2))
    await archive.keep_refusals(refusals(range(3, 9)), counts={"partner": 40}, at=NOW)
    page = await archive.refusals(RefusalQuery(), limit=3)
    assert [one.reason for one in page.refusals] == ["reason 8", "reason 7", "reason 6"]
    rest = await archive.refusals(RefusalQuery(), limit=3, before=page.next)
    assert [one.reason for one in rest.refusals] == ["reason 5", "reason 4"]
    assert rest.next is None
    assert (rest.refusals[0].headers, rest.refusals[0].remote) == ((("A", "b"),), "10.0.0.1")
    assert (await archive.refusals(RefusalQuery(source="other"), limit=3)).refusals == ()
    assert (await archive.tally(NOW)).ever["source", "partner", "refused"] == 42


async def test_what_happens_is_counted_ever_and_for_the_last_hour(store: Store) -> None:
    """Events by their result, attempts by their outcome; read, not counted."""
    for at in (NOW - timedelta(hours=3), NOW):
        await stored(store, "crm", at=at, key=f"k{at.hour}")
    await stored(store)
    await store.accept(an_event(key=f"k{NOW.hour}"), ["crm"])
    await failed(store, await one(store), again=NOW, at=NOW - timedelta(hours=2))
    for claim in await taken(store, limit=2):
        await store.settle(settlement(claim))
    tally = await store.archive.tally(NOW)
    expected = {("source", "partner", "accepted"): 2, ("source", "partner", "unrouted"): 1}
    expected |= {
        ("source", "partner", "duplicate"): 1,
        ("target", "crm", "delivered"): 2,
        ("target", "crm", "failed"): 1,
    }
    assert tally.ever == expected
    assert tally.began_at is not None
    del expected["target", "crm", "failed"]
    assert tally.last_hour == expected | {("source", "partner", "accepted"): 1}


async def test_a_dead_delivery_is_counted_beside_its_outcome(store: Store) -> None:
    """The attempt failed, and the delivery died of it."""
    await stored(store, "crm")
    await killed(store, await one(store))
    assert (await store.archive.tally(NOW)).ever.items() >= {
        ("target", "crm", "failed"): 1,
        ("target", "crm", "dead"): 1,
    }.items()


@given(st.datetimes(min_value=NOW.replace(tzinfo=None, year=1990), timezones=st.just(NOW.tzinfo)))
def test_ids_sort_by_the_time_they_were_made(at: object) -> None:
    """A search by time begins at the first id of its millisecond and misses none."""
    begin, end = first_id("evt", at), first_id("evt", at + timedelta(milliseconds=1))  # type: ignore[arg-type,operator]
    assert begin <= fresh_id("evt", at) < end  # type: ignore[arg-type]


async def test_refusals_outlive_their_time_on_a_quiet_relay_no_longer(store: Store) -> None:
    """The round of retention forgets them, though no new one comes."""
    refusal = RefusedRequest(NOW, "partner", "10.0.0.1", 401, "missing_signature")
    await store.archive.keep_refusals([refusal], counts={"partner": 1}, at=NOW)
    long = timedelta(days=30)
    for after, left in ((timedelta(days=6), 1), (timedelta(days=8), 0)):
        await store.prune(Retention(long, long), NOW + after)
        assert len((await store.archive.refusals(RefusalQuery(), limit=9)).refusals) == left
