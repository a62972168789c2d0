"""The installed program while its machine's clock is set, or while it is frozen itself."""

import asyncio
import hmac
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import KEY, Arrival, Gateway, Sink, until, webhook, write_config
from tests.support.set_clock import SetClock

HOUR, YEARS = timedelta(hours=1), timedelta(days=3653)
SOON = ", retry: {schedule: [2s, 2s, 2s, 2s]}, disable_after: 3, probe: {first: 2s, max: 4s}"
SIGNED = (
    f'  stamped: {{provider: custom, secrets: ["{KEY}"], verify: {{scheme: hmac, header: X-Sig, algorithm: sha256, '
    'signed: "{timestamp}.{body}", timestamp_header: X-Time}}'
)


def config_of(home: Path, sink: Sink) -> Path:
    """The usual config, with a source that signs the time as well."""
    path = write_config(home / "c.yaml", sink, targets={"crm": SOON})
    path.write_text(path.read_text().replace("targets:", SIGNED + "\ntargets:", 1).replace("[shop]", "[shop, stamped]"))
    return path


def stamped(number: int) -> tuple[str, bytes, dict[str, str]]:
    """A webhook whose signature covers the time, which is right."""
    body, at = b'{"id": %d}' % number, str(int(time.time()))
    return (
        "stamped",
        body,
        {"X-Time": at, "X-Sig": hmac.new(KEY.encode(), at.encode() + b"." + body, "sha256").hexdigest()},
    )


@pytest.mark.slow
@pytest.mark.row("F30", "T7")
@pytest.mark.parametrize("by", [-YEARS, -HOUR, HOUR, YEARS], ids=["decade back", "hour back", "hour on", "decade on"])
async def test_a_clock_that_is_set_while_it_runs_loses_and_delays_nothing(tmp_path: Path, by: timedelta) -> None:
    """Retries, a disabled target's probe and what is held go on in real seconds, there and back; ids stay unique; what
    is signed by another time is refused, loudly; and it is told that the clock was set."""
    clock = SetClock(tmp_path)
    is_up = True

    async def answer(_: Arrival) -> int:
        return 200 if is_up else 500

    async with Sink(answer) as sink:
        gateway = Gateway(config_of(tmp_path, sink))
        gateway.environ = clock.environ
        async with gateway:
            ids = [(await gateway.post(*webhook(0)))[1]["id"]]
            await until(lambda: len(sink.arrivals) == 1)
            is_up = False
            for number, moved in enumerate((by, timedelta(0)), start=1):
                ids.append((await gateway.post(*webhook(number)))[1]["id"])
                await until(lambda number=number: ids[number] in sink.ids("crm"))
                clock.set(moved)
                await until(lambda number=number: len(gateway.said("clock.stepped")) == number)
                if moved:
                    assert abs(gateway.said("clock.stepped")[0]["seconds"] - by.total_seconds()) < 5
                    assert {(await gateway.post(*stamped(n)))[0] for n in range(4)} == {401}
                    await until(lambda: bool(gateway.said("clock.suspect")))
                    (line,) = gateway.said("clock.suspect")
                    assert abs(line["skew_s"] + by.total_seconds()) < 10
                tries = len(sink.arrivals)
                await until(lambda tries=tries: len(sink.arrivals) > tries, within=20)  # what waited comes again
            assert (await gateway.post(*stamped(9)))[0] == 200
            is_up = True
            await until(lambda: set(ids) <= {one.event_id for one in sink.arrivals})
            await settled(gateway)
            assert len(set(ids)) == 3
            numbers = [one.attempt for one in sink.arrivals if one.event_id == ids[1]]
            assert numbers == sorted(set(numbers))


async def settled(gateway: Gateway, within: float = 40) -> None:
    """Wait until nothing waits for `crm`, and it is active."""
    async with asyncio.timeout(within):
        while True:
            crm = (await gateway.targets())["crm"]
            if (crm["state"], crm["held"], crm["oldest_pending_at"]) == ("active", 0, None):
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.row("F30")
async def test_a_machine_that_starts_ten_years_ahead_loses_nothing_when_it_is_put_right(tmp_path: Path) -> None:
    """What was delivered long ago is not deleted at once by the wrong clock, and what it left waiting, throttled and
    disabled is delivered within seconds of a start by the right one."""
    clock = SetClock(tmp_path)
    is_up = True

    async def answer(_: Arrival) -> int:
        return 200 if is_up else 500

    async with Sink(answer) as sink:
        gateway = Gateway(config_of(tmp_path, sink))
        gateway.environ = clock.environ
        async with gateway:
            _, old = await gateway.post(*webhook(1))
            await settled(gateway)
            await gateway.kill()
            clock.set(YEARS)
            is_up = False
            await gateway.start()
            answers = [await gateway.post(*webhook(number)) for number in range(2, 12)]
            await until(lambda: bool(gateway.said("target.disabled")), within=40)
            assert gateway.said("events.pruned") == []
            assert await shown(gateway, old["id"])
            await gateway.kill()
            clock.set(timedelta(0))
            is_up = True
            await gateway.start()
            await settled(gateway)
            assert {one["id"] for _, one in answers} <= set(sink.ids("crm"))
            assert await shown(gateway, old["id"])
            async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/api/v1/targets") as reply:
                text = await reply.text()
            assert str((datetime.now(UTC) + YEARS).year) not in text


async def shown(gateway: Gateway, event_id: str) -> bool:
    """Whether an event is there."""
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/api/v1/events/{event_id}") as answer:
        return answer.status == 200


async def freeze(gateway: Gateway, seconds: float) -> None:
    """Stop the process for so long: the fault itself."""
    gateway.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    gateway.signal(signal.SIGCONT)


async def frozen(home: Path, seconds: float, times: int) -> None:
    """Freeze a busy relay several times, and see that nobody is blamed for it."""
    under_way = most = 0
    is_frozen = asyncio.Event()

    async def answer(arrival: Arrival) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if arrival.attempt == 1:
            await is_frozen.wait()  # it answers while the relay stands still
        under_way -= 1
        return 200

    async with Sink(answer) as sink:
        config = write_config(home / "c.yaml", sink, targets={"crm": ", timeout: 5s, concurrency: 4"})
        async with Gateway(config) as gateway:
            numbers = iter(range(10**6))
            ids: list[str] = []
            for _ in range(times):
                is_frozen.clear()
                posts = [gateway.post(*webhook(next(numbers))) for _ in range(12)]
                ids += [told["id"] for _, told in await asyncio.gather(*posts)]
                await until(lambda: under_way == 4)
                late = asyncio.create_task(gateway.post(*webhook(next(numbers))))
                await asyncio.sleep(0)
                freezing = asyncio.create_task(freeze(gateway, seconds))
                await asyncio.sleep(0.2)
                is_frozen.set()
                await freezing
                status, told = await late
                assert status in (200, 503)  # never the sender's own fault
                ids += [told["id"]] if status == 200 else []
                await settled(gateway)
            assert most <= 4
            await until(lambda: set(ids) <= set(sink.ids("crm")))
            assert len(sink.arrivals) == len(set(sink.ids("crm")))  # what was answered meanwhile counts: no copies
            outcomes = {line["outcome"] for line in gateway.said("delivery.attempted")}
            assert outcomes <= {"delivered", "interrupted"}
            assert gateway.said("target.disabled") == gateway.said("store.unavailable") == []
            crm = (await gateway.targets())["crm"]
            assert (crm["state"], crm["failures"]) == ("active", 0)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.row("F29")
async def test_a_relay_that_is_frozen_again_and_again_blames_nobody(tmp_path: Path) -> None:
    """Longer than the target's timeout each time: no failure is counted, no storm follows, no sender is refused."""
    await frozen(tmp_path, 6.5, 2)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.row("F29")
async def test_a_relay_that_is_frozen_for_a_minute_blames_nobody(tmp_path: Path) -> None:
    """The same for a real minute, longer than every deadline."""
    await frozen(tmp_path, float(os.environ.get("RELAY_FREEZE_S", "60")), 2)
