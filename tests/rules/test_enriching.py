"""What an enricher is asked, what its answer means, and how one that fails is paced: decisions without a socket."""

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Enricher, Event, TemplateBody
from relay.providers import PROVIDERS
from relay.rules.enriching import WAITS, Answer, Ask, Brought, Failing, Pace, Refused, Throttled, answered, asked, paced

NOW = datetime(2031, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
BY_SKU = "https://api.example.com/stock/{{ body.sku }}?of={{ type }}"
STOCK = Enricher("stock", "https://api.example.com/stock/", BY_SKU, drop=("vouchers",))


def event(body: object, *, type_: str = "order_paid") -> tuple[Event, bytes]:
    """An event and its body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Event("evt_1", "shop", type_, NOW, (("X-Shop", "7"),), content), content


def of_provider(name: str, **settings: Any) -> Enricher:
    """A provider's own enricher."""
    lookup = PROVIDERS[name].lookup
    assert lookup is not None
    return Enricher(name, lookup.base_url, lookup=lookup, take=lookup.take, **settings)


def plugandpay(kind: object, number: object, *include: str, nested: bool = True) -> Ask | Refused:
    """What Plug&Pay's API is asked for one trigger."""
    trigger = {"trigger_type": "x", "triggerable_id": number, "triggerable_type": kind}
    body = {"event": trigger, "tenant_id": 1} if nested else trigger | {"tenant_id": 1}
    return asked(of_provider("plugandpay", include=include), *event(body))


def test_a_template_asks_for_the_event() -> None:
    """URL, headers and body are filled from the event; values stay in their part of the URL."""
    enricher = Enricher(
        "stock",
        "https://api.example.com/stock/",
        BY_SKU,
        method="POST",
        header_templates=(("X-Shop", "{{ headers['x-shop'] }}"),),
        body=TemplateBody('{"sku": {{ body.sku | tojson }}}'),
    )
    assert asked(enricher, *event({"sku": 'a/b?c&"'})) == Ask(
        "POST",
        "https://api.example.com/stock/a%2Fb%3Fc%26%22?of=order_paid",
        (("Accept", "application/json"), ("Content-Type", "application/json"), ("X-Shop", "7")),
        b'{"sku": "a/b?c&\\""}',
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "needs 'sku'"),
        ({"sku": None}, "a value is empty"),
        ({"sku": ".."}, "dot segment"),
        (b"no json", "needs 'sku'"),
    ],
    ids=str,
)
def test_an_event_that_lacks_what_the_template_needs_is_refused_with_words(body: object, words: str) -> None:
    """Nothing is asked for half a URL; the reason names the enricher and what is missing."""
    refused = asked(STOCK, *event(body))
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("enricher stock: ")
    assert words in refused.reason


@given(sku=st.text() | st.integers() | st.floats(allow_nan=False) | st.lists(st.text(), max_size=2))
def test_no_value_leads_to_another_host(sku: object) -> None:
    """Whatever the sender writes, the scheme and the host are those of the YAML, and the path begins as it says."""
    wanted = asked(STOCK, *event(json.dumps({"sku": sku}).encode()))
    if isinstance(wanted, Ask):
        assert wanted.url.startswith("https://api.example.com/stock/")
        assert wanted.url.isascii()
        assert wanted.url.count("/") == 4
        assert wanted.url.count("?") == 1


def test_plugandpay_is_asked_for_what_was_triggered() -> None:
    """Orders, subscriptions and affiliates, in both spellings and both nestings, with the headers its API demands."""
    order = plugandpay("order", 77)
    assert isinstance(order, Ask)
    assert order.url == "https://api.plugandpay.com/v2/orders/77?include=billing,items,payment"
    assert order.headers == (("Accept", "application/json"), ("User-Agent", "CustomApiCall/2"))
    assert (order.method, order.body) == ("GET", None)
    assert plugandpay("orders", "77", nested=False) == order
    urls = [
        plugandpay("Subscription", 5, "product", "payment"),
        plugandpay("affiliate", "9", "contact"),
        plugandpay("seller", 9, "items"),
    ]
    assert [one.url.removeprefix("https://api.plugandpay.com/v2/") for one in urls if isinstance(one, Ask)] == [
        "subscriptions/5?include=product",
        "affiliates/sellers/9?include=contact",
        "affiliates/sellers/9",
    ]


@pytest.mark.parametrize("number", [None, True, "", "..", [7], {}, 1.5], ids=str)
def test_plugandpay_is_asked_for_nothing_without_an_id(number: object) -> None:
    """What cannot name an object asks for none."""
    assert isinstance(plugandpay("order", number), Refused)


def test_plugandpay_does_not_guess_an_unknown_object() -> None:
    """A kind that the API is not known to have is said, and an id is one part of the path."""
    refused = plugandpay("invoice", 7)
    assert isinstance(refused, Refused)
    assert "order, subscription, affiliate" in refused.reason
    sly = plugandpay("order", "7/../../v2/orders?x=")
    assert isinstance(sly, Ask)
    assert sly.url.startswith("https://api.plugandpay.com/v2/orders/7%2F..%2F..%2Fv2%2Forders%3Fx%3D?include=")


def test_xoxoday_is_asked_for_the_order_and_sends_no_mail_again() -> None:
    """By the order's id, or by the client's own number where there is none; ids keep all their digits."""
    enricher = of_provider("xoxoday")
    wanted = asked(enricher, *event({"id": 1, "data": {"orderId": 99999999999999999999, "poNumber": "PO1"}}))
    assert isinstance(wanted, Ask)
    assert (wanted.method, wanted.url) == ("POST", "https://accounts.xoxoday.com/chef/v1/oauth/api")
    assert wanted.body is not None
    assert json.loads(wanted.body) == {
        "query": "plumProAPI.mutation.getOrderDetails",
        "tag": "plumProAPI",
        "variables": {"data": {"poNumber": None, "orderId": 99999999999999999999, "sendMailToReceiver": 0}},
    }
    by_number = asked(enricher, *event({"data": {"orderId": 0, "poNumber": "PO1"}}))
    assert isinstance(by_number, Ask)
    assert by_number.body is not None
    assert json.loads(by_number.body)["variables"]["data"] == {
        "poNumber": "PO1",
        "orderId": None,
        "sendMailToReceiver": 0,
    }
    assert isinstance(asked(enricher, *event({"data": {}})), Refused)


def test_voucher_codes_are_gone_before_anything_is_kept() -> None:
    """What xoxoday answers holds money; what is brought does not."""
    details = {
        "orderId": 7,
        "deliveryStatus": "delivered",
        "vouchers": [{"voucherCode": "CODE-1", "pin": "9876", "amount": 10}],
        "parts": [{"vouchers": [{"voucherCode": "CODE-2"}]}],
        "other": {"voucherCode": "CODE-3", "Pin": "1234"},
    }
    answer = {"data": {"getOrderDetails": {"status": 1, "data": details}}}
    brought = answered(of_provider("xoxoday"), 200, json.dumps(answer).encode(), retry_after=None)
    assert isinstance(brought, Brought)
    assert json.loads(brought.data) == {"orderId": 7, "deliveryStatus": "delivered", "parts": [{}], "other": {}}


def test_xoxodays_limit_is_a_pause_and_its_errors_are_refusals() -> None:
    """It says 200 to everything; the body tells."""
    enricher = of_provider("xoxoday")
    limit = {"errors": [{"message": "auth.request_limit_exceeded", "penaltySeconds": 60}]}
    found = answered(enricher, 200, json.dumps(limit).encode(), retry_after=None)
    assert isinstance(found, Throttled)
    assert found.wait == 60 * SECOND
    assert isinstance(answered(enricher, 200, b'{"errors": [{"message": "x"}]}', retry_after=None), Refused)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, Refused, "check the token or auth of enrichers.stock"),
        (403, Refused, "may not read this"),
        (404, Refused, "not there, or not there yet"),
        (422, Refused, "status 422"),
        (302, Refused, "it redirects"),
        (408, Failing, "status 408"),
        (500, Failing, "status 500"),
        (503, Failing, "status 503"),
        (429, Throttled, "status 429"),
    ],
)
def test_a_status_means_what_can_be_done_about_it(status: int, kind: type, words: str) -> None:
    """4xx is the event's or the settings' own and says what to do; 5xx is the enricher's."""
    found = answered(STOCK, status, b"SECRET words", retry_after=None)
    assert isinstance(found, kind)
    assert words in found.reason  # type: ignore[union-attr]
    assert "SECRET" not in repr(found)


def test_a_pause_that_is_asked_for_is_kept() -> None:
    """429 and 503 with Retry-After pause by what they say."""
    for status in (429, 503):
        found = answered(STOCK, status, b"", retry_after=90 * SECOND)
        assert isinstance(found, Throttled)
        assert found.wait == 90 * SECOND


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[" * 100_000, b'{"a": NaN}', b"\xff"], ids=lambda b: str(b[:8])
)
def test_an_answer_that_is_no_data_is_refused(body: bytes) -> None:
    """200 is not enough: what cannot be kept as JSON is not brought."""
    assert isinstance(answered(STOCK, 200, body, retry_after=None), Refused)


def test_only_what_counts_of_an_answer_is_kept() -> None:
    """`take` cuts the envelope off, `drop` takes out what is not to be stored; an empty envelope is refused."""
    enricher = of_provider("plugandpay")
    found = answered(enricher, 200, b'{"data": {"id": 7, "total": "1.10"}, "meta": {}}', retry_after=None)
    assert found == Brought(b'{"id":7,"total":"1.10"}')
    assert isinstance(answered(enricher, 200, b'{"meta": {}}', retry_after=None), Refused)
    assert answered(STOCK, 200, b'{"sku": 1, "vouchers": [1]}', retry_after=None) == Brought(b'{"sku":1}')


def test_an_enricher_that_fails_is_left_alone_longer_and_longer() -> None:
    """5 s, 30 s, 2 m, 10 m and then every 15 m, a fifth more or less; an answer ends it."""
    pace, now, waits = Pace(), NOW, list[timedelta]()
    for _ in range(7):
        pace = paced(pace, Failing("status 500"), began_at=now, now=now + SECOND, rng=Random(1))
        now += SECOND
        wait = pace.wait(now)
        assert wait is not None
        waits.append(wait)
        assert pace.wait(now + wait) is None
        now += wait
    for wait, base in zip(waits, [*WAITS, WAITS[-1], WAITS[-1]], strict=True):
        assert base * 0.8 <= wait <= base * 1.2
    assert paced(pace, Refused("status 404"), began_at=now, now=now, rng=Random(1)) == Pace()
    assert paced(pace, Brought(b"{}"), began_at=now, now=now, rng=Random(1)) == Pace()


def test_fetches_that_fail_together_are_one_failure() -> None:
    """What began before the last failure was recorded makes the wait no longer."""
    first = paced(Pace(), Failing("x"), began_at=NOW, now=NOW + SECOND, rng=Random(1))
    assert paced(first, Failing("x"), began_at=NOW, now=NOW + 2 * SECOND, rng=Random(1)) == first


def test_a_throttle_is_no_failure() -> None:
    """It pauses and counts nothing."""
    pace = paced(Pace(), Throttled("429", 90 * SECOND), began_at=NOW, now=NOW, rng=Random(1))
    assert (pace.failures, pace.wait(NOW)) == (0, 90 * SECOND)


@pytest.mark.parametrize("answer", [Brought(b"{}"), Refused("status 404")])
def test_a_pause_outlasts_the_answers_that_were_under_way(answer: Answer) -> None:
    """Of several requests at a time one meets the 429: the others do not lift it."""
    throttled = paced(Pace(), Throttled("429", 90 * SECOND), began_at=NOW, now=NOW, rng=Random(1))
    assert paced(throttled, answer, began_at=NOW, now=NOW + SECOND, rng=Random(1)) == throttled
    assert paced(throttled, answer, began_at=NOW, now=NOW + 90 * SECOND, rng=Random(1)) == Pace()
