"""The README's chapter on fetching: its very YAML, run against stubs of the APIs that it names."""

import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, ENV, Target, running, until
from tests.support.scripted_target import ScriptedServer, raw, scripted

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAPTER = README.partition("\n## Fetching what a webhook lacks\n")[2].partition("\n## ")[0]
PLUGANDPAY, OTHERS = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL))
TOKENS = {name: f"token-of-{name.lower()}" for name in re.findall(r"\$\{(\w+)\}", CHAPTER)}
ORDER = {"id": 77, "mode": "live", "payment": {"status": "open"}}
ANSWER = {"data": ORDER, "result": {"sku": "A/1", "cost": 3, "suppliers": [{"name": "x", "price": 2}]}}


def moved(enricher: dict[str, Any], api: ScriptedServer) -> dict[str, Any]:
    """An enricher of the chapter, asked at a stub."""
    here = f"http://127.0.0.1:{api.port}"
    if "provider" in enricher:
        return enricher | {"base_url": here}
    return enricher | {"url": re.sub(r"^https://[^/]+", here, enricher["url"])}


def stub() -> Any:
    """An API that has one answer to everything."""
    body = json.dumps(ANSWER).encode()
    return scripted(raw(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body))


@pytest.fixture
async def target() -> Any:
    """A far target."""
    one = Target()
    await one.start()
    yield one
    await one.stop()


async def test_a_token_fetches_plugandpays_orders(tmp_path: Path, target: Target) -> None:
    """The first example: the data is beside the event, and a condition on it decides for each target."""
    async with stub() as api:
        text = document(
            {"plugandpay": SOURCES["plugandpay"]},
            targets={"crm": {"url": "${TARGET}"}, "chat": {"url": "${TARGET}"}},
            routes=PLUGANDPAY["routes"],
            enrichers={"plugandpay": moved(PLUGANDPAY["enrichers"]["plugandpay"], api)},
        )
        async with running(tmp_path, text, target, **TOKENS) as gateway:
            body = b'{"event":{"trigger_type":"order_paid","triggerable_id":77,"triggerable_type":"order"}}'
            proof = hmac.new(ENV["WEBHOOK_KEY"].encode(), body, "sha256").hexdigest()
            accepted = await gateway.post("/hooks/plugandpay", body, {"X-Signature": proof})
            got = await target.next()
            assert (
                got.body == b'{"event":' + body + b',"data":' + json.dumps(ORDER, separators=(",", ":")).encode() + b"}"
            )
            await until(lambda: gateway.rows("SELECT state FROM delivery WHERE target = 'chat'") == [("skipped",)])
            shown = await gateway.call(f"/api/v1/events/{accepted.json['id']}?body=true", headers=AUTH)
            (fetched,) = shown.json["fetched"]
            assert (fetched["enricher"], json.loads(fetched["data"])) == ("plugandpay", ORDER)
    assert len(target.arrivals) == len(api.received) == 1
    assert api.received[0].one("authorization") == f"Bearer {TOKENS['PLUGANDPAY_API_TOKEN']}"


@pytest.mark.parametrize(
    ("name", "source", "body", "content_type", "asked", "data"),
    [
        (
            "stock",
            "open",
            b'{"sku":"A/1"}',
            "application/json",
            "GET /stock/A%2F1",
            {"sku": "A/1", "suppliers": [{"name": "x"}]},
        ),
        (
            "payment",
            "open",
            b"id=tr_5B8cwPMGnU",
            "application/x-www-form-urlencoded",
            "GET /v2/payments/tr_5B8cwPMGnU",
            ANSWER,
        ),
        ("search", "open", b'{"sku":"A/1"}', "application/json", "POST /search", ANSWER),
    ],
    ids=["stock", "payment", "search"],
)
async def test_any_other_api_is_described(
    tmp_path: Path, target: Target, name: str, source: str, body: bytes, content_type: str, asked: str, data: object
) -> None:
    """The second example, each of its enrichers: what is asked, and what is kept of the answer."""
    route = {"name": "all", "from": [source], "enrich": name, "to": ["crm"]}
    async with stub() as api:
        enrichers = {name: moved(OTHERS["enrichers"][name], api)}
        text = document({source: SOURCES[source]}, enrichers=enrichers, routes=[route])
        async with running(tmp_path, text, target, **TOKENS) as gateway:
            assert (await gateway.post(f"/hooks/{source}", body, {"Content-Type": content_type})).status == 200
            got = json.loads((await target.next()).body)
            assert got["data"] == data
            kept = gateway.rows("SELECT data FROM brought")[0][0]
    (request,) = api.received
    assert request.line == f"{asked} HTTP/1.1"
    if name == "stock":
        assert b"cost" not in kept
        assert b"price" not in kept
    if name == "search":
        assert request.body == b'{"sku": "A/1"}'
        assert (request.one("x-shop"), request.one("content-type")) == (source, "application/json")
    else:
        assert request.one("authorization").startswith("Bearer token-of-")


def test_the_chapter_tells_what_the_providers_say_of_themselves() -> None:
    """What is included by default, and whose API is known, is as the code has it."""
    from relay.config.downstream import LOOKED_UP

    listed = re.findall(r"^\| `(\w+)` \| .* \|$", CHAPTER, re.MULTILINE)
    assert sorted(set(listed) - {"provider"}) == sorted(LOOKED_UP)
    for include in ("billing,items,payment", "billing,pricing,product", "contact,profile"):
        assert f"`{include}`" in CHAPTER


async def test_a_shown_event_tells_what_was_decided_on_what_was_fetched(tmp_path: Path, target: Target) -> None:
    """Once the data is there, no route is said to be still undecided."""
    async with stub() as api:
        text = document(
            {"plugandpay": SOURCES["plugandpay"]},
            targets={"crm": {"url": "${TARGET}"}, "chat": {"url": "${TARGET}"}},
            routes=PLUGANDPAY["routes"],
            enrichers={"plugandpay": moved(PLUGANDPAY["enrichers"]["plugandpay"], api)},
        )
        async with running(tmp_path, text, target, **TOKENS) as gateway:
            body = b'{"event":{"trigger_type":"order_paid","triggerable_id":78,"triggerable_type":"order"}}'
            proof = hmac.new(ENV["WEBHOOK_KEY"].encode(), body, "sha256").hexdigest()
            accepted = await gateway.post("/hooks/plugandpay", body, {"X-Signature": proof})
            await until(lambda: gateway.rows("SELECT state FROM delivery WHERE target = 'chat'") == [("skipped",)])
            shown = await gateway.call(f"/api/v1/events/{accepted.json['id']}", headers=AUTH)
            (verdict,) = shown.json["routing"]
            assert verdict["takes"] is True
            crm, chat = verdict["targets"]
            assert (crm["takes"], crm["reason"]) == (True, None)
            assert chat["takes"] is False
            assert "says no to what was fetched" in chat["reason"]
            assert [one["enrichers"] for one in shown.json["deliveries"]] == [["plugandpay"], ["plugandpay"]]
