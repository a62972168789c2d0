"""What a target gets on the wire: the examples of the README, and what shaping must never do."""

import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.http.configs import SIGNED, document
from tests.http.gateway import AUTH, Gateway, Start, Target, running, signature, until
from tests.support.scripted_target import ScriptedServer, scripted, status

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAPTER = README.partition("\n## Shaping\n")[2].partition("\n## ")[0]
EVENT = next(re.finditer(r"```json\n(.*?)\n```", CHAPTER, re.DOTALL))[1].encode()
SHOP: dict[str, Any] = {
    "shop": {"provider": "custom", "verify": SIGNED, "secrets": ["${SECRET}"], "event_type": "type", "dedupe_key": "id"}
}


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every target that the README shapes."""
    for block in re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL):
        yield from yaml.safe_load(block)["targets"].items()


EXAMPLES = list(examples())

CARD = {
    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
    "type": "AdaptiveCard",
    "version": "1.4",
    "body": [{"type": "TextBlock", "text": r"Order **4711** of Ann \& \<Bob\> is paid", "wrap": True}],
}
TEAMS = {
    "type": "message",
    "attachments": [
        {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": CARD},
    ],
}
EXPECTED: dict[str, tuple[str, str | None, bytes]] = {
    "books": (
        "/api/orders/4711?sku=A%2F1",
        "application/json",
        b'{"customer": "Ann & <Bob>", "total": 1.10}',
    ),
    "stock": ("/api", "application/json", b'{"order":4711,"skus":["A/1","B"]}'),
    "legacy": (
        "/order.php",
        "application/x-www-form-urlencoded",
        b"order=4711&total=1.10&items%5B0%5D%5Bsku%5D=A%2F1&items%5B1%5D%5Bsku%5D=B",
    ),
    "slack": (
        "/services/T0/B0/secret",
        "application/json",
        b'{"text":"<https://shop.example/orders/4711|Order 4711> of Ann &amp; &lt;Bob&gt; is *paid*"}',
    ),
    "teams": ("/workflows/secret", "application/json", json.dumps(TEAMS, separators=(",", ":")).encode()),
    "short": ("/services/T0/B0/secret", "application/json", b'{"text":"shop: order_paid"}'),
    "broker": ("/events", "application/cloudevents+json", b""),
    "archive": ("/shop/order_paid", "text/json", EVENT),
}


def at(server: ScriptedServer, target: dict[str, Any]) -> dict[str, Any]:
    """The target of an example, moved to a real server."""
    return target | {"url": re.sub(r"https://\w+\.example", f"http://127.0.0.1:{server.port}", target["url"], count=1)}


async def delivered(directory: Path, target: dict[str, Any], server: ScriptedServer, body: bytes = EVENT) -> Any:
    """What arrives of one event at a target of this YAML."""
    text = document(SHOP, targets={"one": target}, routes=[{"name": "all", "from": ["shop"], "to": ["one"]}])
    async with AsyncExitStack() as stack:
        far = Target()
        await far.start()
        stack.push_async_callback(far.stop)
        gateway = await stack.enter_async_context(running(directory, text, far))
        headers = signature(body) | {"Content-Type": "text/json", "Digest": "x", "webhook-id": "msg_1"}
        assert (await gateway.post("/hooks/shop", body, headers)).status == 200
        await until(lambda: server.received)
        return server.received[0]


@pytest.mark.parametrize(("name", "target"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
async def test_every_example_of_the_readme_arrives_as_it_says(
    tmp_path: Path, name: str, target: dict[str, Any]
) -> None:
    """The very YAML, run against a real target, brings the very bytes to the very path."""
    async with scripted(status(200)) as server:
        got = await delivered(tmp_path, at(server, target), server)
    path, content_type, body = EXPECTED[name]
    assert got.line == f"POST {path} HTTP/1.1"
    assert got.one("content-type") == content_type
    if name == "broker":
        event = json.loads(got.body)
        assert event == {
            "specversion": "1.0",
            "id": got.one("relay-event-id"),
            "source": "/sources/shop",
            "type": "order_paid",
            "time": got.one("relay-received-at"),
            "datacontenttype": "text/json",
            "data": json.loads(EVENT),
        }
        assert got.body.endswith(b',"data":' + EVENT + b"}")
    else:
        assert got.body == body
    if name == "books":
        assert got.one("idempotency-key") == "shop-4711"
    is_changed = name != "archive"
    assert (got.all("x-signature") == []) is is_changed
    assert (got.all("digest") == []) is is_changed
    assert (got.one("webhook-id") == got.one("relay-event-id")) is is_changed


def test_the_readme_shows_what_is_expected_here() -> None:
    """The bytes that its text promises are those that these tests compare."""
    assert {name for name, _ in EXAMPLES} == set(EXPECTED)
    for name in ("books", "stock", "legacy", "slack", "short"):
        assert f"`{EXPECTED[name][2].decode()}`" in CHAPTER.replace("\n", " ").replace("gets `", "gets `")


async def test_the_relays_own_news_reach_a_chat_as_the_readme_says(tmp_path: Path) -> None:
    """The example of its chapter turns the message that it shows into one that people read."""
    chapter = README.partition("\n## Telling someone\n")[2].partition("\n## ")[0]
    (news,) = re.findall(r"```json\n(.*?)\n```", chapter, re.DOTALL)
    (block,) = re.findall(r"```yaml\n(.*?)```", chapter, re.DOTALL)
    async with scripted(status(200)) as server:
        chat = yaml.safe_load(block)["targets"]["chat"] | {"url": server.url}
        got = await delivered(tmp_path, chat, server, json.dumps(json.loads(news) | {"id": 1}).encode())
    assert got.body == (b'{"text":"*target.disabled* Target crm is disabled (status 500); it holds 12 deliveries."}')


@pytest.mark.row("B52")
async def test_an_event_that_lacks_what_a_template_needs_is_unprepared(start: Start, target: Target) -> None:
    """Nothing is sent, the reason names what is missing, it spends a step, and the target's count is left alone."""
    crm = {"url": "${TARGET}", "body": {"template": "{{ body.name }}"}, "retry": {"schedule": ["1h"]}}
    gateway = await start(SHOP, targets={"crm": crm}, routes=[{"name": "all", "from": ["shop"], "to": ["crm"]}])
    for body in (b'{"type":"a","id":1}', b'{"type":"a","id":2,"name":"Ann"}'):
        assert (await gateway.post("/hooks/shop", body, signature(body))).status == 200
        await until(lambda: gateway.rows("SELECT count(*) FROM attempt")[0][0] or target.arrivals)
    assert (await target.next()).body == b"Ann"
    lines = await gateway.log("delivery.attempted")
    (failed,) = [line for line in lines if line["outcome"] == "unprepared"]
    assert failed["reason"] == "template: body: it needs 'name', which this event has not"
    answer = await gateway.call("/api/v1/targets", headers=AUTH)
    (view,) = answer.json["targets"]
    assert (view["state"], view["failures"]) == ("active", 0)
    assert len(target.arrivals) == 1


async def test_a_test_by_hand_is_shaped_or_tells_what_it_lacks(start: Start, target: Target) -> None:
    """`test` sends the shape of a test event where that has all it needs, else it says which name is missing."""
    targets = {
        "slack": {"url": "${TARGET}", "body": {"preset": "slack"}},
        "books": {"url": "${TARGET}/{{ data.id }}"},
    }
    gateway = await start(SHOP, targets=targets, routes=[{"name": "all", "from": ["shop"], "to": ["slack", "books"]}])
    answers = {}
    for name in targets:
        answer = await gateway.call(
            f"/api/v1/targets/{name}/test", method="POST", headers=AUTH | {"Content-Length": "0"}
        )
        answers[name] = answer.json
    assert answers["slack"]["outcome"] == "delivered"
    assert (await target.next()).body == b'{"text":"relay: relay.test"}'
    assert answers["books"]["outcome"] == "unprepared"
    assert answers["books"]["reason"] == "template: url: it needs 'id', which this event has not"


async def test_410_on_a_templated_url_does_not_disable_the_target(start: Start, target: Target) -> None:
    """One thing is gone, and not the receiver: it is refused."""
    target.status = 410
    crm = {"url": "${TARGET}/{{ body.id }}", "retry": {"schedule": ["1h"]}}
    gateway = await start(SHOP, targets={"crm": crm}, routes=[{"name": "all", "from": ["shop"], "to": ["crm"]}])
    assert (await gateway.post("/hooks/shop", EVENT, signature(EVENT))).status == 200
    line = await gateway.told("delivery.attempted")
    assert (line["outcome"], line["status"]) == ("refused", 410)
    assert gateway.app is not None


async def test_a_proof_of_any_name_stays_behind_a_changed_body(start: Start, target: Target) -> None:
    """What the YAML calls a source's proof proves its bytes alone; so does that of a source which a reload brings."""
    stamped = SHOP["shop"] | {"verify": SIGNED | {"header": "X-Stamp"}}
    crm = {"crm": {"url": "${TARGET}", "body": {"template": "{{ source }}"}}}

    def to_crm(source: str) -> dict[str, Any]:
        return {"targets": crm, "routes": [{"name": "all", "from": [source], "to": ["crm"]}]}

    gateway = await start({"shop": stamped}, **to_crm("shop"))
    headers = {"X-Stamp": signature(EVENT)["X-Signature"], "X-Other": "1"}
    assert (await gateway.post("/hooks/shop", EVENT, headers)).status == 200
    await target.next()
    assert (await gateway.reload(document({"mart": stamped}, **to_crm("mart")))).status == 200
    assert (await gateway.post("/hooks/mart", EVENT, headers)).status == 200
    await target.next(2)
    assert [(one.body, one["x-stamp"], one["x-other"]) for one in target.arrivals] == [
        (b"shop", None, "1"),
        (b"mart", None, "1"),
    ]


async def test_many_paths_of_one_origin_share_its_connections(tmp_path: Path) -> None:
    """A templated URL costs no connection for each path, and a value cannot leave its segment."""
    values = ["a/b", "../../admin", "x?y=z", "h#f", "a b", "ä", "%2e%2e", "@evil.example", "\\", "{{ id }}"]
    target = {"url": "", "concurrency": 1}
    async with scripted(status(200)) as server, AsyncExitStack() as stack:
        target["url"] = f"http://127.0.0.1:{server.port}/in/{{{{ body.id }}}}/end"
        text = document(SHOP, targets={"one": target}, routes=[{"name": "all", "from": ["shop"], "to": ["one"]}])
        far = Target()
        await far.start()
        stack.push_async_callback(far.stop)
        gateway: Gateway = await stack.enter_async_context(running(tmp_path, text, far))
        for value in values:
            body = json.dumps({"type": "x", "id": value}).encode()
            assert (await gateway.post("/hooks/shop", body, signature(body))).status == 200
        await until(lambda: len(server.received) == len(values))
        assert server.connections == 1
        paths = [request.line.split(" ")[1] for request in server.received]
    assert sorted(paths) == sorted(
        f"/in/{part}/end"
        for part in (
            "a%2Fb",
            "..%2F..%2Fadmin",
            "x%3Fy%3Dz",
            "h%23f",
            "a%20b",
            "%C3%A4",
            "%252e%252e",
            "%40evil.example",
            "%5C",
            "%7B%7B%20id%20%7D%7D",
        )
    )
    assert "/in/" not in gateway.log_text()
