"""Why a proof in a list is believed or not, and what a challenge is."""

import hmac
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from relay.model import HmacCheck, Route, Secret, Source
from relay.providers import PROVIDERS
from relay.rules.diagnosis import Diagnosis, Posted, Step, Surroundings, diagnose
from relay.rules.signing import sign

NOW = datetime(2026, 9, 20, 10, 15, 31, tzinfo=UTC)
STAMP = int(NOW.timestamp())
BODY = b'{"id":"evt_1","type":"invoice.paid"}\n'
KEY = b"whsec_canary_0123456789"
WITH_NEWLINE = KEY + b"\n"
ROUTES = (Route("all", frozenset({"stripe", "mollie", "slack"}), ("crm",)),)


def source(name: str) -> Source:
    provider = PROVIDERS[name]
    assert isinstance(provider.check, HmacCheck)
    return Source(
        name=name,
        provider=name,
        path=f"/hooks/{name}",
        check=replace(provider.check, secrets=(Secret(KEY),)),
        event_type=provider.event_type,
        dedupe_key=provider.dedupe_key,
        challenge=provider.challenge,
    )


STRIPE, MOLLIE, SLACK = (source(name) for name in ("stripe", "mollie", "slack"))


def judged(subject: Source, *headers: tuple[str, str], body: bytes = BODY) -> Diagnosis:
    found = diagnose(Posted(headers, body), subject, Surroundings((subject,), ROUTES, max_body=1000), NOW)
    assert KEY.decode() not in str(found)
    return found


def step(found: Diagnosis, name: str) -> Step:
    return next(one for one in found.steps if one.name == name)


def v1(message: bytes, key: bytes = KEY) -> str:
    return "v1=" + hmac.new(key, message, "sha256").hexdigest()


def on_stripe(value: str, at: str = "signature") -> Step:
    return step(judged(STRIPE, ("Stripe-Signature", value)), at)


RIGHT = f"t={STAMP},{v1(b'%d.' % STAMP + BODY)}"


def test_a_right_list_is_proven_and_its_time_is_told() -> None:
    """The time is named by its place in the header."""
    found = judged(STRIPE, ("Stripe-Signature", RIGHT))
    assert (found.proven, found.status, found.targets) == (True, 200, ("crm",))
    assert step(found, "timestamp").said == "t= in Stripe-Signature is 0 s behind this clock, allowed are 5 min"


def test_what_would_have_matched_is_a_whole_list() -> None:
    """With the time that was sent, so that it can be compared character by character."""
    found = on_stripe(f"t={STAMP},v1={'0' * 64}")
    assert found.ok is False
    assert found.expected == RIGHT


@pytest.mark.parametrize(
    ("value", "at", "words"),
    [
        (f"t={STAMP},{v1(b'%d.' % STAMP + BODY[:-1])}", "signature", "over the body without its last newline"),
        (f"t={STAMP},{v1(BODY)}", "signature", 'over "{body}"'),
        (f"t={STAMP},{v1(b'%d.' % STAMP + BODY, WITH_NEWLINE)}", "signature", "with white space behind the secret"),
        (f"t={STAMP},{v1(b'%d.' % STAMP + BODY).replace('v1', 'v0')}", "proof", 'behind "v0="'),
        (f"t={STAMP}000,{v1(b'%d000.' % STAMP + BODY)}", "proof", "t= in Stripe-Signature has 13 digits"),
        (f"t=soon,{v1(BODY)}", "proof", "t= in Stripe-Signature holds no plain number of seconds"),
        (v1(BODY), "proof", "The sender has to send whole Unix seconds."),
        (f"t={STAMP},t={STAMP},{v1(BODY)}", "proof", "One of each is read, no more"),
    ],
)
def test_the_usual_mistakes_of_a_list_are_named(value: str, at: str, words: str) -> None:
    """The body, the secret, what was signed, the time and the scheme."""
    found = on_stripe(value, at)
    assert found.ok is False
    assert words in found.advice


def test_a_late_list_is_told_from_a_wrong_one() -> None:
    """The digest is right, the time is not."""
    old = STAMP - 3600
    found = judged(STRIPE, ("Stripe-Signature", f"t={old},{v1(b'%d.' % old + BODY)}"))
    assert found.status == 401
    assert step(found, "signature").ok
    assert "is 60 min behind this clock" in step(found, "timestamp").said


def test_two_lines_of_mollies_are_both_looked_at() -> None:
    """One of another secret beside the right one is no mistake; two of another are."""
    right = hmac.new(KEY, BODY, "sha256").hexdigest()
    other = hmac.new(b"before", BODY, "sha256").hexdigest()
    header = "X-Mollie-Signature"
    assert judged(MOLLIE, (header, f"sha256={other}"), (header, f"sha256={right}")).proven
    wrong = step(judged(MOLLIE, (header, f"sha256={other}"), (header, f"sha256={other}")), "signature")
    assert (wrong.ok, wrong.expected) == (False, right)


CHALLENGE = b'{"token":"x","challenge":"3eZbrw1aBm2rZgRNFdxV","type":"url_verification"}'


def test_a_challenge_is_no_event() -> None:
    """Proven, it is told back; unproven, it is refused as anything else is."""
    proof = sign(SLACK.check, CHALLENGE, now=NOW, message_id="m")
    found = judged(SLACK, *proof, body=CHALLENGE)
    assert (found.proven, found.status, found.routes, found.targets) == (True, 200, (), ())
    assert step(found, "challenge").ok
    assert {one.name for one in found.steps}.isdisjoint({"type", "dedupe", "routes"})
    assert judged(SLACK, body=CHALLENGE).status == 401
