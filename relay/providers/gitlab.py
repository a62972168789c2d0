"""GitLab: webhooks of projects and groups, and system hooks, that carry their secret token.

Law: the token proves who sent, never what was sent, because the same `X-Gitlab-Token` travels with every request; a
webhook that has a signing token is better served as `gitlab_signed`. A delivery is known again by `Idempotency-Key`,
before GitLab 17.4 by `X-Gitlab-Webhook-UUID`. `X-Gitlab-Event-UUID` would not do: webhooks that bring about each other
share it.

Source: docs.gitlab.com, "Webhooks". A token compared needs no vector of a vendor; the one here is ours.
"""

from datetime import UTC, datetime

from relay.model import ApiKeyCheck, Content, Headers, Provider, Sample, Vector
from relay.providers.reading import JSON, KeyInHeader, compact, first_type, joined, member
from relay.providers.sampling import guid, iso, letters

BODY = (
    b'{"object_kind":"push","event_name":"push","before":"95790bf891e76fee5e1747ab589903a6a1f80f22",'
    b'"after":"da1560886d4f094c3e6c9ef40349f7d38b5d27d7","ref":"refs/heads/master","project_id":15}'
)
"""A push as the documentation shows it, cut short."""


def event_type(content: Content) -> str | None:
    """The kind, with the object's action where it has one: `push`, `merge_request.open`; so `issue.*` is all of a kind.

    A system hook has an `event_name` instead; what has neither is named by its header, as in `Push Hook`.
    """
    kind = first_type(member(content.json, "object_kind"), member(content.json, "event_name"))
    return joined(kind or content.header("X-Gitlab-Event"), member(content.json, "object_attributes", "action"))


def _sample(now: datetime, serial: int) -> bytes:
    return compact(
        {
            "object_kind": "issue",
            "event_type": "issue",
            "user": {"id": 1, "name": "Administrator", "username": "root"},
            "project": {"id": 1, "name": "Gitlab Test", "path_with_namespace": "gitlabhq/gitlab-test"},
            "object_attributes": {
                "id": 300 + serial,
                "iid": serial,
                "title": f"New API: create/update/delete file ({letters(now, serial, 8)})",
                "created_at": iso(now),
                "state": "opened",
                "action": "open",
            },
        }
    )


def _headers(now: datetime, serial: int) -> Headers:
    return (
        ("X-Gitlab-Event", "Issue Hook"),
        ("X-Gitlab-Webhook-UUID", guid(now, serial + 1)),
        ("X-Gitlab-Event-UUID", guid(now, serial + 2)),
        ("Idempotency-Key", guid(now, serial)),
    )


SAMPLE = Sample(content_type=JSON, body=_sample, headers=_headers)

PROVIDER = Provider(
    name="gitlab",
    title="GitLab",
    check=ApiKeyCheck(header="X-Gitlab-Token"),
    event_type=event_type,
    dedupe_key=KeyInHeader(("Idempotency-Key", "X-Gitlab-Webhook-UUID")),
    sample=SAMPLE,
    vectors=(
        Vector(
            secret="gitlab-secret-token-0123456789",
            headers=(("X-Gitlab-Token", "gitlab-secret-token-0123456789"), ("X-Gitlab-Event", "Push Hook")),
            body=BODY,
            at=datetime(2026, 5, 27, 7, 30, tzinfo=UTC),
            by_vendor=False,
            origin="ours",
        ),
    ),
    secret_hint="you choose the Secret token: Settings > Webhooks of the project or group",
)
