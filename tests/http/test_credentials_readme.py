"""The README's chapter on credentials: its very YAML, run against real targets, a token endpoint, TLS and a proxy."""

import hmac
import json
import re
from base64 import b64decode
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from standardwebhooks import Webhook

from tests.http.configs import SOURCES, document
from tests.http.gateway import Target, running, until
from tests.support.certificates import Authority
from tests.support.proxy import proxying
from tests.support.scripted_target import Received, raw, scripted, status
from tests.support.token_endpoint import token_endpoint

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAPTER = README.partition("\n## Credentials\n")[2].partition("\n## ")[0]
TARGETS: dict[str, Any] = {}
for _block in re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL):
    TARGETS |= yaml.safe_load(_block)["targets"]
SECRETS = {name: f"value-of-{name.lower()}-0123" for name in re.findall(r"\$\{(\w+)\}", CHAPTER)} | {
    "NEW_SIGNING_KEY": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "OLD_SIGNING_KEY": "whsec_b2xkLXNpZ25pbmcta2V5LW9mLW91cnM=",
}
BODY = b'{"type":"t"}'
OK = raw(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status": "ok"}')


async def delivered(directory: Path, name: str, **changes: Any) -> Received:
    """What a target of the chapter gets, moved to loopback; `changes` are what else must move."""
    authority = Authority(directory)
    tls = authority.server(clients=authority.ca) if "tls" in TARGETS[name] else None
    if tls is not None:
        cert, _ = authority.issue("client")
        cert.rename(directory / "client.pem")
        changes["tls"] = {key: str(directory / file) for key, file in TARGETS[name]["tls"].items()}
    async with AsyncExitStack() as stack:
        answer = status(200) if "proxy" in changes else OK  # the stub of a proxy hands on heads alone
        server = await stack.enter_async_context(scripted(answer, tls=tls))
        path = re.sub(r"^https?://[^/]+", "", TARGETS[name]["url"])
        moved = TARGETS[name] | {"url": f"{server.scheme}://127.0.0.1:{server.port}{path}"} | changes
        route = {"name": "all", "from": ["open"], "to": [name]}
        text = document({"open": SOURCES["open"]}, targets={name: moved}, routes=[route])
        far = Target()
        await far.start()
        stack.push_async_callback(far.stop)
        gateway = await stack.enter_async_context(running(directory, text, far, **SECRETS))
        assert (await gateway.post("/hooks/open", BODY)).status == 200
        await until(lambda: gateway.rows("SELECT state FROM delivery") == [("delivered",)])
        (got,) = server.received
        return got


async def test_static_credentials_are_sent(tmp_path: Path) -> None:
    """Bearer and basic in their header, a key in the query."""
    for name in ("crm", "books", "search"):
        (tmp_path / name).mkdir()
    crm = await delivered(tmp_path / "crm", "crm")
    assert crm.one("authorization") == f"Bearer {SECRETS['CRM_TOKEN']}"
    books = await delivered(tmp_path / "books", "books")
    assert b64decode(books.one("authorization").removeprefix("Basic ")).decode() == f"relay:{SECRETS['BOOKS_PASSWORD']}"
    search = await delivered(tmp_path / "search", "search")
    assert search.line == f"POST /index?key={SECRETS['SEARCH_KEY']} HTTP/1.1"


async def test_a_digest_is_over_what_is_sent(tmp_path: Path) -> None:
    """As the example describes it: time and body, in hex behind a prefix."""
    got = await delivered(tmp_path, "partner")
    signed = got.one("x-timestamp").encode() + b"." + BODY
    expected = hmac.new(SECRETS["PARTNER_SECRET"].encode(), signed, "sha256").hexdigest()
    assert got.one("x-signature") == f"sha256={expected}"


async def test_a_token_is_fetched_and_sent(tmp_path: Path) -> None:
    """With the client's credentials as `client_auth` says, and the scope."""
    async with token_endpoint() as endpoint:
        got = await delivered(tmp_path, "sales", auth=TARGETS["sales"]["auth"] | {"token_url": endpoint.url})
        assert got.one("authorization").removeprefix("Bearer ") in endpoint.good
        (form,) = endpoint.forms()
        assert form == {"grant_type": "client_credentials", "scope": "sales"}
        assert endpoint.requests[0].one("authorization").startswith("Basic ")


@pytest.mark.parametrize("key", ["NEW_SIGNING_KEY", "OLD_SIGNING_KEY"])
async def test_both_keys_sign_while_they_rotate(tmp_path: Path, key: str) -> None:
    """Whoever has either can prove it, by the library of the standard."""
    got = await delivered(tmp_path, "shop")
    headers = {name: got.one(name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    assert Webhook(SECRETS[key]).verify(got.body, headers) == json.loads(BODY)
    assert got.one("webhook-id") == got.one("relay-event-id")


async def test_a_private_authority_is_trusted_and_a_certificate_shown(tmp_path: Path) -> None:
    """The server takes nobody without one."""
    assert (await delivered(tmp_path, "bank")).body == BODY


@pytest.mark.parametrize("name", ["outside", "far"])
async def test_a_proxy_is_gone_through(tmp_path: Path, name: str) -> None:
    """Without and with credentials, which are the proxy's alone."""
    credentials = ("relay", SECRETS["PROXY_PASSWORD"]) if name == "far" else None
    async with proxying(credentials=credentials) as proxy:
        own = TARGETS[name]["proxy"]
        moved = proxy.url if isinstance(own, str) else own | {"url": proxy.url}
        got = await delivered(tmp_path, name, proxy=moved)
        assert got.all("proxy-authorization") == []
        assert len(proxy.asked) == 1


async def test_an_answer_is_read_where_its_status_says_nothing(tmp_path: Path) -> None:
    """200 with another word in it is no success."""
    assert (await delivered(tmp_path, "legacy")).body == BODY


def test_every_example_of_the_chapter_is_run_here() -> None:
    """A target that is added to the chapter is added to these tests."""
    assert set(TARGETS) == {"crm", "books", "search", "partner", "sales", "shop", "bank", "outside", "far", "legacy"}
