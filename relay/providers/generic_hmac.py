"""Any sender that signs the raw body with HMAC-SHA256 and says so in `X-Signature`, in hex.

Law: a starting point, nothing more: where a sender does otherwise, `verify`, `event_type` and `dedupe_key` of the
source say how, and what they say wins.
"""

from datetime import UTC, datetime

from relay.model import HmacCheck, Provider, Sample, Vector
from relay.providers.reading import JSON, KeyInBody, TypeInBody, compact
from relay.providers.sampling import iso, letters


def _sample(now: datetime, serial: int) -> bytes:
    return compact({"id": f"evt_{letters(now, serial, 16)}", "type": "sample", "created_at": iso(now)})


PROVIDER = Provider(
    name="generic_hmac",
    title="Generic HMAC",
    check=HmacCheck(header="X-Signature", prefix="sha256=", prefix_optional=True),
    event_type=TypeInBody(("type", "event")),
    dedupe_key=KeyInBody("id"),
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(
        Vector(
            secret="generic-hmac-secret-0123456789",
            headers=(("X-Signature", "sha256=6f6d9daceff46dcced605671acdb38005cce439ba874a9e58f4bde013abb1369"),),
            body=b'{"id":"ord_1001","type":"order.paid"}',
            at=datetime(2026, 9, 20, tzinfo=UTC),
            by_vendor=False,
            origin="ours",
        ),
    ),
)
