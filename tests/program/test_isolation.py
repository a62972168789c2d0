"""Targets do not slow each other down: what the healthy ones get beside four that are ill, as against what they get
alone."""

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import aiohttp
import pytest

from tests.support.program import KEY, Gateway, until
from tests.support.scripted_target import Received, ScriptedServer, black_hole, endless, raw, scripted, status

WELL = tuple(f"well{number}" for number in range(6))
ILL = ("hung", "failing", "dripping", "lost")
EVENTS = 120
"""In one block."""
RATE = 100.0
"""Events a second, each for all targets."""
ROUNDS = 9
"""The machine may be busy with other things: of so many the middle one counts, and fewer do where that is plain."""
SLOTS = 8
"""Attempts at one target at a time, which are not pending meanwhile."""
MIB = 1024 * 1024

DRIP = endless(b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b"x", pause=0.1)


class Clock:
    """When each event was posted, and when each healthy target had it."""

    def __init__(self) -> None:
        self.posted: dict[str, float] = {}
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        """Seconds from the post to the arrival, by the relay that carried it."""

    async def arrived(self, request: Received, writer: asyncio.StreamWriter) -> None:
        """Answer as a healthy target, and note the time."""
        number = json.loads(request.body)["id"]
        self.took[number.partition("-")[0]].append(asyncio.get_running_loop().time() - self.posted[number])
        await status(200)(request, writer)

    def close(self, relay: str) -> float:
        """End a block: what 99 of its hundred did not exceed, in milliseconds."""
        took = sorted(self.took.pop(relay))
        return took[math.ceil(len(took) * 0.99) - 1] * 1000


def config(home: Path, urls: dict[str, str]) -> Path:
    """A config whose one source posts to all of these."""
    home.mkdir()
    path = home / "config.yaml"
    lines = [
        'server: {listen: "127.0.0.1:0"}',
        'admin: {listen: "127.0.0.1:0"}',
        f'store: {{url: "sqlite:///{home}/relay.db"}}',
        f'sources: {{shop: {{provider: custom, secrets: ["{KEY}"], verify: {{scheme: api_key, header: X-Key}}}}}}',
        "targets:",
        *(f'  {name}: {{url: "{url}"}}' for name, url in urls.items()),
        f"routes: [{{name: all, from: [shop], to: [{', '.join(urls)}]}}]",
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


@asynccontextmanager
async def ill_targets() -> AsyncIterator[dict[str, str]]:
    """One that never answers, one that always fails, one that drips, and one that takes no connection."""
    async with AsyncExitStack() as stack:
        hung = await stack.enter_async_context(scripted(raw(then="hang")))
        failing = await stack.enter_async_context(scripted(status(500)))
        dripping = await stack.enter_async_context(scripted(DRIP))
        lost = stack.enter_context(black_hole())
        urls = (hung.url, failing.url, dripping.url, f"http://127.0.0.1:{lost}/hooks")
        yield dict(zip(ILL, urls, strict=True))


async def block(gateway: Gateway, clock: Clock, session: aiohttp.ClientSession, relay: str, first: int) -> None:
    """Post events at a steady rate, and wait until the healthy targets have them all."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def post(number: int) -> None:
        await asyncio.sleep(began + (number - first) / RATE - loop.time())
        name = f"{relay}-{number}"
        clock.posted[name] = loop.time()
        body, headers = json.dumps({"id": name}), {"X-Key": KEY}
        async with session.post(f"{gateway.hooks}/hooks/shop", data=body, headers=headers) as answer:
            assert answer.status == 200

    await asyncio.gather(*(post(number) for number in range(first, first + EVENTS)))
    await until(lambda: len(clock.took[relay]) == EVENTS * len(WELL))


def memory(gateway: Gateway) -> int:
    """What the process holds, in bytes."""
    status_ = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status_.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.row("F24", "F14", "F15", "F13")
async def test_healthy_targets_do_not_notice_that_others_are_ill(tmp_path: Path) -> None:
    """Six healthy targets beside four ill ones have 99 of 100 events within twice the time that they take without
    them; the ill ones lose nothing meanwhile, and what waits for them waits on disk.

    Two relays in one run, one with the ill targets and one without, take turns at the same rate on the same machine.
    """
    clock = Clock()
    server: ScriptedServer
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(scripted(clock.arrived))
        healthy = {name: f"http://127.0.0.1:{server.port}/{name}" for name in WELL}
        ill = await stack.enter_async_context(ill_targets())
        alone = await stack.enter_async_context(Gateway(config(tmp_path / "alone", healthy)))
        beside = await stack.enter_async_context(Gateway(config(tmp_path / "beside", healthy | ill)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        relays = {"alone": alone, "beside": beside}
        p99s: dict[str, list[float]] = {relay: [] for relay in relays}
        for number in range(ROUNDS + 1):
            for relay, gateway in relays.items():
                await block(gateway, clock, session, relay, number * EVENTS)
                p99s[relay].append(clock.close(relay))
            if number == 0:  # connections, caches, first failures
                held = memory(beside)
                p99s = {relay: [] for relay in relays}
            elif number > 1 and median(p99s["beside"]) <= 2 * median(p99s["alone"]):
                break
        print({relay: [f"{one:.1f} ms" for one in some] for relay, some in p99s.items()})
        assert median(p99s["beside"]) <= 2 * median(p99s["alone"])
        targets = await beside.targets()
        posted = (number + 1) * EVENTS
        for name in ILL:
            assert posted - SLOTS <= targets[name]["pending"] <= posted, f"{name} has lost something"
        assert {name: targets[name]["pending"] for name in WELL} == dict.fromkeys(WELL, 0)
        assert memory(beside) - held < 32 * MIB
