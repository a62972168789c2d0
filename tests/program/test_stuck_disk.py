"""A stop while the disk does not answer: the process leaves in time, and what was answered is there."""

import asyncio
import shutil
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config

TRACED = ("-f", "-qq", "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:delay_enter=90000000")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk hang")
@pytest.mark.row("F31", "B69", "B9")
async def test_a_stop_under_load_while_the_disk_hangs_ends_in_time_and_loses_nothing(tmp_path: Path) -> None:
    """No 2xx is given for what is not on the disk; SIGTERM is obeyed within 25 s although a commit never
    returns; after the next start each answered event is delivered."""

    async def answer(_: Arrival) -> int:
        await asyncio.sleep(0.05)
        return 200

    async with Sink(answer) as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        answered: set[str] = set()
        statuses: list[int] = []
        stop = asyncio.Event()

        async def send(numbers: range) -> None:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
                for number in numbers:
                    if stop.is_set():
                        return
                    source, body, headers = webhook(number)
                    try:
                        post = session.post(f"{gateway.hooks}/hooks/{source}", data=body, headers=headers)
                        async with post as reply:
                            statuses.append(reply.status)
                            if reply.status == 200:
                                answered.add((await reply.json())["id"])
                    except (aiohttp.ClientError, OSError):
                        await asyncio.sleep(0.05)

        senders = [asyncio.create_task(send(range(one, 100_000, 4))) for one in range(4)]
        await until(lambda: len(answered) > 30)
        strace = await asyncio.create_subprocess_exec(
            *("strace", *TRACED, "-p", str(gateway.process.pid), "-o", str(tmp_path / "trace")),
            stderr=asyncio.subprocess.DEVNULL,
        )
        await until(lambda: 503 in statuses, within=60)
        before = len(answered)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopped")), within=40)
        took = time.monotonic() - began
        print(f"stopped after {took:.1f} s")
        strace.kill()  # it would keep the thread that it holds up, and so the process, for as long as it is there
        assert await gateway.ended() == 0
        assert took < 40  # the contract's 25 s, on a busy machine
        stop.set()
        await asyncio.gather(*senders)
        await strace.wait()
        assert len(answered) == before
        assert set(statuses) <= {200, 503}
        await gateway.start()
        await until(lambda: answered <= set(sink.ids("crm")), within=60)
