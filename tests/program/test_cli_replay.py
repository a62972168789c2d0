"""The verbs `replay` and `targets discard`: the real command against the real gateway and a target that remembers."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click
import pytest
from test_cli import environment

from relay.cli import relay as overview
from tests.support.program import Arrival, Gateway, Sink, in_flight, until, webhook, write_config

ONCE = ", retry: {schedule: []}, disable_after: never"
"""A target whose deliveries are dead after one refusal."""


@dataclass
class Said:
    """What a command has said, and its exit code."""

    code: int
    out: str
    err: str


class Scene:
    """A relay with an admin port that survives its restarts, and targets that refuse until they are told otherwise."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.status = 400
        self.sink = Sink(self._answer)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.admin = f"127.0.0.1:{free.getsockname()[1]}"
        self.gateway: Gateway

    async def _answer(self, _: Arrival) -> int:
        return self.status

    def config(self) -> Path:
        path = write_config(self.home / "config.yaml", self.sink, targets={"crm": ONCE, "books": ONCE})
        path.write_text(
            path.read_text().replace('admin: {listen: "127.0.0.1:0"}', f'admin: {{listen: "{self.admin}"}}')
        )
        return path

    async def dead(self, number: int) -> list[str]:
        """Events that both targets have refused for good; they take all that follows."""
        ids: list[str] = []
        async with aiohttp.ClientSession() as session:
            for one in range(number):
                source, body, headers = webhook(one)
                url = f"{self.gateway.hooks}/hooks/{source}"
                async with session.post(url, data=body, headers=headers) as answer:
                    ids.append((await answer.json())["id"])
        await until(lambda: len(self.gateway.said("delivery.dead")) == 2 * number, within=60)
        self.status = 200
        self.sink.arrivals.clear()
        return ids

    async def begin(
        self, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL, stderr: int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        """Start a command beside the relay."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "relay", *arguments),
            cwd=self.home,
            env=environment(COLUMNS="80", TERM="xterm"),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )

    async def end(self, process: asyncio.subprocess.Process) -> Said:
        """What a command says until it ends."""
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        words = (err or b"").decode()
        assert "Traceback" not in words, words
        assert process.returncode is not None
        return Said(process.returncode, out.decode(), words)

    async def relay(self, *arguments: str) -> Said:
        """Run a command to its end."""
        return await self.end(await self.begin(*arguments))

    def replayed(self, target: str) -> Counter[str]:
        """How often a target got which event again."""
        got = [one for one in self.sink.arrivals if one.target == target and one.headers.get("relay-replay") == "1"]
        return Counter(one.event_id for one in got)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A relay that runs."""
    made = Scene(tmp_path)
    async with made.sink:
        made.gateway = Gateway(made.config())
        async with made.gateway:
            yield made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "say what"),
        ("--since 24h", "say what"),
        ("evt_1 --state dead", "not both"),
        ("evt_1 --dry-run", "not both"),
        ("--resume rpl_1 --state dead", "--resume stands alone"),
        ("--cancel rpl_1 --resume rpl_2", "--cancel stands alone"),
        ("evt_1 --cancel rpl_1", "--cancel stands alone"),
        ("--state pending", "is not one of"),
        ("--state dead --limit 0", "not in the range"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(arguments: str, words: str) -> None:
    """Before anybody is asked for anything."""
    with pytest.raises(click.ClickException) as refused:
        overview.main(["replay", *arguments.split()], prog_name="relay", standalone_mode=False)
    assert refused.value.exit_code == 2
    assert words in refused.value.message


async def test_events_are_replayed_by_their_ids(scene: Scene) -> None:
    """Each says where it went, or why not; one that is unknown does not keep the others from it."""
    first, second = await scene.dead(2)
    said = await scene.relay("replay", first, "evt_nobody", second, "--target", "crm")
    assert said.code == 1
    assert said.out == f"{first}: replayed to crm\n{second}: replayed to crm\n"
    assert said.err == "relay: evt_nobody: unknown event\n"
    await until(lambda: scene.replayed("crm") == {first: 1, second: 1})
    assert scene.replayed("books") == {}
    again = await scene.relay("replay", first, "--output", "json")
    assert again.code == 0
    assert sorted(json.loads(again.out)["replayed"]) == ["books", "crm"]


@pytest.mark.row("H60")
async def test_a_filter_is_counted_and_needs_a_yes(scene: Scene) -> None:
    """No answer is a no: nothing is sent, exit 1, and how to say yes. Then it is done."""
    ids = await scene.dead(3)
    counted = await scene.relay("replay", "--state", "dead", "--since", "1h", "--dry-run")
    assert (counted.code, counted.out.splitlines()[0]) == (0, "6 dead deliveries of 2 targets")
    unsure = await scene.relay("replay", "--state", "dead")
    assert (unsure.code, unsure.out) == (1, "")
    assert "nothing was replayed: 6 dead deliveries of 2 targets. Say yes with --yes" in unsure.err
    assert scene.sink.arrivals == []
    done = await scene.relay("replay", "--state", "dead", "--yes")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("6 of 6 replayed; rpl_")
    await until(lambda: scene.replayed("crm") == scene.replayed("books") == dict.fromkeys(ids, 1))


@pytest.mark.slow
async def test_nothing_to_do_is_fine_and_what_was_typed_wrong_is_not(scene: Scene) -> None:
    """Exit 0 for the one, 2 for the other; programs get the API's objects."""
    nothing = await scene.relay("replay", "--state", "dead", "--yes")
    assert (nothing.code, nothing.out) == (0, "0 dead deliveries: nothing to do\n")
    wrong = await scene.relay("replay", "--state", "dead", "--since", "yesterday")
    assert wrong.code == 2
    assert "since must be a span back" in wrong.err
    await scene.dead(1)
    counted = await scene.relay("replay", "--state", "dead", "--dry-run", "--output", "json")
    assert json.loads(counted.out) == {"total": 2, "targets": {"books": 1, "crm": 1}, "dry_run": True}
    done = await scene.relay("replay", "--state", "dead", "--yes", "--output", "json")
    assert json.loads(done.out).items() >= {"state": "done", "done": 2, "skipped": 0}.items()
    gone = await scene.relay("replay", "--state", "dead", "--admin", "http://127.0.0.1:1")
    assert gone.code == 1
    assert "no relay answers" in gone.err


class Terminal:
    """A terminal of its own for a command's standard error, and its input."""

    def __init__(self) -> None:
        self._ours, self.side = pty.openpty()
        os.set_blocking(self._ours, False)
        self._seen = bytearray()

    def shows(self, text: bytes) -> bool:
        """Whether this stands on it by now."""
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(self._ours, 4096):
                self._seen += part
        return text in self._seen

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.side)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal."""
    made = Terminal()
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [(b"\n", 1), (b"\x04", 1), (b"y\n", 0)], ids=["nothing", "end", "yes"])
async def test_on_a_terminal_it_asks_and_shows_how_far_it_is(
    scene: Scene, terminal: Terminal, answer: bytes, code: int
) -> None:
    """`y` is a yes; anything else, and the end of the input, is not."""
    await scene.dead(1)
    asking = await scene.begin(
        "replay", "--state", "dead", "--target", "crm", stdin=terminal.side, stderr=terminal.side
    )
    await until(lambda: terminal.shows(b"1 dead delivery of 1 target. Replay them? [y/N]"))
    terminal.type(answer)
    said = await scene.end(asking)
    assert said.code == code
    assert terminal.shows(b"100%") is (code == 0)
    assert terminal.shows(b"Say yes with --yes") is (code == 1)
    if code == 0:
        await until(lambda: sum(scene.replayed("crm").values()) == 1)


@pytest.mark.slow
@pytest.mark.row("H60")
async def test_ctrl_c_pauses_the_replay_on_the_server(scene: Scene, terminal: Terminal) -> None:
    """It says how to go on; resumed, it is watched to its end; cancelled, it is over."""
    await scene.dead(3)
    arguments = ("replay", "--state", "dead", "--target", "crm", "--rate", "1/h", "--yes")
    watching = await scene.begin(*arguments, stderr=terminal.side)
    await until(lambda: len(scene.replayed("crm")) == 1 and terminal.shows(b"33%"))
    watching.send_signal(signal.SIGINT)
    said = await scene.end(watching)
    assert said.code == 130
    (started,) = scene.gateway.said("replay.started")
    job = started["replay_id"]
    assert f"{job} is paused: 1 of 3 replayed" in said.out
    assert f"relay replay --resume {job}" in said.out
    assert f"--cancel {job}" in said.out
    again = await scene.begin("replay", "--resume", job, "--output", "json")
    await until(lambda: len(scene.replayed("crm")) == 2)
    cancelled = await scene.relay("replay", "--cancel", job)
    assert (cancelled.code, cancelled.out) == (0, f"{job} is cancelled: 2 of 3 replayed\n")
    watched = await scene.end(again)
    assert (watched.code, json.loads(watched.out)["state"]) == (1, "cancelled")
    over = await scene.relay("replay", "--resume", job)
    assert over.code == 1
    assert "it is over: cancelled" in over.err


@pytest.mark.slow
async def test_what_a_target_holds_is_discarded_after_a_yes(scene: Scene) -> None:
    """Not while it is active; no answer is a no."""
    active = await scene.relay("targets", "discard", "crm", "--yes")
    assert active.code == 1
    assert "disable it first: relay targets disable crm" in active.err
    await scene.relay("targets", "disable", "crm")
    nothing = await scene.relay("targets", "discard", "crm")
    assert (nothing.code, nothing.out) == (0, "crm holds nothing; nothing was done\n")
    for number in range(2):
        await scene.gateway.post(*webhook(number))
    unsure = await scene.relay("targets", "discard", "crm")
    assert (unsure.code, unsure.out) == (1, "")
    assert "nothing was discarded: 2 held deliveries of crm stay. Say yes with --yes" in unsure.err
    assert (await scene.gateway.targets())["crm"]["held"] == 2
    done = await scene.relay("targets", "discard", "crm", "--yes", "--output", "json")
    assert (done.code, json.loads(done.out)) == (0, {"target": "crm", "discarded": 2, "dry_run": False})
    assert (await scene.gateway.targets())["crm"].items() >= {"held": 0, "dead": 2}.items()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.row("H60", "B65")
async def test_five_hundred_are_replayed_once_though_the_relay_is_killed_half_way(scene: Scene) -> None:
    """Whoever watches is told that it is paused, and how it goes on; resumed, each event is replayed exactly once. A
    target sees a second copy only of what was in flight at the kill."""
    ids = await scene.dead(500)
    watching = await scene.begin("replay", "--state", "dead", "--target", "crm", "--yes")
    await until(lambda: len(scene.replayed("crm")) >= 200, within=60)
    await scene.gateway.kill()
    claimed = Counter(event_id for event_id, target in in_flight(scene.home, scene.home / "copy") if target == "crm")
    await scene.gateway.start()
    said = await scene.end(watching)
    assert said.code == 1
    job = scene.gateway.said("replay.paused")[0]["replay_id"]
    assert f"{job} is paused (the relay was restarted)" in said.out
    assert f"relay replay --resume {job}" in said.out
    resumed = await scene.relay("replay", "--resume", job)
    assert (resumed.code, resumed.out) == (0, f"500 of 500 replayed; {job} is done\n")
    await until(lambda: len(scene.replayed("crm")) == 500, within=60)
    once = Counter(ids)
    assert once <= scene.replayed("crm") <= once + claimed
    nothing = await scene.relay("replay", "--state", "dead", "--target", "crm", "--yes")
    assert nothing.out == "0 dead deliveries: nothing to do\n"
