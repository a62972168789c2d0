"""Slack: the Events API, slash commands and interactivity of an app.

Law: time and body are signed together. An event is known again by its `event_id`. Commands and interactions come as
forms, which Slack sends once and never again, so each of them is an event of its own.

A URL is taken once it has told back a challenge; that is no event, and answered by the relay itself.

Sources: docs.slack.dev, "Verifying requests from Slack", "url_verification", "The Events API".
"""

from datetime import UTC, datetime

from relay.model import FORM_TYPE, Content, HmacCheck, Provider, Sample, Vector
from relay.providers.reading import JSON, KeyInBody, compact, first_type, json_in, member
from relay.providers.sampling import letters

_LONGEST_CHALLENGE = 1000
"""Characters; Slack's have some fifty."""


def event_type(content: Content) -> str | None:
    """The inner event's type, such as `app_mention`; else that of the whole; of a form, that of its `payload` or its
    command, such as `/weather`."""
    if content.json is not None:
        return first_type(member(content.json, "event", "type"), member(content.json, "type"))
    form = content.form
    return first_type(member(json_in(form.get("payload")), "type"), form.get("command"))


def challenge(content: Content) -> bytes | None:
    """The challenge of a `url_verification`, to be told back as it is; None for any other request."""
    if member(content.json, "type") != "url_verification":
        return None
    asked = member(content.json, "challenge")
    if not isinstance(asked, str) or not 0 < len(asked) <= _LONGEST_CHALLENGE:
        return None
    return asked.encode() if asked.isascii() and asked.isprintable() else None


def _sample(now: datetime, serial: int) -> bytes:
    seconds = now.timestamp()
    return compact(
        {
            "token": "XXYYZZ",
            "team_id": "TXXXXXXXX",
            "api_app_id": "AXXXXXXXXX",
            "event": {
                "type": "app_mention",
                "user": "U061F7AUR",
                "text": "<@U0LAN0Z89> is it everything a river should be?",
                "ts": f"{seconds:.6f}",
                "channel": "C0LAN2Q65",
                "event_ts": f"{seconds:.6f}",
            },
            "type": "event_callback",
            "event_id": f"Ev{letters(now, serial, 12).upper()}",
            "event_time": int(seconds),
            "authed_users": ["U0LAN0Z89"],
        }
    )


PROVIDER = Provider(
    name="slack",
    title="Slack",
    check=HmacCheck(
        header="X-Slack-Signature",
        prefix="v0=",
        signed="v0:{timestamp}:{body}",
        timestamp_header="X-Slack-Request-Timestamp",
    ),
    event_type=event_type,
    dedupe_key=KeyInBody("event_id"),
    sample=Sample(content_type=JSON, body=_sample),
    challenge=challenge,
    vectors=(
        Vector(
            secret="8f742231b10e8888abcd99yyyzzz85a5",
            headers=(
                ("X-Slack-Request-Timestamp", "1531420618"),
                ("X-Slack-Signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
                ("Content-Type", FORM_TYPE),
            ),
            body=(
                b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
                b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
                b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554"
                b"%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
            ),
            at=datetime.fromtimestamp(1531420618, UTC),
            by_vendor=True,
            origin="docs.slack.dev/authentication/verifying-requests-from-slack",
        ),
    ),
    secret_hint="it is the app's Signing Secret, under Basic Information > App Credentials",
)
