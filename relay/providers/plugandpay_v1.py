"""Plug&Pay Webhooks V1: the older, form-encoded webhook action of a product or a checkout.

Law: nothing in a request proves where it came from, because the vendor signs none; only the address it comes from or
a path that cannot be guessed keeps strangers out, and the config demands one of them. No two calls are taken for one:
a call carries neither an id nor a time, so two that mean two things (order lines, instalments, renewals of one
contract) may be the same bytes. A digest of them would lose the second; a retry seen twice loses nothing.

Field names are what integrators with live traffic report; the vendor's page for V1 is gone.
"""

import json
from datetime import UTC, datetime
from urllib.parse import urlencode

from relay.model import FORM_TYPE, Content, NoCheck, Provider, Sample, Vector
from relay.providers.reading import nameless, type_name
from relay.providers.sampling import number


def event_type(content: Content) -> str | None:
    """The first `webhook_event` of the form, such as `contracts.new`; None where the body is no such form."""
    return type_name(content.form.get("webhook_event"))


def _sample(now: datetime, serial: int) -> bytes:
    contract = number(now, serial)
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
    dedupe_key=nameless,
    sample=Sample(content_type=FORM_TYPE, body=_sample),
    vectors=(
        Vector(
            secret="",
            headers=(("Content-Type", FORM_TYPE),),
            body=(
                b"webhook_event=contracts.new&contract_id=901&signup_token=abc123&email=buyer%40example.com"
                b"&billing_cycle=monthly&sku=S1&raw=%7B%22total%22%3A7%7D"
            ),
            at=datetime(2026, 9, 20, 10, 15, 30, tzinfo=UTC),
            by_vendor=False,
            origin="ours",
        ),
    ),
    signed=False,
)
