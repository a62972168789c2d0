"""What must not be shown, and what must stay readable."""

import ast
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import relay
from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    Content,
    Headers,
    HmacCheck,
    NoCheck,
    OAuth2Client,
    Proxy,
    QueryKey,
    Secret,
    Source,
    StandardWebhooksCheck,
    Target,
)
from relay.model.proving import Check
from relay.rules.forwarding import storable_headers
from relay.rules.secrets import (
    LOG_WORDS,
    SHORTEST_IN_LOG,
    blotted,
    credentials,
    harmless,
    hideable_token,
    keys_of,
    log_secrets,
)
from tests.support.canaries import found, spellings

HOST = "http://crm.test"


def of(*headers: tuple[str, str], rest: str = "/") -> frozenset[str]:
    return credentials(Target("crm", HOST + rest, headers=headers))


def nameless(_content: Content) -> None:
    return None


def source(name: str, check: Check, path: str = "/hooks/shop") -> Source:
    return Source(name=name, provider="custom", path=path, check=check, event_type=nameless, dedupe_key=nameless)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Authorization",
            "authorization",
            "Proxy-Authorization",
            "Cookie",
            "X-Key",
            "X-Api-Key",
            "apikey",
            "X-ApiKey",
        ),
        *("Api-Key", "X-Auth", "X-Auth-Token", "X-Gitlab-Token", "Private-Token", "X-Shop-Secret", "X-Signature"),
        *("X-Hub-Signature-256", "X-Password", "X-Pass", "Ocp-Apim-Subscription-Key", "X-Credentials", "X-Session-Id"),
    ],
)
def test_a_credential_header_is_known_by_its_name(name: str) -> None:
    """However it is spelled, and however short its value."""
    assert of((name, "s3same")) == {"s3same"}


@pytest.mark.parametrize(
    "name", ["Content-Type", "Accept", "X-Env", "X-Source", "X-Author", "X-Monkey", "User-Agent", "X-Tenant"]
)
def test_an_ordinary_header_is_no_secret(name: str) -> None:
    """Its value may well stand in an answer, or in our log, by chance."""
    assert of((name, "accepted"), (name, "application/json; charset=utf-8"), (name, "production-2")) == frozenset()


def test_a_key_under_an_ordinary_name_is_one() -> None:
    """A long run of mixed letters and digits is no word."""
    assert of(("X-Tenant", "sk_live_0123456789abcdef")) == {"0123456789abcdef"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Bearer abc12", {"Bearer abc12", "abc12"}),
        ("Token abcde", {"Token abcde", "abcde"}),
        ("  abcde ", {"abcde"}),
        ("Bearer", {"Bearer"}),
        ("session=abcde; theme=dark", {"session=abcde; theme=dark", "session=abcde", "abcde", "theme=dark", "dark"}),
        (
            f"Basic {b64encode(b'shop:open sesame').decode()}",
            {
                f"Basic {b64encode(b'shop:open sesame').decode()}",
                b64encode(b"shop:open sesame").decode(),
                "shop:open sesame",
                "open sesame",
            },
        ),
        ("Basic abcde", {"Basic abcde", "abcde"}),
        ("Basic not/base64!", {"Basic not/base64!", "not/base64!"}),
    ],
)
def test_a_value_counts_whole_and_in_its_words(value: str, expected: set[str]) -> None:
    """The name of a scheme is none of them: it would take "Bearer" out of every explanation."""
    assert of(("Authorization", value)) == expected


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("/", set()),
        ("/hooks/v1/orders?page=2", set()),
        ("/hooks/T00AB12CD3", {"T00AB12CD3", "/hooks/T00AB12CD3"}),
        ("/hooks/abcdefghijklmnop", {"abcdefghijklmnop", "/hooks/abcdefghijklmnop"}),
        ("/in?t=sesame", {"sesame", "t=sesame", "/in?t=sesame"}),
        ("/in?sesame;n=1", {"sesame", "sesame;n=1", "/in?sesame;n=1"}),
        ("/in?t=s%2Bame+x", {"s%2Bame+x", "s+ame+x", "s+ame x", "t=s%2Bame+x", "/in?t=s%2Bame+x"}),
    ],
)
def test_a_url_is_searched_for_what_looks_like_a_credential(rest: str, expected: set[str]) -> None:
    """Segments, values of the query, and the address that holds one; escapes are undone as well."""
    assert of(rest=rest) >= expected
    assert bool(of(rest=rest)) is bool(expected)


@pytest.mark.parametrize(
    "echo",
    [
        'p"a/s s%',
        '{"echo": "p\\"a/s s%"}',
        '{"echo": "p\\"a\\/s s%"}',
        "?echo=p%22a%2Fs%20s%25",
        "?echo=p%22a%2fs%20s%25",
        "?echo=p%22a/s%20s%25",
        "?echo=p%22a%2Fs+s%25",
    ],
)
def test_a_secret_is_blotted_out_in_every_form(echo: str) -> None:
    """As it was, escaped for JSON, percent-encoded."""
    said = blotted(f"before {echo} after", frozenset({'p"a/s s%'}))
    assert "***" in said
    assert "s%" not in said
    assert said.startswith("before ")
    assert said.endswith(" after")


@pytest.mark.row("B8", "B18")
@given(st.from_regex(r"[!-)+-~]{12,40}", fullmatch=True), st.from_regex(r"[a-z ]{0,5}", fullmatch=True))
def test_a_secret_is_blotted_out_in_every_code(secret: str, around: str) -> None:
    """In any case, in base64 wherever in what is encoded it stands, in hex, fully escaped; nothing of its middle is
    left."""
    for code, echo in spellings(secret).items():
        said = blotted(f"{around}{echo}{around}", frozenset({secret}))
        assert "***" in said, code
        assert found([secret], said) == [], code


@pytest.mark.row("B18")
@given(st.from_regex(r"[A-Za-z0-9/+%-]{12,40}", fullmatch=True), st.integers(4, 11))
def test_of_a_text_that_was_cut_the_beginning_of_a_secret_goes_too(secret: str, size: int) -> None:
    """An answer that breaks off in the midst of a secret does not show the half of it; a whole one keeps its end."""
    assert blotted(f"no: {secret[:size]}", frozenset({secret}), is_cut=True) == "no: ***"
    assert blotted(f"no: {secret[:size]}", frozenset({secret})) == f"no: {secret[:size]}"
    assert blotted("no: nothing", frozenset({"0123456789abcdef"}), is_cut=True) == "no: nothing"


@pytest.mark.row("B8")
def test_a_key_that_a_sender_repeats_elsewhere_is_kept_nowhere() -> None:
    """Not of an event, and not of a refusal; what a target asks for by name it gets."""
    key = "0123456789abcdef-key"
    keys = keys_of(source("shop", ApiKeyCheck("X-Key", (Secret(key.encode()),))))
    headers: Headers = (("X-Key", key), ("User-Agent", f"me {key}"), ("X-Trace", f"a={key}"), ("Accept", "*/*"))
    kept = storable_headers(headers, key_header="x-key", forwarded=frozenset(), keys=keys)
    assert kept == (("Accept", "*/*"),)
    asked = storable_headers(headers, key_header="x-key", forwarded=frozenset({"x-key"}), keys=keys)
    assert asked == (headers[0], headers[3])
    assert key not in str(harmless(((key, "a"), *headers), keys))
    assert ("Accept", "*/*") in harmless(headers, keys)


def test_the_longest_goes_first() -> None:
    """A part of a secret does not leave the rest of it behind."""
    assert blotted("Bearer abcdef abc", frozenset({"abc", "Bearer abcdef", "abcdef"})) == "*** ***"
    assert blotted("nothing to hide", frozenset({""})) == "nothing to hide"


@given(st.text(min_size=3), st.text(), st.text(min_size=1).filter(lambda text: "*" not in text))
def test_blotting_is_total(text: str, rest: str, secret: str) -> None:
    """Whatever the secret and the text, none of the one stays in the other."""
    assert secret not in blotted(text + secret + rest, frozenset({secret}))


@given(st.text(), st.text(), st.from_regex(r"/[!-~]*", fullmatch=True))
def test_credentials_are_found_in_whatever_is_configured(name: str, value: str, rest: str) -> None:
    """No header and no address raises."""
    headers: Headers = ((name, value), ("Authorization", value))
    target = Target("crm", HOST + rest, headers=headers)
    assert "" not in credentials(target)
    assert all(len(secret) >= SHORTEST_IN_LOG for secret in log_secrets([], [target], None))


def test_the_log_loses_keys_tokens_and_addresses() -> None:
    """Of sources, targets and the admin API; a path only where it is all the proof there is."""
    key, whsec, random = Secret(b"key-0123456789"), Secret(bytes(24)), "3f9c2a7be41d506f"
    target = Target("crm", f"{HOST}/{random}?token=sesame-x&n=innocent", headers=(("X-Key", "canary-8"),))
    hidden = log_secrets(
        [
            source("shop", ApiKeyCheck("X-Key", (key,)), path="/hooks/no-secret-at-all-1"),
            source("partner", StandardWebhooksCheck(secrets=(whsec,))),
            source("old", NoCheck(), path="/hooks/0123456789abcdef"),
        ],
        [target],
        Secret(b"admin-token-0123"),
    )
    assert hidden >= {"key-0123456789", b64encode(bytes(24)).decode(), "0123456789abcdef", "admin-token-0123"}
    assert hidden >= {target.url, random, "sesame-x", "canary-8"}
    assert not hidden & {"no-secret-at-all-1", "innocent", "/hooks/no-secret-at-all-1"}


def test_the_log_keeps_its_own_words_and_the_names_in_the_config() -> None:
    """A credential that is called like a line, a key, or a target is a bad one, and costs no line its meaning."""
    values = ("accepted", "event.accepted", "duration_ms", "delivered", "shop-of-ours", "crm-system", "short")
    target = Target("crm-system", HOST, headers=tuple(("X-Key", value) for value in values))
    assert log_secrets([source("shop-of-ours", NoCheck())], [target], Secret(b"delivery.attempted")) == {HOST}


def test_the_log_keeps_the_types_of_events() -> None:
    """An address that names one is hidden as a whole; the type stays readable wherever it stands alone."""
    target = Target("crm", f"{HOST}/order-payment-created?type=order_payment_created&n=sesame-sesame-1")
    hidden = log_secrets([], [target], None)
    assert {target.url, "sesame-sesame-1"} <= hidden
    assert not hidden & {"order_payment_created", "order-payment-created"}


def test_the_words_of_the_log_are_all_known() -> None:
    """Whatever the code logs, a line's name or a key, is spared when it is long enough to be taken for a secret."""
    words: set[str] = set()
    for path in Path(relay.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            name = node.args[0]
            if (
                isinstance(name, ast.Constant)
                and isinstance(name.value, str)
                and ast.unparse(node.func.value)[-3:] == "log"
            ):
                words |= {name.value, *(keyword.arg for keyword in node.keywords if keyword.arg)}
    assert "event.accepted" in words | LOG_WORDS
    assert {word for word in words if len(word) >= SHORTEST_IN_LOG and word not in "\n".join(LOG_WORDS)} == set()


SEALED = Secret(b"canary-key-0123")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"auth": BearerCheck((SEALED,))}, {"canary-key-0123"}),
        ({"auth": ApiKeyCheck("X-Any", (Secret(b"abc"),))}, {"abc"}),
        ({"auth": BasicCheck("me", (SEALED,))}, {"me:canary-key-0123", b64encode(b"me:canary-key-0123").decode()}),
        ({"auth": QueryKey("k", SEALED)}, {"canary-key-0123"}),
        ({"auth": HmacCheck("X-Sig", secrets=(SEALED,))}, {"canary-key-0123"}),
        (
            {"auth": OAuth2Client("https://id.test/", "a b", Secret(b"c/d-e-f-g"))},
            {"c/d-e-f-g", b64encode(b"a+b:c%2Fd-e-f-g").decode()},
        ),
        ({"sign": StandardWebhooksCheck(secrets=(SEALED,))}, {b64encode(b"canary-key-0123").decode()}),
        ({"proxy": Proxy("http://p.test:1", "me", SEALED)}, {"canary-key-0123"}),
    ],
)
def test_every_secret_that_proves_us_is_known(settings: dict[str, Any], expected: set[str]) -> None:
    """In each form in which it leaves; what is long enough is kept out of the log as well."""
    target = Target("crm", f"{HOST}/", **settings)
    assert expected <= credentials(target)
    assert {secret for secret in expected if len(secret) >= SHORTEST_IN_LOG} <= log_secrets([], [target], None)


def test_a_token_that_is_a_word_of_ours_does_not_blot_the_log() -> None:
    """Whoever issues tokens has no say in what our lines tell."""
    assert hideable_token("canary-token-0123")
    assert not hideable_token("delivery")
    assert not hideable_token("delivery.attempted")
    assert not hideable_token("short")
