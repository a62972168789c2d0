"""Xoxoday Plum: reports the delivery status of orders placed through its Rewards API.

Law: the key proves who sent, never what was sent, because the same static `x-api-key` travels with every request. The
vendor documents a single event, `id`, `data.orderId`, `data.deliveryStatus` and a few strings more, and contradicts
itself on the spelling of the status; so names are normalised here and the bytes are left alone.

Sources: help-plum.xoxoday.com, API guide, "Implementing webhooks" and "Securing webhooks".
"""

import json
from datetime import datetime, timedelta
from typing import Any

from relay.model import ApiKeyCheck, Asked, Content, Lookup, Provider, Sample, Throttle, Unasked

_LONGEST = 200
"""Characters of a type or an id that are believed to be one."""

_USUAL_KEY = r"^[A-Za-z0-9]{13,60}$"
_HOW_TO_SET_A_KEY = (
    "Xoxoday takes 13 to 60 letters and digits, as set in its dashboard: "
    "Settings > API > Configure Webhook > Add Custom Header"
)


def _member(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _exact(value: Any) -> str | None:
    """An id in its own digits or characters, however many bits it has; None for what cannot name anything exactly."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return text if 0 < len(text) <= _LONGEST else None


def _status(content: Content) -> str | None:
    status = _member(_member(content.json, "data"), "deliveryStatus")
    if not isinstance(status, str) or not 0 < len(status) <= _LONGEST:
        return None
    lowered = status.lower()[:_LONGEST]
    return "canceled" if lowered == "cancelled" else lowered


def event_type(content: Content) -> str | None:
    """The delivery status in lower case, `cancelled` spelled `canceled`; None where the body has none.

    The documentation prints `delivered`, `Delivered`, `canceled` and `Canceled`, and leaves room for `cancelled`.
    """
    status = _status(content)
    return status if status is not None and status.isprintable() else None


def dedupe_key(content: Content) -> str | None:
    """A text of (id, order id, status), so that a retry is known again; None without an id, or where one is inexact.

    `id` alone would not do: an older page prints the order id in its place, and one order has several statuses. It is
    a Number(20), beyond 64 bits, so its digits are kept as text.
    """
    hook = _exact(_member(content.json, "id"))
    if hook is None:
        return None
    given = _member(_member(content.json, "data"), "orderId")
    order = "" if given is None else _exact(given)
    if order is None:
        return None
    status = _status(content)
    if status is None and _member(_member(content.json, "data"), "deliveryStatus") is not None:
        return None
    return json.dumps([hook, order, status or ""], separators=(",", ":"))


def _sample(now: datetime, serial: int) -> bytes:
    clock = now.strftime("%Y-%m-%d %H:%M:%S")
    body = {
        "id": int(now.timestamp() * 1000) * 1_000_000 + serial,
        "data": {
            "orderId": 26_663_453 + serial,
            "poNumber": f"PO{serial}",
            "orderDate": clock,
            "deliveryStatus": "delivered",
        },
        "createdAt": clock,
    }
    return json.dumps(body, separators=(",", ":")).encode()


_QUERY = "plumProAPI.mutation.getOrderDetails"
_PENALTY = timedelta(seconds=60)
"""What the API asks for once its limit of 200 calls a minute is passed."""


def ask(content: Content, _include: tuple[str, ...]) -> Asked | Unasked:
    """The details of the order that a webhook is about. `sendMailToReceiver` is 0: a 1 would send its mail again.

    Source: the vendor's API guide, Get Order Details.
    """
    data = _member(content.json, "data")
    order, number = _member(data, "orderId"), _member(data, "poNumber")
    if _exact(order) is None or order == 0:
        order = None
    if not isinstance(number, str) or not number or order is not None:
        number = None
    if order is None and number is None:
        return Unasked("the webhook has neither data.orderId nor data.poNumber")
    wanted = {"poNumber": number, "orderId": order, "sendMailToReceiver": 0}
    body = {"query": _QUERY, "tag": "plumProAPI", "variables": {"data": wanted}}
    return Asked("/chef/v1/oauth/api", body=json.dumps(body, separators=(",", ":")).encode())


def fault(document: Any) -> Throttle | Unasked | None:
    """The API says 200 and lists its errors in the body."""
    errors = _member(document, "errors")
    if not errors or not isinstance(errors, list):
        return None
    if any(_member(error, "message") == "auth.request_limit_exceeded" for error in errors):
        asked = next((_member(error, "penaltySeconds") for error in errors if _member(error, "penaltySeconds")), None)
        seconds = asked if isinstance(asked, int) and 0 < asked <= 3600 else None
        wait = _PENALTY if seconds is None else timedelta(seconds=seconds)
        return Throttle(wait, "the API's limit of calls was passed")
    return Unasked("the API answered with errors; is the order one of this account, and placed through its API?")


_LOOKUP = Lookup(
    base_url="https://accounts.xoxoday.com",
    ask=ask,
    take="data.getOrderDetails.data",
    headers=(("Accept", "application/json"), ("Content-Type", "application/json")),
    drop=("vouchers", "*.vouchers", "[].vouchers"),
    fault=fault,
)
"""The answer holds the voucher codes and PINs themselves, which are money: they are never stored."""

PROVIDER = Provider(
    name="xoxoday",
    title="Xoxoday Plum",
    check=ApiKeyCheck(header="x-api-key"),
    event_type=event_type,
    dedupe_key=dedupe_key,
    sample=Sample(content_type="application/json", body=_sample),
    secret_format=_USUAL_KEY,
    secret_hint=_HOW_TO_SET_A_KEY,
    gives_up_after=3,
    lookup=_LOOKUP,
    revival=(
        "Xoxoday may have switched the webhook URL off after three failures: enable it again in the Xoxoday dashboard "
        "(Settings > API), then fetch what was missed with the API's getOrderHistory call (startDate, endDate)"
    ),
)
