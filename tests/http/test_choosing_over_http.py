"""Choosing, from the request to the target: by headers and conditions, with reasons, and anew by a replay."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config import load
from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, JSON, Gateway, Start, Target, running, until

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAPTER = README.partition("## Choosing what goes where")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL)
EVENTS = "/api/v1/events"
OWN = {"server": {"listen": "127.0.0.1:0"}, "admin": {"listen": "127.0.0.1:0", "token": "${TOKEN}"}}
OPEN = {"open": SOURCES["open"]}
SKY = {"verify": "none", "provider": "custom", "event_type": "type"}


async def told(gateway: Gateway, event_id: str) -> Any:
    """All that is kept of an event."""
    return (await gateway.call(f"{EVENTS}/{event_id}", headers=AUTH)).json


async def posted(gateway: Gateway, body: dict[str, Any], **headers: str) -> str:
    """The id of an event that was accepted from the source `open`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await gateway.post("/hooks/open", json.dumps(body).encode(), named)
    assert answer.status == 200
    return str(answer.json["id"])


def reasons(event: Any) -> dict[str, str | None]:
    """Why today's routes do not take an event, by route, and by target where the route does."""
    found = {one["route"]: one["reason"] for one in event["routing"]}
    for one in event["routing"]:
        found |= {f"{one['route']} > {inner['target']}": inner["reason"] for inner in one["targets"]}
    return found


@pytest.fixture
async def third() -> AsyncIterator[Target]:
    """One more far target."""
    far = Target()
    await far.start()
    yield far
    await far.stop()


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_the_readme_load(tmp_path: Path, text: str) -> None:
    """Each is a whole config, and nothing about it is doubtful but a secret in the open."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    path.chmod(0o600)
    names = re.findall(r"\$\{(\w+)\}", text)
    config = load(path, dict.fromkeys(names, "https://far.example/0123456789abcdef"))
    assert not config.warnings


async def test_the_example_of_the_readme_does_what_it_says(
    tmp_path: Path, target: Target, other: Target, third: Target
) -> None:
    """Each event arrives where the example sends it, and nowhere else."""
    (text,) = EXAMPLES
    whole = yaml.safe_load(text) | OWN | {"store": {"url": "${STORE}"}}
    urls = {"CRM_URL": target.url, "CHAT_WEBHOOK_URL": other.url, "LOG_URL": third.url, "SHOP_SECRET": "a-sound-secret"}
    sent: list[tuple[dict[str, Any], str, str]] = [
        ({"type": "order_paid", "total": 12, "country": "NL"}, "live", "crm"),
        ({"type": "order_paid", "total": 1200, "country": "NL"}, "live", "crm chat"),
        ({"type": "order_paid", "total": 1200, "country": "DE"}, "live", "crm"),
        ({"type": "order_paid", "total": 0}, "live", ""),
        ({"type": "order_paid", "total": 12}, "test", "log"),
        ({"type": "refund", "total": 12}, "live", "log"),
    ]
    async with running(tmp_path, yaml.safe_dump(whole, sort_keys=False), target, **urls) as gateway:
        expected: dict[str, set[str]] = {"crm": set(), "chat": set(), "log": set()}
        for number, (body, env, names) in enumerate(sent):
            headers = {"Authorization": "Bearer a-sound-secret", "x-env": env}
            answer = await gateway.post("/hooks/shop", json.dumps(body | {"id": number}).encode(), headers)
            for name in names.split():
                expected[name].add(answer.json["id"])
        await until(lambda: not gateway.rows("SELECT 1 FROM delivery WHERE state != 'delivered'"))
        for name, far in (("crm", target), ("chat", other), ("log", third)):
            assert {str(arrival["relay-event-id"]) for arrival in far.arrivals} == expected[name]
        assert gateway.counted("shop") == {"accepted": 5, "unrouted": 1}
        assert "say no" in (await gateway.told("event.unrouted"))["reason"]


async def test_each_route_and_target_says_why(start: Start, other: Target) -> None:
    """Of the config of today: what takes it, what does not, and by which of its words; no value of a header."""
    targets = {"crm": {"url": "${TARGET}"}, "chat": {"url": other.url}}
    routes = [
        {"name": "typed", "from": "open", "match": {"type": "x"}, "to": "crm"},
        {"name": "headed", "from": "open", "match": {"headers": {"X-Env": "canary-live"}}, "to": "crm"},
        {"name": "asked", "from": "open", "when": "body.n > `1`", "to": "crm"},
        {"name": "failing", "from": "open", "when": "sum(body.n) > `1`", "to": "crm"},
        {"name": "split", "from": "open", "to": ["crm", {"target": "chat", "when": "abs(body.s) > `1`"}]},
    ]
    gateway = await start(OPEN, routes=routes, targets=targets)
    event = await told(gateway, await posted(gateway, {"type": "paid", "n": 1, "s": "one"}, X_Env="test"))
    assert event["routes"] == ["split"]
    assert [one["target"] for one in event["deliveries"]] == ["crm"]
    assert reasons(event) == {
        "typed": "no glob of its match.type (x) fits the type",
        "headed": "its match.headers wants another value of X-Env",
        "asked": "its `when` says no",
        "failing": "its `when` failed: sum() was given what it does not take",
        "split": None,
        "split > crm": None,
        "split > chat": "its `when` failed: abs() was given what it does not take",
    }
    assert event["failed_conditions"] == [
        {"route": "failing", "reason": "sum() was given what it does not take"},
        {"route": "split > chat", "reason": "abs() was given what it does not take"},
    ]
    assert "canary-live" not in json.dumps(event)
    assert other.arrivals == []


async def test_a_condition_that_fails_is_told_and_counts_as_a_no(start: Start) -> None:
    """In the log with the route and the reason, once an event; the unrouted line says it too."""
    gateway = await start(OPEN, routes=[{"name": "sums", "from": "open", "when": "sum(body.n) > `1`", "to": "crm"}])
    event_id = await posted(gateway, {"type": "paid", "id": 1, "n": "canary-body"})
    line = await gateway.told("event.condition_failed")
    assert (line["level"], line["source"], line["route"], line["event_id"]) == ("warning", "open", "sums", event_id)
    assert line["reason"] == "sum() was given what it does not take"
    unrouted = await gateway.told("event.unrouted")
    assert unrouted["reason"] == f"no route wants it; the condition of sums failed: {line['reason']}"
    assert gateway.rows("SELECT count(*) FROM delivery") == [(0,)]
    assert "canary-body" not in gateway.log_text()
    await posted(gateway, {"type": "paid", "id": 1, "n": "canary-body"})
    assert len(await gateway.log("event.condition_failed")) == 1, "a duplicate is the event that it was"


async def test_an_unrouted_event_goes_where_todays_conditions_lead(start: Start) -> None:
    """After a reload, by the headers and the body that were stored."""
    chosen = {"name": "chosen", "from": "open", "match": {"headers": {"X-Env": "live"}}, "when": "body.n > `1`"}
    gateway = await start(OPEN, routes=[chosen | {"when": "body.n > `100`", "to": "crm"}])
    ids = [
        await posted(gateway, {"type": "paid", "n": n}, X_Env=env) for n, env in ((5, "live"), (1, "live"), (5, "x"))
    ]
    assert (await gateway.reload(document(OPEN, routes=[chosen | {"to": "crm"}]))).status == 200
    for event_id in ids:
        answer = await gateway.call(f"{EVENTS}/{event_id}/replay", method="POST", headers=JSON)
        assert answer.status == 200
    arrived = await gateway.target.next()
    assert (arrived["relay-event-id"], arrived["relay-replay"]) == (ids[0], "1")
    assert (await told(gateway, ids[0]))["routes"] == ["chosen"]
    assert [(await told(gateway, one))["deliveries"] for one in ids[1:]] == [[], []]


async def test_the_relays_own_events_are_chosen_likewise(start: Start, other: Target) -> None:
    """By what stands in the message; what no route wants of them is not stored."""
    targets = {"crm": {"url": "${TARGET}"}, "chat": {"url": other.url}, "spare": {"url": other.url}}
    routes = [
        {"name": "all", "from": "open", "to": "crm"},
        {"name": "news", "from": "relay", "when": "contains(body.notes[].target, 'crm')", "to": ["chat", "spare"]},
        {"name": "odd", "from": "relay", "when": "abs(body.message) > `1`", "to": ["chat"]},
    ]
    gateway = await start(OPEN, routes=routes, targets=targets)
    for name in ("chat", "crm"):
        answer = await gateway.call(f"/api/v1/targets/{name}/disable", method="POST", headers=AUTH)
        assert answer.status == 200
    await until(lambda: gateway.rows("SELECT 1 FROM event WHERE source = 'relay'"))
    await other.next()
    stored = [json.loads(body) for source, _, body in gateway.stored() if source == "relay"]
    assert [[note["target"] for note in one["notes"]] for one in stored] == [["crm"]]
    assert gateway.rows("SELECT routes FROM event") == [('["news"]',)]
    assert {line["route"] for line in await gateway.log("event.condition_failed")} == {"odd"}


@pytest.mark.parametrize(
    "body", [b"[" * 50_000, b'{"type": "a", "n": ' + b"9" * 5000 + b"}", b'{"n": "\\ud800"}', b"\xff"]
)
async def test_a_hostile_body_is_accepted_and_chosen_for(start: Start, body: bytes) -> None:
    """No content is a reason to refuse an authentic event, whatever the conditions make of it."""
    routes = [
        {"name": "odd", "from": "open", "when": "to_string(body) == 'x' || sort(body.n)", "to": "crm"},
        {"name": "rest", "from": "open", "when": "!(body.paid)", "to": "crm"},
    ]
    gateway = await start(OPEN, routes=routes)
    assert (await gateway.post("/hooks/open", body)).status == 200
    assert (await gateway.target.next()).body == body


async def test_a_large_body_is_judged_like_a_small_one(start: Start, other: Target) -> None:
    """Beside the loop, with the same outcome: a condition may look at every member of it."""
    routes = [
        {"name": "long", "from": "open", "when": "length(body.list[?@ > `1`]) > `20000`", "to": "crm"},
        {"name": "short", "from": "open", "when": "length(body.list) < `10`", "to": "chat"},
    ]
    targets = {"crm": {"url": "${TARGET}"}, "chat": {"url": other.url}}
    gateway = await start(OPEN, routes=routes, targets=targets)
    large = await told(gateway, await posted(gateway, {"type": "paid", "list": list(range(30_000))}))
    small = await told(gateway, await posted(gateway, {"type": "paid", "list": [1, 2, 3]}))
    assert (large["routes"], small["routes"]) == (["long"], ["short"])
    assert large["received_at"] <= small["received_at"]
