"""GitHub: webhooks of repositories, organizations and apps.

Law: the signature covers the body alone. Event and delivery id stand in headers that it does not cover, so they name
an event and prove nothing. A delivery that is sent anew, also by hand, has the same id and is a duplicate here.

Sources: docs.github.com, "Webhook events and payloads" and "Validating webhook deliveries".
"""

from datetime import UTC, datetime

from relay.model import Content, Headers, HmacCheck, Provider, Sample, Vector
from relay.providers.reading import JSON, KeyInHeader, compact, joined, json_in, member
from relay.providers.sampling import guid, iso


def event_type(content: Content) -> str | None:
    """The event, with the body's action where it has one: `push`, `issues.opened`; so `issues.*` is all of an event.

    The body may be JSON, or a form with the JSON in `payload`: a webhook's settings say which.
    """
    body = content.json if content.json is not None else json_in(content.form.get("payload"))
    return joined(content.header("X-GitHub-Event"), member(body, "action"))


def _sample(now: datetime, serial: int) -> bytes:
    owner = {"login": "octocat", "id": 1}
    return compact(
        {
            "action": "opened",
            "issue": {
                "url": f"https://api.github.com/repos/octocat/Hello-World/issues/{serial}",
                "number": serial,
                "title": "Found a bug",
                "user": owner,
                "state": "open",
                "created_at": iso(now),
            },
            "repository": {"id": 1296269, "full_name": "octocat/Hello-World", "owner": owner},
            "sender": owner,
        }
    )


def _headers(now: datetime, serial: int) -> Headers:
    return (("X-GitHub-Event", "issues"), ("X-GitHub-Delivery", guid(now, serial)))


PROVIDER = Provider(
    name="github",
    title="GitHub",
    check=HmacCheck(header="X-Hub-Signature-256", prefix="sha256="),
    event_type=event_type,
    dedupe_key=KeyInHeader(("X-GitHub-Delivery",)),
    sample=Sample(content_type=JSON, body=_sample, headers=_headers),
    vectors=(
        Vector(
            secret="It's a Secret to Everybody",
            headers=(
                (
                    "X-Hub-Signature-256",
                    "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
                ),
            ),
            body=b"Hello, World!",
            at=datetime(2026, 9, 20, tzinfo=UTC),
            by_vendor=True,
            origin="docs.github.com, Validating webhook deliveries, Testing the webhook payload validation",
        ),
    ),
    secret_hint="you choose the secret: Settings > Webhooks, Secret, of the repository, organization or app",
)
