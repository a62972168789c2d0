"""An authentic request is taken whatever it says, and what it says stays in its bytes: bodies, headers, log."""

import gzip
import json
import resource
import zlib

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import SECRET, Gateway, Start, signature

BODIES = {
    "bad json": b'{"type": "paid"',
    "not json": b"hello",
    "xml": b"<?xml version='1.0'?><a/>",
    "form": b"a=1&b=%00",
    "a mark of the order of bytes": b'\xef\xbb\xbf{"a": 1}',
    "multipart": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
    "octets": bytes(range(256)) * 4,
    "numbers": b'{"a": 12345678901234567890.000100, "b": 1e400, "type": 7, "id": 99999999999999999999}',
    "order": b'{"z": 1, "a": 2, "z": 3}',
    "deep": b"[" * 5000 + b"]" * 5000,
    "surrogate": b'{"type": "\\ud800", "id": "\\udfff\\u0000"}',
    "utf-16": '{"type": "paid"}'.encode("utf-16"),
    "long digits": b'{"id": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.row("H35", "B4", "B13", "B32", "B48", "B61")
async def test_an_authentic_body_is_opaque_bytes_whatever_it_is(gateway: Gateway, body: bytes) -> None:
    """Never refused for its content, never re-serialised: the target gets what came."""
    assert (await gateway.post("/hooks/signed", body, signature(body))).status == 200
    assert (await gateway.target.next()).body == body
    assert gateway.stored()[0][2] == body


@pytest.mark.row("H28")
async def test_an_empty_body_with_its_own_proof_is_an_event(gateway: Gateway) -> None:
    """It is delivered as empty."""
    assert (await gateway.post("/hooks/signed", b"", signature(b""))).status == 200
    assert (await gateway.target.next()).body == b""


@pytest.mark.row("H32", "T8", "T18", "B20")
async def test_a_compressed_body_is_proven_stored_and_forwarded_as_it_came(gateway: Gateway) -> None:
    """The digest covers the wire; nothing is ever unpacked."""
    body = gzip.compress(b'{"type": "paid"}')
    headers = signature(body) | {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert (await gateway.post("/hooks/signed", body, headers)).status == 200
    got = await gateway.target.next()
    assert (got.body, got["content-encoding"]) == (body, "gzip")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x-unheard-of", "gzip, gzip"])
@pytest.mark.row("H32", "T18")
async def test_a_false_content_encoding_is_nobodys_business(gateway: Gateway, coding: str) -> None:
    """It is a header like any other."""
    assert (await gateway.post("/hooks/open", b"plain", {"Content-Encoding": coding})).status == 200


@pytest.mark.row("H34", "T18")
async def test_a_bomb_stays_packed(gateway: Gateway) -> None:
    """48 kB that would be 50 MB cost 48 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(50)) + packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (await gateway.post("/hooks/open", bomb, {"Content-Encoding": "gzip"})).status == 200
    assert (await gateway.target.next()).body == bomb
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


@pytest.mark.parametrize("content_type", [None, "text/html; charset=\xff", "", "a", "application/json;;;"])
@pytest.mark.row("H37")
async def test_the_content_type_is_not_judged(gateway: Gateway, content_type: str | None) -> None:
    """Providers forget it or get it wrong."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await gateway.post("/hooks/open", b'{"type": "paid"}', headers)).status == 200
    assert gateway.stored()[0][1] == "paid"


@pytest.mark.row("H51", "H52", "T51", "T52")
async def test_claims_about_addresses_and_credentials_do_not_go_on(gateway: Gateway) -> None:
    """What a client says of itself, and what was meant for us alone."""
    withheld = {
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=10.0.0.1",
        "Via": "1.1 evil",
        "X-Real-IP": "10.0.0.1",
        "Authorization": "Bearer theirs-alone",
        "Cookie": "session=theirs-alone",
        "Connection": "X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
        "relay-source": "forged",
        "relay-verified": "true",
        "X-Key": SECRET.decode(),
    }
    assert (await gateway.post("/hooks/key", b"{}", withheld)).status == 200
    got = await gateway.target.next()
    left = {name: got.all(name.lower()) for name in withheld if got.all(name.lower())}
    assert left == {"relay-source": ["key"]}
    kept = json.loads(gateway.rows("SELECT headers FROM event")[0][0])
    assert "theirs-alone" not in str(kept)
    assert SECRET.decode() not in str(kept)


@pytest.mark.row("H53", "T50")
async def test_header_bytes_go_on_as_they_came_or_are_left_out_and_named(gateway: Gateway) -> None:
    """UTF-8 passes; other bytes cannot be sent as they came, and are never sent as something else."""
    headers = {"X-Utf": "é".encode().decode("latin-1"), "X-Latin": "\xe9", "X-Plain": "a"}
    assert (await gateway.post("/hooks/open", b"{}", headers)).status == 200
    got = await gateway.target.next()
    assert (got.all("x-utf"), got.all("x-latin"), got.all("x-plain")) == (["é"], [], ["a"])
    assert (await gateway.told("delivery.header_dropped"))["headers"] == ["X-Latin"]


@pytest.mark.row("H47", "T25")
async def test_nothing_that_a_sender_writes_breaks_a_line_of_the_log(gateway: Gateway) -> None:
    """Every line stays one line of ASCII JSON, and short."""
    odd = '\x1b[31m\u2028\u2029\n{"event": "forged"}\x00'
    body = json.dumps({"type": odd, "id": odd * 100}).encode()
    headers = {"User-Agent": "x" * 8000, "X-Odd": "\xff\xfe \u00a0", "X-Forwarded-For": "a" * 90}
    assert (await gateway.post("/hooks/open", body, headers)).status == 200
    assert (await gateway.post("/hooks/open", json.dumps({"type": "ü" * 200}).encode())).status == 200
    await gateway.target.next(2)
    lines = await gateway.log()
    assert [line["type"] for line in lines if line["event"] == "event.accepted"] == ["unknown", "ü" * 200]
    assert gateway.log_text().isascii()
    assert max(map(len, gateway.log_text().splitlines())) < 2000
    assert "forged" not in gateway.log_text()


@pytest.mark.row("H48", "T25")
async def test_headers_named_like_fields_of_the_log_change_none(start: Start) -> None:
    """Input is a value, never a key."""
    relay = await start({"open": SOURCES["open"] | {"event_type": "header:event"}})
    headers = {"event": "forged", "level": "critical", "timestamp": "0", "ts": "0", "source": "other"}
    assert (await relay.post("/hooks/open", b"{}", headers)).status == 200
    line = await relay.told("event.accepted")
    assert (line["level"], line["source"], line["type"]) == ("info", "open", "forged")
