"""SIGHUP and `run --watch`, on the installed command."""

import asyncio
import json
import os
import signal
import ssl
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.certificates import self_signed
from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config

MORE = {"crm": "", "more": ""}


def renamed(config: Path, text: str) -> None:
    """Write as careful editors do: a new file that takes the name of the old."""
    new = config.with_name("new.yaml")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(config)


def text_of(directory: Path, sink: Sink, targets: dict[str, str], *, server: str = "") -> str:
    """Another text for the config of `directory`."""
    path = directory / "other.yaml"
    text = write_config(path, sink, targets=targets, server=server).read_text()
    path.unlink()
    return text


async def test_sighup_takes_up_another_config(tmp_path: Path) -> None:
    """The new target is delivered to; a bad file is refused in one line and the relay goes on; a good one is taken."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        write_config(gateway.config, sink, targets=MORE)
        gateway.signal(signal.SIGHUP)
        await until(lambda: bool(gateway.said("config.reloaded")))
        assert gateway.said("config.reloaded")[0]["targets"] == {"added": ["more"], "removed": [], "changed": []}
        await gateway.post(*webhook(1))
        await until(lambda: sink.ids("more") == sink.ids("crm") != [])
        good = gateway.config.read_text()
        gateway.config.write_text(good.replace("from: [shop]", "from: [shp]"))
        gateway.signal(signal.SIGHUP)
        await until(lambda: bool(gateway.said("config.reload_refused")))
        (line,) = gateway.said("config.reload_refused")
        assert [problem.split(": ")[1:3] for problem in line["problems"]] == [
            ["routes[0].from[0]", 'unknown source "shp"; did you mean "shop"? known']
        ]
        assert (await gateway.post(*webhook(2)))[0] == 200
        gateway.config.write_text(good)
        gateway.signal(signal.SIGHUP)
        await until(lambda: len(gateway.said("config.reloaded")) == 2)
        assert gateway.said("config.reloaded")[1]["targets"] == {"added": [], "removed": [], "changed": []}


async def test_sighup_in_the_midst_of_a_start_or_a_stop_ends_nothing(tmp_path: Path) -> None:
    """It comes again and again, from the first moment to the last: the relay starts, and stops with 0."""
    release = asyncio.Event()

    async def answer_when_released(_: Arrival) -> int:
        await release.wait()
        return 200

    async with Sink(answer_when_released) as sink:
        gateway = Gateway(write_config(tmp_path / "c.yaml", sink))
        starting = asyncio.create_task(gateway.start())
        await until(lambda: gateway._process is not None)
        await until(lambda: _ignores_hangups(gateway.process.pid) or starting.done())
        while not starting.done():
            gateway.signal(signal.SIGHUP)
            await asyncio.sleep(0.01)
        await starting
        await gateway.post(*webhook(1))
        await until(lambda: len(sink.arrivals) == 1)
        gateway.signal(signal.SIGTERM)
        await until(lambda: bool(gateway.said("relay.stopping")))
        gateway.signal(signal.SIGHUP)
        release.set()
        while gateway.process.returncode is None:
            gateway.signal(signal.SIGHUP)
            await asyncio.sleep(0.005)
        assert await gateway.ended() == 0
        assert [line["outcome"] for line in gateway.said("delivery.attempted")] == ["delivered"]


def _ignores_hangups(pid: int) -> bool:
    """Whether the program has come so far that a hangup does not end it: before that it is the interpreter's."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return True
    masks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith(("SigIgn", "SigCgt"))]
    return any(int(mask, 16) & 1 for mask in masks)


@pytest.mark.slow
async def test_a_watched_file_that_is_renamed_into_place_is_taken_up(tmp_path: Path) -> None:
    """As editors save; a content that is refused is told once, however often it is looked at."""
    async with Sink() as sink:
        config = write_config(tmp_path / "c.yaml", sink)
        async with Gateway(config, "--watch") as gateway:
            renamed(config, text_of(tmp_path, sink, MORE))
            await until(lambda: bool(gateway.said("config.reloaded")))
            assert gateway.said("config.reloaded")[0]["targets"]["added"] == ["more"]
            renamed(config, "sources: nothing")
            await until(lambda: bool(gateway.said("config.reload_refused")))
            renamed(config, text_of(tmp_path, sink, {"crm": ""}))
            await until(lambda: len(gateway.said("config.reloaded")) == 2)
            assert gateway.said("config.reloaded")[1]["targets"]["removed"] == ["more"]
            assert len(gateway.said("config.reload_refused")) == 1


@pytest.mark.slow
async def test_a_mounted_config_that_is_swapped_is_taken_up(tmp_path: Path) -> None:
    """As Kubernetes updates a ConfigMap: the file is a link through `..data`, and that link is replaced."""
    async with Sink() as sink:
        for version, targets in (("..v1", {"crm": ""}), ("..v2", MORE)):
            (tmp_path / version).mkdir()
            (tmp_path / version / "config.yaml").write_text(text_of(tmp_path, sink, targets))
        (tmp_path / "..data").symlink_to("..v1")
        config = tmp_path / "config.yaml"
        config.symlink_to("..data/config.yaml")
        async with Gateway(config, "--watch") as gateway:
            (tmp_path / "..tmp").symlink_to("..v2")
            (tmp_path / "..tmp").rename(tmp_path / "..data")
            await until(lambda: bool(gateway.said("config.reloaded")))
            assert gateway.said("config.reloaded")[0]["targets"]["added"] == ["more"]
            assert gateway.said("config.reload_refused") == []


@pytest.mark.slow
async def test_a_watched_file_that_stays_missing_is_told_once(tmp_path: Path) -> None:
    """And when it is back it is taken up; a file of a secret is watched as well."""
    async with Sink() as sink:
        config, secret = tmp_path / "c.yaml", tmp_path / "key"
        secret.write_text("an-old-key-of-the-shop")
        secret.chmod(0o600)
        text = text_of(tmp_path, sink, {"crm": ""}).replace('"test-key-0123456789"', f'"${{file:{secret}}}"')
        renamed(config, text)
        async with Gateway(config, "--watch") as gateway:
            secret.write_text("a-new-key-of-the-shop")
            await until(lambda: bool(gateway.said("config.reloaded")))
            assert gateway.said("config.reloaded")[0]["sources"]["changed"] == ["shop"]
            config.unlink()
            await until(lambda: bool(gateway.said("config.reload_refused")))
            assert "cannot read config" in gateway.said("config.reload_refused")[0]["problems"][0]
            renamed(config, text)
            await until(lambda: len(gateway.said("config.reloaded")) == 2)
            assert len(gateway.said("config.reload_refused")) == 1


@pytest.mark.slow
async def test_reloads_under_load_lose_nothing(tmp_path: Path) -> None:
    """Dozens of reloads that add, change and remove targets, while webhooks come in: each that was answered 200 is
    delivered to the target that stays, once, and to the one that comes and goes as soon as it is back."""
    variants = [
        {"crm": ", timeout: 3s", "more": ""},
        {"crm": ', headers: {X-Version: "2"}', "more": ", concurrency: 2"},
        {"crm": ", concurrency: 3"},
    ]

    async def answer_slowly(_: Arrival) -> int:
        await asyncio.sleep(0.02)
        return 200

    async with Sink(answer_slowly) as sink, Gateway(write_config(tmp_path / "c.yaml", sink, targets=MORE)) as gateway:
        accepted: list[str] = []
        done = asyncio.Event()

        async def send(sender: int) -> None:
            async with aiohttp.ClientSession() as session:
                number = 0
                while not done.is_set():
                    number += 1
                    source, _, headers = webhook(0)
                    body = json.dumps({"id": f"{sender}-{number}"})
                    async with session.post(f"{gateway.hooks}/hooks/{source}", data=body, headers=headers) as answer:
                        assert answer.status == 200
                        accepted.append((await answer.json())["id"])

        senders = [asyncio.create_task(send(number)) for number in range(4)]
        for number in range(24):
            renamed(gateway.config, text_of(tmp_path, sink, variants[number % 3]))
            gateway.signal(signal.SIGHUP)
            await until(lambda seen=number: len(gateway.said("config.reloaded")) > seen)
        done.set()
        await asyncio.gather(*senders)
        renamed(gateway.config, text_of(tmp_path, sink, MORE))
        gateway.signal(signal.SIGHUP)
        await until(lambda: set(sink.ids("crm")) >= set(accepted))
        routed = {line["event_id"] for line in gateway.said("event.accepted") if line["targets"] == 2}
        await until(lambda: set(sink.ids("more")) >= routed)
        assert gateway.said("config.reload_refused") == []
        assert gateway.said("delivery.loop_failed") == []
        for target in MORE:
            assert len(sink.ids(target)) == len(set(sink.ids(target)))
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0


@pytest.mark.slow
async def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    """Under the loop that the program really runs on, and to a client that names no host."""
    async with Sink() as sink:
        cert, key = self_signed(tmp_path, "127.0.0.1")
        config = write_config(tmp_path / "c.yaml", sink, server=f'tls: {{cert: "{cert}", key: "{key}"}}')
        async with Gateway(config) as gateway:
            port = int(gateway.hooks.rpartition(":")[2])
            first = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            self_signed(tmp_path, "127.0.0.1")
            os.kill(gateway.process.pid, signal.SIGHUP)
            await until(lambda: bool(gateway.said("config.reloaded")))
            second = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            assert second != first


BAD = {
    "garbage": b"\x00\xff\xfe{{{",
    "empty": b"",
    "a list": b"- sources\n",
    "tabs": b"server:\n\tlisten: x\n",
    "an unknown key": b"souces: {}\n",
    "unset": b'sources: {shop: {provider: custom, secrets: ["${NOBODY_SETS_THIS}"]}}\n',
    "half a secret": b'sources: {shop: {provider: custom, secrets: ["abc"], verify: {scheme: bearer}}}\n',
}


async def lines_of_check(config: Path) -> list[str]:
    """What `relay check` prints of a config."""
    check = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "check", "--config", str(config)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await check.communicate()
    assert check.returncode == 78
    return errors.decode().splitlines()


@pytest.mark.slow
@pytest.mark.row("F35", "C56")
async def test_a_bad_half_written_or_missing_config_changes_nothing(tmp_path: Path) -> None:
    """Each is refused with the lines that `relay check` prints, a file cut off anywhere too; the config before stays
    in force, as a whole, and the next good one is taken."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink)) as gateway:
        good = gateway.config.read_bytes()
        larger = text_of(tmp_path, sink, MORE).encode()
        cut = {f"cut at {at}": larger[:at] for at in range(20, len(larger) - 12, len(larger) // 5)}
        for number, (name, content) in enumerate((BAD | cut | {"gone": b""}).items(), start=1):
            if name == "gone":
                gateway.config.unlink()
            else:
                gateway.config.write_bytes(content)
            gateway.signal(signal.SIGHUP)
            await until(lambda number=number: len(gateway.said("config.reload_refused")) == number)
            if name in ("tabs", "unset", "gone"):
                assert gateway.said("config.reload_refused")[-1]["problems"] == await lines_of_check(gateway.config)
            status, answer = await gateway.post(*webhook(number))
            assert status == 200
            await until(lambda answer=answer: answer["id"] in sink.ids("crm"))
        assert gateway.said("config.reloaded") == []
        assert sink.ids("more") == []
        gateway.config.write_bytes(good)
        gateway.signal(signal.SIGHUP)
        await until(lambda: len(gateway.said("config.reloaded")) == 1)


@pytest.mark.slow
@pytest.mark.row("B33")
async def test_a_reload_rules_the_very_next_attempt(tmp_path: Path) -> None:
    """A delivery that has failed at the old address is tried next at the new one, with the new header, and so is what
    comes in after; nothing of the old config is remembered anywhere."""

    async def answer(arrival: Arrival) -> int:
        return 500 if arrival.target == "old" else 200

    async with Sink(answer) as sink:
        config = write_config(tmp_path / "c.yaml", sink, targets={"old": ", retry: {schedule: [3s, 3s]}"})
        config.write_text(config.read_text().replace("old: {", "crm: {").replace("[old]", "[crm]"))
        async with Gateway(config) as gateway:
            _, first = await gateway.post(*webhook(1))
            await until(lambda: len(sink.arrivals) == 1)
            text = config.read_text().replace("/old", "/new").replace(", retry", ', headers: {X-New: "1"}, retry')
            config.write_text(text)
            gateway.signal(signal.SIGHUP)
            await until(lambda: bool(gateway.said("config.reloaded")))
            _, second = await gateway.post(*webhook(2))
            await until(lambda: len(sink.ids("new")) == 2)
            assert set(sink.ids("new")) == {first["id"], second["id"]}
            assert all(one.headers["x-new"] == "1" for one in sink.arrivals if one.target == "new")
            assert len(sink.ids("old")) == 1
