"""Accepting: what is answered is committed, once for each event, for every target."""

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Headers
from relay.store import Retention, Store
from relay.store.grouping.rows import event_row, headers_from
from tests.support.store_backends import Backend, SqliteBackend, kept
from tests.support.store_parts import NOW, Watch, an_event, ids, one, settlement, stored, taken

MEBIBYTE = 1024 * 1024


async def test_an_event_is_claimed_as_it_was_received(store: Store) -> None:
    """Everything of an event but its dedupe key comes back with the claim, to the millisecond."""
    event = an_event(
        body=b"\x00\xff\xfe not text \r\n",
        headers=(("X-A", "1"), ("x-a", "2"), ("Empty", "")),
        at=NOW + timedelta(microseconds=1000),
    )
    await store.accept(event, ["crm"])
    claim = await one(store, now=NOW + timedelta(seconds=1))
    assert claim.event == event
    assert (claim.target, claim.attempt, claim.step) == ("crm", 1, 0)
    assert claim.delivery_id == f"{event.id}/crm"
    assert claim.first_try_at is None
    assert claim.took_at is None


@pytest.mark.parametrize("number", [0, 1, 2, 50])
async def test_every_target_gets_a_delivery_of_its_own(store: Store, backend: Backend, number: int) -> None:
    """An event has one pending, due delivery for each target, however many, and none where there is none."""
    targets = [f"target-{n}" for n in range(number)]
    event = await stored(store, *targets)
    assert {key: row.state for key, row in backend.deliveries().items()} == {(event.id, t): "pending" for t in targets}
    assert event.id in backend.event_ids()
    for target in targets:
        assert ids(await taken(store, target, limit=5)) == [event.id]


@pytest.mark.row("B65")
async def test_a_known_key_stores_nothing_and_names_the_first_event(store: Store, backend: Backend) -> None:
    """A duplicate gets the first one's id and makes no second delivery; the first delivery is there all the same."""
    first = await stored(store, "crm", key="order-1")
    again = await store.accept(an_event(key="order-1"), ["crm", "books"])
    assert (again.event_id, again.duplicate, again.same_body) == (first.id, True, True)
    assert backend.event_ids() == {first.id}
    assert set(backend.deliveries()) == {(first.id, "crm")}


async def test_a_key_that_comes_with_another_body_is_said_to_be_so(store: Store, backend: Backend) -> None:
    """The key rules, but a body that differs is told."""
    await stored(store, "crm", key="order-1", body=b"one")
    again = await store.accept(an_event(key="order-1", body=b"two"), ["crm"])
    assert again.duplicate
    assert not again.same_body
    assert len(backend.event_ids()) == 1


async def test_duplicates_inside_one_commit_are_known_too(store: Store, backend: Backend, watch: Watch) -> None:
    """Of many that arrive together with one key, one is stored, and all learn its id."""
    events = [an_event(key="same") for _ in range(20)]
    results = await asyncio.gather(*(store.accept(event, ["crm"]) for event in events))
    first = results[0].event_id
    assert [result.duplicate for result in results] == [False] + [True] * 19
    assert {result.event_id for result in results} == {first}
    assert backend.event_ids() == {first}


@pytest.mark.row("B11")
async def test_the_same_key_of_two_sources_is_two_events(store: Store, backend: Backend) -> None:
    """A key is scoped to its source, also where source and key run together to the same text."""
    pairs = [("xoxoday", "1"), ("partner", "1"), ("a", "b-c"), ("a-b", "c")]
    results = [await store.accept(an_event(source=source, key=key), ["crm"]) for source, key in pairs]
    assert not any(result.duplicate for result in results)
    assert len(backend.event_ids()) == 4


@pytest.mark.parametrize("key", [str(2**63), str(2**63 + 1), "9" * 40, "-1", "0", "ключ", "\udcff", "a\0b", "x" * 5000])
async def test_keys_are_text_of_any_kind(store: Store, key: str) -> None:
    """Numbers beyond 64 bits, NUL and lone surrogates are keys like others, and none is taken for its neighbour."""
    first = await stored(store, "crm", key=key)
    other = await store.accept(an_event(key=key + "1"), ["crm"])
    again = await store.accept(an_event(key=key), ["crm"])
    assert not other.duplicate
    assert (again.duplicate, again.event_id) == (True, first.id)


@pytest.mark.parametrize("key", [None, ""])
async def test_without_a_key_every_event_is_new(store: Store, backend: Backend, key: str | None) -> None:
    """What names nothing is never a duplicate."""
    for _ in range(3):
        await stored(store, "crm", key=key)
    assert len(backend.event_ids()) == 3


async def test_a_key_is_known_as_long_as_its_event_is_kept(backend: Backend) -> None:
    """A restart forgets no key."""
    store = await backend.open(Watch())
    first = await stored(store, "crm", key="order-1")
    await store.close()
    store = await backend.open(Watch())
    again = await store.accept(an_event(key="order-1"), ["crm"])
    await store.close()
    assert (again.duplicate, again.event_id) == (True, first.id)


@pytest.mark.row("B32")
@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"\xff\xfe\0\x80", bytes(range(256)) * 4, b"\x1f\x8b\x08\0gzip-like", "üñï".encode("latin-1")],
    ids=["empty", "nul", "not-utf8", "all-bytes", "gzip", "latin-1"],
)
async def test_a_body_is_the_bytes_that_came(store: Store, body: bytes) -> None:
    """Bodies are bytes, with the claim and by their name."""
    event = await stored(store, "crm", body=body)
    claim = await one(store)
    assert claim.event.body == body
    assert not claim.body_deferred
    assert await store.body(event.id) == body


@pytest.mark.parametrize(
    ("size", "deferred"), [(64 * 1024, False), (64 * 1024 + 1, True), (MEBIBYTE, True), (20 * MEBIBYTE, True)]
)
async def test_a_large_body_is_left_in_the_store_until_it_is_sent(store: Store, size: int, deferred: bool) -> None:
    """A claim on many large events does not fill the memory; the whole body is had by its name."""
    body = bytes(range(256)) * (size // 256 + 1)
    event = await stored(store, "crm", body=body[:size])
    claim = await one(store)
    assert claim.body_deferred is deferred
    assert claim.event.body == (b"" if deferred else body[:size])
    assert await store.body(event.id) == body[:size]


WIRE = st.binary(max_size=40).map(lambda octets: octets.decode("utf-8", "surrogateescape"))


@given(headers=st.lists(st.tuples(WIRE, WIRE), max_size=6))
def test_headers_come_back_as_they_stood_on_the_wire(headers: list[tuple[str, str]]) -> None:
    """Order, case, repetition and bytes that are not UTF-8 are kept: a lone surrogate is stored as such."""
    fields: Headers = tuple(headers)
    row = event_row(1, an_event(headers=fields), None, b"")
    assert headers_from(row[8].encode()) == fields


async def test_bytes_in_a_header_that_are_no_utf8_survive_the_store(store: Store) -> None:
    """The same through the store itself."""
    fields = (("X-Raw", "caf\udce9"), ("X-Nul", "a\0b"), ("X-Emoji", "🙂"), ("X-Raw", "\udcff\udcfe"))
    await stored(store, "crm", headers=fields)
    assert (await one(store)).event.headers == fields


async def test_what_is_accepted_survives_a_kill(backend: Backend, store: Store) -> None:
    """On return the event is in the files, whatever becomes of the process."""
    events = [await stored(store, "crm", "books") for _ in range(5)]
    after = backend.after_a_kill()
    reopened = await after.open(Watch())
    assert after.event_ids() == {event.id for event in events}
    assert ids(await taken(reopened, "books", limit=9)) == [event.id for event in events]
    assert await kept(reopened, "crm", "books") == after.counted()
    await reopened.close()


async def test_ids_that_were_pruned_are_not_given_to_others(backend: Backend) -> None:
    """The order of arrival is never mixed up by what was deleted before: places are not used twice."""
    store = await backend.open(Watch())
    await stored(store, "crm")
    await store.settle(settlement(await one(store)))
    assert await store.prune(Retention(timedelta(0), timedelta(0)), NOW + timedelta(days=1)) == 1
    await store.close()
    store = await backend.open(Watch())
    await stored(store, "crm")
    await store.close()
    if isinstance(backend, SqliteBackend):
        assert backend.rows("SELECT seq FROM event") == [(2,)]


async def test_the_last_of_each_source_is_known_after_a_restart(backend: Backend, watch: Watch) -> None:
    """The newest arrival counts, whatever order events came in; a source without events is not named."""
    store = await backend.open(watch)
    assert store.last_received() == {}
    for source, seconds in (("shop", 5), ("partner", 1), ("shop", 3)):
        await stored(store, source=source, at=NOW + timedelta(seconds=seconds))
    await store.close()
    store = await backend.open(watch)
    last = {"shop": NOW + timedelta(seconds=5), "partner": NOW + timedelta(seconds=1)}
    assert store.last_received() == last
    await store.close()


async def test_when_a_source_was_heard_is_kept_longer_than_its_events(backend: Backend, watch: Watch) -> None:
    """Whatever came since and was deleted, and after a kill; a duplicate is a sign of life too."""
    store = await backend.open(watch)
    for source in ("rare", "busy"):
        await stored(store, source=source, key="1")
    again = an_event(source="busy", key="1", at=NOW + timedelta(seconds=7))
    assert (await store.accept(again, [])).duplicate
    heard = {"rare": NOW, "busy": NOW + timedelta(seconds=7)}
    assert store.last_received() == heard
    assert await store.prune(Retention(timedelta(0), timedelta(0)), NOW + timedelta(days=1)) == 2
    killed = await backend.after_a_kill().open(watch)
    await store.close()
    assert killed.last_received() == heard
    await killed.close()
