"""What is fetched for an event, through a whole relay: once for all its targets, never a target's failure, and nothing
kept that must not be."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, ENV, Answer, Gateway, Target, running, until
from tests.support.scripted_target import Answerer, Received, ScriptedServer, raw, scripted, status

TOKEN = "pnp-api-token-that-nobody-may-see"
ORDER = {"id": 77, "total": "1.10", "payment": {"status": "paid"}, "mode": "live"}
SAMPLE = b'{"event":{"trigger_type":"order_paid","triggerable_id":77,"triggerable_type":"order"},"tenant_id":1}'


def answering(code: int, body: object, *headers: str) -> Answerer:
    """The API's answer to everything."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{line}\r\n" for line in headers)
    return raw(f"HTTP/1.1 {code} .\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content)


def in_turn(*answers: Answerer) -> Answerer:
    """One answer after another; the last goes on."""
    left = list(answers)

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, writer)

    return answer


ORDERS = answering(200, {"data": ORDER})


def config(api: ScriptedServer, **top: Any) -> str:
    """Plug&Pay, its orders enriched, to one target."""
    enricher = {"provider": "plugandpay", "token": TOKEN, "base_url": f"http://127.0.0.1:{api.port}"}
    route = {"name": "orders", "from": ["plugandpay"], "enrich": "plugandpay", "to": ["crm"]}
    sources = {name: SOURCES[name] for name in ("plugandpay", "xoxoday")}
    return document(sources, **({"enrichers": {"plugandpay": enricher}, "routes": [route]} | top))


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    """A far target."""
    one = Target()
    await one.start()
    yield one
    await one.stop()


async def post(gateway: Gateway, body: bytes = SAMPLE) -> str:
    """Post one genuine webhook; the id of its event."""
    import hmac

    proof = {"X-Signature": hmac.new(ENV["WEBHOOK_KEY"].encode(), body, "sha256").hexdigest()}
    answer = await gateway.post("/hooks/plugandpay", body, proof | {"Content-Type": "application/json"})
    assert answer.status == 200
    id_: str = answer.json["id"]
    return id_


async def shown(gateway: Gateway, event_id: str) -> dict[str, Any]:
    """An event as the API shows it."""
    answer: Answer = await gateway.call(f"/api/v1/events/{event_id}", headers=AUTH)
    found: dict[str, Any] = answer.json
    return found


async def delivery(
    gateway: Gateway, event_id: str, wanted: Callable[[dict[str, Any]], bool], *, target: str = "crm"
) -> dict[str, Any]:
    """A delivery, as soon as it is as wanted."""
    async with asyncio.timeout(10):
        while True:
            event = await shown(gateway, event_id)
            found: dict[str, Any] = next(one for one in event["deliveries"] if one["target"] == target)
            if wanted(found):
                return found
            await asyncio.sleep(0.01)


def tried(one: dict[str, Any]) -> bool:
    return one["attempts"] > 0 and one["state"] == "pending" and bool(one["attempt_log"])


async def test_a_token_is_all_that_plugandpay_needs(tmp_path: Path, target: Target) -> None:
    """Its API is asked as it demands, and the target gets the event with the inside of its envelope; the signature of
    the original does not go with a changed body."""
    async with scripted(ORDERS) as api, running(tmp_path, config(api), target) as gateway:
        await post(gateway)
        got = await target.next()
        assert json.loads(got.body) == {"event": json.loads(SAMPLE), "data": ORDER}
        assert got.body.startswith(b'{"event":' + SAMPLE + b',"data":{"id":77,"total":"1.10"')
        assert (got["content-type"], got["x-signature"]) == ("application/json", None)
        (asked,) = api.received
        assert asked.line == "GET /v2/orders/77?include=billing,items,payment HTTP/1.1"
        assert asked.one("authorization") == f"Bearer {TOKEN}"
        assert asked.one("accept") == "application/json"
        assert asked.one("user-agent") == "CustomApiCall/2"
        line = await gateway.told("event.enriched")
        assert (line["enricher"], line["level"]) == ("plugandpay", "info")


async def test_all_targets_of_an_event_share_one_fetch(tmp_path: Path, target: Target) -> None:
    """However many there are, and whichever comes first."""
    names = [f"t{number}" for number in range(12)]
    route = {"name": "orders", "from": ["plugandpay"], "enrich": "plugandpay", "to": names}
    async with scripted(ORDERS) as api:
        text = config(api, targets={name: {"url": "${TARGET}"} for name in names}, routes=[route])
        async with running(tmp_path, text, target) as gateway:
            for number in range(3):
                await post(gateway, SAMPLE.replace(b":77", b":%d" % number))
            await until(lambda: len(target.arrivals) == 36)
    assert len(api.received) == 3


async def test_what_was_fetched_is_kept_over_a_restart(tmp_path: Path, target: Target) -> None:
    """It is stored before it is used: a delivery that comes later does not ask again."""
    target.status = 500
    async with scripted(in_turn(ORDERS, status(500))) as api:
        text = config(api, targets={"crm": {"url": "${TARGET}", "retry": {"schedule": ["100ms"]}}})
        async with running(tmp_path, text, target) as gateway:
            event_id = await post(gateway)
            await delivery(gateway, event_id, tried)
        target.status = 200
        before = len(target.arrivals)
        async with running(tmp_path, text, target) as gateway:
            again = await target.next(before + 1)
            assert json.loads(again.body)["data"] == ORDER
            await delivery(gateway, event_id, lambda one: one["state"] == "delivered")
        assert len(api.received) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(401), "status 401: the token is not accepted; check the token or auth of enrichers.plugandpay"),
        (status(404), "status 404: not there, or not there yet"),
        (answering(302, b"", "Location: http://127.0.0.1:1/"), "status 302: it redirects"),
        (answering(200, b"<html>"), "its answer is not JSON"),
        (answering(200, {"other": 1}), "its answer has nothing at data"),
        (answering(200, b'"' + b"x" * 1_100_000 + b'"'), "its answer is larger than 1024 KiB"),
    ],
    ids=["401", "404", "302", "html", "envelope", "large"],
)
async def test_a_refused_fetch_is_unprepared_and_not_the_targets_failure(
    tmp_path: Path, target: Target, answer: Answerer, words: str
) -> None:
    """The delivery's schedule goes on, with a reason that says what to do; the target's count stays at 0."""
    retry = {"url": "${TARGET}", "retry": {"schedule": ["100ms", "100ms", "100ms", "100ms", "30s"]}, "disable_after": 1}
    async with scripted(answer) as api, running(tmp_path, config(api, targets={"crm": retry}), target) as gateway:
        event_id = await post(gateway)
        found = await delivery(gateway, event_id, lambda one: one["step"] >= 2)
        first = found["attempt_log"][0]
        assert (first["outcome"], first["status"]) == ("unprepared", None)
        assert first["reason"].startswith(f"enricher plugandpay: {words}")
        health = (await gateway.call("/api/v1/targets", headers=AUTH)).json["targets"][0]
        assert (health["state"], health["failures"]) == ("active", 0)
    assert target.arrivals == []


async def test_what_was_not_there_yet_arrives_once_it_is(tmp_path: Path, target: Target) -> None:
    """A 404 is tried again by the schedule of the target."""
    retry = {"url": "${TARGET}", "retry": {"schedule": ["100ms", "100ms", "100ms"]}}
    api_says = in_turn(status(404), status(404), ORDERS)
    async with scripted(api_says) as api, running(tmp_path, config(api, targets={"crm": retry}), target) as gateway:
        event_id = await post(gateway)
        assert json.loads((await target.next()).body)["data"] == ORDER
        found = await delivery(gateway, event_id, lambda one: one["state"] == "delivered")
        assert [one["outcome"] for one in found["attempt_log"]] == ["unprepared", "unprepared", "delivered"]


FAILING = {
    "500": (status(500), 1),
    "reset": (raw(then="reset"), 2),  # a GET over a connection that broke is sent once more by aiohttp
    "429": (answering(429, b"", "Retry-After: 60"), 1),
}


@pytest.mark.parametrize(("answer", "requests"), FAILING.values(), ids=FAILING)
async def test_an_enricher_that_fails_is_left_alone_and_costs_no_step(
    tmp_path: Path, target: Target, answer: Answerer, requests: int
) -> None:
    """What needs it waits without spending its schedule, the next event does not ask at all, and deliveries that need
    nothing of it go on."""
    routes = [
        {"name": "orders", "from": ["plugandpay"], "enrich": "plugandpay", "to": ["crm"]},
        {"name": "rewards", "from": ["xoxoday"], "to": ["crm"]},
    ]
    async with scripted(answer) as api, running(tmp_path, config(api, routes=routes), target) as gateway:
        first = await delivery(gateway, await post(gateway), tried)
        second = await delivery(gateway, await post(gateway, SAMPLE.replace(b":77", b":78")), tried)
        assert (await gateway.post("/hooks/xoxoday", b"{}", {"x-api-key": ENV["API_KEY"]})).status == 200
        assert (await target.next()).body == b"{}"
        for found in (first, second):
            assert found["step"] == 0
            assert found["attempt_log"][0]["outcome"] == "interrupted"
            assert "enricher plugandpay: " in found["attempt_log"][0]["reason"]
            assert found["next_attempt_at"] is not None
        assert len(api.received) == requests
        health = (await gateway.call("/api/v1/targets", headers=AUTH)).json["targets"][0]
        assert (health["state"], health["failures"]) == ("active", 0)


@pytest.mark.slow
async def test_an_enricher_that_is_back_is_asked_again_by_itself(tmp_path: Path, target: Target) -> None:
    """After the first wait one asks, and all that waited goes on."""
    async with scripted(in_turn(status(503), ORDERS)) as api, running(tmp_path, config(api), target) as gateway:
        ids = [await post(gateway, SAMPLE.replace(b":77", b":%d" % number)) for number in range(5)]
        await until(lambda: len(target.arrivals) == 5, within=30)
        for event_id in ids:
            await delivery(gateway, event_id, lambda one: one["state"] == "delivered")
        assert len(await gateway.log("enricher.failing")) == 1
        assert len(await gateway.log("enricher.recovered")) == 1
        assert len(api.received) == 6


async def test_a_reload_that_mends_an_enricher_is_taken_up(tmp_path: Path, target: Target) -> None:
    """Another token is tried with the next attempt; the deliveries that waited need nothing else."""
    retry = {"url": "${TARGET}", "retry": {"schedule": ["100ms"] * 50}}

    async def guarded(request: Received, writer: asyncio.StreamWriter) -> None:
        is_right = request.one("authorization") == "Bearer the-right-token-at-last"
        await (ORDERS if is_right else status(401))(request, writer)

    async with scripted(guarded) as api:
        text = config(api, targets={"crm": retry})
        async with running(tmp_path, text, target) as gateway:
            event_id = await post(gateway)
            await delivery(gateway, event_id, lambda one: one["step"] >= 1)
            assert (await gateway.reload(text.replace(TOKEN, "the-right-token-at-last"))).status == 200
            assert json.loads((await target.next()).body)["data"] == ORDER
            line = await gateway.told("config.reloaded")
            assert line["enrichers"]["changed"] == ["plugandpay"]


async def test_an_enricher_that_left_the_config_is_said(tmp_path: Path, target: Target) -> None:
    """What was accepted with it waits for it by the target's schedule, and says what is missing."""
    retry = {"url": "${TARGET}", "retry": {"schedule": ["100ms"] * 50}}
    async with scripted(status(404)) as api:
        text = config(api, targets={"crm": retry})
        async with running(tmp_path, text, target) as gateway:
            event_id = await post(gateway)
            await delivery(gateway, event_id, tried)
            route = [{"name": "orders", "from": ["plugandpay"], "to": ["crm"]}]
            answer = await gateway.reload(config(api, targets={"crm": retry}, enrichers={}, routes=route))
            assert answer.status == 200
            await delivery(gateway, event_id, lambda one: "is not in the config" in one["attempt_log"][-1]["reason"])
            assert (await gateway.call(f"/api/v1/events/{event_id}/replay", method="POST", headers=AUTH)).status == 200


async def test_a_condition_on_what_was_fetched_decides_for_each_target(tmp_path: Path, target: Target) -> None:
    """Who is turned away ends as skipped, with the reason and without an attempt; the others get it."""
    route = {
        "name": "live orders",
        "from": ["plugandpay"],
        "enrich": "plugandpay",
        "when": "data.mode == 'live'",
        "to": ["crm", {"target": "unpaid", "when": "data.payment.status == 'open'"}],
    }
    both = {name: {"url": "${TARGET}"} for name in ("crm", "unpaid")}
    async with scripted(ORDERS) as api:
        async with running(tmp_path, config(api, targets=both, routes=[route]), target) as gateway:
            event_id = await post(gateway)
            await target.next()
            found = await delivery(gateway, event_id, lambda one: one["state"] == "skipped", target="unpaid")
            assert (found["attempts"], found["attempt_log"]) == (0, [])
            assert "live orders" in found["reason"]
            assert "says no" in found["reason"]
            line = await gateway.told("delivery.skipped")
            assert (line["target"], line["reason"]) == ("unpaid", found["reason"])
            listed = await gateway.call("/api/v1/events?state=skipped", headers=AUTH)
            assert [one["id"] for one in listed.json["events"]] == [event_id]
            await delivery(gateway, event_id, lambda one: one["state"] == "delivered", target="crm")
            assert gateway.rows("SELECT count(*) FROM delivery WHERE state IN ('pending', 'in_flight')") == [(0,)]
        assert len(target.arrivals) == 1
        assert len(api.received) == 1


async def test_a_target_may_ask_for_the_bytes_as_they_came(tmp_path: Path, target: Target) -> None:
    """`body: raw` gets them, and the signature that proves them, whatever was fetched for others."""
    async with scripted(ORDERS) as api:
        text = config(api, targets={"crm": {"url": "${TARGET}", "body": "raw"}})
        async with running(tmp_path, text, target) as gateway:
            await post(gateway)
            got = await target.next()
    assert got.body == SAMPLE
    assert got["x-signature"] is not None


async def test_no_voucher_and_no_token_is_kept_anywhere(tmp_path: Path, target: Target) -> None:
    """Neither in the database, nor in the log, nor in the API, nor in the metrics; nor is either sent on."""
    details = {
        "orderId": 7,
        "vouchers": [{"voucherCode": "VOUCHER-CODE-42", "pin": "PIN-4711-PIN"}],
        "pin": "PIN-4711-PIN",
    }
    answer = answering(200, {"data": {"getOrderDetails": {"status": 1, "data": details}}})
    async with scripted(answer) as api:
        enricher = {"provider": "xoxoday", "token": TOKEN, "base_url": f"http://127.0.0.1:{api.port}"}
        route = {"name": "rewards", "from": ["xoxoday"], "enrich": "xoxoday", "to": ["crm"]}
        async with running(tmp_path, config(api, enrichers={"xoxoday": enricher}, routes=[route]), target) as gateway:
            body = b'{"id":1,"data":{"orderId":7,"deliveryStatus":"delivered"}}'
            answered = await gateway.post("/hooks/xoxoday", body, {"x-api-key": ENV["API_KEY"]})
            got = await target.next()
            assert json.loads(got.body) == {"event": json.loads(body), "data": {"orderId": 7}}
            assert json.loads(api.received[0].body)["variables"]["data"]["sendMailToReceiver"] == 0
            seen = repr(await shown(gateway, answered.json["id"])) + gateway.log_text()
            seen += (await gateway.call("/metrics", headers=AUTH)).body.decode()
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("relay.db*"))
    for secret in ("VOUCHER-CODE-42", "PIN-4711-PIN", TOKEN):
        assert secret not in seen
        assert secret.encode() not in kept
        assert secret.encode() not in got.body


async def test_many_events_ask_at_most_so_many_at_a_time(tmp_path: Path, target: Target) -> None:
    """An API is not flooded by a burst of webhooks."""
    under_way = most = 0

    async def slow(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        await ORDERS(request, writer)

    async with scripted(slow) as api:
        text = config(api, targets={"crm": {"url": "${TARGET}", "concurrency": 64}})
        async with running(tmp_path, text, target) as gateway:
            for number in range(60):
                await post(gateway, SAMPLE.replace(b":77", b":%d" % number))
            await until(lambda: len(target.arrivals) == 60)
    assert most <= 8
    assert len(api.received) == 60


async def test_an_erased_event_takes_what_was_fetched_along(tmp_path: Path, target: Target) -> None:
    """`prune --event` leaves nothing of it."""
    async with scripted(ORDERS) as api, running(tmp_path, config(api), target) as gateway:
        event_id = await post(gateway)
        await target.next()
        assert gateway.rows("SELECT count(*) FROM brought") == [(1,)]
        body = json.dumps({"event": event_id}).encode()
        answer = await gateway.call(
            "/api/v1/prune", method="POST", body=body, headers=AUTH | {"Content-Type": "application/json"}
        )
        assert answer.status == 200
        assert gateway.rows("SELECT count(*) FROM brought") == [(0,)]
