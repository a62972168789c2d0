"""Each provider's check, held against requests that somebody else has signed."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import pytest

from relay.model import ApiKeyCheck, Headers, HmacCheck, Provider, ReceivedRequest, Vector, VerifiedRequest
from relay.providers import PROVIDERS
from relay.rules.signing import signed_fields
from relay.rules.verification import Refusal, verify
from tests.support.vectors import check_of

ALL = [
    pytest.param(provider, vector, id=f"{name}-{number}")
    for name, provider in PROVIDERS.items()
    for number, vector in enumerate(provider.vectors, 1)
]
SIGNED = [one for one in ALL if one.values[0].signed]
VENDORS = {"xoxoday", "standard_webhooks", "svix", "github", "slack", "mollie_classic"}


def judged(provider: Provider, vector: Vector, **changed: Any) -> VerifiedRequest | Refusal:
    """What the relay's own rule says of a vector, with some of it changed."""
    vector = dataclasses.replace(vector, **changed)
    request = ReceivedRequest(vector.headers, vector.body, "192.0.2.1")
    return verify(request, check_of(provider, vector.secret), vector.at)


def proof_header(provider: Provider) -> str:
    return str(getattr(provider.check, "header", "")).lower()


def is_rotating(provider: Provider, vector: Vector) -> bool:
    """Whether it has a second proof, which is of another secret."""
    lines = [value for name, value in vector.headers if name.lower() == proof_header(provider)]
    return len(lines) > 1 or lines[0].count("v1=") > 1


def with_a_character_changed(headers: Headers, *, but: set[str]) -> Iterator[Headers]:
    for index, (name, value) in enumerate(headers):
        for at in range(len(value)) if name.lower() not in but else ():
            other = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
            yield (*headers[:index], (name, other), *headers[index + 1 :])


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS.keys())
def test_every_provider_has_a_vector_and_says_whose_it_is(provider: Provider) -> None:
    """The vendor's own wherever one is published, with its page; ours is called ours."""
    assert provider.vectors
    assert all(vector.by_vendor is (provider.name in VENDORS) for vector in provider.vectors)
    for vector in provider.vectors:
        assert vector.by_vendor != (vector.origin == "ours")
        assert bool(vector.secret) is provider.signed
        assert vector.at.tzinfo is UTC


@pytest.mark.parametrize(("provider", "vector"), ALL)
def test_every_vector_is_accepted_as_it_stands(provider: Provider, vector: Vector) -> None:
    """By the very rule that requests are judged by, with the secret as the YAML has it; what nobody signs is let
    through and proves nothing."""
    verdict = judged(provider, vector)
    assert isinstance(verdict, VerifiedRequest)
    assert verdict.proven is provider.signed


@pytest.mark.parametrize(("provider", "vector"), SIGNED)
def test_another_secret_proves_no_vector(provider: Provider, vector: Vector) -> None:
    """One character of it is enough."""
    for end in ("0AAA", "AAAA"):
        assert isinstance(judged(provider, vector, secret=vector.secret[:-4] + end), Refusal)
    assert isinstance(judged(provider, vector, headers=()), Refusal)


@pytest.mark.parametrize(("provider", "vector"), SIGNED)
def test_a_changed_byte_of_the_body_is_refused(provider: Provider, vector: Vector) -> None:
    """Each of them, and one more; but a key that travels in the clear proves its sender and no body."""
    body = vector.body
    changed = [body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] for at in range(len(body))]
    believed = [isinstance(judged(provider, vector, body=one), VerifiedRequest) for one in (*changed, body + b" ", b"")]
    assert set(believed) == {isinstance(provider.check, ApiKeyCheck)}


@pytest.mark.parametrize(
    ("provider", "vector"), [one for one in SIGNED if not is_rotating(one.values[0], one.values[1])]
)
def test_a_changed_character_of_the_proof_is_refused(provider: Provider, vector: Vector) -> None:
    """Of the digest or the key, its prefix, the time and the id; other headers have no say."""
    others = {"content-type", "x-gitlab-event"}
    changed = list(with_a_character_changed(vector.headers, but=others))
    assert len(changed) >= len(vector.headers[-1][1])
    assert all(isinstance(judged(provider, vector, headers=headers), Refusal) for headers in changed)


@pytest.mark.parametrize(("provider", "vector"), SIGNED)
def test_a_vector_is_valid_for_as_long_as_its_time_says(provider: Provider, vector: Vector) -> None:
    """Five minutes around it where the time is signed, for ever where it is not."""
    is_timed = proof_header(provider).endswith(("webhook-signature", "svix-signature")) or (
        isinstance(provider.check, HmacCheck) and "timestamp" in signed_fields(provider.check.signed)
    )
    for side in (1, -1):
        for seconds, in_time in ((300, True), (301, not is_timed), (10**8, not is_timed)):
            verdict = judged(provider, vector, at=vector.at + side * timedelta(seconds=seconds))
            assert isinstance(verdict, VerifiedRequest) is in_time
            if isinstance(verdict, Refusal):
                assert verdict.reason == "stale_timestamp"
