"""Whatever bytes come, both listeners answer with a status line or close: no 500, no traceback, no hang."""

import asyncio
import contextlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.configs import document
from tests.http.gateway import PATIENCE, SECRET, TOKEN, Gateway, Target, running, wired

TOKENS = [
    b"POST ",
    b"GET ",
    b"CONNECT ",
    b"OPTIONS * ",
    b"/hooks/open",
    b"/hooks/signed",
    b"/hooks/xoxoday",
    b"/api/v1/targets/crm/enable",
    b"/metrics",
    b"http://[::1",
    b"//",
    b"?",
    b"%00",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/2.0\r\n",
    b"Host: localhost\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Type: application/json\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Upgrade: \xff\r\n",
    b"Connection: close\r\n",
    b"X-Signature: sha256=",
    b"x-api-key: ",
    b"X-Forwarded-For: ",
    b"relay-hops: ",
    b"Origin: ",
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n",
    SECRET,
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b": ",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"{}",
    b"a" * 9000,
]
HEAD = st.sampled_from(
    [b"POST /hooks/open HTTP/1.1\r\nHost: a\r\n", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n", b""]
)
PIECES = st.lists(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=12)), max_size=14).map(b"".join)
ALLOWED = {100, 200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 421, 422, 505, 508}


def statuses(data: bytes) -> list[int]:
    """The status of each answer in a stream of them."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/")
        found.append(int(lines[0].split(b" ")[1]))
        lengths = [int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-length:")]
        data = data[sum(lengths) if found[-1] >= 200 else 0 :]
    return found


async def throw(gateway: Gateway, data: bytes) -> None:
    for address in (gateway.hooks, gateway.admin):
        async with wired(address) as wire:
            await wire.send(data)
            with contextlib.suppress(OSError):
                wire.writer.write_eof()
            assert set(statuses(await wire.rest())) <= ALLOWED


def test_odd_bytes_get_a_status_line_or_nothing(tmp_path: Path) -> None:
    """Two hundred examples of half-right requests; afterwards both listeners serve as before, and the log holds no
    line of a fault of ours."""
    with asyncio.Runner() as runner:
        target = Target()
        runner.run(target.start())
        text = document(server={"header_timeout": "500ms", "body_timeout": "500ms"})
        context = running(tmp_path, text, target)
        gateway = runner.run(context.__aenter__())

        @settings(
            max_examples=200,
            deadline=PATIENCE * 1000,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(HEAD, PIECES)
        def example(head: bytes, pieces: bytes) -> None:
            runner.run(throw(gateway, head + pieces))

        try:
            example()
            assert runner.run(gateway.post("/hooks/open")).status == 200
            assert runner.run(gateway.call("/healthz")).status == 200
            lines = runner.run(gateway.log())
            assert not [line for line in lines if line["level"] in {"error", "critical"} or "traceback" in line]
        finally:
            runner.run(context.__aexit__(None, None, None))
            runner.run(target.stop())
