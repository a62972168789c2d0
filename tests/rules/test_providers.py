"""The providers, by their documents."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import ApiKeyCheck, Content, HmacCheck, NoCheck, Provider, ReceivedRequest, Secret, VerifiedRequest
from relay.providers import PROVIDERS
from relay.rules.signing import sign
from relay.rules.verification import Refusal, verify
from tests.support.vectors import check_of

NOW = datetime(2026, 9, 20, 10, 15, 31, tzinfo=UTC)
XOXODAY, PLUGANDPAY, LEGACY = (PROVIDERS[name] for name in ("xoxoday", "plugandpay", "plugandpay_v1"))

XOXODAY_BODY = (
    b'{"id":10000000001,"data":{"orderId":26663453,"poNumber":"PO12662","orderDate":"2026-09-20 10:15:30",'
    b'"deliveryStatus":"delivered"},"createdAt":"2026-09-20 10:15:31"}'
)
NESTED = (
    b'{"event":{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order"},'
    b'"rule_id":1,"tenant_id":1,"sent_at":"2026-09-20T10:15:30.000000Z"}'
)
FLAT = (
    b'{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order",'
    b'"sent_at":"2026-09-20T10:15:30.000000Z","tenant_id":1,"rule_id":1}'
)
PLUGANDPAY_CHECK = HmacCheck(
    header="X-Signature", prefix="sha256=", prefix_optional=True, secrets=(Secret(b"pnp_test_key_0123456789abcdef"),)
)


NAMES = {
    "xoxoday",
    "plugandpay",
    "plugandpay_v1",
    "standard_webhooks",
    "svix",
    "github",
    "stripe",
    "shopify",
    "slack",
    "gitlab",
    "gitlab_signed",
    "mollie",
    "mollie_classic",
    "generic_hmac",
}


def content(body: bytes, *headers: tuple[str, str]) -> Content:
    return Content(headers=headers, body=body)


def status(value: str) -> Content:
    return content(XOXODAY_BODY.replace(b'"delivered"', value.encode()))


def test_every_provider_is_found_by_its_name() -> None:
    """The registry is the package's files, and nobody can change it."""
    assert set(PROVIDERS) == NAMES
    assert all(name == provider.name for name, provider in PROVIDERS.items())
    assert isinstance(PROVIDERS, Mapping)
    assert not hasattr(PROVIDERS, "update")


def test_xoxoday_proves_itself_by_its_key() -> None:
    """The documented example key passes in the documented header, whatever its case; another does not."""
    assert XOXODAY.check == ApiKeyCheck(header="x-api-key")
    check = ApiKeyCheck(header="x-api-key", secrets=(Secret(b"a1p2z5b7v68b9112234"),))
    for name, key, proven in (
        ("X-API-key", "a1p2z5b7v68b9112234", True),
        ("x-api-key", "a1p2z5b7v68b911223", False),
        ("x-api-key", "A1P2Z5B7V68B9112234", False),
    ):
        verdict = verify(ReceivedRequest(((name, key),), XOXODAY_BODY, "52.76.120.90"), check, NOW)
        assert isinstance(verdict, VerifiedRequest) is proven
    assert XOXODAY.secret_format is not None
    assert re.search(XOXODAY.secret_format, "a1p2z5b7v68b9112234")
    assert not re.search(XOXODAY.secret_format, "with-a-dash-in-it")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"delivered"', "delivered"),
        ('"Delivered"', "delivered"),
        ('"Canceled"', "canceled"),
        ('"canceled"', "canceled"),
        ('"Cancelled"', "canceled"),
        ('"refunded"', "refunded"),
        ('""', None),
        ("null", None),
        ("7", None),
        ('"a\\nb"', None),
        ('"\\ud800"', None),
        ('"' + "x" * 201 + '"', None),
    ],
)
def test_xoxodays_status_is_its_type_in_one_spelling(written: str, meant: str | None) -> None:
    """The documents print the same two words in several cases and spellings."""
    assert XOXODAY.event_type(status(written)) == meant


def test_xoxodays_calls_are_known_by_id_order_and_status() -> None:
    """A retry is the same call, another status or order is another, and digits are exact beyond 64 bits."""
    key = XOXODAY.dedupe_key
    assert key(content(XOXODAY_BODY)) == '["10000000001","26663453","delivered"]'
    assert key(status('"Delivered"')) == key(content(XOXODAY_BODY))
    assert key(status('"canceled"')) != key(content(XOXODAY_BODY))
    assert key(status('"Cancelled"')) == key(status('"canceled"'))
    big, bigger = (b'{"id":99999999999999999999%d}' % digit for digit in (1, 2))
    assert key(content(big)) == '["999999999999999999991","",""]'
    assert key(content(big)) != key(content(bigger))
    assert key(content(b'{"id":"A-1","data":{"orderId":null}}')) == '["A-1","",""]'


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"id":null}',
        b'{"id":true}',
        b'{"id":1e22}',
        b'{"id":""}',
        b'{"id":[1]}',
        b'{"id":1,"data":{"orderId":1.5}}',
        b'{"id":1,"data":{"orderId":2,"deliveryStatus":5}}',
        b'{"id":1,"data":{"orderId":2,"deliveryStatus":["delivered"]}}',
        b'{"id":1,"data":{"orderId":2,"deliveryStatus":""}}',
        b'{"id":1,"data":{"orderId":2,"deliveryStatus":"' + b"a" * 5000 + b'"}}',
        b'{"id":' + b"1" * 5000 + b"}",
        b'{"id":' + b"1" * 300 + b"}",
        b"[]",
        b"not json",
        b"",
    ],
)
def test_a_xoxoday_call_without_exact_names_is_never_taken_for_another(body: bytes) -> None:
    """Without them there is no dedupe key: an event may come twice, but none is swallowed."""
    assert XOXODAY.dedupe_key(content(body)) is None


def test_xoxodays_sender_gives_up_and_the_log_can_say_what_to_do() -> None:
    """After three failures the URL is switched off; the text names the place and the call to catch up."""
    assert XOXODAY.gives_up_after == 3
    assert "Settings > API" in XOXODAY.revival
    assert "getOrderHistory" in XOXODAY.revival


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (NESTED, "494a53e8b36e5325c2106662a2e25363c16fd98e88eeb9778c8e6968aba5e3b7"),
        (FLAT, "84c58377f30a24eec21643c9256ccaf2797c9d9c2403da1c3f7cd23250c06a0f"),
    ],
)
def test_plugandpays_vectors_are_proven_in_every_accepted_spelling(body: bytes, signature: str) -> None:
    """Both shapes of the body, with and without the prefix, in either case; the bytes decide, not their meaning."""
    for value in (signature, f"sha256={signature}", signature.upper()):
        request = ReceivedRequest((("X-Signature", value),), body, "192.0.2.1")
        assert isinstance(verify(request, PLUGANDPAY_CHECK, NOW), VerifiedRequest)
        respaced = ReceivedRequest((("X-Signature", value),), body.replace(b":", b": "), "192.0.2.1")
        assert isinstance(verify(respaced, PLUGANDPAY_CHECK, NOW), Refusal)
    assert sign(PLUGANDPAY_CHECK, body, now=NOW, message_id="m") == (("X-Signature", signature),)
    assert PLUGANDPAY.event_type(content(body)) == "order_payment_completed"


def test_plugandpays_trigger_is_read_nested_first_then_flat_and_may_be_unknown() -> None:
    """An unheard-of trigger is as good as any; what is no text is no type."""
    kind = PLUGANDPAY.event_type
    assert kind(content(b'{"event":{"trigger_type":"a"},"trigger_type":"b"}')) == "a"
    assert kind(content(b'{"event":"x","trigger_type":"affiliate_denied"}')) == "affiliate_denied"
    assert kind(content(b'{"event":{"trigger_type":7},"trigger_type":"b"}')) == "b"
    for body in (b"", b"[]", b'"x"', b'{"trigger_type":null}', b'{"trigger_type":""}', b'{"trigger_type":"\\u0000"}'):
        assert kind(content(body)) is None


def test_plugandpays_calls_are_known_by_their_bytes() -> None:
    """The same bytes are a retry; a sibling rule's call and a later one are not."""
    assert PLUGANDPAY.dedupe_key(content(NESTED)) == sha256(NESTED).hexdigest()
    assert PLUGANDPAY.dedupe_key(content(NESTED)) != PLUGANDPAY.dedupe_key(content(FLAT))


def test_plugandpays_first_webhooks_are_forms_without_proof_or_identity() -> None:
    """They name their event, prove nothing, and no two of them are ever taken for one."""
    body = b"webhook_event=contracts.new&contract_id=901&raw=%7B%22total%22%3A7%7D&webhook_event=other"
    assert LEGACY.event_type(content(body)) == "contracts.new"
    assert LEGACY.dedupe_key(content(body)) is None
    assert not LEGACY.signed
    assert LEGACY.check == NoCheck()
    for odd in (b"", b"{}", b"webhook_event=", b"webhook_event=%00", b"a=1&" * 2000, b"webhook_event=" + b"x" * 201):
        assert LEGACY.event_type(content(odd)) is None


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS.keys())
def test_samples_are_genuine_and_no_two_are_one_event(provider: Provider) -> None:
    """A sample has a type, and neither another serial nor another time repeats it."""
    later = NOW.replace(second=59)
    bodies = [provider.sample.body(at, serial) for at in (NOW, later) for serial in (1, 2)]
    assert len(set(bodies)) == 4
    check = check_of(provider, f"{provider.secret_prefix}0123456789abcdef0123456789abcdef")
    sent = []
    for at, serial in ((NOW, 1), (NOW, 2), (later, 1), (later, 2)):
        body = provider.sample.body(at, serial)
        proof = sign(check, body, now=at, message_id=f"msg_{at:%S}_{serial}")
        sent.append(Content((*provider.sample.sent(at, serial), *proof), body))
    assert all(provider.event_type(one) for one in sent)
    found = {key for one in sent if (key := provider.dedupe_key(one)) is not None}
    assert len(found) == (4 if provider.signed else 0)


def test_samples_have_the_documented_fields() -> None:
    """Field for field what the vendors print, within their sizes."""
    sample = content(XOXODAY.sample.body(NOW, 7)).json
    assert set(sample) == {"id", "data", "createdAt"}
    assert set(sample["data"]) == {"orderId", "poNumber", "orderDate", "deliveryStatus"}
    assert len(str(sample["id"])) <= 20
    assert len(str(sample["data"]["orderId"])) <= 11
    assert sample["createdAt"] == "2026-09-20 10:15:31"
    assert set(content(PLUGANDPAY.sample.body(NOW, 7)).json) == set(content(NESTED).json)
    form = dict(parse_qsl(LEGACY.sample.body(NOW, 7).decode()))
    assert {"webhook_event", "contract_id", "signup_token", "email", "billing_cycle", "sku", "raw"} <= set(form)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.row("B21", "H35")
@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS.keys())
@given(raw=st.binary(max_size=80), tree=st.fixed_dictionaries({}, optional={"id": JSON, "data": JSON, "event": JSON}))
def test_no_content_makes_a_name_raise(provider: Provider, raw: bytes, tree: object) -> None:
    """Types and keys are text that every store can keep, or None."""
    for body in (raw, json.dumps(tree).encode(), b"webhook_event=" + raw):
        for name in (provider.event_type(content(body)), provider.dedupe_key(content(body))):
            assert name is None or name.encode()
