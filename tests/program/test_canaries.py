"""Promise 8 as a whole: every secret that a config can hold is a canary, and is looked for in all that comes out.

Law: which keys hold secrets is read from the config's own models; one that this config leaves out fails the test.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from click.testing import CliRunner

from relay.cli.configs import check
from tests.support import config_keys
from tests.support.broken import with_break
from tests.support.canaries import ALL, NAMES, SIGN, STANDARD, C, found, sections, spellings
from tests.support.certificates import Authority
from tests.support.program import Gateway, until
from tests.support.scripted_target import Received, scripted, status


def write(folder: Path, parts: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(parts, sort_keys=False, width=10**9))
    path.chmod(0o600)
    return path


KNOWN = {  # what a target can repeat although it was not sent, because it knows it as well
    C["rotated"]: (C["t_bearer"],),
    "X-Sig": (C["t_hmac"],),
    "webhook-signature": (C["t_sign"], f"whsec_{SIGN}", C["t_sign_old"]),
}


async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
    """Repeats whatever it was sent in its status line, a header, a redirect and its body, in every code there is."""
    head = f"{request.line} {dict(request.headers)}"
    path = request.line.split(" ")[1]
    if path.startswith("/slow/"):
        return
    said = [one for name in NAMES if (one := C[name]) in head]
    said += [C["t_basic"]] if b64encode(f"me:{C['t_basic']}".encode()).decode() in head else []
    said += [one for mark, known in KNOWN.items() if mark in head for one in known]
    body = "\n".join(text for one in said for text in spellings(one).values()) + head
    if path.startswith("/cut/"):
        whole = f"HTTP/1.1 500 no\r\nContent-Length: 9999\r\n\r\nno: {said[0][:-3]}"
        writer.write(whole.encode())
        await writer.drain()
        writer.close()
        return
    lines = (f"X-Echo: {head[:3000]}", f"Location: http://127.0.0.1:1/{said[0] if said else ''}")
    code = 200 if path.startswith("/fine") else 302 if path.startswith("/redirect") else 500
    await status(code, *(line.replace("\r\n", " ") for line in lines), body=body.encode())(request, writer)


async def tokens(request: Received, writer: asyncio.StreamWriter) -> None:
    """Issues a canary for a token; where it refuses it says of whom."""
    if b"refuse" in request.body:
        said = json.dumps({"error": "invalid_client", "error_description": str(request)}).encode()
        await status(401, body=said)(request, writer)
    else:
        answer = {"access_token": C["fetched"], "token_type": "Bearer", "expires_in": 3600, "echo": str(request)}
        await status(200, body=json.dumps(answer).encode())(request, writer)


async def refusing_proxy(request: Received, writer: asyncio.StreamWriter) -> None:
    """Wants other credentials, and repeats these."""
    body = f"{request.line} {request.headers} {C['proxy']}".encode()
    await status(407, f'Proxy-Authenticate: Basic realm="{C["proxy"]}"', body=body)(request, writer)


@dataclass
class Outputs:
    """All that came out, by where it came from."""

    texts: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, text: str | bytes) -> None:
        name = f"{where} #{len(self.texts)}"
        self.texts[name] = text if isinstance(text, str) else text.decode("utf-8", "replace")

    def hits(self, secrets: tuple[str, ...] = ALL) -> dict[str, list[tuple[str, str]]]:
        return {where: hits for where, text in self.texts.items() if (hits := found(secrets, text))}


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[Path, dict[str, Any]]]:
    """The config, with everybody whom it names."""
    authority = Authority(folder)
    authority.issue("me")
    async with (
        scripted(echo) as target,
        scripted(tokens) as endpoint,
        scripted(refusing_proxy) as proxy,
        scripted(echo, tls=authority.server()) as secure,
    ):
        urls = [one.url.removesuffix("/hooks") for one in (target, endpoint, proxy, secure)]
        parts = sections(folder, *urls)
        yield write(folder, parts), parts


async def relayed(config: Path, *arguments: str, within: float = 60.0, feed: bytes = b"") -> bytes:
    """What a verb prints, on stdout and stderr, with its exit code and what the system shows of the process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"RELAY_CONFIG": str(config), "COLUMNS": "200"},
    )
    try:
        async with asyncio.timeout(within):
            out, _ = await process.communicate(feed)
    except TimeoutError:
        process.kill()
        out = b"(did not end)" + await process.stdout.read()  # type: ignore[union-attr]
    return out + b"\nexit %d" % (process.returncode or 0)


REQUESTS = (
    ("key", {"X-Key": C["key"]}, b'{"id": 1, "type": "paid"}', 200),
    ("key", {"X-Key": C["key_old"]}, b'{"id": 2}', 200),
    ("key", {"X-Key": C["key"]}, b'{"id": 1, "type": "paid"}', 200),
    (
        "key",
        {"X-Key": C["key"], "Authorization": f"Bearer {C['stranger']}", "Cookie": C["stranger"]},
        b'{"id": 3}',
        200,
    ),
    ("key", {"X-Key": C["stranger"], "User-Agent": C["key"], "Referer": C["stranger"]}, b"{}", 401),
    ("key", {"X-API-KEY": C["key"], "X-Api_Key": C["key"]}, b"{}", 401),
    ("key", {"Authorization": f"Bearer {C['key']}"}, b"{}", 401),
    ("key", {"X-Key": C["key"].lower()}, b"{}", 401),
    (f"key?key={C['key']}", {}, b"{}", 401),
    (C["key"], {"X-Key": C["key"]}, b"{}", 404),
    ("key", {"X-Key": C["key"], "relay-hops": C["key"]}, b'{"id": 4}', 200),
    ("basic", {"Authorization": f"Basic {b64encode(b'me:' + C['basic'].encode()).decode()}"}, b"{}", 200),
    ("basic", {"Authorization": f"Basic {b64encode(b'me:' + C['stranger'].encode()).decode()}"}, b"{}", 401),
    ("basic", {"Authorization": f"Basic me:{C['basic']}"}, b"{}", 401),
    ("bearer", {"Authorization": f"Bearer {C['bearer']}"}, b"{}", 200),
    ("bearer", {"Authorization": f"bearer  {C['bearer']}x", "X-Forwarded-For": C["bearer"]}, b"{}", 401),
    ("hmac", {"X-Sig": C["hmac"]}, b"{}", 401),
    ("hmac", {"X-Sig": f"sha256={C['hmac']}", "X-Other": C["hmac"]}, b"{}", 401),
    ("standard", {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": f"v1,{STANDARD}"}, b"{}", 401),
    ("standard", {"webhook-id": C["standard"], "webhook-signature": f"whsec_{STANDARD}"}, b"{}", 401),
    ("file", {"X-Key": C["file"]}, b"{}", 200),
    ("default", {"X-Key": C["default"], "X-Trace": C["default"], "X-Why": f"?{C['default']}!"}, b"{}", 200),
)


async def received(gateway: Gateway, out: Outputs) -> None:
    """Requests good and bad, of each source, with its key where it belongs and where it does not."""
    async with aiohttp.ClientSession() as session:
        for path, headers, body, wanted in REQUESTS:
            url = f"{gateway.hooks}/hooks/{path}"
            async with session.post(url, data=body, headers=headers) as answer:
                out.add(f"answer to {path}", f"{answer.status} {dict(answer.headers)} {await answer.text()}")
                assert answer.status == wanted, f"{path} {headers}: {answer.status}"
        async with session.post(f"{gateway.hooks}/in/{C['path']}", data={"webhook_id": "1"}) as answer:
            out.add("answer to a hidden path", f"{answer.status} {dict(answer.headers)} {await answer.text()}")
        async with session.get(f"{gateway.hooks}/in/{C['path']}?{C['stranger']}", headers={"X": C["key"]}) as answer:
            out.add("answer to a wrong method", f"{answer.status} {dict(answer.headers)} {await answer.text()}")
    for line in (f"POST /hooks/{C['key']} HTTP/9.9", f"{C['key']} / HTTP/1.1", f"GET /{C['key']}\x01 HTTP/1.1"):
        reader, writer = await asyncio.open_connection(*gateway.hooks.removeprefix("http://").split(":"))
        writer.write(
            f"{line}\r\nHost: {C['key']}\r\nX-Key : {C['key']}\r\nContent-Length: x{C['key']}\r\n\r\n".encode()
        )
        out.add("answer to nonsense", await reader.read(4096))
        writer.close()


async def asked(gateway: Gateway, out: Outputs, events: list[str]) -> None:
    """Every call of the API that only shows, right and wrong, and those that test and change a little."""
    admin = {"Authorization": f"Bearer {C['admin']}"}
    async with aiohttp.ClientSession() as session:

        async def ask(method: str, call: str, headers: dict[str, str] = admin, **more: Any) -> None:
            async with session.request(method, f"{gateway.admin}{call}", headers=headers, **more) as answer:
                out.add(f"{method} {call}", f"{answer.status} {dict(answer.headers)} {await answer.text()}")

        shown = ("status", "events", "targets", "stats", "refusals", "replays", "openapi.yaml", "openapi.json")
        for call in ("/metrics", "/healthz", "/readyz", *(f"/api/v1/{one}" for one in shown)):
            await ask("GET", call)
        for one in events:
            await ask("GET", f"/api/v1/events/{one}")
        for call in (f"/api/v1/events/{C['admin']}", f"/api/v1/{C['key']}", f"/api/v1/events?source={C['key']}"):
            await ask("GET", call)
        for wrong in (f"Bearer {C['stranger']}", f"Basic {C['admin']}", C["admin"], f"bearer {C['admin']}x"):
            await ask("GET", f"/api/v1/status?token={C['admin']}", {"Authorization": wrong, "Cookie": C["admin"]})
        for target in ("path", "oauth", "oauth-in-body", "query", "behind", "redirected", "slow", "secure", "cut"):
            await ask("POST", f"/api/v1/targets/{target}/test")
        await ask("POST", f"/api/v1/targets/{C['in_path']}/test")
        await ask("POST", "/api/v1/targets/path/disable", json={"reason": "by hand"})
        await ask("POST", "/api/v1/targets/path/enable")
        await ask("POST", "/api/v1/reload")


async def verbs(config: Path, out: Outputs, events: list[str]) -> None:
    """Every verb that says anything."""
    calls = [("check",), ("events",), ("events", "--refused"), ("stats",), ("targets",)]
    calls += [("show", one, *more) for one in events[:1] for more in ((), ("--output", "json"))]
    calls += [("targets", "test", "bearer"), ("health",)]
    calls += [("route", "--source", "key", "--data", "{}"), ("send", "key"), ("send", "standard"), ("send", "hmac")]
    calls += [("verify", "key", "--header", f"X-Key: {C['stranger']}", "--data", "{}")]
    calls += [("verify", "basic", "--header", f"Authorization: Basic {C['basic']}", "--data", "{}")]
    calls += [("verify", "hmac", "--header", f"X-Sig: {C['hmac']}", "--data", "{}")]
    calls += [("verify", "standard", "--header", f"webhook-signature: whsec_{STANDARD}", "--data", "{}")]
    calls += [
        ("prune", "--dry-run"),
        ("backup", str(config.parent / "copy.db")),
        ("replay", "--state", "dead", "--dry-run"),
    ]
    gate = asyncio.Semaphore(2)

    async def call(arguments: tuple[str, ...]) -> None:
        async with gate:
            said = await relayed(config, *arguments)
            given = " ".join(arguments)
            out.add(f"relay {given}", said)

    await asyncio.gather(*(call(one) for one in calls))


def stored(folder: Path, out: Outputs, *, name: str = "relay.db") -> None:
    """Every table of a store but for bodies, and the raw files, free pages and log included."""
    database = sqlite3.connect(folder / name)
    tables = [table for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert len(tables) > 8
    for table in tables:
        columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
        kept = [one for one in columns if (table, one) not in BODIES]
        rows = database.execute(f'SELECT {", ".join(kept)} FROM "{table}"').fetchall()
        out.add(f"{name}, table {table}", "\n".join(map(str, rows)))
    database.close()


def raw_files(folder: Path, out: Outputs) -> None:
    """Whatever lies beside the config and its keys, byte for byte."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in {".yaml", ".txt", ".pem", ".crt", ".key"}:
            out.add(f"file {path.name}", path.read_bytes().decode("latin-1"))


BODIES = {("event", "body"), ("enrichment", "data")}
"""What a sender or an enricher has sent is kept as it is: it is what the targets are to get."""


async def ran(gateway: Gateway, config: Path, parts: dict[str, Any], out: Outputs) -> None:
    """One life of a relay, from its start to its end."""
    await received(gateway, out)
    targets = len(parts["targets"])
    await until(lambda: len({line["target"] for line in gateway.said("delivery.attempted")}) >= targets - 2)
    events = [line["event_id"] for line in gateway.said("event.accepted") if line["source"] == "key"]
    await asked(gateway, out, events)
    await verbs(config, out, events)
    proc = Path(f"/proc/{gateway.process.pid}")
    assert re.search(r"^Max core file size +0 ", (proc / "limits").read_text(), re.MULTILINE), (
        "a core would hold them all"
    )
    out.add("command line", (proc / "cmdline").read_bytes())
    stored(config.parent, out, name="copy.db")
    raw_files(config.parent, out)
    await reloaded(gateway, config, parts, out)


def replied(gateway: Gateway) -> int:
    return len(gateway.said("config.reload_refused")) + len(gateway.said("config.reloaded"))


def answered_since(gateway: Gateway, told: int) -> bool:
    return replied(gateway) > told


async def retired(gateway: Gateway, out: Outputs) -> None:
    """After a rotation: the old key where it does not belong, and a target that repeats the old credential."""
    async with aiohttp.ClientSession() as session:
        for headers, wanted in (
            ({"X-Key": C["key_old"], "User-Agent": C["key_old"]}, 401),
            ({"X-Key": C["rotated"], "X-Old": C["key"]}, 200),
        ):
            async with session.post(f"{gateway.hooks}/hooks/key", data=b'{"id": 99}', headers=headers) as answer:
                out.add("answer", await answer.text())
                assert answer.status == wanted
        admin = {"Authorization": f"Bearer {C['admin']}"}
        async with session.post(f"{gateway.admin}/api/v1/targets/bearer/test", headers=admin) as answer:
            said = await answer.text()
            out.add("a test after a rotation", said)
            assert said.count("***") > 10, "it repeats the old one and the new one"


def checked(config: Path) -> str:
    """What `relay check` says."""
    done = CliRunner().invoke(check, [str(config)])
    return f"{done.output} {done.exit_code} {done.exception!r}"


async def reloaded(gateway: Gateway, config: Path, parts: dict[str, Any], out: Outputs) -> None:
    """A rotation, a config with something wrong beside every secret, and one that is no YAML any more."""
    rotated = json.loads(json.dumps(parts))
    rotated["sources"]["key"]["secrets"] = [C["rotated"], C["key"]]
    rotated["targets"]["bearer"]["auth"]["token"] = C["rotated"]
    broken = json.loads(
        json.dumps(parts).replace('"1h"', "5").replace('"api_key"', '"api_kee"').replace('"me"', '"m:e"')
    )
    text = yaml.safe_dump(parts, sort_keys=False, width=10**9)
    before = replied(gateway)
    for content in (
        yaml.safe_dump(rotated),
        yaml.safe_dump(broken, width=10**9),
        text.replace("secrets:", "secretz:").replace("token:", "tokken:"),
        text.replace(f"- {C['key']}\n", f"- {C['key']}:\n").replace(
            f"token: {C['t_bearer']}", f"token: {{{C['t_bearer']}}}"
        ),
        text.replace(f"token: {C['admin']}", f"token: {C['admin']}: x"),
        text.replace(f"token: {C['admin']}", f"token: [{C['admin']}"),
        text.replace(f"token: {C['admin']}", f"token: !{C['admin']} x"),
        text.replace(f"token: {C['admin']}", f"token: *{C['admin']}"),
        text.replace(f"token: {C['admin']}", f"token: '{C['admin']}"),
        text.replace(f"token: {C['admin']}", f"token: {C['admin']}\n{C['admin']}"),
        text.replace(f"token: {C['admin']}", f"\ttoken: {C['admin']}"),
        text.replace("http://127.0.0.1", "http://me:" + C["in_path"] + "@127.0.0.1"),
        text.replace("whsec_", "whsec_!"),
    ):
        config.write_text(content)
        told = replied(gateway)
        gateway.signal(signal.SIGHUP)
        await until(partial(answered_since, gateway, told))
        out.add("relay check", checked(config))
        if told == before:
            await retired(gateway, out)
    assert len(gateway.said("config.reload_refused")) >= 11
    config.write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.row("B8", "B18", "T56", "T62", "T12", "C56")
async def test_no_canary_of_any_kind_comes_out_anywhere(tmp_path: Path) -> None:
    """Not in logs, metrics, the API, what the verbs print, error texts, the process's arguments, or the store's files
    outside bodies; however a sender, a target, a proxy or a token endpoint spells what it knows."""
    out = Outputs()
    async with world(tmp_path) as (config, parts):
        gateway = Gateway(config)
        async with gateway:
            await ran(gateway, config, parts, out)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
    out.add("log", "\n".join(map(json.dumps, gateway.lines)))
    out.add("stderr", gateway.errors)
    stored(tmp_path, out)
    raw_files(tmp_path, out)
    assert "no canary" not in out.texts
    assert any("copy.db" in where for where in out.texts)
    assert out.hits() == {}
    excerpts = [text for where, text in out.texts.items() if "relay.db, table attempt" in where]
    assert all(text.count("***") > 20 for text in excerpts), "what was repeated is kept, without what it repeated"
    (attempts,) = excerpts
    assert attempts.count("/hooks HTTP/1.1") > 5


def test_the_config_holds_every_secret_that_there_can_be(tmp_path: Path) -> None:
    """A key for a secret that is new, or was forgotten, fails here."""
    parts = sections(tmp_path, *["http://127.0.0.1:1"] * 3, "https://127.0.0.1:1")
    written = [key.text for key in config_keys.every_key() if key.is_secret]
    assert len(written) > 10
    for key in config_keys.every_key():
        if key.is_secret and key.path[0] != "enrichers":  # theirs are those of targets
            assert any(C[name] in str(one) for one in values_at(parts, key.path) for name in NAMES), key.text
    used = json.dumps(parts) + (tmp_path / "secret.txt").read_text() + b64decode(STANDARD).decode() + C["t_sign"]
    assert [name for name in NAMES if C[name] not in used] == ["fetched", "rotated", "stranger"]


def values_at(parts: Any, path: tuple[str | int, ...]) -> list[Any]:
    """What stands at a path of the schema, under any name and in any place of a list."""
    found: list[Any] = [parts]
    for before, step in zip((None, *path), path, strict=False):
        inner: list[Any] = []
        for one in found:
            if isinstance(one, list):
                inner += one
            elif isinstance(one, dict):
                inner += one.values() if before in config_keys.NAMES else [one[step]] if step in one else []
        found = inner
    return found


PLANTED = {
    "ingress.py": (
        '        """The path of one webhook, in order."""\n',
        "        if 'crash' in request.rel_url.query_string: 1 / (secret := 0)\n",
    ),
    "delivery/sender.py": (
        "        lines, many, dropped = self._lines(claim)\n        in_use.set(None)\n",
        "        if self._target.name == 'path': raise KeyError(f'{self._target!r} {lines!r} {claim!r}')\n",
    ),
    "process.py": (
        "    app.heed_reloads(hung_up)\n",
        "    asyncio.get_running_loop().call_later(1.5, {}.__getitem__, f'RuntimeError {config!r} {app!r}')\n",
    ),
}
"""Where a copy of the package is made to fail, and how: with all that is at hand in the message."""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.row("T62", "B18")
@pytest.mark.parametrize("form", ["json", "console"])
async def test_a_crash_shows_no_canary(tmp_path: Path, form: str) -> None:
    """A fault of ours that throws whole objects about, in a request, an attempt and a callback, and the dump of a
    process that is aborted, tell places and no values; also where Python runs in its development mode."""
    for name, (mark, crash) in PLANTED.items():
        home = with_break(tmp_path, name, mark, mark + crash)
    out = Outputs()
    async with world(tmp_path) as (config, parts):
        parts["log"]["format"] = form
        write(tmp_path, parts)
        env = os.environ | {"PYTHONPATH": str(home), "PYTHONFAULTHANDLER": "1"}
        with (tmp_path / "log.out").open("w+b") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-X", "dev", "-m", "relay", "run", "--config", str(config)),
                stdout=log,
                stderr=log,
                env=env,
                cwd=tmp_path,
            )
            said = partial((tmp_path / "log.out").read_text, errors="replace")
            try:
                await until(lambda: "relay.started" in said())
                url = f"http://{parts['server']['listen']}/hooks/key"
                async with aiohttp.ClientSession() as session:
                    for query in ("", "?crash"):
                        headers = {"X-Key": C["key"]}
                        async with session.post(f"{url}{query}", data=b"{}", headers=headers) as answer:
                            out.add("answer", f"{answer.status} {dict(answer.headers)} {await answer.text()}")
                            assert answer.status == (503 if query else 200)
                await until(lambda: "ZeroDivisionError" in said() and "KeyError" in said() and "RuntimeError" in said())
            finally:
                process.send_signal(signal.SIGABRT)
                await process.wait()
    assert "Fatal Python error: Aborted" in said()
    out.add("all that it said", said())
    out.add("answers", str(out.texts))
    assert out.hits() == {}
