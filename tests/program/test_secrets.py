"""Promise 8, on the installed command: a canary of every kind of secret is looked for in all that comes out."""

import json
import signal
import sqlite3
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.support.program import Gateway, until

KEY, OLD_KEY = "canary-source-key-1", "canary-source-key-2"
BEARER, IN_PATH, TOKEN = "canary-bearer-token-3", "canary-in-the-path-4", "canary-admin-token-5"
SENT, IN_QUERY, SHORT = "canary-wrong-key-of-a-stranger-6", "canary-in-the-query-7", "cnry8"
CANARIES = (KEY, OLD_KEY, BEARER, IN_PATH, TOKEN, SENT, IN_QUERY, SHORT)
INNOCENT = {"X-Env": "accepted", "X-Source": "plugandpay", "X-Kind": "delivery.attempted", "Accept": "application/json"}


def config(folder: Path, port: int) -> Path:
    path = folder / "config.yaml"
    path.write_text(
        f"""
server: {{listen: "127.0.0.1:0"}}
admin: {{listen: "127.0.0.1:0", token: {TOKEN}}}
store: {{url: "sqlite:///{folder}/relay.db"}}
log: {{level: debug}}
sources:
  shop: {{provider: custom, secrets: [{KEY}, {OLD_KEY}], verify: {{scheme: api_key, header: X-Key}}, dedupe_key: id}}
targets:
  echo: {{url: "http://127.0.0.1:{port}/{IN_PATH}", headers: {{Authorization: Bearer {BEARER}}}, disable_after: 1}}
  parts: {{url: "http://127.0.0.1:{port}/in/{IN_PATH}?t={IN_QUERY}", headers: {{Authorization: Bearer {SHORT}}}}}
  nobody: {{url: "http://127.0.0.1:1/{IN_PATH}", headers: {{X-Token: {BEARER}}}}}
routes:
  - {{name: all, from: [shop], to: [echo, parts, nobody]}}
"""
    )
    path.chmod(0o600)
    return path


async def echo(request: web.BaseRequest) -> web.Response:
    """A target that fails and repeats whatever it was sent, whole and in its parts."""
    await request.read()
    bearer = request.headers.get("Authorization", "").partition(" ")[2]
    parts = f"{request.path.rpartition('/')[2]} {request.query.get('t')} {bearer}"
    return web.Response(status=500, text=f"no: {parts} {request.path_qs} {dict(request.headers)}")


@pytest.mark.row("B8", "B18", "T56")
async def test_no_secret_comes_out_anywhere(tmp_path: Path) -> None:
    """Not in the log at debug level, the metrics, the admin API, the answers, stderr, or the store."""
    runner = web.ServerRunner(web.Server(echo), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    outputs: list[str] = []
    gateway = Gateway(config(tmp_path, runner.addresses[0][1]))
    async with gateway, aiohttp.ClientSession() as session:

        async def ask(method: str, url: str, **options: object) -> None:
            async with session.request(method, url, **options) as answer:  # type: ignore[arg-type]
                outputs.append(f"{dict(answer.headers)} {await answer.text()}")

        hooks, admin = f"{gateway.hooks}/hooks/shop", {"Authorization": f"Bearer {TOKEN}"}
        for key in (KEY, OLD_KEY, SENT):
            body = json.dumps({"id": key == KEY}).encode()
            await ask("POST", hooks, data=body, headers={"X-Key": key, "Authorization": BEARER, "Cookie": SENT})
        await ask("GET", f"{gateway.hooks}/{SENT}")
        await until(lambda: len(gateway.said("delivery.attempted")) >= 3)
        await until(lambda: bool(gateway.said("target.disabled")))
        for call in ("api/v1/targets", "metrics", "readyz", f"api/v1/{SENT}"):
            await ask("GET", f"{gateway.admin}/{call}", headers=admin)
        await ask("GET", f"{gateway.admin}/metrics", headers={"Authorization": f"Bearer {SENT}"})
        for verb in ("test", "enable", "disable"):
            await ask("POST", f"{gateway.admin}/api/v1/targets/echo/{verb}", headers=admin)
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    await runner.cleanup()
    outputs += [json.dumps(gateway.lines), gateway.errors.decode()]
    database = sqlite3.connect(tmp_path / "relay.db")
    outputs += ["\n".join(map(str, database.execute(f"SELECT * FROM {table}"))) for table in ("attempt", "target")]
    outputs += ["\n".join(map(str, database.execute("SELECT id, source, type, headers FROM event")))]
    database.close()
    assert len(outputs) > 12
    found = {canary for canary in CANARIES for output in outputs if canary in output}
    assert found == set()


async def test_innocent_header_values_do_not_mutilate_the_log(tmp_path: Path) -> None:
    """A header that happens to hold a word of ours, or a name in the config, costs no line its meaning."""
    path = config(tmp_path, 1)
    headers = "".join(f", {name}: {value}" for name, value in INNOCENT.items())
    path.write_text(
        path.read_text().replace(f"Bearer {BEARER}}}", f"Bearer {BEARER}{headers}}}").replace("shop", "plugandpay")
    )
    async with Gateway(path) as gateway:
        status, _ = await gateway.post("plugandpay", b'{"id": 1}', {"X-Key": KEY})
        assert status == 200
        await until(lambda: sum("attempt" in line for line in gateway.lines) >= 3)
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    assert [line["source"] for line in gateway.said("event.accepted")] == ["plugandpay"]
    assert "***" not in json.dumps(gateway.lines)


@pytest.mark.row("C13", "T62")
async def test_a_refused_config_prints_no_value(tmp_path: Path) -> None:
    """What is wrong is named by its place; the value stays unsaid, in the log and on stderr."""
    path = config(tmp_path, 9)
    path.write_text(
        path.read_text().replace("provider: custom", "provider: costum").replace("disable_after: 1", "timeout: 5")
    )
    gateway = Gateway(path)
    with pytest.raises(AssertionError, match="costum"):
        await gateway.start()
    assert await gateway.ended() == 78
    assert not [canary for canary in CANARIES if canary in gateway.errors.decode() + json.dumps(gateway.lines)]
