"""Promises 1 to 4 under kills at random points: in the start, at work, in a recovery, in a stop. Every run prints its
seed; `RELAY_SEED` repeats one and `RELAY_KILLS` says how many kills there are."""

import asyncio
import contextlib
import math
import os
import random
import shutil
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.support.ledger import Answer, Copy, History, faults, summary
from tests.support.nursery import Life, Nursery, log_of
from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config

KILLS = int(os.environ.get("RELAY_KILLS", "200"))
QUICK = ", retry: {schedule: [200ms, 300ms, 500ms, 1s, 1s, 1s, 1s, 1s, 1s, 1s]}, probe: {first: 500ms, max: 1s}"
TARGETS = {"crm": "", "books": QUICK + ", timeout: 700ms", "mail": QUICK + ", concurrency: 3"}


def seeded() -> random.Random:
    """A source of chance whose seed is printed, and may be given."""
    seed = int(os.environ.get("RELAY_SEED") or random.SystemRandom().randrange(10**6))
    print(f"RELAY_SEED={seed}")
    return random.Random(seed)


_given: set[int] = set()
"""Ports that were given here: one that nobody has yet is not to be given a second time."""


def free_port() -> int:
    """A port that nobody has, outside the range from which others are given theirs."""
    for port in random.SystemRandom().sample(sorted({*range(20_000, 30_000)} - _given), 200):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise AssertionError("no port is free")


def on_ports(config: Path, hooks: int, admin: int) -> Path:
    """The same config with ports that every life has."""
    text = config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{hooks}", 1)
    config.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{admin}", 1))
    return config


class Ledger:
    """Senders that do not give up, targets that do not always take, and what is written down of both."""

    def __init__(self, home: Path, rng: random.Random) -> None:
        self.home = home
        self.rng = rng
        self.history = History(tuple(TARGETS))
        self.sink = Sink(self._answer)
        self._numbers = iter(range(10**6))
        self._images = iter(range(10**6))
        self._stop = asyncio.Event()
        self._cut: list[tuple[str, str, int]] = []

    async def _answer(self, arrival: Arrival) -> int:
        """`crm` takes all, `books` fails a fifth and hangs now and then, `mail` fails and is slow."""
        status = 200
        if arrival.target != "crm" and arrival.attempt < 4 and self.rng.random() < 0.2:
            status = self.rng.choice([500, 422, 429, 0])
        if arrival.target == "mail":
            await asyncio.sleep(self.rng.uniform(0, 0.03))
        copy = Copy(arrival.target, arrival.event_id, arrival.attempt, arrival.body, taken=status == 200)
        self.history.copies.append(copy)
        if not status:
            await asyncio.sleep(1)
        return status or 500

    @contextlib.asynccontextmanager
    async def load(self, hooks: Callable[[], str], senders: int = 5) -> AsyncIterator[None]:
        """Send until the block ends; each webhook again until it is answered, as senders do."""
        sending = [asyncio.create_task(self._send(hooks)) for _ in range(senders)]
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.gather(*sending)

    async def _send(self, hooks: Callable[[], str]) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            for number in self._numbers:
                source, body, headers = webhook(number)
                self.history.bodies[number] = body
                while not self._stop.is_set():
                    try:
                        post = session.post(f"{hooks()}/hooks/{source}", data=body, headers=headers)
                        async with post as answer:
                            if answer.status == 200:
                                told = await answer.json()
                                self.history.answers.append(Answer(number, told["id"], told["duplicate"]))
                                if self.rng.random() > 0.1:  # else it takes the answer for lost and sends again
                                    break
                    except (aiohttp.ClientError, OSError, TimeoutError):
                        await asyncio.sleep(0.02)
                if self._stop.is_set():
                    return
                await asyncio.sleep(self.rng.uniform(0.01, 0.15))  # the slowest target must be able to follow

    def killed(self) -> None:
        """Note each delivery that was under way at a kill."""
        self._cut += self._rows("state = 'in_flight'")

    def _rows(self, where: str) -> list[tuple[str, str, int]]:
        """Event, target and attempts of deliveries in the store that a kill has left, whose files stay untouched."""
        image = self.home / f"image-{next(self._images)}"
        image.mkdir()
        for file in self.home.glob("relay.db*"):
            if not file.name.endswith((".guard", "-shm")):
                shutil.copy(file, image)
        try:
            with contextlib.closing(sqlite3.connect(image / "relay.db")) as db:
                query = "SELECT e.id, d.target, d.attempts FROM delivery d JOIN event e ON e.seq = d.event_seq"
                return db.execute(f"{query} WHERE d.{where}").fetchall()
        except sqlite3.OperationalError:  # it was killed before there was a table
            return []
        finally:
            shutil.rmtree(image)

    def missing(self) -> list[tuple[str, str]]:
        """Event and target of what was answered and is not taken yet."""
        taken = {(copy.event_id, copy.target) for copy in self.history.copies if copy.taken}
        ids = {answer.event_id for answer in self.history.answers}
        return [(event_id, target) for event_id in ids for target in TARGETS if (event_id, target) not in taken]

    def all_over(self) -> bool:
        """Whether every target has what was answered."""
        return not self.missing()

    def _excuse(self) -> None:
        """Excuse a copy for each attempt that a target took although a kill came before its record, or its answer too
        late to be heard. That is seen in the end: at a kill a request may still be on its way to the target."""
        taken = {(copy.event_id, copy.target, copy.attempt) for copy in self.history.copies if copy.taken}
        with contextlib.closing(sqlite3.connect(self.home / "relay.db")) as db:
            query = """SELECT e.id, a.target, a.number FROM attempt a JOIN event e ON e.seq = a.event_seq
                WHERE a.outcome IN ('unreachable', 'interrupted')"""
            for event_id, target, attempt in {*self._cut, *db.execute(query)}:
                self.history.excused[target] += (event_id, target, attempt) in taken

    def judge(self) -> None:
        """No promise was broken, and the file is whole."""
        self._excuse()
        self.history.waiting = {(event, target) for event, target, _ in self._rows("state IN ('pending', 'dead')")}
        print(summary(self.history))
        assert faults(self.history) == []
        with contextlib.closing(sqlite3.connect(self.home / "relay.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            in_flight = db.execute("SELECT count(*) FROM delivery WHERE state = 'in_flight'").fetchone()
            assert in_flight == (0,)


async def end_one(life: Life, rng: random.Random) -> None:
    """End a life at a random point: at once, or in the stop that it was asked for once or twice."""
    await asyncio.sleep(0.005 * math.exp(rng.uniform(0, math.log(200))))  # 5 ms to 1 s, as many short as long ones
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        life.signal(signal.SIGTERM)
        await asyncio.sleep(rng.uniform(0, 0.08))
    await life.kill()


async def kill_often(home: Path, kills: int) -> None:
    """Kill so many lives under load, let the last one finish, and judge the history."""
    rng = seeded()
    ledger = Ledger(home, rng)
    hooks, admin = free_port(), free_port()
    async with ledger.sink:
        config = on_ports(write_config(home / "config.yaml", ledger.sink, targets=TARGETS), hooks, admin)
        async with Nursery() as nursery:
            async with ledger.load(lambda: f"http://127.0.0.1:{hooks}"):
                for _ in range(kills):
                    await end_one(await nursery.life(config), rng)
                    ledger.killed()
                last = await nursery.life(config)
                done = len(ledger.history.answers)
                await until(lambda: len(ledger.history.answers) > done + 20)
            try:
                await until(ledger.all_over, within=60)
            finally:
                print(ledger.missing()[:10])
            last.signal(signal.SIGTERM)
            assert await last.ended() == 0
        ledger.judge()
        assert len(ledger.history.answers) > kills // 4
        log = log_of(config).read_text(errors="replace")
        assert "Traceback" not in log
        assert "relay.crashed" not in log


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.row("F1", "B65", "B22", "B23")
async def test_hundreds_of_kills_under_load_break_no_promise(tmp_path: Path) -> None:
    """Nothing answered is lost, changed or answered twice; numbers rise; what was taken comes again only where a kill
    prevented its record."""
    await kill_often(tmp_path, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.row("F1", "F40")
async def test_thousands_of_kills_under_load_break_no_promise(tmp_path: Path) -> None:
    """The same for long enough that rare points are met."""
    await kill_often(tmp_path, 20 * KILLS)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.row("F1", "F37")
async def test_killed_while_it_makes_its_store_it_makes_it_the_next_time(tmp_path: Path) -> None:
    """However early in its first life: the next one starts, takes an event and delivers it."""
    rng = seeded()
    async with Sink() as sink, Nursery() as nursery:
        for number in range(max(10, KILLS // 8)):
            home = tmp_path / str(number)
            home.mkdir()
            hooks = free_port()
            config = on_ports(write_config(home / "config.yaml", sink), hooks, free_port())
            first = await nursery.life(config)
            await asyncio.sleep(rng.uniform(0.02, 0.25))
            await first.kill()
            second = await nursery.life(config)
            assert await answered(f"http://127.0.0.1:{hooks}"), log_of(config).read_text()
            await until(lambda number=number: len(sink.arrivals) == number + 1)
            await second.kill()


async def answered(hooks: str) -> bool:
    """Post one webhook until it is taken; False where nobody takes it for long."""
    source, body, headers = webhook(1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.post(f"{hooks}/hooks/{source}", data=body, headers=headers) as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.row("F1", "B65")
async def test_a_dozen_kills_of_the_installed_command_lose_nothing_that_was_answered(tmp_path: Path) -> None:
    """The same on the command as it is installed, each life from its own start to a kill at work."""
    rng = seeded()
    ledger = Ledger(tmp_path, rng)
    async with ledger.sink:
        config = write_config(tmp_path / "config.yaml", ledger.sink, targets=TARGETS)
        async with Gateway(config) as gateway:
            async with ledger.load(lambda: gateway.hooks):
                for _ in range(12):
                    await asyncio.sleep(rng.uniform(0.05, 0.4))
                    await gateway.kill()
                    ledger.killed()
                    await gateway.start()
                await asyncio.sleep(0.3)
            await until(ledger.all_over, within=60)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
        ledger.judge()
        assert len(ledger.history.answers) > 100
