"""Xoxoday Plum: reports the delivery status of orders placed through its Rewards API.

Law: the key proves who sent, never what was sent, because the same static `x-api-key` travels with every request. The
vendor documents a single event, `id`, `data.orderId`, `data.deliveryStatus` and a few strings more, and contradicts
itself on the spelling of the status; so names are normalised here and the bytes are left alone.

Sources: help-plum.xoxoday.com, API guide, "Implementing webhooks" and "Securing webhooks".
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from relay.model import ApiKeyCheck, Asked, Content, Lookup, Provider, Sample, Throttle, Unasked, Vector
from relay.providers.reading import JSON, LONGEST_TYPE, compact, exact, member, type_name
from relay.providers.sampling import number

_USUAL_KEY = r"^[A-Za-z0-9]{13,60}$"
_HOW_TO_SET_A_KEY = (
    "Xoxoday takes 13 to 60 letters and digits, as set in its dashboard: "
    "Settings > API > Configure Webhook > Add Custom Header"
)


def _status(content: Content) -> str | None:
    status = member(content.json, "data", "deliveryStatus")
    if not isinstance(status, str) or not 0 < len(status) <= LONGEST_TYPE:
        return None
    lowered = status.lower()[:LONGEST_TYPE]
    return "canceled" if lowered == "cancelled" else lowered


def event_type(content: Content) -> str | None:
    """The delivery status in lower case, `cancelled` spelled `canceled`; None where the body has none.

    The documentation prints `delivered`, `Delivered`, `canceled` and `Canceled`, and leaves room for `cancelled`.
    """
    return type_name(_status(content))


def dedupe_key(content: Content) -> str | None:
    """A text of (id, order id, status), so that a retry is known again; None without an id, or where one is inexact.

    `id` alone would not do: an older page prints the order id in its place, and one order has several statuses. It is
    a Number(20), beyond 64 bits, so its digits are kept as text.
    """
    hook = exact(member(content.json, "id"))
    if hook is None:
        return None
    given = member(content.json, "data", "orderId")
    order = "" if given is None else exact(given)
    if order is None:
        return None
    status = _status(content)
    if status is None and member(content.json, "data", "deliveryStatus") is not None:
        return None
    return json.dumps([hook, order, status or ""], separators=(",", ":"))


def _sample(now: datetime, serial: int) -> bytes:
    clock = now.strftime("%Y-%m-%d %H:%M:%S")
    return compact(
        {
            "id": number(now, serial),
            "data": {
                "orderId": 26_663_453 + serial,
                "poNumber": f"PO{serial}",
                "orderDate": clock,
                "deliveryStatus": "delivered",
            },
            "createdAt": clock,
        }
    )


_QUERY = "plumProAPI.mutation.getOrderDetails"
_PENALTY = timedelta(seconds=60)
"""What the API asks for once its limit of 200 calls a minute is passed."""


def ask(content: Content, _include: tuple[str, ...]) -> Asked | Unasked:
    """The details of the order that a webhook is about. `sendMailToReceiver` is 0: a 1 would send its mail again.

    Source: the vendor's API guide, Get Order Details.
    """
    order, own = member(content.json, "data", "orderId"), member(content.json, "data", "poNumber")
    if exact(order) in (None, "0"):
        order = None
    if exact(own) is None or order is not None:
        own = None
    if order is None and own is None:
        return Unasked("the webhook has neither data.orderId nor data.poNumber")
    wanted = {"poNumber": own, "orderId": order, "sendMailToReceiver": 0}
    return Asked(
        "/chef/v1/oauth/api", body=compact({"query": _QUERY, "tag": "plumProAPI", "variables": {"data": wanted}})
    )


def fault(document: Any) -> Throttle | Unasked | None:
    """The API says 200 and lists its errors in the body."""
    errors = member(document, "errors")
    if not errors or not isinstance(errors, list):
        return None
    exceeded = [error for error in errors if member(error, "message") == "auth.request_limit_exceeded"]
    if exceeded:
        seconds = member(exceeded[0], "penaltySeconds")
        is_sane = isinstance(seconds, int) and 0 < seconds <= 3600
        return Throttle(timedelta(seconds=seconds) if is_sane else _PENALTY, "the API's limit of calls was passed")
    return Unasked("the API answered with errors; is the order one of this account, and placed through its API?")


_LOOKUP = Lookup(
    base_url="https://accounts.xoxoday.com",
    ask=ask,
    take="data.getOrderDetails.data",
    headers=(("Accept", "application/json"), ("Content-Type", "application/json")),
    never=frozenset({"vouchers", "vouchercode", "voucherpin", "pin"}),
    fault=fault,
)
"""The answer holds the voucher codes and PINs themselves, which are money: they are never stored."""

PROVIDER = Provider(
    name="xoxoday",
    title="Xoxoday Plum",
    check=ApiKeyCheck(header="x-api-key"),
    event_type=event_type,
    dedupe_key=dedupe_key,
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(
        Vector(
            secret="a1p2z5b7v68b9112234",
            headers=(("x-api-key", "a1p2z5b7v68b9112234"), ("Content-Type", JSON)),
            body=(
                b'{"id":10000000001,"data":{"orderId":26663453,"poNumber":"PO12662","orderDate":"2026-09-20 10:15:30",'
                b'"deliveryStatus":"delivered"},"createdAt":"2026-09-20 10:15:31"}'
            ),
            at=datetime(2026, 9, 20, 10, 15, 31, tzinfo=UTC),
            by_vendor=True,
            origin="help-plum.xoxoday.com, Securing webhooks (header and key; the values of the body are ours)",
        ),
    ),
    secret_format=_USUAL_KEY,
    secret_hint=_HOW_TO_SET_A_KEY,
    gives_up_after=3,
    lookup=_LOOKUP,
    revival=(
        "Xoxoday may have switched the webhook URL off after three failures: enable it again in the Xoxoday dashboard "
        "(Settings > API), then fetch what was missed with the API's getOrderHistory call (startDate, endDate)"
    ),
)
