"""Svix: the senders that deliver through it, with its own names of the headers.

Law: `svix-id` names a message, the same in each retry. Senders whose headers Svix has renamed to `webhook-…` are the
provider `standard_webhooks`: the names are part of the check, and one source knows one set of them.

Source: docs.svix.com, "Verifying Webhooks Manually".
"""

from datetime import UTC, datetime

from relay.model import Provider, Sample, StandardWebhooksCheck, Vector
from relay.providers.reading import JSON, KeyInHeader, TypeInBody, compact
from relay.providers.sampling import iso, letters


def _sample(now: datetime, serial: int) -> bytes:
    data = {"id": letters(now, serial, 16), "amount": 2500}
    return compact({"type": "invoice.paid", "timestamp": iso(now), "data": data})


PROVIDER = Provider(
    name="svix",
    title="Svix",
    check=StandardWebhooksCheck(header="svix-signature"),
    event_type=TypeInBody(("type", "event_type", "eventType")),
    dedupe_key=KeyInHeader(("svix-id",)),
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(
        Vector(
            secret="whsec_plJ3nmyCDGBKInavdOK15jsl",
            headers=(
                ("svix-id", "msg_loFOjxBNrRLzqYUf"),
                ("svix-timestamp", "1731705121"),
                ("svix-signature", "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="),
            ),
            body=b'{"event_type":"ping","data":{"success":true}}',
            at=datetime.fromtimestamp(1731705121, UTC),
            by_vendor=True,
            origin="docs.svix.com/receiving/verifying-payloads/how-manual",
        ),
    ),
    secret_prefix="whsec_",
    secret_format="^whsec_",
    secret_hint="the sender shows the endpoint's Signing Secret, whsec_ and base64",
)
