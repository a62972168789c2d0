"""Too much of everything: connections, heads, bodies, answers that nobody reads, content that costs."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import Gateway, Start, Wire, chunked, request, signature, until, wired
from tests.http.outages import locked
from tests.support.certificates import self_signed

OPEN = {"open": SOURCES["open"], "key": SOURCES["key"]}
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"POST /hooks/open HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{"
PLACES = 8
"""Connections that the listener may hold, of which one is only told that there are too many."""


@contextlib.asynccontextmanager
async def many(address: tuple[str, int], number: int) -> AsyncIterator[list[Wire]]:
    """So many connections."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(wired(address)) for _ in range(number)]


async def crowd(relay: Gateway, listener: str = "hooks") -> tuple[int, int, int]:
    """Connections that are open, were refused, had to make room."""
    found = await relay.metrics()
    names = ("relay_http_connections", "relay_http_connections_refused_total", "relay_http_connections_displaced_total")
    open_, refused, displaced = (int(found[name, (("listener", listener),)]) for name in names)
    return open_, refused, displaced


@pytest.mark.row("T21")
async def test_where_all_are_busy_one_more_is_told_to_come_again(start: Start) -> None:
    """503 with `Retry-After`, counted, told once, and the connection ends; who is busy is not disturbed."""
    relay = await start(OPEN, server={"max_connections": PLACES})
    async with many(relay.hooks, PLACES - 1) as busy:
        for wire in busy:
            await wire.send(HALF)
        await until(lambda: relay.app._ingress._intake.in_hand == PLACES - 1)
        async with wired(relay.hooks) as late:
            await late.send(request("/hooks/open", b"{}"))
            answer = await late.answer()
            assert (answer.status, answer["retry-after"], answer["connection"]) == (503, "2", "close")
            assert await late.rest() == b""
        assert await crowd(relay) == (PLACES - 1, 1, 0)
        assert (await relay.told("request.refused"))["reason"] == "connections"
        line = await relay.told("http.connections_refused")
        assert (line["listener"], line["most"], line["refused"]) == ("hooks", PLACES - 1, 1)
        for wire in busy:
            await wire.send(b"}")
            assert (await wire.answer()).status == 200
    assert (await relay.post("/hooks/open")).status == 200
    assert len(await relay.log("http.connections_refused")) == 1


@pytest.mark.row("T21")
async def test_who_only_holds_a_connection_makes_room_for_who_has_a_request(start: Start) -> None:
    """However many say nothing, or half a head, a webhook is taken."""
    relay = await start(OPEN, server={"max_connections": PLACES})
    async with many(relay.hooks, PLACES - 1) as idle:
        for wire in idle[:3]:
            await wire.send(HALF[:40])
        await until(lambda: relay.app._hooks.crowd.open == PLACES - 1)
        for number in range(20):
            assert (await relay.post("/hooks/open", b'{"id": %d}' % number)).status == 200
        assert await idle[0].rest() == b""
    open_, refused, displaced = await crowd(relay)
    assert open_ <= PLACES
    assert refused == 0
    assert displaced > 0
    assert len(relay.stored()) == 20


@pytest.mark.row("T21")
async def test_who_finds_no_place_at_all_waits_at_the_port(start: Start) -> None:
    """Nothing is accepted beyond the bound, nothing spins, and all are served when there is room again."""
    relay = await start(OPEN, server={"max_connections": PLACES})
    async with many(relay.hooks, PLACES - 1) as busy:
        for wire in busy:
            await wire.send(HALF)
        await until(lambda: relay.app._ingress._intake.in_hand == PLACES - 1)
        posts = [asyncio.create_task(relay.post("/hooks/open", b'{"id": %d}' % number)) for number in range(50)]
        await until(lambda: relay.app._hooks.crowd.refused >= 10)
        assert relay.app._hooks.crowd.open <= PLACES
        await asyncio.gather(*(wire.send(b"}") for wire in busy))  # at once, or all that wait are told no meanwhile
        for wire in busy:
            assert (await wire.answer()).status == 200
        answers = await asyncio.gather(*posts)
    assert {answer.status for answer in answers} <= {200, 503}
    assert all(answer["retry-after"] for answer in answers if answer.status == 503)
    assert answers[-1].status == 200
    assert len(relay.stored()) == PLACES - 1 + sum(answer.status == 200 for answer in answers)


@pytest.mark.row("T21")
async def test_the_admin_listener_has_places_of_its_own(start: Start) -> None:
    """A flood of one listener is not felt at the other, either way."""
    relay = await start(OPEN, server={"max_connections": PLACES})
    async with many(relay.hooks, PLACES + 4), many(relay.admin, 140):
        assert (await relay.call("/readyz")).status == 200
        assert (await relay.post("/hooks/open")).status == 200
        open_, _, displaced = await crowd(relay, "admin")
        assert open_ <= 128
        assert displaced > 0


@pytest.mark.row("T20", "F26")
async def test_a_tls_handshake_that_does_not_end_is_cut_off(start: Start, tmp_path: Path) -> None:
    """Within the deadline for a request's head, by which it is one."""
    cert, key = self_signed(tmp_path, "127.0.0.1")
    key.chmod(0o600)
    relay = await start(OPEN, server={"header_timeout": "1s", "tls": {"cert": str(cert), "key": str(key)}})
    async with many(relay.hooks, 100) as stuck:
        for wire in stuck[::2]:
            await wire.send(b"\x16\x03\x01\x02\x00\x01\x00")
        assert await asyncio.gather(*(wire.rest() for wire in stuck)) == [b""] * 100
        await until(lambda: relay.app._hooks.crowd.open == 0)


@pytest.mark.row("T20", "F26", "H30")
async def test_a_head_without_an_end_is_refused_at_its_bound(start: Start) -> None:
    """A hundred lines of eight thousand bytes are each allowed, but not together: they would lie in memory."""
    relay = await start(OPEN)
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"a" * 8000) for number in range(90))
    async with wired(relay.hooks) as wire:
        await wire.send(request("/hooks/open", b"{}"))
        assert (await wire.answer()).status == 200
        head = HALF.partition(b"\r\n\r\n")[0] + b"\r\n"
        await wire.send(head + lines)
        answer = await wire.answer()
        assert answer.status == 400
        assert await wire.rest() == b""
    assert (await relay.told("http.malformed"))["reason"] == "LineTooLong"
    assert len(relay.stored()) == 1


async def test_a_large_body_is_not_taken_for_a_head(start: Start) -> None:
    """Whole, in pieces, in chunks, and what stands behind it on the connection."""
    relay = await start(OPEN)
    body = b"x" * 200_000
    in_chunks = b"POST /hooks/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, body)
    async with wired(relay.hooks) as wire:
        for data in (request("/hooks/open", body), in_chunks, request("/hooks/open", body) * 3):
            for begin in range(0, len(data), 30_000):
                await wire.send(data[begin : begin + 30_000])
        for _ in range(5):
            assert (await wire.answer()).status == 200


@pytest.mark.row("F25", "T23")
async def test_a_body_counts_until_it_is_answered(start: Start) -> None:
    """Large bodies that wait for the disk are bounded as well; small ones have room of their own."""
    relay = await start(OPEN, server={"max_body": "64MiB"})
    large = bytes(40 * 1024 * 1024)
    async with locked(relay):
        waiting = asyncio.create_task(relay.post("/hooks/open", large))
        await until(lambda: relay.app._ingress._intake.in_hand == len(large))
        async with wired(relay.hooks) as wire:
            await wire.send(request("/hooks/open", headers={"Content-Length": str(len(large))}))
            answer = await wire.answer()
            assert (answer.status, answer["retry-after"]) == (503, "2")
        line = await relay.told("request.refused")
        assert line["reason"] == "memory"
        small = asyncio.create_task(relay.post("/hooks/open", b"{}"))
        await until(lambda: relay.app._ingress._intake.in_hand == len(large) + 2)
    assert (await waiting).status in {200, 503}
    assert (await small).status in {200, 503}
    assert relay.app._ingress._intake.in_hand == 0


@pytest.mark.row("H45", "T22", "F26")
async def test_a_client_that_leaves_little_unread_is_cut_off_too(start: Start) -> None:
    """Also where its answers fit into the system's buffers but for a few, which are too few to stop us from writing."""
    relay = await start(OPEN, server={"header_timeout": "500ms"})
    one = socket.socket()
    with contextlib.closing(one):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, relay.hooks)
        await until(lambda: relay.app._hooks._server.connections)
        (connection,) = relay.app._hooks._server.connections
        assert connection.transport is not None
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await asyncio.get_running_loop().sock_sendall(one, HEALTH * 350)
        transport = connection.transport
        await until(lambda: transport.get_write_buffer_size() > 0)
        await until(lambda: relay.app._hooks.crowd.open == 0)


BIG = 300 * 1024
CONTENTS = {
    "deep lists": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"id":' * 50_000 + b"1" + b"}" * 50_000,
    "a number of 5,000 digits": b'{"id": ' + b"9" * 5000 + b', "type": "a"}',
    "numbers without end": b'{"id": 1e999, "type": -1e999}',
    "no numbers": b'{"id": NaN, "type": Infinity}',
    "lone surrogates": b'{"id": "\\ud800", "type": "\\udfff"}',
    "a type of 300 KiB": b'{"id": "1", "type": "' + b"t" * BIG + b'"}',
    "an id of 300 KiB": b'{"id": "' + b"i" * BIG + b'", "type": "a"}',
    "50,000 keys": json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(),
    "one key 1,000 times": b"{" + b",".join([b'"id": 1'] * 1000) + b"}",
    "NUL": b'{"id": "a\\u0000b", "type": "\\u0000"}',
    "not text": bytes(range(256)) * 100,
    "UTF-16": '{"id": "sixteen", "type": "a"}'.encode("utf-16"),
    "other kinds": b'{"id": {"a": [1]}, "type": [true, null]}',
    "control characters": b'{"id": "\\u001b[31m", "type": "a\\r\\nX-Injected: 1"}',
}


@pytest.mark.parametrize("proof", ["open", "signed"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=list(CONTENTS))
@pytest.mark.row("F39", "T24")
async def test_no_content_is_a_fault(gateway: Gateway, content: bytes, proof: str) -> None:
    """Whatever an authentic body is, it is stored and forwarded as it came, and the relay goes on."""
    headers = signature(content) if proof == "signed" else {}
    assert (await gateway.post(f"/hooks/{proof}", content, headers)).status == 200
    assert [row[2] for row in gateway.stored()] == [content]
    assert (await gateway.target.next()).body == content
    assert await gateway.log("request.failed") == []


@pytest.mark.row("T24", "F39")
async def test_what_nobody_has_proven_is_not_parsed(gateway: Gateway) -> None:
    """A body that costs much to read costs a stranger's digest only: 401, for large bodies and for many small ones."""
    content = CONTENTS["50,000 keys"]
    answers = [await gateway.post("/hooks/signed", content, {"X-Signature": "sha256=" + "0" * 64}) for _ in range(3)]
    async with wired(gateway.hooks) as wire:
        for _ in range(200):
            await wire.send(request("/hooks/signed", b"{}", {"X-Signature": "sha256=" + "0" * 64}))
            answers.append(await wire.answer())
    assert {answer.status for answer in answers} == {401}
    assert len(await gateway.log("request.refused")) <= 60
    assert gateway.stored() == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/hooks/slow", b"{}"), 429),
        (request("/hooks/open", headers={"Content-Length": "1000001"}), 413),
        (request("/hooks/open", headers={"X-Long": "a" * 9000}), 400),
        (request("/hooks/open", headers=[(f"X-{n}", "1") for n in range(200)]), 400),
        (request("/hooks/open", headers=[("X-Forwarded-For", ", ".join(["127.0.0.1"] * 60))]), 400),
        (request("/" + "a" * 9000), 400),
    ],
    ids=["rate", "body", "header", "headers", "hops", "path"],
)
@pytest.mark.row("B53")
async def test_a_limit_that_a_sender_meets_is_no_fault_of_ours(start: Start, data: bytes, status: int) -> None:
    """Each is a 4xx that says which, never a 500."""
    slow = SOURCES["open"] | {"rate": "1/h"}
    relay = await start(OPEN | {"slow": slow}, server={"max_body": "1000KiB", "trusted_proxies": ["127.0.0.1/32"]})
    await relay.post("/hooks/slow", headers={"X-Forwarded-For": "192.0.2.1"})
    data = data.replace(b"1000001", b"1024001")
    data = data.replace(
        b"Host: relay.example\r\n", b"Host: relay.example\r\nX-Forwarded-For: 192.0.2.1\r\n", status != 400
    )
    answer = await relay.raw(data)
    assert answer.status == status
    assert (answer["retry-after"] is not None) == (status == 429)
    assert len(relay.stored()) == 1


@pytest.mark.row("H54", "T23", "B58")
async def test_a_source_over_its_rate_is_slowed_and_no_other(start: Start) -> None:
    """429 with `Retry-After` for what is too much, counted; all of another source's at the same time is taken."""
    relay = await start(OPEN | {"loud": SOURCES["open"] | {"rate": "10/s"}})
    loud = [relay.post("/hooks/loud", b'{"id": "loud%d"}' % number) for number in range(100)]
    calm = [relay.post("/hooks/open", b'{"id": "calm%d"}' % number) for number in range(50)]
    answers = await asyncio.gather(*loud, *calm)
    assert {answer.status for answer in answers[100:]} == {200}
    turned = [answer for answer in answers[:100] if answer.status != 200]
    assert {answer.status for answer in turned} == {429}
    assert all(int(answer["retry-after"] or 0) >= 1 for answer in turned)
    assert relay.counted("loud") == {"accepted": 100 - len(turned), "refused": len(turned)}
    assert len(turned) >= 50
    assert relay.counted("open") == {"accepted": 50}


@pytest.mark.row("F12")
async def test_tails_that_nobody_reads_hold_up_nothing(start: Start) -> None:
    """Dozens of them: events are taken, the thirty-third is told to come again, all end with their deadline."""
    relay = await start(OPEN, server={"header_timeout": "1s"})
    asked = request("/api/v1/stream?from=start", method="GET", host="localhost").replace(
        b"Content-Length: 0\r\n", b"Authorization: Bearer an-admin-token-of-the-tests\r\n"
    )
    async with many(relay.admin, 32) as tails:
        for tail in tails:
            await tail.send(asked)
        await until(lambda: len(relay.app._streams._open) == 32)
        answer = await relay.raw(asked, at=relay.admin)
        assert (answer.status, answer["retry-after"]) == (503, "5")
        for number in range(100):
            assert (await relay.post("/hooks/open", b'{"id": %d}' % number)).status == 200
    await until(lambda: not relay.app._streams._open)
