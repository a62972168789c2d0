"""Why a webhook is believed or not: the verdict is the rules' own, the usual mistakes are named, no secret is told."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    Check,
    Content,
    Headers,
    HmacCheck,
    NoCheck,
    ProofList,
    ReceivedRequest,
    Route,
    Secret,
    Source,
    StandardWebhooksCheck,
    VerifiedRequest,
)
from relay.rules.diagnosis import Diagnosis, Posted, Step, Surroundings, diagnose, signatures
from relay.rules.diagnosis.bodies import LARGEST_JSON, variants
from relay.rules.diagnosis.steps import spelled
from relay.rules.signing import as_hmac, sign
from relay.rules.verification import verify

NOW = datetime(2026, 9, 20, 10, 15, 31, tzinfo=UTC)
STAMP = str(int(NOW.timestamp()))
BODY = b'{"type": "paid", "id": "e1", "note": "a/b \xc3\xa9"}\n'
KEY, OLD, FOREIGN = b"canary-key-0123456789", b"canary-old-9876543210", b"canary-foreign-secret"
SECRETS = (Secret(KEY),)
PLAIN = HmacCheck(header="X-Signature", prefix="sha256=", secrets=SECRETS)
STAMPED = HmacCheck(
    header="X-Sig", signed="{timestamp}.{body}", timestamp_header="X-Time", encoding="base64", secrets=SECRETS
)
STANDARD = StandardWebhooksCheck(secrets=SECRETS)
API_KEY = ApiKeyCheck("X-Key", SECRETS)
BEARER = BearerCheck(SECRETS)
BASIC = BasicCheck("shop", SECRETS)
LISTED = replace(PLAIN, signed="{timestamp}.{body}", listing=ProofList(",", timestamp_prefix="t="))
CHECKS: tuple[Check, ...] = (PLAIN, STAMPED, LISTED, STANDARD, API_KEY, BEARER, BASIC, NoCheck())


def field(name: str) -> Any:
    """A namer that reads one member of a JSON body."""

    def read(content: Content) -> str | None:
        value = content.json.get(name) if isinstance(content.json, dict) else None
        return value if isinstance(value, str) else None

    return read


def source(check: Check, name: str = "shop", **more: Any) -> Source:
    made = Source(name, "custom", f"/hooks/{name}", check, event_type=field("type"), dedupe_key=field("id"))
    return replace(made, **more)


ROUTES = (
    Route("all", frozenset({"shop"}), ("crm", "books")),
    Route("paid", frozenset({"shop"}), ("crm",), types=("paid",)),
)
OTHER = source(HmacCheck(header="X-Other", secrets=(Secret(FOREIGN),)), "other")


def judged(
    check: Check | Source,
    *headers: tuple[str, str],
    body: bytes | None = BODY,
    peer: str | None = None,
    now: datetime = NOW,
    **config: Any,
) -> Diagnosis:
    subject = check if isinstance(check, Source) else source(check)
    whole = Surroundings(sources=(subject, OTHER), routes=ROUTES, max_body=1000)
    return diagnose(Posted(headers, body, peer), subject, replace(whole, **config), now)


def step(diagnosis: Diagnosis, name: str) -> Step:
    return next(one for one in diagnosis.steps if one.name == name)


def advice(check: Check | Source, *headers: tuple[str, str], at: str = "proof", **more: Any) -> str:
    found = step(judged(check, *headers, **more), at)
    assert found.ok is False
    return found.advice


def digest(body: bytes = BODY, key: bytes = KEY, algorithm: str = "sha256") -> bytes:
    return hmac.digest(key, body, algorithm)


def signed(body: bytes = BODY, key: bytes = KEY) -> tuple[str, str]:
    return ("X-Signature", "sha256=" + digest(body, key).hex())


def on_signature(body: bytes = BODY, key: bytes = KEY) -> str:
    return advice(PLAIN, signed(body, key), at="signature")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: type(check).__name__)
def test_what_the_sender_signs_rightly_is_proven_and_followed_to_its_targets(check: Check) -> None:
    """The whole way is told: who takes it, under which type, and by what it is known again."""
    found = judged(check, *sign(check, BODY, now=NOW, message_id="msg_1"))
    assert found.proven is not isinstance(check, NoCheck)
    assert found.proves_nothing is isinstance(check, NoCheck)
    assert (found.status, found.is_accepted) == (200, True)
    assert (found.event_type, found.dedupe_key) == ("paid", "e1")
    assert (found.routes, found.targets) == (("all", "paid"), ("crm", "books"))
    assert [one.name for one in found.steps if one.ok is False] == []
    assert step(found, "routes").said == "all to crm, books, paid to crm"
    assert not any(one.advice or one.expected for one in found.steps)


def test_which_of_several_secrets_matched_is_told() -> None:
    """So that an old one can be retired."""
    both = (Secret(OLD), Secret(KEY))
    assert step(judged(replace(PLAIN, secrets=both), signed()), "signature").said.endswith("secret number 2 of 2")
    assert step(judged(replace(API_KEY, secrets=both), ("X-Key", OLD.decode())), "proof").said.endswith("1 of 2")
    late = sign(replace(STAMPED, secrets=both), BODY, now=NOW - timedelta(hours=1), message_id="")
    found = judged(replace(STAMPED, secrets=both), *late)
    assert (step(found, "signature").ok, step(found, "timestamp").ok) == (True, False)


# The digest


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BODY[:-1], "over the body without its last newline"),
        (BODY + b"\n", "over the body with a newline at its end"),
        (BODY + b"\r\n", "over the body with CRLF at its end"),
        (BODY.replace(b"\n", b"\r\n"), "over the body with CRLF where it has LF"),
        (b"\xef\xbb\xbf" + BODY, "over the body with a byte order mark"),
        (BODY.decode().encode("latin-1"), "over the body in Latin-1"),
        (BODY.decode("latin-1").encode(), "over the body as UTF-8 made of Latin-1"),
        (json.dumps(json.loads(BODY), separators=(",", ":")).encode(), "over the JSON written compactly in ASCII"),
        (json.dumps(json.loads(BODY), indent=2, ensure_ascii=False).encode(), "over the JSON indented by 2"),
        (
            json.dumps(json.loads(BODY), separators=(",", ":")).replace("/", "\\/").encode(),
            "over the JSON written compactly in ASCII, as PHP does",
        ),
    ],
)
def test_a_body_that_was_changed_is_recognised(body: bytes, words: str) -> None:
    """What was signed is named, and that the raw bytes are what counts."""
    assert on_signature(body).startswith(f"The digest does match {words}. It was changed after it was signed")


def test_a_body_that_is_no_json_is_tried_as_it_is() -> None:
    """Content refuses nothing: neither odd bytes, nor depth, nor size, nor indentation that multiplies."""
    deep, wide = b"[" * 100_000, b"[" * 400 + b"1," * 2000 + b"1" + b"]" * 400
    large = b" " * (LARGEST_JSON + 1)
    for body in (b"\xff\xfe\n", deep, wide, large, b'"\\ud800"', b"9" * 5000, b'"' + b"[" * 400 + b'"'):
        found = judged(PLAIN, signed(b"something else"), body=body, max_body=10**9)
        assert "No usual mistake explains" in step(found, "signature").advice
    assert variants(b"")[0] == ("", b"")


def test_an_empty_body_that_was_signed_is_the_senders_fault() -> None:
    """Frameworks that sign before the body is there are told apart from bodies that were changed."""
    assert on_signature(b"") == (
        "The digest does match over an empty body. The sender has to sign the bytes that it sends."
    )


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (KEY + b"\n", "with white space behind the secret. The sender's copy of the secret"),
        (b" " + KEY, "with white space before the secret"),
        (b'"' + KEY + b'"', "with the secret in quotes"),
        (KEY.upper(), "with the secret in upper case"),
        (b"", "with an empty key. The sender has no secret"),
        (FOREIGN, "with the secret of source other. It belongs to source other"),
        (base64.b64encode(KEY), "with the text of the secret, not decoded"),
    ],
)
def test_a_secret_that_was_copied_wrongly_is_recognised(key: bytes, words: str) -> None:
    """How the sender's secret differs is named, not the secret."""
    assert on_signature(key=key).startswith(f"The digest does match {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"whsec_" + base64.b64encode(KEY), "use verify: {scheme: standard_webhooks}, which decodes it."),
        (KEY.hex().encode(), "The relay signs with the text of the secret"),
        (b"'" + KEY + b"'", "with the secret without its quotes"),
        (KEY + b" ", "with the secret without the white space around it"),
    ],
)
def test_a_secret_that_the_config_takes_otherwise_is_recognised(text: bytes, words: str) -> None:
    """The config has the text of a key, the sender signs with the key itself."""
    assert words in advice(replace(PLAIN, secrets=(Secret(text),)), signed(), at="signature")


def test_the_secret_of_standard_webhooks_that_was_not_decoded_is_recognised() -> None:
    """The commonest slip of all who write a sender of Standard Webhooks themselves."""
    text = Secret(b"whsec_" + base64.b64encode(KEY))
    headers = sign(replace(STANDARD, secrets=(text,)), BODY, now=NOW, message_id="msg_1")
    assert "not decoded. The sender has to decode its base64 first." in advice(STANDARD, *headers, at="signature")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            ("X-Signature", digest().hex()),
            'without "sha256=" before it. If the sender means it so, write under verify: ',
        ),
        (
            ("X-Signature", "SHA256=" + digest().hex()),
            'behind "SHA256=". If the sender means it so, write under verify',
        ),
        (("X-Hub", "sha256=" + digest().hex()), "in header X-Hub, not X-Signature. If the sender means it so, write"),
        (("X-Signature", "sha256=" + base64.b64encode(digest()).decode()), "in base64."),
        (("X-Signature", "sha256=" + base64.b64encode(digest()).decode()[:-1]), "in base64 without its padding."),
        (("X-Signature", "sha256=" + base64.b64encode(digest().hex().encode()).decode()), "in base64 of its hex text."),
        (("X-Signature", "sha512=" + digest(algorithm="sha512").hex()), "as sha512, behind"),
        (("X-Signature", "sha1=" + digest(algorithm="sha1").hex()), "algorithm: sha1, allow_weak: true"),
        (("X-Signature", "sha256=" + digest(algorithm="sha384").hex()), "The relay takes sha256 and sha512."),
        (("X-Signature", f"t={STAMP},v1=" + digest().hex()), "beside other values. The relay reads a header that"),
    ],
)
def test_another_spelling_of_the_right_digest_is_recognised(header: tuple[str, str], words: str) -> None:
    """What differs is named, with the keys of the YAML that would take it."""
    assert words in advice(PLAIN, header)


def test_a_digest_in_url_safe_base64_is_recognised() -> None:
    """The relay compares the one canonical spelling; the diagnosis knows the others."""
    body = next(b"%d" % n for n in range(99) if {43, 47} & set(base64.b64encode(digest(b"%d" % n))))
    sent = base64.urlsafe_b64encode(digest(body)).decode()
    check = replace(PLAIN, encoding="base64", prefix="")
    assert "in URL-safe base64. The relay takes a digest in hex or" in advice(check, ("X-Signature", sent), body=body)


@pytest.mark.parametrize(
    ("message", "headers", "words"),
    [
        (
            STAMP.encode() + b"." + BODY,
            (("X-Timestamp", STAMP),),
            'over "{timestamp}.{body}" (timestamp from X-Timestamp)',
        ),
        (
            b"v0:" + STAMP.encode() + b":" + BODY,
            (("X-Slack-Request-Timestamp", STAMP),),
            'signed: "v0:{timestamp}:{body}"',
        ),
        (STAMP.encode() + b"\n" + BODY, (("X-Time", STAMP),), 'over "{timestamp}\\n{body}"'),
        (
            b"m1." + STAMP.encode() + b"." + BODY,
            (("webhook-id", "m1"), ("webhook-timestamp", STAMP)),
            'signed: "{id}.{timestamp}.{body}", timestamp_header: webhook-timestamp, id_header: webhook-id.',
        ),
        (
            STAMP.encode() + b"." + BODY[:-1],
            (("X-Time", STAMP),),
            "(timestamp from X-Time), with the body without its last newline. If the sender means it so",
        ),
    ],
)
def test_another_signed_text_is_recognised(message: bytes, headers: Headers, words: str) -> None:
    """What was signed is named as `verify.signed` has it, with the headers that it takes."""
    assert words in advice(PLAIN, *headers, signed(message), at="signature")


def test_a_timestamp_in_the_signatures_own_header_is_recognised() -> None:
    """Stripe's kind of header: only the provider of that name reads it, and no key of `verify` would."""
    sent = f"t={STAMP},v1=" + digest(STAMP.encode() + b"." + BODY).hex()
    told = advice(PLAIN, ("X-Signature", sent))
    assert 'over "{timestamp}.{body}" (timestamp from its own header)' in told
    assert "read with provider: stripe" in told
    assert "write under verify" not in told


@pytest.mark.parametrize("message", [BODY, KEY + BODY, BODY + KEY])
def test_a_plain_hash_is_recognised(message: bytes) -> None:
    """A hash without a key proves nothing, one with the key beside it is no HMAC."""
    header = ("X-Signature", "sha256=" + hashlib.sha256(message).hexdigest())
    assert "It is a plain hash and no HMAC" in advice(PLAIN, header, at="signature")


def test_the_secret_itself_in_the_header_is_recognised() -> None:
    """A sender that compares tokens where a signature is expected."""
    for value in (KEY.decode(), f"Bearer {KEY.decode()}", f"sha256={KEY.decode()}"):
        told = advice(PLAIN, ("X-Signature", value))
        assert "X-Signature holds the secret itself, not a digest made with it" in told
        assert KEY.decode() not in told


def test_a_digest_that_nothing_explains_says_what_to_compare() -> None:
    """Lengths are told, and how the header's spelling is wrong, if it is."""
    assert on_signature(key=b"somebody-elses") == (
        "No usual mistake explains the digest, so it is another secret or another body. Compare the secret at both "
        "ends (here 21 bytes), and take the body byte for byte."
    )
    told = advice(PLAIN, ("X-Signature", digest(key=b"somebody-elses").hex()), hint="it is under Settings")
    assert told.startswith('What looks like a digest is there without "sha256=" before it.')
    assert told.endswith("It is under Settings.")
    assert "What X-Signature holds is no digest of any kind." in advice(PLAIN, ("X-Signature", "sha256=" + "z" * 5000))
    assert "no secret that could match" in advice(replace(PLAIN, secrets=()), signed(), at="signature")
    empty = step(judged(replace(PLAIN, secrets=()), signed()), "signature")
    assert empty.expected == ""


def test_the_search_ends_when_it_has_cost_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large body is not hashed for ever."""
    monkeypatch.setattr(signatures, "MOST_WORK", 10_000)
    assert "No usual mistake" in on_signature(b"", FOREIGN)


def test_what_would_have_matched_is_what_the_sender_should_have_sent() -> None:
    """The digest of these very bytes, in the header's own spelling; sent so, it is proven."""
    for check, headers in (
        (PLAIN, ()),
        (replace(PLAIN, prefix_optional=True), ()),
        (STAMPED, (("X-Time", STAMP), ("X-Sig", "AAAA"))),
        (STANDARD, (("webhook-id", "m1"), ("webhook-timestamp", STAMP))),
    ):
        expected = step(judged(check, *headers), "proof").expected
        scheme = check if isinstance(check, HmacCheck) else as_hmac(check)
        kept = [header for header in headers if header[0] != scheme.header]
        assert judged(check, *kept, (scheme.header, expected)).proven
    assert step(judged(STAMPED, ("X-Sig", "AAAA")), "proof").expected == ""


# The headers of the proof


def test_a_missing_signature_says_what_is_read_and_what_is_there() -> None:
    """Nothing there, something like it, something empty, or the right one elsewhere."""
    assert "does not send X-Signature, or it was not given here with --header." in advice(PLAIN)
    assert advice(PLAIN, ("X-Signatur", "abc")) == "Is X-Signatur meant? The source reads X-Signature."
    assert "there, but empty" in advice(PLAIN, ("x-signature", ""), ("X-Signature-2", ""))
    standard = sign(STANDARD, BODY, now=NOW, message_id="m1")
    moved = [(name.replace("webhook-signature", "X-Sig"), value) for name, value in standard]
    assert "Standard Webhooks leaves no choice here" in advice(STANDARD, *moved)


def test_a_signature_sent_twice_says_whether_it_is_right() -> None:
    """Which one counts is never guessed."""
    told = advice(PLAIN, signed(), signed())
    assert told.startswith("The digest itself is right. One of each is read")
    assert advice(PLAIN, signed(key=b"x"), signed(key=b"y")).startswith("One of each is read")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (STAMP + "123", "X-Time has 13 digits: these are milliseconds."),
        ("2026-09-20T10:15:31Z", "X-Time holds no plain number of seconds"),
        (STAMP + ".5", "X-Time holds no plain number of seconds"),
    ],
)
def test_a_timestamp_in_another_unit_is_recognised(value: str, words: str) -> None:
    """And the signature is judged beside it."""
    right = base64.b64encode(digest(value.encode() + b"." + BODY)).decode()
    told = advice(STAMPED, ("X-Time", value), ("X-Sig", right))
    assert words in told
    assert told.endswith("The sender has to send whole Unix seconds. The digest itself is right.")


def test_a_missing_timestamp_or_id_says_so() -> None:
    """With the header that may have been meant."""
    sig = ("X-Sig", base64.b64encode(digest()).decode())
    assert advice(STAMPED, sig).startswith("The sender has to send whole Unix seconds.")
    named = advice(STAMPED, ("Request-Time", STAMP), sig)
    assert named.startswith("Is Request-Time meant? The source reads X-Time.")
    headers = sign(STANDARD, BODY, now=NOW, message_id="a.b")
    assert "one short id without dots. The digest itself is right." in advice(STANDARD, *headers)


@pytest.mark.parametrize(
    ("away", "words"),
    [
        (timedelta(minutes=-10), "X-Time is 10 min behind this clock, allowed are 5 min (stale_timestamp)"),
        (timedelta(hours=3), "X-Time is 3 h ahead of this clock, allowed are 5 min (stale_timestamp)"),
    ],
)
def test_a_stale_timestamp_says_by_how_much_and_whose_clock(away: timedelta, words: str) -> None:
    """An old request can be judged as of its own time."""
    then = NOW + away
    headers = sign(STAMPED, BODY, now=then, message_id="")
    found = judged(STAMPED, *headers)
    assert (found.status, found.proven) == (401, False)
    assert step(found, "timestamp").said == words
    assert ("--at TIME" in step(found, "timestamp").advice) is (away < timedelta(0))
    assert judged(STAMPED, *headers, now=then).proven


def test_a_timestamp_years_ahead_is_a_mistaken_unit() -> None:
    """Ten digits too may be no seconds."""
    value = "9" * 10
    right = base64.b64encode(digest(value.encode() + b"." + BODY)).decode()
    assert "whole Unix seconds" in advice(STAMPED, ("X-Time", value), ("X-Sig", right), at="timestamp")


def test_spans_are_spelled_in_their_largest_unit() -> None:
    """Two units at least, so that 90 s do not become 1 min."""
    assert [spelled(s) for s in (0, 119, 120, 7199, 7200, 172_800)] == [
        "0 s",
        "119 s",
        "2 min",
        "119 min",
        "2 h",
        "2 days",
    ]


# Keys in the clear


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (f'"{KEY.decode()}"', "stands in quotes"),
        (f"<{KEY.decode()}>", "has brackets around it"),
        (f"Bearer {KEY.decode()}", "has a scheme's name before it"),
        (f"{KEY.decode()[:6]} {KEY.decode()[6:]}", "holds white space or invisible characters"),
        (f"{KEY.decode()}\u200b", "holds white space or invisible characters"),
        (f" {KEY.decode()}", "has white space around it"),
        (KEY.decode().replace("-", "%2D"), "is percent-encoded"),
        (base64.b64encode(KEY).decode(), "is in base64"),
        (f"key={KEY.decode()}", "has its own name before it"),
        (KEY.decode().upper(), "differs in upper and lower case"),
        (KEY.decode()[:15], "is cut off after 15 of 21 bytes"),
        (f"{KEY.decode()}1", "is followed by 1 byte too many"),
        (f"1{KEY.decode()}", "comes behind 1 byte too many"),
    ],
)
def test_a_key_that_was_copied_wrongly_is_recognised(value: str, words: str) -> None:
    """The relation is told, neither of the keys."""
    assert advice(API_KEY, ("X-Key", value)) == f"It is the key, but it {words}: correct it at the sender."


def test_a_key_in_latin_1_is_recognised() -> None:
    """Header bytes that are not UTF-8 arrive as surrogates."""
    check = ApiKeyCheck("X-Key", (Secret("clé-canary-0123".encode()),))
    sent = "clé-canary-0123".encode("latin-1").decode("utf-8", "surrogateescape")
    assert "is in Latin-1, not UTF-8" in advice(check, ("X-Key", sent))


def test_another_key_is_told_by_its_length_alone() -> None:
    """Or by the source that it belongs to."""
    hint = "it is under Settings"
    assert advice(API_KEY, ("X-Key", "z" * 21)) == "It is another one of the same length, 21 bytes: compare both ends."
    assert advice(API_KEY, ("X-Key", "z" * 5), hint=hint) == (
        "It is another one: it has 5 bytes, expected are 21. It is under Settings."
    )
    assert "It is the secret of source other" in advice(API_KEY, ("X-Key", FOREIGN.decode()))
    assert "no secret that could match" in advice(ApiKeyCheck("X-Key", (Secret(b""),)), ("X-Key", "abc"))


def test_a_value_that_nobody_filled_in_or_that_was_blotted_is_recognised() -> None:
    """Templates and logs leave such values behind."""
    for value in ("${API_KEY}", "{{ key }}", "$KEY", "Bearer ${TOKEN}"):
        assert "a variable that nobody has filled in" in advice(API_KEY, ("X-Key", value))
    for value in ("***", "a1***", "[REDACTED]"):
        assert "a redacted copy" in advice(API_KEY, ("X-Key", value))


def test_a_key_elsewhere_or_twice_is_recognised() -> None:
    """Another header, two lines, an empty one, or a signature in place of the key."""
    key = KEY.decode()
    assert "The right key is in header X-Api, but the source reads X-Key." in advice(API_KEY, ("X-Api", key))
    assert "Let the sender name it so." in advice(BEARER, ("X-Auth", f"Bearer {key}"))
    assert advice(API_KEY, ("X-Key", key), ("x-key", key)).startswith("All of them are right")
    assert advice(API_KEY, ("X-Key", key), ("x-key", "z")).startswith("1 of 2 are right")
    assert "there, but empty" in advice(API_KEY, ("X-Key", ""))
    assert "does not send X-Key" in advice(API_KEY)
    for name in ("X-Key", "X-Signature"):
        told = advice(API_KEY, (name, digest().hex()))
        assert f"signs with it, in {name}: the source wants verify: {{scheme: hmac, …}}." in told
    assert "same length" not in advice(API_KEY, ("X-Key", digest(key=b"stranger").hex()))
    assert "signs with it" not in advice(API_KEY, ("X-Key", digest(key=b"").hex()))
    assert "signs with it" not in advice(API_KEY, ("X-Key", hashlib.sha256(BODY).hexdigest()))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (KEY.decode(), 'The key is right, but "Bearer " is missing before it.'),
        (f"Token {KEY.decode()}", 'The key is right, but the word before it has to be "Bearer".'),
        (f"Bearer {KEY.decode()}1", "is followed by 1 byte too many"),
        ("Bearer short", "It is another one: it has 5 bytes, expected are 21."),
    ],
)
def test_a_bearer_token_that_was_sent_wrongly_is_recognised(value: str, words: str) -> None:
    """The word before the token counts."""
    assert words in advice(BEARER, ("Authorization", value))


def encoded(pair: bytes) -> str:
    return base64.b64encode(pair).decode()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (encoded(b"shop:" + KEY), 'It is right, but "Basic " is missing before it.'),
        (f"Bearer {KEY.decode()}", 'The header has to be "Basic "'),
        (f"Basic shop:{KEY.decode()}", "User name and password are right, but they have to be in base64."),
        ("Basic !!!", "is not base64 of user name, colon and password"),
        (f"Basic {encoded(b'shop')}", "There is no colon"),
        (f"Basic {encoded(b'Shop:' + KEY)}", "not that of verify.username (only in upper and lower case)."),
        (f"Basic {encoded(b'other:' + KEY)}", "not that of verify.username."),
        (f"Basic {encoded(b'shop:' + KEY)} ", "not in its one canonical spelling"),
        (f"Basic {encoded(b'shop:' + KEY.upper())}", "The user name is right. It is the password, but it differs"),
        (f"Basic {encoded(b'shop:zzz')}", "The user name is right. It is another one: it has 3 bytes, expected are 21"),
    ],
)
def test_a_user_or_password_that_was_sent_wrongly_is_recognised(value: str, words: str) -> None:
    """Which of the two it is, and how it differs."""
    assert words in advice(BASIC, ("Authorization", value))


# Address, size, loops


GUARDED = source(NoCheck(), allow_ips=(ip_network("52.76.120.90/32"), ip_network("2001:db8::/32")))


def at_address(peer: str | None, *forwarded: str, trusted: tuple[str, ...] = ()) -> tuple[Diagnosis, Step]:
    headers = [("X-Forwarded-For", value) for value in forwarded]
    found = judged(GUARDED, *headers, peer=peer, trusted_proxies=tuple(map(ip_network, trusted)))
    return found, step(found, "address")


def test_an_address_is_judged_as_the_relay_judges_it() -> None:
    """Allowed directly, or by what a trusted proxy says."""
    assert at_address("52.76.120.90")[1].said == "client 52.76.120.90 is in allow_ips"
    found, said = at_address("10.0.0.1", "52.76.120.90", trusted=("10.0.0.0/8",))
    assert (found.status, said.ok, said.said) == (200, True, "client 52.76.120.90, by X-Forwarded-For, is in allow_ips")
    assert step(judged(NoCheck(), peer="9.9.9.9"), "address").ok is True


def test_an_address_that_nobody_told_is_not_judged() -> None:
    """It says what to give."""
    found, said = at_address(None)
    assert (found.status, said.ok) == (200, None)
    assert "52.76.120.90, 2001:db8::/32" in said.said
    assert "--remote" in said.advice


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "words"),
    [
        ("9.9.9.9", (), (), "If it is the sender's own, add it to sources.shop.allow_ips."),
        (
            "10.0.0.1",
            (),
            (),
            "It looks like a proxy of yours: name its network in server.trusted_proxies and let it send",
        ),
        ("10.0.0.1", ("52.76.120.90",), (), "if 10.0.0.1 is yours, add it to server.trusted_proxies."),
        ("9.9.9.9", ("52.76.120.90, 10.0.0.2",), (), "if 9.9.9.9, 10.0.0.2 is yours"),
        ("10.0.0.1", ("52.76.120.90, 10.9.0.2",), ("10.0.0.1/32",), "if 10.9.0.2 is yours"),
        ("10.0.0.1", ("8.8.8.8",), (), "It looks like a proxy of yours: name its network in server.trusted_proxies."),
        ("10.0.0.1", ("52.76.120.90, junk",), (), "It looks like a proxy of yours"),
    ],
)
def test_an_address_that_is_not_allowed_says_what_would_let_it_in(
    peer: str, forwarded: tuple[str, ...], trusted: tuple[str, ...], words: str
) -> None:
    """What is advised was tried; whose proxy it is, the operator knows."""
    found, said = at_address(peer, *forwarded, trusted=trusted)
    assert (found.status, found.is_accepted, said.ok) == (403, False, False)
    assert words in said.advice


def test_what_is_no_address_is_turned_away_as_by_the_relay() -> None:
    """403 for junk, 400 for too many hops."""
    assert at_address("10.0.0.1", "junk", trusted=("10.0.0.0/8",))[0].status == 403
    assert at_address("10.0.0.1", ",".join(["1.1.1.1"] * 60), trusted=("10.0.0.0/8",))[0].status == 400
    assert at_address("", ())[1].said == "the peer has no address"


def test_an_early_refusal_means_that_nothing_is_proven() -> None:
    """A right proof does not help a request that is turned away before it, or behind it."""
    guarded = replace(source(PLAIN), allow_ips=GUARDED.allow_ips)
    assert (judged(guarded, signed(), peer="9.9.9.9").status, judged(guarded, signed(), peer="9.9.9.9").proven) == (
        403,
        False,
    )
    large = judged(PLAIN, signed(b"a" * 1001), body=b"a" * 1001)
    assert (large.status, large.proven, step(large, "size").ok) == (413, False, False)
    looped = judged(PLAIN, signed(), ("relay-hops", "6"))
    assert (looped.status, looped.proven, step(looped, "loop").ok) == (508, False, False)


def test_a_length_that_is_not_the_bodys_is_a_hint() -> None:
    """The copy is then not what was sent; what is declared too large is refused."""
    assert "Content-Length says 46" in step(judged(PLAIN, signed(), ("Content-Length", "46")), "size").advice
    assert judged(PLAIN, signed(), ("Content-Length", "1001")).status == 413
    for value in ("²", "x", "1" * 5000):
        assert step(judged(PLAIN, signed(), ("Content-Length", value)), "size").advice == ""
    assert "no body was given" in step(judged(PLAIN, body=None), "size").said


# What follows


def test_a_source_that_does_not_enforce_lets_it_through_and_says_so() -> None:
    """Not proven, and accepted all the same."""
    lax = source(PLAIN, enforce=False)
    found = judged(lax)
    assert (found.proven, found.status, found.is_accepted) == (False, 200, True)
    assert "relay-verified: false" in step(found, "enforce").said
    assert judged(lax, signed()).proven


def test_an_event_that_nobody_takes_says_why() -> None:
    """No route, no type, or another spelling of the type."""
    paid = ROUTES[1:]
    assert step(judged(PLAIN, routes=()), "routes").said == "no route is from shop"
    other = judged(PLAIN, body=b'{"type": "lost"}', routes=paid)
    assert (other.routes, other.targets, other.dedupe_key) == ((), (), None)
    assert step(other, "routes").said == "no route takes this type: paid takes paid"
    assert "event.unrouted" in step(other, "routes").advice
    assert step(judged(PLAIN, body=b'{"type": "PAID"}', routes=paid), "routes").advice == "Upper and lower case count."
    assert "sources.shop.event_type" in step(judged(PLAIN, body=b"x", routes=paid), "type").advice
    assert step(judged(PLAIN, body=b"x", routes=ROUTES[:1]), "type").advice == ""
    many = tuple(Route(f"r{n}", frozenset({"shop"}), ("crm",)) for n in range(9))
    assert step(judged(PLAIN, routes=many), "routes").said.endswith("r3 to crm, 5 more")


def test_headers_and_conditions_of_routes_have_their_say() -> None:
    """What is left to a fetch is said so; where nobody takes it, each route of the source says why."""
    live, asked = (
        Route("live", frozenset({"shop"}), ("crm",), headers=(("X-Env", "live"),)),
        Route("asked", frozenset({"shop"}), ("crm", "books"), when="data.n", enricher="stock"),
    )
    found = judged(PLAIN, routes=(live, asked))
    assert (found.routes, found.targets) == (("asked",), ("crm", "books"))
    assert step(found, "routes").said == "asked to crm (decided after the fetch), books (decided after the fetch)"
    assert judged(PLAIN, ("x-env", "live"), routes=(live,)).routes == ("live",)
    foreign = Route("foreign", frozenset({"other"}), ("crm",))
    nobody = judged(PLAIN, routes=(live, replace(asked, when="abs(body.type)", enricher=None), foreign))
    assert (nobody.routes, nobody.targets) == ((), ())
    assert step(nobody, "routes").said == (
        "no route takes it: live: its match.headers wants X-Env, which the event does not have; "
        "asked: its `when` failed: abs() was given what it does not take"
    )
    assert "event.unrouted" in step(nobody, "routes").advice


# Laws


TEXT = st.text(max_size=40)
CANARIES = (KEY, OLD, FOREIGN)
CREDENTIALS = st.sampled_from(
    [
        KEY.decode(),
        f"Bearer {KEY.decode()}",
        f"sha256={digest().hex()}",
        base64.b64encode(b"shop:" + KEY).decode(),
        f"Basic {base64.b64encode(b'shop:' + KEY).decode()}",
        f"Basic {base64.b64encode(b'shop:' + OLD).decode()}",
        FOREIGN.decode(),
        f"v1,{base64.b64encode(digest()).decode()}",
        STAMP,
        STAMP + "000",
        "10.0.0.1",
    ]
)
NAMES = st.sampled_from(
    [
        *("X-Signature", "X-Sig", "X-Time", "X-Key", "Authorization", "webhook-id", "webhook-timestamp"),
        *("webhook-signature", "X-Forwarded-For", "Content-Length", "relay-hops", "X-Signatur", KEY.decode()),
    ]
)
HEADERS = st.lists(st.tuples(NAMES | TEXT, CREDENTIALS | TEXT), max_size=6).map(tuple)
BODIES = (
    st.none() | st.binary(max_size=60) | st.sampled_from([BODY, b'{"type": "%b", "id": "%b"}' % (KEY, FOREIGN), KEY])
)


@settings(max_examples=150, deadline=None)
@given(
    check=st.sampled_from(CHECKS),
    headers=HEADERS,
    body=BODIES,
    peer=st.none() | TEXT | st.just("10.0.0.1"),
    enforce=st.booleans(),
)
def test_a_diagnosis_is_total_says_what_the_rules_say_and_tells_no_secret(
    check: Check, headers: Headers, body: bytes | None, peer: str | None, enforce: bool
) -> None:
    """Whatever came: no exception, the verdict of `verify`, and no key in any word."""
    subject = source(check, enforce=enforce)
    everyone = (subject, OTHER, source(BasicCheck("shop", (Secret(KEY), Secret(OLD))), "keeper"))
    trusted = (ip_network("10.0.0.0/8"),)
    found = judged(subject, *headers, body=body, peer=peer, trusted_proxies=trusted, sources=everyone)
    verdict = verify(ReceivedRequest(headers, body or b"", ""), check, NOW)
    is_proven = isinstance(verdict, VerifiedRequest) and verdict.proven
    assert found.proven is (is_proven and found.is_accepted)
    assert found.is_accepted or not found.proven
    if found.is_accepted:
        assert isinstance(verdict, VerifiedRequest) or not enforce
    told = repr(found)
    for secret in CANARIES:
        forms = {secret, base64.b64encode(secret), base64.b64encode(b"shop:" + secret), secret.hex().encode()}
        assert not any(form.decode() in told for form in forms)


def test_a_path_that_guards_a_source_is_no_word_of_it() -> None:
    """Where nothing else proves a request, the path is the secret."""
    unsigned = source(NoCheck(), path="/hooks/v1/a8f3k2l9x7q1m4n6b0")
    assert step(judged(unsigned), "path").said.startswith("/hooks/v1/*** is where to post")
