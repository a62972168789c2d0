"""Standard Webhooks: any sender that follows the specification of that name, version 1.

Law: id, time and body are signed together, and the id is the same in each retry, so `webhook-id` is what an event is
known again by; nothing in the body could be better.

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md, and the tests of its libraries.
"""

from datetime import UTC, datetime

from relay.model import Provider, Sample, StandardWebhooksCheck, Vector
from relay.providers.reading import JSON, KeyInHeader, TypeInBody, compact
from relay.providers.sampling import iso, letters


def _sample(now: datetime, serial: int) -> bytes:
    data = {"id": letters(now, serial, 16), "email": "jane@example.com"}
    return compact({"type": "user.created", "timestamp": iso(now), "data": data})


PROVIDER = Provider(
    name="standard_webhooks",
    title="Standard Webhooks",
    check=StandardWebhooksCheck(),
    event_type=TypeInBody(("type",)),
    dedupe_key=KeyInHeader(("webhook-id",)),
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(
        Vector(
            secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            headers=(
                ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                ("webhook-timestamp", "1614265330"),
                ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
            ),
            body=b'{"test": 2432232314}',
            at=datetime.fromtimestamp(1614265330, UTC),
            by_vendor=True,
            origin="github.com/standard-webhooks/standard-webhooks, tests of the libraries",
        ),
    ),
    secret_prefix="whsec_",
    secret_format="^whsec_",
    secret_hint="a Standard Webhooks secret is whsec_ and base64, as its sender shows it",
)
