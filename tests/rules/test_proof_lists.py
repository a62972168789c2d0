"""Proofs that stand in a list: Stripe's, with the time beside them, and Mollie's, in lines of their own."""

import hmac
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import HmacCheck, ProofList, ReceivedRequest, Secret, VerifiedRequest
from relay.providers import PROVIDERS
from relay.rules.signing import sign
from relay.rules.verification import Refusal, prove_headers, verify

NOW = datetime(2026, 9, 20, 10, 15, 31, 400_000, UTC)
STAMP = int(NOW.timestamp())
BODY = b'{"id": "evt_1"}'
KEY, OLD = Secret(b"whsec_canary_0123456789"), Secret(b"whsec_before_9876543210")


def check_of(name: str) -> HmacCheck:
    check = PROVIDERS[name].check
    assert isinstance(check, HmacCheck)
    return replace(check, secrets=(KEY,))


STRIPE, MOLLIE = check_of("stripe"), check_of("mollie")


def digest(message: bytes, key: Secret = KEY) -> str:
    return hmac.new(key.value, message, "sha256").hexdigest()


def v1(stamp: int | str = STAMP, key: Secret = KEY) -> str:
    return "v1=" + digest(f"{stamp}.".encode() + BODY, key)


def outcome(check: HmacCheck, *values: str, body: bytes = BODY) -> str:
    """`proven`, or the reason of the refusal."""
    headers = tuple((check.header, value) for value in values)
    found = verify(ReceivedRequest(headers, body, "192.0.2.1"), check, NOW)
    early = prove_headers(headers, check)
    assert early is None or early == found
    return "proven" if isinstance(found, VerifiedRequest) else found.reason


STALE = STAMP - 301
GOOD = f"t={STAMP},{v1()}"
WRONG = v1(key=OLD)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (GOOD, "proven"),
        (f"{v1()},t={STAMP}", "proven"),
        (f"t={STAMP},{WRONG},{v1()}", "proven"),
        (f"t={STAMP},{v1()},{WRONG}", "proven"),
        (f"t={STAMP},{v1()},v0={digest(BODY)}", "proven"),
        (f"t={STAMP},v2=whatever,{v1()}", "proven"),
        (f"t={STAMP},{v1().upper().replace('V', 'v', 1)}", "proven"),
        (f"t={STAMP - 300},{v1(STAMP - 300)}", "proven"),
        (f"t={STAMP + 300},{v1(STAMP + 300)}", "proven"),
        (f"t={STALE},{v1(STALE)}", "stale_timestamp"),
        (f"t={STAMP + 301},{v1(STAMP + 301)}", "stale_timestamp"),
        (f"t={STAMP},{v1(STALE)}", "bad_signature"),
        (f"t={STAMP},{WRONG}", "bad_signature"),
        (f"t={STAMP},v0={v1()[3:]}", "bad_signature"),
        (f"t={STAMP},{v1()[3:]}", "bad_signature"),
        (f"t={STAMP},{v1()[:-1]}", "bad_signature"),
        (f"t={STAMP},{v1()}0", "bad_signature"),
        (f"t={STAMP},v1={v1()}", "bad_signature"),
        (f"t={STAMP}, {v1()}", "bad_signature"),
        (f"t={STAMP};{v1()}", "bad_timestamp"),
        (f"t={STAMP}", "bad_signature"),
        (v1(), "bad_timestamp"),
        (f"t=,{v1('')}", "bad_timestamp"),
        (f"t=-1,{v1(-1)}", "bad_timestamp"),
        (f"t=+{STAMP},{v1(f'+{STAMP}')}", "bad_timestamp"),
        (f"t={STAMP}000,{v1(f'{STAMP}000')}", "bad_timestamp"),
        (f"t={STAMP}.0,{v1(f'{STAMP}.0')}", "bad_timestamp"),
        (f"t=९,{v1()}", "bad_timestamp"),
        (f"T={STAMP},{v1()}", "bad_timestamp"),
        (f" t={STAMP},{v1()}", "bad_timestamp"),
        (f"t={STAMP},t={STAMP},{v1()}", "ambiguous_signature"),
        (f"t={STALE},t={STAMP},{v1()}", "ambiguous_signature"),
        (",".join([f"t={STAMP}", *[WRONG] * 6, v1()]), "proven"),
        (",".join([f"t={STAMP}", *[WRONG] * 7, v1()]), "ambiguous_signature"),
        ("," * 5000, "ambiguous_signature"),
        ("", "missing_signature"),
        (",", "bad_timestamp"),
    ],
)
def test_stripes_list_proves_only_with_one_time_and_one_right_digest(value: str, said: str) -> None:
    """Eight entries at most, exactly one time, whole digests behind `v1=`, nothing decoded or forgiven."""
    assert outcome(STRIPE, value) == said


def test_stripes_header_comes_once() -> None:
    """A second line is somebody else's, whichever of them is right."""
    assert outcome(STRIPE, GOOD, GOOD) == "ambiguous_signature"
    assert outcome(STRIPE, GOOD, "") == "ambiguous_signature"
    assert outcome(STRIPE) == "missing_signature"


def test_the_secret_of_stripe_is_its_text() -> None:
    """`whsec_` and all: what is behind it is not decoded."""
    bare = replace(STRIPE, secrets=(Secret(KEY.value.removeprefix(b"whsec_")),))
    assert outcome(bare, GOOD) == "bad_signature"


def test_a_time_that_is_not_signed_is_not_asked_for() -> None:
    """Where the YAML says that the body alone is signed, the entry has no say."""
    check = replace(STRIPE, signed="{body}")
    assert outcome(check, "v1=" + digest(BODY)) == "proven"
    assert outcome(check, f"t=never,t=ever,v1={digest(BODY)}") == "proven"


MINE, THEIRS = digest(BODY), digest(BODY, OLD)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([f"sha256={MINE}"], "proven"),
        ([MINE], "proven"),
        ([f"sha256={THEIRS}", f"sha256={MINE}"], "proven"),
        ([f"sha256={MINE}", f"sha256={THEIRS}"], "proven"),
        ([f"sha256={THEIRS}, sha256={MINE}"], "proven"),
        ([f"sha256={THEIRS},sha256={MINE}"], "proven"),
        (["", f"sha256={MINE}"], "proven"),
        ([f"sha256={THEIRS}"] * 7 + [MINE], "proven"),
        ([f"sha256={THEIRS}"] * 8 + [MINE], "ambiguous_signature"),
        ([f"sha256={THEIRS}," * 4 + THEIRS] * 2, "ambiguous_signature"),
        ([f"sha256={THEIRS}"] * 2, "bad_signature"),
        ([f"sha512={MINE}"], "bad_signature"),
        ([f"sha256={MINE[:-1]}", MINE[-1:]], "bad_signature"),
        ([f"sha256={MINE} sha256={MINE}"], "bad_signature"),
        ([""], "missing_signature"),
        (["", ""], "ambiguous_signature"),
        ([], "missing_signature"),
    ],
)
def test_mollies_two_headers_are_one_list(values: list[str], said: str) -> None:
    """While its secret changes there is one for each; a proxy may have made one line of them."""
    assert outcome(MOLLIE, *values) == said


@pytest.mark.parametrize("check", [STRIPE, MOLLIE, replace(STRIPE, listing=ProofList(" ", timestamp_prefix="at:"))])
def test_what_is_signed_here_is_believed_here(check: HmacCheck) -> None:
    """With the first of the secrets, as the sender would write it."""
    check = replace(check, secrets=(KEY, OLD))
    headers = sign(check, BODY, now=NOW, message_id="m")
    assert len(headers) == 1
    found = verify(ReceivedRequest(headers, BODY, "192.0.2.1"), check, NOW)
    assert isinstance(found, VerifiedRequest)
    assert found.key_index == 0
    assert isinstance(verify(ReceivedRequest(headers, BODY + b" ", "192.0.2.1"), check, NOW), Refusal)


PART = st.text(max_size=20) | st.sampled_from([f"t={STAMP}", v1(), WRONG, "t=", "v1=", f"sha256={THEIRS}", "\ud800"])


@pytest.mark.parametrize("check", [STRIPE, MOLLIE])
@given(lines=st.lists(st.lists(PART, max_size=12).map(",".join), max_size=4))
def test_no_list_makes_the_check_raise(check: HmacCheck, lines: list[str]) -> None:
    """Total: a stranger's header is a refusal with a reason, and none is believed that has no right digest in it."""
    said = outcome(check, *lines, body=BODY if check is STRIPE else b"another")
    assert said in {"proven", "missing_signature", "ambiguous_signature", "bad_timestamp", "bad_signature"}
    if said == "proven":
        assert check is STRIPE
        assert v1() in lines[0].split(",")
        assert f"t={STAMP}" in lines[0].split(",")
