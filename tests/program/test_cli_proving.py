"""What a printed command holds of a target's credentials."""

from typing import Any

import pytest

from relay.cli.proving import Proof, proof_of
from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    ClientTls,
    HmacCheck,
    OAuth2Client,
    Proxy,
    QueryKey,
    Secret,
    StandardWebhooksCheck,
    Target,
)

URL = "https://crm.test/hooks"
KEY = Secret(b"canary")


def words(proof: Proof) -> list[str]:
    return [f"{name}: {value}" for name, value in proof.headers] + [" ".join(option) for option in proof.options]


STATIC: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"auth": BearerCheck((KEY,))}, ["Authorization: Bearer canary"]),
    ({"auth": BasicCheck("me", (Secret(b"sesame"),))}, ["Authorization: Basic bWU6c2VzYW1l"]),
    ({"auth": ApiKeyCheck("X-Key", (KEY,))}, ["X-Key: canary"]),
    (
        {"proxy": Proxy("http://proxy.test:3128", "me", KEY)},
        ["--proxy http://proxy.test:3128", "--proxy-user me:canary"],
    ),
    ({"tls": ClientTls("ca.pem", "c.pem", "c.key")}, ["--cacert ca.pem", "--cert c.pem", "--key c.key"]),
    ({"tls": ClientTls(insecure=True)}, ["--insecure"]),
]


@pytest.mark.parametrize(("settings", "expected"), STATIC)
def test_what_is_the_same_in_each_request_is_printed(settings: dict[str, Any], expected: list[str]) -> None:
    """So that the command works as it is."""
    proof = proof_of(Target("crm", URL, **settings), "evt_1")
    assert (words(proof), proof.url, proof.remarks) == (expected, URL, ())


def test_a_key_in_the_query_is_part_of_the_address() -> None:
    """As it is sent."""
    assert proof_of(Target("crm", URL, auth=QueryKey("key", Secret(b"a b"))), "evt_1").url == f"{URL}?key=a%20b"


@pytest.mark.parametrize(
    ("settings", "expected", "remark"),
    [
        (
            {"auth": HmacCheck("X-Sig", prefix="v1=", secrets=(KEY,))},
            ["X-Sig: v1=SIGNATURE"],
            "SIGNATURE is made anew for each request with the secret of auth",
        ),
        (
            {"auth": OAuth2Client("https://id.test/", "me", KEY)},
            ["Authorization: Bearer TOKEN"],
            "TOKEN is an access token, fetched with the client's credentials and good for a while",
        ),
        (
            {"sign": StandardWebhooksCheck(secrets=(KEY,))},
            ["webhook-id: evt_1", "webhook-timestamp: NOW", "webhook-signature: v1,SIGNATURE"],
            "NOW and SIGNATURE are made anew for each request with the first secret of sign",
        ),
    ],
)
def test_what_is_made_for_one_request_has_a_name(settings: dict[str, Any], expected: list[str], remark: str) -> None:
    """And a remark that says what belongs there; the secret behind it stays out."""
    proof = proof_of(Target("crm", URL, **settings), "evt_1")
    assert (words(proof), proof.remarks) == (expected, (remark,))
