"""Other targets while the dispatcher runs: nothing is lost, nothing is sent twice, and the pace holds."""

import asyncio
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from relay.model import OutcomeKind, TargetState
from relay.store import Claimed
from tests.support.simulation import gateway, target
from tests.support.virtual_time import DOWN, HANGS, Reply, Script, run_virtually, virtually

FINE = Reply(takes=0.05)
MINUTE = timedelta(minutes=1)


def in_turn(*replies: Reply) -> Script:
    """One reply a request; the last for all that follow."""
    left = list(replies)
    return lambda *_: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("way", ["changed", "removed and back"])
def test_an_attempt_under_way_holds_the_pace_of_its_target(tmp_path: Path, way: str) -> None:
    """A failing target that gets one attempt at a time still does, although its config changes while one hangs."""

    async def run() -> None:
        slow = in_turn(Reply(500), HANGS, FINE)
        spare = {target("spare"): slow}
        async with gateway(tmp_path, {target(): slow} | spare) as relay:
            await relay.post("crm")
            await asyncio.sleep(1)
            await relay.post("crm")
            await asyncio.sleep(7)
            assert [one.kind for one in relay.requests] == [OutcomeKind.FAILED, None]
            if way != "changed":
                await relay.reload(spare)
                await asyncio.sleep(1)
            await relay.reload({target(concurrency=2): slow} | spare)
            await relay.post("crm", number=3)
            await asyncio.sleep(4)
            assert len(relay.requests) == 2
            assert relay.health("crm").paced
            await relay.quiet("crm", within=5 * MINUTE)
            ordered = sorted(relay.requests, key=lambda one: one.at)
            assert ordered[1].ended_at is not None
            assert ordered[2].at >= ordered[1].ended_at
            relay.assert_sound()

    run_virtually(run())


@virtually
async def test_what_a_removed_target_hangs_on_is_cut_off_and_waits_for_its_return(tmp_path: Path) -> None:
    """It spends no step, is not sent again while the target is gone, and leaves when it is back."""
    answers = in_turn(HANGS, FINE)
    async with gateway(tmp_path, {target(): answers, target("spare"): lambda *_: FINE}) as relay:
        (event,) = await relay.post("crm")
        await asyncio.sleep(1)
        await relay.reload({target("spare"): lambda *_: FINE}, patience=timedelta(seconds=3))
        (waiting,) = await relay.post("crm")
        await asyncio.sleep(60)
        assert {row.state for row in relay.rows().values()} == {"pending"}
        row = relay.rows()[event]
        assert (row.outcome, row.step, row.reason) == (OutcomeKind.INTERRUPTED, 0, "the target was removed")
        assert len(relay.requests) == 1
        await relay.reload({target(): answers, target("spare"): lambda *_: FINE})
        await relay.quiet("crm", within=MINUTE)
        assert [len(relay.sends(one)) for one in (event, waiting)] == [2, 1]


@virtually
async def test_what_a_slow_store_claims_for_a_removed_target_is_given_back(tmp_path: Path) -> None:
    """It comes when nobody waits for it any more, and is not held until its lease is over."""
    async with gateway(tmp_path, {target(): lambda *_: FINE, target("spare"): lambda *_: FINE}) as relay:
        claim = relay.store.claim

        async def slowly(*which: Any, **how: Any) -> Claimed:
            claimed = await claim(*which, **how)
            await asyncio.sleep(5)
            return claimed

        relay.store.claim = slowly  # type: ignore[method-assign]
        await relay.post("crm", number=5)
        await asyncio.sleep(1)
        assert relay.states() == {"in_flight": 5}
        await relay.reload({target("spare"): lambda *_: FINE}, patience=timedelta(0))
        await asyncio.sleep(6)
        assert {(row.state, row.attempts) for row in relay.rows().values()} == {("pending", 0)}
        assert relay.requests == []


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
def test_a_target_is_back_at_any_moment_of_its_end(tmp_path: Path, turns: int) -> None:
    """Removed without any patience and added again some turns of the loop later: all is delivered, in one lane."""

    async def run() -> None:
        answers = in_turn(HANGS, HANGS, FINE)
        async with gateway(tmp_path, {target(): answers, target("spare"): lambda *_: FINE}) as relay:
            await relay.post("crm", number=20)
            await asyncio.sleep(1)
            await relay.reload({target("spare"): lambda *_: FINE}, patience=timedelta(0))
            for _ in range(turns):
                await asyncio.sleep(0)
            await relay.reload({target(): answers, target("spare"): lambda *_: FINE})
            await relay.quiet("crm", within=5 * MINUTE)
            assert not relay.violations
            delivered = [one.event for one in relay.requests if one.kind is OutcomeKind.DELIVERED]
            assert len(delivered) == len(set(delivered)) == 20

    run_virtually(run())


@virtually
async def test_a_new_url_ends_a_disabling_by_410_and_any_other_change_does_not(tmp_path: Path) -> None:
    """As at a start, but while it runs: the stored health is judged by what has changed."""
    answers = in_turn(Reply(410), FINE)
    async with gateway(tmp_path, {target(): answers}) as relay:
        await relay.post("crm", number=2)
        await asyncio.sleep(1)
        await relay.reload({target(concurrency=3): answers})
        await asyncio.sleep(60)
        assert relay.health("crm").state is TargetState.DISABLED
        await relay.reload({target(concurrency=4): answers}, url="another")
        assert [notice.state for notice in relay.notices] == [TargetState.DISABLED, TargetState.ACTIVE]
        await relay.quiet("crm", within=MINUTE)
        relay.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_reloaded_when_nothing_is_lost_and_nothing_sent_twice(tmp_path: Path, seed: int) -> None:
    """Hundreds of reloads at random moments, of targets that fail, hang and throttle."""

    async def run() -> None:
        rng = Random(seed)
        replies = (FINE, FINE, FINE, DOWN, Reply(500), Reply(429, retry_after="2"), Reply(422), Reply(takes=2.0))

        def script(*_: object) -> Reply:
            return rng.choice(replies)

        def some() -> dict[str, int]:
            names = [name for name in ("crm", "books", "mail") if rng.random() < 0.7] or ["crm"]
            return {name: rng.randint(1, 9) for name in names}

        def built(chosen: dict[str, int]) -> dict[object, object]:
            return {target(name, concurrency=count): script for name, count in chosen.items()}

        every = {"crm": 8, "books": 8, "mail": 8}
        async with gateway(tmp_path, built(every), seed=seed) as relay:  # type: ignore[arg-type]
            events: list[str] = []
            for _ in range(150):
                events += await relay.post(*every, number=rng.randint(0, 3))
                await relay.reload(
                    built(some()),  # type: ignore[arg-type]
                    patience=timedelta(seconds=rng.choice((0, 0.1, 5))),
                )
                await asyncio.sleep(rng.choice((0, 0, 0.01, 0.3, 4)))
            # another concurrency than any before: what has not changed would keep its sender, and with it the script
            await relay.reload({target(name, concurrency=10): lambda *_: FINE for name in every})
            for name in every:
                await relay.dispatcher.enable(name)
            await relay.quiet(*every, within=timedelta(days=8))
            assert not [one for one in relay.violations if "others under way" not in one]
            delivered = [(one.event, one.target) for one in relay.requests if one.kind is OutcomeKind.DELIVERED]
            assert len(delivered) == len(set(delivered))
            assert len(delivered) + relay.states()["dead"] == len(events) * len(every)

    run_virtually(run())
