"""Promise 8 for what proves us to targets: a canary of each scheme is looked for in all that comes out."""

import json
import signal
import sqlite3
from base64 import b64encode
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.program import Gateway, until
from tests.support.proxy import proxying
from tests.support.scripted_target import Received, scripted, status
from tests.support.token_endpoint import token_endpoint

BEARER, PASSWORD, KEY = "canary-bearer-1", "canary-password-2", "canary-api-key-3"
IN_QUERY, HMAC, CLIENT = "canary-query-key-4", "canary-hmac-secret-5", "canary-client-secret-6"
SIGNING, PROXY, ADMIN = "canary-signing-key-7", "canary-proxy-password-8", "canary-admin-token-9"
REFUSED = "canary-refused-secret-0"
BASIC = b64encode(f"me:{PASSWORD}".encode()).decode()
WHSEC = b64encode(SIGNING.encode()).decode()
CANARIES = (BEARER, PASSWORD, KEY, IN_QUERY, HMAC, CLIENT, SIGNING, PROXY, ADMIN, REFUSED, BASIC, WHSEC, "token-1-01")


def config(folder: Path, target: str, tokens: str, proxy: str) -> Path:
    oauth = f"scheme: oauth2, token_url: {tokens}, client_id: me"
    path = folder / "config.yaml"
    path.write_text(
        f"""
server: {{listen: "127.0.0.1:0"}}
admin: {{listen: "127.0.0.1:0", token: {ADMIN}}}
store: {{url: "sqlite:///{folder}/relay.db"}}
log: {{level: debug}}
sources:
  shop: {{provider: custom, secrets: [0123456789abcdef], verify: {{scheme: api_key, header: X-Key}}}}
targets:
  bearer: {{url: "{target}", auth: {{scheme: bearer, token: {BEARER}}}, disable_after: 1}}
  basic: {{url: "{target}", auth: {{scheme: basic, username: me, password: {PASSWORD}}}}}
  key: {{url: "{target}", auth: {{scheme: api_key, header: X-Shop, value: {KEY}}}}}
  query: {{url: "{target}", auth: {{scheme: api_key, query: k, value: {IN_QUERY}}}}}
  digest: {{url: "{target}", auth: {{scheme: hmac, header: X-Sig, algorithm: sha256, secret: {HMAC}}}}}
  oauth: {{url: "{target}", auth: {{{oauth}, client_secret: {CLIENT}}}}}
  refused: {{url: "{target}", auth: {{{oauth}, client_auth: body, client_secret: {REFUSED}}}}}
  signed: {{url: "{target}", sign: {{secrets: [whsec_{WHSEC}]}}}}
  behind: {{url: "{target}", proxy: {{url: "{proxy}", username: me, password: {PROXY}}}}}
routes:
  - {{name: all, from: [shop], to: [bearer, basic, key, query, digest, oauth, refused, signed, behind]}}
"""
    )
    path.chmod(0o600)
    return path


async def echo(request: Received, writer: Any) -> None:
    """A target that fails and repeats whatever it was sent, and the key behind it as somebody who knows it would."""
    head = f"{request.line} {dict(request.headers)}"
    known = {"X-Sig": HMAC, "Bearer token-": CLIENT, "webhook-signature": f"{SIGNING} whsec_{WHSEC}"}
    keys = [key for mark, key in known.items() if mark in head]
    await status(500, body=f"no: {head} {keys}".encode())(request, writer)


@pytest.mark.row("B8", "B18", "T56")
async def test_no_credential_of_a_target_comes_out_anywhere(tmp_path: Path) -> None:
    """Not in the log at debug level, the metrics, the admin API, stderr, or the store outside bodies."""
    outputs: list[str] = []
    async with scripted(echo) as server, token_endpoint() as tokens, proxying(credentials=("me", "x")) as proxy:
        issue = tokens.answer
        tokens.answer = lambda one: (
            issue(one)
            if REFUSED not in str(one.requests[-1].body)
            else status(401, body=b'{"error": "invalid_client", "error_description": "no %s"}' % REFUSED.encode())
        )
        gateway = Gateway(config(tmp_path, server.url, tokens.url, proxy.url))
        async with gateway, aiohttp.ClientSession() as session:

            async def ask(method: str, url: str, **options: Any) -> None:
                async with session.request(method, url, **options) as answer:
                    outputs.append(f"{dict(answer.headers)} {await answer.text()}")

            admin = {"Authorization": f"Bearer {ADMIN}"}
            await ask("POST", f"{gateway.hooks}/hooks/shop", data=b"{}", headers={"X-Key": "0123456789abcdef"})
            await until(lambda: len(gateway.said("delivery.attempted")) >= 9)
            for name in ("bearer", "query", "oauth", "refused", "behind"):
                await ask("POST", f"{gateway.admin}/api/v1/targets/{name}/test", headers=admin)
            for call in ("targets", "events", "status"):
                await ask("GET", f"{gateway.admin}/api/v1/{call}", headers=admin)
            (event,) = {line["event_id"] for line in gateway.said("event.accepted")}
            await ask("GET", f"{gateway.admin}/api/v1/events/{event}", headers=admin)
            await ask("GET", f"{gateway.admin}/metrics", headers=admin)
            await ask("POST", f"{gateway.admin}/api/v1/reload", headers=admin)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
    reasons = {line["target"]: line["reason"] for line in gateway.said("delivery.attempted")}
    assert "client_id or client_secret is wrong" in reasons["refused"]
    assert "it wants other credentials" in reasons["behind"]
    assert {reasons[name] for name in ("bearer", "basic", "key", "query", "digest", "oauth", "signed")} == {
        "status 500"
    }
    sent = "".join(f"{request.line} {request.headers}" for request in server.received)
    assert all(canary in sent for canary in (BEARER, BASIC, KEY, IN_QUERY, "token-1-01")), "they were sent, though"
    outputs += [json.dumps(gateway.lines), gateway.errors.decode()]
    database = sqlite3.connect(tmp_path / "relay.db")
    outputs += ["\n".join(map(str, database.execute(f"SELECT * FROM {table}"))) for table in ("attempt", "target")]
    database.close()
    assert "no: POST /hooks" in outputs[-2], "excerpts are kept"
    assert {canary for canary in CANARIES for output in outputs if canary in output} == set()
