"""Whole runs of the command on a disk that fails: start, accept, deliver, record, stop; and what must hold afterwards.

Law: what is checked is what a sender, a target and the person who looks at the files see. A run without a fault ends in
well under a second, so that a fault can be tried at every call of it.
"""

import asyncio
import json
import shutil
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.support.faulty_disk import Fault, FaultyDisk
from tests.support.forks import Fork, Forks

KEY = "test-key-0123456789"
CHECK = "{scheme: api_key, header: X-Key}"
PATIENCE_S = 60.0
"""Far above what anything here takes, also on a busy machine; what hangs is noticed all the same."""
STRAY = ("request.failed", "delivery.loop_failed", "delivery.loops_keep_failing", "loop.error")
"""Lines that only a fault of ours brings."""


class Targets:
    """One loopback port for the targets of many runs, one a path; every copy of every event is counted."""

    def __init__(self) -> None:
        self.copies: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.attempts: defaultdict[str, list[int]] = defaultdict(list)
        self.answering = asyncio.Event()
        """While it is not set, requests are taken and not answered."""
        self.answering.set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in (*self._open,):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line, headers = await _head(reader)
                await reader.readexactly(int(headers["content-length"]))
                self.copies[line.split()[1].strip("/")][headers["relay-event-id"]] += 1
                self.attempts[headers["relay-event-id"]].append(int(headers["relay-attempt"]))
                await self.answering.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    return line, {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}


@dataclass
class Answer:
    """What a sender is told."""

    status: int
    headers: dict[str, str]
    content: dict[str, Any]
    seconds: float


class Sender:
    """Posts over one connection, made anew when it was closed."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, number: int | str, *, size: int = 0) -> Answer | None:
        """Post one webhook; None where there was no answer on a fresh connection."""
        is_fresh = self._streams is None
        answer = await self._post(number, size)
        return await self._post(number, size) if answer is None and not is_fresh else answer

    async def _post(self, number: int | str, size: int) -> Answer | None:
        body = json.dumps({"id": number, "filler": "x" * size}).encode()
        began = time.monotonic()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            head = f"POST /hooks/shop HTTP/1.1\r\nHost: x\r\nX-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            async with asyncio.timeout(PATIENCE_S):
                line, headers = await _head(reader)
                content = json.loads(await reader.readexactly(int(headers["content-length"])))
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            self.close()
            return None
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(line.split()[1]), headers, content, time.monotonic() - began)

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Run:
    """One relay on one disk: its files, what it has promised, and how it was started."""

    name: str
    home: Path
    forks: Forks
    targets: Targets
    store: str = ""
    retention: str = ""
    promised: dict[int | str, str] = field(default_factory=dict)
    refused: int = 0
    fork: Fork | None = None
    hooks: str = ""
    admin: str = ""
    sender: Sender = field(default_factory=lambda: Sender("none:0"))

    def __post_init__(self) -> None:
        self.files = self.home / "store"
        self.files.mkdir(parents=True)
        self.database = self.files / "relay.db"
        self.disk = FaultyDisk(self.files, self.home / "orders")
        self.config = self.home / "config.yaml"
        lines = [
            'server: {listen: "127.0.0.1:0"}',
            'admin: {listen: "127.0.0.1:0"}',
            f'store: {{url: "sqlite:///{self.database}"{self.retention}}}',
            "sources:",
            f'  shop: {{provider: custom, secrets: ["{KEY}"], verify: {CHECK}, dedupe_key: id}}',
            f'targets: {{crm: {{url: "http://127.0.0.1:{self.targets.port}/{self.name}"}}}}',
            "routes: [{name: all, from: [shop], to: [crm]}]",
        ]
        self.config.write_text("\n".join(lines))
        self.config.chmod(0o600)

    @property
    def copies(self) -> "Counter[str]":
        """How often the target was sent each event."""
        return self.targets.copies[self.name]

    async def start(self) -> bool:
        """Start it; whether it listens, or has ended instead."""
        self.fork = fork = await self.forks.run(self.disk, self.home, "run", "--config", str(self.config))
        started: list[dict[str, Any]] = []

        def settled() -> bool:
            started.extend(line for line in fork.lines() if line["event"] == "relay.started")
            return bool(started) or fork.code.done()

        await until(settled)
        if started:
            self.hooks, self.admin = started[0]["listen"], started[0]["admin"]
            self.sender.close()
            self.sender = Sender(self.hooks)
        return bool(started)

    async def accept(self, number: int | str, *, size: int = 0) -> None:
        """Post until it is promised, as senders do; each answer is one of the contract's, and comes in time."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await self.sender.post(number, size=size)
                assert answer is not None, "no answer"
                if answer.status == 200:
                    self.promised[number] = answer.content["id"]
                    return
                self.refused += 1
                assert answer.status == 503, answer
                assert int(answer.headers["retry-after"]) > 0
                await asyncio.sleep(0.05)

    async def delivered(self) -> None:
        """Wait until the target has everything that was promised."""
        await until(lambda: self.copies.keys() >= set(self.promised.values()))

    async def check_views(self) -> None:
        """What was promised is shown: the connection that reads has got over the fault too."""
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
            for id_ in self.promised.values():
                async with session.get(f"http://{self.admin}/api/v1/events/{id_}") as answer:
                    assert answer.status == 200, await answer.text()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.fork is not None
        self.fork.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.fork.code)

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.fork is not None
        self.fork.signal(signal.SIGKILL)
        await asyncio.shield(self.fork.code)

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of an event in the log of the last start."""
        assert self.fork is not None
        return [line for line in self.fork.lines() if line["event"] == event]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What stands in the file."""
        with closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()

    def check_log(self) -> None:
        """Nobody was told of a fault of ours: no traceback, no loop that failed."""
        assert self.fork is not None
        assert self.fork.errors() == ""
        for line in self.fork.lines():
            assert line["event"] not in STRAY, line
            assert "traceback" not in json.dumps(line).lower(), line

    def check_refused_start(self) -> None:
        """Exit code 74; one line that names the file and what the system said, and no traceback."""
        assert self.fork is not None
        assert self.fork.code.result() == 74, (self.fork.code.result(), self.fork.errors(), self.fork.lines())
        (line,) = self.said("relay.start_refused")
        assert str(self.files) in line["reason"], line
        assert self.fork.errors() == f"relay: {line['reason']}\n"
        assert "traceback" not in self.fork.errors().lower()

    def check_files(self) -> None:
        """The file is whole, and holds what was promised, once each."""
        assert self.rows("PRAGMA integrity_check") == [("ok",)]
        stored = [row[0] for row in self.rows("SELECT id FROM event")]
        assert len(stored) == len(set(stored))
        assert set(stored) >= set(self.promised.values())


def states(run: Run) -> Counter[str]:
    """How many deliveries stand in each state."""
    return Counter(row[0] for row in run.rows("SELECT state FROM delivery"))


AFTERWARDS = 3
"""Events that are sent after a fault."""
FEW = 20
MOST = 1000
"""Events after which a call that never comes is given up."""


async def survive(run: Run, fault: Fault, *, heal_after: float | None = None) -> None:
    """One fault in a run, at a call counted from the start of the process; all that must hold during it and after it.

    A start that is refused says why, and the next one works. Else each event is taken in the end, none is taken that is
    not there, the target has each once, and the relay stops as on every day.
    """
    run.disk.order(fault)
    healing = asyncio.create_task(_heal(run, heal_after))
    if not await run.start():
        run.check_refused_start()
        run.disk.heal()
        assert await run.start(), run.fork and run.fork.errors()
    left, number = AFTERWARDS, 0
    while left:
        left -= run.disk.given > 0
        number += 1
        assert number < MOST, "the call never came"
        await run.accept(number)
        if fault.first > FEW and not run.disk.given:
            await run.delivered()  # each of its commits stands alone then, and fewer events bring as many calls
    await healing
    await run.accept("the last")
    await run.delivered()
    await until(lambda: len(run.said("store.unavailable")) == len(run.said("store.recovered")))
    await run.check_views()
    assert await run.stop() == 0
    run.check_log()
    assert len(run.said("store.unavailable")) == len(run.said("store.recovered")) <= 1
    run.check_files()
    assert set(states(run)) == {"delivered"}
    assert run.copies == Counter(set(run.promised.values()))


async def _heal(run: Run, after: float | None) -> None:
    if after is not None:
        await until(lambda: run.disk.given > 0 or (run.fork is not None and run.fork.code.done()))
        await asyncio.sleep(after)
        run.disk.heal()


async def survive_at_the_stop(run: Run, fault: Fault) -> bool:
    """The same for a fault at a call counted from SIGTERM on, with attempts under way; whether there was such a call.

    What could not be recorded is sent once more after the next start.
    """
    assert await run.start()
    await run.accept(1)
    run.targets.answering.clear()
    await run.accept(2)
    await run.delivered()
    run.disk.order(fault)
    stopping = asyncio.create_task(run.stop())
    await until(lambda: bool(run.said("relay.stopping")))
    run.targets.answering.set()
    assert await stopping == 0
    run.check_log()
    is_struck = run.disk.given > 0
    run.disk.heal()
    run.check_files()
    if set(states(run)) != {"delivered"}:
        assert await run.start()
        await until(lambda: set(states(run)) == {"delivered"})
        assert await run.stop() == 0
        run.check_log()
        run.check_files()
    assert set(states(run)) == {"delivered"}
    assert run.copies.keys() == set(run.promised.values())
    assert max(run.copies.values()) <= 2
    assert all(run.targets.attempts[id_] == sorted(set(run.targets.attempts[id_])) for id_ in run.copies)
    return is_struck


async def start_after_a_kill(run: Run, fault: Fault) -> bool:
    """A process that ends at a call of its start, and one after it that works; whether the first came to that call."""
    run.disk.order(fault)
    is_up = await run.start()
    run.disk.heal()
    await run.kill()
    assert await run.start(), run.fork and run.fork.errors()
    await run.accept(1)
    await run.delivered()
    assert await run.stop() == 0
    run.check_log()
    run.check_files()
    return not is_up


ABREAST = 6
"""Runs at a time: most of one is waiting for the others of its own processes."""


async def swept(
    faults: Iterable[Fault], base: Path, one: Callable[[Run, Fault], Awaitable[object]], *, abreast: int = ABREAST
) -> list[object]:
    """What came of a run for each fault; all that failed are told together."""
    failed: dict[str, str] = {}
    turn = asyncio.Semaphore(abreast)

    async def run_one(number: int, fault: Fault) -> object:
        async with turn, Targets() as targets:
            run = Run(f"run-{number}", base / f"run-{number}", forks, targets)
            try:
                return await one(run, fault)
            except Exception as error:  # noqa: BLE001 - every one is told
                said = [] if run.fork is None else [line for line in run.fork.lines() if line["level"] != "info"]
                failed[str(fault)] = f"{type(error).__name__}: {error}; {said[-3:]}"
                return None
            finally:
                run.disk.heal()
                run.sender.close()
                if run.fork is not None:
                    await run.kill()
                shutil.rmtree(run.home)

    async with Forks() as forks:
        results = await asyncio.gather(*(run_one(number, fault) for number, fault in enumerate(faults)))
    assert not failed, "\n".join(f"{fault}: {why}" for fault, why in failed.items())
    return results


async def until(is_so: Callable[[], bool], *, within: float = PATIENCE_S) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(within):
        while not is_so():
            await asyncio.sleep(0.01)
