"""Promise 1 and 4, on the installed command: nothing answered is lost, and copies stay within their bound."""

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
from collections import Counter
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


def in_flight(home: Path, copy: Path) -> list[tuple[str, str]]:
    """Event and target of each delivery that is claimed in the store that a kill has left; the files stay untouched."""
    copy.mkdir()
    for file in home.glob("*.db*"):
        shutil.copy(file, copy)
    (found,) = copy.glob("*.db")
    with contextlib.closing(sqlite3.connect(found)) as db:
        query = "SELECT e.id, d.target FROM delivery d JOIN event e ON e.seq = d.event_seq WHERE d.state = 'in_flight'"
        return db.execute(query).fetchall()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.row("F1", "B65")
async def test_a_dozen_kills_under_load_lose_nothing_that_was_answered(tmp_path: Path) -> None:
    """Every answered event reaches each target, and copies stay within one for each delivery in flight at a kill: what
    the target has seen and the store has not recorded yet."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    answered: set[str] = set()
    claimed: Counter[str] = Counter()
    async with (
        Sink() as sink,
        Gateway(write_config(tmp_path / "config.yaml", sink, targets={"crm": "", "books": "", "mail": ""})) as gateway,
    ):
        numbers = iter(range(1_000_000))
        stop = asyncio.Event()

        async def send() -> None:
            async with aiohttp.ClientSession() as session:
                while not stop.is_set():
                    source, body, headers = webhook(next(numbers))
                    try:
                        async with session.post(
                            f"{gateway.hooks}/hooks/{source}", data=body, headers=headers
                        ) as answer:
                            if answer.status == 200:
                                answered.add((await answer.json())["id"])
                    except (aiohttp.ClientError, OSError):
                        await asyncio.sleep(0.02)

        senders = [asyncio.create_task(send()) for _ in range(8)]
        for number in range(12):
            await asyncio.sleep(rng.uniform(0.1, 0.6))
            await gateway.kill()
            for event_id, target in in_flight(tmp_path, tmp_path / f"kill-{number}"):
                claimed[target] += event_id in sink.ids(target)
            await gateway.start()
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*senders)
        for target in ("crm", "books", "mail"):
            await until(lambda target=target: answered <= set(sink.ids(target)), within=60)
            copies = len(sink.ids(target)) - len(set(sink.ids(target)))
            assert copies <= claimed[target]
        assert len(answered) > 100


@pytest.mark.slow
@pytest.mark.row("B71", "P5")
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
