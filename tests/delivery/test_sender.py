"""One request over a real socket to a target that may do anything: what it gets, and what each answer comes to."""

import asyncio
import errno
import gzip
import os
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.delivery.sender import EXCERPT, Sender
from relay.model import Claim, Event, Headers, Outcome, OutcomeKind, StatusSet, Target
from relay.rules.egress import EgressPolicy
from tests.support.posting import PostingSender
from tests.support.scripted_target import (
    Answerer,
    Received,
    ScriptedServer,
    closed_port,
    endless,
    in_turn,
    raw,
    scripted,
    status,
)

NOW = datetime(2031, 1, 1, tzinfo=UTC)
TIMEOUT = 0.4
OK = status(200)
LINE = b"HTTP/1.1 200 OK\r\n"
PRIVATE = EgressPolicy()

WAYS = {"short way": (Sender, True), "long way": (Sender, False), "no task": (PostingSender, True)}
MakeSender = Callable[..., Sender]


@pytest.fixture(params=WAYS.values(), ids=WAYS)
async def make_sender(request: pytest.FixtureRequest) -> AsyncIterator[MakeSender]:
    """Builds senders by each way; all keep every promise."""
    kind, short_way = request.param
    made: list[Sender] = []

    def make(url: str, *, egress: EgressPolicy = PRIVATE, timeout: float = TIMEOUT, **settings: Any) -> Sender:
        target = Target("crm", url, timeout=timedelta(seconds=timeout), **settings)
        sender: Sender = kind(
            target,
            egress,
            key_headers={"shop": "x-shop-key"},
            user_agent="relay/test",
            now=lambda: NOW,
            short_way=short_way,
        )
        made.append(sender)
        return sender

    yield make
    for sender in made:
        await sender.close()


def claim(body: bytes = b"{}", headers: Headers = (), *, attempt: int = 1) -> Claim:
    """A claim on an event with this body."""
    event = Event("evt_1", "shop", "order.paid", NOW, headers, body, hops=2)
    return Claim(event, "crm", attempt=attempt, step=attempt - 1, token=1, lease_until=NOW + timedelta(minutes=1))


async def outcome_of(sender: Sender, body: bytes = b"{}") -> Outcome:
    """What one request comes to."""
    return (await sender.send(claim(body), body)).outcome


# --- what a target gets ---

BODIES = {
    "empty": b"",
    "json": '{"naïve": "✓"}'.encode(),
    "every byte": bytes(range(256)) * 3,
    "at the limit of the short way": random.Random(1).randbytes(64 * 1024),
    "over it": random.Random(2).randbytes(64 * 1024 + 1),
    "a mebibyte": random.Random(3).randbytes(1024 * 1024),
    "crlf": b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_target_gets_the_same_bytes(make_sender: MakeSender, body: bytes) -> None:
    """Byte for byte, framed by a right `Content-Length` and nothing else, twice over one connection."""
    async with scripted(OK) as server:
        sender = make_sender(server.url, timeout=5)
        for _ in range(2):
            assert (await outcome_of(sender, body)).kind is OutcomeKind.DELIVERED
        assert [request.body for request in server.received] == [body, body]
        assert server.connections == 1
        for request in server.received:
            assert request.one("content-length") == str(len(body))
            assert request.all("transfer-encoding") == request.all("expect") == []


async def test_a_target_gets_the_providers_headers_and_ours(make_sender: MakeSender) -> None:
    """Theirs as they came, but for what is the connection's, ours or nobody's; ours added; none by the client."""
    provider = (
        ("Content-Type", "application/json; charset=utf-8"),
        ("X-Signature", "sha256=abc"),
        ("X-Multi", "one"),
        ("X-Multi", "two"),
        ("X-Raw", "h\udcc3\udca9"),
        ("X-Shop-Key", "shared secret"),
        ("Authorization", "Bearer theirs"),
        ("Cookie", "a=b"),
        ("Content-Length", "9999"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "x-hop"),
        ("X-Hop", "1"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("relay-attempt", "77"),
        ("Accept-Encoding", "gzip"),
        ("User-Agent", "theirs"),
    )
    async with scripted(OK) as server:
        sender = make_sender(server.url + "?a=1", headers=(("Authorization", "Bearer ours"),))
        sent = await sender.send(claim(b"{}", provider, attempt=3), b"{}")
        assert sent.outcome.kind is OutcomeKind.DELIVERED
        assert sent.dropped_headers == ("X-Raw",)
        (request,) = server.received
        assert request.line == "POST /hooks?a=1 HTTP/1.1"
        assert request.one("host") == f"127.0.0.1:{server.port}"
        rest = [header for header in request.headers if header[0].lower() not in ("host", "content-length")]
        assert rest == [
            ("Content-Type", "application/json; charset=utf-8"),
            ("X-Signature", "sha256=abc"),
            ("X-Multi", "one"),
            ("X-Multi", "two"),
            ("Authorization", "Bearer ours"),
            ("User-Agent", "relay/test"),
            ("relay-event-id", "evt_1"),
            ("relay-source", "shop"),
            ("relay-event-type", "order.paid"),
            ("relay-attempt", "3"),
            ("relay-received-at", "2031-01-01T00:00:00.000Z"),
            ("relay-hops", "3"),
            ("webhook-id", "evt_1"),
        ]


async def test_headers_that_differ_by_their_case_alone_all_arrive(make_sender: MakeSender) -> None:
    """One field in two spellings is two lines, and a signature may stand on each."""
    provider = (("x-multi", "one"), ("X-Multi", "two"), ("X-MULTI", "three"))
    async with scripted(OK) as server:
        await make_sender(server.url).send(claim(b"{}", provider), b"{}")
        assert server.received[0].all("x-multi") == ["one", "two", "three"]


async def test_the_url_is_sent_as_it_was_written(make_sender: MakeSender) -> None:
    """Escapes in a secret path or query are part of the secret."""
    async with scripted(OK) as server:
        await outcome_of(make_sender(f"http://127.0.0.1:{server.port}/a%2Fb/%7Ec?sig=x%3Dy%2B&n=1+2"))
        assert server.received[0].line == "POST /a%2Fb/%7Ec?sig=x%3Dy%2B&n=1+2 HTTP/1.1"


async def test_no_cookies_are_kept(make_sender: MakeSender) -> None:
    """What a target sets is forgotten with its answer."""
    async with scripted(status(200, "Set-Cookie: session=1; Path=/")) as server:
        sender = make_sender(server.url)
        await outcome_of(sender)
        await outcome_of(sender)
        assert len(server.received) == 2
        assert server.received[1].all("cookie") == []


@pytest.mark.row("F20")
async def test_an_answer_is_not_unpacked(make_sender: MakeSender) -> None:
    """Its excerpt is of the bytes that came: to unpack them would be at the target's choice, and at our cost."""
    body = gzip.compress(b"readable" * 100)
    async with scripted(status(500, "Content-Encoding: gzip", body=body)) as server:
        outcome = await outcome_of(make_sender(server.url))
    assert (outcome.kind, outcome.status) == (OutcomeKind.FAILED, 500)
    assert outcome.excerpt
    assert "readablereadable" not in outcome.excerpt


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where an event goes, and with which credentials, stands in the YAML alone."""
    async with scripted(OK) as proxy, scripted(OK) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        netrc = tmp_path / "netrc"
        netrc.write_text("default login somebody password secret\n", encoding="ascii")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        assert (await outcome_of(make_sender(server.url))).kind is OutcomeKind.DELIVERED
        assert proxy.connections == 0
        (received,) = server.received
        assert received.all("authorization") == []


@pytest.mark.row("F21")
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(make_sender: MakeSender, code: int) -> None:
    """A redirect is a failure, wherever it points to."""
    async with scripted(OK) as other, scripted(status(code, f"Location: {other.url}")) as server:
        outcome = await outcome_of(make_sender(server.url))
        assert (outcome.kind, outcome.status) == (OutcomeKind.FAILED, code)
        assert len(server.received) == 1
        assert other.connections == 0


# --- what an answer comes to ---


@pytest.mark.row("F19", "B7")
@pytest.mark.parametrize(
    ("answer", "kind", "wait"),
    [
        (status(200), OutcomeKind.DELIVERED, None),
        (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), OutcomeKind.DELIVERED, None),
        (raw(b"HTTP/1.0 200 OK\r\n\r\nold", then="close"), OutcomeKind.DELIVERED, None),
        (raw(b"HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n"), OutcomeKind.DELIVERED, None),
        (status(400), OutcomeKind.REFUSED, None),
        (status(422, body=b"no"), OutcomeKind.REFUSED, None),
        (status(404), OutcomeKind.FAILED, None),
        (status(500, body=b"oops"), OutcomeKind.FAILED, None),
        (status(503), OutcomeKind.FAILED, None),
        (status(503, "Retry-After: soon"), OutcomeKind.FAILED, None),
        (status(503, "Retry-After: 30"), OutcomeKind.THROTTLED, 30),
        (status(429), OutcomeKind.THROTTLED, None),
        (status(429, "Retry-After: Wed, 01 Jan 2031 00:00:40 GMT"), OutcomeKind.THROTTLED, 40),
        (status(429, "retry-after: 999999999"), OutcomeKind.THROTTLED, 86400),
        (status(410), OutcomeKind.GONE, None),
    ],
)
async def test_every_status_comes_to_its_outcome(
    make_sender: MakeSender, answer: Answerer, kind: OutcomeKind, wait: int | None
) -> None:
    """The outcome table over a real socket, with the wait that was asked for."""
    async with scripted(answer) as server:
        outcome = await outcome_of(make_sender(server.url))
        assert outcome.kind is kind
        assert outcome.reason == f"status {outcome.status}"
        assert outcome.retry_after == (None if wait is None else timedelta(seconds=wait))


BROKEN_SUCCESSES = {
    "reset after the status line": raw(LINE, then="reset", pause=0.05),
    "closed after the status line": raw(LINE, then="close"),
    "headers that are none": raw(LINE + b"no header at all\r\n\r\n"),
    "a header of 200 kB": raw(LINE + b"X-Big: " + b"x" * 200_000 + b"\r\n\r\n", then="close"),
    "5,000 headers": raw(LINE + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"Content-Length: 0\r\n\r\n"),
    "hanging headers": raw(LINE, then="hang"),
    "dripping headers": endless(LINE, b"X-A: b\r\n", pause=0.02),
    "reset in the body": raw(LINE + b"Content-Length: 100\r\n\r\nhalf", then="reset", pause=0.05),
    "closed in the body": raw(LINE + b"Content-Length: 100\r\n\r\nhalf", then="close"),
    "a body that hangs": raw(LINE + b"Content-Length: 100\r\n\r\nhalf", then="hang"),
    "a body that drips": endless(LINE + b"Content-Length: 10000\r\n\r\n", b"x", pause=0.02),
    "a body without end": endless(LINE + b"Connection: close\r\n\r\n", b"x" * 65536),
    "chunks that are none": raw(LINE + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", then="close"),
    "two lengths": raw(LINE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", then="close"),
    "a gzip bomb": status(200, "Content-Encoding: gzip", body=gzip.compress(bytes(10_000_000))),
    "false gzip": status(200, "Content-Encoding: gzip", body=b"not gzip"),
    "early hints before": raw(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + LINE + b"Content-Length: 0\r\n\r\n"
    ),
    "an interim 102 before": raw(b"HTTP/1.1 102 Processing\r\n\r\n", LINE + b"Content-Length: 0\r\n\r\n", pause=0.05),
    "early hints and a break": raw(b"HTTP/1.1 103 Early Hints\r\n\r\n", LINE, then="close", pause=0.05),
    "more than was asked for": raw((LINE + b"Content-Length: 0\r\n\r\n") * 2, then="close"),
}


@pytest.mark.row("F15", "F16", "F20")
@pytest.mark.parametrize("answer", BROKEN_SUCCESSES.values(), ids=BROKEN_SUCCESSES.keys())
async def test_a_2xx_status_line_is_a_delivery_however_broken_the_rest(
    make_sender: MakeSender, answer: Answerer
) -> None:
    """The target has taken the event: to send it again for a broken answer would be our fault."""
    async with scripted(answer) as server:
        sender = make_sender(server.url)
        began = asyncio.get_running_loop().time()
        outcome = await outcome_of(sender)
        assert (outcome.kind, outcome.status) in ((OutcomeKind.DELIVERED, 200), (OutcomeKind.DELIVERED, None))
        assert asyncio.get_running_loop().time() - began < TIMEOUT + 0.5
        assert len(server.received) == 1
        assert len(outcome.excerpt) <= EXCERPT


NO_ANSWERS = {
    "a hang": (raw(then="hang"), "timeout: no answer within 0.4 s"),
    "a status line that drips": (endless(b"HTTP/1.1", b" ", pause=0.02), ""),
    "early hints for ever": (endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.02), "timeout: no answer"),
    "a reset": (raw(then="reset"), "connection broke: Connection reset by peer"),
    "a close": (raw(then="close"), "connection closed without an answer"),
    "half a status line": (raw(b"HTTP/1.1 2", then="close"), ""),
    "garbage": (raw(b"SSH-2.0-OpenSSH_9.2\r\n", then="close"), "malformed answer"),
    "a page without a head": (raw(b"<html>hello</html>\r\n\r\n", then="close"), "malformed answer"),
    "binary": (raw(bytes(range(256)) * 10, then="close"), "malformed answer"),
    "an empty line": (raw(b"\r\n\r\n", then="close"), ""),
    "a status of four digits": (raw(b"HTTP/1.1 2000 OK\r\n\r\n", then="close"), ""),
    "a status that is no number": (raw(b"HTTP/1.1 two OK\r\n\r\n", then="close"), ""),
}


@pytest.mark.row("F14", "F15", "F16", "F20", "B41")
@pytest.mark.parametrize(("answer", "reason"), NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
async def test_what_is_no_answer_is_unreachable(make_sender: MakeSender, answer: Answerer, reason: str) -> None:
    """Nothing done instead of answering is raised, taken for a success, or waited for past the timeout."""
    async with scripted(answer) as server:
        began = asyncio.get_running_loop().time()
        outcome = await outcome_of(make_sender(server.url))
        assert (outcome.kind, outcome.status) == (OutcomeKind.UNREACHABLE, None)
        assert outcome.reason.startswith(reason)
        assert "127.0.0.1" not in outcome.reason
        assert "hooks" not in outcome.reason
        assert asyncio.get_running_loop().time() - began < TIMEOUT + 0.5


@pytest.mark.row("F16")
async def test_a_broken_answer_with_another_status_is_no_delivery(make_sender: MakeSender) -> None:
    """Only a 2xx says that the event was taken."""
    async with scripted(raw(b"HTTP/1.1 500 Oops\r\nno header at all\r\n\r\n", then="close")) as server:
        assert (await outcome_of(make_sender(server.url))).kind in (OutcomeKind.FAILED, OutcomeKind.UNREACHABLE)
    async with scripted(raw(LINE, then="close")) as server:
        only_201 = make_sender(server.url, success=StatusSet(((201, 201),)))
        assert (await outcome_of(only_201)).kind in (OutcomeKind.FAILED, OutcomeKind.UNREACHABLE)


@pytest.mark.row("F13", "B41")
async def test_a_closed_port_is_unreachable(make_sender: MakeSender) -> None:
    """Nobody listens: tried again like any failure."""
    outcome = await outcome_of(make_sender(f"http://127.0.0.1:{closed_port()}/hooks"))
    assert outcome == Outcome(OutcomeKind.UNREACHABLE, reason="connect: Connection refused")


async def test_a_target_that_does_not_speak_tls_is_unreachable(make_sender: MakeSender) -> None:
    """A handshake that fails is told as such, in the library's words and without the address."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await outcome_of(make_sender(f"https://127.0.0.1:{port}/hooks", timeout=5))
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.reason.startswith("TLS: ")
        assert "127.0.0.1" not in outcome.reason


@pytest.mark.row("F23")
async def test_what_egress_forbids_is_never_dialled(make_sender: MakeSender) -> None:
    """A forbidden address is unreachable, with the reason, and no byte reaches it."""
    async with scripted(OK) as server:
        outcome = await outcome_of(make_sender(server.url, egress=EgressPolicy(policy="public")))
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.reason.startswith("egress policy forbids it: ")
        assert server.connections == 0


@pytest.mark.row("F20")
async def test_an_endless_answer_costs_no_memory(make_sender: MakeSender) -> None:
    """An answer is read up to a small cap, and its connection is not used again."""
    async with scripted(endless(LINE + b"Connection: keep-alive\r\n\r\n", b"x" * 65536)) as server:
        sender = make_sender(server.url)
        await outcome_of(sender)
        tracemalloc.start()
        try:
            await outcome_of(sender)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5 * 1024 * 1024
        assert [request.connection for request in server.received] == [1, 2]


# --- connections ---


@pytest.mark.row("F16")
@pytest.mark.parametrize("farewell", ["close", "reset"])
async def test_a_stale_connection_is_a_retry_and_not_a_loss(make_sender: MakeSender, farewell: str) -> None:
    """A target that drops a kept connection as we send on it: unreachable once, sent once, and then as ever."""
    async with scripted(in_turn(OK, raw(then=farewell), OK)) as server:
        sender = make_sender(server.url)
        kinds = [(await outcome_of(sender)).kind for _ in range(3)]
        assert kinds == [OutcomeKind.DELIVERED, OutcomeKind.UNREACHABLE, OutcomeKind.DELIVERED]
        assert len(server.received) == 3, "nothing is sent again behind our back"
        assert [request.connection for request in server.received] == [1, 1, 2]


async def test_a_target_that_restarts_between_two_requests_is_dialled_anew(make_sender: MakeSender) -> None:
    """Connections that the old process closed are not used for the new one."""
    async with scripted(OK) as server:
        port = server.port
        sender = make_sender(server.url)
        assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED
        server.hang_up()
    while (await outcome_of(sender)).reason != "connect: Connection refused":
        pass
    async with scripted(OK, port=port) as server:
        assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED


async def test_a_cancelled_attempt_closes_its_connection(make_sender: MakeSender) -> None:
    """An answer that comes too late cannot be taken for the next request's."""
    began = asyncio.Event()

    async def late(request: Received, writer: Any) -> None:
        began.set()
        if len(server.received) == 1:
            await asyncio.Event().wait()
        await OK(request, writer)

    server: ScriptedServer
    async with scripted(late) as server:
        sender = make_sender(server.url, timeout=30)
        task = asyncio.create_task(outcome_of(sender))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED
        assert [request.connection for request in server.received] == [1, 2]


async def test_answers_are_not_mixed_up_between_requests_under_way(make_sender: MakeSender) -> None:
    """Each of many requests at once gets its own answer, broken or not."""
    codes = {b"0": 200, b"1": 500, b"2": 422, b"3": 410}

    async def by_body(request: Received, writer: Any) -> None:
        await asyncio.sleep(random.Random(len(server.received)).uniform(0, 0.02))
        broken = len(server.received) % 3 == 0 and request.body == b"0"
        await (raw(LINE, then="close") if broken else status(codes[request.body]))(request, writer)

    kinds = {
        b"0": OutcomeKind.DELIVERED,
        b"1": OutcomeKind.FAILED,
        b"2": OutcomeKind.REFUSED,
        b"3": OutcomeKind.GONE,
    }
    server: ScriptedServer
    async with scripted(by_body) as server:
        sender = make_sender(server.url, timeout=5, concurrency=8)
        bodies = [b"%d" % (number % 4) for number in range(80)]
        outcomes = await asyncio.gather(*(outcome_of(sender, body) for body in bodies))
        assert [outcome.kind for outcome in outcomes] == [kinds[body] for body in bodies]


# --- secrets ---


@pytest.mark.parametrize("padding", [0, 500, EXCERPT - 20, EXCERPT - 8])
async def test_an_excerpt_holds_no_credential_of_ours(make_sender: MakeSender, padding: int) -> None:
    """A target that echoes what we sent does not bring our secret into the store, whole or cut."""
    token = "tok_0123456789abcdef0123456789abcdef"
    async with scripted(status(500, body=b"x" * padding + b" Bearer " + token.encode())) as server:
        outcome = await outcome_of(make_sender(server.url, headers=(("Authorization", f"Bearer {token}"),)))
        assert outcome.kind is OutcomeKind.FAILED
        assert token[:8] not in outcome.excerpt


@pytest.mark.parametrize("echo", ["sesam", "path-canary-0123", "query-canary", "path-canary-0123%3Ft%3Dquery-canary"])
async def test_an_excerpt_holds_no_part_of_a_credential(make_sender: MakeSender, echo: str) -> None:
    """A short password, the last segment of the path, a value of the query; the words around them stay."""
    async with scripted(status(500, body=f"no route for {echo}, not accepted".encode())) as server:
        sender = make_sender(
            f"{server.url}/path-canary-0123?t=query-canary",
            headers=(("Authorization", "Bearer sesam"), ("X-Env", "accepted"), ("Accept", "text/plain")),
        )
        outcome = await outcome_of(sender)
        assert outcome.excerpt.startswith("no route for ***")
        assert outcome.excerpt.endswith(", not accepted")
        assert "canary" not in outcome.excerpt


# --- faults in words ---


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EADDRNOTAVAIL, OutcomeKind.UNREACHABLE),
        (errno.ENETUNREACH, OutcomeKind.UNREACHABLE),
        (errno.EMFILE, OutcomeKind.INTERRUPTED),
        (errno.ENOBUFS, OutcomeKind.INTERRUPTED),
    ],
)
async def test_only_a_shortage_of_ours_is_not_counted(make_sender: MakeSender, code: int, kind: OutcomeKind) -> None:
    """An address of a family that this machine has not is the target's fault: it would be tried for ever, uncounted."""
    assert make_sender("http://[::1]:9/")._broken(OSError(code, os.strerror(code))).kind is kind


async def test_of_several_addresses_the_first_fault_is_told(make_sender: MakeSender) -> None:
    """Where each address of a host fails in its own way, the words are the first one's, without any address."""
    texts = (
        f"[Errno {errno.ECONNREFUSED}] Connect call failed ('::1', 9, 0, 0)",
        f"[Errno {errno.ENETUNREACH}] Connect call failed ('10.0.0.1', 9)",
    )
    folded = f"Multiple exceptions: {', '.join(texts)}"
    sender = make_sender("http://crm.test/")
    assert sender._broken(OSError(folded)).reason == "connection broke: Connection refused"
    assert sender._broken(OSError(f"Multiple exceptions: {texts[0]}")).kind is OutcomeKind.UNREACHABLE
    assert "10.0.0.1" not in sender._broken(OSError("Multiple exceptions: 10.0.0.1 failed")).reason
    assert sender._broken(OSError("[Errno 99999] 10.0.0.1")).reason == "connection broke: unknown fault"


@pytest.mark.slow
@pytest.mark.row("F29")
async def test_an_answer_that_came_while_the_process_stood_still_counts(make_sender: MakeSender) -> None:
    """A standstill longer than the timeout makes no failure of an answer that has come meanwhile."""
    asked = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.write(LINE + b"Content-Length: 0\r\n\r\n")

    async with scripted(answer) as server:
        sending = asyncio.create_task(make_sender(server.url, timeout=1.2).send(claim(), b"{}"))
        await asked.wait()
        time.sleep(3)  # the fault itself: nothing of this process runs
        assert (await sending).outcome.kind is OutcomeKind.DELIVERED


@pytest.mark.slow
@pytest.mark.row("F29")
async def test_a_failure_in_which_the_process_stood_still_is_not_the_targets(make_sender: MakeSender) -> None:
    """It is interrupted: no step, no count. The next, in which nothing stood still, is the target's own again."""
    async with scripted(raw(then="hang")) as server:
        sender = make_sender(server.url, timeout=1.2)
        sending = asyncio.create_task(sender.send(claim(), b"{}"))
        while not server.received:
            await asyncio.sleep(0.01)
        time.sleep(3)  # likewise
        assert (await sending).outcome.kind is OutcomeKind.INTERRUPTED
        assert (await sender.send(claim(), b"{}")).outcome.kind is OutcomeKind.UNREACHABLE


async def test_what_was_left_out_of_one_event_is_not_told_of_another(make_sender: MakeSender) -> None:
    """Whichever answer is the same, and whichever came first."""
    bad = (("X-Bad", "a\0b"),)
    async with scripted(OK) as server:
        sender = make_sender(server.url)
        for headers, dropped in ((), ()), (bad, ("X-Bad",)), ((), ()), (bad, ("X-Bad",)):
            sent = await sender.send(claim(headers=headers), b"{}")
            assert (sent.outcome.status, sent.dropped_headers) == (200, dropped)


async def test_answers_without_a_body_are_judged_each_by_its_own_status(make_sender: MakeSender) -> None:
    """However often they come, and also where the body is what counts."""
    kinds = {204: OutcomeKind.DELIVERED, 500: OutcomeKind.FAILED, 429: OutcomeKind.THROTTLED, 410: OutcomeKind.GONE}
    kinds |= {200: OutcomeKind.DELIVERED, 422: OutcomeKind.REFUSED}
    order = [*kinds, *reversed(kinds), *kinds]
    answers = [status(one) if one != 204 else raw(b"HTTP/1.1 204 No Content\r\n\r\n") for one in order]
    async with scripted(in_turn(*answers)) as server:
        sender = make_sender(server.url)
        assert [(await outcome_of(sender)).kind for _ in order] == [kinds[one] for one in order]
    async with scripted(OK) as server:
        sender = make_sender(server.url, success_when="ok")
        for _ in range(3):
            outcome = await outcome_of(sender)
            assert (outcome.kind, outcome.reason) == (OutcomeKind.REFUSED, "success_when says no: the answer is empty")


async def test_a_large_body_does_not_wait_for_connections_that_are_kept(make_sender: MakeSender) -> None:
    """What takes the long way shares the connector, and its limit, with what does not."""
    async with scripted(OK) as server:
        sender = make_sender(server.url, timeout=5, concurrency=1)
        await asyncio.gather(*(outcome_of(sender) for _ in range(3)))
        for _ in range(4):
            assert (await outcome_of(sender, bytes(100_000))).kind is OutcomeKind.DELIVERED
            assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED
        assert server.connections <= 3
