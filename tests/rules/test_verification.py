"""Who is believed: every way to prove a request, and every way to fail at it."""

import base64
import hmac
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from relay.model import (
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    Check,
    Headers,
    HmacCheck,
    NoCheck,
    ProofList,
    ReceivedRequest,
    Secret,
    StandardWebhooksCheck,
    VerifiedRequest,
)
from relay.rules.signing import sign
from relay.rules.verification import Refusal, claimed, prove_headers, unproven, verify

NOW = datetime(2026, 9, 20, 10, 15, 31, 400_000, UTC)
STAMP = int(NOW.timestamp())
BODY = b'{"a": 1}'
KEY = Secret(b"a-sound-secret-of-ours")
OLD = Secret(b"the-secret-before-this")

PLAIN = HmacCheck(header="X-Signature", secrets=(KEY,))
PREFIXED = replace(PLAIN, prefix="sha256=")
STAMPED = HmacCheck(
    header="X-Sig",
    signed="v0:{timestamp}:{body}",
    prefix="v0=",
    timestamp_header="X-Time",
    secrets=(KEY,),
)
STANDARD = StandardWebhooksCheck(secrets=(KEY,))
Keyed = ApiKeyCheck | BearerCheck | BasicCheck | HmacCheck | StandardWebhooksCheck

CHECKS: tuple[Keyed, ...] = (
    ApiKeyCheck("x-api-key", (KEY,)),
    BearerCheck((KEY,)),
    BasicCheck("shop", (KEY,)),
    PLAIN,
    PREFIXED,
    replace(PLAIN, algorithm="sha512", encoding="base64"),
    replace(PLAIN, algorithm="sha1", encoding="base64"),
    STAMPED,
    STANDARD,
    StandardWebhooksCheck(secrets=(KEY,), header="svix-signature"),
    HmacCheck(header="S", signed="{id}.{body}", id_header="I", encoding="base64", secrets=(KEY,)),
    replace(PREFIXED, signed="{timestamp}.{body}", listing=ProofList(",", timestamp_prefix="t=")),
)


def request(*headers: tuple[str, str], body: bytes = BODY) -> ReceivedRequest:
    return ReceivedRequest(headers=headers, body=body, remote="192.0.2.7")


def reason(headers: Headers, check: Check, *, body: bytes = BODY, now: datetime = NOW) -> str:
    verdict = verify(request(*headers, body=body), check, now)
    return verdict.reason if isinstance(verdict, Refusal) else f"key {verdict.key_index}"


def early(headers: Headers, check: Check) -> str | None:
    refusal = prove_headers(headers, check)
    return None if refusal is None else refusal.reason


def hexed(body: bytes = BODY, key: Secret = KEY, algorithm: str = "sha256") -> str:
    return hmac.new(key.value, body, algorithm).hexdigest()


def resigned(timestamp: str) -> Headers:
    return (("X-Time", timestamp), ("X-Sig", "v0=" + hexed(b"v0:" + timestamp.encode() + b":" + BODY)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{type(check).__name__}-{check.header}")
def test_what_a_provider_signs_is_believed_and_names_its_key(check: Keyed) -> None:
    """A request signed as its check says is proven, before and after the body is read."""
    headers = sign(check, BODY, now=NOW, message_id="msg_1")
    assert early(headers, check) is None
    verdict = verify(request(*headers), check, NOW)
    assert isinstance(verdict, VerifiedRequest)
    assert (verdict.proven, verdict.key_index, verdict.body) == (True, 0, BODY)


@pytest.mark.row("T1", "H5")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{type(check).__name__}-{check.header}")
def test_another_key_or_another_body_is_never_believed(check: Keyed) -> None:
    """Neither a stranger's key nor a changed body passes, whatever the scheme."""
    stranger = replace(check, secrets=(Secret(b"somebody-elses-secret"),))
    assert reason(sign(stranger, BODY, now=NOW, message_id="msg_1"), check) == "bad_signature"
    if not isinstance(check, ApiKeyCheck | BearerCheck | BasicCheck):
        signed = sign(check, BODY, now=NOW, message_id="msg_1")
        assert reason(signed, check, body=BODY + b" ") == "bad_signature"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{type(check).__name__}-{check.header}")
def test_what_was_read_of_the_headers_already_changes_no_verdict(check: Keyed) -> None:
    """With what the headers claim at hand, a genuine request is believed and a changed body is not."""
    genuine = request(*sign(check, BODY, now=NOW, message_id="msg_1"))
    claim = claimed(genuine.headers, check)
    assert not isinstance(claim, Refusal)
    assert verify(genuine, check, NOW, claim) == verify(genuine, check, NOW)
    changed = replace(genuine, body=BODY + b" ")
    assert verify(changed, check, NOW, claim) == verify(changed, check, NOW)


@pytest.mark.parametrize("check", [STANDARD, PLAIN, PREFIXED], ids=lambda check: check.header)
def test_what_was_read_of_other_headers_or_by_another_check_proves_nothing(check: HmacCheck) -> None:
    """A genuine request's claim lends itself to no request with other headers, and to no other check."""
    genuine = request(*sign(check, BODY, now=NOW, message_id="msg_1"))
    claim = claimed(genuine.headers, check)
    assert isinstance(verify(request((check.header, "forged")), check, NOW, claim), Refusal)
    elsewhere = ApiKeyCheck("X-Else", (KEY,))
    assert isinstance(verify(genuine, elsewhere, NOW, claim), Refusal)
    stranger = replace(check, secrets=(Secret(b"somebody-elses-secret"),))
    mine = request(*sign(stranger, BODY, now=NOW, message_id="msg_1"))
    by_stranger = claimed(mine.headers, stranger)
    assert isinstance(verify(mine, check, NOW, by_stranger), Refusal)


@pytest.mark.row("H4", "T3")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{type(check).__name__}-{check.header}")
def test_a_request_without_proof_is_refused_before_its_body(check: Keyed) -> None:
    """A missing or empty proof header is missing_signature, never an empty signature."""
    assert reason((), check) == early((), check) == "missing_signature"
    empty = ((check.header, ""),)
    assert reason(empty, check) == early(empty, check) == "missing_signature"


@pytest.mark.row("T4")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{type(check).__name__}-{check.header}")
def test_two_proofs_are_ambiguous_also_when_they_are_equal(check: Keyed) -> None:
    """More than one line of the proof header is refused before the body, whichever of them is right."""
    signed = sign(check, BODY, now=NOW, message_id="msg_1")
    twice = (*signed, (signed[-1][0].upper(), signed[-1][1]))
    assert reason(twice, check) == early(twice, check) == "ambiguous_signature"


@pytest.mark.row("T3")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{type(check).__name__}-{check.header}")
def test_an_empty_secret_proves_nothing(check: Keyed) -> None:
    """A request signed with an empty key is refused, and so is everything when there is no key."""
    hollow = replace(check, secrets=(Secret(b""),))
    names = {"x-api-key": "", "Authorization": "Bearer "}
    forged = sign(replace(check, secrets=(Secret(b"\x00"),)), BODY, now=NOW, message_id="msg_1")
    assert reason(forged, hollow) == "bad_signature"
    assert reason(forged, replace(check, secrets=())) == "bad_signature"
    for name, value in names.items():
        assert reason(((name, value),), hollow) in {"bad_signature", "missing_signature"}
    basic = base64.b64encode(b"shop:").decode()
    assert reason((("Authorization", f"Basic {basic}"),), BasicCheck("shop", (Secret(b""),))) == "bad_signature"


@pytest.mark.row("T2", "H5", "H6", "B12")
@pytest.mark.parametrize(
    "value",
    [
        "sha256=" + hexed()[:10],
        "sha256=" + hexed()[:-1],
        "sha256=",
        "sha256=" + hexed() * 2,
        "sha1=" + hexed(algorithm="sha1"),
        "sha1=" + hexed(),
        "SHA256=" + hexed(),
        hexed(),
        "sha256= " + hexed(),
        "sha256=" + hexed() + "\n",
        "sha256=" + hexed()[:-1] + "٣",
        "sha256=" + hexed() + "," + "sha256=" + hexed(),
        "sha256=sha256=" + hexed(),
        "\ud800\udcff",
    ],
)
def test_a_proof_that_is_not_whole_and_exact_is_refused(value: str) -> None:
    """Only the prefix and the full digest of the configured algorithm count; a part of them never does."""
    assert reason((("X-Signature", value),), PREFIXED) == early((("X-Signature", value),), PREFIXED) == "bad_signature"


@pytest.mark.row("T5")
def test_a_weaker_algorithm_cannot_be_chosen_by_the_sender() -> None:
    """A right sha1 digest does not pass a check for sha256."""
    assert reason((("X-Signature", hexed(algorithm="sha1")),), PLAIN) == "bad_signature"


@pytest.mark.row("H5")
def test_upper_case_hex_is_the_same_digest() -> None:
    """The case of hex digits is not part of the proof."""
    assert reason((("X-SIGNATURE", "sha256=" + hexed().upper()),), PREFIXED) == "key 0"


def test_an_optional_prefix_may_be_there_or_not() -> None:
    """With prefix_optional both spellings pass, and another prefix does not."""
    check = replace(PREFIXED, prefix_optional=True)
    assert reason((("X-Signature", hexed()),), check) == "key 0"
    assert reason((("X-Signature", "sha256=" + hexed()),), check) == "key 0"
    assert reason((("X-Signature", "sha1=" + hexed()),), check) == "bad_signature"


@pytest.mark.row("H7")
def test_base64_has_one_spelling() -> None:
    """Whitespace, the URL-safe alphabet, missing padding and stray bits are refused."""
    check = replace(PLAIN, encoding="base64")
    # a body is searched whose digest uses both characters that the alphabets spell differently
    body = next(
        b"%d" % n
        for n in range(10_000)
        if {43, 47} <= set(base64.b64encode(hmac.digest(KEY.value, b"%d" % n, "sha256")))
    )
    right = base64.b64encode(hmac.digest(KEY.value, body, "sha256")).decode()
    stray = right[:-2] + chr(ord(right[-2]) + 1) + "="
    assert reason((("X-Signature", right),), check, body=body) == "key 0"
    urlsafe = right.replace("+", "-").replace("/", "_")
    for wrong in (right[:-1], right + "\n", " " + right, right[:9] + " " + right[9:], urlsafe, right + "=", stray):
        assert reason((("X-Signature", wrong),), check, body=body) == "bad_signature"


@pytest.mark.row("H16", "T65")
def test_while_rotating_both_keys_pass_and_the_verdict_says_which() -> None:
    """The old key passes as key 1 until it is removed, then it does not."""
    for check in CHECKS:
        old = sign(replace(check, secrets=(OLD,)), BODY, now=NOW, message_id="msg_1")
        assert reason(old, replace(check, secrets=(KEY, OLD))) == "key 1"
        assert reason(old, replace(check, secrets=(KEY,))) == "bad_signature"


@pytest.mark.row("T6", "H13")
def test_five_minutes_either_way_are_in_time_and_a_second_more_is_not() -> None:
    """The tolerance includes its ends; beyond them a right signature is stale."""
    assert reason(resigned(str(STAMP - 300)), STAMPED) == "key 0"
    assert reason(resigned(str(STAMP + 300)), STAMPED) == "key 0"
    assert reason(resigned(str(STAMP - 301)), STAMPED) == "stale_timestamp"
    assert reason(resigned(str(STAMP + 301)), STAMPED) == "stale_timestamp"
    verdict = verify(request(*resigned(str(STAMP - 301))), STAMPED, NOW)
    assert isinstance(verdict, Refusal)
    assert verdict.detail == "skew_s=-301"


@pytest.mark.row("H12")
@pytest.mark.parametrize(
    "value", ["", "abc", "1e9", "-1", "+1", " 1", "٣", str(2**31), str(2**64), "1.5", str(STAMP * 1000), "0x10", "1_0"]
)
def test_a_timestamp_is_whole_seconds_in_ascii_digits(value: str) -> None:
    """Anything else is bad_timestamp, even when it was signed."""
    assert reason(resigned(value), STAMPED) == "bad_timestamp"


@pytest.mark.row("H12")
def test_a_missing_timestamp_is_refused_before_the_body() -> None:
    """Without the timestamp, or without a header to look in, nothing is proven."""
    bare = resigned(str(STAMP))[1:]
    assert reason(bare, STAMPED) == early(bare, STAMPED) == "bad_timestamp"
    assert reason(bare, replace(STAMPED, timestamp_header=None)) == "bad_timestamp"


@pytest.mark.row("T4")
def test_two_timestamps_or_ids_are_ambiguous() -> None:
    """What is signed must be one value."""
    stamped = resigned(str(STAMP))
    assert reason((*stamped, stamped[0]), STAMPED) == "ambiguous_signature"
    signed = sign(STANDARD, BODY, now=NOW, message_id="msg_1")
    assert reason((*signed, ("webhook-id", "msg_1")), STANDARD) == "ambiguous_signature"


@pytest.mark.row("H14")
@pytest.mark.parametrize("message_id", ["", "a.b", "a\r\nb", "a\x00", "\x85", "x" * 257, "x" * 4096])
def test_an_id_that_could_move_the_borders_of_what_is_signed_is_refused(message_id: str) -> None:
    """An empty, dotted, long or controlling id is bad_id, even when it was signed."""
    signed = sign(STANDARD, BODY, now=NOW, message_id=message_id)
    assert reason(signed, STANDARD) == early(signed, STANDARD) == "bad_id"
    assert reason(sign(STANDARD, BODY, now=NOW, message_id="x" * 256), STANDARD) == "key 0"


@pytest.mark.row("H14")
def test_a_missing_id_is_refused() -> None:
    """A scheme that signs an id needs one."""
    signed = sign(STANDARD, BODY, now=NOW, message_id="msg_1")
    assert reason(signed[1:], STANDARD) == "bad_id"
    assert reason((("S", "x"),), HmacCheck(header="S", signed="{id}", secrets=(KEY,))) == "bad_id"


@pytest.mark.row("H10")
def test_a_standard_webhooks_list_needs_one_right_entry_of_version_1() -> None:
    """Other versions, wrong and broken entries are skipped."""
    stamp, ident, proof = (dict(sign(STANDARD, BODY, now=NOW, message_id="m"))[f"webhook-{n}"] for n in NAMES)
    wrong = "v1," + base64.b64encode(bytes(32)).decode()

    def listed(value: str) -> str:
        headers = (("webhook-timestamp", stamp), ("webhook-id", ident), ("webhook-signature", value))
        return reason(headers, STANDARD)

    assert listed(f"v1,bad {wrong} {proof} v1a,xyz") == "key 0"
    assert listed(f"{wrong} v1a,{proof[3:]}") == "bad_signature"
    assert listed("v1a,xyz v2,abc") == "bad_signature"
    assert listed(proof[3:]) == "bad_signature"
    assert listed(" ".join([wrong] * 7 + [proof])) == "key 0"
    assert listed(" ".join([wrong] * 8 + [proof])) == "ambiguous_signature"


NAMES = ("timestamp", "id", "signature")


@pytest.mark.row("H11", "T4")
def test_ten_thousand_signatures_cost_nothing() -> None:
    """A long list is refused without being looked at."""
    flood = (("webhook-signature", " ".join(["v1," + "A" * 43 + "="] * 10_000)),)
    began = perf_counter()
    assert early(flood, STANDARD) == "ambiguous_signature"
    assert perf_counter() - began < 0.005


def test_the_official_standard_webhooks_library_agrees() -> None:
    """What it signs we prove, and what we sign it proves."""
    oracle = Webhook(base64.b64encode(KEY.value).decode())
    now = datetime.now(UTC)
    body = b'{"type": "order.paid", "text": "caf\xc3\xa9"}'
    theirs = (
        ("Webhook-Id", "msg_1"),
        ("Webhook-Timestamp", str(int(now.timestamp()))),
        ("Webhook-Signature", oracle.sign("msg_1", now, body.decode())),
    )
    assert reason(theirs, STANDARD, body=body, now=now) == "key 0"
    two = StandardWebhooksCheck(secrets=(OLD, KEY))
    assert oracle.verify(body, dict(sign(two, body, now=now, message_id="msg_2")))


def test_the_vector_of_the_standard_webhooks_specification_holds() -> None:
    """The published example secret, id, timestamp and body give the published signature."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    check = StandardWebhooksCheck(secrets=(Secret(secret),))
    now = datetime.fromtimestamp(1614265330, UTC)
    headers = sign(check, b'{"test": 2432232314}', now=now, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek")
    assert ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=") in headers


def test_schemes_of_the_authorization_header_have_any_case_but_one_name() -> None:
    """`bearer` and `BASIC` pass; a key under another scheme does not."""
    bearer, basic = BearerCheck((KEY,)), BasicCheck("shop", (KEY,))
    key = KEY.value.decode()
    pair = base64.b64encode(b"shop:" + KEY.value).decode()
    assert reason((("authorization", f"bearer  {key}"),), bearer) == "key 0"
    assert reason((("authorization", f"Token {key}"),), bearer) == "bad_signature"
    assert reason((("authorization", key),), bearer) == "bad_signature"
    assert reason((("authorization", f"BASIC {pair}"),), basic) == "key 0"
    assert reason((("authorization", f"Basic {pair[:-1]}"),), basic) == "bad_signature"
    other = base64.b64encode(b"other:" + KEY.value).decode()
    assert reason((("authorization", f"Basic {other}"),), basic) == "bad_signature"


def test_a_body_that_looks_like_a_field_stays_a_body() -> None:
    """Values are put into the signed template once, never expanded again."""
    body = b"{id}{timestamp}{body}"
    headers = sign(STANDARD, body, now=NOW, message_id="msg_1")
    assert reason(headers, STANDARD, body=body) == "key 0"


def test_without_a_check_everything_passes_unproven() -> None:
    """Verify none lets a request through, and says that nothing was proven."""
    anything = request(("X", "y"))
    assert prove_headers(anything.headers, NoCheck()) is None
    verdict = verify(anything, NoCheck(), NOW)
    assert verdict == unproven(anything)
    assert isinstance(verdict, VerifiedRequest)
    assert (verdict.proven, verdict.key_index) == (False, None)


def test_nothing_is_signed_without_a_secret() -> None:
    """A check that proves nothing, or has no key, adds no headers."""
    assert sign(NoCheck(), BODY, now=NOW, message_id="x") == ()
    assert sign(PLAIN, BODY, now=NOW, message_id="x") != ()
    assert sign(replace(PLAIN, secrets=(Secret(b""),)), BODY, now=NOW, message_id="x") == ()


def test_a_refusal_and_a_secret_tell_nothing_that_was_sent() -> None:
    """Neither the sent value nor the key stands in a refusal or a repr."""
    verdict = verify(request(("X-Signature", "guessed-value")), PLAIN, NOW)
    assert "guessed" not in repr(verdict)
    assert "sound" not in repr(PLAIN)


ANY_TEXT = st.text(st.characters(categories=None), max_size=300)
NAMED = st.sampled_from(
    ["x-api-key", "authorization", "x-signature", "x-sig", "x-time", "s", "i"]
    + [f"{stem}-{name}" for stem in ("webhook", "svix") for name in NAMES]
)


@pytest.mark.row("B21", "T1")
@given(
    check=st.sampled_from([*CHECKS, NoCheck()]),
    headers=st.lists(st.tuples(NAMED | ANY_TEXT, ANY_TEXT | st.just(str(STAMP))), max_size=6),
    body=st.binary(max_size=50),
)
def test_whatever_is_sent_becomes_a_verdict_and_never_an_exception(
    check: Check, headers: list[tuple[str, str]], body: bytes
) -> None:
    """The verifier is total, believes no noise, and its early look never refuses what the whole look believes."""
    verdict = verify(request(*headers, body=body), check, NOW)
    if isinstance(check, NoCheck):
        assert isinstance(verdict, VerifiedRequest)
        return
    assert isinstance(verdict, Refusal)
    refusal = prove_headers(tuple(headers), check)
    assert refusal is None or refusal == verdict


@given(key=st.binary(min_size=1, max_size=80), body=st.binary(max_size=200), check=st.sampled_from(CHECKS))
def test_every_key_and_body_can_be_signed_and_proven(key: bytes, body: bytes, check: Keyed) -> None:
    """Signing and verifying are inverse, for keys and bodies of any bytes."""
    if isinstance(check, BearerCheck) and key.startswith(b" "):
        return
    check = replace(check, secrets=(Secret(key),))
    assert reason(sign(check, body, now=NOW, message_id="m"), check, body=body) == "key 0"
