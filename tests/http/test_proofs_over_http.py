"""Who may post: every scheme end to end, and every way to be turned away by it."""

import base64
import hmac
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.http.configs import SIGNED
from tests.http.gateway import OLD_SECRET, SECRET, Gateway, Start

BODY = b'{"type": "paid", "id": "e1"}'


def digest(body: bytes = BODY, key: bytes = SECRET, algorithm: str = "sha256") -> str:
    return hmac.new(key, body, algorithm).hexdigest()


def base64_digest(body: bytes = BODY, key: bytes = SECRET, algorithm: str = "sha256") -> str:
    return base64.b64encode(hmac.digest(key, body, algorithm)).decode()


def basic(user: str, password: bytes = SECRET) -> str:
    return "Basic " + base64.b64encode(user.encode() + b":" + password).decode()


def custom(verify: dict[str, Any] | str, **keys: Any) -> dict[str, Any]:
    """One source with this check."""
    secrets = {} if verify == "none" else {"secrets": ["${SECRET}"]}
    return {"partner": {"provider": "custom", "verify": verify, **secrets, **keys}}


def stamped(seconds: int | str, body: bytes = BODY, message_id: str | None = None) -> dict[str, str]:
    head = f"{message_id}." if message_id is not None else ""
    message = f"{head}{seconds}.".encode() + body
    ids = {} if message_id is None else {"X-Id": message_id}
    return {"X-Time": str(seconds), "X-Sig": digest(message), **ids}


STAMPED = {
    "scheme": "hmac",
    "header": "X-Sig",
    "algorithm": "sha256",
    "signed": "{timestamp}.{body}",
    "timestamp_header": "X-Time",
}
NAMED = STAMPED | {"signed": "{id}.{timestamp}.{body}", "id_header": "X-Id"}
HMAC = {"scheme": "hmac", "header": "X-Sig"}


@pytest.mark.parametrize(
    ("verify", "headers"),
    [
        pytest.param({"scheme": "api_key", "header": "X-Key"}, {"x-kEY": SECRET.decode()}, id="api_key"),
        pytest.param({"scheme": "bearer"}, {"Authorization": f"bearer {SECRET.decode()}"}, id="bearer"),
        pytest.param({"scheme": "basic", "username": "shop"}, {"Authorization": basic("shop")}, id="basic"),
        pytest.param(HMAC | {"algorithm": "sha256"}, {"X-Sig": digest()}, id="hex"),
        pytest.param(HMAC | {"algorithm": "sha256"}, {"X-Sig": digest().upper()}, id="upper-case-hex"),
        pytest.param(HMAC | {"algorithm": "sha256", "encoding": "base64"}, {"X-Sig": base64_digest()}, id="base64"),
        pytest.param(HMAC | {"algorithm": "sha512"}, {"X-Sig": digest(algorithm="sha512")}, id="sha512"),
        pytest.param(HMAC | {"algorithm": "sha1", "allow_weak": True}, {"X-Sig": digest(algorithm="sha1")}, id="sha1"),
        pytest.param(
            HMAC | {"algorithm": "sha512", "encoding": "base64", "prefix": "v1="},
            {"X-Sig": "v1=" + base64_digest(algorithm="sha512")},
            id="prefix",
        ),
    ],
)
@pytest.mark.row("H5", "T2", "T5")
async def test_every_scheme_lets_its_genuine_request_in(
    start: Start, verify: dict[str, Any], headers: dict[str, str]
) -> None:
    """A proof made by the scheme's own rule is believed, and the target sees no `relay-verified`."""
    relay = await start(custom(verify))
    answer = await relay.post("/hooks/partner", BODY, headers)
    assert (answer.status, relay.counted("partner")) == (200, {"accepted": 1})
    assert (await relay.target.next())["relay-verified"] is None


async def test_a_scheme_without_proof_lets_all_in_and_says_so(start: Start) -> None:
    """`verify: none` is accepted unproven: the target can see it."""
    relay = await start(custom("none"))
    assert (await relay.post("/hooks/partner", BODY)).status == 200
    assert (await relay.target.next())["relay-verified"] == "false"


@pytest.mark.parametrize("verify", [STAMPED, NAMED], ids=["timestamp", "id"])
async def test_a_signed_timestamp_and_id_are_believed(start: Start, verify: dict[str, Any]) -> None:
    """What the template names is what is signed."""
    relay = await start(custom(verify))
    message_id = "msg_1" if verify is NAMED else None
    headers = stamped(int(time.time()), message_id=message_id)
    assert (await relay.post("/hooks/partner", BODY, headers)).status == 200


@pytest.mark.parametrize(
    ("skew", "status"), [(-298, 200), (298, 200), (-302, 401), (302, 401)], ids=["old", "early", "stale", "ahead"]
)
@pytest.mark.row("H13", "T6")
async def test_a_signed_timestamp_must_lie_within_five_minutes(start: Start, skew: int, status: int) -> None:
    """Both ways; the exact border is proven with a clock of the test's own in the tests of the rules."""
    relay = await start(custom(STAMPED))
    answer = await relay.post("/hooks/partner", BODY, stamped(int(time.time()) + skew))
    assert answer.status == status
    if status == 401:
        line = await relay.turned_away(answer, 401, "stale_timestamp", source="partner")
        assert line["detail"].startswith("skew_s=")


@pytest.mark.parametrize(
    "value",
    ["", "abc", "1e9", "-1", "\u0663", str(2**31), str(2**64), "1789899331.5", str(int(time.time() * 1000))],
    ids=["empty", "word", "exponent", "negative", "arabic", "2^31", "2^64", "float", "milliseconds"],
)
@pytest.mark.row("H12")
async def test_an_odd_timestamp_proves_nothing(start: Start, value: str) -> None:
    """However well it is signed."""
    relay = await start(custom(STAMPED))
    headers = {"X-Time": value.encode().decode("latin-1"), "X-Sig": digest(f"{value}.".encode() + BODY)}
    await relay.turned_away(await relay.post("/hooks/partner", BODY, headers), 401, "bad_timestamp", source="partner")


@pytest.mark.row("H12")
async def test_a_missing_timestamp_proves_nothing(start: Start) -> None:
    """There is nothing to judge the age by."""
    relay = await start(custom(STAMPED))
    answer = await relay.post("/hooks/partner", BODY, {"X-Sig": digest(b"." + BODY)})
    await relay.turned_away(answer, 401, "bad_timestamp", source="partner")


@pytest.mark.parametrize("message_id", ["", "a.b", "x" * 4096, None], ids=["empty", "dot", "4kB", "missing"])
@pytest.mark.row("H14")
async def test_an_odd_message_id_proves_nothing(start: Start, message_id: str | None) -> None:
    """A dot would move the border between what is signed."""
    relay = await start(custom(NAMED))
    headers = stamped(int(time.time()), message_id=message_id or "")
    if message_id is None:
        del headers["X-Id"]
    await relay.turned_away(await relay.post("/hooks/partner", BODY, headers), 401, "bad_id", source="partner")


WHSEC = "whsec_" + base64.b64encode(SECRET).decode()


def standard(message_id: str = "msg_1", *, at: float | None = None, body: bytes = BODY) -> dict[str, str]:
    """Headers of Standard Webhooks, signed by its own library."""
    moment = datetime.fromtimestamp(int(at or time.time()), UTC)
    signature = Webhook(WHSEC).sign(message_id, moment, body.decode())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": signature,
    }


async def standard_relay(start: Start) -> Gateway:
    return await start({"partner": {"provider": "custom", "verify": {"scheme": "standard_webhooks"}, "secrets": WHSEC}})


@pytest.mark.row("H10")
async def test_standard_webhooks_takes_a_list_with_one_right_signature(start: Start) -> None:
    """`v1,bad v1,good v1a,…`: a sender lists one for each key while it rotates. Its id is the dedupe key."""
    relay = await standard_relay(start)
    headers = standard()
    headers["webhook-signature"] = f"v1,{base64_digest(key=OLD_SECRET)} {headers['webhook-signature']} v1a,abcd"
    first = await relay.post("/hooks/partner", BODY, headers)
    again = await relay.post("/hooks/partner", BODY, headers)
    assert (first.status, first.json["duplicate"]) == (200, False)
    assert again.json == {"id": first.json["id"], "duplicate": True}
    got = await relay.target.next()
    assert [got[name] for name in headers] == list(headers.values())


@pytest.mark.row("H11", "T24")
async def test_many_signatures_buy_no_processor_time(start: Start) -> None:
    """More than a list's eight are refused unread; ten thousand do not fit in a header at all."""
    relay = await standard_relay(start)
    headers = standard()
    good = headers["webhook-signature"]
    headers["webhook-signature"] = " ".join(["v1,AAAA"] * 100 + [good])
    await relay.turned_away(
        await relay.post("/hooks/partner", BODY, headers), 401, "ambiguous_signature", source="partner"
    )
    headers["webhook-signature"] = " ".join(["v1,AAAA"] * 10_000)
    assert (await relay.post("/hooks/partner", BODY, headers)).status == 400


PREFIXED = "sha256=" + digest()


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param({}, "missing_signature", id="none", marks=pytest.mark.row("H4", "T3")),
        pytest.param({"X-Signature": ""}, "missing_signature", id="empty", marks=pytest.mark.row("H4", "T3")),
        pytest.param(
            {"X-Signature": "sha256=" + digest(b"other")},
            "bad_signature",
            id="wrong",
            marks=pytest.mark.row("H5", "T1"),
        ),
        pytest.param(
            {"X-Signature": "sha1=" + digest()}, "bad_signature", id="prefix", marks=pytest.mark.row("H5", "T5")
        ),
        pytest.param({"X-Signature": digest()}, "bad_signature", id="no-prefix", marks=pytest.mark.row("H5")),
        pytest.param(
            {"X-Signature": PREFIXED[:17]}, "bad_signature", id="cut", marks=pytest.mark.row("H6", "T2", "B12")
        ),
        pytest.param({"X-Signature": "sha256="}, "bad_signature", id="bare-prefix", marks=pytest.mark.row("H6")),
        pytest.param({"X-Signature": PREFIXED + digest()}, "bad_signature", id="doubled", marks=pytest.mark.row("H6")),
        pytest.param(
            {"X-Signature": "sha256=" + base64_digest()}, "bad_signature", id="base64", marks=pytest.mark.row("H5")
        ),
        pytest.param(
            {"X-Signature": f"{PREFIXED},{PREFIXED}"}, "bad_signature", id="list", marks=pytest.mark.row("T4")
        ),
        pytest.param(
            {"X-Signature": "sha256=" + "\xe9" * 64}, "bad_signature", id="latin", marks=pytest.mark.row("B21")
        ),
        pytest.param(
            [("X-Signature", PREFIXED), ("x-signature", PREFIXED)],
            "ambiguous_signature",
            id="two",
            marks=pytest.mark.row("T4"),
        ),
    ],
)
async def test_what_is_not_the_full_right_digest_is_turned_away(
    gateway: Gateway, headers: dict[str, str] | list[tuple[str, str]], reason: str
) -> None:
    """Missing, wrong, cut, doubled or ambiguous: 401, told with its reason, counted, and not stored."""
    answer = await gateway.post("/hooks/signed", BODY, headers)
    line = await gateway.turned_away(answer, 401, reason, source="signed")
    assert (line["level"], line["remote"]) == ("warning", "127.0.0.1")


@pytest.mark.parametrize(
    "spell",
    [
        lambda proof: proof[:20] + " " + proof[20:],
        lambda proof: proof.replace("+", "-").replace("/", "_"),
        lambda proof: proof.rstrip("="),
        lambda proof: proof + "=",
    ],
    ids=["white space", "url-safe", "unpadded", "overpadded"],
)
@pytest.mark.row("H7")
async def test_base64_has_one_spelling(start: Start, spell: Any) -> None:
    """What a lenient decoder would take for the right digest is not it."""
    relay = await start(custom(HMAC | {"algorithm": "sha256", "encoding": "base64"}))
    body = next(body for body in (b"%d" % n for n in range(1000)) if {*"+/"} <= {*base64_digest(body)})
    assert (await relay.post("/hooks/partner", body, {"X-Sig": spell(base64_digest(body))})).status == 401
    assert (await relay.post("/hooks/partner", body, {"X-Sig": base64_digest(body)})).status == 200


@pytest.mark.row("H16", "T65")
async def test_both_keys_are_good_while_they_rotate_and_the_old_one_not_after(start: Start) -> None:
    """Any secret of the list proves; one that was taken out does not."""
    relay = await start()
    old = {"X-Signature": "sha256=" + digest(key=OLD_SECRET)}
    assert (await relay.post("/hooks/signed", BODY, old)).status == 200
    assert (
        await relay.post("/hooks/signed", b'{"id": "e2"}', {"X-Signature": "sha256=" + digest(b'{"id": "e2"}')})
    ).json["duplicate"] is False
    assert [line["key_index"] for line in await relay.log("event.accepted")] == [1, 0]


@pytest.mark.row("H16", "T65", "B50")
async def test_a_secret_that_was_taken_out_proves_nothing(start: Start) -> None:
    """The end of a rotation."""
    relay = await start(custom(SIGNED))
    answer = await relay.post("/hooks/partner", BODY, {"X-Signature": "sha256=" + digest(key=OLD_SECRET)})
    await relay.turned_away(answer, 401, "bad_signature", source="partner")


@pytest.mark.row("T1", "T27")
async def test_all_refusals_of_proof_are_the_same_bytes(start: Start) -> None:
    """Whoever guesses learns nothing: missing, wrong, stale, ambiguous, of any scheme, before and after the body."""
    now = int(time.time())
    relay = await start(
        {
            "hashed": {"provider": "custom", "verify": SIGNED, "secrets": "${SECRET}"},
            "timed": {"provider": "custom", "verify": NAMED, "secrets": "${SECRET}"},
            "basic": {"provider": "custom", "verify": {"scheme": "basic", "username": "u"}, "secrets": "${SECRET}"},
            "bearer": {"provider": "custom", "verify": {"scheme": "bearer"}, "secrets": "${SECRET}"},
            "xoxoday": {"provider": "xoxoday", "secrets": "${API_KEY}"},
            "plugandpay": {"provider": "plugandpay", "secrets": "${WEBHOOK_KEY}"},
        }
    )
    tries: list[tuple[str, Any]] = [
        ("hashed", {}),
        ("hashed", {"X-Signature": "sha256=" + digest(b"other")}),
        ("hashed", [("X-Signature", PREFIXED)] * 2),
        ("timed", stamped(now - 1000, message_id="m")),
        ("timed", stamped(now, message_id="m.n")),
        ("timed", stamped("soon", message_id="m")),
        ("basic", {"Authorization": basic("u", b"wrong-password")}),
        ("bearer", {"Authorization": "Bearer nobody-knows"}),
        ("bearer", {"Authorization": basic("u")}),
        ("xoxoday", {"x-api-key": "a1p2z5b7v68b911223"}),
        ("plugandpay", {"X-Signature": digest(b"")}),
    ]
    answers = [await relay.post(f"/hooks/{source}", BODY, headers) for source, headers in tries]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.timeless for answer in answers}) == 1
    assert len(await relay.log("request.refused")) == len(tries)


@pytest.mark.row("B15", "B20")
async def test_the_raw_bytes_are_what_is_signed(gateway: Gateway) -> None:
    """A body that says the same in other bytes is not proven; it is never parsed and put together again."""
    spaced = b'{"id":"e1",  "type":"paid","amount":1.10,"path":"a\\/b"}'
    headers = {"X-Signature": "sha256=" + digest(spaced)}
    assert (await gateway.post("/hooks/signed", spaced.replace(b"  ", b" "), headers)).status == 401
    assert (await gateway.post("/hooks/signed", spaced, headers)).status == 200
    assert (await gateway.target.next()).body == spaced


@pytest.mark.row("T9")
async def test_an_unenforced_check_lets_through_tells_and_marks(start: Start) -> None:
    """`enforce: false`: verified, told and let through; the target sees which ones were not proven."""
    relay = await start(custom(SIGNED, enforce=False))
    assert (await relay.post("/hooks/partner", BODY)).status == 200
    assert (await relay.target.next())["relay-verified"] == "false"
    assert (await relay.post("/hooks/partner", BODY, {"X-Signature": PREFIXED})).status == 200
    assert (await relay.target.next(2))["relay-verified"] is None
    line = await relay.told("request.unproven")
    assert (line["source"], line["reason"]) == ("partner", "missing_signature")
    assert [one["verified"] for one in await relay.log("event.accepted")] == [False, True]
    assert relay.counted("partner") == {"accepted": 2}
