"""Where one request ends and the next begins is seen by us as by everybody else, or the connection ends there."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.configs import SOURCES, document
from tests.http.gateway import PATIENCE, Gateway, Start, Target, chunked, request, running, wired
from tests.support.hostile import statuses

OPEN = {"open": {"provider": "custom", "verify": "none"}, "key": SOURCES["key"]}
GOOD = request("/hooks/open", b"good")
SMUGGLED = request("/hooks/open", b"smuggled")
CHUNKS = chunked(b"hello")


def framed(lines: bytes, body: bytes = CHUNKS, line: bytes = b"POST /hooks/open HTTP/1.1") -> bytes:
    return line + b"\r\nHost: a\r\n" + lines + b"\r\n\r\n" + body


def coded(value: bytes) -> bytes:
    return framed(b"Transfer-Encoding:" + value)


def sized(value: bytes) -> bytes:
    return framed(b"Content-Length: " + value, b"hello")


def in_chunks(body: bytes) -> bytes:
    return framed(b"Transfer-Encoding: chunked", body)


def asked(line: bytes) -> bytes:
    return framed(b"Content-Length: 5", b"hello", line)


AMBIGUOUS = [
    framed(b"Content-Length: 4\r\nTransfer-Encoding: chunked"),
    framed(b"Transfer-Encoding: chunked\r\nContent-Length: 4"),
    framed(b"Content-Length: 15\r\nTransfer-Encoding: chunked"),
    *map(coded, [b"chunked\x0b", b"\x0bchunked", b" chunked \t", b' "chunked"', b" chunked;q=1", b" xchunked"]),
    *map(coded, [b" chunkedx", b" chunked, identity", b" \x00chunked", b" chun\x00ked", b" chunked,", b"", b" gzip"]),
    *map(coded, [b"\xa0chunked", b" identity", b" chunked, chunked", b"\r\n chunked", b" chunked\r\n ,gzip"]),
    *map(coded, [b" gzip, chunked", b" identity, chunked", b" ,chunked", b" deflate,chunked"]),
    *(framed(one + b": chunked") for one in (b"Transfer-Encoding\t", b"Transfer-Encoding ", b" Transfer-Encoding")),
    *(
        framed(one + b"Transfer-Encoding: chunked")
        for one in (b"X: y\n", b"X: y\r", b"X:\r\n\t", b"Foo\r\n", b": x\r\n")
    ),
    framed(b"Transfer-Encod\xefng: chunked"),
    framed(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    framed(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    framed(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
    framed(b"Transfer-Encoding: chunked", line=b"POST /hooks/open HTTP/1.0"),
    *map(sized, [b"+5", b"-0", b"0x5", b"5,5", b"5 5", b"5;", b"5\x0b", b"", b"1e1", b"5.0", b"5_0", b"5 ,", b"5\x00"]),
    *map(sized, [b"9" * 20, b"18446744073709551621", b"\xd9\xa5", b"5\r\n 6", b"5\r\nContent-Length: 5"]),
    *map(sized, [b"5\r\nContent-Length: 6", b"5\r\ncontent-length:  5", b"5\nContent-Length: 500"]),
    *map(
        in_chunks,
        [one + b"\r\nhello\r\n0\r\n\r\n" for one in (b"0x5", b"+5", b" 5", b"5 ", b"-5", b"", b"5\r", b"5\x00")],
    ),
    *map(
        in_chunks,
        [b"5;a\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n"],
    ),
    *map(
        in_chunks, [b"5\r\nhello\r\n0\n\n", b"f" * 16 + b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"g\r\n"]
    ),
    *map(
        in_chunks,
        [b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', b"5\r\nhello\r\n0\r\nX: y\n\r\n", b"5\r\nhello\r\n0\r\n : y\r\n\r\n"],
    ),
    *map(
        in_chunks,
        [b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n", b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ),
    *map(asked, [b"POST /hooks/open HTTP/1.1 ", b"POST\t/hooks/open\tHTTP/1.1", b"POST /hooks/open http/1.1"]),
    *map(asked, [b"POST /hooks/open HTTP/1.10", b"POST /hooks/open HTTP/01.1", b"POST /hooks/open HTTP/1.9"]),
    *map(asked, [b"POST /hooks/open HTTP/2.0", b"POST /hooks/open", b"POST * HTTP/1.1", b"PRI * HTTP/2.0"]),
    *map(asked, [b"POST /hooks/open\x00 HTTP/1.1", b"PO\x00ST /hooks/open HTTP/1.1", b"POST /hooks/open RTSP/1.0"]),
    *map(asked, [b"POST http://[zz]/hooks/open HTTP/1.1", b"POST http://a\\@b/hooks/open HTTP/1.1"]),
    *map(asked, [b"CONNECT a:80 HTTP/1.1", b"CONNECT /hooks/open HTTP/1.1"]),
    *(
        framed(b"Connection: Upgrade\r\nContent-Length: 5\r\nUpgrade: " + one, b"hello")
        for one in (b"h2c", b"x/1, websocket")
    ),
    framed(b"Connection: close\r\nContent-Length: 5", b"hello"),
    framed(b"Expect: something\r\nContent-Length: 5", b"hello"),
]


async def answered(gateway: Gateway, *parts: bytes) -> list[int]:
    async with wired(gateway.hooks) as wire:
        for part in parts:
            await wire.send(part)
        return statuses(await wire.rest())


@pytest.mark.row("T13", "H24", "H25", "H26", "H27", "B21")
async def test_no_request_is_read_behind_one_whose_end_is_not_plain(start: Start) -> None:
    """Alone, behind a good one, in one piece and in two: what stands behind is neither answered nor stored, and the
    connection ends long before its deadline."""
    gateway = await start(OPEN)
    for odd in AMBIGUOUS:
        middle = odd.find(b"\r\n\r\n") + 4
        for parts in ([odd + SMUGGLED], [odd[:middle], odd[middle:] + SMUGGLED], [GOOD + odd + SMUGGLED]):
            found = await answered(gateway, *parts)
            assert len(found) <= (2 if parts[0].startswith(GOOD) else 1), (parts, found)
            assert set(found) <= {200, 400, 404, 405, 417, 505}, (parts, found)
    assert b"smuggled" not in {row[2] for row in gateway.stored()}
    assert {row[2] for row in gateway.stored()} <= {b"good", b"hello", b""}
    assert not [line for line in await gateway.log() if line["level"] == "error"]


BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [GOOD, SMUGGLED, CHUNKS, b"0\r\n\r\n", b"\r\n\r\n", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 5000]
    ),
)


def sent(body: bytes, chunks: int, padding: bytes) -> bytes:
    """One good request, its body with a length or in so many chunks."""
    if not chunks:
        return padding + request("/hooks/open", body)
    size = len(body) // chunks + 1
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return padding + request("/hooks/open", headers={"Transfer-Encoding": "Chunked"}) + chunked(*parts)


REQUESTS = st.lists(st.tuples(BODIES, st.integers(0, 4), st.sampled_from([b"", b"\r\n"])), min_size=2, max_size=5)


@pytest.mark.row("T13", "H45")
def test_requests_in_one_buffer_get_their_own_answers(tmp_path: Path) -> None:
    """Whatever their bodies look like, and wherever the buffer is cut on its way: as many answers as requests, in their
    order, and each body is stored as it was sent."""
    with asyncio.Runner() as runner:
        target = Target()
        runner.run(target.start())
        context = running(tmp_path, document(OPEN), target)
        gateway = runner.run(context.__aenter__())

        async def thrown(data: bytes, cuts: list[int], number: int) -> list[str]:
            async with wired(gateway.hooks) as wire:
                for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                    await wire.send(data[start:end])
                    await asyncio.sleep(0)
                answers = [await wire.answer() for _ in range(number)]
                wire.writer.write_eof()
                assert await wire.rest() == b""
                assert {answer.status for answer in answers} == {200}
                return [answer.json["id"] for answer in answers]

        @settings(
            max_examples=60,
            deadline=PATIENCE * 1000,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(REQUESTS, st.lists(st.floats(0, 1), max_size=6))
        def example(requests: list[tuple[bytes, int, bytes]], cuts: list[float]) -> None:
            data = b"".join(sent(*one) for one in requests)
            places = sorted(int(cut * len(data)) for cut in cuts)
            ids = runner.run(thrown(data, places, len(requests)))
            stored = dict(gateway.rows("SELECT id, body FROM event ORDER BY seq DESC LIMIT 10"))
            assert [stored[id_] for id_ in ids] == [body for body, _, _ in requests]

        try:
            example()
        finally:
            runner.run(context.__aexit__(None, None, None))
            runner.run(target.stop())
