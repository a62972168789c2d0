"""Two ways of reading an answer read the same: what our own accepts, aiohttp's parser would have told as well."""

import asyncio

import pytest
from aiohttp.client_proto import ResponseHandler
from hypothesis import example, given
from hypothesis import strategies as st

from relay.delivery.plain import LONGEST, plainest

OK = b"HTTP/1.1 200 OK\r\n"


def by_aiohttp(data: bytes) -> tuple[int, bytes] | None:
    """What aiohttp's own connection makes of these bytes; None where it is not one whole answer after which the
    connection is as good as before and which asks for nothing."""
    loop = asyncio.new_event_loop()
    try:
        handler = ResponseHandler(loop)
        handler.set_response_params(read_until_eof=True, auto_decompress=False)
        handler.data_received(data)
        if len(handler._buffer) != 1:
            return None
        message, content = handler._buffer.popleft()[0]
        if handler.should_close or not content.is_eof() or "Retry-After" in message.headers:
            return None
        return message.code, content.read_nowait()
    finally:
        loop.close()


def answer(*fields: bytes, status: bytes = b"200 OK", body: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


ACCEPTED = {
    "empty": answer(b"Content-Length: 0"),
    "with a body": answer(b"content-length: 11", body=b'{"ok":true}'),
    "of a usual server": answer(
        b"Server: nginx",
        b"Date: Mon, 30 Nov 2026 02:12:12 GMT",
        b"Content-Type: text/html; charset=utf-8",
        b"Content-Length: 2",
        b"Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"X-Empty:",
        body=b"ok",
    ),
    "204": answer(status=b"204 No Content"),
    "204 with fields": answer(b"Date: today", b"Connection: keep-alive", status=b"204 No Content"),
    "a failure": answer(b"Content-Length: 4", status=b"500 Oops", body=b"oops"),
    "a redirect": answer(b"Location: /there", b"Content-Length: 0", status=b"302 Found"),
    "no reason": answer(b"Content-Length: 0", status=b"200 "),
    "any bytes in the body": answer(b"Content-Length: 256", body=bytes(range(256))),
    "compressed": answer(b"Content-Encoding: gzip", b"Content-Length: 4", body=b"nope"),
}

LEFT = {
    "nothing": b"",
    "half a head": OK + b"Content-Length: 0\r\n",
    "half a body": answer(b"Content-Length: 3", body=b"ok"),
    "more than a body": answer(b"Content-Length: 1", body=b"ok"),
    "two answers": answer(b"Content-Length: 0") * 2,
    "an interim answer": answer(status=b"100 Continue") + answer(b"Content-Length: 0"),
    "another protocol": answer(b"Upgrade: x", b"Connection: upgrade", status=b"101 S"),
    "no length": answer(),
    "no length but a body": answer(body=b"ok"),
    "two lengths": answer(b"Content-Length: 2", b"Content-Length: 2", body=b"ok"),
    "two lengths in one": answer(b"Content-Length: 2, 2", body=b"ok"),
    "a signed length": answer(b"Content-Length: +2", body=b"ok"),
    "a length with a line folded": answer(b"Content-Length: 2", b" 0", body=b"ok"),
    "a length of many digits": answer(b"Content-Length: 00002", body=b"ok"),
    "a space before the colon": answer(b"Content-Length : 2", body=b"ok"),
    "chunks": answer(b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    "chunks and a length": answer(b"Content-Length: 12", b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    "the last over this connection": answer(b"Connection: close", b"Content-Length: 0"),
    "options of the connection": answer(b"Connection: keep-alive, x-a", b"Content-Length: 0"),
    "the last, by another name": answer(b"Proxy-Connection: close", b"Content-Length: 0"),
    "an offer of another protocol": answer(b"Upgrade: h2c", b"Content-Length: 0"),
    "a pause": answer(b"Retry-After: 5", b"Content-Length: 0", status=b"503 Busy"),
    "204 with a length": answer(b"Content-Length: 0", status=b"204 No Content"),
    "204 with a body": answer(status=b"204 No Content", body=b"x"),
    "304": answer(b"Content-Length: 0", status=b"304 Not Modified"),
    "status 600": answer(b"Content-Length: 0", status=b"600 Odd"),
    "HTTP/1.0": answer(b"Content-Length: 0").replace(b"1.1", b"1.0"),
    "line ends of another kind": answer(b"Content-Length: 0").replace(b"\r\n", b"\n"),
    "no header name": answer(b": x", b"Content-Length: 0"),
    "no header": answer(b"no header at all", b"Content-Length: 0"),
    "a control character": answer(b"X-A: a\0b", b"Content-Length: 0"),
    "bytes above 127": answer(b"X-A: \xff", b"Content-Length: 0"),
    "many fields": answer(*[b"X-A: b"] * 130, b"Content-Length: 0"),
    "much": answer(b"Content-Length: %d" % LONGEST, body=bytes(LONGEST)),
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_most_targets_say_is_read_without_the_parser(data: bytes) -> None:
    """With the same result."""
    assert plainest(data) == by_aiohttp(data) is not None


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT.keys())
def test_what_is_unusual_is_left_to_the_parser(data: bytes) -> None:
    """Whatever it is that is unusual about it."""
    assert plainest(data) is None


NAMES = [
    b"Content-Length", b"content-length", b"Content-Length ", b"Transfer-Encoding", b"Connection", b"Keep-Alive",
    b"Proxy-Connection", b"Upgrade", b"Retry-After", b"Trailer", b"Content-Type", b"Set-Cookie", b"Sec-WebSocket-Key1",
    b"X-A", b"", b"a b", b"\xc3\xa9", b" X-Folded",
]  # fmt: skip
VALUES = [
    b"0", b"2", b"3", b" 2 ", b"02", b"2, 2", b"+2", b"0x2", b"", b"chunked", b"identity", b"keep-alive", b"Keep-Alive",
    b"close", b"keep-alive, close", b"upgrade", b"x\ty", b"x\0y", b"x\x7f", b"\xff", b"x\ry", b"x\ny",
    b"content-length: 2", b"keep-alive ",
]  # fmt: skip
FIELDS = st.one_of(
    st.builds(lambda name, value: name + b": " + value, st.sampled_from(NAMES), st.sampled_from(VALUES)),
    st.builds(lambda name, value: name + b":" + value, st.sampled_from(NAMES), st.binary(max_size=8)),
    st.sampled_from(
        [b"Content-Length: 2", b"Content-Length: 0", b"Content-Type: text/plain", b"Connection: keep-alive"]
    ),
)
ANSWERS = st.builds(
    lambda start, fields, ends, body: start + ends + b"".join(field + ends for field in fields) + ends + body,
    st.one_of(
        st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/1.1 099 x"]),
        st.builds(lambda status: b"HTTP/1.1 %d x" % status, st.integers(100, 999)),
        st.sampled_from([b"HTTP/1.1 204 No Content", b"HTTP/1.1 205 Reset", b"HTTP/1.1 304 Same", b"HTTP/2.0 200 OK"]),
    ),
    st.lists(FIELDS, max_size=5),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
    st.sampled_from([b"ok", b"ok", b"", b"okay", b"\r\n", b"2\r\nok\r\n0\r\n\r\n"]),
)


USUAL = st.builds(
    lambda status, before, after, body: answer(
        *before, b"Content-Length: %d" % len(body), *after, status=b"%d x" % status, body=body
    ),
    st.integers(200, 599),
    st.lists(FIELDS, max_size=2),
    st.lists(FIELDS, max_size=1),
    st.binary(max_size=20),
)


@given(ANSWERS | USUAL)
@example(answer(b"X-A: a", b"\tContent-Length: 2", body=b"ok"))
def test_whatever_is_accepted_is_read_the_same_by_aiohttp(data: bytes) -> None:
    """Status and body are the same, the connection can be used again, and no header asks for anything."""
    ours = plainest(data)
    assert ours is None or ours == by_aiohttp(data)


@given(st.sampled_from([*ACCEPTED.values()]), st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))
def test_a_plain_answer_with_a_few_bytes_changed_is_read_the_same_or_left(
    data: bytes, at: int, put: bytes, cut: int
) -> None:
    """Wherever they are."""
    changed = data[: at % len(data)] + put + data[at % len(data) + cut :]
    ours = plainest(changed)
    assert ours is None or ours == by_aiohttp(changed)
