"""Mollie, classic webhooks: what the `webhookUrl` of a payment, an order or a subscription gets, unsigned.

Law: nothing in a request proves where it came from, because the vendor signs none and advises against a list of its
addresses; only a path that cannot be guessed keeps strangers out, and the config demands one. A call says that
something happened to an object and not what, so no two of them are ever taken for one: the next may mean another state.

Source: docs.mollie.com, "Webhooks".
"""

from datetime import UTC, datetime
from urllib.parse import urlencode

from relay.model import FORM_TYPE, Content, NoCheck, Provider, Sample, Vector
from relay.providers.reading import nameless, type_name
from relay.providers.sampling import letters


def event_type(content: Content) -> str | None:
    """What the object's id begins with, such as `tr` for a payment; None where the form has no such id."""
    kind, mark, rest = content.form.get("id", "").partition("_")
    return type_name(kind) if mark and rest else None


def _sample(now: datetime, serial: int) -> bytes:
    return urlencode({"id": f"tr_{letters(now, serial, 10)}"}).encode()


PROVIDER = Provider(
    name="mollie_classic",
    title="Mollie classic",
    check=NoCheck(),
    event_type=event_type,
    dedupe_key=nameless,
    sample=Sample(content_type=FORM_TYPE, body=_sample),
    vectors=(
        Vector(
            secret="",
            headers=(("User-Agent", "Mollie HTTP client/1.0"), ("Content-Type", FORM_TYPE)),
            body=b"id=tr_5B8cwPMGnU6qLbRvo7qEZo",
            at=datetime(2026, 9, 20, tzinfo=UTC),
            by_vendor=True,
            origin="docs.mollie.com/reference/webhooks",
        ),
    ),
    signed=False,
)
