"""What is stored goes to its lanes by the same transaction: no search for it, in its order, and never past a slot."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from relay.model import Claim, DeliveryState, Event, Turn
from relay.store import Claimed
from tests.support.simulation import Gateway, gateway, target
from tests.support.virtual_time import HANGS, Reply, virtual_loop, virtually


def counting_claims(relay: Gateway) -> list[int]:
    """A list that grows by each call for deliveries; its numbers are how many were had."""
    calls: list[int] = []
    claim = relay.store.claim

    async def counted(*args: Any, **how: Any) -> Claimed:
        found = await claim(*args, **how)
        calls.append(len(found.claims))
        return found

    relay.store.claim = counted  # type: ignore[method-assign]
    return calls


@virtually
async def test_what_comes_to_a_free_lane_is_not_searched_for(tmp_path: Path) -> None:
    """Its claims come with the commit that stored it."""
    async with gateway(tmp_path, {target(): lambda event, attempt, now: Reply(200)}) as relay:
        await asyncio.sleep(1)  # what waited from before, if anything, has been asked for
        calls = counting_claims(relay)
        for _ in range(20):
            await relay.post("crm")
            await asyncio.sleep(0.1)
        assert relay.states() == {"delivered": 20}
        assert calls == []


@virtually
async def test_a_lane_that_had_to_search_is_handed_what_comes_next(tmp_path: Path) -> None:
    """What is stored by the commit that claims is not handed over; that must not make the lane claim for ever."""
    async with gateway(tmp_path, {target(): lambda event, attempt, now: Reply(200)}) as relay:
        await asyncio.sleep(1)
        calls = counting_claims(relay)
        relay.dispatcher.wake(["crm"])
        await asyncio.sleep(0)
        for _ in range(20):
            await relay.post("crm")
        assert 0 < len(calls) <= 2
        await relay.quiet("crm", within=timedelta(seconds=10))
        assert relay.states() == {"delivered": 20}


@virtually
async def test_what_finds_no_slot_goes_in_its_order(tmp_path: Path) -> None:
    """Bursts at a target with one slot, more than is claimed ahead: none overtakes an older one."""
    slow = target(concurrency=1)
    async with gateway(tmp_path, {slow: lambda event, attempt, now: Reply(200, 0.01)}) as relay:
        posted = [name for _ in range(12) for name in await relay.post("crm", number=50)]
        while relay.states() != {"delivered": len(posted)}:
            await asyncio.sleep(1)
        arrived = [request.event for request in relay.requests]
        assert sorted(arrived) == sorted(posted)
        bursts = [posted.index(event) // 50 for event in arrived]
        assert bursts == sorted(bursts)


@virtually
async def test_nothing_is_handed_over_while_all_slots_hang(tmp_path: Path) -> None:
    """What comes to a target that does not answer waits in the store, not under leases."""
    hung = target(concurrency=2)
    async with gateway(tmp_path, {hung: lambda event, attempt, now: HANGS}) as relay:
        for _ in range(5):
            await relay.post("crm", number=10)
            await asyncio.sleep(1)
        assert relay.store.pending("crm") == 48
        assert len(relay.requests) == 2


@virtually
async def test_what_is_handed_over_for_a_target_that_is_gone_is_given_back(tmp_path: Path) -> None:
    """It was removed while the event was being stored: the delivery waits for whoever has that target next."""
    async with gateway(tmp_path, {target(): lambda event, attempt, now: Reply(200)}) as relay:
        now = virtual_loop().now()
        event = Event("evt_1", "shop", "order", now, (), b"{}")
        relay.store.serve(None)
        await relay.store.accept(event, ["gone"])
        claimed = await relay.store.claim("gone", limit=1, turn=Turn.DUE, now=now, lease=timedelta(minutes=1))
        relay.dispatcher.stored(claimed.claims, [])
        await asyncio.sleep(1)
        assert relay.store.pending("gone") == 1
        assert _in_flight(relay, "gone") == 0


@virtually
async def test_what_is_handed_over_to_a_lane_that_drains_is_given_back(tmp_path: Path) -> None:
    """A stop begins nothing more."""
    async with gateway(tmp_path, {target(): lambda event, attempt, now: Reply(200)}) as relay:
        await asyncio.sleep(1)
        now = virtual_loop().now()
        relay.store.serve(None)
        await relay.store.accept(Event("evt_1", "shop", "order", now, (), b"{}"), ["crm"])
        claims: tuple[Claim, ...] = (
            await relay.store.claim("crm", limit=1, turn=Turn.DUE, now=now, lease=timedelta(minutes=1))
        ).claims
        lane = relay.dispatcher._lanes["crm"]
        relay.dispatcher._close_lane("crm", timedelta(seconds=5))
        await asyncio.sleep(0)
        assert lane.bid() is None
        relay.dispatcher.stored(claims, ["crm"])
        await asyncio.sleep(1)
        assert relay.requests == []
        assert (relay.store.pending("crm"), _in_flight(relay, "crm")) == (1, 0)


def _in_flight(relay: Gateway, name: str) -> int:
    return relay.store._writer.ledger.counts[name, DeliveryState.IN_FLIGHT]
