"""The two providers end to end, on the requests that their documentation and their integrators print."""

import base64
import hmac
import json
from typing import Any

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import ENV, Gateway, Start

XOXODAY = (
    b'{"id":10000000001,"data":{"orderId":26663453,"poNumber":"PO12662","orderDate":"2026-09-20 10:15:30",'
    b'"deliveryStatus":"delivered"},"createdAt":"2026-09-20 10:15:31"}'
)
NESTED = (
    b'{"event":{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order"},'
    b'"rule_id":1,"tenant_id":1,"sent_at":"2026-09-20T10:15:30.000000Z"}'
)
NESTED_SIGNATURE = "494a53e8b36e5325c2106662a2e25363c16fd98e88eeb9778c8e6968aba5e3b7"
FLAT = (
    b'{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order",'
    b'"sent_at":"2026-09-20T10:15:30.000000Z","tenant_id":1,"rule_id":1}'
)
FLAT_SIGNATURE = "84c58377f30a24eec21643c9256ccaf2797c9d9c2403da1c3f7cd23250c06a0f"
V1 = (
    b"webhook_event=contracts.new&contract_id=901&signup_token=abc123&email=buyer%40example.com"
    b"&billing_cycle=monthly&sku=S1&raw=%7B%22total%22%3A7%7D"
)
KEY = {"x-api-key": ENV["API_KEY"], "Content-Type": "application/json"}


def order(status: Any = "delivered", hook: Any = 1, number: Any = 2, **data: Any) -> bytes:
    return json.dumps({"id": hook, "data": {"orderId": number, "deliveryStatus": status, **data}}).encode()


def signature(body: bytes) -> dict[str, str]:
    return {"X-Signature": hmac.new(ENV["WEBHOOK_KEY"].encode(), body, "sha256").hexdigest()}


async def test_xoxodays_documented_request_is_stored_and_arrives_as_it_came(gateway: Gateway) -> None:
    """Exactly 200, because another 2xx is not known to count; the key stays here, the bytes go on."""
    answer = await gateway.post("/hooks/xoxoday", XOXODAY, KEY)
    assert (answer.status, answer.json["duplicate"]) == (200, False)
    got = await gateway.target.next()
    assert (got.body, got["relay-event-type"], got["x-api-key"]) == (XOXODAY, "delivered", None)
    assert got["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "type_"),
    [
        ("delivered", "delivered"),
        ("Delivered", "delivered"),
        ("canceled", "canceled"),
        ("Canceled", "canceled"),
        ("CANCELED", "canceled"),
        ("cancelled", "canceled"),
        ("Cancelled", "canceled"),
        ("refunded", "refunded"),
        (None, "unknown"),
        (7, "unknown"),
        ("\x1b[31m", "unknown"),
    ],
)
async def test_xoxodays_status_is_the_type_whatever_its_spelling(gateway: Gateway, status: Any, type_: str) -> None:
    """The documentation prints several; none is refused."""
    assert (await gateway.post("/hooks/xoxoday", order(status), KEY)).status == 200
    assert [row[1] for row in gateway.stored()] == [type_]


@pytest.mark.parametrize("po_number", [{}, {"poNumber": None}, {"poNumber": ""}], ids=["absent", "null", "empty"])
async def test_xoxodays_po_number_may_be_missing(gateway: Gateway, po_number: dict[str, Any]) -> None:
    """It is there only where the client gave one."""
    assert (await gateway.post("/hooks/xoxoday", order(**po_number), KEY)).status == 200


@pytest.mark.row("H15", "B11")
async def test_xoxodays_retry_is_a_duplicate_and_another_status_is_not(gateway: Gateway) -> None:
    """The key is id, order and status together, beyond 64 bits too; spelling does not make a new event."""
    huge = 99_999_999_999_999_999_999
    bodies = [
        order("delivered", huge),
        order("Delivered", huge),
        order("cancelled", huge),
        order("canceled", huge),
        order("delivered", huge + 1),
        order("delivered", huge, 3),
    ]
    answers = [await gateway.post("/hooks/xoxoday", body, KEY) for body in bodies]
    assert [answer.json["duplicate"] for answer in answers] == [False, True, False, True, False, False]
    assert answers[1].json["id"] == answers[0].json["id"]
    assert len(gateway.stored()) == 4


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "missing_signature"),
        ([("X-Api-Key", "")], "missing_signature"),
        ([("X-Api-Key", "a1p2z5b7v68b911223")], "bad_signature"),
        ([("X-Api-Key", "A1P2Z5B7V68B9112234")], "bad_signature"),
        ([("X-Api-Key", ENV["API_KEY"])] * 2, "ambiguous_signature"),
    ],
    ids=["missing", "empty", "cut", "other case", "two"],
)
@pytest.mark.row("H4", "H5", "H6", "T3", "T4")
async def test_xoxodays_key_must_be_there_once_and_whole(
    gateway: Gateway, headers: list[tuple[str, str]], reason: str
) -> None:
    """It is compared, not parsed."""
    answer = await gateway.post("/hooks/xoxoday", XOXODAY, headers)
    await gateway.turned_away(answer, 401, reason, source="xoxoday")


async def test_three_answers_other_than_200_say_that_xoxoday_may_have_switched_us_off(gateway: Gateway) -> None:
    """Told once, with where to switch it on and how to fetch what was missed; a 200 in between starts anew, and
    somebody with a browser does not count."""
    for headers in ({}, {}, KEY, {}, {}):
        await gateway.post("/hooks/xoxoday", order(hook=len(headers)), headers)
    for _ in range(3):
        await gateway.raw(b"GET /hooks/xoxoday HTTP/1.1\r\nHost: a\r\n\r\n")
    assert await gateway.log("source.may_be_switched_off") == []
    for _ in range(3):
        await gateway.post("/hooks/xoxoday", XOXODAY)
    line = await gateway.told("source.may_be_switched_off")
    assert (line["source"], line["level"]) == ("xoxoday", "error")
    assert "Settings > API" in line["advice"]
    assert "getOrderHistory" in line["advice"]


async def test_a_sender_that_does_not_give_up_is_not_suspected(gateway: Gateway) -> None:
    """Only a provider that is known to switch URLs off."""
    for _ in range(4):
        await gateway.post("/hooks/plugandpay", NESTED)
    assert await gateway.log("source.may_be_switched_off") == []


@pytest.mark.parametrize(
    ("body", "proof"),
    [
        (NESTED, NESTED_SIGNATURE),
        (NESTED, NESTED_SIGNATURE.upper()),
        (NESTED, "sha256=" + NESTED_SIGNATURE),
        (FLAT, FLAT_SIGNATURE),
    ],
    ids=["nested", "upper case", "prefixed", "flat"],
)
@pytest.mark.row("H5")
async def test_plugandpays_vectors_are_proven_and_named(gateway: Gateway, body: bytes, proof: str) -> None:
    """Nested as seen on the wire, flat as the help page lists it; the target can check the signature itself."""
    assert (await gateway.post("/hooks/plugandpay", body, {"X-Signature": proof})).status == 200
    got = await gateway.target.next()
    assert (got.body, got["x-signature"]) == (body, proof)
    assert (got["relay-event-type"], got["relay-verified"]) == ("order_payment_completed", None)


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b'{"event":{"trigger_type":"affiliate_whatever","triggerable_type":"spaceship"}}', "affiliate_whatever"),
        (b'{"event":{"trigger_type":"inner"},"trigger_type":"outer"}', "inner"),
        (b'{"event":"order","trigger_type":"outer"}', "outer"),
        (b'{"event":{"trigger_type":null}}', "unknown"),
        (b"[1, 2]", "unknown"),
        (b"not json at all", "unknown"),
        (b"", "unknown"),
        (b'{"event":{"trigger_type":"big","triggerable_id":123456789012345678901234567890}}', "big"),
    ],
)
@pytest.mark.row("H35", "B13")
async def test_plugandpays_content_is_never_a_reason_to_refuse(gateway: Gateway, body: bytes, type_: str) -> None:
    """Unknown triggers, other shapes, no JSON: authentic is authentic, and the bytes go on."""
    assert (await gateway.post("/hooks/plugandpay", body, signature(body))).status == 200
    got = await gateway.target.next()
    assert (got.body, got["relay-event-type"]) == (body, type_)


async def test_plugandpays_identical_retry_is_a_duplicate_and_a_sibling_rule_is_not(gateway: Gateway) -> None:
    """There is no delivery id, so only the same bytes are the same call."""
    other = NESTED.replace(b'"rule_id":1', b'"rule_id":2')
    answers = [await gateway.post("/hooks/plugandpay", body, signature(body)) for body in (NESTED, NESTED, other)]
    assert [answer.json["duplicate"] for answer in answers] == [False, True, False]


@pytest.mark.row("H5")
async def test_plugandpays_header_and_encoding_may_be_described_otherwise(start: Start) -> None:
    """They are not confirmed by the vendor."""
    verify = {"header": "X-PlugAndPay-Signature", "encoding": "base64"}
    relay = await start({"pnp": SOURCES["plugandpay"] | {"verify": verify}})
    proof = base64.b64encode(bytes.fromhex(NESTED_SIGNATURE)).decode()
    assert (await relay.post("/hooks/pnp", NESTED, {"X-PlugAndPay-Signature": proof})).status == 200
    assert (await relay.post("/hooks/pnp", NESTED, {"X-Signature": NESTED_SIGNATURE})).status == 401


async def test_the_unsigned_version_lives_on_an_unguessable_path_alone(start: Start) -> None:
    """Form-encoded, unproven, forwarded untouched; two equal calls are two events, because nothing names them."""
    path = "/hooks/pnp/4f9d2c7a81e04b6f93d5"
    relay = await start({"old": {"provider": "plugandpay_v1", "path": path, "event_type": "form.webhook_event"}})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert [(await relay.post(path, V1, headers)).json["duplicate"] for _ in range(2)] == [False, False]
    got = await relay.target.next()
    assert (got.body, got["content-type"]) == (V1, headers["Content-Type"])
    assert (got["relay-event-type"], got["relay-verified"]) == ("contracts.new", "false")
    assert (await relay.post("/hooks/old", V1, headers)).status == 404
