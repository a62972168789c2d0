"""Plug&Pay Webhooks V2: tells that something happened to an order, a subscription or an affiliate.

Law: the raw bytes are signed and nothing but the raw bytes identifies a call, because the vendor sends no delivery id.
Trigger names are never listed here: the vendor publishes only some of them, so an unknown one is as good as any.

The header, its encoding and the nesting under `event` are what integrators with live traffic report; the vendor's own
page does not confirm them, and the YAML may override the header and the encoding.
Sources: help.plugandpay.com, article 3083761, "Webhooks"; public integrations.
"""

import json
from datetime import UTC, datetime
from hashlib import sha256

from relay.model import Content, HmacCheck, Provider, Sample

_LONGEST = 200
"""Characters of a type that are believed to be one."""

_WHERE_THE_KEY_IS = "the webhook key is shown in Plug&Pay under Settings > Developers"


def event_type(content: Content) -> str | None:
    """`trigger_type`, nested under `event` as it is seen on the wire, else at the top as the help page lists it."""
    body = content.json
    if not isinstance(body, dict):
        return None
    for place in (body.get("event"), body):
        trigger = place.get("trigger_type") if isinstance(place, dict) else None
        if isinstance(trigger, str) and 0 < len(trigger) <= _LONGEST and trigger.isprintable():
            return trigger
    return None


def dedupe_key(content: Content) -> str:
    """The SHA-256 of the raw body: identical retries collapse, and nothing else does.

    A key of trigger and object would swallow a repeated event of one object, and the call of a sibling rule.
    """
    return sha256(content.body).hexdigest()


def _sample(now: datetime, serial: int) -> bytes:
    body = {
        "event": {
            "trigger_type": "order_payment_completed",
            "triggerable_id": serial,
            "triggerable_type": "order",
        },
        "rule_id": 1,
        "tenant_id": 1,
        "sent_at": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return json.dumps(body, separators=(",", ":")).encode()


PROVIDER = Provider(
    name="plugandpay",
    title="Plug&Pay",
    check=HmacCheck(header="X-Signature", algorithm="sha256", encoding="hex", prefix="sha256=", prefix_optional=True),
    event_type=event_type,
    dedupe_key=dedupe_key,
    sample=Sample(content_type="application/json", body=_sample),
    secret_hint=_WHERE_THE_KEY_IS,
)
