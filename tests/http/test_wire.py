"""Bytes on the wire: what is no request, what is half a request, what is too much of one."""

import asyncio
import hmac
import resource
import time

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import SECRET, Gateway, Start, chunked, request, until, wired

OPEN = {"open": SOURCES["open"], "key": SOURCES["key"]}
HEAD = b"POST /hooks/open HTTP/1.1\r\nHost: a\r\n"
MALFORMED = b'{"error": "malformed request"}'


def framed(*lines: bytes, body: bytes = b"") -> bytes:
    return HEAD + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"FOO /hooks/open HTTP/1.1\r\nHost: a\r\n\r\n", id="method", marks=pytest.mark.row("H3")),
        pytest.param(b"post /hooks/open HTTP/1.1\r\nHost: a\r\n\r\n", id="lower case", marks=pytest.mark.row("H3")),
        pytest.param(framed(b"Content-Length: 1" + b"0" * 20), id="10^20", marks=pytest.mark.row("H24")),
        pytest.param(framed(b"Content-Length: +7", body=b"1234567"), id="+7", marks=pytest.mark.row("H24")),
        pytest.param(framed(b"Content-Length: -1"), id="-1", marks=pytest.mark.row("H24")),
        pytest.param(framed(b"Content-Length: 0x7", body=b"1234567"), id="0x7", marks=pytest.mark.row("H24")),
        pytest.param(framed(b"Content-Length: 7,7", body=b"1234567"), id="7,7", marks=pytest.mark.row("H24")),
        pytest.param(
            framed(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"), id="equal", marks=pytest.mark.row("H24")
        ),
        pytest.param(
            framed(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"), id="differ", marks=pytest.mark.row("H24")
        ),
        pytest.param(
            framed(b"Content-Length: 2", b"Transfer-Encoding: chunked", body=chunked(b"{}")),
            id="CL and TE",
            marks=pytest.mark.row("H25", "T13"),
        ),
        pytest.param(
            framed(b"Transfer-Encoding: xchunked", body=chunked()), id="xchunked", marks=pytest.mark.row("H25", "T13")
        ),
        pytest.param(
            framed(b"Transfer-Encoding : chunked", body=chunked()), id="space", marks=pytest.mark.row("H25", "T13")
        ),
        pytest.param(
            framed(b"Transfer-Encoding: chunked", body=b"zz\r\n"), id="chunk size", marks=pytest.mark.row("H25")
        ),
        pytest.param(
            framed(b"Transfer-Encoding: gzip, chunked", body=chunked(b"{}")),
            id="gzip, chunked",
            marks=pytest.mark.row("H26", "T13"),
        ),
        pytest.param(
            framed(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=chunked(b"{}")),
            id="two codings",
            marks=pytest.mark.row("H26"),
        ),
        pytest.param(framed(body=b'{"a": 1}'), id="body without length", marks=pytest.mark.row("H27")),
        pytest.param(framed(b"Content-Type: a/b", b"Content-Type: c/d"), id="two types", marks=pytest.mark.row("H37")),
        pytest.param(b"POST /hooks/open HTTP/1.1\r\n\r\n", id="no host", marks=pytest.mark.row("H38")),
        pytest.param(framed(b"Host: b"), id="two hosts", marks=pytest.mark.row("H38", "T13")),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="h2 preface", marks=pytest.mark.row("H40")),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS", marks=pytest.mark.row("H40")),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH", marks=pytest.mark.row("H40")),
        pytest.param(bytes(range(256)), id="octets", marks=pytest.mark.row("H40")),
        pytest.param(framed(b"X: " + b"a" * 9000), id="9 kB header", marks=pytest.mark.row("H42", "T19")),
        pytest.param(
            framed(*(b"X-%d: 1" % number for number in range(300))), id="300", marks=pytest.mark.row("H42", "T19")
        ),
        pytest.param(framed(*[b"X-Same: 1"] * 1000), id="1000 times one", marks=pytest.mark.row("H42", "T19")),
        pytest.param(
            b"POST /hooks/open?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            id="9 kB URL",
            marks=pytest.mark.row("H42", "T19"),
        ),
        pytest.param(framed(b"X: a", b" folded: b"), id="folded", marks=pytest.mark.row("T13")),
        pytest.param(framed(b"X: a\rb"), id="bare CR", marks=pytest.mark.row("T13", "H47")),
        pytest.param(framed(b"X: a\x00b"), id="NUL", marks=pytest.mark.row("T13", "H47")),
        pytest.param(framed(b"X: a\x1b[31mb"), id="ESC", marks=pytest.mark.row("H47")),
        pytest.param(HEAD.replace(b"\r\n", b"\n") + b"\n", id="bare LF", marks=pytest.mark.row("T13")),
    ],
)
@pytest.mark.row("T26", "T27")
async def test_what_is_no_http_is_400_and_the_end_of_the_connection(start: Start, data: bytes) -> None:
    """Counted and told in one line without a traceback; nothing of it is stored, and the next client is served."""
    relay = await start(OPEN)
    async with wired(relay.hooks) as wire:
        await wire.send(data)
        answer = await wire.answer()
        assert (answer.status, answer.body, answer["connection"] or "close") == (400, MALFORMED, "close")
        assert await wire.rest() == b""
    lines = await relay.log()
    assert [line["event"] for line in lines] in (["http.malformed"], ["request.refused"])
    assert "traceback" not in relay.log_text().lower()
    assert relay.stored() == []
    assert (await relay.post("/hooks/open")).status == 200


@pytest.mark.row("T26", "H40")
async def test_a_flood_of_what_is_no_http_is_told_once_a_second(gateway: Gateway) -> None:
    """The metric has them all."""
    for _ in range(50):
        await gateway.raw(b"\x16\x03\x01\r\n\r\n")
    assert 1 <= len(await gateway.log("http.malformed")) < 20
    assert (await gateway.metrics())["relay_http_malformed_total", ()] == 50


@pytest.mark.parametrize(
    "data",
    [b"GET /healthz\r\n\r\n", b"POST /hooks/open HTTP/2.0\r\nHost: a\r\n\r\n", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"],
    ids=["0.9", "2.0", "2.0 elsewhere"],
)
@pytest.mark.row("H40", "T14")
async def test_other_versions_of_http_are_505(gateway: Gateway, data: bytes) -> None:
    """aiohttp would serve them, and answer in the version that was asked for."""
    async with wired(gateway.hooks) as wire:
        await wire.send(data)
        answer = await wire.answer()
        assert answer.status == 505
        assert answer.head.startswith(b"HTTP/1.1 505 ")
        assert await wire.rest() == b""


@pytest.mark.row("H41")
async def test_http_1_0_without_host_is_served_and_closed(gateway: Gateway) -> None:
    """As long as its framing is sound."""
    async with wired(gateway.hooks) as wire:
        await wire.send(b"POST /hooks/open HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        assert (await wire.answer()).status == 200
        assert await wire.rest() == b""


@pytest.mark.row("H27")
async def test_a_post_without_any_length_has_an_empty_body(gateway: Gateway) -> None:
    """It passes only where the check does."""
    assert (await gateway.raw(framed())).status == 200
    assert (await gateway.raw(framed().replace(b"open", b"key"))).status == 401
    assert gateway.stored() == [("open", "unknown", b"")]


@pytest.mark.row("H22", "T16", "B30")
async def test_a_body_of_just_the_limit_is_taken(start: Start) -> None:
    """Declared or in chunks."""
    relay = await start(OPEN, server={"max_body": "1000B"})
    assert (await relay.post("/hooks/open", bytes(1000))).status == 200
    pieces = framed(b"Transfer-Encoding: chunked", body=chunked(bytes(500), bytes(500)))
    assert (await relay.raw(pieces)).status == 200


@pytest.mark.parametrize(
    "data",
    [
        framed(b"Content-Length: 1001"),
        framed(b"Transfer-Encoding: chunked", body=b"3e9\r\n" + bytes(1001)),
        framed(b"Transfer-Encoding: chunked", body=(b"1f4\r\n" + bytes(500) + b"\r\n") * 2 + b"1\r\nx"),
    ],
    ids=["declared", "one chunk", "many chunks"],
)
@pytest.mark.row("H22", "H23", "T16", "B30", "B53")
async def test_one_byte_more_is_413_without_waiting_for_the_rest(start: Start, data: bytes) -> None:
    """Limits are the sender's to know: 413, and the connection is closed."""
    relay = await start(OPEN, server={"max_body": "1000B"})
    async with wired(relay.hooks) as wire:
        await wire.send(data)
        answer = await wire.answer()
        assert answer["connection"] == "close"
        await relay.turned_away(answer, 413, "too_large", source="open")


@pytest.mark.row("H30", "T20")
async def test_a_head_that_drips_is_cut_at_its_deadline(start: Start) -> None:
    """However regularly a byte comes; nobody waits for it, so nothing is answered."""
    relay = await start(OPEN, server={"header_timeout": "300ms"})
    async with wired(relay.hooks) as wire:
        ended = asyncio.create_task(wire.rest())
        for byte in HEAD * 100:
            await wire.send(bytes([byte]))
            if (await asyncio.wait({ended}, timeout=0.02))[0]:
                break
        assert await ended == b""


@pytest.mark.row("H30", "T20")
async def test_a_body_that_drips_is_408_at_its_deadline(start: Start) -> None:
    """A byte now and then does not push the deadline out."""
    relay = await start(OPEN, server={"body_timeout": "300ms"})
    async with wired(relay.hooks) as wire:
        await wire.send(framed(b"Content-Length: 1000"))
        answered = asyncio.create_task(wire.answer())
        while not (await asyncio.wait({answered}, timeout=0.02))[0]:
            await wire.send(b"x")
        answer = await answered
        assert answer["connection"] == "close"
        await relay.turned_away(answer, 408, "body_timeout", source="open")


@pytest.mark.slow
@pytest.mark.row("F29")
async def test_a_body_that_is_late_because_we_stood_still_is_no_fault_of_its_sender(start: Start) -> None:
    """It is asked to come again: what it sent meanwhile nobody has looked at."""
    relay = await start(OPEN, server={"body_timeout": "300ms"})
    async with wired(relay.hooks) as wire:
        await wire.send(framed(b"Content-Length: 1000"))
        answered = asyncio.create_task(wire.answer())
        await asyncio.sleep(0.1)
        time.sleep(2)  # the whole process stands still
        answer = await answered
        assert answer["retry-after"] == "2"
        await relay.turned_away(answer, 503, "stood_still", source="open")


@pytest.mark.row("H30", "T20")
async def test_a_client_that_says_nothing_is_let_go(start: Start) -> None:
    """Before its first request, and between two."""
    relay = await start(OPEN, server={"header_timeout": "200ms"})
    async with wired(relay.hooks) as silent, wired(relay.hooks) as served:
        await served.send(request("/hooks/open"))
        assert (await served.answer()).status == 200
        assert (await silent.rest(), await served.rest()) == (b"", b"")


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/hooks/key", {"X-Key": "nobody-knows-this"}, 401),
        ("/hooks/open", {"Content-Length": "99999999"}, 413),
        ("/hooks/open", {"Expect": "something-else"}, 417),
        ("/hooks/nobody", {}, 404),
    ],
)
@pytest.mark.row("H31", "T17")
async def test_nobody_is_invited_to_send_a_body_that_will_be_refused(
    gateway: Gateway, path: str, lines: dict[str, str], status: int
) -> None:
    """The final answer comes instead of the 100. Then the connection ends: a body that may or may not come cannot be
    told from a next request."""
    async with wired(gateway.hooks) as wire:
        await wire.send(request(path, headers={"Expect": "100-continue", "Content-Length": "2"} | lines))
        answer = await wire.answer()
        assert answer.status == status
        if status != 404:
            assert answer["connection"] == "close"


@pytest.mark.row("H31")
async def test_a_sender_that_waits_to_be_asked_is_asked(gateway: Gateway) -> None:
    """100, then the body, then the answer; the connection stays."""
    async with wired(gateway.hooks) as wire:
        for _ in range(2):
            await wire.send(framed(b"Expect: 100-Continue", b"Content-Length: 2"))
            assert (await wire.answer()).status == 100
            await wire.send(b"{}")
            assert (await wire.answer()).status == 200
    assert len(gateway.stored()) == 2


@pytest.mark.row("H31")
async def test_a_sender_of_http_1_0_is_not_asked(gateway: Gateway) -> None:
    """It would not know what 100 means (RFC 9110, section 10.1.1)."""
    data = b"POST /hooks/open HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
    assert (await gateway.raw(data)).status == 200


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.2"])
@pytest.mark.row("T13")
async def test_an_upgrade_is_not_taken_up_and_its_body_is_whole(gateway: Gateway, upgrade: str) -> None:
    """Java's client offers h2c. What follows on the connection is not answered at all: some of it may be lost on its
    way through the parser, and an answer to the rest would be taken for that of what was lost."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade, "HTTP2-Settings": "AAMAAABk"}
    offer, behind = request("/hooks/open", b"first", headers), request("/hooks/open", b"behind")
    for parts in ([offer], [offer + behind + behind], [offer[:-3], offer[-3:] + behind]):
        async with wired(gateway.hooks) as wire:
            for part in parts:
                await wire.send(part)
            answer = await wire.answer()
            assert (answer.status, answer["connection"]) == (200, "close")
            assert await wire.rest() == b""
    assert [row[2] for row in gateway.stored()] == [b"first"] * 3


@pytest.mark.row("T13")
async def test_a_tunnel_is_not_opened_and_nothing_behind_it_is_read(gateway: Gateway) -> None:
    """Neither to elsewhere nor to ourselves."""
    for place in (b"a:80", b"/hooks/open", b"127.0.0.1:1"):
        async with wired(gateway.hooks) as wire:
            await wire.send(b"CONNECT %b HTTP/1.1\r\nHost: a\r\n\r\n" % place + request("/hooks/open"))
            answer = await wire.answer()
            assert answer.status in {404, 405}
            assert answer["connection"] == "close"
            assert await wire.rest() == b""
    assert gateway.stored() == []


@pytest.mark.row("H25", "T13")
async def test_a_body_that_breaks_on_its_way_is_400_at_once(gateway: Gateway) -> None:
    """Also where its head had come before: at its deadline it would be 408. It is told and counted once."""
    async with wired(gateway.hooks) as wire:
        await wire.send(framed(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"))
        await until(lambda: gateway.app._hooks._server._is_busy())
        await wire.send(b"zz\r\n")
        answer = await wire.answer()
        assert answer["connection"] == "close"
        await gateway.turned_away(answer, 400, "broken_body", source="open")
        assert await wire.rest() == b""


@pytest.mark.row("H44")
async def test_a_hundred_thousand_chunks_of_a_byte_cost_little(start: Start) -> None:
    """They are one body."""
    relay = await start(OPEN)
    data = framed(b"Transfer-Encoding: chunked", body=chunked(*[b"x"] * 100_000))
    before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    answer = await relay.raw(data)
    assert sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before < 2
    assert answer.status == 200
    assert len(relay.stored()[0][2]) == 100_000


@pytest.mark.row("H44")
async def test_extensions_and_trailers_say_nothing(gateway: Gateway) -> None:
    """A 9 kB extension is skipped, and a proof in a trailer is none."""
    extended = b"2;" + b"x" * 9000 + b"\r\n{}\r\n0\r\n\r\n"
    assert (await gateway.raw(framed(b"Transfer-Encoding: chunked", body=extended))).status in {200, 400}
    proof = hmac.new(SECRET, b"{}", "sha256").hexdigest().encode()
    body = chunked(b"{}", trailer=b"X-Signature: sha256=" + proof + b"\r\n")
    signed = framed(b"Transfer-Encoding: chunked", body=body).replace(b"/open", b"/signed")
    assert (await gateway.raw(signed)).status == 401


@pytest.mark.parametrize("number", [1, 3])
async def test_a_client_that_sends_no_more_still_gets_its_answers(gateway: Gateway, number: int) -> None:
    """Some senders and proxies close their side as soon as they have sent; then the connection ends."""
    async with wired(gateway.hooks) as wire:
        await wire.send(request("/hooks/open", b'{"id": "e1"}') * number)
        wire.writer.write_eof()
        assert [(await wire.answer()).json["duplicate"] for _ in range(number)] == [n > 0 for n in range(number)]
        assert await wire.rest() == b""


async def test_half_a_request_of_a_client_that_sends_no_more_is_not_waited_for(gateway: Gateway) -> None:
    """What is missing will never come."""
    async with wired(gateway.hooks) as wire:
        await wire.send(request("/hooks/open", b"{}" * 50)[:-50])
        wire.writer.write_eof()
        await wire.rest()
    assert gateway.stored() == []


@pytest.mark.row("H45", "T22")
async def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """A thousand at once, some of them webhooks."""
    asks = [b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"] * 1000
    for number in range(0, 1000, 25):
        asks[number] = request("/hooks/open", b"%d" % number)
    async with wired(gateway.hooks) as wire:
        sending = asyncio.create_task(wire.send(b"".join(asks)))
        bodies = [(await wire.answer()).json for _ in asks]
        await sending
    assert [number for number, body in enumerate(bodies) if "id" in body] == list(range(0, 1000, 25))
    assert [row[2] for row in gateway.stored()] == [b"%d" % number for number in range(0, 1000, 25)]


@pytest.mark.row("H45", "T22")
async def test_pipelined_bodies_of_every_size_are_whole_and_in_order(gateway: Gateway) -> None:
    """More requests than are taken up at a time, some with bodies at which reading pauses, all at once."""
    bodies = [b"%d:" % number + b"x" * (200_000 if number % 7 == 0 else number) for number in range(100)]
    async with wired(gateway.hooks) as wire:
        sending = asyncio.create_task(wire.send(b"".join(request("/hooks/open", body) for body in bodies)))
        answers = [await wire.answer() for _ in bodies]
        await sending
    assert {answer.status for answer in answers} == {200}
    assert [row[2] for row in gateway.stored()] == bodies


@pytest.mark.row("H45", "T22", "T20")
async def test_a_client_that_reads_no_answers_is_cut_off(start: Start) -> None:
    """Its answers do not pile up in our memory, and it does not keep its connection for ever."""
    relay = await start(OPEN, server={"header_timeout": "300ms"})
    server = relay.app._hooks._server
    async with wired(relay.hooks) as wire:
        asks = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
        sending = asyncio.create_task(_send_for_ever(wire.writer, asks))
        await until(lambda: any(one.writing_paused for one in server.connections))
        (stuck,) = server.connections
        assert stuck.transport is not None
        assert stuck.transport.get_write_buffer_size() < 256 * 1024
        await until(lambda: not server.connections)
        await sending
    assert (await relay.post("/hooks/open")).status == 200


async def _send_for_ever(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        while True:
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
