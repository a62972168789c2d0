"""Plug&Pay Webhooks V2: tells that something happened to an order, a subscription or an affiliate.

Law: the raw bytes are signed and nothing but the raw bytes identifies a call, because the vendor sends no delivery id.
Trigger names are never listed here: the vendor publishes only some of them, so an unknown one is as good as any.

The header, its encoding and the nesting under `event` are what integrators with live traffic report; the vendor's own
page does not confirm them, and the YAML may override the header and the encoding.
Sources: help.plugandpay.com, article 3083761, "Webhooks"; public integrations. The vectors were made with openssl.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

from relay.model import Asked, Content, HmacCheck, Lookup, Provider, Sample, Unasked, Vector
from relay.providers.reading import JSON, compact, exact, first_type, member

_WHERE_THE_KEY_IS = "the webhook key is shown in Plug&Pay under Settings > Developers"
_KEY = "pnp_test_key_0123456789abcdef"
_SENT_AT = datetime(2026, 9, 20, 10, 15, 30, tzinfo=UTC)


def event_type(content: Content) -> str | None:
    """`trigger_type`, nested under `event` as it is seen on the wire, else at the top as the help page lists it."""
    return first_type(*_members(content, "trigger_type"))


def _members(content: Content, name: str) -> tuple[Any, Any]:
    """A member of the trigger in both of its places."""
    return member(content.json, "event", name), member(content.json, name)


def dedupe_key(content: Content) -> str:
    """The SHA-256 of the raw body: identical retries collapse, and nothing else does.

    A key of trigger and object would swallow a repeated event of one object, and the call of a sibling rule.
    """
    return sha256(content.body).hexdigest()


def _sample(now: datetime, serial: int) -> bytes:
    return compact(
        {
            "event": {
                "trigger_type": "order_payment_completed",
                "triggerable_id": serial,
                "triggerable_type": "order",
            },
            "rule_id": 1,
            "tenant_id": 1,
            "sent_at": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
    )


_OBJECTS: Mapping[str, tuple[str, frozenset[str], tuple[str, ...]]] = MappingProxyType(
    {
        "order": (
            "/v2/orders/",
            frozenset({"billing", "comments", "discounts", "items", "payment", "tags", "taxes"}),
            ("billing", "items", "payment"),
        ),
        "subscription": (
            "/v2/subscriptions/",
            frozenset({"billing", "meta", "pricing", "product", "tags", "trial"}),
            ("billing", "pricing", "product"),
        ),
        "affiliate": (
            "/v2/affiliates/sellers/",
            frozenset({"address", "contact", "payout_methods", "payout_options", "profile", "statistics"}),
            ("contact", "profile"),
        ),
    }
)
"""By what was triggered: where the API has it, what it can include, and what is included where the YAML is silent."""

_NAMES = MappingProxyType(
    {"orders": "order", "subscriptions": "subscription", "affiliates": "affiliate", "seller": "affiliate"}
)
"""The help page says `orders` and `order` of the same."""


def ask(content: Content, include: tuple[str, ...]) -> Asked | Unasked:
    """The object that a webhook is about: it carries an id alone.

    Source: the vendor's PHP client, its services for orders, subscriptions and sellers.
    """
    kind = first_type(*_members(content, "triggerable_type"))
    number = next((text for one in _members(content, "triggerable_id") if (text := exact(one)) is not None), None)
    if kind is None or number is None or not number.strip("."):
        return Unasked("the webhook has no triggerable_type, or no triggerable_id")
    found = _OBJECTS.get(_NAMES.get(kind.lower(), kind.lower()))
    if found is None:
        return Unasked(f"the API is known for {', '.join(_OBJECTS)}, and this triggerable_type is another")
    path, known, usual = found
    wanted = tuple(name for name in include if name in known) if include else usual
    query = urlencode({"include": ",".join(wanted)}, safe=",") if wanted else ""
    return Asked(path + quote(number, safe="", errors="replace"), query)


_LOOKUP = Lookup(
    base_url="https://api.plugandpay.com",
    ask=ask,
    take="data",
    headers=(("Accept", "application/json"), ("User-Agent", "CustomApiCall/2")),
    includes=frozenset[str]().union(*(known for _, known, _ in _OBJECTS.values())),
)
"""Without these headers the API redirects, or turns the call away."""

PROVIDER = Provider(
    name="plugandpay",
    title="Plug&Pay",
    check=HmacCheck(header="X-Signature", algorithm="sha256", encoding="hex", prefix="sha256=", prefix_optional=True),
    event_type=event_type,
    dedupe_key=dedupe_key,
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(
        Vector(
            secret=_KEY,
            headers=(("X-Signature", "494a53e8b36e5325c2106662a2e25363c16fd98e88eeb9778c8e6968aba5e3b7"),),
            body=(
                b'{"event":{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order"},'
                b'"rule_id":1,"tenant_id":1,"sent_at":"2026-09-20T10:15:30.000000Z"}'
            ),
            at=_SENT_AT,
            by_vendor=False,
            origin="ours",
        ),
        Vector(
            secret=_KEY,
            headers=(("X-Signature", "84c58377f30a24eec21643c9256ccaf2797c9d9c2403da1c3f7cd23250c06a0f"),),
            body=(
                b'{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order",'
                b'"sent_at":"2026-09-20T10:15:30.000000Z","tenant_id":1,"rule_id":1}'
            ),
            at=_SENT_AT,
            by_vendor=False,
            origin="ours",
        ),
    ),
    secret_hint=_WHERE_THE_KEY_IS,
    lookup=_LOOKUP,
)
