"""Stripe: events of an account.

Law: time and body are signed together, and both stand in one header, `t=…,v1=…`; while a secret is rolled there is a
`v1` for each. Other schemes, as the `v0` of test events, prove nothing. The secret's text is the key as it stands,
`whsec_` and all: nothing in it is decoded.

Sources: docs.stripe.com, "Receive Stripe events in your webhook endpoint", and the vendor's libraries, which agree on
a tolerance of 5 minutes. The vendor publishes no vector; those here were made with openssl.
"""

from datetime import UTC, datetime

from relay.model import HmacCheck, ProofList, Provider, Sample, Vector
from relay.providers.reading import JSON, KeyInBody, TypeInBody, compact
from relay.providers.sampling import letters

_BODY = (
    b'{"id":"evt_1NG8Du2eZvKYlo2CUI79vXWy","object":"event","api_version":"2019-02-19","created":1686089970,'
    b'"type":"setup_intent.created","livemode":false}'
)
_PROOF = "v1=5744b26bc78e2a2802d3b35cc7bc4ced08fc918f3a7c09d5d70046549e4ad0cd"
_OTHER = "v1=3a35865a693b72cf727c267b0ca6c9d618ccf61fbde37817e66347957b5485cf"
_KEY = "whsec_test_secret_0123456789abcdef"


def _sample(now: datetime, serial: int) -> bytes:
    created = int(now.timestamp())
    intent = {
        "id": f"seti_{letters(now, serial, 24)}",
        "object": "setup_intent",
        "created": created,
        "livemode": False,
        "payment_method_types": ["acss_debit"],
        "status": "requires_confirmation",
        "usage": "off_session",
    }
    return compact(
        {
            "id": f"evt_{letters(now, serial, 24)}",
            "object": "event",
            "api_version": "2019-02-19",
            "created": created,
            "data": {"object": intent},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": "setup_intent.created",
        }
    )


def _vector(signature: str) -> Vector:
    return Vector(
        secret=_KEY,
        headers=(("Stripe-Signature", signature),),
        body=_BODY,
        at=datetime.fromtimestamp(1686089975, UTC),
        by_vendor=False,
        origin="ours",
    )


PROVIDER = Provider(
    name="stripe",
    title="Stripe",
    check=HmacCheck(
        header="Stripe-Signature",
        prefix="v1=",
        signed="{timestamp}.{body}",
        listing=ProofList(separator=",", timestamp_prefix="t="),
    ),
    event_type=TypeInBody(("type",)),
    dedupe_key=KeyInBody("id"),
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(_vector(f"t=1686089975,{_PROOF}"), _vector(f"t=1686089975,{_OTHER},{_PROOF},v0=00")),
    secret_prefix="whsec_",
    secret_format="^whsec_",
    secret_hint="Stripe shows the endpoint's Signing secret, whsec_…, under Workbench > Webhooks",
)
