"""`relay tail`: everything that happens, once, whatever becomes of the connection; a line for a person that fits."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import termios
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from test_cli import command, environment, run_relay

from relay.cli.messages import LONGEST, Message, Messages
from relay.cli.occurrences import line
from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config

ID = "evt_01M80JET4H10HJKCGMBVCWMWJE"
AT = "2026-11-22T02:48:09.617Z"
ACCEPTED = {"kind": "accepted", "at": AT, "event_id": ID, "source": "shop", "type": "order.paid", "targets": ["crm"]}
ATTEMPTED = {
    "kind": "attempted", "at": AT, "event_id": ID, "source": "shop", "type": "order.paid", "target": "crm",
    "attempt": 2, "outcome": "failed", "status": 500, "duration_ms": 12, "reason": "status 500", "state": "pending",
    "next_attempt_at": "2026-11-22T02:48:14.000Z",
}  # fmt: skip
REFUSED = {
    "kind": "refused", "at": AT, "source": "shop", "remote": "192.0.2.1", "status": 401, "reason": "missing_key",
    "detail": "",
}  # fmt: skip


def config(directory: Path, sink: Sink) -> Path:
    """One whose admin listener is where it was after a restart."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = write_config(directory / "config.yaml", sink, targets={"crm": "", "books": ""})
    path.write_text(
        path.read_text().replace('admin: {listen: "127.0.0.1:0"}', f'admin: {{listen: "127.0.0.1:{port}"}}')
    )
    return path


class Tail:
    """`relay tail --output json` and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []
        self.said = ""

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            self.told.append(json.loads(raw))

    async def listen(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            self.said += raw.decode()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.told if one["kind"] == kind]


@contextlib.asynccontextmanager
async def tailing(path: Path, *options: str) -> AsyncIterator[Tail]:
    """A tail that runs beside a relay; Ctrl-C ends it tidily."""
    process = await asyncio.create_subprocess_exec(
        *command("tail", "--output", "json", "--config", str(path), *options),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    tail = Tail(process)
    tasks = [asyncio.create_task(tail.read()), asyncio.create_task(tail.listen())]
    try:
        yield tail
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
            await asyncio.gather(*tasks)
        assert "Traceback" not in tail.said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_was_kept_comes_first_and_what_happens_follows(tmp_path: Path) -> None:
    """The objects of the stream as they are, each at once."""
    async with Sink() as sink, Gateway(config(tmp_path, sink)) as gateway:
        _, first = await gateway.post(*webhook(1))
        await until(lambda: len(gateway.said("delivery.attempted")) == 2)
        async with tailing(gateway.config, "--since", "10m", "--target", "crm") as tail:
            await until(lambda: len(tail.told) == 2)
            _, second = await gateway.post(*webhook(2))
            await until(lambda: len(tail.told) == 4)
        assert [(one["kind"], one["event_id"]) for one in tail.told] == [
            (kind, one["id"]) for one in (first, second) for kind in ("accepted", "attempted")
        ]
        assert tail.said == ""


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_over_kills_and_starts_of_the_relay_everything_is_told_exactly_once(tmp_path: Path) -> None:
    """Under load: every event that the store has, and every attempt that it recorded; nothing twice."""

    async def refuse_now_and_then(arrival: Arrival) -> int:
        return 500 if arrival.attempt == 1 and arrival.body[-2] in b"37" else 200

    async with (
        Sink(refuse_now_and_then) as sink,
        Gateway(config(tmp_path, sink)) as gateway,
        contextlib.AsyncExitStack() as tails,
    ):
        tail = await tails.enter_async_context(tailing(gateway.config, "--since", "1h"))
        picky = await tails.enter_async_context(
            tailing(gateway.config, "--since", "1h", "--target", "books", "--failed")
        )
        answered: list[str] = [(await gateway.post(*webhook(number)))[1]["id"] for number in (1_000_000, 1_000_003)]
        await until(lambda: len(tail.of("accepted")) == 2 and len(picky.told) == 1)  # both are there before the kills
        numbers = iter(range(1_000_000))
        stop = asyncio.Event()

        async def send() -> None:
            while not stop.is_set():
                try:
                    status, answer = await gateway.post(*webhook(next(numbers)))
                except (OSError, aiohttp.ClientError):
                    await asyncio.sleep(0.02)
                else:
                    answered.extend([answer["id"]] if status == 200 else [])
                await asyncio.sleep(0.005)

        senders = [asyncio.create_task(send()) for _ in range(4)]
        for round_ in range(3):
            enough = len(tail.told) + 60
            await until(lambda enough=enough: len(tail.told) >= enough, within=60)
            await gateway.kill()
            await gateway.start()
            await until(lambda round_=round_: tail.said.count("relay: back") == round_ + 1, within=60)
        stop.set()
        await asyncio.gather(*senders)
        await until(lambda: set(answered) <= {one["event_id"] for one in tail.of("accepted")}, within=60)
        await gateway.kill()
        events, attempts = kept(tmp_path)
        await gateway.start()
        await until(lambda: len(tail.of("accepted")) >= len(events), within=60)
        await until(lambda: attempts <= told_attempts(tail).keys(), within=60)
        failures = {one for one in attempts if one[1] == "books" and one[3] == "failed"}
        await until(lambda: failures <= told_attempts(picky).keys(), within=60)
    assert [one["event_id"] for one in tail.of("accepted")] == events
    assert len(answered) > 50
    assert set(answered) <= set(events)
    assert set(told_attempts(tail).values()) == set(told_attempts(picky).values()) == {1}
    assert {one["target"] for one in picky.told} == {"books"}
    assert not tail.of("reset")


def kept(home: Path) -> tuple[list[str], set[tuple[str, str, int, str]]]:
    """The events, in order, and the attempts in the store that a kill has left; its files stay untouched."""
    copy = home / "copy"
    copy.mkdir()
    for file in home.glob("relay.db*"):
        shutil.copy(file, copy)
    with contextlib.closing(sqlite3.connect(copy / "relay.db")) as db:
        events = [row[0] for row in db.execute("SELECT id FROM event ORDER BY seq")]
        query = "SELECT e.id, a.target, a.number, a.outcome FROM attempt a JOIN event e ON e.seq = a.event_seq"
        return events, set(db.execute(query).fetchall())


def told_attempts(tail: Tail) -> Counter[tuple[str, str, int, str]]:
    return Counter((one["event_id"], one["target"], one["attempt"], one["outcome"]) for one in tail.of("attempted"))


async def test_a_person_gets_lines_that_fit_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    """On a terminal of 80 columns; the exit code is 0, and stdout and stderr hold no traceback."""

    async def answer(arrival: Arrival) -> int:
        return 500 if arrival.target == "books" else 200

    async with Sink(answer) as sink, Gateway(config(tmp_path, sink)) as gateway:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = subprocess.Popen(
            command("tail", "--since", "1h", "--config", str(gateway.config)),
            env=environment(TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        try:
            _, accepted = await gateway.post(*webhook(1))
            shown = b""
            while shown.count(b"\n") < 3:
                shown += await asyncio.to_thread(os.read, ours, 4096)
            os.write(ours, b"\x03")
            assert await asyncio.to_thread(process.wait, 20) == 0
            with contextlib.suppress(OSError):
                while more := os.read(ours, 4096):
                    shown += more
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    assert b"\x1b[3" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("^C", "").splitlines()
    told = [one for one in lines if one]
    assert len(told) == 3
    assert all(len(one) <= 80 for one in told)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  accepted   shop .*  {accepted['id']}", told[0])
    assert any(re.fullmatch(rf"[\d:]+  delivered  -> crm  #1  200  \d+ms +{accepted['id']}", one) for one in told)
    assert any(re.match(r"[\d:]+  failed     -> books  #1  500  \d+ms  next \d\d:\d\d:\d\d ", one) for one in told)


async def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    """`relay tail | head -1`."""
    async with Sink() as sink, Gateway(config(tmp_path, sink)) as gateway:
        await gateway.post(*webhook(1))
        with subprocess.Popen(
            command("tail", "--since", "1h", "--config", str(gateway.config)),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert b"accepted" in await asyncio.to_thread(process.stdout.readline)
            process.stdout.close()
            deadline = time.monotonic() + 20
            number = 2
            while process.poll() is None:
                assert time.monotonic() < deadline
                await gateway.post(*webhook(number))
                number += 1
            assert process.stderr.read() == b""


def test_no_relay_and_a_bad_option_are_told_apart(tmp_path: Path) -> None:
    """Exit code 1 with how to reach one, and 2 before anybody is asked."""
    nobody = run_relay("tail", "--admin", "http://127.0.0.1:1", cwd=tmp_path)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "no relay answers at http://127.0.0.1:1" in nobody.stderr
    assert "relay run" in nobody.stderr
    bad = run_relay("tail", "--since", "soon", "--admin", "http://127.0.0.1:1", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "--since" in bad.stderr


@pytest.mark.slow
async def test_it_comes_back_to_where_it_was_though_nothing_had_happened_yet(tmp_path: Path) -> None:
    """The first position is kept, a relay that has no room yet is waited for, and another store is told of."""
    asked: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) == 2:
            return web.json_response({"detail": "no room"}, status=503, content_type="application/problem+json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f": hello\r\nid: {len(asked)}\r\n\r\n".encode())
        if len(asked) == 3:
            told = {"kind": "reset", "reason": "another store", "position": "7"}
            await response.write(f"id: 7\r\nevent: reset\r\ndata: {json.dumps(told)}\r\n\r\n".encode())
        return response

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    process = await asyncio.create_subprocess_exec(
        *command("tail", "--admin", "http://127.0.0.1:{1}".format(*runner.addresses[0])),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    await until(lambda: len(asked) >= 4)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = (await process.stderr.read()).decode()
    assert await process.wait() == 0
    await runner.cleanup()
    assert asked[:4] == [None, "1", "1", "7"]
    lost, back = "relay: connection lost, reconnecting", "relay: back"
    assert said.splitlines()[:4] == [lost, back, "relay: another store", lost]


@pytest.mark.slow
async def test_a_wrong_token_is_no_reason_to_wait(tmp_path: Path) -> None:
    """Neither at the first call, nor where it is another after a restart."""
    async with Sink() as sink:
        path = config(tmp_path, sink)
        with_token = path.read_text().replace('"}\nstore', '", token: 0123456789abcdef-token}\nstore')
        path.write_text(with_token)
        async with Gateway(path) as gateway:
            wrong = await asyncio.to_thread(
                run_relay, "tail", "--config", str(path), cwd=tmp_path, env={"RELAY_ADMIN_TOKEN": "wrong-wrong-wrong"}
            )
            assert wrong.returncode == 1
            assert "refuses this token" in wrong.stderr
            process = await asyncio.create_subprocess_exec(
                *command("tail", "--since", "1h", "--config", str(path)),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            await gateway.post(*webhook(1))
            await asyncio.wait_for(process.stdout.readline(), 20)
            await gateway.kill()
            path.write_text(with_token.replace("0123456789abcdef-token", "another-token-0123456789"))
            await gateway.start()
            assert await asyncio.wait_for(process.wait(), 30) == 1
            assert b"refuses this token" in await process.stderr.read()


def fed(parts: Iterator[bytes] | list[bytes]) -> tuple[list[Message], str | None]:
    """The messages of a stream that comes in these pieces, and where it ends."""
    messages = Messages()
    found: list[Message] = []
    for part in parts:
        messages.feed(part)
        found += messages.taken()
    return found, messages.last_id


STREAM = (
    "\ufeff: a comment\r\nid: 1\r\n\r\nid: 2\r\nevent: accepted\r\ndata: {\r\ndata:  é\r\ndata\r\n\r\n"
    ": ping\n\ndata: x\nid: 3\nwhat: ever\nretry: 10\n\nid: 4\n\nid: bad\0\rdata:y\r\rdata: cut off"
).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_messages_are_read_whatever_pieces_they_come_in(cuts: list[int]) -> None:
    """Data of several lines, comments, each kind of line's end, an id without data, and one that is cut off."""
    ends = [0, *sorted(cuts), len(STREAM)]
    found, last = fed([STREAM[a:b] for a, b in itertools.pairwise(ends)])
    assert found == [Message("accepted", "{\n é\n", "2"), Message("message", "x", "3"), Message("message", "y", "4")]
    assert last == "4"


def test_a_message_without_an_end_is_not_gathered_for_ever() -> None:
    """Whoever answers so is no relay."""
    for part in (b"x" * 100_000, b"data: " + b"y" * 100_000 + b"\n"):
        with pytest.raises(ValueError, match="without an end"):
            fed([part] * (LONGEST // 100_000 + 2))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("told", [ACCEPTED, ATTEMPTED, REFUSED, ACCEPTED | {"targets": []}])
def test_a_line_fits_whatever_it_has_to_tell(told: dict[str, Any], width: int) -> None:
    """What is too long is cut; the id of an event is whole where there is room for any."""
    for one in (told, told | {"type": "order." * 30, "reason": "no \x1b[2J " * 30, "targets": ["crm"] * 40}):
        shown = re.sub(r"\x1b\[\d+m", "", line(one, width))
        assert len(shown) <= width
        assert "\x1b" not in shown
        if one["kind"] == "accepted" and width >= 80:
            assert shown.endswith(f"  {ID}")


def test_a_line_says_what_matters() -> None:
    """Where it is no terminal nothing is cut."""
    bare = [re.sub(r"\x1b\[\d+m", "", line(one, None)) for one in (ACCEPTED, ATTEMPTED, REFUSED)]
    clock = bare[0][:8]
    later = clock[:-2] + "14"
    assert bare == [
        f"{clock}  accepted   shop  order.paid  -> crm  {ID}",
        f"{clock}  failed     -> crm  #2  500  12ms  next {later}  {ID}",
        f"{clock}  refused    shop  401  missing_key  from 192.0.2.1",
    ]
