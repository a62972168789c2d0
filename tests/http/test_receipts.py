"""The answer that nearly every webhook gets: its bytes are those of any other short answer."""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from aiohttp import web

from relay.listener import Listener, Receipt, json_answer
from relay.rules.crowding import Room

BODY = b'{"id": "evt_1", "duplicate": false}'
ASKS = {
    "usual": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    "two": b"POST / HTTP/1.1\r\nHost: a\r\n\r\n" * 2,
    "close": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "upgrade": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "1.0": b"POST / HTTP/1.0\r\n\r\n",
    "1.0 that lasts": b"POST / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "GET": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD": b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
}


async def sent(answer: Callable[[], web.Response | Receipt], ask: bytes) -> bytes:
    """All that is answered to a client that asks and then sends no more, but for the time."""

    async def handler(_request: web.BaseRequest) -> web.Response | Receipt:
        return answer()

    listener = await Listener.open(
        "hooks", handler, "127.0.0.1", 0, header_timeout=timedelta(seconds=5), room=Room(10, 10)
    )
    reader, writer = await asyncio.open_connection(*listener.addresses[0])
    try:
        writer.write(ask)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
        return re.sub(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"Date\r\n", head + await reader.read())
    finally:
        writer.close()
        await listener.close(0)


@pytest.mark.parametrize("ask", ASKS.values(), ids=list(ASKS))
@pytest.mark.parametrize("status", [200, 202, 204, 205, 250])
async def test_a_receipt_is_the_short_answer_byte_for_byte(status: int, ask: bytes) -> None:
    """Whatever is asked, and however: status, fields in their order, body, and what becomes of the connection."""
    receipt = await sent(lambda: Receipt(status, BODY), ask)
    assert receipt == await sent(lambda: json_answer(status, BODY), ask)
    assert receipt.startswith(b"HTTP/1.%d %d" % (b"HTTP/1.1" in ask, status))
    assert b"\r\nDate\r\n" in receipt


def _closing(answer: web.Response | Receipt) -> web.Response | Receipt:
    answer.force_close()
    return answer


async def test_a_receipt_that_is_the_last_says_so() -> None:
    """The connection ends behind it, and what was asked behind it is not answered."""
    receipt = await sent(lambda: _closing(Receipt(200, BODY)), ASKS["two"])
    assert receipt == await sent(lambda: _closing(json_answer(200, BODY)), ASKS["two"])
    assert receipt.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n\r\n" in receipt
