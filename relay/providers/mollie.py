"""Mollie, next-gen webhooks: events of an organization, signed.

Law: the raw bytes are signed. For a day after its secret has been changed Mollie sends a header for each of the two,
and either proves the request. An event is known again by its `id`; a webhook that brings the object itself has no id of
an event, and the object's own would swallow what happens to it next, so nothing is known again there.

The manual has `sha256=` before the digest, the page of best practices none; both are taken. The webhooks that a single
payment's `webhookUrl` gets are unsigned: see `mollie_classic`.

Sources: docs.mollie.com, "Next-gen Webhooks" and "Webhooks: Best practices"; mollie/mollie-api-php, SignatureValidator.
The vendor publishes no vector; those here were made with openssl.
"""

from datetime import UTC, datetime

from relay.model import Content, HmacCheck, ProofList, Provider, Sample, Vector
from relay.providers.reading import JSON, compact, first_type, key_of, member
from relay.providers.sampling import letters

_EVENT = "event"
_BODY = (
    b'{"resource":"event","id":"event_GvJ8WHrp5isUdRub9CJyH","type":"payment-link.paid",'
    b'"entityId":"pl_qng5gbbv8NAZ5gpM5ZYgx","createdAt":"2024-06-10T14:23:45+00:00"}'
)
_DIGEST = "f1658c8d55acbb87c759cde65f21d585e5495633bf882fd24b2b0731ddb6add0"
_OTHER = "c7fe2b47dd2e6e7e558d0514e3214038f17549192a284f3dd23f12f13ea3d3ad"


def event_type(content: Content) -> str | None:
    """The event's type, such as `payment-link.paid`; of an object that comes itself, its resource."""
    resource = member(content.json, "resource")
    return first_type(member(content.json, "type") if resource == _EVENT else None, resource)


def dedupe_key(content: Content) -> str | None:
    """The event's id; None for a body that is no event."""
    return key_of(member(content.json, "id")) if member(content.json, "resource") == _EVENT else None


def _sample(now: datetime, serial: int) -> bytes:
    return compact(
        {
            "resource": _EVENT,
            "id": f"event_{letters(now, serial, 21)}",
            "type": "payment-link.paid",
            "entityId": f"pl_{letters(now, serial + 1, 21)}",
            "createdAt": now.astimezone(UTC).isoformat(timespec="seconds"),
        }
    )


def _vector(*signatures: str) -> Vector:
    return Vector(
        secret="mollie-signing-secret-0123456789",
        headers=tuple(("X-Mollie-Signature", signature) for signature in signatures),
        body=_BODY,
        at=datetime(2024, 6, 10, 14, 23, 45, tzinfo=UTC),
        by_vendor=False,
        origin="ours",
    )


PROVIDER = Provider(
    name="mollie",
    title="Mollie",
    check=HmacCheck(
        header="X-Mollie-Signature",
        prefix="sha256=",
        prefix_optional=True,
        listing=ProofList(separator=",", many_lines=True),
    ),
    event_type=event_type,
    dedupe_key=dedupe_key,
    sample=Sample(content_type=JSON, body=_sample),
    vectors=(
        _vector(f"sha256={_DIGEST}"),
        _vector(_DIGEST),
        _vector(f"sha256={_OTHER}", f"sha256={_DIGEST}"),
    ),
    secret_hint="Mollie shows the webhook's signing secret when it is created: Developers > Webhooks",
)
