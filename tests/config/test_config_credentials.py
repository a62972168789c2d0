"""How targets are told who we are, and the way to them: what is accepted, and with which words the rest is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from relay.config import Config
from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    HmacCheck,
    OAuth2Client,
    Proxy,
    QueryKey,
    Secret,
    StandardWebhooksCheck,
    Target,
)

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

TOKEN = "tok-canary-0123456789"
KEY = "a-key-of-16-bytes-or-more"
OAUTH = {
    "scheme": "oauth2",
    "token_url": "https://id.example.com/token",
    "client_id": "me",
    "client_secret": TOKEN,
    "scope": "sales read",
}
HMAC = {"scheme": "hmac", "header": "X-Sig", "algorithm": "sha256", "secret": KEY}
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def target(config: Config) -> Target:
    (one,) = config.targets
    return one


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"scheme": "bearer", "token": TOKEN}, BearerCheck((Secret(TOKEN.encode()),))),
        ({"scheme": "bearer", "token": "${PARTNER_SECRET}"}, BearerCheck((Secret(b"0123456789abcdef"),))),
        (
            {"scheme": "basic", "username": "me", "password": "pä:ss"},
            BasicCheck("me", (Secret("pä:ss".encode()),)),
        ),
        ({"scheme": "api_key", "header": "X-Key", "value": "k"}, ApiKeyCheck("X-Key", (Secret(b"k"),))),
        ({"scheme": "api_key", "query": "api key", "value": "k"}, QueryKey("api key", Secret(b"k"))),
        (HMAC, HmacCheck("X-Sig", secrets=(Secret(KEY.encode()),))),
        (
            HMAC
            | {"encoding": "base64", "signed": "{timestamp}.{body}", "timestamp_header": "X-Time", "prefix": "v1="},
            HmacCheck(
                "X-Sig",
                encoding="base64",
                signed="{timestamp}.{body}",
                timestamp_header="X-Time",
                prefix="v1=",
                secrets=(Secret(KEY.encode()),),
            ),
        ),
        (
            OAUTH,
            OAuth2Client("https://id.example.com/token", "me", Secret(TOKEN.encode()), "sales read"),
        ),
        (
            OAUTH | {"audience": "a", "client_auth": "body"},
            OAuth2Client("https://id.example.com/token", "me", Secret(TOKEN.encode()), "sales read", "a", in_body=True),
        ),
    ],
)
def test_each_scheme_is_read_into_what_it_means(build: Loader, auth: Any, expected: Any) -> None:
    """Compared by value, shown without its secret."""
    found = target(build(target={"auth": auth}))
    assert found.auth == expected
    assert TOKEN not in repr(found)
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({}, "auth.scheme: missing"),
        ({"scheme": "digest"}, 'auth.scheme: unknown scheme "digest"; known: bearer, basic, api_key, hmac, oauth2'),
        ({"scheme": "bearer"}, "auth.token: missing; scheme bearer needs it"),
        ({"scheme": "bearer", "token": TOKEN, "scope": "x"}, "auth.scope: has no meaning for scheme bearer"),
        ({"scheme": "bearer", "token": ""}, "auth.token: secret is empty or blank"),
        ({"scheme": "bearer", "token": f"{TOKEN}\n"}, "auth.token: secret begins or ends with white space"),
        ({"scheme": "bearer", "token": f"{TOKEN}ü"}, "auth.token: secret holds what a header cannot carry"),
        ({"scheme": "bearer", "token": "$(cat token)"}, "auth.token: secret looks like an unexpanded variable"),
        ({"scheme": "bearer", "token": "<token>"}, "auth.token: secret is a placeholder"),
        ({"scheme": "bearer", "token": 7}, "auth.token: secret must be a quoted string, found integer"),
        ({"scheme": "basic", "username": "a:b", "password": "x"}, "auth.username: must not hold a colon"),
        ({"scheme": "basic", "username": "a"}, "auth.password: missing; scheme basic needs it"),
        ({"scheme": "api_key", "value": "k"}, "auth.header: missing; name the header or the query parameter"),
        ({"scheme": "api_key", "value": "k", "header": "A", "query": "b"}, "auth.header: both are given; keep one"),
        ({"scheme": "api_key", "value": "k", "header": "Host"}, "auth: host: set by the connection itself"),
        ({"scheme": "api_key", "value": "k", "header": "relay-key"}, "auth: relay-key: relay- headers are the relay's"),
        (HMAC | {"algorithm": "sha1"}, "auth.algorithm: sha1 is weak; allow_weak: true accepts it"),
        (HMAC | {"secret": "short"}, "auth.secret: secret too short (5 bytes; under 8 is refused, under 16 warned)"),
        (HMAC | {"signed": "{id}", "id_header": "X-Id"}, "auth.signed: must hold {body}, or the body could be forged"),
        (HMAC | {"tolerance": "5m"}, 'auth.tolerance: unknown key "tolerance"'),
        (OAUTH | {"token_url": "id.example.com"}, "auth.token_url: not an absolute http(s) URL with a host"),
        (OAUTH | {"token_url": "https://169.254.169.254/"}, "auth.token_url: cloud metadata address, never allowed"),
        (OAUTH | {"token_url": "https://metadata.google.internal/x"}, "auth.token_url: cloud metadata address, never"),
        (OAUTH | {"client_auth": "url"}, 'auth.client_auth: unknown way "url"; known: header, body'),
        ("bearer", "auth: must be a mapping, found string"),
    ],
)
def test_what_cannot_be_a_proof_is_refused_in_words(refused: Refuser, auth: Any, message: str) -> None:
    """Where, what, and what to do; never a secret."""
    found = refused(target={"auth": auth})
    assert found[0].startswith(f"targets.crm.{message}")
    assert TOKEN not in "".join(found)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"headers": {"authorization": "Bearer x"}, "auth": {"scheme": "bearer", "token": TOKEN}},
            "targets.crm.headers.authorization: set by auth as well; remove one of the two",
        ),
        (
            {"headers": {"X-KEY": "x"}, "auth": {"scheme": "api_key", "header": "x-key", "value": "k"}},
            "targets.crm.headers.X-KEY: set by auth as well; remove one of the two",
        ),
        (
            {"headers": {"Authorization": "x"}, "auth": OAUTH},
            "targets.crm.headers.Authorization: set by auth as well; remove one of the two",
        ),
        (
            {"headers": {"Webhook-Id": "x"}, "sign": {"secrets": [WHSEC]}},
            "targets.crm.headers.Webhook-Id: set by sign as well; remove one of the two",
        ),
        (
            {"forward_headers": ["Authorization"], "auth": {"scheme": "bearer", "token": TOKEN}},
            "targets.crm.forward_headers[0]: authorization is set by auth; remove one of the two",
        ),
        (
            {"auth": HMAC | {"header": "webhook-signature"}, "sign": {"secrets": [WHSEC]}},
            "targets.crm.sign: sets webhook-signature, as auth does; remove one of the two",
        ),
    ],
)
def test_a_header_that_two_keys_would_set_is_refused(refused: Refuser, more: Any, message: str) -> None:
    """Nobody can know which of the two was meant."""
    assert refused(target=more) == [message]


def test_a_token_in_the_clear_is_warned_about(warned: Refuser) -> None:
    """A token URL is judged like a target's."""
    found = warned(target={"auth": OAUTH | {"token_url": "http://id.example.com/token"}})
    assert [line for line in found if "token_url" in line] == [
        "targets.crm.auth.token_url: plain http to a public host: anyone on the way can read and change what is sent"
    ]


def test_several_keys_sign_while_rotating(build: Loader, refused: Refuser, warned: Refuser) -> None:
    """The same keys as a source of that scheme takes."""
    found = target(build(target={"sign": {"secrets": [WHSEC, KEY]}})).sign
    assert isinstance(found, StandardWebhooksCheck)
    assert [len(secret.value) for secret in found.secrets] == [24, len(KEY)]
    assert refused(target={"sign": {"secrets": []}}) == ["targets.crm.sign.secrets: needs at least one secret"]
    assert refused(target={"sign": {"secrets": ["whsec_%%%", "short"]}}) == [
        "targets.crm.sign.secrets[0]: not valid base64 after `whsec_`",
        "targets.crm.sign.secrets[1]: secret too short (5 bytes; under 8 is refused, under 16 warned)",
    ]
    assert any("secret is short" in line for line in warned(target={"sign": {"secrets": ["123456789"]}}))


def test_a_proxy_is_named_by_its_url_alone_or_with_credentials(build: Loader) -> None:
    """Two spellings of one thing."""
    url = "http://proxy.example.com:3128"
    assert target(build(target={"proxy": url})).proxy == Proxy(url)
    assert target(build(target={"proxy": {"url": url}})).proxy == Proxy(url)
    whole = {"url": url, "username": "me", "password": TOKEN}
    assert target(build(target={"proxy": whole})).proxy == Proxy(url, "me", Secret(TOKEN.encode()))


@pytest.mark.row("T45")
@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("http://me:canary@p.example:1", "proxy.url: credentials in URLs are not allowed; write {url: …, username: …"),
        ("https://p.example:3128", "proxy.url: must be http://HOST:PORT: a proxy is asked in the clear"),
        ("http://p.example", "proxy.url: must be http://HOST:PORT, with its port and nothing behind it"),
        ("http://p.example:3128/x", "proxy.url: must be http://HOST:PORT, with its port and nothing behind it"),
        ("http://169.254.169.254:80", "proxy.url: cloud metadata address, never allowed"),
        ("p.example:3128", "proxy.url: "),
        ({"url": "http://p.example:3128", "username": "me"}, "proxy.password: missing; username needs it"),
        ({"url": "http://p.example:3128", "password": "canary"}, "proxy.username: missing; password needs it"),
        ({"username": "me", "password": "canary"}, "proxy.url: missing"),
        (7, "proxy: must be a mapping, found integer"),
    ],
)
def test_a_proxy_that_cannot_be_one_is_refused(refused: Refuser, proxy: Any, message: str) -> None:
    """Only what is dialled and spoken to as we do; the password stays unsaid."""
    (found,) = refused(target={"proxy": proxy})
    assert found.startswith(f"targets.crm.{message}")
    assert "canary" not in found


@pytest.mark.row("T45")
def test_metadata_stays_closed_behind_a_proxy(refused: Refuser) -> None:
    """The proxy resolves names, but what the YAML writes out is judged here."""
    for host in ("169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal"):
        (found,) = refused(target={"url": f"http://{host}/", "proxy": "http://proxy.example.com:3128"})
        assert found.startswith("targets.crm.url: cloud metadata address, never allowed")


def test_a_condition_on_the_answer_must_parse(build: Loader, refused: Refuser) -> None:
    """What cannot be evaluated on any answer is refused when it is read."""
    assert target(build(target={"success_when": "status == 'ok'"})).success_when == "status == 'ok'"
    assert refused(target={"success_when": "status = 'ok'"}) == [
        "targets.crm.success_when: \"status = 'ok'\" is not a JMESPath expression: unknown token '=', column 8"
    ]
    assert refused(target={"success_when": "lenght(@)"}) == [
        'targets.crm.success_when: unknown JMESPath function "lenght"; did you mean "length"?'
    ]


def test_secrets_of_targets_in_a_readable_file_are_warned_about(read: Loader, tmp_path: Any) -> None:
    """As those of sources are; the place of the first is named."""
    from relay.config import load
    from tests.config.conftest import document

    path = tmp_path / "readable.yaml"
    path.write_text(
        document(source={"secrets": ["${S}"]}, target={"auth": {"scheme": "bearer", "token": TOKEN}}), encoding="utf-8"
    )
    path.chmod(0o644)
    (warning,) = load(path, {"S": KEY}).warnings
    assert warning.key == "targets.crm.auth.token"
    assert "every user of this machine" in warning.message


def test_a_signing_key_that_lost_its_prefix_is_told(warned: Refuser) -> None:
    """The standard's libraries decode it, so nobody could verify what is signed with its text."""
    lines = warned(target={"sign": {"secrets": [WHSEC.removeprefix("whsec_")]}})
    assert any("targets.crm.sign.secrets[0]: is base64 without whsec_" in line for line in lines)
    assert not any(
        "base64" in line for line in warned(target={"sign": {"secrets": [WHSEC, "a text that is the key!"]}})
    )
