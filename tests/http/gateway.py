"""A whole relay on loopback with its log and its store in view, a far target, and a client that writes raw bytes.

Law: everything of ours is real; only the far target and the clients are the tests' own. Nothing sleeps: what is waited
for is polled, and every wait ends.
"""

import asyncio
import contextlib
import hmac
import io
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client.parser import text_string_to_metric_families

from relay.app import App
from relay.config import load
from relay.telemetry.logs import start_logging

PATIENCE = 10.0
"""Seconds after which what is waited for counts as missing."""

ENV = {
    "API_KEY": "a1p2z5b7v68b9112234",
    "WEBHOOK_KEY": "pnp_test_key_0123456789abcdef",
    "SECRET": "a-sound-secret-of-ours",
    "OLD_SECRET": "the-secret-before-this",
    "TOKEN": "an-admin-token-of-the-tests",
}
SECRET, OLD_SECRET = ENV["SECRET"].encode(), ENV["OLD_SECRET"].encode()
TOKEN = ENV["TOKEN"]
AUTH = {"Authorization": f"Bearer {TOKEN}"}
JSON = AUTH | {"Content-Type": "application/json"}
TARGETS = "/api/v1/targets"

Headers = Iterable[tuple[str, str]] | Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """One answer as it came over the wire; header names in lower case."""

    status: int
    head: bytes
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def timeless(self) -> bytes:
        """All its bytes but the clock's."""
        lines = self.head.split(b"\r\n")
        return b"\r\n".join(line for line in lines if not line.lower().startswith(b"date:")) + self.body


def request(
    path: str,
    body: bytes = b"",
    headers: Headers = (),
    *,
    method: str = "POST",
    host: str | None = "relay.example",
    length: bool = True,
) -> bytes:
    """A request as bytes; header text is written as latin-1, so that any byte can be sent."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if host is not None:
        pairs.insert(0, ("Host", host))
    if length and not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in pairs):
        pairs.append(("Content-Length", str(len(body))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def chunked(*parts: bytes, trailer: bytes = b"") -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


def assert_problem(answer: Answer, status: int) -> dict[str, Any]:
    """An RFC 9457 problem that no cache keeps."""
    assert (answer.status, answer["content-type"]) == (status, "application/problem+json")
    assert (answer["cache-control"], answer["x-content-type-options"]) == ("no-store", "nosniff")
    problem: dict[str, Any] = answer.json
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    return problem


def signature(body: bytes) -> dict[str, str]:
    """What proves a body to the source `signed`."""
    return {"X-Signature": "sha256=" + hmac.new(SECRET, body, "sha256").hexdigest()}


class Wire:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write; a peer that has closed already is no failure."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self, *, to_head: bool = False) -> Answer:
        """The next answer, read to its declared end."""
        async with asyncio.timeout(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")[:-2]
            pairs = [line.partition(":") for line in lines[1:]]
            headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
            status = int(lines[0].split(" ")[1])
            size = 0 if status < 200 or to_head else int(dict(headers).get("content-length", "0"))
            return Answer(status, head, headers, await self._reader.readexactly(size))

    async def rest(self) -> bytes:
        """All that comes until the peer closes."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def reset(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def wired(address: tuple[str, int]) -> AsyncIterator[Wire]:
    """A connection that is closed in the end."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Look again and again until it holds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        await asyncio.sleep(0.002)


@dataclass(frozen=True)
class Arrival:
    """What the far target got; header names in lower case."""

    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def __getitem__(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


class Target:
    """A far target that answers one status to everything, while its gate is open."""

    def __init__(self) -> None:
        self.status = 200
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrivals: list[Arrival] = []
        self._server: asyncio.Server
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/in"

    async def stop(self) -> None:
        self.gate.set()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
                pairs = [line.partition(":") for line in head.split("\r\n")[1:-2]]
                headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
                body = await reader.readexactly(int(dict(headers).get("content-length", "0")))
                self.arrivals.append(Arrival(headers, body))
                await self.gate.wait()
                writer.write(f"HTTP/1.1 {self.status} .\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    async def next(self, number: int = 1) -> Arrival:
        """The n-th request that came, waited for."""
        await until(lambda: len(self.arrivals) >= number)
        return self.arrivals[number - 1]


class Gateway:
    """A running relay."""

    def __init__(self, app: App, log: io.BytesIO, store: Path, target: Target, config: Path) -> None:
        self.app = app
        self.config = config
        self.store = store
        self.target = target
        self._log = log
        self._marks = 0

    @property
    def hooks(self) -> tuple[str, int]:
        return self.app.hooks_address

    @property
    def admin(self) -> tuple[str, int]:
        return self.app.admin_address

    async def raw(self, data: bytes, *, at: tuple[str, int] | None = None) -> Answer:
        """Send bytes on a connection of their own and read one answer."""
        async with wired(at or self.hooks) as wire:
            await wire.send(data)
            return await wire.answer()

    async def post(self, path: str, body: bytes = b"{}", headers: Headers = ()) -> Answer:
        """Post a webhook to the public listener."""
        return await self.raw(request(path, body, headers))

    async def call(
        self, path: str, *, method: str = "GET", body: bytes = b"", headers: Headers = (), host: str = "localhost"
    ) -> Answer:
        """Call the admin listener."""
        return await self.raw(request(path, body, headers, method=method, host=host), at=self.admin)

    async def reload(self, text: str, *, headers: Headers = AUTH) -> Answer:
        """Put another text into the config file and ask for a reload."""
        self.config.write_text(text)
        return await self.call("/api/v1/reload", method="POST", headers=headers)

    async def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """All lines so far (of one event); everything that was told before this call is among them."""
        self._marks += 1
        mark = f"mark.{self._marks}"
        structlog.get_logger().critical(mark)
        await until(lambda: f'"{mark}"'.encode() in self._log.getvalue())
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event or (event is None and "mark." not in line["event"])]

    async def told(self, event: str) -> dict[str, Any]:
        """The only line of an event, waited for."""
        end = time.monotonic() + PATIENCE
        while not (lines := await self.log(event)):
            assert time.monotonic() < end, f"{event} was not told"
        (line,) = lines
        return line

    async def turned_away(self, answer: Answer, status: int, reason: str, *, source: str) -> dict[str, Any]:
        """The only refusal so far was this one: answered, told, counted, and nothing is stored. Returns its line."""
        line = await self.told("request.refused")
        assert (answer.status, line["status"], line["reason"], line["source"]) == (status, status, reason, source)
        assert self.counted(source) == {"refused": 1}
        assert self.stored() == []
        return line

    def log_text(self) -> str:
        """The raw log."""
        return self._log.getvalue().decode()

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample by its name and labels."""
        answer = await self.call("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        families = text_string_to_metric_families(answer.body.decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def counted(self, source: str) -> dict[str, int]:
        """How many webhooks of a source ended in which way."""
        value = self.app.metrics.registry.get_sample_value
        results = ("accepted", "unrouted", "duplicate", "refused", "challenged")
        found = {one: value("relay_events_received_total", {"source": source, "result": one}) or 0.0 for one in results}
        return {one: int(number) for one, number in found.items() if number}

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a view of the store's file shows: only what is committed."""
        with contextlib.closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as view:
            return view.execute(sql).fetchall()

    def stored(self) -> list[tuple[str, str, bytes]]:
        """Source, type and body of every stored event."""
        return self.rows("SELECT source, type, body FROM event ORDER BY seq")


Start = Callable[..., Awaitable[Gateway]]


@contextlib.asynccontextmanager
async def running(
    directory: Path, text: str, target: Target, *, make: Callable[..., App] = App, **env: str
) -> AsyncIterator[Gateway]:
    """The relay that a config describes; `${TARGET}` in it is the far target's URL."""
    path = directory / "config.yaml"
    path.write_text(text)
    path.chmod(0o600)
    environ = ENV | {"TARGET": target.url, "STORE": f"sqlite:///{directory}/relay.db"} | env
    config = load(path, environ)
    log = io.BytesIO()
    pipe = start_logging("debug", "json", log)
    try:
        app = make(config, environ=environ)
        app.watch_log(pipe)
        await app.start()
        try:
            yield Gateway(app, log, directory / "relay.db", target, path)
        finally:
            await app.stop()
    finally:
        pipe.close()
