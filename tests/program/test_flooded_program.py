"""Floods of the installed command: it stays within its bounds, says what it turns away, and is itself again after."""

import asyncio
import contextlib
import io
import itertools
import json
import os
import resource
import signal
import socket
import statistics
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.support.floods import MIB, address, descriptors, ended, memory, metric, silent, within
from tests.support.program import KEY, Gateway, Sink, until, webhook, write_config

slow = pytest.mark.slow
LOOPS = ("uvloop", "asyncio")
HEADERS = {"X-Key": KEY, "Content-Type": "application/json"}
HEAD = f"POST /hooks/shop HTTP/1.1\r\nHost: a\r\nX-Key: {KEY}\r\n".encode()


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.row("F27", "T21")
async def test_idle_connections_beyond_the_descriptors_take_none_of_the_relays_own(tmp_path: Path, loop: str) -> None:
    """With 64 descriptors and twice as many silent connections: a webhook is stored and delivered, the admin
    listener answers, the log stays short, and afterwards all is as before."""
    command = within(loop=loop, files=64, folder=tmp_path)
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink), within=command) as gateway:
        assert (await gateway.post(*webhook("before")))[0] == 200
        await until(lambda: len(sink.arrivals) == 1)
        before, began = descriptors(gateway.process.pid), time.monotonic()
        with silent(gateway.hooks, 96), silent(gateway.admin, 32):
            assert await metric(gateway, "relay_http_connections", listener="hooks") < 64
            assert (await _posted(gateway, "meanwhile"))[0] == 200
            await until(lambda: len(sink.arrivals) == 2)
            assert descriptors(gateway.process.pid) <= 64
            assert await metric(gateway, "relay_http_connections_displaced_total", listener="hooks") > 0
        assert (await _posted(gateway, "after"))[0] == 200
        await until(lambda: len(sink.arrivals) == 3)
        await until(lambda: descriptors(gateway.process.pid) <= before + 2)
        told = gateway.said("http.connections_refused")
        assert 1 <= len(told) <= 2 * (1 + (time.monotonic() - began) / 10)
        assert {line["event"].partition(".")[0] for line in gateway.lines} <= {
            *("relay", "config", "event", "delivery", "http", "request")
        }


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.row("F27")
async def test_descriptors_that_are_taken_away_while_it_runs_cost_idle_callers_first(tmp_path: Path, loop: str) -> None:
    """Where the arithmetic of the start does not hold any more: whoever says nothing makes room for the relay's own
    work, nothing spins, and it is as before when they have gone."""
    command = within(loop=loop, folder=tmp_path)
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink), within=command) as gateway:
        pid = gateway.process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 20, descriptors(pid) + 20))
        with silent(gateway.hooks, 100):
            await until(lambda: bool(gateway.said("http.connections_refused")))
            lines, used = len(gateway.lines), _processor(pid)
            assert (await _posted(gateway, "meanwhile"))[0] == 200
            await until(lambda: len(sink.arrivals) == 1)
            assert await metric(gateway, "relay_http_connections", listener="hooks") <= 21
            assert len(gateway.lines) - lines < 20
            assert _processor(pid) - used < 3
        assert (await _posted(gateway, "after"))[0] == 200
        await until(lambda: len(sink.arrivals) == 2)
        assert gateway.said("asyncio.error") == gateway.said("http.error") == []


@slow
@pytest.mark.row("T21", "F27", "H62")
async def test_who_asks_how_it_stands_is_told_beside_more_streams_than_there_is_room_for(tmp_path: Path) -> None:
    """A stream never ends by itself: they leave places for probes of health, or the relay would look dead."""
    limited = ["sh", "-c", 'ulimit -n 128 && exec "$@"', "sh"]
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink), within=limited) as gateway:
        ask = b"GET /api/v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with silent(gateway.admin, 100, ask):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
                for path in ("healthz", "readyz", "metrics"):
                    async with session.get(f"{gateway.admin}/{path}") as answer:
                        assert answer.status == 200


def _processor(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _posted(gateway: Gateway, number: str) -> tuple[int, dict[str, object]]:
    """Post until it is taken, as senders do."""
    async with asyncio.timeout(40):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                answer = await gateway.post(*webhook(number))
                if answer[0] == 200:
                    return answer
            await asyncio.sleep(0.05)


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [1000 * 1000, 100], ids=["large", "small"])
@pytest.mark.row("F25", "B58")
async def test_ten_times_too_much_is_shed_politely_and_nothing_taken_is_lost(tmp_path: Path, size: int) -> None:
    """Hundreds of senders at once: memory stays bounded, whatever is not taken is 503 with `Retry-After`, what is taken
    arrives, and then the relay is as good as new."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        pid = gateway.process.pid
        assert (await gateway.post(*webhook("before")))[0] == 200
        before = memory(pid)
        senders, each = (200, 2) if size > 1000 else (1000, 2)
        statuses: Counter[int] = Counter()
        taken: set[str] = set()
        impolite: list[int] = []

        async def send(session: aiohttp.ClientSession, sender: int) -> None:
            for number in range(each):
                body = b'{"id": "%d-%d", "pad": "%b"}' % (sender, number, b"x" * size)
                try:
                    async with session.post(f"{gateway.hooks}/hooks/shop", data=body, headers=HEADERS) as answer:
                        statuses[answer.status] += 1
                        if answer.status == 200:
                            taken.add((await answer.json())["id"])
                        elif "Retry-After" not in answer.headers:
                            impolite.append(answer.status)
                except aiohttp.ClientError:
                    statuses[0] += 1  # its connection ended while it still sent, after a refusal that it did not read

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(send(session, sender) for sender in range(senders)))
        assert set(statuses) <= {0, 200, 503}
        assert impolite == []
        assert statuses[200] >= (40 if size > 1000 else senders * each * 0.8)
        assert memory(pid, "VmHWM") - before < 350
        await until(lambda: taken <= set(sink.ids("crm")), within=60)
        assert (await gateway.post(*webhook("after")))[0] == 200
        await until(lambda: memory(pid) - before < 200)
        assert gateway.said("request.failed") == gateway.said("relay.crashed") == []


@slow
@pytest.mark.timeout(120)
@pytest.mark.row("F26", "T20", "H30", "H45")
async def test_a_thousand_slow_clients_cost_nobody_else_anything(tmp_path: Path) -> None:
    """Heads and bodies that drip, clients that never read, connections that say nothing: each ends at its deadline.
    Meanwhile every genuine webhook is taken in its usual time, as far as a busy machine can tell."""
    limits = "header_timeout: 3s, body_timeout: 3s"
    async with (
        Sink() as sink,
        Gateway(write_config(tmp_path / "config.yaml", sink, server=limits)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        pid, numbers = gateway.process.pid, itertools.count()
        quiet = [await _timed(session, gateway, next(numbers)) for _ in range(50)]
        before, base = memory(pid), descriptors(pid)
        health = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        with (
            silent(gateway.hooks, 500, HEAD[:30]) as heads,
            silent(gateway.hooks, 200, HEAD + b"Content-Length: 1000\r\n\r\n{") as bodies,
            silent(gateway.hooks, 100, health * 300) as deaf,
            silent(gateway.hooks, 200) as mute,
        ):
            dripping = asyncio.create_task(_drip([*heads, *bodies]))
            flooded = []
            while not dripping.done() and len(flooded) < 200:
                flooded.append(await _timed(session, gateway, next(numbers)))
            assert memory(pid, "VmHWM") - before < 100
            await until(lambda: all(map(ended, [*heads, *bodies, *mute])), within=40)
            await until(lambda: descriptors(pid) <= base + 4, within=40)
            await until(lambda: all(map(ended, deaf)), within=40)  # the system still hands over what it has
            await dripping
        assert statistics.median(flooded) < max(3 * statistics.median(quiet), 0.25)
        assert (await metric(gateway, "relay_events_received_total", source="shop", result="refused")) == 200


async def _timed(session: aiohttp.ClientSession, gateway: Gateway, number: int) -> float:
    began = time.perf_counter()
    source, body, headers = webhook(number)
    async with session.post(f"{gateway.hooks}/hooks/{source}", data=body, headers=headers) as answer:
        assert answer.status == 200
    return time.perf_counter() - began


async def _drip(sockets: list[socket.socket]) -> None:
    """A byte each, every half second, for longer than they have."""
    for _ in range(8):
        for one in sockets:
            with contextlib.suppress(OSError):
                one.send(b"x")
        await asyncio.sleep(0.5)


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.row("T26")
async def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path, loop: str) -> None:
    """The pipe fills up, lines are dropped and counted, webhooks are taken; once it is read again the log says how many
    are missing."""
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink)
        config.write_text(config.read_text() + "\nlog: {level: debug}\n")
        async with Gateway(config, within=within(loop=loop, folder=tmp_path)) as gateway:
            assert gateway.process.stdout is not None
            transport = gateway.process.stdout._transport  # type: ignore[attr-defined]
            transport.pause_reading()
            async with asyncio.timeout(60):
                while await metric(gateway, "relay_log_dropped_total") == 0:
                    await asyncio.gather(*(_strays(gateway, 1000) for _ in range(4)))
            assert (await gateway.post(*webhook(1)))[0] == 200
            await until(lambda: len(sink.arrivals) == 1)
            transport.resume_reading()
            await until(lambda: bool(gateway.said("relay.log_dropped")))
            assert gateway.said("relay.log_dropped")[0]["count"] > 0
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0


async def _strays(gateway: Gateway, number: int) -> None:
    """So many requests on one connection; each makes a line."""
    reader, writer = await asyncio.open_connection(*address(gateway.hooks))
    writer.write(b"GET /nothing/here HTTP/1.1\r\nHost: a\r\n\r\n" * number)
    for _ in range(number):
        await reader.readuntil(b"}")
    writer.close()


@slow
@pytest.mark.parametrize("out", ["/dev/full", "&-"], ids=["full disk", "closed"])
@pytest.mark.row("T26")
async def test_without_a_log_it_serves_all_the_same(tmp_path: Path, out: str) -> None:
    """Where its lines cannot go anywhere, webhooks still go where they should."""
    port = _free_port()
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink)
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
        command = ("sh", "-c", f'exec "$@" >{out} 2>/dev/null', "sh")
        gateway = Gateway(config, within=command)
        gateway.hooks = f"http://127.0.0.1:{port}"
        starting = asyncio.create_task(gateway.start())
        try:
            assert (await _posted(gateway, "1"))[0] == 200
            await until(lambda: len(sink.arrivals) == 1)
        finally:
            gateway.signal(signal.SIGTERM)
            assert await gateway.process.wait() == 0
            with contextlib.suppress(AssertionError):
                await starting


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@slow
@pytest.mark.timeout(120)
@pytest.mark.row("F12")
async def test_who_reads_for_long_lets_the_log_of_the_store_not_grow(tmp_path: Path) -> None:
    """While large webhooks come: a backup that is never fetched, tails that nobody reads, listings without end. The
    store's log is moved home all the same, memory stays bounded, and senders do not notice."""
    async with (
        Sink() as sink,
        Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        pid = gateway.process.pid
        await asyncio.gather(*(_large(session, gateway, f"a{number}") for number in range(40)))
        before, largest = memory(pid), 0
        ask = "GET /api/v1/{} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with (
            silent(gateway.admin, 1, ask.format("backup").encode()),
            silent(gateway.admin, 20, ask.format("stream?from=start").encode()),
            silent(gateway.admin, 20, ask.format("events?limit=500").encode() * 20),
        ):
            for turn in range(12):
                await asyncio.gather(*(_large(session, gateway, f"{turn}-{number}") for number in range(16)))
                largest = max(largest, (tmp_path / "relay.db-wal").stat().st_size)
                assert (await gateway.targets())["crm"]["state"] == "active"
        assert largest < 80 * MIB
        assert memory(pid, "VmHWM") - before < 300
        assert (tmp_path / "relay.db").stat().st_size > 90 * MIB


async def _large(session: aiohttp.ClientSession, gateway: Gateway, number: str) -> None:
    body = b'{"id": "%b", "pad": "%b"}' % (number.encode(), b"x" * (512 * 1024))
    async with session.post(f"{gateway.hooks}/hooks/shop", data=body, headers=HEADERS) as answer:
        assert answer.status == 200


@slow
@pytest.mark.timeout(120)
@pytest.mark.row("F39", "T24")
async def test_large_documents_do_not_hold_up_others(tmp_path: Path) -> None:
    """Millions of bytes of JSON with a condition on it, and as many that nobody has proven: whoever asks meanwhile is
    answered in a fraction of the time that the parsing takes."""
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink, server="max_body: 16MiB")
        config.write_text(config.read_text().replace("name: all,", 'name: all, when: "body.k7 == `7`",'))
        async with Gateway(config) as gateway, aiohttp.ClientSession() as session:
            shares = []
            for number in range(3):
                document = {f"k{n}": n for n in range(300_000)} | {"id": number}
                body = json.dumps(document).encode()
                began = time.perf_counter()
                json.loads(body)
                alone = time.perf_counter() - began
                posting = asyncio.create_task(_heavy(session, gateway, body))
                shares.append(await _longest_answer(session, gateway, posting) / alone)
                assert await posting == [200, 401]
                if shares[-1] < 0.5:
                    break
            assert min(shares) < 0.5, shares
            accepted = await metric(gateway, "relay_events_received_total", source="shop", result="accepted")
            assert accepted == len(shares)


async def _heavy(session: aiohttp.ClientSession, gateway: Gateway, body: bytes) -> list[int]:
    statuses = []
    for headers in (HEADERS, {"X-Key": "a-key-of-nobodys"}):
        async with session.post(f"{gateway.hooks}/hooks/shop", data=io.BytesIO(body), headers=headers) as answer:
            statuses.append(answer.status)
    return statuses


async def _longest_answer(session: aiohttp.ClientSession, gateway: Gateway, task: "asyncio.Task[list[int]]") -> float:
    longest = 0.0
    while not task.done():
        began = time.perf_counter()
        async with session.get(f"{gateway.hooks}/healthz") as answer:
            assert answer.status == 200
        longest = max(longest, time.perf_counter() - began)
    return longest
