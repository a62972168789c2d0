"""Thousands of requests that are no requests, thrown at both listeners of the installed command, plain and over TLS.

Afterwards it serves as before: no answer is a fault of ours or repeats what was sent, its log is sound, and nothing
stands on stderr. `RELAY_HOSTILE_ROUNDS` makes it longer, `RELAY_HOSTILE_SEED` other.
"""

import asyncio
import contextlib
import os
import random
import signal
import ssl
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.certificates import self_signed
from tests.support.hostile import CANARY, asking, mutated, samples, statuses
from tests.support.program import KEY, Gateway, Sink, webhook, write_config

ROUNDS = int(os.environ.get("RELAY_HOSTILE_ROUNDS", "1"))
SEED = int(os.environ.get("RELAY_HOSTILE_SEED", "20"))
AT_A_TIME = 24
PATIENCE = 30.0
ALLOWED = {100, 200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 421, 422, 505, 508}
QUICK = "header_timeout: 500ms, body_timeout: 500ms"


async def exchange(address: tuple[str, int], data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send it on a connection of its own and read all that is answered until the end; that must come."""
    async with asyncio.timeout(PATIENCE):
        try:
            reader, writer = await asyncio.open_connection(*address, ssl=tls)
        except (ssl.SSLError, ConnectionError):
            return b""
        answered = bytearray()
        try:
            writer.write(data)
            with contextlib.suppress(OSError, NotImplementedError):
                writer.write_eof()
            while part := await reader.read(65536):
                answered += part
        except (ConnectionError, ssl.SSLError):
            pass  # what was not read of ours resets the connection
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return bytes(answered)


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def throw(address: tuple[str, int], things: Iterable[bytes], tls: ssl.SSLContext | None = None) -> None:
    """Throw all of them, some at a time, and judge each answer."""
    waiting = iter(things)

    async def some() -> None:
        for data in waiting:
            answered = await exchange(address, data, tls)
            assert CANARY not in answered, data
            assert set(statuses(answered)) <= ALLOWED, (data, answered)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_A_TIME):
            group.create_task(some())


def wrong(path: bytes, count: int, chance: random.Random) -> Iterable[bytes]:
    """Mutated requests, alone and behind a right one, and noise."""
    right = samples(path, KEY.encode())
    for _ in range(count * ROUNDS):
        data = mutated(chance.choice(right), chance)
        match chance.randrange(10):
            case 0 | 1 | 2:
                yield chance.choice(right) + data + chance.choice(right)
            case 3:
                yield chance.randbytes(chance.randrange(1, 400))
            case _:
                yield data


async def still_sound(gateway: Gateway) -> None:
    """It serves, its log tells of no fault, and it ends as it should with nothing on stderr."""
    for path in ("healthz", "readyz"):
        answered = await exchange(address_of(gateway.admin), asking(b"/" + path.encode(), b"", method=b"GET"))
        assert statuses(answered) == [200]
    assert not [line for line in gateway.lines if line["level"] in {"error", "critical"} or "traceback" in line]
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert gateway.errors == b""


@pytest.mark.slow
@pytest.mark.timeout(120 * ROUNDS)
@pytest.mark.row("T13", "T14", "T27", "H24", "H25", "H26", "H40", "H42", "B21")
async def test_whatever_bytes_come_it_answers_closes_and_goes_on(tmp_path: Path) -> None:
    """To both listeners, alone and behind good requests; the next good webhook is taken and delivered."""
    chance = random.Random(SEED)
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink, server=QUICK)) as gateway:
        await throw(address_of(gateway.hooks), wrong(b"/hooks/shop", 1500, chance))
        await throw(address_of(gateway.admin), wrong(b"/api/v1/targets/crm/disable", 700, chance))
        await gateway.post(*webhook("afterwards"))
        await exchange(address_of(gateway.admin), asking(b"/api/v1/targets/crm/enable", b""))
        async with asyncio.timeout(PATIENCE):
            while b'{"id": "afterwards"}' not in {arrival.body for arrival in sink.arrivals}:
                await asyncio.sleep(0.02)
        await still_sound(gateway)


def hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a client that wants TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.slow
@pytest.mark.timeout(120 * ROUNDS)
@pytest.mark.row("T13", "T27", "H40", "B21")
async def test_over_tls_and_beside_it_bytes_do_as_little(tmp_path: Path) -> None:
    """Inside sound TLS, as broken TLS, and as none at all."""
    chance = random.Random(SEED)
    cert, key = self_signed(tmp_path, "127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(cert))
    server = f'{QUICK}, tls: {{cert: "{cert}", key: "{key}"}}'
    async with Sink() as sink, Gateway(write_config(tmp_path / "c.yaml", sink, server=server)) as gateway:
        address = address_of(gateway.hooks)
        await throw(address, wrong(b"/hooks/shop", 300, chance), trusting)
        for data in [hello(trusting), *wrong(b"/hooks/shop", 60, chance)]:
            assert statuses_or_alert(await exchange(address, mutated(data, chance)))
        genuine = asking(b"/hooks/shop", b'{"id": 1}', b"Connection: close", key=KEY.encode())
        assert statuses(await exchange(address, genuine, trusting)) == [200]
        await still_sound(gateway)


def statuses_or_alert(answered: bytes) -> bool:
    """Nothing, a TLS alert, or the beginning of a handshake: not an answer in the clear."""
    return not answered or answered[:1] in {b"\x15", b"\x16"}
