"""Shopify: webhooks of an app's or a shop's subscriptions.

Law: the signature covers the body alone; topic and ids stand in headers that it does not cover. A delivery is known
again by `X-Shopify-Webhook-Id`. `X-Shopify-Event-Id` would not do: several deliveries share it that one action of a
merchant brought about, and all but the first would be lost.

Sources: shopify.dev, "Verify webhook deliveries". The vendor publishes no vector; the one here was made with openssl.
"""

from datetime import UTC, datetime

from relay.model import Headers, HmacCheck, Provider, Sample, Vector
from relay.providers.reading import JSON, KeyInHeader, TypeInHeader, compact
from relay.providers.sampling import guid, iso, number


def _sample(now: datetime, serial: int) -> bytes:
    order = number(now, serial)
    return compact(
        {
            "id": order,
            "admin_graphql_api_id": f"gid://shopify/Order/{order}",
            "created_at": iso(now),
            "currency": "USD",
            "email": "jon@example.com",
            "financial_status": "paid",
            "name": f"#{serial}",
            "test": True,
            "total_price": "398.00",
        }
    )


def _headers(now: datetime, serial: int) -> Headers:
    return (
        ("X-Shopify-Topic", "orders/create"),
        ("X-Shopify-Shop-Domain", "example.myshopify.com"),
        ("X-Shopify-API-Version", "2026-07"),
        ("X-Shopify-Webhook-Id", guid(now, serial)),
        ("X-Shopify-Event-Id", guid(now, serial + 1)),
    )


PROVIDER = Provider(
    name="shopify",
    title="Shopify",
    check=HmacCheck(header="X-Shopify-Hmac-Sha256", encoding="base64"),
    event_type=TypeInHeader("X-Shopify-Topic"),
    dedupe_key=KeyInHeader(("X-Shopify-Webhook-Id",)),
    sample=Sample(content_type=JSON, body=_sample, headers=_headers),
    vectors=(
        Vector(
            secret="hush-shopify-client-secret",
            headers=(("X-Shopify-Hmac-Sha256", "dVH3jT/lvi/W+Oa3zSFqrUR9hcQGjla8XaNYzGJ4hfo="),),
            body=(
                b'{"id":820982911946154508,"email":"jon@example.com","name":"#9999","currency":"USD",'
                b'"total_price":"398.00"}'
            ),
            at=datetime(2026, 9, 20, tzinfo=UTC),
            by_vendor=False,
            origin="ours",
        ),
    ),
    secret_hint="it is the app's client secret; of a webhook made in the admin, what Settings > Notifications shows",
    gives_up_after=8,
    revival=(
        "Shopify may have deleted the subscription after eight failures: create it again with the Admin API, then "
        "fetch what was missed from the API"
    ),
)
