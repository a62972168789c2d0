"""Hours under load, with a fault every half minute; by hand: `RELAY_SOAK_MINUTES=240 pytest -m soak -s tests/program`.

Law: whatever happens, what was answered 2xx arrives, and what the process holds of memory, descriptors and disk stays
where it was. The seed is printed; `RELAY_SOAK_SEED` repeats a run's order of faults.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.support.floods import MIB, descriptors, memory, silent
from tests.support.program import KEY, Arrival, Gateway, Sink, until, write_config

MINUTES = float(os.environ.get("RELAY_SOAK_MINUTES", "3"))
SEED = int(os.environ.get("RELAY_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
PACE = float(os.environ.get("RELAY_SOAK_RATE", "50"))
"""Webhooks a second."""
BETWEEN = min(30.0, MINUTES * 60 / 8)
"""Seconds between two faults."""
HEADERS = {"X-Key": KEY, "Content-Type": "application/json"}


@dataclass
class Run:
    """What is known of a run."""

    gateway: Gateway
    sink: Sink
    rng: random.Random
    taken: set[str] = field(default_factory=set)
    arrived: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    answer: int = 200
    hang: float = 0.0

    async def target(self, arrival: Arrival) -> int:
        """What the target does now; what it takes is kept as a number alone, so that the run itself does not grow."""
        await asyncio.sleep(self.hang)
        if self.answer == 200:
            self.arrived.add(arrival.event_id)
        self.sink.arrivals.clear()
        return self.answer

    async def load(self, ends: float) -> None:
        """Post at an even pace, whatever comes back."""
        under_way: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(15)) as session:
            for number in itertools.count():
                if time.monotonic() > ends:
                    break
                under_way.add(one := asyncio.create_task(self.post(session, number)))
                one.add_done_callback(under_way.discard)
                await asyncio.sleep(1 / PACE)
            await asyncio.gather(*under_way)

    async def post(self, session: aiohttp.ClientSession, number: int | str, size: int = 200) -> None:
        body = b'{"id": "%b", "pad": "%b"}' % (str(number).encode(), b"x" * size)
        try:
            async with session.post(f"{self.gateway.hooks}/hooks/shop", data=body, headers=HEADERS) as answer:
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.taken.add((await answer.json())["id"])
                else:
                    assert answer.status == 503
                    assert "Retry-After" in answer.headers
        except (aiohttp.ClientError, TimeoutError):
            self.statuses[0] += 1


async def kill(run: Run) -> None:
    await run.gateway.kill()
    await run.gateway.start()


async def restart(run: Run) -> None:
    run.gateway.signal(signal.SIGTERM)
    assert await run.gateway.ended() == 0
    await run.gateway.start()


async def freeze(run: Run) -> None:
    run.gateway.signal(signal.SIGSTOP)
    await asyncio.sleep(3)
    run.gateway.signal(signal.SIGCONT)


async def fail(run: Run) -> None:
    run.answer = run.rng.choice([500, 404, 429, 301])
    await asyncio.sleep(5)
    run.answer = 200


async def hang(run: Run) -> None:
    run.hang = 3.0
    await asyncio.sleep(6)
    run.hang = 0.0


async def crowd(run: Run) -> None:
    with silent(run.gateway.hooks, 800), silent(run.gateway.admin, 200):
        await asyncio.sleep(3)


async def drip(run: Run) -> None:
    head = f"POST /hooks/shop HTTP/1.1\r\nHost: a\r\nX-Key: {KEY}\r\nContent-Length: 1000000\r\n\r\n".encode()
    with silent(run.gateway.hooks, 200, head + b"x" * 60_000):
        await asyncio.sleep(3)


async def garble(run: Run) -> None:
    with silent(run.gateway.hooks, 300, bytes(run.rng.randbytes(500))):
        await asyncio.sleep(1)


async def burst(run: Run) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        name = run.rng.random()
        await asyncio.gather(*(run.post(session, f"burst-{name}-{n}", 400_000) for n in range(100)))


async def reload(run: Run) -> None:
    run.gateway.signal(signal.SIGHUP)


async def backup(run: Run) -> None:
    with silent(run.gateway.admin, 1, b"GET /api/v1/backup HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        await asyncio.sleep(3)


FAULTS: tuple[Callable[[Run], Awaitable[None]], ...] = (
    *(kill, restart, freeze, fail, hang, crowd, drip, garble, burst, reload, backup),
)


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 600)
@pytest.mark.row("F40")
async def test_faults_under_load_for_as_long_as_it_is_asked(tmp_path: Path) -> None:
    """All that was answered 2xx arrives; memory, descriptors and the store's file are back where they were."""
    sink = Sink()
    config = tmp_path / "config.yaml"
    run = Run(Gateway(config), sink, random.Random(SEED))
    sink.answer = run.target
    async with sink:
        extra = ", disable_after: never, retry: {schedule: [1s, 2s, 5s, 5s, 5s, 5s, 5s, 5s, 5s, 5s, 5s, 5s]}"
        write_config(config, sink, targets={"crm": extra}, server="header_timeout: 5s, body_timeout: 5s")
        config.write_text(config.read_text().replace('relay.db"}', 'relay.db", retention: {delivered: 1m}}'))
        async with run.gateway:
            began = time.monotonic()
            ends = began + MINUTES * 60
            load = asyncio.create_task(run.load(ends))
            await asyncio.sleep(BETWEEN)
            quiet, files = memory(run.gateway.process.pid), descriptors(run.gateway.process.pid)
            while time.monotonic() + BETWEEN < ends:
                fault = run.rng.choice(FAULTS)
                await fault(run)
                pid = run.gateway.process.pid
                at = round(time.monotonic() - began)
                print(f"{at:6} s  {fault.__name__:8} {memory(pid):6.0f} MiB  {descriptors(pid):4} files", run.statuses)
                await asyncio.wait([load], timeout=BETWEEN)
            await load
            pid = run.gateway.process.pid
            await until(lambda: run.taken <= run.arrived, within=180)
            await until(lambda: descriptors(pid) <= files + 16)
            assert memory(pid) < quiet + 100
            assert (tmp_path / "relay.db").stat().st_size < 400 * MIB
            assert (tmp_path / "relay.db-wal").stat().st_size < 80 * MIB
            assert run.statuses[200] > run.statuses.total() / 2
            for line in ("relay.crashed", "request.failed", "delivery.loop_failed", "http.error", "asyncio.error"):
                assert run.gateway.said(line) == [], f"seed {SEED}"
            with contextlib.suppress(ProcessLookupError):
                run.gateway.signal(signal.SIGTERM)
            assert await run.gateway.ended() == 0
