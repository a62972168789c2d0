"""Promise 1 and 4, on the installed command: nothing answered is lost, and copies stay within their bound."""

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config


@pytest.mark.row("F1", "B65")
async def test_killed_after_the_answer_it_delivers_after_a_start(tmp_path: Path) -> None:
    """An answered event is delivered, though the process was killed before it could send anything."""
    async with Sink() as sink:
        port = sink.port
    sink = Sink(port=port)  # nobody listens on the port for now
    async with Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        status, answer = await gateway.post(*webhook(1))
        await gateway.kill()
        assert status == 200
        async with sink:
            await gateway.start()
            await until(lambda: bool(sink.arrivals))
            assert sink.ids("crm") == [answer["id"]]


@pytest.mark.row("F1")
async def test_killed_while_the_target_withholds_its_answer_it_sends_a_copy(tmp_path: Path) -> None:
    """An attempt whose answer never came is made again: same event id, a higher attempt number."""
    asked = asyncio.Event()

    async def withhold_the_first(arrival: Arrival) -> int:
        if arrival.attempt == 1:
            asked.set()
            await asyncio.sleep(60)
        return 200

    async with Sink(withhold_the_first) as sink, Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        _, answer = await gateway.post(*webhook(1))
        await asyncio.wait_for(asked.wait(), 20)
        await gateway.kill()
        await gateway.start()
        await until(lambda: len(sink.arrivals) == 2)
        assert [(one.event_id, one.attempt) for one in sink.arrivals] == [(answer["id"], 1), (answer["id"], 2)]
        assert sink.arrivals[0].body == sink.arrivals[1].body


@pytest.mark.row("F1", "B22")
async def test_killed_between_the_targets_answer_and_its_record_it_sends_one_copy(tmp_path: Path) -> None:
    """The target had answered 200, the record was not written: exactly one copy follows, numbered on."""
    gateway = Gateway(tmp_path / "config.yaml")

    async def freeze_the_relay_then_answer(arrival: Arrival) -> int:
        if arrival.attempt == 1:
            gateway.signal(signal.SIGSTOP)  # it cannot read the answer that it now gets
        return 200

    async with Sink(freeze_the_relay_then_answer) as sink:
        write_config(gateway.config, sink)
        async with gateway:
            post = asyncio.create_task(gateway.post(*webhook(1)))
            await until(lambda: len(sink.arrivals) == 1)
            await asyncio.wait([post], timeout=0.2)
            await gateway.kill()
            await asyncio.gather(post, return_exceptions=True)
            await gateway.start()
            await until(lambda: len(sink.arrivals) == 2)
            await until(lambda: bool(gateway.said("delivery.attempted")))
            await gateway.kill()
            await gateway.start()
            assert [one.attempt for one in sink.arrivals] == [1, 2]
            assert len(set(sink.ids("crm"))) == 1


@pytest.mark.slow
@pytest.mark.row("B71")
async def test_a_disabled_target_is_still_disabled_after_a_kill(tmp_path: Path) -> None:
    """Disabling survives SIGKILL, its events are held, and `enable` delivers them."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        async with aiohttp.ClientSession() as session:
            await session.post(f"{gateway.admin}/api/v1/targets/crm/disable")
        _, answer = await gateway.post(*webhook(1))
        await gateway.kill()
        await gateway.start()
        crm = (await gateway.targets())["crm"]
        assert (crm["state"], crm["held"], sink.arrivals) == ("disabled", 1, [])
        async with aiohttp.ClientSession() as session:
            await session.post(f"{gateway.admin}/api/v1/targets/crm/enable")
        await until(lambda: sink.ids("crm") == [answer["id"]])
