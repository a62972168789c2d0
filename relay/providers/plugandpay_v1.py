"""Plug&Pay Webhooks V1: the older, form-encoded webhook action of a product or a checkout.

Law: nothing in a request proves where it came from, because the vendor signs none; only the address it comes from or
a path that cannot be guessed keeps strangers out, and the config demands one of them.

Field names are what integrators with live traffic report; the vendor's page for V1 is gone.
"""

import json
from datetime import datetime
from urllib.parse import parse_qsl, urlencode

from relay.model import Content, NoCheck, Provider, Sample

_LONGEST = 200
"""Characters of a type that are believed to be one."""

_FIELDS = 1000
"""Fields of a form that are read; a form with more has no type."""


def event_type(content: Content) -> str | None:
    """The first `webhook_event` of the form, such as `contracts.new`; None where the body is no such form."""
    try:
        fields = parse_qsl(content.body.decode("utf-8", "replace"), max_num_fields=_FIELDS)
    except ValueError:
        return None
    name = next((value for key, value in fields if key == "webhook_event"), None)
    return name if name is not None and len(name) <= _LONGEST and name.isprintable() else None


def dedupe_key(content: Content) -> None:
    """None, always: every call is an event of its own.

    A call carries neither an id nor a time, so two calls that mean two things (order lines, instalments, renewals of
    one contract) may be the same bytes. A digest of them would lose the second; a retry seen twice loses nothing.
    """


def _sample(now: datetime, serial: int) -> bytes:
    contract = int(now.timestamp()) * 1_000_000 + serial
    fields = {
        "webhook_event": "contracts.new",
        "contract_id": contract,
        "signup_token": f"token{contract}",
        "email": "buyer@example.com",
        "billing_cycle": "monthly",
        "product": "Example",
        "sku": "S1",
        "raw": json.dumps({"total": 7}),
    }
    return urlencode(fields).encode()


PROVIDER = Provider(
    name="plugandpay_v1",
    title="Plug&Pay Webhooks V1",
    check=NoCheck(),
    event_type=event_type,
    dedupe_key=dedupe_key,
    sample=Sample(content_type="application/x-www-form-urlencoded", body=_sample),
    signed=False,
)
