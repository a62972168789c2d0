"""`ordered: true`: one at a time, by arrival; what fails holds back the rest until it is delivered or dead.

Law: the same cases as of any target, on virtual time, and through restarts, kills and reloads.
"""

import asyncio
import itertools
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from relay.model import DisabledBy, Event, OutcomeKind, Rate, Route, Target, TargetState, Turn
from relay.store import Claimed
from relay.store.replays import Destinations
from tests.support.simulation import Gateway, gateway, target
from tests.support.virtual_time import (
    DOWN,
    EPOCH,
    HANGS,
    Reply,
    Request,
    Script,
    run_virtually,
    virtual_loop,
    virtually,
)

OK, ERROR, REFUSED = Reply(), Reply(500), Reply(422)
MINUTE, HOUR = 60.0, 3600.0
DISABLED, ACTIVE = TargetState.DISABLED, TargetState.ACTIVE
slow = pytest.mark.slow


def in_order(**settings: object) -> Target:
    """An ordered target with the contract's defaults."""
    return target(ordered=True, concurrency=1, **settings)  # type: ignore[arg-type]


def at(moment: datetime) -> float:
    """Seconds since the simulation began."""
    return (moment - EPOCH).total_seconds()


def down(start: float, end: float, how: Reply = DOWN) -> Script:
    """A target that is away from one second to another."""
    return lambda event, attempt, now: how if start <= at(now) < end else OK


def poison(*events: str, reply: Reply = ERROR) -> Script:
    """A target that is well, but for these events."""
    return lambda event, attempt, now: reply if event.id in events else OK


def begun(requests: list[Request]) -> list[float]:
    """When requests began, in seconds."""
    return [at(one.at) for one in requests]


async def disturbed_at_random(relay: Gateway, rng: Random, seconds: float) -> bool:
    """Restarts and kills at random moments; whether there was a kill."""
    killed = False
    while at(relay.now()) < seconds:
        await asyncio.sleep(rng.uniform(0.01, seconds / 8))
        kill = rng.random() < 0.5
        await (relay.crash() if kill else relay.restart())
        killed = killed or kill
    return killed


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=slow) for seed in range(3, 8))])
@pytest.mark.parametrize("disturbed", [False, True])
def test_events_arrive_one_at_a_time_in_order_of_arrival(tmp_path: Path, seed: int, disturbed: bool) -> None:
    """Whatever the target answers, through outages, silences, restarts and kills: no event is begun before all that
    came earlier are delivered or dead, none goes beside another, and none is lost."""
    rng = Random(seed)
    bad = (
        ERROR,
        DOWN,
        REFUSED,
        Reply(429, retry_after="3"),
        Reply(takes=0.7),
        Reply(None, takes=2.0),
        Reply(short=True),
    )

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        if 40 <= at(now) < 75:
            return DOWN
        return rng.choice(bad) if rng.random() < 0.15 else Reply(takes=rng.uniform(0.001, 0.1))

    async def run() -> None:
        crm = in_order(schedule=[1, 2, 3])
        async with gateway(tmp_path, {crm: script}, seed=seed) as relay:
            traffic = asyncio.create_task(relay.traffic("crm", rate=5, seconds=120))
            killed = await disturbed_at_random(relay, rng, 120) if disturbed else False
            await traffic
            await relay.quiet("crm", within=timedelta(hours=3))
            relay.assert_in_order()
            relay.assert_sound(killed=killed)
            states = relay.states()
            assert set(states) <= {"delivered", "dead"}
            assert states["delivered"] > 400
            assert sum(states.values()) == 600

    run_virtually(run())


@virtually
async def test_a_failing_event_holds_back_those_behind_it(tmp_path: Path) -> None:
    """Until its schedule has ended, although its target takes nothing else meanwhile; then the next goes at once."""
    crm = in_order(schedule=[5, 30, 60], disable_after=None)
    async with gateway(tmp_path, {crm: poison("evt_000002", reply=REFUSED)}) as relay:
        await relay.post("crm", number=4)
        await asyncio.sleep(60)
        assert relay.states() == {"delivered": 1, "pending": 3}
        await relay.quiet("crm", within=timedelta(minutes=3))
        bad = relay.rows()["evt_000002"]
        assert (bad.state, bad.attempts, bad.reason) == ("dead", 4, "retry schedule ended: status 422")
        assert relay.states() == {"delivered": 3, "dead": 1}
        last = relay.sends("evt_000002")[-1]
        assert last.ended_at is not None
        assert at(relay.sends("evt_000003")[0].at) == pytest.approx(at(last.ended_at), abs=0.01)
        relay.assert_in_order()
        relay.assert_sound()


@pytest.mark.parametrize("end", [None, Gateway.restart, Gateway.crash])
@virtually
async def test_an_outage_disables_and_the_first_is_tried_by_its_schedule(tmp_path: Path, end: object) -> None:
    """After three failures the first in order is tried on, and spends its steps, at the pace of its own schedule;
    when it is taken, all that was held follows in order."""
    async with gateway(tmp_path, {in_order(): down(10, 2000)}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=1, seconds=100))
        await asyncio.sleep(400)
        if end is not None:
            await end(relay)  # type: ignore[operator]
        await traffic
        (disabled,) = relay.told(DISABLED)
        assert relay.health("crm").disabled_by is DisabledBy.FAILURES
        probe_at = relay.health("crm").probe_at
        assert probe_at is not None
        await relay.quiet("crm", within=timedelta(hours=1), look=10)
        (tries,) = {one.event for one in relay.requests if one.kind is not OutcomeKind.DELIVERED}
        times = begun(relay.sends(tries))
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        for wait, meant in zip(waits, [5, 30, 120, 600, 1800], strict=True):
            assert meant * 0.8 <= wait <= meant * 1.2 + 2
        assert times[-2] < at(probe_at) + 1
        assert at(probe_at) in [pytest.approx(time, abs=0.1) for time in times], "what is shown is what happens"
        assert 10 + 28 <= at(disabled.at) <= 10 + 42 + 3
        (enabled,) = relay.told(ACTIVE)
        assert at(enabled.at) == pytest.approx(times[-1], abs=0.1)
        assert relay.states() == {"delivered": 100}
        assert {one.turn for one in relay.requests} == {Turn.FIRST}
        relay.assert_in_order()
        relay.assert_sound(killed=end is Gateway.crash)


@virtually
async def test_one_bad_event_cannot_block_the_rest_for_ever(tmp_path: Path) -> None:
    """It disables its target, is tried to the end of its schedule and is dead; the next one brings the target back."""
    async with gateway(tmp_path, {in_order(schedule=[5, 30, 120, 600, 600]): poison("evt_000001")}) as relay:
        await relay.post("crm", number=50)
        await asyncio.sleep(900)
        assert relay.health("crm").state is DISABLED
        assert relay.states() == {"pending": 50}
        await relay.quiet("crm", within=timedelta(hours=1))
        assert relay.rows()["evt_000001"].attempts == 6
        assert relay.states() == {"delivered": 49, "dead": 1}
        assert (len(relay.told(DISABLED)), len(relay.told(ACTIVE))) == (1, 1)
        relay.assert_in_order()
        relay.assert_sound()


@virtually
async def test_a_target_that_is_never_probed_waits_for_a_hand_in_order(tmp_path: Path) -> None:
    """`probe: never` is strictly by hand: nothing is tried, nothing spends a step; `enable` lets all of it go."""
    async with gateway(tmp_path, {in_order(probe_first=None): down(0, 60)}) as relay:
        await relay.post("crm", number=5)
        await asyncio.sleep(HOUR)
        tried = len(relay.requests)
        assert (tried, relay.health("crm").state) == (3, DISABLED)
        await relay.post("crm", number=5)
        await asyncio.sleep(48 * HOUR)
        assert len(relay.requests) == tried
        await relay.dispatcher.enable("crm")
        await relay.quiet("crm", within=timedelta(seconds=10))
        assert relay.states() == {"delivered": 10}
        relay.assert_in_order()
        relay.assert_sound()


@virtually
async def test_single_tries_in_order_are_spread_by_an_outage(tmp_path: Path) -> None:
    """`schedule: []` is one try and then dead, whatever came of it; at a disabled target the next is not tried at once,
    so that an hour's outage costs a hundred and twenty events, and not all that wait."""
    async with gateway(tmp_path, {in_order(schedule=[]): down(10, 10 + HOUR)}) as relay:
        await relay.traffic("crm", rate=1, seconds=600)
        await asyncio.sleep(HOUR)
        await relay.quiet("crm", within=timedelta(minutes=10))
        dead = [row for row in relay.rows().values() if row.state == "dead"]
        assert {(row.attempts, row.reason) for row in dead} == {(1, "single try failed: connect: Connection refused")}
        assert 3 <= len(dead) <= 5 + HOUR / (30 * 0.8)
        assert relay.states()["delivered"] == 600 - len(dead)
        relay.assert_in_order()
        relay.assert_sound()


@pytest.mark.parametrize("reply", [Reply(429, retry_after="60"), Reply(503, retry_after="60"), Reply(429)])
@virtually
async def test_a_silence_holds_the_first_and_all_behind_it(tmp_path: Path, reply: Reply) -> None:
    """A throttle spends no step and lets nothing pass."""
    async with gateway(tmp_path, {in_order(): down(10, 40, reply)}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=2, seconds=60))
        await traffic
        await relay.quiet("crm", within=timedelta(minutes=10))
        assert relay.states() == {"delivered": 120}
        assert {row.step for row in relay.rows().values()} == {0}
        assert relay.notices == []
        relay.assert_in_order()
        relay.assert_sound()


@virtually
async def test_410_and_a_hand_hold_all_of_it(tmp_path: Path) -> None:
    """Nothing is tried until the target is enabled, and then in order."""
    async with gateway(tmp_path, {in_order(): down(5, 100, Reply(410))}) as relay:
        await relay.traffic("crm", rate=1, seconds=20)
        await asyncio.sleep(24 * HOUR)
        assert relay.health("crm").disabled_by is DisabledBy.GONE
        assert len(relay.requests) == 6
        await relay.dispatcher.disable("crm", "moving")
        await relay.post("crm")
        await asyncio.sleep(HOUR)
        await relay.dispatcher.enable("crm")
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.states() == {"delivered": 21}
        relay.assert_in_order()
        relay.assert_sound()


@virtually
async def test_another_url_is_tried_at_once_in_order(tmp_path: Path) -> None:
    """Who mends the YAML need not wait for the schedule of the first."""
    async with gateway(tmp_path, {in_order(): down(0, 10 * HOUR - 1)}) as relay:
        await relay.post("crm", number=3)
        await asyncio.sleep(10 * HOUR)
        before = len(relay.requests)
        assert relay.health("crm").state is DISABLED
        await relay.change("crm", settings="mended")
        await asyncio.sleep(1)
        assert len(relay.requests) == before + 3
        assert relay.states() == {"delivered": 3}
        relay.assert_in_order()


@pytest.mark.parametrize("concurrency", [1, 8])
@virtually
async def test_a_rate_holds_the_first_and_all_behind_it(tmp_path: Path, concurrency: int) -> None:
    """Two a second, in order, and hardly less than that; `concurrency` means nothing."""
    crm = target(ordered=True, concurrency=concurrency, rate=Rate(2, timedelta(seconds=1)))
    async with gateway(tmp_path, {crm: lambda *_: Reply(takes=0.1)}) as relay:
        await relay.post("crm", number=500)
        await asyncio.sleep(60)
        assert 0.95 * 120 <= len(relay.requests) <= 122
        relay.assert_in_order()
        relay.assert_sound()


@pytest.mark.parametrize("seconds", [1, 30])
@virtually
async def test_ordered_targets_share_a_rate_with_others(tmp_path: Path, seconds: int) -> None:
    """In a group each has its turn, in its own order, and no token is left unused."""
    shared = Rate(1, timedelta(seconds=seconds))
    one, two, free = (
        target(name, rate=shared, limit_group="all", ordered=name != "free") for name in ("a", "b", "free")
    )
    async with gateway(tmp_path, {each: lambda *_: OK for each in (one, two, free)}) as relay:
        await relay.post("free", number=100)
        await asyncio.sleep(3 * seconds)
        await relay.post("a", number=100)
        await relay.post("b", number=100)
        await asyncio.sleep(60 * seconds)
        assert 0.95 * 63 <= len(relay.requests) <= 64 + 1
        for name in ("a", "b"):
            relay.assert_in_order(name)
            assert 18 <= len([request for request in relay.requests if request.target == name]) <= 22
        relay.assert_sound()


# --- replays, discarding ---


def towards(name: str = "crm") -> Destinations:
    """A config of today with this target."""
    routes = (Route("all", frozenset({"shop"}), (name,)),)
    return Destinations(frozenset({name}), tuple(routes))


async def replay(relay: Gateway, event: str) -> None:
    """Ask for an event again."""
    await relay.store.replays.event(event, towards(), now=relay.now())
    relay.dispatcher.wake(["crm"])


@virtually
async def test_a_replayed_event_takes_its_place_among_those_that_wait(tmp_path: Path) -> None:
    """By arrival: before all that came after it, behind what came earlier; what is under way is left to end."""
    async with gateway(tmp_path, {in_order(): lambda *_: Reply(takes=10)}) as relay:
        first = await relay.post("crm", number=3)
        await asyncio.sleep(35)
        more = await relay.post("crm", number=3)
        await asyncio.sleep(5)
        await replay(relay, first[2])
        await replay(relay, first[0])
        await relay.quiet("crm", within=timedelta(minutes=3))
        assert [one.event for one in relay.requests] == [*first, more[0], first[0], first[2], *more[1:]]
        assert relay.states() == {"delivered": 6}


@virtually
async def test_a_dead_event_lets_the_next_pass_and_may_come_again(tmp_path: Path) -> None:
    """Replayed after its death it has a fresh schedule, and holds the rest back anew."""
    script: Script = lambda event, attempt, now: REFUSED if event.id == "evt_000001" and attempt < 5 else OK  # noqa: E731
    async with gateway(tmp_path, {in_order(schedule=[5]): script}) as relay:
        await relay.post("crm", number=2)
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.rows()["evt_000001"].state == "dead"
        for is_held in (True, False):
            await replay(relay, "evt_000001")
            (behind,) = await relay.post("crm")
            await asyncio.sleep(1)
            assert (relay.sends(behind) == []) == is_held
            await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.states() == {"delivered": 4}
        assert len(relay.sends("evt_000001")) == 5


@pytest.mark.parametrize("hold", ["disabled", "failing"])
@virtually
async def test_discarding_lets_go_of_all_that_waits(tmp_path: Path, hold: str) -> None:
    """The first too; what comes then is tried at once."""
    async with gateway(tmp_path, {in_order(): down(0, HOUR)}) as relay:
        await relay.post("crm", number=5)
        await asyncio.sleep(HOUR if hold == "disabled" else 3)
        assert (relay.health("crm").state is DISABLED) == (hold == "disabled")
        assert await relay.store.replays.discard("crm", permitted=lambda _: True, now=relay.now()) == 5
        await asyncio.sleep(HOUR)
        await relay.post("crm")
        await asyncio.sleep(11)
        assert relay.states() == {"dead": 5, "delivered": 1}
        assert relay.health("crm").state is ACTIVE


# --- switched on and off, and seen from outside ---


@virtually
async def test_what_is_under_way_ends_before_order_begins(tmp_path: Path) -> None:
    """Switched on while eight are under way: the first in order waits for the slowest of them."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        number = int(event.id[-2:])
        return Reply(500 if number == 1 else 200, takes=number * 1.0) if number <= 8 and attempt == 1 else OK

    async with gateway(tmp_path, {target(): script}) as relay:
        await relay.post("crm", number=30)
        await asyncio.sleep(0.5)
        assert len(relay.requests) == 8
        await relay.reload({in_order(): script})
        await relay.quiet("crm", within=timedelta(minutes=1))
        after = relay.requests[8:]
        assert after[0].event == "evt_000001"
        assert at(after[0].at) >= 8
        assert [one.event for one in after] == sorted(one.event for one in after)
        assert {one.turn for one in after} == {Turn.FIRST}
        assert relay.states() == {"delivered": 30}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=slow) for seed in range(2, 6))])
def test_order_is_switched_on_and_off_at_any_moment(tmp_path: Path, seed: int) -> None:
    """By reload, restart and kill, at a target that fails, throttles and is disabled: nothing is lost or sent twice,
    and while it is on, each event is begun alone."""
    rng = Random(seed)
    bad = (ERROR, DOWN, REFUSED, Reply(429, retry_after="2"), HANGS, Reply(410))

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        if 60 <= at(now) < 110:
            return DOWN
        return rng.choice(bad[:5]) if rng.random() < 0.1 else Reply(takes=rng.uniform(0.001, 1.0))

    async def run() -> None:
        killed = False
        async with gateway(tmp_path, {target(schedule=[1, 5]): script}, seed=seed) as relay:
            traffic = asyncio.create_task(relay.traffic("crm", rate=4, seconds=150))
            for turn in range(40):
                await asyncio.sleep(rng.uniform(0.0, 8.0))
                ordered = turn % 2 == 0
                crm = target(schedule=[1, 5], ordered=ordered, concurrency=1 if ordered else 8)
                before = [one for one in relay.requests if one.ended_at is None]
                await relay.reload({crm: script})
                if rng.random() < 0.2:
                    killed = True
                    await relay.crash()
                elif rng.random() < 0.2:
                    await relay.restart()
                elif ordered:
                    seen = len(relay.requests)
                    await asyncio.sleep(rng.uniform(0.0, 20.0))
                    for one in relay.requests[seen:]:
                        ends = [other.ended_at for other in before if other.ended_at is not None]
                        assert all(one.at >= end for end in ends), "begun beside what was under way"
            await traffic
            await relay.quiet("crm", within=timedelta(hours=3))
            relay.assert_sound(killed=killed)
            assert sum(relay.states().values()) == 600

    run_virtually(run())


@virtually
async def test_what_is_held_back_is_not_unclaimed(tmp_path: Path) -> None:
    """A relay whose ordered target waits for the schedule of its first event is ready; one whose claims find nothing
    although the first is due is not."""
    crm = in_order(schedule=[7200], disable_after=None)
    async with gateway(tmp_path, {crm: poison("evt_000001", reply=REFUSED)}) as relay:
        await relay.post("crm", number=5)
        for _ in range(60):
            await asyncio.sleep(61)
            with virtual_loop().really():
                assert await relay.dispatcher.unclaimed() == frozenset()
        commits = relay.commits
        await asyncio.sleep(600)
        assert relay.commits - commits <= 2 * 600 / 10, "it is looked at now and then"
        claim, relay.store.claim = relay.store.claim, nothing  # type: ignore[assignment, method-assign]
        await asyncio.sleep(2 * HOUR)
        with virtual_loop().really():
            assert await relay.dispatcher.unclaimed() == frozenset({"crm"})
        relay.store.claim = claim  # type: ignore[method-assign]
        await relay.quiet("crm", within=timedelta(hours=3))
        relay.assert_in_order()


async def nothing(*_: object, **__: object) -> Claimed:
    """A claim that finds nothing, by whatever bug."""
    return Claimed(())


@virtually
async def test_an_ordered_target_does_not_slow_the_others(tmp_path: Path) -> None:
    """What holds back its own queue holds back nothing else."""
    scripts: Mapping[Target, Script] = {
        target("books", ordered=True, concurrency=1): poison("evt_000001"),
        target("crm"): lambda *_: OK,
    }
    async with gateway(tmp_path, scripts) as relay:
        await relay.post("books", "crm", number=200)
        await asyncio.sleep(20)
        states = relay.rows()
        assert {row.state for name, row in states.items() if name.endswith("/crm")} == {"delivered"}
        assert {row.state for name, row in states.items() if name.endswith("/books")} == {"pending"}
        relay.assert_in_order("books")
