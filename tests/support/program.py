"""The installed command as a process of its own, and a sink that remembers what it was sent."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

START_S = 20.0
POLL_S = 0.02


@dataclass(frozen=True)
class Arrival:
    """One request as a sink got it."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["relay-event-id"]

    @property
    def attempt(self) -> int:
        return int(self.headers["relay-attempt"])


@dataclass
class Sink:
    """Targets on one loopback port, one a path: `/crm` is the target `crm`."""

    answer: Callable[[Arrival], Awaitable[int]] | None = None
    arrivals: list[Arrival] = field(default_factory=list)
    port: int = 0
    _runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        arrival = Arrival(request.path.strip("/"), headers, await request.read())
        self.arrivals.append(arrival)
        status = 200 if self.answer is None else await self.answer(arrival)
        return web.Response(status=status)

    def url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.port}/{target}"

    def ids(self, target: str) -> list[str]:
        """The event ids that a target has been sent, in order, copies included."""
        return [arrival.event_id for arrival in self.arrivals if arrival.target == target]


class Gateway:
    """`relay run` on a config file, killed and started again at will; it ends with the block."""

    def __init__(self, config: Path, *options: str, within: Sequence[str] = ()) -> None:
        """`options` are those of its first start, `within` is a command that starts it."""
        self.config = config
        self._options = options
        self._within = within
        self.program: Sequence[str] = (sys.executable, "-m", "relay")
        self.environ: dict[str, str] = {}
        """Set beside the environment of the tests."""
        self.lines: list[dict[str, Any]] = []
        self.hooks = ""
        self.admin = ""
        self.errors = b""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start(*self._options)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self, *options: str, within: float = START_S) -> None:
        """Start it and wait until it has said that it listens, for so many seconds at most."""
        self._started = asyncio.Event()
        self._process = await asyncio.create_subprocess_exec(
            *self._within,
            *(*self.program, "run", "--config", str(self.config), *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | self.environ,
        )
        self._reading = asyncio.create_task(self._read())
        async with asyncio.timeout(within):
            waits = [asyncio.create_task(self._started.wait()), self._reading]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        assert self._started.is_set(), f"it did not start: {self.errors.decode()}"

    async def _read(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        async for raw in self.process.stdout:
            if not raw.endswith(b"\n"):
                break  # cut short by a kill
            line = json.loads(raw)
            self.lines.append(line)
            if line["event"] == "relay.started":
                self.hooks, self.admin = f"http://{line['listen']}", f"http://{line['admin']}"
                self._started.set()
        self.errors = await self.process.stderr.read()

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # send_signal would reap it, and its exit code with it
            os.kill(self.process.pid, number)

    async def ended(self, within: float = 30.0) -> int:
        """Wait for its end; the exit code."""
        async with asyncio.timeout(within):
            code = await self.process.wait()
            if self._reading is not None:
                await self._reading
        return code

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        await self.ended()

    async def post(self, source: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Post one webhook on a connection of its own."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.hooks}/hooks/{source}", data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json()

    async def targets(self) -> dict[str, dict[str, Any]]:
        """The targets as the admin API shows them."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/api/v1/targets") as answer:
            return {target["name"]: target for target in (await answer.json())["targets"]}

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


async def until(condition: Callable[[], bool], *, within: float = 30.0) -> None:
    """Wait until something is so; fails after `within` seconds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(POLL_S)


KEY = "test-key-0123456789"


def write_config(path: Path, sink: Sink, *, targets: dict[str, str] | None = None, server: str = "") -> Path:
    """A config with one source `shop` (a shared key, deduped by `id`) and targets of a sink; values are YAML."""
    targets = targets if targets is not None else {"crm": ""}
    lines = [
        f'server: {{listen: "127.0.0.1:0"{", " + server if server else ""}}}',
        'admin: {listen: "127.0.0.1:0"}',
        f'store: {{url: "sqlite:///{path.parent}/relay.db"}}',
        "sources:",
        f'  shop: {{provider: custom, secrets: ["{KEY}"], verify: {{scheme: api_key, header: X-Key}}, dedupe_key: id}}',
        "targets:",
        *(f'  {name}: {{url: "{sink.url(name)}"{extra}}}' for name, extra in targets.items()),
        "routes:",
        f"  - {{name: all, from: [shop], to: [{', '.join(targets)}]}}",
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


def webhook(number: int | str) -> tuple[str, bytes, dict[str, str]]:
    """The arguments of `Gateway.post` for one genuine webhook."""
    return "shop", json.dumps({"id": number}).encode(), {"X-Key": KEY, "Content-Type": "application/json"}


def in_flight(home: Path, copy: Path) -> list[tuple[str, str]]:
    """Event and target of each delivery that is claimed in the store that a kill has left; the files stay untouched."""
    copy.mkdir()
    for file in home.glob("*.db*"):
        shutil.copy(file, copy)
    (found,) = copy.glob("*.db")
    with contextlib.closing(sqlite3.connect(found)) as db:
        query = "SELECT e.id, d.target FROM delivery d JOIN event e ON e.seq = d.event_seq WHERE d.state = 'in_flight'"
        return db.execute(query).fetchall()
