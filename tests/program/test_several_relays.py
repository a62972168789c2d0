"""Several relays on one PostgreSQL database: one of them killed, frozen, or told to stop, while webhooks come in.

Real: the installed command, its processes, the server, senders and targets on loopback. A lease that ends is one whose
row is set back: to wait for it would take minutes.
"""

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.postgres import needed, server
from tests.support.postgres_looking import execute, rows
from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config

LEASES_END = "UPDATE relay.delivery SET lease_until = 0 WHERE state = 'in_flight' AND claim >> 32 = {life}"


@pytest.fixture
def url() -> Iterator[str]:
    """A database of its own."""
    needed()
    made = server().create_database()
    yield made
    server().drop_database(made)


@contextlib.asynccontextmanager
async def relays(
    home: Path, url: str, sink: Sink, number: int, targets: dict[str, str]
) -> AsyncIterator[list[Gateway]]:
    """So many relays on one database, from one config."""
    config = write_config(home / "config.yaml", sink, targets=targets)
    lines = [
        f'store: {{url: "{url}"}}' if line.startswith("store:") else line for line in config.read_text().split("\n")
    ]
    config.write_text("\n".join(lines))
    gateways = [Gateway(config) for _ in range(number)]
    async with contextlib.AsyncExitStack() as ending:
        for gateway in gateways:
            await ending.enter_async_context(gateway)
        yield gateways


def life_of(gateway: Gateway, url: str) -> int:
    """The life that a relay leads among the nodes."""
    ((life,),) = rows(url, "SELECT life FROM relay.node WHERE name LIKE '%:' || $1", str(gateway.process.pid))
    return int(life)


async def sent(gateways: list[Gateway], numbers: range, rng: random.Random) -> dict[int, str]:
    """Send webhooks to any of the relays, each again to another one until it is answered; their event ids."""
    answered: dict[int, str] = {}
    left = list(numbers)

    async def sender(session: aiohttp.ClientSession) -> None:
        while left:
            number = left.pop()
            source, body, headers = webhook(number)
            while number not in answered:
                hooks = rng.choice(gateways).hooks
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with session.post(f"{hooks}/hooks/{source}", data=body, headers=headers) as answer:
                        if answer.status == 200:
                            answered[number] = (await answer.json())["id"]
                            continue
                await asyncio.sleep(0.02)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        await asyncio.gather(*(sender(session) for _ in range(8)))
    return answered


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.timeout(180)
async def test_a_node_that_is_killed_loses_nothing_of_what_was_answered(tmp_path: Path, url: str, number: int) -> None:
    """Whichever it is: the others accept, and deliver what it had claimed when its leases have ended; a target has a
    copy at most for each delivery that was in flight."""
    rng = random.Random(number)
    async with Sink() as sink, relays(tmp_path, url, sink, number, {"crm": "", "books": ""}) as gateways:
        sending = asyncio.create_task(sent(gateways, range(600), rng))
        await until(lambda: len(sink.arrivals) > 200)
        victim = gateways[rng.randrange(number)]
        life = life_of(victim, url)
        await victim.kill()
        left = rows(url, f"SELECT count(*) FROM relay.delivery WHERE state = 'in_flight' AND claim >> 32 = {life}")
        execute(url, LEASES_END.format(life=life))
        answered = await sending
        await until(lambda: all(len(set(sink.ids(name))) >= 600 for name in ("crm", "books")), within=90)
        await until(lambda: rows(url, "SELECT count(*) FROM relay.delivery WHERE state <> 'delivered'") == [(0,)])
        for name in ("crm", "books"):
            assert set(sink.ids(name)) >= set(answered.values())
        copies = sum(times - 1 for name in ("crm", "books") for times in Counter(sink.ids(name)).values())
        assert copies <= left[0][0] + 8 * 2, "a claim is made just before what it is for is sent"
        assert rows(url, "SELECT count(*) FROM relay.event") == [(600,)]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_node_that_is_frozen_beyond_its_lease_settles_nothing(tmp_path: Path, url: str) -> None:
    """Another one has delivered meanwhile: what the frozen one finds when it wakes up changes nothing, and the target
    has the one copy that was under way."""
    release = asyncio.Event()
    held: list[Arrival] = []

    async def answer(arrival: Arrival) -> int:
        if not held:
            held.append(arrival)
            await release.wait()
        return 200

    async with Sink(answer) as sink, relays(tmp_path, url, sink, 2, {"crm": ""}) as gateways:
        frozen, other = gateways
        _, told = await frozen.post(*webhook(1))
        await until(lambda: bool(held))
        frozen.signal(signal.SIGSTOP)
        execute(url, LEASES_END.format(life=life_of(frozen, url)))
        await until(lambda: rows(url, "SELECT state FROM relay.delivery") == [("delivered",)], within=60)
        release.set()
        frozen.signal(signal.SIGCONT)
        _, second = await frozen.post(*webhook(2))
        await until(lambda: sink.ids("crm") == [told["id"], told["id"], second["id"]])
        assert [arrival.attempt for arrival in sink.arrivals] == [1, 2, 1]
        assert rows(url, "SELECT number, outcome FROM relay.attempt WHERE number = 2") == [(2, "delivered")]
        assert [line["attempt"] for line in other.said("delivery.attempted")] == [2]


async def test_a_node_that_stops_gives_back_what_it_has(tmp_path: Path, url: str) -> None:
    """It ends with 0, and the other one delivers at once what it left."""
    async with Sink() as sink, relays(tmp_path, url, sink, 2, {"crm": ", concurrency: 1"}) as gateways:
        answered = await sent(gateways[:1], range(100), random.Random(1))
        gateways[0].signal(signal.SIGTERM)
        assert await gateways[0].ended() == 0
        await until(lambda: len(sink.ids("crm")) >= 100)
        assert Counter(sink.ids("crm")) == Counter(answered.values())
        await until(lambda: rows(url, "SELECT count(*) FROM relay.delivery WHERE state <> 'delivered'") == [(0,)])
        assert Counter(sink.ids("crm")) == Counter(answered.values())


async def test_the_status_says_which_node_speaks(tmp_path: Path, url: str) -> None:
    """And which others there are; a password in the URL is said nowhere."""
    secret = url.replace("postgres@", "postgres:a-password-9f31@")
    async with Sink() as sink, relays(tmp_path, secret, sink, 2, {"crm": ""}) as gateways:
        for gateway in gateways:
            async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/api/v1/status") as answer:
                store = (await answer.json())["store"]
                async with session.post(f"{gateway.admin}/api/v1/reload") as reload:
                    assert (await reload.json())["node"] == store["node"]
            await until(lambda: bool(gateway.said("config.reloaded")))  # noqa: B023 - called before the next turn
            assert [line["node"] for line in gateway.said("config.reloaded")] == [store["node"]]
            assert store["node"].endswith(f":{gateway.process.pid}")
            assert store["url"] == secret.replace("a-password-9f31", "***")
            assert "a-password-9f31" not in str(gateway.lines)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_database_that_is_not_there_is_told_and_refused(tmp_path: Path) -> None:
    """A start waits for a server for a while, says so, and ends with the code of an unusable store."""
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink)
        text = config.read_text().replace(f"sqlite:///{tmp_path}/relay.db", "postgresql://nobody@127.0.0.1:1/relay")
        config.write_text(text)
        gateway = Gateway(config)
        with pytest.raises(AssertionError, match=r"127\.0\.0\.1:1/relay"):
            await gateway.start(within=60)  # of which it looks for the server for 15
        assert await gateway.ended() == 74
        assert len(gateway.said("store.unavailable")) == 1
