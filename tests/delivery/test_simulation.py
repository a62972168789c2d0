"""Whole outages on virtual time: the real dispatcher and the real store before targets that fail by script.

Law: every case says when the target is disabled and enabled, what is held, what is spent, and that it ends well. The
same cases are run once more with a restart, and with a kill, in the middle.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from relay.model import DisabledBy, Event, OutcomeKind, TargetState, Turn
from tests.support.simulation import Gateway, gateway, target
from tests.support.virtual_time import DOWN, EPOCH, HANGS, Reply, Request, Script, virtual_loop, virtually

OK, ERROR = Reply(), Reply(500)
MINUTE, HOUR = 60.0, 3600.0
slow = pytest.mark.slow
DISABLED, ENABLED = TargetState.DISABLED, TargetState.ACTIVE


def at(now: datetime) -> float:
    """Seconds since the simulation began."""
    return (now - EPOCH).total_seconds()


def down(start: float, end: float, how: Reply = DOWN) -> Script:
    """A target that is away from one second to another."""
    return lambda event, attempt, now: how if start <= at(now) < end else OK


def poison(*events: str, reply: Reply = ERROR) -> Script:
    """A target that is well, but for these events."""
    return lambda event, attempt, now: reply if event.id in events else OK


def always(reply: Reply) -> Script:
    """A target that does the same for ever."""
    return lambda event, attempt, now: reply


def probes(relay: Gateway) -> list[Request]:
    """The requests that were made as probes."""
    return [request for request in relay.requests if request.turn is Turn.PROBE]


def failures(relay: Gateway) -> list[Request]:
    """The requests that were answered by anything but a delivery."""
    return [request for request in relay.requests if request.kind not in (OutcomeKind.DELIVERED, None)]


def spent(relay: Gateway) -> int:
    """The steps spent in all."""
    return sum(row.step for row in relay.rows().values())


def begun_since(relay: Gateway, moment: datetime) -> list[str]:
    """The events of the requests begun in turn since a moment, in their order."""
    return [request.event for request in relay.requests if request.at >= moment and request.turn is Turn.DUE]


def others_under_way(requests: list[Request], one: Request) -> int:
    """How many requests were open when this one began."""
    return sum(
        1
        for other in requests
        if other is not one and other.at <= one.at and (other.ended_at is None or other.ended_at > one.at)
    )


async def nothing(relay: Gateway) -> None:
    """The undisturbed case."""


UNDISTURBED = pytest.param(nothing, False, id="undisturbed")
RESTARTED = pytest.param(Gateway.restart, False, id="restarted", marks=slow)
KILLED = pytest.param(Gateway.crash, True, id="killed")
disturbed = pytest.mark.parametrize(("disturb", "killed"), [UNDISTURBED, RESTARTED, KILLED])
Disturb = Callable[[Gateway], Awaitable[None]]


# --- outages ---


@pytest.mark.row("F13")
@pytest.mark.parametrize(
    ("rate", "away"),
    [
        (0.5, 5),
        (0.5, 20),
        (0.5, 27.9),
        (5, 20),
        *(pytest.param(*one, marks=slow) for one in ((5, 1), (5, 27.9), (50, 20))),
    ],
)
@virtually
async def test_a_redeploy_does_not_disable(tmp_path: Path, rate: float, away: float) -> None:
    """No outage shorter than 35 s less jitter disables, and all of it is delivered within a minute of its end."""
    async with gateway(tmp_path, {target(): down(10, 10 + away)}, seed=int(rate * away)) as relay:
        await relay.traffic("crm", rate=rate, seconds=60)
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.notices == []
        assert relay.states() == {"delivered": rate * 60}
        assert len(failures(relay)) <= 8 + 5, "one burst, and a try at once and one after each wait"
        assert spent(relay) == len(failures(relay))
        assert max(row.attempts for row in relay.rows().values()) <= 3
        relay.assert_sound()


OUTAGE = 300.0


async def outage_of_five_minutes(relay: Gateway, rate: float, disturb: Disturb, when: float) -> None:
    """Traffic through an outage from the tenth second on, with a disturbance at one moment of it."""
    traffic = asyncio.create_task(relay.traffic("crm", rate=rate, seconds=OUTAGE + 10))
    await asyncio.sleep(when)
    await disturb(relay)
    await traffic
    await relay.quiet("crm", within=timedelta(minutes=15))


def assert_it_was_held_and_came_back(relay: Gateway, events: float) -> None:
    """Disabled once, probed by doubling waits, enabled by a probe, everything delivered, oldest first, from one up."""
    (disabled,) = relay.told(DISABLED)
    (enabled,) = relay.told(ENABLED)
    assert 10 + 35 * 0.8 <= at(disabled.at) <= 10 + 35 * 1.2 + 3, disabled
    assert len(disabled.counted_events) == 3
    assert disabled.reason == "connect: Connection refused"
    waits = [round((probe.at - disabled.at).total_seconds(), 1) for probe in probes(relay)]
    assert waits == [60, 180, 420]
    assert enabled.at - probes(relay)[-1].at < timedelta(seconds=1)
    between = [one for one in relay.requests if disabled.at < one.at < enabled.at]
    assert between == probes(relay), "what is held spends no attempts"
    assert len({probe.event for probe in probes(relay)}) == 3, "the newest that was never tried"
    assert relay.states() == {"delivered": events}
    assert enabled.held > 0.9 * events
    freed = begun_since(relay, enabled.at)
    assert freed == sorted(freed), "what was held leaves oldest first"
    after = [one for one in relay.requests if one.at >= enabled.at and one.turn is Turn.DUE]
    open_then = [others_under_way(after[:20], one) for one in after[:12]]
    assert all(others <= number for number, others in enumerate(open_then)), open_then
    assert max(open_then) == 7, "it grows to the whole concurrency"
    assert len(failures(relay)) <= 8 + 5 + 2
    assert spent(relay) <= len(failures(relay)) - 2, "a probe spends no step"


@pytest.mark.row("F13", "B29", "B39", "B40", "B72", "T57")
@virtually
async def test_an_outage_of_five_minutes_is_held_and_ends_by_itself(tmp_path: Path) -> None:
    """Three failures spread over half a minute disable; a probe enables; nothing dies and nothing is forgotten."""
    async with gateway(tmp_path, {target(): down(10, 10 + OUTAGE)}) as relay:
        await outage_of_five_minutes(relay, 5, nothing, 100)
        assert_it_was_held_and_came_back(relay, 5 * (OUTAGE + 10))
        relay.assert_sound()


@slow
@pytest.mark.timeout(120)
@virtually
async def test_an_outage_of_five_minutes_at_fifty_a_second(tmp_path: Path) -> None:
    """Fifteen thousand events are held and leave in their order."""
    async with gateway(tmp_path, {target(): down(10, 10 + OUTAGE)}) as relay:
        await outage_of_five_minutes(relay, 50, nothing, 100)
        assert_it_was_held_and_came_back(relay, 50 * (OUTAGE + 10))
        relay.assert_sound()


@pytest.mark.row("B71")
@pytest.mark.parametrize("when", [12, 20, 60, 129], ids=["first wait", "second wait", "disabled", "between probes"])
@pytest.mark.parametrize(("disturb", "killed"), [RESTARTED, KILLED])
@virtually
async def test_an_outage_ends_just_as_well_through_a_restart(
    tmp_path: Path, disturb: Disturb, killed: bool, when: float
) -> None:
    """Count, wait, state and the time of the next probe are in the store: a restart neither resets nor bunches them."""
    async with gateway(tmp_path, {target(): down(10, 10 + OUTAGE)}) as relay:
        await outage_of_five_minutes(relay, 0.5, disturb, when)
        (disabled,) = relay.told(DISABLED)
        (enabled,) = relay.told(ENABLED)
        assert 10 + 35 * 0.8 <= at(disabled.at) <= 10 + 35 * 1.2 + 3, disabled
        assert [round((probe.at - disabled.at).total_seconds(), 1) for probe in probes(relay)] == [60, 180, 420]
        assert enabled.at - probes(relay)[-1].at < timedelta(seconds=1)
        assert relay.states() == {"delivered": (OUTAGE + 10) / 2}
        freed = begun_since(relay, enabled.at)
        assert freed == sorted(freed)
        assert len(failures(relay)) <= 8 + 5 + 2
        relay.assert_sound(killed=killed)


@disturbed
@virtually
async def test_a_probe_under_way_at_a_restart_is_made_again(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """A probe that a crash cut off is made again at once; a tidy stop waits for it. The target comes back."""
    async with gateway(tmp_path, {target(): down(10, 10 + OUTAGE, HANGS)}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=0.5, seconds=OUTAGE + 10))
        while not probes(relay):
            await asyncio.sleep(1)
        (disabled,) = relay.told(DISABLED)
        assert relay.since(disabled.at) == pytest.approx(60, abs=1.5)
        await asyncio.sleep(5)
        await disturb(relay)
        await traffic
        await relay.quiet("crm", within=timedelta(minutes=15))
        cut_off = [probe for probe in probes(relay) if probe.ended_at is None]
        assert len(cut_off) == killed
        assert len(probes(relay)) <= 4 + killed
        assert len(relay.told(ENABLED)) == 1
        assert relay.states() == {"delivered": (OUTAGE + 10) / 2}
        relay.assert_sound(killed=killed)


@pytest.mark.row("T57")
@pytest.mark.parametrize(("disturb", "killed"), [RESTARTED, KILLED])
@virtually
async def test_a_restart_on_the_ramp_goes_on_from_where_it_was(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """The concurrency of a target that was just enabled is stored too: a restart lets no crowd loose on it."""
    slow = Reply(200, takes=2)
    async with gateway(tmp_path, {target(): always(slow)}) as relay:
        await relay.dispatcher.disable("crm", "by hand")
        await relay.post("crm", number=100)
        await relay.dispatcher.enable("crm")
        await asyncio.sleep(3)
        assert relay.health("crm").ramp == 2
        await disturb(relay)
        assert relay.health("crm").ramp == (2 if killed else 4), "two were under way; a tidy stop lets them finish"
        await relay.quiet("crm", within=timedelta(minutes=2))
        assert relay.states() == {"delivered": 100}
        assert relay.health("crm").ramp is None
        relay.assert_sound(killed=killed)


@pytest.mark.row("F14", "F24", "B5")
@pytest.mark.parametrize("disable_after", [3, pytest.param(None, marks=slow)])
@virtually
async def test_timeouts_of_fifteen_seconds_pace_and_disable_as_well(tmp_path: Path, disable_after: int | None) -> None:
    """A failure counts by when its attempt began: eight that hang together are one; the other target feels nothing."""
    crm, fast = target(disable_after=disable_after), target("fast")
    async with gateway(tmp_path, {crm: down(10, 190, HANGS), fast: always(OK)}) as relay:
        await relay.traffic("crm", "fast", rate=1, seconds=200)
        await relay.quiet("crm", "fast", within=timedelta(hours=1))
        assert len(relay.told(DISABLED)) == (1 if disable_after else 0)
        for notice in relay.told(DISABLED):
            assert 10 + 15 + 35 * 0.8 + 15 <= at(notice.at) <= 10 + 15 + 4 * 15 + 35 * 1.2
        hung = [one for one in relay.requests if one.target == "crm" and one.kind is OutcomeKind.UNREACHABLE]
        assert len(hung) <= 8 + 7
        late = [
            one
            for one in relay.requests
            if one.target == "fast" and one.at - relay.received_at(one.event) > timedelta(seconds=0.1)
        ]
        assert late == []
        assert relay.states() == {"delivered": 400}
        relay.assert_sound()


@pytest.mark.row("F18", "B67", "B70")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=slow)])
@virtually
async def test_a_flapping_target_gets_everything_in_the_end(tmp_path: Path, seed: int) -> None:
    """A target that takes every fifth request is neither shut for ever nor hammered, and no event is lost."""
    count = 0

    def every_fifth(event: Event, attempt: int, now: datetime) -> Reply:
        nonlocal count
        count += 1
        return OK if count % 5 == 0 or at(now) > 10 * MINUTE else Reply(500)

    async with gateway(tmp_path, {target(): every_fifth}, seed=seed) as relay:
        await relay.traffic("crm", rate=1, seconds=120)
        await relay.quiet("crm", within=timedelta(hours=6))
        assert relay.states() == {"delivered": 120}
        assert len(relay.told(DISABLED)) == len(relay.told(ENABLED)) < 40
        relay.assert_sound()


@pytest.mark.row("B70")
@pytest.mark.parametrize("seconds", [15, pytest.param(120, marks=slow)])
@virtually
async def test_sporadic_errors_never_disable(tmp_path: Path, seconds: float) -> None:
    """One error in a hundred among successes neither disables nor holds anything back for long."""
    chance = Random(1)
    script: Script = lambda event, attempt, now: Reply(500) if chance.random() < 0.01 else OK  # noqa: E731
    async with gateway(tmp_path, {target(): script}) as relay:
        await relay.traffic("crm", rate=50, seconds=seconds)
        await relay.quiet("crm", within=timedelta(minutes=2))
        assert relay.notices == []
        assert relay.states() == {"delivered": 50 * seconds}
        assert 0.2 * seconds <= len(failures(relay)) <= seconds
        first = [one for one in relay.requests if one.attempt == 1]
        slow = [one for one in first if one.at - relay.received_at(one.event) > timedelta(seconds=1)]
        assert slow == []
        relay.assert_sound()


@virtually
async def test_after_a_failure_another_delivery_is_tried_at_once(tmp_path: Path) -> None:
    """One that is due already; its success lifts the pace, so that a bad event holds up nobody."""
    async with gateway(tmp_path, {target(concurrency=1): poison("evt_000001")}) as relay:
        await relay.post("crm", number=10)
        await asyncio.sleep(1)
        assert relay.states() == {"delivered": 9, "pending": 1}
        assert not relay.health("crm").paced
        relay.assert_sound()


@virtually
async def test_after_two_failures_the_next_waits(tmp_path: Path) -> None:
    """Where the try at once fails too, or there was nothing to try, the next begins when the wait is over."""
    async with gateway(tmp_path, {target(): down(0, 3)}) as relay:
        await relay.post("crm")
        await asyncio.sleep(1)
        wait_until = relay.health("crm").wait_until
        assert wait_until is not None
        assert 4 <= at(wait_until) <= 6.1
        await relay.post("crm", number=5)
        await relay.quiet("crm", within=timedelta(seconds=20), look=0.1)
        assert relay.requests[1].at >= wait_until
        assert relay.since(wait_until) < 2.5
    (tmp_path / "again").mkdir()
    async with gateway(tmp_path / "again", {target(concurrency=1): down(0, 100)}) as relay:
        await relay.post("crm", number=5)
        await asyncio.sleep(3)
        assert [one.event for one in relay.requests] == ["evt_000001", "evt_000002"]
        relay.assert_sound()


@pytest.mark.row("F13")
@virtually
async def test_a_probe_is_punctual(tmp_path: Path) -> None:
    """However short `probe.first` is, the first success comes within a second of the probe that the view shows."""
    crm = target(disable_after=1, probe_first=timedelta(seconds=3), probe_max=timedelta(seconds=7))
    async with gateway(tmp_path, {crm: down(0, 5)}) as relay:
        await relay.post("crm")
        await asyncio.sleep(20)
        assert [at(one.at) for one in relay.requests] == pytest.approx([0, 3, 9], abs=0.1)
        assert relay.states() == {"delivered": 1}
        relay.assert_sound()


@pytest.mark.row("B25")
@virtually
async def test_a_slow_target_holds_no_claim_longer_than_its_lease(tmp_path: Path) -> None:
    """What was claimed ahead of a slot that does not come free is given back; a lease covers the attempt and 10 s."""
    crm = target(concurrency=1)
    async with gateway(tmp_path, {crm: always(Reply(200, takes=14))}) as relay:
        await relay.post("crm", number=12)
        await relay.quiet("crm", within=timedelta(minutes=5))
        assert [one.event for one in relay.requests] == sorted(relay.rows())
        assert all(row.attempts == 1 for row in relay.rows().values())
        relay.assert_sound()


@virtually
async def test_a_shortage_of_our_own_costs_the_target_nothing(tmp_path: Path) -> None:
    """No step, no count, due again: once a second until there is room, and never in a hot loop."""
    async with gateway(tmp_path, {target(): down(10, 70, Reply(None, takes=0, short=True))}) as relay:
        await relay.traffic("crm", rate=2, seconds=80)
        await relay.quiet("crm", within=timedelta(seconds=10))
        assert relay.notices == []
        assert relay.states() == {"delivered": 160}
        assert spent(relay) == 0
        assert 50 <= len(failures(relay)) <= 8 * 65
        relay.assert_sound()


# --- events at fault ---


@pytest.mark.row("T58", "B74")
@disturbed
@virtually
async def test_a_poison_event_at_low_traffic_shuts_the_target_for_nobody_else(
    tmp_path: Path, disturb: Disturb, killed: bool
) -> None:
    """Alone it disables; the next arrival is tried at once, enables, and only then may the poison die."""
    crm = target(schedule=[5, 30, 120])
    async with gateway(tmp_path, {crm: poison("evt_000001")}) as relay:
        (bad,) = await relay.post("crm")
        await asyncio.sleep(10 * MINUTE)
        (disabled,) = relay.told(DISABLED)
        assert 35 * 0.8 <= at(disabled.at) <= 35 * 1.2 + 1
        assert disabled.counted_events == (bad, bad, bad)
        assert disabled.held == 1
        await disturb(relay)
        assert relay.health("crm").state is DISABLED
        came = relay.now()
        (good,) = await relay.post("crm")
        await asyncio.sleep(0.5)
        assert [(one.turn, one.kind) for one in relay.sends(good)] == [(Turn.ARRIVAL, OutcomeKind.DELIVERED)]
        assert relay.told(ENABLED)[0].at - came < timedelta(seconds=0.1)
        while relay.states()["pending"]:
            await asyncio.sleep(MINUTE)
            (good,) = await relay.post("crm")
            await asyncio.sleep(6)
            assert relay.rows()[good].state == "delivered"
        assert relay.rows()[bad].state == "dead"
        assert relay.rows()[bad].reason == "retry schedule ended: status 500"
        assert relay.rows()[bad].step == 3
        assert len([one for one in relay.sends(bad) if one.turn is Turn.DUE]) == 4
        assert len(relay.told(DISABLED)) == 1
        relay.assert_sound(killed=killed)


@slow
@pytest.mark.timeout(300)
@virtually
async def test_a_poison_event_on_the_default_schedule(tmp_path: Path) -> None:
    """It has all its twelve tries over three days, while what comes every ten minutes is delivered at once."""
    async with gateway(tmp_path, {target(): poison("evt_000001")}) as relay:
        (bad,) = await relay.post("crm")
        for _ in range(6 * 24 * 5):
            await asyncio.sleep(10 * MINUTE)
            (good,) = await relay.post("crm")
            await asyncio.sleep(45)
            assert relay.rows()[good].state == "delivered"
            if relay.rows()[bad].state == "dead":
                break
        assert relay.rows()[bad].state == "dead"
        assert len([one for one in relay.sends(bad) if one.turn is Turn.DUE]) == 12
        assert at(relay.now()) > 0.8 * 72 * HOUR
        assert len(relay.told(DISABLED)) == len(relay.told(ENABLED))
        relay.assert_sound()


@pytest.mark.parametrize("reply", [Reply(500), Reply(400), DOWN], ids=["failed", "refused", "unreachable"])
@pytest.mark.parametrize("disable_after", [3, pytest.param(None, marks=slow)])
@virtually
async def test_an_event_alone_at_an_idle_target_is_never_given_up(
    tmp_path: Path, reply: Reply, disable_after: int | None
) -> None:
    """Past its last step it waits at the last wait, or is held: nobody can say whose fault it is."""
    crm = target(schedule=[1, 20], disable_after=disable_after)
    async with gateway(tmp_path, {crm: always(reply)}) as relay:
        (bad,) = await relay.post("crm")
        await asyncio.sleep(20 * MINUTE)
        row = relay.rows()[bad]
        assert (row.state, row.step) == ("pending", 2)
        paced = reply.status != 400 and disable_after is not None
        assert (relay.health("crm").state is DISABLED) == paced
        tries = len(relay.sends(bad))
        assert tries == 3 + 4 if paced else 20 * MINUTE / 24 <= tries <= 20 * MINUTE / 16
        relay.assert_sound()


@pytest.mark.row("F33", "T58", "B74")
@virtually
async def test_a_refused_event_at_low_traffic_never_disables(tmp_path: Path) -> None:
    """A refusal counts once per event and slows nobody; the event dies as soon as its target has taken another."""
    crm = target(schedule=[5, 30, 120])
    async with gateway(tmp_path, {crm: poison("evt_000001", reply=Reply(400))}) as relay:
        (bad,) = await relay.post("crm")
        await asyncio.sleep(HOUR)
        assert relay.health("crm").failures == 1
        assert not relay.health("crm").paced
        tries = len(relay.sends(bad))
        assert 4 + 50 * 0.4 <= tries <= 4 + 60 / 1.6
        await relay.post("crm")
        assert relay.rows()[bad].state == "pending"
        await relay.quiet("crm", within=timedelta(minutes=3))
        assert relay.rows()[bad].reason == "retry schedule ended: status 400"
        assert len(relay.sends(bad)) <= tries + 2
        assert relay.health("crm").failures <= 1
        assert relay.notices == []
        relay.assert_sound()


@pytest.mark.row("F33", "T58", "B74")
@pytest.mark.parametrize("reply", [Reply(500), Reply(400)], ids=["failed", "refused"])
@virtually
async def test_poison_among_many_dies_alone(tmp_path: Path, reply: Reply) -> None:
    """Two bad events in a busy stream end dead at the end of their own schedules; the stream never stops."""
    crm = target(schedule=[5, 30, 120])
    async with gateway(tmp_path, {crm: poison("evt_000010", "evt_000020", reply=reply)}) as relay:
        await relay.traffic("crm", rate=1, seconds=240)
        assert relay.notices == []
        assert relay.states() == {"delivered": 238, "dead": 2}
        assert {row.event: (row.step, row.attempts) for row in relay.rows().values() if row.state == "dead"} == {
            "evt_000010": (3, 4),
            "evt_000020": (3, 4),
        }
        relay.assert_sound()


@pytest.mark.row("T58", "B74")
@disturbed
@virtually
async def test_two_poison_events_cannot_keep_a_healthy_target_shut(
    tmp_path: Path, disturb: Disturb, killed: bool
) -> None:
    """The newest never tried is probed first: what comes in while two bad events hold the door gets through."""
    async with gateway(tmp_path, {target(): poison("evt_000001", "evt_000002")}, seed=2) as relay:
        await relay.post("crm", number=2)
        await asyncio.sleep(2 * HOUR)
        (disabled,) = relay.told(DISABLED)
        assert set(disabled.counted_events) == {"evt_000001", "evt_000002"}
        turns = [probe.event for probe in probes(relay)]
        assert len(turns) == 4 + 6
        assert all(one != other for one, other in itertools.pairwise(turns)), "the one tried longest ago"
        await disturb(relay)
        came = relay.now()
        (good,) = await relay.post("crm")
        while relay.rows()[good].state != "delivered":
            await asyncio.sleep(5)
        assert relay.since(came) <= 15 * MINUTE + 20
        assert relay.health("crm").state is ENABLED
        relay.assert_sound(killed=killed)


@virtually
async def test_bad_events_do_not_hide_a_good_one_that_was_tried_before(tmp_path: Path) -> None:
    """Where all were tried, the one tried longest ago is probed: every held delivery has its turn."""
    bad = ("evt_000001", "evt_000003", "evt_000004", "evt_000005")
    script: Script = lambda event, attempt, now: DOWN if event.id in bad or at(now) < 60 else OK  # noqa: E731
    async with gateway(tmp_path, {target(): script}) as relay:
        await relay.post("crm", number=5)
        await asyncio.sleep(50)
        assert relay.health("crm").state is DISABLED
        assert all(relay.sends(event) for event in relay.rows())
        await asyncio.sleep(HOUR)
        assert relay.rows()["evt_000002"].state == "delivered"
        assert len(relay.told(ENABLED)) >= 1
        relay.assert_sound()


@slow
@virtually
async def test_only_the_next_arrival_is_tried_at_once(tmp_path: Path) -> None:
    """While it is tried, and after it failed, the others that come in are held for the probes."""
    async with gateway(tmp_path, {target(): down(0, HOUR, Reply(500, takes=5))}) as relay:
        await relay.post("crm")
        await asyncio.sleep(70)
        assert relay.health("crm").state is DISABLED
        for _ in range(10):
            await relay.post("crm")
            await asyncio.sleep(1)
        arrivals = [one for one in relay.requests if one.turn is Turn.ARRIVAL]
        assert [(one.event, one.attempt) for one in arrivals] == [("evt_000002", 1)]
        await relay.quiet("crm", within=timedelta(hours=2))
        assert relay.states() == {"delivered": 11}
        relay.assert_sound()


@pytest.mark.row("B70")
@disturbed
@virtually
async def test_refusing_everything_disables_by_different_events(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """Three events refused, each once and spread like failures, disable; before that nothing is slowed."""
    async with gateway(tmp_path, {target(): down(0, 10 * MINUTE, Reply(422))}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=2, seconds=60))
        await asyncio.sleep(20)
        await disturb(relay)
        await traffic
        (disabled,) = relay.told(DISABLED)
        assert 35 * 0.8 <= at(disabled.at) <= 35 * 1.2 + 2
        assert len(set(disabled.counted_events)) == 3
        first = [one for one in relay.requests if one.attempt == 1 and one.at < disabled.at]
        assert all(relay.received_at(one.event) + timedelta(seconds=1) > one.at for one in first if not killed)
        await relay.quiet("crm", within=timedelta(hours=1))
        assert relay.states() == {"delivered": 120}
        assert len(relay.told(ENABLED)) == 1
        assert [round((probe.at - disabled.at).total_seconds()) for probe in probes(relay)] == [60, 180, 420, 900]
        relay.assert_sound(killed=killed)


# --- throttled ---


@pytest.mark.row("F19")
@pytest.mark.parametrize(
    ("reply", "wait"),
    [
        (Reply(429), 4.0),
        (Reply(429, retry_after="30"), 30.0),
        (Reply(503, retry_after="30"), 30.0),
        (Reply(429, retry_after="soon"), 4.0),
        (Reply(429, retry_after="-1"), 4.0),
        (Reply(429, retry_after="Wed, 01 Jan 2031 00:01:00 GMT"), 4.0),
    ],
    ids=["429", "429 in 30 s", "503 in 30 s", "garbage", "negative", "date"],
)
@virtually
async def test_a_throttling_target_is_left_alone_as_long_as_it_asks(tmp_path: Path, reply: Reply, wait: float) -> None:
    """A throttle spends no step and counts nothing; the target waits, then gets one at a time until it takes."""
    await throttled(tmp_path, reply, wait, nothing, killed=False)


@pytest.mark.row("F19")
@pytest.mark.parametrize(("disturb", "killed"), [RESTARTED, KILLED])
@virtually
async def test_a_throttle_outlives_a_restart(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """What a target has asked for is in the store."""
    await throttled(tmp_path, Reply(503, retry_after="30"), 30, disturb, killed=killed)


async def throttled(home: Path, reply: Reply, wait: float, disturb: Disturb, *, killed: bool) -> None:
    """A target that throttles for a minute and a half, with a disturbance at its first wait."""
    async with gateway(home, {target(): down(10, 100, reply)}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=2, seconds=100))
        await asyncio.sleep(11)
        until = relay.health("crm").throttled_until
        assert until is not None
        assert at(until) >= 10 + wait
        assert relay.health("crm").paced
        await disturb(relay)
        assert relay.health("crm").throttled_until == pytest.approx(until, abs=timedelta(milliseconds=1))
        await traffic
        await relay.quiet("crm", within=timedelta(minutes=3))
        assert relay.notices == []
        assert relay.states() == {"delivered": 200}
        assert spent(relay) == 0
        throttled = [one for one in relay.requests if one.kind is OutcomeKind.THROTTLED]
        after = [one for one in throttled if one.at > throttled[0].at + timedelta(seconds=1)]
        gaps = [(one.at - other.at).total_seconds() for one, other in zip(after[1:], after, strict=False)]
        assert all(gap >= wait for gap in gaps), gaps
        assert len(throttled) <= 8 + 90 / wait
        relay.assert_sound(killed=killed)


@pytest.mark.row("F19")
@virtually
async def test_nobody_may_ask_for_more_than_a_day(tmp_path: Path) -> None:
    """`Retry-After` of ten years is 24 hours, and `enable` lifts it at once."""
    script: Script = lambda event, attempt, now: Reply(429, retry_after="315360000") if attempt == 1 else OK  # noqa: E731
    async with gateway(tmp_path, {target(): script}) as relay:
        await relay.post("crm")
        await asyncio.sleep(1)
        until = relay.health("crm").throttled_until
        assert until is not None
        assert at(until) == pytest.approx(24 * HOUR, abs=1)
        await relay.dispatcher.enable("crm")
        assert relay.health("crm").throttled_until is None
        await relay.post("crm")
        await asyncio.sleep(1)
        assert [one.event for one in relay.requests] == ["evt_000001", "evt_000001", "evt_000002"]
        assert relay.health("crm").throttled_until is not None


@slow
@virtually
async def test_a_throttled_probe_puts_the_next_one_off(tmp_path: Path) -> None:
    """A disabled target that asks for a silence gets it, through a restart too."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        if at(now) < 60:
            return DOWN
        return Reply(429, retry_after="3600") if at(now) < 120 else OK

    async with gateway(tmp_path, {target(): script}) as relay:
        await relay.post("crm", number=20)
        await asyncio.sleep(150)
        (probe,) = probes(relay)
        assert probe.kind is OutcomeKind.THROTTLED
        await relay.restart()
        await relay.quiet("crm", within=timedelta(hours=2))
        assert (probes(relay)[1].at - probe.at).total_seconds() == pytest.approx(3600, abs=1)
        assert relay.states() == {"delivered": 20}
        relay.assert_sound()


# --- gone, by hand, and the settings ---


@pytest.mark.row("B71")
@disturbed
@virtually
async def test_a_target_that_is_gone_is_never_probed(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """410 disables at once and spends no step; only `enable` brings the target back, oldest first."""
    async with gateway(tmp_path, {target(): down(10, 100, Reply(410))}) as relay:
        await relay.traffic("crm", rate=5, seconds=20)
        (disabled,) = relay.told(DISABLED)
        assert 10 <= at(disabled.at) <= 10.5
        assert relay.health("crm").disabled_by is DisabledBy.GONE
        await disturb(relay)
        await asyncio.sleep(HOUR)
        gone = [one for one in relay.requests if one.kind is OutcomeKind.GONE]
        assert len(gone) <= 8
        assert relay.requests[-1].at - disabled.at < timedelta(seconds=1)
        assert spent(relay) == 0
        await relay.dispatcher.enable("crm")
        enabled = relay.told(ENABLED)[0].at
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert begun_since(relay, enabled) == sorted(begun_since(relay, enabled))
        assert relay.states() == {"delivered": 100}
        relay.assert_sound(killed=killed)


@pytest.mark.parametrize(("url", "settings", "back"), [("new", "settings", True), ("url", "new", False)])
@virtually
async def test_a_new_url_ends_a_disabling_by_410(tmp_path: Path, url: str, settings: str, back: bool) -> None:
    """A new `url` is another receiver; other credentials are not."""
    async with gateway(tmp_path, {target(): down(0, 10, Reply(410))}) as relay:
        await relay.post("crm")
        await asyncio.sleep(60)
        await relay.change("crm", url=url, settings=settings)
        await asyncio.sleep(60)
        assert relay.states() == {"delivered" if back else "pending": 1}
        assert len(relay.told(ENABLED)) == back


@pytest.mark.parametrize(("url", "settings"), [("new", "settings"), ("url", "new")])
@virtually
async def test_a_change_of_the_target_is_probed_at_once(tmp_path: Path, url: str, settings: str) -> None:
    """Who mends the YAML after an outage need not wait for the next probe."""
    async with gateway(tmp_path, {target(): down(0, 2 * HOUR)}) as relay:
        await relay.post("crm", number=20)
        await asyncio.sleep(HOUR)
        tried = len(probes(relay))
        await relay.change("crm", url=url, settings=settings)
        await asyncio.sleep(1)
        assert len(probes(relay)) == tried + 1
        assert relay.since(probes(relay)[-1].at) <= 1.5


@pytest.mark.row("B59")
@pytest.mark.parametrize("reply", [OK, Reply(500), Reply(410), Reply(429), HANGS])
@virtually
async def test_disabling_by_hand_during_an_attempt(tmp_path: Path, reply: Reply) -> None:
    """The attempt under way ends as it will; the target stays off until it is switched on, whatever came of it."""
    slow = Reply(reply.status, takes=10)
    async with gateway(tmp_path, {target(): down(0, 20, slow)}) as relay:
        await relay.post("crm", number=20)
        await asyncio.sleep(5)
        await relay.dispatcher.disable("crm", "maintenance")
        await asyncio.sleep(HOUR)
        assert relay.health("crm").disabled_by is DisabledBy.HAND
        assert relay.health("crm").reason == "maintenance"
        assert len(relay.requests) == 8
        taken = 8 if reply is OK else 0
        assert relay.states() == {"delivered": taken, "pending": 20 - taken} if taken else {"pending": 20}
        assert len(relay.told(DISABLED)) == 1
        await relay.dispatcher.enable("crm")
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.states() == {"delivered": 20}
        relay.assert_sound()


@pytest.mark.row("B59")
@virtually
async def test_disabling_by_hand_during_a_probe(tmp_path: Path) -> None:
    """A probe that succeeds after the operator said no delivers its event, and enables nothing."""
    async with gateway(tmp_path, {target(): down(0, 60, DOWN)}) as relay:
        await relay.post("crm", number=20)
        while relay.health("crm").state is not DISABLED:
            await asyncio.sleep(1)
        probe_at = relay.health("crm").probe_at
        assert probe_at is not None
        await asyncio.sleep((probe_at - relay.now()).total_seconds() + 0.01)
        assert len(probes(relay)) == 1
        assert probes(relay)[0].ended_at is None
        await relay.dispatcher.disable("crm", "maintenance")
        await asyncio.sleep(HOUR)
        assert probes(relay)[0].kind is OutcomeKind.DELIVERED
        assert relay.health("crm").disabled_by is DisabledBy.HAND
        assert relay.states() == {"delivered": 1, "pending": 19}
        relay.assert_sound()


@virtually
async def test_the_success_of_a_straggler_ends_a_disabling_by_failures(tmp_path: Path) -> None:
    """Any success tells that the target is back, also one of an attempt begun before the disabling."""
    script: Script = lambda event, attempt, now: Reply(200, takes=12) if event.id == "evt_000001" else Reply(500)  # noqa: E731
    async with gateway(tmp_path, {target(disable_after=1): script}) as relay:
        await relay.post("crm", number=2)
        await asyncio.sleep(5)
        assert relay.health("crm").state is DISABLED
        await asyncio.sleep(7.2)
        assert [notice.state for notice in relay.notices] == [DISABLED, ENABLED]
        assert at(relay.told(ENABLED)[0].at) == pytest.approx(12, abs=0.1)
        relay.assert_sound()


@virtually
async def test_a_target_that_is_disabled_by_its_first_failure_comes_back(tmp_path: Path) -> None:
    """`disable_after: 1` holds what was claimed ahead, and its probes find it."""
    async with gateway(tmp_path, {target(disable_after=1): down(10, 100)}) as relay:
        await relay.traffic("crm", rate=50, seconds=20)
        assert len(relay.told(DISABLED)) == 1
        assert len(failures(relay)) <= 8 + 1
        await relay.quiet("crm", within=timedelta(minutes=10))
        assert relay.states() == {"delivered": 1000}
        assert len(probes(relay)) == 2
        relay.assert_sound()


@pytest.mark.parametrize(("disturb", "killed"), [UNDISTURBED, KILLED])
@virtually
async def test_two_thousand_held_leave_oldest_first(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """Whatever was tried before and whenever it was due, what was held leaves in the order of its arrival."""
    async with gateway(tmp_path, {target(): down(0, 60)}) as relay:
        await relay.traffic("crm", rate=1, seconds=55)
        assert relay.health("crm").state is DISABLED
        for _ in range(4):
            await relay.post("crm", number=500)
        await disturb(relay)
        await relay.dispatcher.disable("crm", "by hand")
        await asyncio.sleep(HOUR)
        await relay.dispatcher.enable("crm")
        enabled = relay.told(ENABLED)[-1].at
        await relay.quiet("crm", within=timedelta(minutes=2))
        freed = begun_since(relay, enabled)
        assert len(freed) == 2055
        assert freed == sorted(freed)
        relay.assert_sound(killed=killed)


# --- other schedules and settings ---


@pytest.mark.row("B14")
@virtually
async def test_an_empty_schedule_is_a_single_try(tmp_path: Path) -> None:
    """Who writes `schedule: []` gets one try an event; pace and disabling keep what is lost to a handful."""
    async with gateway(tmp_path, {target(schedule=[]): down(10, 310)}) as relay:
        await relay.traffic("crm", rate=1, seconds=320)
        await relay.quiet("crm", within=timedelta(minutes=10))
        (disabled,) = relay.told(DISABLED)
        assert 10 + 35 * 0.8 <= at(disabled.at) <= 10 + 35 * 1.2 + 3
        dead = [row for row in relay.rows().values() if row.state == "dead"]
        assert 3 <= len(dead) <= 8 + 5
        assert {(row.attempts, row.reason) for row in dead} == {(1, "single try failed: connect: Connection refused")}
        assert relay.states()["delivered"] == 320 - len(dead)
        relay.assert_sound()


@pytest.mark.parametrize("rate", [0.2, 2, pytest.param(50, marks=slow)])
@disturbed
@virtually
async def test_a_short_schedule_loses_nothing_to_an_outage(
    tmp_path: Path, rate: float, disturb: Disturb, killed: bool
) -> None:
    """Two retries of a second each outlast a minute's outage: an outage alone ends nothing."""
    async with gateway(tmp_path, {target(schedule=[1, 1]): down(10, 70)}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=rate, seconds=80))
        await asyncio.sleep(40)
        await disturb(relay)
        await traffic
        await relay.quiet("crm", within=timedelta(minutes=10))
        assert relay.states() == {"delivered": rate * 80}
        assert len(failures(relay)) <= 8 + 8 + 3
        relay.assert_sound(killed=killed)


@slow
@pytest.mark.parametrize("rate", [0.1, 5])
@virtually
async def test_a_target_that_is_never_disabled_is_only_paced(tmp_path: Path, rate: float) -> None:
    """`disable_after: never` keeps the pace and loses nothing; it is no quieter than a target that is probed."""
    async with gateway(tmp_path, {target(disable_after=None): down(10, 2 * HOUR)}) as relay:
        await relay.traffic("crm", rate=rate, seconds=600)
        assert len(failures(relay)) <= 8 + 2 * 6
        assert relay.health("crm").failures >= 4
        await relay.quiet("crm", within=timedelta(hours=3))
        assert at(relay.now()) <= 2 * HOUR + 20 * MINUTE
        assert relay.notices == []
        assert relay.states() == {"delivered": rate * 600}
        relay.assert_sound()


@virtually
async def test_five_failures_take_five_waits(tmp_path: Path) -> None:
    """`disable_after: 5` counts five, each after the schedule's own wait."""
    async with gateway(tmp_path, {target(disable_after=5): down(0, 2 * HOUR)}) as relay:
        await relay.traffic("crm", rate=0.1, seconds=1200)
        (disabled,) = relay.told(DISABLED)
        assert 755 * 0.8 <= at(disabled.at) <= 755 * 1.2 + 10
        assert len(disabled.counted_events) == 5


@disturbed
@virtually
async def test_a_target_that_is_never_probed_waits_for_a_hand(tmp_path: Path, disturb: Disturb, killed: bool) -> None:
    """`probe: never` is strictly by hand: no probe, no arrival, and a success of neither brings it back."""
    async with gateway(tmp_path, {target(probe_first=None): down(0, 60)}) as relay:
        await relay.post("crm")
        await asyncio.sleep(100)
        assert relay.health("crm").state is DISABLED
        tried = len(relay.requests)
        await disturb(relay)
        await relay.post("crm", number=5)
        await asyncio.sleep(HOUR)
        assert len(relay.requests) == tried
        await relay.dispatcher.enable("crm")
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.states() == {"delivered": 6}
        relay.assert_sound(killed=killed)


@pytest.mark.row("B23", "B24")
@pytest.mark.parametrize("seed", range(3))
@virtually
async def test_waits_are_the_schedules_within_a_fifth(tmp_path: Path, seed: int) -> None:
    """The n-th wait of a delivery is that of the YAML, in seconds, and no due delivery is forgotten."""
    crm = target(schedule=[5, 30, 120, 600])
    script = poison("evt_000001", reply=Reply(400))
    async with gateway(tmp_path, {crm: script}, seed=seed) as relay:
        (bad,) = await relay.post("crm")
        await asyncio.sleep(900)
        sends = relay.sends(bad)
        waits = [(after.at - before.at).total_seconds() for before, after in itertools.pairwise(sends)]
        for wait, meant in zip(waits, [5, 30, 120, 600], strict=False):
            assert meant * 0.8 <= wait <= meant * 1.2 + 0.1
        assert len(waits) >= 4
        with virtual_loop().really():
            assert await relay.dispatcher.unclaimed() == frozenset()
