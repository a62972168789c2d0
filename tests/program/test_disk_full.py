"""A disk without a byte left, and one whose calls the kernel itself fails: the installed command as a user runs it."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config
from tests.support.small_disk import can_mount, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OUTAGE_S = 20.0


def fill(ballast: Path) -> None:
    """Take the last byte of a file system."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for part in (bytes(1 << 16), bytes(4096), b"x"):
            with contextlib.suppress(OSError):
                while file.write(part):
                    pass


async def readiness(gateway: Gateway) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/readyz") as answer:
        return answer.status


@pytest.mark.row("F6", "B38", "B42", "B43", "B1")
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
async def test_nothing_is_sent_twice_while_a_disk_has_not_a_byte_left(tmp_path: Path) -> None:
    """Deliveries end while nothing can be written for 20 s: one copy each; with room again all is recorded and taken,
    without a restart."""
    home = tmp_path / "store"
    home.mkdir()
    answering = asyncio.Event()

    async def answer(_: Arrival) -> int:
        await answering.wait()
        return 200

    async with Sink(answer) as sink, small_disk(home, "6m") as within:
        config = write_config(tmp_path / "config.yaml", sink)
        config.write_text(config.read_text().replace(f"{tmp_path}/relay.db", f"{home}/relay.db"))
        async with Gateway(config, within=within) as gateway:
            taken = []
            for number in range(20):
                status, told = await gateway.post(*webhook(number))
                assert status == 200
                taken.append(told["id"])
            await until(lambda: len(sink.arrivals) == 8)
            ballast = Path(f"/proc/{gateway.process.pid}/root{home}/ballast")
            fill(ballast)
            answering.set()
            began, refused = time.monotonic(), 0
            while time.monotonic() - began < OUTAGE_S:
                fill(ballast.with_name("more"))
                status, told = await gateway.post(*webhook(f"late-{refused}"))
                assert status == 503
                refused += 1
                await asyncio.sleep(0.5)
            copies = Counter(sink.ids("crm"))
            assert set(copies.values()) == {1}
            assert await readiness(gateway) == 503
            assert len(gateway.said("store.unavailable")) <= 1
            ballast.unlink()
            ballast.with_name("more").unlink()
            async with asyncio.timeout(30):
                while (await gateway.post(*webhook("last")))[0] != 200:
                    await asyncio.sleep(0.2)
            await until(lambda: set(sink.ids("crm")) >= set(taken))
            await until(lambda: len(gateway.said("delivery.attempted")) == 21)
            assert set(Counter(sink.ids("crm")).values()) == {1}
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
            assert gateway.errors == b""


@contextlib.asynccontextmanager
async def ending(gateway: Gateway) -> AsyncIterator[None]:
    """End what a tracer has started, which outlives the tracer."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(gateway.said("relay.started")[0]["pid"], signal.SIGKILL)


@pytest.mark.row("F3", "F4", "B1")
@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=14",
        "fdatasync:error=ENOSPC:when=25",
        "pwrite64:error=EIO:when=400",
        "pwrite64:error=ENOSPC:when=555",
    ],
)
async def test_calls_that_the_kernel_fails_are_an_outage_that_ends(tmp_path: Path, fault: str) -> None:
    """The same as the swept faults, by the tool that people use for it: nothing of ours stands between."""
    strace = shutil.which("strace")
    assert strace is not None, "strace is needed: apt-get install strace"
    call = fault.partition(":")[0]
    traced = [strace, "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", f"trace={call}", "-e", f"inject={fault}"]
    config = tmp_path / "config.yaml"
    async with Sink() as sink, Gateway(write_config(config, sink), within=traced) as gateway, ending(gateway):
        taken = []
        for number in range(25):
            async with asyncio.timeout(30):
                while True:
                    status, told = await gateway.post(*webhook(number))
                    if status == 200:
                        break
                    assert status == 503
                    await asyncio.sleep(0.1)
            taken.append(told["id"])
        await until(lambda: set(sink.ids("crm")) >= set(taken))
        assert "(INJECTED)" in (tmp_path / "trace").read_text()
        # the tracer counts in each thread anew, and each recovery has a thread of its own
        await until(lambda: len(gateway.said("store.unavailable")) == len(gateway.said("store.recovered")) >= 1)
        assert set(Counter(sink.ids("crm")).values()) == {1}
        os.kill(gateway.said("relay.started")[0]["pid"], signal.SIGTERM)
        assert await gateway.ended() == 0
        assert gateway.errors == b""
        with closing(sqlite3.connect(tmp_path / "relay.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert {row[0] for row in db.execute("SELECT id FROM event")} == set(taken)
            assert {row[0] for row in db.execute("SELECT state FROM delivery")} == {"delivered"}
