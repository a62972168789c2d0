"""GitLab, signed: the same webhooks as `gitlab`, proven by their signing token.

Law: id, time and body are signed together, as Standard Webhooks has it; `webhook-id` is the `Idempotency-Key`. A secret
token may be sent beside it and is looked at by nobody.

Source: docs.gitlab.com, "Webhooks", signing token; gitlab-org/gitlab!230944. The vendor publishes no vector; the one
here was made with openssl.
"""

from datetime import UTC, datetime

from relay.model import Provider, StandardWebhooksCheck, Vector
from relay.providers.gitlab import BODY, SAMPLE, event_type
from relay.providers.reading import KeyInHeader

PROVIDER = Provider(
    name="gitlab_signed",
    title="GitLab, signed",
    check=StandardWebhooksCheck(),
    event_type=event_type,
    dedupe_key=KeyInHeader(("webhook-id",)),
    sample=SAMPLE,
    vectors=(
        Vector(
            secret="whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q=",
            headers=(
                ("webhook-id", "f5e5f430-f57b-4e6e-9fac-d9128cd7232f"),
                ("webhook-timestamp", "1779867000"),
                ("webhook-signature", "v1,YtfnSrdlAT0lNxFOW16YKufBZMW3KjvUzy00fDtDEpg="),
            ),
            body=BODY,
            at=datetime.fromtimestamp(1779867000, UTC),
            by_vendor=False,
            origin="ours",
        ),
    ),
    secret_prefix="whsec_",
    secret_format="^whsec_",
    secret_hint="GitLab makes the Signing token, whsec_ and base64: Settings > Webhooks of the project or group",
)
