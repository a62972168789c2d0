"""Genuine requests of every scheme and provider, bent in every way: what is believed carries the whole right proof."""

import hmac
import re
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
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
    ReceivedRequest,
    Secret,
    StandardWebhooksCheck,
    VerifiedRequest,
)
from relay.providers import PROVIDERS
from relay.rules.signing import as_hmac, octets, sign, signed_fields, wire_text
from relay.rules.verification import LONGEST_ID, MOST_SIGNATURES, Refusal, prove_headers, verify
from tests.rules.test_verification import BODY, CHECKS, KEY, NOW
from tests.support.vectors import check_of

SECRETS = {"whsec_": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "": "a-sound-secret-of-ours-0123456789"}
OFFERED: dict[str, Check] = {
    **{f"{type(check).__name__}-{check.header}-{number}": check for number, check in enumerate(CHECKS)},
    **{
        name: check_of(provider, SECRETS[provider.secret_prefix])
        for name, provider in PROVIDERS.items()
        if not isinstance(provider.check, NoCheck)
    },
}
SIGNED = {name: check for name, check in OFFERED.items() if isinstance(check, HmacCheck | StandardWebhooksCheck)}


def believed(headers: Headers, check: Check, body: bytes = BODY, now: datetime = NOW) -> bool:
    """Whether a request is; the look at its head alone never refuses what the whole look believes."""
    request = ReceivedRequest(headers=headers, body=body, remote="192.0.2.7")
    verdict = verify(request, check, now)
    early = prove_headers(headers, check)
    assert isinstance(verdict, Refusal | VerifiedRequest)
    assert early is None or early == verdict
    return isinstance(verdict, VerifiedRequest) and verdict.proven


def values(headers: Headers, name: str) -> list[bytes]:
    return [octets(value) for key, value in headers if key.lower() == name.lower()]


def carries_it(headers: Headers, check: Check, body: bytes, now: datetime) -> bool:
    """What a simpler reading demands of a request that is to be believed: the whole key, or the whole digest of what
    was really sent, as an entry of its own in one header, and where a time is signed, one of now."""
    if isinstance(check, ApiKeyCheck):
        return values(headers, check.header) == [check.secrets[0].value]
    if isinstance(check, BearerCheck | BasicCheck):
        pair = b64encode(octets(getattr(check, "username", "")) + b":" + check.secrets[0].value)
        wanted = check.secrets[0].value if isinstance(check, BearerCheck) else pair
        lines = values(headers, "Authorization")
        return len(lines) == 1 and lines[0].split(b" ", 1)[-1].lstrip(b" ") == wanted
    assert isinstance(check, HmacCheck | StandardWebhooksCheck)
    scheme = check if isinstance(check, HmacCheck) else as_hmac(check)
    lines = values(headers, scheme.header)
    apart = b"\r" if scheme.listing is None else scheme.listing.separator.encode()
    entries = [entry.strip(b" \t") for line in lines for entry in line.split(apart)]
    fields = signed_fields(scheme.signed)
    stamps = values(headers, scheme.timestamp_header or "") or [
        entry.removeprefix(b"t=") for entry in entries if entry.startswith(b"t=")
    ]
    ids = values(headers, scheme.id_header or "")
    message = scheme.signed.encode()
    for name, found in (("id", ids), ("timestamp", stamps)):
        if name in fields:
            if len(found) != 1:
                return False
            message = message.replace(b"{%b}" % name.encode(), found[0])
    message = message.replace(b"{body}", body) if b"{body}" in message else message
    digest = hmac.new(scheme.secrets[0].value, message, scheme.algorithm)
    proof = digest.hexdigest().encode() if scheme.encoding == "hex" else b64encode(digest.digest())
    bare = [entry.removeprefix(octets(scheme.prefix)) for entry in entries]
    bare = [entry.lower() for entry in bare] if scheme.encoding == "hex" else bare
    is_timely = "timestamp" not in fields or abs(int(stamps[0]) - int(now.timestamp())) <= scheme.tolerance.seconds
    return proof in bare and is_timely


Bend = Callable[[str], str]
BENDS: dict[str, Bend] = {
    "cut by one": lambda value: value[:-1],
    "cut to ten": lambda value: value[:10],
    "cut at its head": lambda value: value[1:],
    "emptied": lambda _: "",
    "doubled": lambda value: value * 2,
    "doubled as a list": lambda value: f"{value},{value}",
    "doubled with a space": lambda value: f"{value} {value}",
    "longer": lambda value: value + "0",
    "turned": lambda value: value[::-1],
    "other case": str.swapcase,
    "white space before": lambda value: " " + value,
    "white space behind": lambda value: value + " ",
    "a tab within": lambda value: value[:12] + "\t" + value[12:],
    "a line break behind": lambda value: value + "\n",
    "NUL behind": lambda value: value + "\x00",
    "quoted": lambda value: f'"{value}"',
    "no padding": lambda value: value.rstrip("="),
    "more padding": lambda value: value + "=",
    "URL alphabet": lambda value: value.replace("+", "-").replace("/", "_"),
    "percent-encoded": lambda value: value.replace("=", "%3D").replace("/", "%2F"),
    "full width": lambda value: "".join(chr(ord(one) + 0xFEE0) if one.isdigit() else one for one in value),
    "an accent behind": lambda value: value + "\u0301",
    "a surrogate behind": lambda value: value + "\udcff",
    "a surrogate that no wire makes": lambda value: value + "\ud800",
    "another version": lambda value: value.replace("v1", "v2").replace("v0=", "v1=").replace("sha256=", "sha1="),
    "no prefix": lambda value: value.rpartition("=" if "=" in value.rstrip("=") else ",")[2],
    "upper-case prefix": lambda value: value[:4].upper() + value[4:],
    "other trailing bits": lambda value: value[:-2] + ("B=" if value[-2:] != "B=" else "C="),
    "ten thousand of them": lambda value: ",".join([value] * 10_000),
    "ten thousand of others": lambda value: " ".join(["v1," + "A" * 43 + "="] * 10_000),
    "nine before it": lambda value: ("v1=" + "0" * 64 + ",") * 9 + value,
}
HARMLESS = {
    "doubled",  # of a list, whose last entry is then whole again
    "other case",  # hex digits have two
    "white space before",  # what no header can bring: a parser takes it off
    "white space behind",
    "doubled as a list",
    "doubled with a space",
    "no prefix",
    "no padding",
    "percent-encoded",
    "URL alphabet",
    "another version",
    "upper-case prefix",
}
"""These leave a proof whole for some scheme, as the simpler reading says; no other bend does for any."""


@pytest.mark.row("T1", "T2", "T3", "T4", "T5", "H5", "H6", "H7", "H11", "B12", "B21")
@pytest.mark.parametrize("name", OFFERED)
def test_no_bent_proof_is_believed(name: str) -> None:
    """Cut, doubled, spelled otherwise, padded, quoted or one of ten thousand: it proves nothing, unless all of it still
    stands there as it should."""
    check = OFFERED[name]
    headers = sign(check, BODY, now=NOW, message_id="msg_1")
    assert believed(headers, check)
    for bend, bent in BENDS.items():
        for number, (key, value) in enumerate(headers):
            changed = (*headers[:number], (key, bent(value)), *headers[number + 1 :])
            if changed == headers:
                continue
            if believed(changed, check):
                assert bend in HARMLESS, (bend, key)
                assert carries_it(changed, check, BODY, NOW), (bend, key)


@pytest.mark.row("T1", "T8", "B4", "B20", "B61")
@pytest.mark.parametrize("name", SIGNED)
def test_no_changed_byte_is_believed(name: str) -> None:
    """Each byte of the body, of the proof, of the time and of the id, changed in one bit: never believed, unless only
    the case of a hex digit is another or it stands in an entry that proves nothing."""
    check = SIGNED[name]
    headers = sign(check, BODY, now=NOW, message_id="msg_1")
    for place in range(len(BODY)):
        for bit in range(8):
            other = BODY[:place] + bytes([BODY[place] ^ (1 << bit)]) + BODY[place + 1 :]
            assert not believed(headers, check, other)
    for number, (key, value) in enumerate(headers):
        raw = octets(value)
        for place in range(len(raw)):
            for bit in range(8):
                bent = raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :]
                changed = (*headers[:number], (key, wire_text(bent)), *headers[number + 1 :])
                assert not believed(changed, check) or bent.lower() == raw.lower(), (key, bent)


STAMPS = ["1e9", "+{}", "-{}", " {}", "{} ", "{}.0", "{}.5", "0x5", "0{}", "00000{}", "{}000", "{}000000", "-1", ""]
STAMPS += ["0", "1_0", "{}\n", "{}\x00", "18446744073709551616", "9" * 400, "NaN", "inf", "2147483648", "4294967296"]
STAMPS += ["{},{}", "{};", '"{}"', "{}L", "{}s", "1970-01-01T00:00:00Z", "null", "\ud800", "\udcff{}"]
STAMPS += ["\u0663", "\u0967\u096d", "\uff19", "\u00b2"]


@pytest.mark.row("T6", "H12", "H13")
@pytest.mark.parametrize(
    "check",
    [
        *(check for check in SIGNED.values() if isinstance(check, StandardWebhooksCheck)),
        *(one for one in SIGNED.values() if isinstance(one, HmacCheck) and "timestamp" in one.signed),
    ],
    ids=lambda check: check.header,
)
def test_an_odd_time_proves_nothing_even_where_it_is_signed(check: HmacCheck | StandardWebhooksCheck) -> None:
    """Only whole seconds in ASCII digits, ten at most, are one: whoever has the key and writes it otherwise is refused
    as well, before anything is made of it."""
    scheme = check if isinstance(check, HmacCheck) else as_hmac(check)
    now = str(int(NOW.timestamp()))
    for stamp in [text.format(now, now) for text in STAMPS]:
        if re.fullmatch(r"[0-9]{1,10}", stamp) and abs(int(stamp) - int(now)) <= 300:
            continue
        message = scheme.signed.replace("{timestamp}", "\0").replace("{id}", "msg_1").encode()
        message = message.replace(b"\0", octets(stamp)).replace(b"{body}", BODY)
        digest = hmac.new(scheme.secrets[0].value, message, scheme.algorithm)
        proof = scheme.prefix + (
            digest.hexdigest() if scheme.encoding == "hex" else b64encode(digest.digest()).decode()
        )
        mark = scheme.listing.timestamp_prefix if scheme.listing is not None else ""
        headers: Headers = ((scheme.header, f"{mark}{stamp},{proof}" if mark else proof),)
        headers += ((scheme.timestamp_header or "-", stamp),) if not mark else ()
        headers += ((scheme.id_header, "msg_1"),) if scheme.id_header else ()
        assert not believed(headers, check), stamp


PIECE = st.one_of(
    st.sampled_from(
        ["v1,", "v1=", "t=", "sha256=", ",", " ", "=", "==", "\t", "\x00", "\udcff", "v0=", "Bearer ", "1", "٣"]
    ),
    st.text(st.characters(categories=None), max_size=4),
)
STEPS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.floats(0, 1), PIECE), max_size=4)


def bent_headers(headers: Headers, steps: list[tuple[int, int, float, str]]) -> Headers:
    """Headers after some steps that each cut, add, double, drop, rename or reorder something."""
    pairs = list(headers)
    for kind, number, share, piece in steps:
        if not pairs:
            break
        at = number % len(pairs)
        key, value = pairs[at]
        place = int(share * len(value))
        match kind:
            case 0:
                pairs[at] = (key, value[:place] + piece + value[place:])
            case 1:
                pairs[at] = (key, value[:place])
            case 2:
                pairs[at] = (key, value[:place] + value[place + 1 :])
            case 3:
                pairs.append((key.upper(), value))
            case 4:
                pairs.append((key, piece))
            case 5:
                pairs.pop(at)
            case 6:
                pairs[at] = (key, f"{value},{piece}{value}")
            case _:
                pairs.reverse()
    return tuple(pairs)


@pytest.mark.row("T1", "T2", "T4", "B12", "B21")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(OFFERED)), steps=STEPS, body=st.sampled_from([BODY, BODY + b" ", b""]))
def test_what_is_believed_carries_the_whole_proof(
    name: str, steps: list[tuple[int, int, float, str]], body: bytes
) -> None:
    """However a genuine request was bent, it becomes a verdict, and a good one only where a simpler reading finds all
    that proves it."""
    check = OFFERED[name]
    headers = bent_headers(sign(check, BODY, now=NOW, message_id="msg_1"), steps)
    if believed(headers, check, body):
        assert carries_it(headers, check, body, NOW)


WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.row("H10", "H14", "T2", "T6")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(steps=STEPS, age=st.integers(-400, 400), message_id=st.text(st.characters(categories=None), max_size=8))
@example(steps=[], age=0, message_id="msg_1")
@example(steps=[], age=0, message_id="a.b")
def test_nothing_is_believed_that_the_official_library_refuses(
    steps: list[tuple[int, int, float, str]], age: int, message_id: str
) -> None:
    """Whatever is made of a request of Standard Webhooks: where we say yes, so does it."""
    now = datetime.fromtimestamp(int(time.time()), UTC)
    check = check_of(PROVIDERS["standard_webhooks"], WHSEC)
    genuine = sign(check, BODY, now=now - timedelta(seconds=age), message_id=message_id)
    headers = bent_headers(genuine, steps)
    if not believed(headers, check, now=now):
        assert steps or abs(age) > 300 or not message_id or "." in message_id or not message_id.isprintable()
        return
    given_ = {key.lower(): value for key, value in headers}
    assert abs(age) <= 300 or steps
    assert "." not in given_["webhook-id"]
    if all(value.isascii() for value in given_.values()) and abs(age) < 295:  # it reads the clock, and ASCII, itself
        assert Webhook(WHSEC).verify(BODY, given_) is not None


@pytest.mark.row("T4", "H11")
def test_eight_proofs_are_looked_at_and_a_ninth_is_too_many() -> None:
    """Wherever the right one stands in the list."""
    for name in ("standard_webhooks", "stripe", "mollie"):
        check = OFFERED[name]
        assert isinstance(check, HmacCheck | StandardWebhooksCheck)
        scheme = check if isinstance(check, HmacCheck) else as_hmac(check)
        assert scheme.listing is not None
        *others, (key, value) = sign(check, BODY, now=NOW, message_id="msg_1")
        apart, wrong = scheme.listing.separator, scheme.prefix + "0" * 64
        room = MOST_SIGNATURES - value.count(apart) - 1
        for before in range(room + 1):
            listed = apart.join([*[wrong] * before, value, *[wrong] * (room - before)])
            assert believed((*others, (key, listed)), check)
        assert not believed((*others, (key, apart.join([value, *[wrong] * (room + 1)]))), check)


@pytest.mark.row("H14")
def test_a_long_id_is_refused_by_a_character() -> None:
    """So is one of four thousand, whoever signed it."""
    check = OFFERED["standard_webhooks"]
    for length, is_taken in ((LONGEST_ID, True), (LONGEST_ID + 1, False), (4096, False)):
        assert believed(sign(check, BODY, now=NOW, message_id="m" * length), check) is is_taken


@pytest.mark.row("H16", "B50", "T3")
@pytest.mark.parametrize("name", OFFERED)
def test_of_keys_that_change_twice_only_those_of_today_are_good(name: str) -> None:
    """The first is out as soon as it is taken out, and comes in at any place; an empty or a cut key is never one."""
    check = OFFERED[name]
    assert not isinstance(check, NoCheck)
    keys = [KEY, Secret(b"the-second-secret-of-ours"), Secret(b"the-third-secret-of-ours")]
    signed = [sign(replace(check, secrets=(key,)), BODY, now=NOW, message_id="msg_1") for key in keys]
    for today in ([0], [1, 0], [1], [2, 1], [2], [1, 2]):
        asked = replace(check, secrets=tuple(keys[number] for number in today))
        assert [believed(headers, asked) for headers in signed] == [number in today for number in range(3)]
    for hollow in (b"", KEY.value[:-1], KEY.value[:1], KEY.value + b"0"):
        assert not believed(signed[0], replace(check, secrets=(Secret(hollow),)))
