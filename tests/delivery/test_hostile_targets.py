"""Targets that mean harm, or are broken enough to do it: what each answer costs, and what it can never bring about."""

import asyncio
import gzip
import socket
import ssl
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.delivery.sender import Sender
from relay.model import Claim, ClientTls, Event, Outcome, OutcomeKind, Target
from relay.rules.egress import EgressPolicy
from tests.support.certificates import Authority, self_signed
from tests.support.posting import PostingSender
from tests.support.scripted_target import (
    Answerer,
    Received,
    ScriptedServer,
    black_hole,
    endless,
    in_turn,
    listening,
    raw,
    reset,
    scripted,
    status,
)

NOW = datetime(2031, 1, 1, tzinfo=UTC)
TIMEOUT = 0.4
LONG = 50.0
"""A timeout that no test may come near to: what ends sooner was ended for another reason."""
LINE = b"HTTP/1.1 200 OK\r\n"
OK = status(200)
OTHER = status(422, body=b"the answer to the second request")
MIB = 1024 * 1024

WAYS = [
    pytest.param((Sender, True), id="short way"),
    pytest.param((PostingSender, True), id="no task"),
    pytest.param((Sender, False), id="long way", marks=pytest.mark.slow),
]
MakeSender = Callable[..., Sender]


@pytest.fixture(params=WAYS)
async def make_sender(request: pytest.FixtureRequest) -> AsyncIterator[MakeSender]:
    """Builds senders by each way; all keep every promise."""
    kind, short_way = request.param
    made: list[Sender] = []

    def make(url: str, *, timeout: float = TIMEOUT, **settings: Any) -> Sender:
        target = Target("crm", url, timeout=timedelta(seconds=timeout), **settings)
        sender: Sender = kind(
            target, EgressPolicy(), key_headers={}, user_agent="relay/test", now=lambda: NOW, short_way=short_way
        )
        made.append(sender)
        return sender

    yield make
    for sender in made:
        await sender.close()


async def outcome_of(sender: Sender, body: bytes = b"{}") -> Outcome:
    """What one request comes to."""
    event = Event("evt_1", "shop", "order.paid", NOW, (), body)
    claim = Claim(event, "crm", attempt=1, step=0, token=1, lease_until=NOW + timedelta(minutes=1))
    return (await sender.send(claim, body)).outcome


def lines(*headers: bytes, code: bytes = b"200 OK") -> bytes:
    """The head of an answer."""
    return b"HTTP/1.1 " + code + b"\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def early(answer: bytes, *, then: Answerer) -> Answerer:
    """An answer, and after a moment something else that nobody has asked for."""

    async def both(request: Received, writer: asyncio.StreamWriter) -> None:
        await raw(answer, pause=0.05)(request, writer)
        await then(request, writer)

    return both


# --- every answer, and the one after it ---

DELIVERED = {OutcomeKind.DELIVERED}
UNREACHABLE = {OutcomeKind.UNREACHABLE}
FAILED = {OutcomeKind.FAILED}
BROKEN = FAILED | UNREACHABLE
"""Its status says no, and the rest that nobody can read it: both are failures."""

NO_BODY = lines(b"Content-Length: 0")
BOMB = gzip.compress(bytes(20 * MIB))
CHUNKED = lines(b"Transfer-Encoding: chunked")
ANSWERS: dict[str, tuple[Answerer, set[OutcomeKind]]] = {
    # more than one answer
    "a second answer with the first": (raw(NO_BODY * 2), DELIVERED),
    "a hundred answers": (raw(NO_BODY * 100), DELIVERED),
    "a second answer a moment later": (early(NO_BODY, then=raw(NO_BODY)), DELIVERED),
    "half of a second answer, then the rest": (raw(NO_BODY + NO_BODY[:20], NO_BODY[20:], pause=0.05), DELIVERED),
    "a timeout that nobody waited for": (early(NO_BODY, then=raw(lines(code=b"408 Timeout"), then="close")), DELIVERED),
    "a second answer behind a failure": (raw(lines(b"Content-Length: 0", code=b"500 Oops") + NO_BODY), FAILED),
    "a body longer than its length": (raw(lines(b"Content-Length: 2") + b"ok" + NO_BODY), DELIVERED),
    "bytes behind the last chunk": (raw(CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + NO_BODY), DELIVERED),
    "bytes behind a 204": (raw(lines(code=b"204 No Content") + b"but here is one"), DELIVERED),
    "a body with a 204": (raw(lines(b"Content-Length: 4", code=b"204 No Content") + b"body"), DELIVERED),
    "a body with a 304": (raw(lines(b"Content-Length: 4", code=b"304 Not Modified") + b"body"), BROKEN),
    "an answer behind a 204": (raw(lines(code=b"204 No Content") + NO_BODY), DELIVERED),
    "line ends behind the answer": (raw(NO_BODY + b"\r\n\r\n\r\n"), DELIVERED),
    "the answer of another protocol behind it": (early(NO_BODY, then=raw(b"\x15\x03\x03\x00\x02\x02\x28")), DELIVERED),
    # interim answers
    "an interim answer of each kind": (
        raw(b"".join(lines(code=code) for code in (b"100 Continue", b"102 Processing", b"103 Hints")) + NO_BODY),
        DELIVERED,
    ),
    "an interim answer behind the final one": (raw(NO_BODY + lines(code=b"103 Hints")), DELIVERED),
    "an interim answer and then nothing": (raw(lines(code=b"100 Continue"), then="hang"), UNREACHABLE),
    "an interim answer and then the end": (raw(lines(code=b"100 Continue"), then="close"), UNREACHABLE),
    "another protocol": (
        raw(lines(b"Connection: upgrade", b"Upgrade: websocket", code=b"101 Switching Protocols")),
        FAILED,
    ),
    "another protocol and its first bytes": (
        raw(lines(b"Connection: upgrade", b"Upgrade: h2c", code=b"101 Switching Protocols") + NO_BODY * 2),
        FAILED,
    ),
    # lengths that are none
    "two lengths": (raw(lines(b"Content-Length: 2", b"Content-Length: 20") + b"ok"), DELIVERED),
    "two lengths in one": (raw(lines(b"Content-Length: 2, 2") + b"ok"), DELIVERED),
    "a negative length": (raw(lines(b"Content-Length: -1") + b"ok"), DELIVERED),
    "a length of many digits": (raw(lines(b"Content-Length: " + b"9" * 40) + b"ok"), DELIVERED),
    "a length just under 2^63": (raw(lines(b"Content-Length: 9223372036854775807") + b"ok"), DELIVERED),
    "a length that is no number": (raw(lines(b"Content-Length: ten") + b"ok"), DELIVERED),
    "a length and chunks": (
        raw(lines(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n"),
        DELIVERED,
    ),
    "two lengths and a failure": (
        raw(lines(b"Content-Length: 2", b"Content-Length: 3", code=b"500 X") + b"ok"),
        BROKEN,
    ),
    "chunks and then none": (raw(CHUNKED + b"5\r\nhello\r\n", then="close"), DELIVERED),
    "a chunk of a negative size": (raw(CHUNKED + b"-5\r\nhello\r\n"), DELIVERED),
    "a chunk of a huge size": (raw(CHUNKED + b"f" * 40 + b"\r\nhello\r\n"), DELIVERED),
    "a chunk without its end": (raw(CHUNKED + b"2\r\nokXX0\r\n\r\n"), DELIVERED),
    "an encoding that does not exist": (raw(lines(b"Transfer-Encoding: rot13"), b"ok", then="close"), DELIVERED),
    # bodies
    "a gzip bomb": (status(200, "Content-Encoding: gzip", body=BOMB), DELIVERED),
    "a gzip bomb with a failure": (status(500, "Content-Encoding: gzip", body=BOMB), FAILED),
    "bad gzip with a failure": (status(500, "Content-Encoding: gzip", body=b"\x1f\x8b\x08 not gzip"), FAILED),
    "an unknown encoding": (status(500, "Content-Encoding: br, zstd, x", body=b"\0" * 100), FAILED),
    "NULs": (status(500, body=b"\0" * 5000), FAILED),
    "text in no encoding": (status(500, "Content-Type: text/html; charset=nonsense", body=bytes(range(256))), FAILED),
    "a body that ends with the connection": (raw(lines(code=b"500 Oops") + b"x" * 5000, then="close"), FAILED),
    "a body that is reset": (raw(lines(code=b"500 Oops") + b"x" * 50, then="reset", pause=0.05), FAILED),
    # heads
    "a header of 200 kB": (raw(lines(b"X-A: " + b"a" * 200_000) + b"ok", then="close"), DELIVERED),
    "a header of 200 kB with a failure": (raw(lines(b"X-A: " + b"a" * 200_000, code=b"500 X"), then="close"), BROKEN),
    "5,000 headers": (raw(lines(*(b"X-%d: a" % one for one in range(5000))), then="close"), DELIVERED),
    "5,000 headers with a failure": (
        raw(lines(*(b"X-%d: a" % one for one in range(5000)), code=b"500 X"), then="close"),
        BROKEN,
    ),
    "5,000 cookies": (raw(lines(*(b"Set-Cookie: a%d=b" % one for one in range(5000))), then="close"), DELIVERED),
    "a cookie that is none": (raw(lines(b"Set-Cookie: =;;\x7f=; expires=never", b"Content-Length: 0")), DELIVERED),
    "a header without a colon": (raw(lines(b"no header at all"), then="close"), DELIVERED),
    "a NUL in a header": (raw(lines(b"X-A: a\0b"), then="close"), DELIVERED),
    "bytes above 127 in a header": (raw(lines(b"X-A: \xff\xfe", b"Content-Length: 0")), DELIVERED),
    "a folded header": (raw(lines(b"X-A: a", b" b", b"Content-Length: 0"), then="close"), DELIVERED),
    "line ends of another kind": (raw(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", then="close"), DELIVERED),
    # status lines
    "an answer of HTTP/0.9": (raw(b"<html>thank you</html>", then="close"), UNREACHABLE),
    "the preface of HTTP/2": (raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", then="close"), UNREACHABLE),
    "settings of HTTP/2": (raw(b"\0\0\x12\x04\0\0\0\0\0" + bytes(18), then="close"), UNREACHABLE),
    "the status line of HTTP/2": (raw(b"HTTP/2.0 200 OK\r\n\r\n", then="close"), DELIVERED),
    "the status line of HTTP/3.1": (raw(b"HTTP/3.1 200 OK\r\n\r\n", then="close"), UNREACHABLE),
    "a request": (raw(b"POST /hooks HTTP/1.1\r\nHost: x\r\n\r\n", then="close"), UNREACHABLE),
    "a status of two digits": (raw(b"HTTP/1.1 20 OK\r\n\r\n", then="close"), UNREACHABLE),
    "a status with a sign": (raw(b"HTTP/1.1 +200 OK\r\n\r\n", then="close"), UNREACHABLE),
    "a status of other digits": (raw("HTTP/1.1 \uff12\uff10\uff10 OK\r\n\r\n".encode(), then="close"), UNREACHABLE),
    "status 000": (raw(b"HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n", then="close"), BROKEN),
    "status 999": (status(999), FAILED),
    "NULs instead of an answer": (raw(bytes(1000), then="close"), UNREACHABLE),
    "an alert of TLS": (raw(b"\x15\x03\x01\x00\x02\x02\x46", then="close"), UNREACHABLE),
    # ends
    "the status line and then nothing": (raw(LINE, then="hang"), DELIVERED),
    "the head and then nothing": (raw(CHUNKED, then="hang"), DELIVERED),
    "the status line of a failure and then nothing": (raw(b"HTTP/1.1 500 Oops\r\n", then="hang"), BROKEN),
    "a reset before the status line": (raw(b"HTT", then="reset", pause=0.05), UNREACHABLE),
    "a reset in the status line": (raw(b"HTTP/1.1 50", then="reset", pause=0.05), UNREACHABLE),
    "a reset behind the answer": (raw(NO_BODY, then="reset", pause=0.05), DELIVERED),
    # redirects and pauses
    "a redirect to metadata": (status(302, "Location: http://169.254.169.254/latest/meta-data"), FAILED),
    "a redirect to itself": (status(307, "Location: /hooks"), FAILED),
    "a redirect to nowhere": (status(308, "Location: \x01http://[::"), BROKEN),
    "a refresh": (status(200, "Refresh: 0; url=http://169.254.169.254/"), DELIVERED),
    "a pause of ten years": (status(429, "Retry-After: 315360000"), {OutcomeKind.THROTTLED}),
    "two pauses": (status(503, "Retry-After: 5", "Retry-After: 10"), {OutcomeKind.THROTTLED}),
    "a pause that is none": (status(503, "Retry-After: -5"), FAILED),
}


@pytest.mark.row("F15", "F16", "F20", "F21", "T44", "T49")
async def test_no_answer_is_taken_for_that_of_the_next_request(make_sender: MakeSender) -> None:
    """Whatever a target says to one request, the next gets its own answer or none; and each is sent exactly once."""

    turns = asyncio.Semaphore(16)

    async def tried(name: str, answer: Answerer, kinds: set[OutcomeKind]) -> None:
        async with turns, scripted(in_turn(answer, OTHER)) as server:
            sender = make_sender(server.url, timeout=3)
            first = await outcome_of(sender, b"first")
            assert first.kind in kinds, f"{name}: {first}"
            assert "127.0.0.1" not in first.reason
            await asyncio.sleep(0.2)  # what it says on top is under way
            second = await outcome_of(sender, b"second")
            assert (second.kind, second.status) == (OutcomeKind.REFUSED, 422), f"{name}: {first}, and then {second}"
            assert [request.body for request in server.received] == [b"first", b"second"], name

    await asyncio.gather(*(tried(name, *one) for name, one in ANSWERS.items()))


@pytest.mark.row("F16", "B62")
@pytest.mark.parametrize("farewell", [NO_BODY, b""], ids=["one more answer", "the end of the connection"])
async def test_what_the_loop_has_not_read_yet_is_noticed_before_a_connection_is_used_again(
    make_sender: MakeSender, farewell: bytes
) -> None:
    """An answer that nobody asked for, or the target's end of the connection, may have arrived while the loop was busy:
    then another connection is taken, and nothing fails."""
    ends: list[ssl.SSLSocket | Any] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(2)
            ends.append(writer.get_extra_info("socket"))
            writer.write(NO_BODY if len(ends) == 1 else NO_BODY.replace(b"200", b"422"))
            assert head.startswith(b"POST ")

    async with listening(script) as port:
        sender = make_sender(f"http://127.0.0.1:{port}/hooks", timeout=5)
        assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED
        spare = ends[0].dup()  # what follows happens between two turns of the loop
        spare.send(farewell) if farewell else spare.shutdown(1)
        spare.close()
        second = await outcome_of(sender)
        assert (second.kind, second.status) == (OutcomeKind.REFUSED, 422)


# --- what has no end ---


def again(part: bytes, head: bytes = b"") -> Answerer:
    """A head and then the same for ever, as fast as it is taken."""
    return endless(head, part * (65536 // len(part) + 1))


FLOODS = {
    "interim answers": (again(lines(b"Link: </a>", code=b"103 Early Hints")), UNREACHABLE),
    "continues": (again(lines(code=b"100 Continue")), UNREACHABLE),
    "empty lines": (again(b"\r\n"), UNREACHABLE),
    "a status line": (again(b"a", b"HTTP/1.1 500 "), BROKEN),
    "header fields": (again(b"X-A: b\r\n", b"HTTP/1.1 500 Oops\r\n"), BROKEN),
    "one header field": (again(b"a", b"HTTP/1.1 500 Oops\r\nX-A: "), BROKEN),
    "answers": (again(NO_BODY), DELIVERED),
    "a body": (again(b"x", lines()), DELIVERED),
    "a body of a length": (again(b"x", lines(b"Content-Length: 9223372036854775807")), DELIVERED),
    "a body of a failure": (again(b"x", lines(code=b"500 Oops")), FAILED),
    "the smallest chunks": (again(b"1\r\nx\r\n", CHUNKED), DELIVERED),
    "one chunk's size": (again(b"0", CHUNKED), DELIVERED),
    "one chunk's extension": (again(b"x", CHUNKED + b"1;"), DELIVERED),
    "trailers": (again(b"X-A: b\r\n", CHUNKED + b"0\r\n"), DELIVERED),
    "trailers of a failure": (again(b"X-A: b\r\n", CHUNKED.replace(b"200", b"500") + b"0\r\n"), BROKEN),
    "bytes behind an answer": (again(b"x", lines(code=b"204 No Content")), DELIVERED),
    "bytes of another protocol": (again(b"x", lines(b"Upgrade: x", b"Connection: upgrade", code=b"101 S")), FAILED),
}


@pytest.mark.slow
@pytest.mark.row("F15", "F20", "T49")
@pytest.mark.parametrize(("answer", "kinds"), FLOODS.values(), ids=FLOODS.keys())
async def test_an_answer_without_end_is_cut_off_by_its_size(
    make_sender: MakeSender, answer: Answerer, kinds: set[OutcomeKind]
) -> None:
    """What comes as fast as we take it ends by a bound of bytes and not by the timeout, and costs no memory."""
    async with scripted(answer) as server:
        sender = make_sender(server.url, timeout=LONG)
        async with asyncio.timeout(LONG / 2):
            assert (await outcome_of(sender)).kind in kinds
            tracemalloc.start()
            try:
                outcome = await outcome_of(sender)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert outcome.kind in kinds, outcome
        assert peak < 5 * MIB
        assert server.connections == len(server.received) == 2, "a connection that was cut off is not used again"


@pytest.mark.row("F20")
@pytest.mark.parametrize("framing", ["", "Content-Length: 300000\r\n"])
async def test_of_a_long_answer_the_beginning_is_kept(make_sender: MakeSender, framing: str) -> None:
    """The page that tells what went wrong may be long; its beginning and its status stay to be seen."""
    page = f"HTTP/1.1 500 Oops\r\n{framing}\r\n<h1>the table is missing</h1>".encode() + b" " * 300_000
    async with scripted(raw(page, then="close")) as server:
        outcome = await outcome_of(make_sender(server.url, timeout=LONG))
        assert (outcome.kind, outcome.status) == (OutcomeKind.FAILED, 500)
        assert outcome.excerpt.startswith("<h1>the table is missing</h1>")


@pytest.mark.row("B46")
@pytest.mark.parametrize("letter", ["x", "\U0001f600", "\0", "\x1b", "\ud800"])
async def test_little_is_kept_of_an_answer(make_sender: MakeSender, letter: str) -> None:
    """However much a target says, and in whatever letters, what goes into the store and the log is short text."""
    page = letter.encode("utf-8", "surrogatepass") * 60_000
    head = lines(b"X-Reason: " + b"y" * 8000, code=b"500 " + b"z" * 8000)
    async with scripted(raw(head + page, then="close")) as server:
        outcome = await outcome_of(make_sender(server.url, timeout=5))
        assert outcome.kind in BROKEN
        assert len(outcome.excerpt.encode()) <= 4096
        assert len(outcome.reason) < 200


# --- before there is an answer ---


@pytest.mark.row("F14")
async def test_a_black_hole_is_given_up_soon(make_sender: MakeSender) -> None:
    """Where nobody takes the connection nothing is waited for longer than a connection may take, nor than the target's
    own timeout."""
    with black_hole() as port:
        began = asyncio.get_running_loop().time()
        outcome = await outcome_of(make_sender(f"http://127.0.0.1:{port}/hooks"))
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.reason.startswith("timeout: no ")
        assert asyncio.get_running_loop().time() - began < TIMEOUT + 5


@pytest.mark.row("F15", "F16")
@pytest.mark.parametrize("size", [1000, 60_000, MIB], ids=["small", "short way", "large"])
@pytest.mark.parametrize("then", ["keep", "close"])
async def test_an_answer_before_the_body_was_read(make_sender: MakeSender, size: int, then: str) -> None:
    """Who answers from the head alone has answered; the rest of the body is not waited for past the timeout."""
    async with scripted(status(200, then=then), reads_bodies=False) as server:
        outcome = await outcome_of(make_sender(server.url, timeout=2), b"x" * size)
        assert outcome.kind in DELIVERED | (UNREACHABLE if then == "close" and size > 60_000 else set())
        assert server.connections == 1


@pytest.mark.row("F15")
async def test_a_target_that_does_not_take_the_body_is_given_up(make_sender: MakeSender) -> None:
    """Who reads the head and no more holds us up until the timeout."""
    async with scripted(raw(then="hang"), reads_bodies=False) as server:
        outcome = await outcome_of(make_sender(server.url), b"x" * MIB)
        assert outcome == Outcome(OutcomeKind.UNREACHABLE, reason="timeout: no answer within 0.4 s")


@pytest.mark.row("F16")
@pytest.mark.parametrize("farewell", ["fin", "reset"])
async def test_a_connection_that_is_closed_as_soon_as_it_is_there(make_sender: MakeSender, farewell: str) -> None:
    """Nothing was said: unreachable, and sent no more than once."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close() if farewell == "fin" else reset(writer)

    async with listening(script) as port:
        outcome = await outcome_of(make_sender(f"http://127.0.0.1:{port}/hooks"))
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert connections == 1


@pytest.mark.row("F16")
async def test_a_target_that_closes_its_side_first_has_still_answered(make_sender: MakeSender) -> None:
    """Half of a connection is closed as soon as the answer is written; the other half may stay open for long."""

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(NO_BODY)
        writer.write_eof()

    async with scripted(in_turn(script, OTHER)) as server:
        sender = make_sender(server.url, timeout=5)
        assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED
        assert (await outcome_of(sender)).status == 422
        assert server.connections == 2


@pytest.mark.row("T54")
async def test_what_one_target_sets_no_target_gets(make_sender: MakeSender) -> None:
    """Cookies of every shape are forgotten: for the same target, its other paths, and others on its host."""
    cookies = [
        "a=1; Path=/",
        "b=2; Domain=127.0.0.1",
        "c=3; Domain=.0.0.1; Max-Age=99999",
        "__Host-d=4; Secure; Path=/",
    ]
    async with scripted(status(200, *(f"Set-Cookie: {one}" for one in cookies))) as one, scripted(OK) as other:
        for url in (one.url, one.url + "/more", other.url):
            sender = make_sender(url)
            assert [(await outcome_of(sender)).kind for _ in range(2)] == [OutcomeKind.DELIVERED] * 2
        requests = one.received + other.received
        assert len(requests) == 6
        assert [request.all("cookie") for request in requests] == [[]] * 6


def sockets() -> int:
    """How many sockets this process has open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.is_socket() for link in links)


def serve_rudely(listener: socket.socket, context: ssl.SSLContext | None, answer: bytes, over: threading.Event) -> None:
    """Take one connection, read little of it, answer, and then neither read nor close until it is over."""
    one, _ = listener.accept()
    with one if context is None else context.wrap_socket(one, server_side=True) as one:
        one.recv(1024)
        with suppress(OSError):  # who has heard enough may be gone before all is said
            one.sendall(answer)
        over.wait(30)


@pytest.mark.row("F15", "F20", "T49")
@pytest.mark.filterwarnings("ignore:Sending a large body")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not show what is open")
@pytest.mark.parametrize("secure", [False, True], ids=["with the body unsent", "with the farewell unanswered"])
async def test_nothing_is_left_of_a_connection_that_is_given_up(
    make_sender: MakeSender, tmp_path: Path, secure: bool
) -> None:
    """A target that neither reads what we send nor takes leave keeps neither a socket of ours nor the body."""
    authority, over = Authority(tmp_path), threading.Event()
    answer = NO_BODY.replace(b" 0", b" 200000") + b"x" * 200_000 if secure else b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = authority.server() if secure else None
        url = f"http{'s' if secure else ''}://127.0.0.1:{listener.getsockname()[1]}/hooks"
        sender = make_sender(url, timeout=5 if secure else TIMEOUT, tls=ClientTls(ca=str(authority.ca)))
        before = sockets()
        target = asyncio.create_task(asyncio.to_thread(serve_rudely, listener, context, answer, over))
        try:
            outcome = await outcome_of(sender, b"{}" if secure else b"x" * 16 * MIB)
            assert outcome.kind is (OutcomeKind.DELIVERED if secure else OutcomeKind.UNREACHABLE)
            async with asyncio.timeout(10):
                while sockets() > before + 1:  # the target's own end is in this process as well
                    await asyncio.sleep(0.01)
        finally:
            over.set()
            await target


# --- TLS ---


@pytest.mark.row("B51")
async def test_connections_over_tls_are_used_again(make_sender: MakeSender, tmp_path: Path) -> None:
    """What such a connection says for itself, its tickets for the next, is no answer that nobody asked for."""
    authority = Authority(tmp_path)
    async with scripted(OK, tls=authority.server()) as server:
        sender = make_sender(server.url, timeout=5, tls=ClientTls(ca=str(authority.ca)))
        for _ in range(20):
            assert (await outcome_of(sender)).kind is OutcomeKind.DELIVERED
        assert server.connections == 1


@asynccontextmanager
async def speaking(context: ssl.SSLContext) -> AsyncIterator[ScriptedServer]:
    """A target behind TLS."""
    async with scripted(OK, tls=context) as server:
        yield server


def presenting(cert: Path, key: Path) -> ssl.SSLContext:
    """What a server with this certificate speaks."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


@pytest.mark.row("T47", "T49")
async def test_every_certificate_that_does_not_fit_is_refused(make_sender: MakeSender, tmp_path: Path) -> None:
    """Of another name, out of date, not yet valid, signed by nobody or by another: nothing is sent, and it is told."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    trusts = ClientTls(ca=str(ours.ca))
    day = timedelta(days=1)
    cases = {
        "IP address mismatch": (presenting(*ours.issue("wrong", "127.0.0.2")), trusts),
        "certificate has expired": (presenting(*ours.issue("old", begins=-9 * day, ends=-day)), trusts),
        "certificate is not yet valid": (presenting(*ours.issue("young", begins=day, ends=2 * day)), trusts),
        "self-signed certificate": (presenting(*self_signed(tmp_path, "127.0.0.1")), None),
        "unable to get local issuer certificate": (presenting(*others.issue("stranger")), trusts),
    }
    for words, (context, tls) in cases.items():
        async with speaking(context) as server:
            outcome = await outcome_of(make_sender(server.url, timeout=5, tls=tls))
            assert outcome.kind is OutcomeKind.UNREACHABLE
            assert outcome.reason.startswith("TLS: ")
            assert words.lower() in outcome.reason.lower()
            assert server.received == []
    async with speaking(presenting(*ours.issue("right"))) as server:
        assert (await outcome_of(make_sender(server.url, timeout=5, tls=trusts))).kind is OutcomeKind.DELIVERED


@pytest.mark.row("T49")
async def test_a_handshake_that_never_ends_is_given_up(make_sender: MakeSender) -> None:
    """The way to a TLS connection takes no longer than a connection may: a silence, half a record, an odd one."""

    async def tried(says: bytes) -> Outcome:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(says)
            while await reader.read(65536):
                pass

        async with listening(script) as port:
            return await outcome_of(make_sender(f"https://127.0.0.1:{port}/hooks"))

    silences = (b"", b"\x16\x03\x03\x40\x00", b"\x16\x03\x03\x00\x02\x02\x00")
    for outcome in await asyncio.gather(*map(tried, silences)):
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.reason.startswith(("timeout: no ", "TLS: "))


@pytest.mark.row("T49")
async def test_a_handshake_that_floods_is_given_up(make_sender: MakeSender) -> None:
    """Bytes without end instead of a handshake end it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" * 1000)
            await writer.drain()

    async with listening(script) as port:
        outcome = await outcome_of(make_sender(f"https://127.0.0.1:{port}/hooks", timeout=5))
        assert outcome == Outcome(OutcomeKind.UNREACHABLE, reason=outcome.reason)
        assert outcome.reason.startswith("TLS: ")


@pytest.mark.row("T49")
async def test_a_target_that_speaks_tls_where_it_should_not(make_sender: MakeSender, tmp_path: Path) -> None:
    """Asked in the clear, a TLS server is unreachable; it is never asked in the clear for what is to be encrypted."""
    async with speaking(Authority(tmp_path).server()) as server:
        outcome = await outcome_of(make_sender(f"http://127.0.0.1:{server.port}/hooks", timeout=5))
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert server.received == []
