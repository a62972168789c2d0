"""Sources: nobody may post unproven by accident, and a check that is described is the check that runs."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from relay.config import Config
from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    HmacCheck,
    NoCheck,
    Rate,
    Secret,
    Source,
    StandardWebhooksCheck,
)

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

KEY = "0123456789abcdef"
HMAC = {"scheme": "hmac", "header": "X-Signature", "algorithm": "sha256"}
V1 = {"provider": "plugandpay_v1", "secrets": ..., "verify": ...}


def only(config: Config) -> Source:
    (source,) = config.sources
    return source


@pytest.mark.parametrize(
    ("verify", "check"),
    [
        ({"scheme": "api_key", "header": "X-Key"}, ApiKeyCheck("X-Key", (Secret(KEY.encode()),))),
        ({"scheme": "bearer"}, BearerCheck((Secret(KEY.encode()),))),
        ({"scheme": "basic", "username": "shop"}, BasicCheck("shop", (Secret(KEY.encode()),))),
        (HMAC, HmacCheck("X-Signature", secrets=(Secret(KEY.encode()),))),
        (
            {
                **HMAC,
                "algorithm": "sha512",
                "encoding": "base64",
                "prefix": "v1=",
                "signed": "{id}.{timestamp}.{body}",
                "timestamp_header": "X-Time",
                "id_header": "X-Id",
                "tolerance": "1m",
            },
            HmacCheck(
                "X-Signature",
                "sha512",
                "base64",
                "v1=",
                "{id}.{timestamp}.{body}",
                "X-Time",
                "X-Id",
                timedelta(minutes=1),
                secrets=(Secret(KEY.encode()),),
            ),
        ),
        (
            {"scheme": "standard_webhooks", "tolerance": "1m"},
            StandardWebhooksCheck(timedelta(minutes=1), (Secret(KEY.encode()),)),
        ),
    ],
)
def test_each_scheme_is_read(build: Loader, verify: dict[str, str], check: object) -> None:
    """What the YAML describes is the check that runs."""
    assert only(build(source={"verify": verify})).check == check


def test_a_named_provider_brings_its_check_and_the_yaml_overrides_fields(build: Loader) -> None:
    """The keys of `verify` change single fields of a provider's own check."""
    source = only(build(source={"provider": "plugandpay", "verify": ...}))
    assert source.check == HmacCheck(
        "X-Signature", prefix="sha256=", prefix_optional=True, secrets=(Secret(KEY.encode()),)
    )
    override = {"header": "X-PlugAndPay-Signature", "encoding": "base64"}
    source = only(build(source={"provider": "plugandpay", "verify": override}))
    assert isinstance(source.check, HmacCheck)
    assert (source.check.header, source.check.encoding) == ("X-PlugAndPay-Signature", "base64")
    assert source.check.prefix_optional
    source = only(build(source={"provider": "plugandpay", "verify": {"prefix": "v2="}}))
    assert isinstance(source.check, HmacCheck)
    assert (source.check.prefix, source.check.prefix_optional) == ("v2=", False)
    source = only(build(source={"provider": "xoxoday", "verify": {"header": "X-Own"}}))
    assert source.check == ApiKeyCheck("X-Own", (Secret(KEY.encode()),))
    assert source.gives_up_after == 3
    assert "Xoxoday" in source.revival


def test_a_named_provider_is_not_checked_by_another_scheme(refused: Refuser) -> None:
    """Another scheme would not be that provider."""
    assert refused(source={"provider": "xoxoday", "verify": HMAC}) == [
        "sources.partner.verify.scheme: Xoxoday Plum is checked by api_key; another scheme needs provider: custom"
    ]
    assert refused(source={"provider": "xoxoday", "verify": {"algorithm": "sha512"}}) == [
        "sources.partner.verify.algorithm: has no meaning for scheme api_key"
    ]


@pytest.mark.row("C19")
def test_a_custom_source_without_verify_is_refused(refused: Refuser) -> None:
    """An open source is never the default."""
    assert refused(source={"verify": ...}) == [
        'sources.partner.verify: missing; write "verify: none" to accept unverified requests'
    ]


@pytest.mark.row("C20", "T9")
@pytest.mark.parametrize(
    ("verify", "message"),
    [
        ("hmca", 'verify: unknown scheme "hmca"; did you mean "hmac"?'),
        ("hmac", "verify: write a mapping: {scheme: hmac, …}"),
        ({"scheme": "hmca"}, 'verify.scheme: unknown scheme "hmca"; did you mean "hmac"?'),
        ({"scheme": "zzz"}, 'verify.scheme: unknown scheme "zzz"; known: api_key, hmac, basic, bearer'),
        ({"type": "HMAC256"}, 'verify.type: unknown key "type"'),
        ({"header": "X"}, "verify.scheme: missing; one of api_key, basic, bearer, hmac, standard_webhooks, none"),
        (["hmac"], 'verify: must be a mapping {scheme: …} or "none", found list'),
        (False, 'verify: must be a mapping {scheme: …} or "none", found boolean'),
        ("${PARTNER_SECRET}", "verify: must stand in the file itself, not in a variable"),
        ({"scheme": "${PARTNER_SECRET}"}, "verify.scheme: must stand in the file itself, not in a variable"),
    ],
)
def test_an_unknown_scheme_never_opens_a_source(refused: Refuser, verify: object, message: str) -> None:
    """A misspelt scheme is an error, not no check."""
    assert any(f"sources.partner.{message}" in line for line in refused(source={"verify": verify}))


@pytest.mark.row("C21")
@pytest.mark.parametrize(
    ("verify", "message"),
    [
        ({"scheme": "api_key"}, "header: missing; scheme api_key needs it"),
        ({"scheme": "basic"}, "username: missing; scheme basic needs it"),
        ({"scheme": "hmac", "algorithm": "sha256"}, "header: missing; scheme hmac needs it"),
        ({"scheme": "hmac", "header": "X"}, "algorithm: missing; scheme hmac needs it"),
        ({**HMAC, "algorithm": "md5"}, 'algorithm: unknown algorithm "md5"; known: sha256, sha512, sha1'),
        ({**HMAC, "algorithm": "sha1"}, "algorithm: sha1 is weak; allow_weak: true accepts it"),
        ({**HMAC, "allow_weak": True}, "allow_weak: has no meaning unless the algorithm is sha1"),
        ({**HMAC, "encoding": "base32"}, 'encoding: unknown encoding "base32"; did you mean "base64"?'),
        (
            {**HMAC, "signed": "{timestamp}", "timestamp_header": "X"},
            "signed: must hold {body}, or the body could be forged",
        ),
        ({**HMAC, "signed": "{url}{body}"}, 'signed: unknown field "url"; known: body, timestamp, id'),
        ({**HMAC, "signed": "{timestamp}.{body}"}, "timestamp_header: missing; signed holds {timestamp}"),
        ({**HMAC, "signed": "{id}.{body}"}, "id_header: missing; signed holds {id}"),
        ({**HMAC, "id_header": "X-Id"}, "id_header: has no meaning unless signed holds {id}"),
        ({**HMAC, "timestamp_header": "X"}, "timestamp_header: has no meaning unless signed holds {timestamp}"),
        ({**HMAC, "tolerance": "5m"}, "tolerance: has no meaning unless signed holds {timestamp}"),
        ({"scheme": "bearer", "header": "X"}, "header: has no meaning for scheme bearer"),
        ({"scheme": "none", "header": "X"}, "header: has no meaning for scheme none"),
        ({"scheme": "standard_webhooks", "tolerance": "0s"}, "tolerance: must be 1s to 7d"),
    ],
)
def test_a_check_is_complete_and_means_something(refused: Refuser, verify: object, message: str) -> None:
    """What a scheme needs is demanded, what it does not read is refused."""
    assert refused(source={"verify": verify}) == [f"sources.partner.verify.{message}"]


@pytest.mark.row("C21")
def test_sha1_is_accepted_when_asked_for_and_warned_about(warned: Refuser) -> None:
    """A weak digest is the user's explicit choice, told at each start."""
    assert warned(source={"verify": {**HMAC, "algorithm": "sha1", "allow_weak": True}}) == [
        "sources.partner.verify.algorithm: sha1 is weak; ask the sender for sha256"
    ]


@pytest.mark.row("C22")
@pytest.mark.parametrize("name", ["X Y", "X:", "", "\u00e4", "X\r\nY"])
def test_a_check_needs_a_valid_header_name(refused: Refuser, name: str) -> None:
    """What could never be received is told."""
    (line,) = refused(source={"verify": {**HMAC, "header": name}})
    assert line.startswith("sources.partner.verify.header: ")
    assert line.endswith("is not a valid header name")


@pytest.mark.row("C13")
@pytest.mark.parametrize(
    ("secret", "kind"), [(12345678901, "integer"), (1e30, "number"), (True, "boolean"), ({"a": 1}, "mapping")]
)
def test_a_secret_must_be_a_string(refused: Refuser, secret: object, kind: str) -> None:
    """Digits lose zeros and dates change; only text is a secret, and it is not printed."""
    assert refused(source={"secrets": [secret]}) == [
        f"sources.partner.secrets[0]: secret must be a quoted string, found {kind}"
    ]


@pytest.mark.row("C13", "C14")
def test_null_and_empty_lists_are_no_secrets(refused: Refuser) -> None:
    """A source with a check has at least one secret."""
    assert refused(source={"secrets": [None]}) == [
        "sources.partner.secrets[0]: secret must be a quoted string, found null"
    ]
    for none in ([], ...):
        assert refused(source={"secrets": none}) == ["sources.partner.secrets: needs at least one secret"]


@pytest.mark.row("C14", "T3")
@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ("", "secret is empty or blank"),
        ("   ", "secret is empty or blank"),
        ("abc", "secret too short (3 bytes; under 8 is refused, under 16 warned)"),
        ("changeme", "secret is a placeholder; put the real one in its place"),
        ("CHANGE-ME", "secret is a placeholder; put the real one in its place"),
        ("your-api-key-here", "secret is a placeholder; put the real one in its place"),
        ("$${SECRET_KEY}", "secret looks like an unexpanded variable; write ${NAME}"),
        ("$SECRET_KEY_NAME", "secret looks like an unexpanded variable; write ${NAME}"),
        ("$secret_key_name", "secret looks like an unexpanded variable; write ${NAME}"),
        ("0123456789abcdef ", "secret begins or ends with white space, which a header cannot carry"),
        ("0123456789\nabcdef", "secret holds a control character, which a header cannot carry"),
    ],
)
def test_what_proves_nothing_is_no_secret(refused: Refuser, secret: str, message: str) -> None:
    """Blank, short and made-up secrets are refused without being shown."""
    assert refused(source={"secrets": [KEY, secret]}) == [f"sources.partner.secrets[1]: {message}"]


def test_an_expanded_secret_may_begin_with_a_dollar_sign(build: Loader) -> None:
    """What a variable holds is taken as it is: only the file itself can have meant another variable."""
    config = build(source={"secrets": ["${DOLLAR}"]})
    assert config.sources[0].check.secrets[0].value == b"$abcdefghijklmnop"


def test_a_dollar_sign_that_is_written_twice_is_meant(build: Loader, refused: Refuser) -> None:
    """Written once it was probably to be a variable."""
    for written in ("$$abcdefghijklmnop", "$${V}abcdefghijklmnop"):
        config = build(source={"secrets": [written]})
        assert config.sources[0].check.secrets[0].value == written.removeprefix("$").encode()
    assert "looks like an unexpanded variable" in refused(source={"secrets": ["$abcdefghijklmnop"]})[0]


@pytest.mark.row("C14")
def test_a_short_secret_is_warned_about(warned: Refuser) -> None:
    """Between 8 and 16 bytes the start goes on, with a warning."""
    assert warned(source={"secrets": ["12345678"]}) == [
        "sources.partner.secrets[0]: secret is short (8 bytes; 16 or more are safe)"
    ]


def test_a_providers_format_is_wanted_not_demanded(warned: Refuser, refused: Refuser) -> None:
    """A key of Xoxoday's own format is fine at 13 characters; another one is warned about, never refused for it."""
    own = {"provider": "xoxoday", "verify": ...}
    assert warned(source={**own, "secrets": ["a1p2z5b7v68b9"]}) == []
    (line,) = warned(source={**own, "secrets": ["with-dashes-and-more"]})
    assert line.startswith("sources.partner.secrets[0]: secret has not the usual format: Xoxoday takes 13 to 60")
    assert refused(source={**own, "secrets": ["abc"]})[0].endswith("(3 bytes; under 8 is refused, under 16 warned)")


@pytest.mark.row("C17")
def test_there_is_one_key_for_secrets(refused: Refuser) -> None:
    """`secret` is a misspelling."""
    assert refused(source={"secret": "x"}) == ['sources.partner.secret: unknown key "secret"; did you mean "secrets"?']


@pytest.mark.row("C18")
def test_standard_webhooks_secrets_are_decoded(build: Loader, refused: Refuser) -> None:
    """`whsec_` announces base64; anything else behind it is refused."""
    scheme = {"verify": {"scheme": "standard_webhooks"}}
    source = only(build(source={**scheme, "secrets": ["whsec_MDEyMzQ1Njc4OWFiY2RlZg=="]}))
    assert isinstance(source.check, StandardWebhooksCheck)
    assert source.check.secrets == (Secret(b"0123456789abcdef"),)
    for wrong in ("whsec_not base64!", "whsec_MDEy=", "whsec_\u00e4\u00e4\u00e4\u00e4"):
        assert refused(source={**scheme, "secrets": [wrong]}) == [
            "sources.partner.secrets[0]: not valid base64 after `whsec_`"
        ]
    assert "too short (3 bytes" in refused(source={**scheme, "secrets": ["whsec_MDEy"]})[0]


@pytest.mark.row("T9")
def test_what_opens_a_source_warns(warned: Refuser, build: Loader, refused: Refuser) -> None:
    """Every way to let requests in unproven is told at each start."""
    assert warned(source={"verify": "none", "secrets": ...}) == [
        "sources.partner.verify: verify: none: requests are accepted unproven"
    ]
    assert only(build(source={"verify": "none", "secrets": ...})).check == NoCheck()
    assert warned(source={"enforce": False}) == [
        "sources.partner.enforce: enforce: false lets unproven requests through"
    ]
    assert only(build(source={"provider": "xoxoday", "verify": "none", "secrets": ...})).check == NoCheck()
    assert refused(source={"verify": "none"}) == [
        "sources.partner.secrets: has no meaning for a source that proves nothing"
    ]
    assert refused(source={"verify": "none", "secrets": ..., "enforce": False}) == [
        "sources.partner.enforce: has no meaning for a source that proves nothing"
    ]
    assert refused(source={"enforce": "${PARTNER_SECRET}"}) == [
        "sources.partner.enforce: must be true or false, found string"
    ]


@pytest.mark.parametrize(
    "guard",
    [
        {"allow_ips": ["10.0.0.0/8"]},
        {"path": "/hooks/v1/3f9c2a7be41d5068"},
        {"path": "/in/0f8fad5b-d9cb-469f-a165-70867728950e"},
        {"path": "/V7xkQz2mBnTf9LwPaRcg"},
        {"path": "/hooks/qwvzkrtmxbnplhsdgcy"},
        {"path": "/hooks/shop-3f9c2a7be41d5068"},
    ],
)
def test_an_unsigned_provider_needs_a_guard(warned: Refuser, guard: dict[str, object]) -> None:
    """Addresses or an unguessable path stand in for the missing proof; it is told all the same."""
    assert warned(source={**V1, **guard}) == [
        "sources.partner.verify: Plug&Pay Webhooks V1 signs nothing: requests are accepted unproven"
    ]


@pytest.mark.parametrize(
    "guard",
    [
        {},
        {"path": "/hooks/plugandpay"},
        {"path": "/hooks/plugandpay-webhooks-of-our-shop"},
        {"path": "/hooks/aaaaaaaaaaaaaaaa1"},
        {"path": "/hooks/3f9c2a7be41d506"},
        {"path": "/hooks/plugandpay-v1/PUT-32-RANDOM-HEX-DIGITS-HERE"},
        {"path": "/hooks/plugandpay-v1-webhook-2025"},
        {"path": "/hooks/my-company-name-webhook1"},
        {"path": "/hooks/put32randomhexdigitshere"},
        {"path": "/hooks/0123456789abcdef0123456789abcdef"},
        {"path": "/hooks/12121212-1212-1212-1212-121212121212"},
        {"allow_ips": ["0.0.0.0/0"]},
    ],
)
def test_an_unsigned_provider_without_a_guard_is_refused(refused: Refuser, guard: dict[str, object]) -> None:
    """A path of words can be guessed, and every address is no list."""
    (line,) = refused(source={**V1, **guard})
    assert line.startswith("sources.partner.path: Plug&Pay Webhooks V1 signs nothing: name its addresses")


@pytest.mark.row("C24", "C25", "C26")
def test_address_lists(build: Loader, refused: Refuser, warned: Refuser) -> None:
    """One address needs no list; an empty list and an endless one are told."""
    for one in ("10.0.0.5", ["10.0.0.5"]):
        assert [str(network) for network in only(build(source={"allow_ips": one})).allow_ips] == ["10.0.0.5/32"]
    assert refused(source={"allow_ips": []}) == [
        "sources.partner.allow_ips: empty allow list rejects everything; remove it or add networks"
    ]
    for everything in ("0.0.0.0/0", "::/0"):
        assert warned(source={"allow_ips": [everything]}) == ["sources.partner.allow_ips[0]: allows every address"]


@pytest.mark.row("C33")
@pytest.mark.parametrize(
    "path", ["hooks", "/", "/a/../b", "/a%2fb", "/a b", "/{id}", "/" + "a" * 65, "//a", "/a//b", "/\u00e4", 5, "/a?b"]
)
def test_odd_paths_are_refused(refused: Refuser, path: object) -> None:
    """A path is literal segments."""
    assert refused(source={"path": path}) == ["sources.partner.path: path must be segments of /[A-Za-z0-9_-]{1,64}"]


@pytest.mark.row("C33")
@pytest.mark.parametrize("path", ["/healthz", "/HealthZ/", "/metrics"])
def test_reserved_paths_are_refused(refused: Refuser, path: str) -> None:
    """The relay's own paths take no webhooks."""
    assert refused(source={"path": path}) == [f"sources.partner.path: path {path} is reserved"]


@pytest.mark.row("C32")
@pytest.mark.parametrize(("one", "other"), [("/x", "/x"), ("/x", "/X"), ("/x", "/x/"), ("/hooks/b", None)])
def test_two_sources_never_share_a_path(refused: Refuser, one: str, other: str | None) -> None:
    """Paths that differ by case or a trailing slash alone are the same to people."""
    second = {"provider": "custom", "verify": "none", **({"path": other} if other else {})}
    lines = refused(sources={"a": {"provider": "custom", "verify": "none", "path": one}, "b": second})
    key = "sources.b.path" if other else "sources.b"
    assert f"{key}: sources.a and sources.b share path {other or '/hooks/b'}" in lines


@pytest.mark.parametrize("name", ["Shop", "-a", "a b", "a" * 65, "\u00e4", "a.b", "relay"])
def test_names_of_sources_match_the_rule(refused: Refuser, name: str) -> None:
    """A name stands in paths, logs and metrics, so it is plain."""
    source = {"provider": "custom", "verify": "none"}
    lines = refused(sources={name: source}, routes=[])
    assert len(lines) == 1
    assert "must match [a-z0-9][a-z0-9_-]{0,63}" in lines[0] or 'the name "relay" is reserved' in lines[0]


def test_rate_and_respond(build: Loader, refused: Refuser, warned: Refuser) -> None:
    """The answer's status is a 2xx, the rate a count in a span."""
    source = only(build(source={"rate": "150/5m", "respond": {"status": 202}}))
    assert source.rate == Rate(150, timedelta(minutes=5))
    assert source.status == 202
    assert refused(source={"respond": {"status": 300}}) == ["sources.partner.respond.status: must be at most 299"]
    assert refused(source={"rate": "fast"}) == ['sources.partner.rate: "fast" is not a rate (write 100/s or 150/5m)']
    (line,) = warned(source={"provider": "xoxoday", "verify": ..., "respond": {"status": 202}})
    assert "it documents 200" in line


def test_a_source_may_be_expected_every_so_often(build: Loader, refused: Refuser) -> None:
    """From a minute to a year; without the key nothing is expected."""
    assert only(build()).expect_every is None
    assert only(build(source={"expect_every": "24h"})).expect_every == timedelta(days=1)
    for value in ("59s", "366d"):
        assert refused(source={"expect_every": value}) == ["sources.partner.expect_every: must be 1m to 365d"]
    assert "needs a unit" in refused(source={"expect_every": 24})[0]


def test_an_unknown_provider_is_told(refused: Refuser) -> None:
    """The nearest known provider is named."""
    assert refused(source={"provider": "xoxdaay"}) == [
        'sources.partner.provider: unknown provider "xoxdaay"; did you mean "xoxoday"?'
    ]
    assert refused(source={"provider": ...}) == ["sources.partner.provider: missing"]
