"""One trial: a fresh relay with a store of its own, its targets and its senders, from the start to the last delivery.

Law: an event counts as delivered when the last of its targets has seen it; what was answered 200, what the store holds
and what each target saw are counted by three who do not know of each other, and must be the same.
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sys
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from relay.bench.disk import percentile
from relay.bench.load import SECRET, SOURCE, Load
from relay.store.sqlite.reading import events_in

START_S, STOP_S = 30.0, 30.0
DRAIN_S = 60.0
"""How long the last deliveries are waited for."""
LOOK_EVERY_S = 0.05
CONCURRENCY = 64
"""Attempts at a time for each target."""
_TICKS = os.sysconf("SC_CLK_TCK")


class TrialFailed(Exception):
    """It could not be carried out; the message says why."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a trial is to do; `rate` is events a second, 0 as many as are answered."""

    fan_out: int
    rate: float
    seconds: float
    connections: int
    body: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What a trial has come to. Times are milliseconds, and of arrivals at a target from when the event was to be sent.

    Attributes:
        events_per_s: events that all targets had, in the time of sending.
        waiting: events that were accepted and were not yet everywhere at the end of it.
        refused: other answers than 200, and none.
        lost: events that were accepted and are not in the store, or did not reach a target.
        copies: arrivals beyond one an event and target.
        cpu_us: of the relay, an event, in microseconds; None where the system does not tell, as the next.
        memory_mib: the most that the relay has held.
        disk_bytes: an event, with its body.
    """

    fan_out: int
    rate: float
    events_per_s: float
    accepted: int
    refused: int
    waiting: int
    lost: int
    copies: int
    answer_p50_ms: float
    answer_p99_ms: float
    arrival_p50_ms: float
    arrival_p99_ms: float
    cpu_us: float | None
    memory_mib: float | None
    disk_bytes: float
    start_s: float


async def carried_out(wish: Wish, home: Path, moved: Callable[[float], None]) -> Figures:
    """Carry out one trial in a directory of its own.

    Args:
        moved: called with the share of it that is over, 0 to 1.

    Raises:
        TrialFailed: it could not be.
    """
    async with targets(wish.fan_out, home) as (ports, seen_by_targets):
        async with relay_for(ports, home) as relay:
            load = Load(relay.port, wish.connections, wish.body, wish.seconds, wish.rate)
            before = relay.cpu_s()
            sent = await sent_all(load, home / "sent", moved)
            await relay.drained()
            cpu, memory = relay.cpu_s(), relay.memory_mib()
        seen = await seen_by_targets()
    stored = events_in(home / "relay.db")
    size = sum(file.stat().st_size for file in home.glob("relay.db*"))
    accepted = [place for place in range(len(sent) // 3) if sent[3 * place + 2] == 200]
    ended = min(sent[::3], default=0) + int(wish.seconds * 1e9)
    first_seen = [_firsts(one) for one in seen]
    everywhere = {
        place: max(one[place] for one in first_seen) for place in accepted if all(place in one for one in first_seen)
    }
    done = sum(at <= ended for at in everywhere.values())
    answers = [(sent[3 * place + 1] - sent[3 * place]) / 1e9 for place in accepted]
    arrivals = [(at - sent[3 * place]) / 1e9 for one in first_seen for place, at in one.items()]
    number = max(1, len(accepted))
    return Figures(
        fan_out=wish.fan_out,
        rate=wish.rate,
        events_per_s=done / wish.seconds,
        accepted=len(accepted),
        refused=len(sent) // 3 - len(accepted),
        waiting=len(accepted) - done,
        lost=max(0, len(accepted) - stored) + len(accepted) - len(everywhere),
        copies=sum(len(one) // 2 for one in seen) - sum(map(len, first_seen)),
        answer_p50_ms=percentile(answers, 50),
        answer_p99_ms=percentile(answers, 99),
        arrival_p50_ms=percentile(arrivals, 50),
        arrival_p99_ms=percentile(arrivals, 99),
        cpu_us=None if cpu is None or before is None else (cpu - before) * 1e6 / number,
        memory_mib=memory,
        disk_bytes=size / number,
        start_s=relay.start_s,
    )


async def answered_bare(wish: Wish, home: Path, moved: Callable[[float], None]) -> float:
    """Requests a second that a bare aiohttp handler answers to the same senders.

    Raises:
        TrialFailed: it could not be measured.
    """
    async with child("-m", "relay.bench.bare") as process:
        port = int(await line_of(process))
        sent = await sent_all(Load(port, wish.connections, wish.body, wish.seconds), home / "bare", moved)
    began = min(sent[::3], default=0)
    ended = began + int(wish.seconds * 1e9)
    return sum(began < at <= ended for at in sent[1::3]) / wish.seconds


async def sent_all(load: Load, file: Path, moved: Callable[[float], None]) -> "array[int]":
    """Have a process send a load; when each event was to be sent, when it was answered, and how."""
    async with child("-m", "relay.bench.sender", json.dumps(asdict(load)), str(file)) as process:
        assert process.stdout is not None
        began = time.monotonic()
        async with _within(load.seconds + 30, "the senders did not come to an end"):
            async for _ in process.stdout:
                moved(min(1.0, (time.monotonic() - began) / load.seconds))
            if await process.wait():
                raise TrialFailed("the senders have failed")
    return _numbers(file)


# the relay


class Relay:
    """A running relay, from outside."""

    def __init__(self, process: asyncio.subprocess.Process, told: dict[str, Any], start_s: float) -> None:
        self._process = process
        self.pid = process.pid
        self._admin = str(told["admin"])
        self.port = int(told["listen"].rpartition(":")[2])
        self.start_s = start_s

    def cpu_s(self) -> float | None:
        """Seconds of processor time so far."""
        try:
            words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(words[11]) + int(words[12])) / _TICKS

    def memory_mib(self) -> float | None:
        """The most that it has held."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)

    async def drained(self) -> None:
        """Wait until it has nothing more to deliver, or for as long as is reasonable."""
        ends_at = time.monotonic() + DRAIN_S
        while time.monotonic() < ends_at:
            targets = (await asyncio.to_thread(self._asked, "/api/v1/targets"))["targets"]
            if not any(one["pending"] or one["in_flight"] or one["held"] for one in targets):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _asked(self, path: str) -> Any:
        with contextlib.closing(http.client.HTTPConnection(self._admin, timeout=STOP_S)) as connection:
            connection.request("GET", path)
            return json.load(connection.getresponse())


@contextlib.asynccontextmanager
async def relay_for(ports: list[int], home: Path, *, within: Sequence[str] = ()) -> AsyncIterator[Relay]:
    """`relay run` as a user would start it, its log in a file; stopped in order at the end.

    Args:
        within: a command that runs it, with its options.

    Raises:
        TrialFailed: it did not start, or did not stop.
    """
    names = [f"target{number}" for number in range(1, len(ports) + 1)]
    document = {
        "server": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "store": {"url": f"sqlite:///{home / 'relay.db'}".replace("$", "$$")},
        "sources": {SOURCE: {"provider": "generic_hmac", "secrets": [SECRET]}},
        "targets": {
            name: {"url": f"http://127.0.0.1:{port}/", "concurrency": CONCURRENCY}
            for name, port in zip(names, ports, strict=True)
        },
        "routes": [{"name": "all", "from": [SOURCE], "to": names}],
    }
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    log = home / "relay.log"
    began = time.monotonic()
    with log.open("wb") as out:
        run = ("-m", "relay", "run", "--config", str(config))
        tied = run if within else ("-m", "relay.bench.tied", *run)
        async with child(*tied, out=out.fileno(), within=within) as process:
            told = await _started(process, log)
            yield Relay(process, told, time.monotonic() - began)
            process.send_signal(signal.SIGTERM)
            async with _within(STOP_S, "the relay did not stop"):
                await process.wait()


async def _started(process: asyncio.subprocess.Process, log: Path) -> dict[str, Any]:
    """What the relay said when it was up."""
    async with _within(START_S, "the relay did not start"):
        while process.returncode is None:
            for line in log.read_bytes().splitlines():
                if b'"relay.started"' in line:
                    told: dict[str, Any] = json.loads(line)
                    return told
            await asyncio.sleep(LOOK_EVERY_S / 5)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise TrialFailed(f"the relay did not start: {' '.join(last)}")


# the targets


@contextlib.asynccontextmanager
async def targets(
    count: int, home: Path
) -> "AsyncIterator[tuple[list[int], Callable[[], Awaitable[list[array[int]]]]]]":
    """The ports of so many targets, and what ends them and returns what they saw."""
    file = home / "seen"
    async with child("-m", "relay.bench.target", str(count), str(file)) as process:
        ports: list[int] = json.loads(await line_of(process))

        async def seen() -> "list[array[int]]":
            assert process.stdin is not None
            process.stdin.close()
            async with _within(STOP_S, "the targets did not come to an end"):
                await process.wait()
            numbers, parts = _numbers(file), []
            while numbers:
                parts.append(numbers[1 : 1 + numbers[0]])
                numbers = numbers[1 + numbers[0] :]
            return parts

        yield ports, seen


def _firsts(seen: "array[int]") -> dict[int, int]:
    """When a target saw each event first, by its number."""
    first: dict[int, int] = {}
    for place in range(0, len(seen), 2):
        first.setdefault(seen[place], seen[place + 1])
    return first


# processes


@contextlib.asynccontextmanager
async def child(
    *arguments: str, out: int = asyncio.subprocess.PIPE, within: Sequence[str] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process that ends with the block, one way or the other."""
    process = await asyncio.create_subprocess_exec(
        *within, sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=out, start_new_session=True
    )
    try:
        yield process
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> bytes:
    """The first line that it writes."""
    assert process.stdout is not None
    async with _within(START_S, "a process of the measurement did not start"):
        line = await process.stdout.readline()
    if not line:
        raise TrialFailed("a process of the measurement did not start")
    return line


@contextlib.asynccontextmanager
async def _within(seconds: float, otherwise: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TrialFailed(f"{otherwise} within {seconds:g} s") from None


def _numbers(file: Path) -> "array[int]":
    numbers = array("q")
    with file.open("rb") as found:
        numbers.frombytes(found.read())
    return numbers
