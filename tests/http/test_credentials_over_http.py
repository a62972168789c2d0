"""Targets that want proof, behind a whole relay: what a reload takes up, what is counted, what is hidden."""

from pathlib import Path
from typing import Any

import structlog

from relay.model import BearerCheck, HmacCheck, OAuth2Client, Proxy, Secret, StandardWebhooksCheck, Target
from relay.model.credentials import ClientTls
from relay.reloading import digests
from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, TARGETS, Start, until
from tests.http.gateway import Target as Receiver
from tests.support.certificates import Authority
from tests.support.scripted_target import scripted, status
from tests.support.token_endpoint import CLIENT_ID, CLIENT_SECRET, token_endpoint

OPEN = {"open": SOURCES["open"]}
DOWN = {"timeout": "1s", "retry": {"schedule": ["100ms", "100ms"]}, "disable_after": 1}
OK = status(200)
URL = "https://crm.test/"


def secret(text: str) -> Secret:
    return Secret(text.encode())


def bearer(token: str) -> dict[str, Any]:
    return {"auth": {"scheme": "bearer", "token": token}}


async def test_the_credential_of_a_reload_is_worth_a_probe_at_once(start: Start) -> None:
    """A target that was disabled for a wrong token is tried with the right one, long before its next probe."""

    async def picky(request: Any, writer: Any) -> None:
        right = request.all("authorization") == ["Bearer the-right-token"]
        await (OK if right else status(401))(request, writer)

    async with scripted(picky) as server:
        crm = {"url": server.url} | DOWN
        gateway = await start(OPEN, targets={"crm": crm | bearer("the-wrong-token")})
        await gateway.post("/hooks/open")
        await gateway.told("target.disabled")
        answer = await gateway.reload(document(OPEN, targets={"crm": crm | bearer("the-right-token")}))
        assert answer.json["targets"]["changed"] == ["crm"]
        assert (await gateway.told("target.enabled"))["target"] == "crm"
        assert "the-right-token" not in gateway.log_text()


async def test_what_an_attempt_with_the_old_credential_came_to_is_no_news_of_the_new(
    start: Start, target: Receiver
) -> None:
    """It ends with what it began with, and the target as it is now is not disabled for it."""
    crm = {"url": "${TARGET}", "retry": {"schedule": ["1h"]}, "disable_after": 1}
    gateway = await start(OPEN, targets={"crm": crm | bearer("the-wrong-token")})
    target.status = 401
    target.gate.clear()
    await gateway.post("/hooks/open")
    assert (await target.next())["authorization"] == "Bearer the-wrong-token"
    answer = await gateway.reload(document(OPEN, targets={"crm": crm | bearer("the-right-token")}))
    assert answer.json["targets"]["changed"] == ["crm"]
    target.gate.set()
    assert (await gateway.told("delivery.attempted"))["status"] == 401
    (view,) = (await gateway.call(TARGETS, headers=AUTH)).json["targets"]
    assert (view["state"], view["failures"]) == ("active", 0)


def test_every_part_of_a_credential_is_in_the_digest() -> None:
    """By value, secrets included; what is the same is the same, and a target without any is as it ever was."""
    tls = ClientTls(ca="ca.pem", content=b"1")
    client = OAuth2Client("https://id.test/", "me", secret("a"))
    targets = [
        Target("crm", URL),
        Target("crm", URL, auth=BearerCheck((secret("a"),))),
        Target("crm", URL, auth=BearerCheck((secret("b"),))),
        Target("crm", URL, auth=HmacCheck("X", secrets=(secret("a"),))),
        Target("crm", URL, auth=client),
        Target("crm", URL, auth=OAuth2Client("https://id.test/", "me", secret("b"))),
        Target("crm", URL, sign=StandardWebhooksCheck(secrets=(secret("a"),))),
        Target("crm", URL, sign=StandardWebhooksCheck(secrets=(secret("b"), secret("a")))),
        Target("crm", URL, tls=tls),
        Target("crm", URL, tls=ClientTls(ca="ca.pem", content=b"2")),
        Target("crm", URL, proxy=Proxy("http://p.test:1")),
        Target("crm", URL, proxy=Proxy("http://p.test:1", "me", secret("a"))),
        Target("crm", URL, proxy=Proxy("http://p.test:1", "me", secret("b"))),
    ]
    found = [digests(target) for target in targets]
    assert len(set(found)) == len(targets)
    assert len({url for url, _ in found}) == 1
    again = Target("crm", URL, auth=OAuth2Client("https://id.test/", "me", secret("a")), timeout=targets[0].timeout * 2)
    assert digests(again) == digests(targets[4])


async def test_a_certificate_of_a_target_is_read_anew(start: Start, tmp_path: Path) -> None:
    """Its content counts: the YAML is the same, the sender is made anew, and the target is probed at once."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    named = tmp_path / "ca.pem"
    named.write_bytes(old.ca.read_bytes())
    async with scripted(OK, tls=new.server()) as server:
        targets = {"crm": {"url": server.url, "tls": {"ca": str(named)}, **DOWN}}
        gateway = await start(OPEN, targets=targets)
        await gateway.post("/hooks/open")
        assert (await gateway.told("target.disabled"))["reason"].startswith("TLS: ")
        named.write_bytes(new.ca.read_bytes())
        answer = await gateway.reload(document(OPEN, targets=targets))
        assert answer.json["targets"]["changed"] == ["crm"]
        await until(lambda: server.received)
        named.write_text("torn")
        assert (await gateway.reload(document(OPEN, targets=targets))).status == 422
        await gateway.post("/hooks/open", b'{"id": 3}')
        await until(lambda: len(server.received) > 1)


async def test_targets_whose_certificate_is_not_checked_are_counted_and_told(start: Start) -> None:
    """At each start, and for an alert."""
    insecure = {"crm": {"url": "https://127.0.0.1:1/", "tls": {"insecure": True}}}
    gateway = await start(OPEN, targets=insecure)
    metric = ("relay_tls_insecure_targets", ())
    assert (await gateway.metrics())[metric] == 1
    assert (await gateway.reload(document(OPEN, targets={"crm": {"url": "https://127.0.0.1:1/"}}))).status == 200
    assert (await gateway.metrics())[metric] == 0
    assert (await gateway.reload(document(OPEN, targets=insecure))).status == 200
    assert (await gateway.metrics())[metric] == 1
    assert any("certificates are not checked" in line["reason"] for line in await gateway.log("config.warning"))


async def test_a_test_by_hand_finds_a_stale_token_out(start: Start) -> None:
    """Whoever asks for a test wants to know of the credentials, not of the token that was good yesterday."""
    async with token_endpoint() as endpoint, scripted(endpoint.protected) as server:
        auth = {"scheme": "oauth2", "token_url": endpoint.url, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        gateway = await start(OPEN, targets={"crm": {"url": server.url, "auth": auth}})
        for _ in range(2):
            answer = await gateway.call("/api/v1/targets/crm/test", method="POST", headers=AUTH)
            assert answer.json["outcome"] == "delivered", answer.json
            endpoint.good.clear()
        assert len(endpoint.requests) == 2
        structlog.get_logger().warning("config.warning", reason="a line that says token-2-0123456789")
        lines = await gateway.log("config.warning")
        assert [line["reason"] for line in lines if "a line" in line["reason"]] == ["a line that says ***"]
