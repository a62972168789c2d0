"""A machine's clock that is set while the relay runs, or was wrong before it started: nothing waits for it, nothing is
lost, nothing bunches; the real dispatcher and store on virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.model import Event, OutcomeKind, Target, TargetState
from relay.timekeeping import Timekeeping
from tests.support.simulation import Gateway, target
from tests.support.virtual_time import DOWN, Reply, Request, Script, virtual_loop, virtually

HOUR, YEARS = timedelta(hours=1), timedelta(days=3653)
STEPS = [-YEARS, -HOUR, HOUR, YEARS]


class Machine:
    """A relay with its timekeeping, and seconds that nobody sets."""

    def __init__(self, relay: Gateway) -> None:
        self.relay = relay
        self.leaps = 0
        self.loop = virtual_loop()

    def seconds(self, request: Request) -> float:
        """When a request began, by the loop's own clock."""
        return self._at[request.event, request.attempt]

    def note(self, script: Script) -> Script:
        """A script that also notes when, by the loop's own clock."""
        self._at: dict[tuple[str, int], float] = {}

        def noted(event: Event, attempt: int, now: datetime) -> Reply:
            self._at[event.id, attempt] = self.loop.time()
            return script(event, attempt, now)

        return noted

    def leapt(self) -> None:
        self.leaps += 1

    async def set_clock(self, by: timedelta) -> None:
        self.loop.set_clock(by)
        await asyncio.sleep(1.5)


@asynccontextmanager
async def machine(home: Path, one: Target, script: Script) -> AsyncIterator[Machine]:
    """A running relay with one target."""
    relay = Gateway(home, {})
    it = Machine(relay)
    relay._scripts = {one: it.note(script)}
    relay._digests = {one.name: ("url", "settings")}
    await relay.start()
    clock = Timekeeping(
        it.loop.now,
        set_ahead=it.leapt,
        set_back=lambda: relay.dispatcher.clock_set_back(),
        count=it.loop.time,
    )
    looking = asyncio.create_task(clock.run())
    try:
        yield it
    finally:
        looking.cancel()
        await relay.stop()


@pytest.mark.slow
@pytest.mark.row("F30")
@pytest.mark.parametrize("by", STEPS, ids=str)
@virtually
async def test_a_retry_waits_no_longer_than_its_step_whatever_the_clock_does(tmp_path: Path, by: timedelta) -> None:
    """It comes after its own wait at the latest, by seconds that really pass, and is numbered on."""

    def fail_twice(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply(500) if attempt <= 2 else Reply()

    async with machine(tmp_path, target(schedule=[5, 30, 120]), fail_twice) as it:
        (event,) = await it.relay.post("crm")
        await asyncio.sleep(1)
        await it.set_clock(by)
        await it.relay.quiet("crm", within=by + timedelta(minutes=2) if by > timedelta(0) else timedelta(minutes=2))
        waits = [it.seconds(request) for request in it.relay.sends(event)]
        assert [request.attempt for request in it.relay.sends(event)] == [1, 2, 3]
        assert waits[1] - waits[0] <= 2.5 + 5 * 1.2 + 0.5
        assert waits[2] - waits[1] <= 30 * 1.2 + 0.5
        it.relay.assert_sound()
        assert it.leaps == (by > timedelta(0))


@pytest.mark.slow
@pytest.mark.row("F30")
@pytest.mark.parametrize("by", STEPS, ids=str)
@virtually
async def test_a_target_is_disabled_probed_and_back_whatever_the_clock_does(tmp_path: Path, by: timedelta) -> None:
    """Its failures count, its probe comes when it is due, and what it held leaves; the clock was set in between."""
    is_up = asyncio.Event()

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply() if is_up.is_set() else DOWN

    async with machine(tmp_path, target(), script) as it:
        is_up.set()
        await it.relay.post("crm")
        await asyncio.sleep(1)
        is_up.clear()
        await it.set_clock(by)  # it has succeeded in a time to come, or long ago
        began = it.loop.time()
        await it.relay.post("crm", number=30)
        while it.relay.health("crm").state is TargetState.ACTIVE:
            assert it.loop.time() - began < 60
            await asyncio.sleep(1)
        await it.set_clock(-by)
        await it.relay.post("crm", number=3)
        is_up.set()
        began = it.loop.time()
        while it.relay.health("crm").state is TargetState.DISABLED:
            assert it.loop.time() - began < 75  # a probe is due after one minute
            await asyncio.sleep(1)
        while it.relay.states() != {"delivered": 34}:
            assert it.loop.time() - began < 120
            await asyncio.sleep(1)
        it.relay.assert_sound()


@pytest.mark.row("F30")
@virtually
async def test_what_came_in_a_time_to_come_is_delivered_after_the_clock_came_back(tmp_path: Path) -> None:
    """Held by a disabled target, tried there, released, claimed and waiting: ten years do not pass before any of it."""
    is_up = asyncio.Event()

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply() if is_up.is_set() else Reply(500)

    async with machine(tmp_path, target(concurrency=2), script) as it:
        await it.set_clock(YEARS)
        await it.relay.post("crm", number=5)
        await asyncio.sleep(90)
        assert it.relay.health("crm").state is TargetState.DISABLED
        await it.relay.post("crm", number=5)
        await it.set_clock(-YEARS)
        await it.relay.post("crm", number=5)
        await asyncio.sleep(180)  # further probes fail
        is_up.set()
        await it.relay.dispatcher.enable("crm")
        await asyncio.sleep(10)
        assert it.relay.states() == {"delivered": 15}


@pytest.mark.row("F30")
@virtually
async def test_a_start_by_a_right_clock_mends_what_a_wrong_one_has_left(tmp_path: Path) -> None:
    """The relay ran ten years ahead and was killed; after the next start nothing waits longer than it may."""
    is_up = asyncio.Event()

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply() if is_up.is_set() else Reply(503, retry_after="30") if attempt == 1 else DOWN

    async with machine(tmp_path, target(schedule=[5, 30]), script) as it:
        it.loop.set_clock(YEARS)
        await it.relay.post("crm", number=3)
        await asyncio.sleep(2)
        assert it.relay.health("crm").throttled_until is not None
        it.loop.set_clock(-YEARS)
        await it.relay.crash()
        health = it.relay.health("crm")
        assert health.throttled_until is not None
        assert health.throttled_until <= it.relay.now() + timedelta(hours=24)
        is_up.set()
        await it.relay.dispatcher.enable("crm")
        await asyncio.sleep(10)
        assert it.relay.states() == {"delivered": 3}


@pytest.mark.row("F30")
@virtually
async def test_a_leap_ahead_makes_due_what_waited_and_bunches_nothing(tmp_path: Path) -> None:
    """All retries come early, as many at a time as the target takes, and a throttle is over."""

    def fail_once(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply(422) if attempt == 1 else Reply(takes=0.5)

    async with machine(tmp_path, target(schedule=[3600], concurrency=4, disable_after=None), fail_once) as it:
        await it.relay.post("crm", number=40)
        await asyncio.sleep(5)
        await it.set_clock(YEARS)
        await asyncio.sleep(15)
        assert it.relay.states() == {"delivered": 40}
        second = [request for request in it.relay.requests if request.attempt == 2]
        starts = sorted(it.seconds(request) for request in second)
        assert all(later - earlier >= 0.49 for earlier, later in zip(starts, starts[4:], strict=False))
        it.relay.assert_sound()  # never more at once than its concurrency


@pytest.mark.row("F30")
@virtually
async def test_a_clock_set_back_in_an_outage_lets_no_event_die(tmp_path: Path) -> None:
    """What the target took in a time to come is no reason to give up what it does not take now (promise 10)."""
    is_up = asyncio.Event()
    is_up.set()

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply() if is_up.is_set() else DOWN

    async with machine(tmp_path, target(schedule=[1, 1], disable_after=None), script) as it:
        await it.set_clock(HOUR)
        await it.relay.post("crm")
        await asyncio.sleep(1)
        is_up.clear()
        await it.set_clock(-HOUR)
        await it.relay.post("crm", number=2)
        await asyncio.sleep(60)
        assert it.relay.states() == {"delivered": 1, "pending": 2}
        is_up.set()
        await asyncio.sleep(60)
        assert it.relay.states() == {"delivered": 3}
        assert {request.kind for request in it.relay.requests} == {OutcomeKind.DELIVERED, OutcomeKind.UNREACHABLE}
