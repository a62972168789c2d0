"""Section 'shutdown and start' of the contract, on the installed command."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config


async def test_a_stop_lets_attempts_under_way_finish_and_exits_with_0(tmp_path: Path) -> None:
    """SIGTERM: the attempt under way is finished and recorded; nothing is sent again afterwards."""
    release = asyncio.Event()

    async def answer_when_released(_: Arrival) -> int:
        await release.wait()
        return 200

    async with Sink(answer_when_released) as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        await gateway.post(*webhook(1))
        await until(lambda: len(sink.arrivals) == 1)
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopping")))
        release.set()
        assert await gateway.ended() == 0
        assert [line["outcome"] for line in gateway.said("delivery.attempted")] == ["delivered"]
        assert gateway.said("relay.stopped")
        await gateway.start()
        assert (await gateway.targets())["crm"]["pending"] == 0
        assert len(sink.arrivals) == 1


@pytest.mark.slow
@pytest.mark.row("B68", "F31")
async def test_an_attempt_that_outlasts_the_stop_is_interrupted_and_made_again(tmp_path: Path) -> None:
    """What `drain_timeout` cuts off spends no step and is sent again after the next start."""
    forever = asyncio.Event()

    async def hang_at_first(arrival: Arrival) -> int:
        if arrival.attempt == 1:
            await forever.wait()
        return 200

    async with Sink(hang_at_first) as sink:
        config = write_config(tmp_path / "c.yaml", sink, server="drain_timeout: 500ms")
        async with Gateway(config) as gateway:
            _, answer = await gateway.post(*webhook(1))
            await until(lambda: len(sink.arrivals) == 1)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended(within=25) == 0
            assert [line["outcome"] for line in gateway.said("delivery.attempted")] == ["interrupted"]
            forever.set()
            await gateway.start()
            await until(lambda: len(sink.arrivals) == 2)
            assert (sink.arrivals[1].event_id, sink.arrivals[1].attempt) == (answer["id"], 2)


@pytest.mark.row("B73", "F31")
async def test_a_second_signal_leaves_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """Twice SIGTERM does not wait for a hung target; the event is delivered after the next start."""
    forever = asyncio.Event()

    async def hang_at_first(arrival: Arrival) -> int:
        if arrival.attempt == 1:
            await forever.wait()
        return 200

    async with Sink(hang_at_first) as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        _, answer = await gateway.post(*webhook(1))
        await until(lambda: len(sink.arrivals) == 1)
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopping")))
        before = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 1
        assert time.monotonic() - before < 10  # drain_timeout is 20 s
        assert [line["exit_code"] for line in gateway.said("relay.stopped")] == [1]
        forever.set()
        await gateway.start()
        await until(lambda: len(sink.arrivals) == 2)
        assert sink.ids("crm") == [answer["id"]] * 2


@pytest.mark.row("H56")
async def test_while_it_stops_new_webhooks_are_not_acknowledged(tmp_path: Path) -> None:
    """During a drain the port is closed or says 503; a 2xx is never given."""
    release = asyncio.Event()

    async def answer_when_released(_: Arrival) -> int:
        await release.wait()
        return 200

    async with Sink(answer_when_released) as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        await gateway.post(*webhook(1))
        await until(lambda: len(sink.arrivals) == 1)
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopping")))
        try:
            status, _ = await gateway.post(*webhook(2))
        except (aiohttp.ClientError, OSError):
            status = 503
        assert status == 503
        release.set()
        assert await gateway.ended() == 0


@pytest.mark.slow
async def test_a_request_whose_body_still_comes_is_answered(tmp_path: Path) -> None:
    """SIGTERM cuts no request: its body may take `body_timeout`, and what is committed then is answered 200."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        _, body, headers = webhook(1)
        host, _, port = gateway.hooks.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"POST /hooks/shop HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body[:3])
        await writer.drain()
        await asyncio.sleep(0.2)  # the head is being read by then; nothing outside shows it
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopping")))
        await asyncio.sleep(4)  # longer than a commit may take, shorter than a body may
        writer.write(body[3:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert await gateway.ended(within=25) == 0
        await gateway.start()
        await until(lambda: len(sink.arrivals) == 1)


@pytest.mark.row("H62")
async def test_while_it_stops_it_says_that_it_is_not_ready(tmp_path: Path) -> None:
    """`/readyz` answers 503 with the reason as long as attempts under way are waited for; `/healthz` stays 200."""
    release = asyncio.Event()

    async def answer_when_released(_: Arrival) -> int:
        await release.wait()
        return 200

    async with Sink(answer_when_released) as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        await gateway.post(*webhook(1))
        await until(lambda: len(sink.arrivals) == 1)
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopping")))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{gateway.admin}/readyz") as answer:
                assert (answer.status, (await answer.json())["reasons"]) == (503, ["draining"])
            async with session.get(f"{gateway.admin}/healthz") as answer:
                assert answer.status == 200
        release.set()
        assert await gateway.ended() == 0


@pytest.mark.slow
@pytest.mark.row("F11", "C53")
async def test_a_second_relay_on_the_same_store_is_told_so(tmp_path: Path) -> None:
    """Exit 75, naming the process that has the store; the first goes on."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as first:
        second = Gateway(first.config)
        with pytest.raises(AssertionError, match=f"in use by another relay \\(process {first.process.pid}\\)"):
            await second.start()
        assert await second.ended() == 75
        status, _ = await first.post(*webhook(1))
        assert status == 200


@pytest.mark.row("C50")
async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """Exit 69 and the address; the store is let go of."""
    async with Sink() as sink:
        config = write_config(tmp_path / "c.yaml", sink)
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{sink.port}", 1))
        gateway = Gateway(config)
        with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{sink.port}: it is in use"):
            await gateway.start()
        assert await gateway.ended() == 69
        assert len(gateway.said("relay.start_refused")) == 1
        assert not gateway.said("store.unavailable"), "the store was taken down on purpose"


@pytest.mark.parametrize("closed", [">&- 2>&- <&-", "2>&-", ">&-", "<&-"])
async def test_closed_standard_streams_are_nobody_elses(tmp_path: Path, closed: str) -> None:
    """It runs, its files have other numbers than the standard streams, and a stop ends it tidily."""
    async with Sink() as sink:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = write_config(tmp_path / "c.yaml", sink)
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "relay", "run", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await until(lambda: _listens(port) or process.returncode is not None)
            assert {Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in range(3)} == {Path(os.devnull)}
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.row("F8", "C53")
@pytest.mark.parametrize(
    "damage",
    [
        "emptied",
        *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("vanished", "truncated", "overwritten")),
    ],
)
async def test_a_store_that_is_not_what_it_was_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    """Exit 74 with the way out; `--new-store` sets the remains aside and starts afresh."""
    store = tmp_path / "relay.db"
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        await gateway.post(*webhook(1))
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        match damage:
            case "vanished":
                store.unlink()
            case "emptied":
                store.write_bytes(b"")
            case "truncated":
                store.write_bytes(store.read_bytes()[:8192])
            case "overwritten":
                store.write_bytes(b"\xff" * 100 + store.read_bytes()[100:])
        before = store.read_bytes() if store.exists() else None
        with pytest.raises(AssertionError, match=r"relay\.db.*--new-store"):
            await gateway.start()
        assert await gateway.ended() == 74
        assert (store.read_bytes() if store.exists() else None) == before
        await gateway.start("--new-store")
        assert (await gateway.post(*webhook(1)))[1]["duplicate"] is False


@pytest.mark.slow
@pytest.mark.row("B40")
async def test_deliveries_of_a_target_that_left_the_config_are_held_and_shown(tmp_path: Path) -> None:
    """Told at the start, shown as held, and delivered when the target is back."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink, targets={"crm": ""})) as gateway:
        async with aiohttp.ClientSession() as session:
            await session.post(f"{gateway.admin}/api/v1/targets/crm/disable")
        _, answer = await gateway.post(*webhook(1))
        await gateway.kill()
        write_config(gateway.config, sink, targets={"other": ""})
        await gateway.start()
        assert [(line["target"], line["held"]) for line in gateway.said("target.unknown")] == [("crm", 1)]
        shown = (await gateway.targets())["crm"]
        assert (shown["state"], shown["held"]) == ("disabled", 1)
        async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/metrics") as answer_:
            assert 'relay_deliveries{state="held",target="crm"} 1.0' in await answer_.text()
        await gateway.kill()
        write_config(gateway.config, sink, targets={"crm": ""})
        await gateway.start()
        async with aiohttp.ClientSession() as session:
            await session.post(f"{gateway.admin}/api/v1/targets/crm/enable")
        await until(lambda: sink.ids("crm") == [answer["id"]])
