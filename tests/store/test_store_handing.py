"""Handing over: what a claimant bids for is claimed by the transaction that stores it, and what is not it hears of."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from relay.model import Claim, DeliveryState, OutcomeKind, RetryAt, TargetHealth, Turn
from relay.store import Bid, Ruling, Settlement, Store, StoreUnavailable
from relay.store.grouping import inbox
from relay.store.grouping.changes import INLINE_BODY
from relay.store.grouping.rows import millis
from tests.support.store_backends import Backend, SqliteBackend, kept
from tests.support.store_hangs import until
from tests.support.store_parts import (
    LEASE,
    NOW,
    SECOND,
    Watch,
    accepted_many,
    an_event,
    becomes,
    disabled,
    ids,
    one,
    settlement,
    stored,
    taken,
)


@dataclass
class Lanes:
    """A claimant that bids for so many deliveries of each target at a time."""

    bids: dict[str, int]
    claims: list[Claim] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def bid(self, target: str) -> Bid | None:
        return Bid(self.bids[target], NOW + LEASE) if target in self.bids else None

    def stored(self, claims: Sequence[Claim], waiting: Iterable[str]) -> None:
        self.claims += claims
        self.waiting += sorted(waiting)


async def test_what_is_bid_for_is_claimed_as_it_is_stored(store: Store, backend: Backend) -> None:
    """Under its first number, once, and until the end of the lease: nobody else gets it, and it can be settled."""
    store.serve(lanes := Lanes({"crm": 5}))
    event = await stored(store, "crm", "books")
    (claim,) = lanes.claims
    assert (claim.event, claim.target, claim.attempt, claim.step) == (event, "crm", 1, 0)
    assert claim.lease_until == NOW + LEASE
    assert lanes.waiting == ["books"]
    assert await taken(store, limit=9) == []
    assert ids(await taken(store, "books", limit=9)) == [event.id]
    assert await kept(store, "crm", "books") == backend.counted()
    assert (await store.settle(settlement(claim))).ruling is not None
    assert backend.deliveries()[event.id, "crm"].state == "delivered"
    assert backend.attempts() == [(event.id, "crm", 1, "delivered")]


async def test_no_more_is_claimed_than_was_bid_for(store: Store, backend: Backend) -> None:
    """The oldest of one transaction; the claimant hears that the others wait."""
    store.serve(lanes := Lanes({"crm": 3}))
    events = await accepted_many(store, 10, "crm")
    handed = len(lanes.claims)
    assert 3 <= handed < 10  # three of each transaction that stored some of them
    assert "crm" in lanes.waiting
    states = [backend.deliveries()[event.id, "crm"].state for event in events]
    assert states.count("in_flight") == handed
    assert states[0] == "in_flight"
    rest = await taken(store, limit=20)
    assert {*ids(rest), *ids(lanes.claims)} == {event.id for event in events}


async def test_tokens_of_two_transactions_differ(store: Store) -> None:
    """They are the fence, and what a claimant that lives tells of itself."""
    store.serve(lanes := Lanes({"crm": 5}))
    await stored(store, "crm")
    await stored(store, "crm")
    assert len({claim.token for claim in lanes.claims}) == 2


async def test_nothing_is_handed_over_of_a_target_that_was_disabled_by_the_same_transaction(
    store: Store, backend: Backend
) -> None:
    """The bid was made before; what the target's health says when the event is stored decides."""
    claimed = await stored(store, "crm")
    claim = await one(store)
    store.serve(lanes := Lanes({"crm": 5}))
    later = an_event()
    await asyncio.gather(
        store.settle(settlement(claim, health=disabled())),
        store.accept(later, ["crm"]),
    )
    assert lanes.claims == []
    assert lanes.waiting == ["crm"]
    assert backend.deliveries()[later.id, "crm"].state == "pending"
    assert claimed.id != later.id


@pytest.mark.parametrize("parts", [{"paced": True}, {"ramp": 2}, {"throttled_until": NOW + SECOND}])
async def test_nothing_is_handed_over_of_a_target_that_is_slowed(store: Store, parts: dict[str, object]) -> None:
    """What goes next there is chosen when its turn comes."""
    await store.change_health("crm", lambda _: TargetHealth("crm", **parts))  # type: ignore[arg-type]
    store.serve(lanes := Lanes({"crm": 5}))
    await stored(store, "crm")
    assert (lanes.claims, lanes.waiting) == ([], ["crm"])


async def test_a_duplicate_hands_nothing_over(store: Store) -> None:
    """It stores nothing."""
    store.serve(lanes := Lanes({"crm": 5}))
    await stored(store, "crm", key="a")
    assert (await store.accept(an_event(key="a"), ["crm"])).duplicate
    assert len(lanes.claims) == 1


async def test_a_large_body_waits_in_the_store(store: Store) -> None:
    """It is read when it is sent: claims that wait for a slot must not fill the memory."""
    store.serve(lanes := Lanes({"crm": 5}))
    await stored(store, "crm", body=b"x" * (INLINE_BODY + 1))
    assert (lanes.claims, lanes.waiting) == ([], ["crm"])
    assert (await one(store)).body_deferred


async def test_what_a_claim_of_the_same_commit_tells_of_is_not_told_as_waiting(store: Store) -> None:
    """Its answer says what there is and what is due next; told of it twice, a lane would search for what it has."""
    store.serve(lanes := Lanes({}))
    event = an_event()
    _, claims = await asyncio.gather(store.accept(event, ["crm", "books"]), taken(store, limit=5))
    assert ids(claims) == [event.id]
    assert lanes.waiting == ["books"]


async def test_a_claim_by_another_turn_tells_nothing_of_what_comes(store: Store) -> None:
    """It takes one that it chooses itself."""
    store.serve(lanes := Lanes({}))
    await stored(store, "crm")
    await asyncio.gather(store.accept(an_event(), ["crm"]), taken(store, turn=Turn.PROBE))
    assert lanes.waiting == ["crm", "crm"]


async def test_who_gave_up_waiting_changes_nothing_for_the_claimant(store: Store, backend: Backend) -> None:
    """The event was promised to nobody, but it is stored: it must be delivered now, not when the lease ends."""
    store.serve(lanes := Lanes({"crm": 5}))
    event = an_event()
    accepting = asyncio.create_task(store.accept(event, ["crm"]))
    while store._writer._current is None:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    accepting.cancel()
    await until(lambda: bool(lanes.claims))
    assert ids(lanes.claims) == [event.id]
    assert backend.deliveries()[event.id, "crm"].state == "in_flight"


@pytest.mark.row("B1")
async def test_a_claimant_that_fails_undoes_no_commit(store: Store, backend: Backend, watch: Watch) -> None:
    """Its failure is told, the event is stored and answered, and its claim ends with its lease."""

    class Broken(Lanes):
        def stored(self, claims: Sequence[Claim], waiting: Iterable[str]) -> None:
            raise ZeroDivisionError("by a bug")

    class Confused(Lanes):
        def bid(self, target: str) -> Bid | None:
            raise ZeroDivisionError("when it was asked")

    store.serve(Confused({}))
    await stored(store, "books")
    assert "the claimant failed: ZeroDivisionError: when it was asked" in watch.outages.pop()
    store.serve(Broken({"crm": 5}))
    event = await stored(store, "crm")
    assert event.id in backend.event_ids()
    assert "the claimant failed: ZeroDivisionError: by a bug" in watch.outages[0]
    assert await store.reclaim(NOW + LEASE + SECOND, alive=frozenset()) == 1
    assert (await one(store, now=NOW + LEASE + SECOND)).attempt == 2


@pytest.mark.row("B1")
async def test_what_was_handed_over_to_a_process_that_was_killed_is_due_again(
    store: Store, backend: Backend, watch: Watch
) -> None:
    """As every claim of it is."""
    store.serve(Lanes({"crm": 5}))
    event = await stored(store, "crm")
    again = await backend.after_a_kill().open(watch)
    assert (await one(again)).event.id == event.id
    await again.close()


@pytest.mark.only("sqlite")
@pytest.mark.row("F3", "B1")
async def test_what_was_claimed_by_a_commit_that_was_refused_is_due_as_soon_as_the_store_is_back(
    backend: SqliteBackend, watch: Watch
) -> None:
    """The file holds the event and its claim, which nobody got: it waits for no lease, and has its first number."""
    store = await backend.open(watch)
    store.serve(lanes := Lanes({"crm": 5}))
    event = an_event()
    accepting = asyncio.create_task(store.accept(event, ["crm"]))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await store._writer.work(lambda _: backend.path.touch())  # seen as another program's write: refused
    with pytest.raises(StoreUnavailable):
        await accepting
    assert backend.deliveries()[event.id, "crm"].state == "in_flight"
    await until(lambda: store.condition().writable)
    assert lanes.claims == []
    assert (await one(store)).attempt == 1
    assert await store.close()


async def test_what_was_handed_over_and_then_held_is_due_from_when_it_was_received(
    store: Store, backend: Backend
) -> None:
    """A handing tells the store how late it is, as a claim does: by an older claim's clock it would seem to come from
    the future, and would get that claim's time for its own."""
    await stored(store, "crm")
    await store.settle(settlement(await one(store)))
    store.serve(lanes := Lanes({"crm": 5}))
    event = await stored(store, "crm", at=NOW + 2 * SECOND)
    (claim,) = lanes.claims
    again = RetryAt(NOW + 3600 * SECOND, 1)
    await store.settle(settlement(claim, again, kind=OutcomeKind.FAILED, status=500, health=disabled()))
    await store.change_health("crm", becomes(TargetHealth("crm")))
    assert backend.deliveries()[event.id, "crm"].due_at == millis(event.received_at)


async def test_nobody_is_handed_anything_after_the_claimant_has_left(store: Store) -> None:
    """What is stored while a relay stops waits for the next one."""
    store.serve(lanes := Lanes({"crm": 5}))
    store.serve(None)
    await stored(store, "crm")
    assert (lanes.claims, lanes.waiting) == ([], [])
    assert len(await taken(store)) == 1


# events before a backlog


async def a_backlog(store: Store, number: int) -> None:
    """So many deliveries that wait, and of which the writer knows: one of several nodes does by a look now and then."""
    await accepted_many(store, number, "crm")
    store._writer.remembered.counts["crm", DeliveryState.PENDING] = number  # type: ignore[attr-defined]


async def test_an_event_waits_for_no_large_claim(store: Store, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored by a commit of its own, which also leaves the records of successes for the next; the claim finds it,
    and whoever has made that claim is not told of it as well."""
    monkeypatch.setattr(inbox, "ALONG", 3)
    monkeypatch.setattr(inbox, "LINGER_S", 0)
    await a_backlog(store, 6)
    done = await taken(store, limit=2)
    store.serve(lanes := Lanes({}))
    before = watch.commits
    settling = [asyncio.ensure_future(store.settle(settlement(claim, may_wait=True))) for claim in done]
    claiming = asyncio.ensure_future(taken(store, limit=9))
    await asyncio.sleep(0)
    event = await stored(store, "crm", "books")
    assert watch.commits == before + 1
    assert not any(one.done() for one in (*settling, claiming))
    assert lanes.waiting == ["books"]
    assert ids(await claiming)[-1] == event.id
    assert all(settled.ruling for settled in await asyncio.gather(*settling))
    assert watch.commits == before + 2


async def test_an_event_that_a_waiting_claim_came_too_early_for_is_told_by_its_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what is due next: so it need not be told of beside."""
    monkeypatch.setattr(inbox, "ALONG", 3)
    await a_backlog(store, 4)
    store.serve(lanes := Lanes({}))
    how = {"limit": 9, "turn": Turn.DUE, "now": NOW, "lease": LEASE, "since": None}
    claiming = asyncio.ensure_future(store.claim("crm", **how))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    event = await stored(store, "crm", at=NOW + SECOND)
    claimed = await claiming
    assert (len(claimed.claims), claimed.next_due_at) == (4, event.received_at)
    assert lanes.waiting == []


async def test_nothing_is_handed_over_before_a_large_claim_to_a_target_that_is_about_to_be_disabled(
    store: Store, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may say so is recorded first, as ever; only what is no news stays behind with the claim."""
    monkeypatch.setattr(inbox, "ALONG", 3)
    await a_backlog(store, 4)
    await stored(store, "books")
    failed = settlement(
        await one(store, "books"), RetryAt(NOW, 1), kind=OutcomeKind.FAILED, status=500, health=disabled("books")
    )
    store.serve(lanes := Lanes({"books": 5}))
    before = watch.commits
    settling = asyncio.ensure_future(store.settle(failed))
    claiming = asyncio.ensure_future(taken(store, limit=9))
    await asyncio.sleep(0)
    await stored(store, "books")
    assert watch.commits == before + 1
    assert (settling.done(), claiming.done()) == (True, False)
    assert (lanes.claims, lanes.waiting) == ([], ["books"])
    assert len(await claiming) == 4


async def test_a_small_claim_comes_along_with_an_event(
    store: Store, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it would take: what counts is what there is."""
    monkeypatch.setattr(inbox, "ALONG", 3)
    await a_backlog(store, 3)
    before = watch.commits
    claiming = asyncio.ensure_future(taken(store, limit=100))
    await asyncio.sleep(0)
    event = await stored(store, "crm")
    assert event.id in ids(await claiming)
    assert watch.commits == before + 1


async def test_a_large_claim_waits_for_one_commit_alone(
    store: Store, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many events come."""
    monkeypatch.setattr(inbox, "ALONG", 3)
    await a_backlog(store, 4)
    before = watch.commits
    claiming = asyncio.ensure_future(taken(store, limit=9))
    await asyncio.sleep(0)
    for _ in range(2):
        await stored(store, "books")
    assert watch.commits == before + 2
    assert len(await claiming) == 4
    assert watch.commits == before + 2


# settlements that may wait


async def test_a_settlement_that_may_wait_is_recorded_by_itself(store: Store, backend: Backend) -> None:
    """Soon, and without anything else being written."""
    event = await stored(store, "crm")
    may_wait = settlement(await one(store), may_wait=True)
    async with asyncio.timeout(10):
        assert (await store.settle(may_wait)).ruling is not None
    assert backend.deliveries()[event.id, "crm"].state == "delivered"


async def test_settlements_that_may_wait_share_a_commit_and_hold_up_no_event(
    store: Store, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sync for all of them, and none of them in that of the event that comes meanwhile."""
    monkeypatch.setattr(inbox, "LINGER_S", 0.5)  # longer than a busy machine takes for the event
    await accepted_many(store, 20, "crm")
    claims = await taken(store, limit=20)
    before = watch.commits
    settling = [asyncio.ensure_future(store.settle(settlement(claim, may_wait=True))) for claim in claims]
    await asyncio.sleep(0)
    await stored(store, "books")
    assert watch.commits == before + 1
    assert not any(one.done() for one in settling)
    async with asyncio.timeout(10):
        assert all(settled.ruling for settled in await asyncio.gather(*settling))
    assert watch.commits == before + 2


async def test_a_close_records_what_may_wait(backend: Backend, watch: Watch) -> None:
    """Nothing is sent again because of it."""
    store = await backend.open(watch)
    event = await stored(store, "crm")
    settling = asyncio.ensure_future(store.settle(settlement(await one(store), may_wait=True)))
    await asyncio.sleep(0)
    assert await store.close()
    assert (await settling).ruling is not None
    assert backend.deliveries()[event.id, "crm"].state == "delivered"


async def test_one_that_may_not_wait_takes_the_others_along(store: Store) -> None:
    """In the order in which they were handed in: each is judged by the health that the one before has left."""
    await accepted_many(store, 2, "crm")
    first, second = await taken(store, limit=2)
    seen: list[str] = []

    def asked(claim: Claim, *, may_wait: bool) -> Settlement:
        plain = settlement(claim, may_wait=may_wait)

        def rule(health: TargetHealth) -> Ruling:
            seen.append(claim.event.id)
            return plain.rule(health)

        return plain._replace(rule=rule)

    waits = asyncio.ensure_future(store.settle(asked(first, may_wait=True)))
    await asyncio.sleep(0)
    await store.settle(asked(second, may_wait=False))
    assert seen == ids([first, second])
    await waits
