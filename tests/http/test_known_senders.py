"""Every provider that signs, end to end: posted as its vendor documents, signed here by hand and by nothing of ours."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from relay.providers import PROVIDERS
from tests.http.gateway import Gateway, Start

SECRET = "a-sound-secret-of-ours-0123"
RAW = b"32 random bytes, or nearly so ..."
WHSEC = "whsec_" + base64.b64encode(RAW).decode()
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

Signer = Callable[[bytes, int], dict[str, str]]


def digest(message: bytes, key: bytes) -> bytes:
    return hmac.new(key, message, "sha256").digest()


def standard(stem: str) -> Signer:
    def sign(body: bytes, stamp: int) -> dict[str, str]:
        message = f"msg_{len(body)}.{stamp}.".encode() + body
        proof = f"v1,{base64.b64encode(digest(message, RAW)).decode()}"
        return {f"{stem}-id": f"msg_{len(body)}", f"{stem}-timestamp": str(stamp), f"{stem}-signature": proof}

    return sign


def plain(header: str, prefix: str = "") -> Signer:
    return lambda body, _stamp: {header: prefix + digest(body, SECRET.encode()).hex()}


def stripe(body: bytes, stamp: int) -> dict[str, str]:
    proof = digest(f"{stamp}.".encode() + body, WHSEC.encode()).hex()
    return {"Stripe-Signature": f"t={stamp},v1={'0' * 64},v1={proof},v0={proof}"}


def shopify(body: bytes, _stamp: int) -> dict[str, str]:
    return {"X-Shopify-Hmac-Sha256": base64.b64encode(digest(body, SECRET.encode())).decode()}


def slack(body: bytes, stamp: int) -> dict[str, str]:
    proof = digest(f"v0:{stamp}:".encode() + body, SECRET.encode()).hex()
    return {"X-Slack-Request-Timestamp": str(stamp), "X-Slack-Signature": f"v0={proof}"}


def token(header: str) -> Signer:
    return lambda _body, _stamp: {header: SECRET}


@dataclass(frozen=True)
class Sender:
    """One provider as it sends: a body, what it says in headers, its proof, and what the event is called."""

    provider: str
    sign: Signer
    body: Any
    type: str
    headers: dict[str, str]
    secret: str = SECRET

    @property
    def raw(self) -> bytes:
        return json.dumps(self.body).encode()

    def proven(self, body: bytes, *, stamp: int | None = None) -> dict[str, str]:
        now = int(time.time()) if stamp is None else stamp
        return {"Content-Type": "application/json"} | self.headers | self.sign(body, now)


ISSUE = {"object_kind": "issue", "object_attributes": {"iid": 23, "action": "open"}}
SENDERS = [
    Sender("xoxoday", token("x-api-key"), {"id": 1, "data": {"deliveryStatus": "delivered"}}, "delivered", {}),
    Sender("plugandpay", plain("X-Signature"), {"event": {"trigger_type": "order_paid"}}, "order_paid", {}),
    Sender("generic_hmac", plain("X-Signature"), {"type": "a.b", "id": "1"}, "a.b", {}),
    Sender("standard_webhooks", standard("webhook"), {"type": "user.created"}, "user.created", {}, WHSEC),
    Sender("svix", standard("svix"), {"type": "invoice.paid"}, "invoice.paid", {}, WHSEC),
    Sender(
        "github",
        plain("X-Hub-Signature-256", "sha256="),
        {"action": "opened"},
        "issues.opened",
        {"X-GitHub-Event": "issues", "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"},
    ),
    Sender("stripe", stripe, {"id": "evt_1", "type": "invoice.paid"}, "invoice.paid", {}, WHSEC),
    Sender(
        "shopify",
        shopify,
        {"id": 1},
        "orders/create",
        {"X-Shopify-Topic": "orders/create", "X-Shopify-Webhook-Id": "w"},
    ),
    Sender(
        "slack",
        slack,
        {"type": "event_callback", "event": {"type": "app_mention"}, "event_id": "Ev1"},
        "app_mention",
        {},
    ),
    Sender("gitlab", token("X-Gitlab-Token"), ISSUE, "issue.open", {"Idempotency-Key": "i"}),
    Sender("gitlab_signed", standard("webhook"), ISSUE, "issue.open", {"X-Gitlab-Token": "whatever"}, WHSEC),
    Sender(
        "mollie",
        plain("X-Mollie-Signature", "sha256="),
        {"resource": "event", "id": "event_1", "type": "payment-link.paid"},
        "payment-link.paid",
        {},
    ),
]
TIMED = [sender for sender in SENDERS if sender.sign in (stripe, slack) or sender.provider in {"svix", "gitlab_signed"}]
BY_KEY = {"xoxoday", "gitlab"}


def by_name(senders: list[Sender]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("sender", senders, ids=[sender.provider for sender in senders])


def sources(sender: Sender, **more: Any) -> dict[str, Any]:
    secrets = ["x" * 20, sender.secret] if sender.secret == SECRET else [sender.secret]
    return {"it": {"provider": sender.provider, "secrets": secrets} | more}


def test_every_provider_that_signs_is_sent_here() -> None:
    """A new provider has to be among them."""
    assert {sender.provider for sender in SENDERS} == {one.name for one in PROVIDERS.values() if one.signed}


@by_name(SENDERS)
async def test_a_genuine_request_is_named_and_arrives_as_it_came(start: Start, sender: Sender) -> None:
    """Bytes and headers, but for a key that travels in the clear."""
    relay = await start(sources(sender))
    headers = sender.proven(sender.raw)
    answer = await relay.post("/hooks/it", sender.raw, headers)
    assert (answer.status, answer.json["duplicate"]) == (200, False)
    got = await relay.target.next()
    assert (got.body, got["relay-event-type"], got["relay-verified"]) == (sender.raw, sender.type, None)
    withheld = {name for name, value in headers.items() if value == SECRET}
    assert bool(withheld) is (sender.provider in BY_KEY)
    assert {name: got[name.lower()] for name in headers} == headers | dict.fromkeys(withheld)


@by_name(SENDERS)
async def test_a_second_copy_is_a_duplicate(start: Start, sender: Sender) -> None:
    """Also where a retry is signed anew, at a later time."""
    relay = await start(sources(sender))
    now = int(time.time())
    first, second = [
        await relay.post("/hooks/it", sender.raw, sender.proven(sender.raw, stamp=at)) for at in (now - 60, now)
    ]
    assert (first.json["duplicate"], second.json["duplicate"]) == (False, True)
    assert second.json["id"] == first.json["id"]
    assert relay.counted("it") == {"accepted": 1, "duplicate": 1}


@by_name(SENDERS)
async def test_a_changed_request_is_refused(start: Start, sender: Sender) -> None:
    """The body under its signature, or the key itself."""
    relay = await start(sources(sender))
    headers, body = sender.proven(sender.raw), sender.raw.replace(b":", b" :", 1)
    if sender.provider in BY_KEY:
        headers |= {name: value[:-1] for name, value in sender.sign(b"", 0).items()}
    answer = await relay.post("/hooks/it", body, headers)
    await relay.turned_away(answer, 401, "bad_signature", source="it")


@by_name(SENDERS)
async def test_a_request_without_proof_is_refused(start: Start, sender: Sender) -> None:
    """Whatever its headers say it is."""
    relay = await start(sources(sender))
    answer = await relay.post("/hooks/it", sender.raw, sender.headers)
    await relay.turned_away(answer, 401, "missing_signature", source="it")


@by_name(TIMED)
async def test_a_captured_request_is_refused_after_five_minutes(start: Start, sender: Sender) -> None:
    """The time is signed with it."""
    relay = await start(sources(sender))
    answer = await relay.post("/hooks/it", sender.raw, sender.proven(sender.raw, stamp=int(time.time()) - 400))
    await relay.turned_away(answer, 401, "stale_timestamp", source="it")


async def test_the_yaml_may_say_otherwise_than_a_provider(start: Start) -> None:
    """Header, prefix, encoding, type and key; a list of Stripe's kind under another name is read as Stripe's."""
    stripes = {"provider": "stripe", "secrets": [WHSEC], "verify": {"header": "Other-Signature"}, "event_type": "kind"}
    generic = {"header": "X-Sig", "encoding": "base64", "prefix": ""}
    relay = await start(
        {
            "list": stripes | {"dedupe_key": "header:X-Id"},
            "own": {"provider": "generic_hmac", "secrets": [SECRET], "verify": generic, "event_type": "header:X-Kind"},
        }
    )
    body = b'{"kind": "made", "id": "1"}'
    listed = {"Other-Signature": stripe(body, int(time.time()))["Stripe-Signature"]}
    for number, known in (("1", False), ("2", False), ("2", True)):
        answer = await relay.post("/hooks/list", body, listed | {"X-Id": number})
        assert (answer.status, answer.json["duplicate"]) == (200, known)
    own = {"X-Sig": base64.b64encode(digest(body, SECRET.encode())).decode(), "X-Kind": "said"}
    assert (await relay.post("/hooks/own", body, own)).status == 200
    assert sorted(row[:2] for row in relay.stored()) == [("list", "made"), ("list", "made"), ("own", "said")]


async def test_either_of_mollies_two_headers_proves_while_its_secret_changes(start: Start) -> None:
    """Two lines, in any order; two that are both of another secret prove nothing."""
    relay = await start(sources(next(one for one in SENDERS if one.provider == "mollie")))
    other = ("X-Mollie-Signature", "sha256=" + "0" * 64)
    for number in (1, 2):
        body = b'{"resource": "event", "id": "event_%d"}' % number
        mine = ("X-Mollie-Signature", "sha256=" + digest(body, SECRET.encode()).hex())
        assert (await relay.post("/hooks/it", body, [mine, other][:: 1 if number == 1 else -1])).status == 200
    assert (await relay.post("/hooks/it", b"{}", [other, other])).status == 401


CHALLENGE = {"token": "Jhj5dZ", "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmd", "type": "url_verification"}


@pytest.fixture
async def slacks(start: Start) -> Gateway:
    return await start({"it": {"provider": "slack", "secrets": [SECRET], "respond": {"status": 202}}})


async def test_slacks_challenge_is_told_back_and_is_no_event(slacks: Gateway) -> None:
    """200 and the bare text, whatever `respond` says; told and counted, and nothing is stored or delivered."""
    raw = json.dumps(CHALLENGE).encode()
    answer = await slacks.post("/hooks/it", raw, slack(raw, int(time.time())))
    assert (answer.status, answer.body) == (200, CHALLENGE["challenge"].encode())
    assert (answer["content-type"], answer["x-content-type-options"]) == ("text/plain", "nosniff")
    line = await slacks.told("request.challenged")
    assert (line["source"], line["verified"]) == ("it", True)
    assert CHALLENGE["challenge"] not in slacks.log_text()
    assert slacks.counted("it") == {"challenged": 1}
    assert slacks.stored() == []
    assert slacks.app.metrics.last_event("it") is None


async def test_an_unproven_challenge_is_refused(slacks: Gateway) -> None:
    """Nobody is told anything back who has not proven who he is."""
    raw = json.dumps(CHALLENGE).encode()
    answer = await slacks.post("/hooks/it", raw, slack(raw + b" ", int(time.time())))
    assert CHALLENGE["challenge"].encode() not in answer.body
    await slacks.turned_away(answer, 401, "bad_signature", source="it")


async def test_another_source_takes_a_challenge_for_the_event_that_it_is(start: Start) -> None:
    """Only a provider that asks such things is told them back."""
    relay = await start({"it": {"provider": "generic_hmac", "secrets": [SECRET]}})
    raw = json.dumps(CHALLENGE).encode()
    assert (await relay.post("/hooks/it", raw, plain("X-Signature")(raw, 0))).status == 200
    assert [row[1] for row in relay.stored()] == ["url_verification"]


@pytest.mark.parametrize(
    ("fields", "type_"),
    [
        ({"command": "/weather", "text": "94070"}, "/weather"),
        ({"payload": json.dumps({"type": "block_actions"})}, "block_actions"),
    ],
)
async def test_slacks_forms_are_events_of_their_own(slacks: Gateway, fields: dict[str, str], type_: str) -> None:
    """Commands and interactions; the same one twice is two, because Slack sends none anew."""
    raw = urlencode(fields).encode()
    for _ in range(2):
        answer = await slacks.post("/hooks/it", raw, FORM | slack(raw, int(time.time())))
        assert (answer.status, answer.json["duplicate"]) == (202, False)
    got = await slacks.target.next()
    assert (got.body, got["relay-event-type"], got["content-type"]) == (raw, type_, FORM["Content-Type"])


async def test_mollies_classic_calls_come_on_a_secret_path(start: Start) -> None:
    """Unproven, each an event of its own, and the target sees it."""
    path = "/hooks/mollie/4f9d2c7a81e04b6f93d5"
    relay = await start({"old": {"provider": "mollie_classic", "path": path}})
    raw = b"id=tr_5B8cwPMGnU6qLbRvo7qEZo"
    assert [(await relay.post(path, raw, FORM)).json["duplicate"] for _ in range(2)] == [False, False]
    got = await relay.target.next()
    assert (got.body, got["relay-event-type"], got["relay-verified"]) == (raw, "tr", "false")
    assert (await relay.post("/hooks/old", raw, FORM)).status == 404
