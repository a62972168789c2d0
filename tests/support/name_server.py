"""A name server on a loopback port, over UDP and TCP, that says what a script tells it: it can refuse, lie and hang.

Law: it reads questions off the wire itself, so that what a test sees is what was really asked, and how often.
"""

import asyncio
import contextlib
import ipaddress
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

A, CNAME, SOA, AAAA = 1, 5, 6, 28
NO_ERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
_TRUNCATED = 0x0200
_COMPRESSED_NAME = b"\xc0\x0c"


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it came over the wire."""

    name: str
    type: int
    over_tcp: bool
    wire: bytes = field(repr=False)
    """The whole message."""

    @property
    def _end(self) -> int:
        return self.wire.index(b"\0", 12) + 5


Reply = Callable[[Question], "bytes | None"]
"""Makes the answer to a question; None is silence."""


class NameServer(asyncio.DatagramProtocol):
    """A running name server: a reply by name, all else does not exist."""

    def __init__(self, names: dict[str, Reply]) -> None:
        self.names = names
        self.asked: list[Question] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def times(self, name: str) -> int:
        """How often a name was asked for, over either transport."""
        return sum(question.name == name for question in self.asked)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._answer(data, over_tcp=False)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the questions of one TCP connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self._answer(await reader.readexactly(length), over_tcp=True)
                if answer is not None:
                    writer.write(struct.pack("!H", len(answer)) + answer)
                    await writer.drain()
        writer.close()

    def _answer(self, wire: bytes, *, over_tcp: bool) -> bytes | None:
        labels, at = [], 12
        while length := wire[at]:
            labels.append(wire[at + 1 : at + 1 + length].decode("ascii", "replace"))
            at += 1 + length
        question = Question(".".join(labels).lower(), struct.unpack_from("!H", wire, at + 1)[0], over_tcp, wire)
        self.asked.append(question)
        return self.names.get(question.name, failing(NXDOMAIN))(question)


@contextlib.asynccontextmanager
async def name_server(names: dict[str, Reply]) -> AsyncIterator[NameServer]:
    """A name server until the block ends; `names` may be changed meanwhile."""
    one = NameServer(names)
    tcp = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = tcp.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: one, local_addr=("127.0.0.1", one.port))
    try:
        yield one
    finally:
        transport.close()
        tcp.close()


@cache
def can_replace_the_name_server() -> bool:
    """Whether a process of ours can be given another /etc/resolv.conf."""
    command = shutil.which("unshare")
    if command is None:
        return False
    mount = "mount --bind /dev/null /etc/resolv.conf"
    return subprocess.run([command, "-m", "sh", "-c", mount], capture_output=True, check=False).returncode == 0


def asking_at(port: int, home: Path) -> list[str]:
    """The words before a command that has it ask the name server at this port, and no other. Needs the right to mount.

    The port stands in the file as c-ares reads it, the library that resolves for us."""
    file = home / f"resolv-{port}.conf"
    file.write_text(f"nameserver 127.0.0.1:{port}\noptions timeout:1 attempts:2\n")
    return ["unshare", "-m", "sh", "-c", f'mount --bind "{file}" /etc/resolv.conf && exec "$@"', "sh"]


# --- what it can say ---


def addresses(*given: str, ttl: int = 0) -> Reply:
    """These addresses, each to the question for its family; the other family gets an answer without any."""
    return lambda question: _message(question, [_address(_COMPRESSED_NAME, one, ttl) for one in _of(question, given)])


def failing(code: int, *, kept: int | None = None) -> Reply:
    """An answer that is an error; `kept` is for how many seconds it may be remembered (RFC 2308)."""
    return lambda question: _message(question, [], flags=code, authority=[] if kept is None else [_soa(kept)])


def silent(_: Question) -> None:
    """No answer at all."""


def alias(name: str, *given: str, ttl: int = 0) -> Reply:
    """Another name that is the real one, and its addresses; without any it has to be asked for."""
    target = _name(name)

    def reply(question: Question) -> bytes:
        record = _COMPRESSED_NAME + struct.pack("!HHIH", CNAME, 1, ttl, len(target)) + target
        return _message(question, [record, *(_address(target, one, ttl) for one in _of(question, given))])

    return reply


def truncated(rest: Reply) -> Reply:
    """Over UDP the remark that the answer is too long for it; over TCP the answer."""
    return lambda question: rest(question) if question.over_tcp else _message(question, [], flags=_TRUNCATED)


def of_another(rest: Reply) -> Reply:
    """The answer under the number of another question, as one who guesses would send it."""

    def reply(question: Question) -> bytes | None:
        answer = rest(question)
        return None if answer is None else bytes([answer[0] ^ 0xFF]) + answer[1:]

    return reply


def garbage(question: Question) -> bytes:
    """The right number, and then nonsense."""
    return question.wire[:2] + b"\x81\x80" + b"\xff" * 40


def in_turn(*replies: Reply) -> Reply:
    """To each question of a family the next reply, the last one again and again."""
    left: dict[int, list[Reply]] = {}

    def reply(question: Question) -> bytes | None:
        mine = left.setdefault(question.type, list(replies))
        return (mine.pop(0) if len(mine) > 1 else mine[0])(question)

    return reply


def _of(question: Question, given: Iterable[str]) -> list[str]:
    wanted = {A: 4, AAAA: 6}.get(question.type)
    return [one for one in given if ipaddress.ip_address(one).version == wanted]


def _name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _address(name: bytes, address: str, ttl: int) -> bytes:
    packed = ipaddress.ip_address(address).packed
    return name + struct.pack("!HHIH", A if len(packed) == 4 else AAAA, 1, ttl, len(packed)) + packed


def _soa(kept: int) -> bytes:
    data = _name("ns.example") + _name("host.example") + struct.pack("!IIIII", 1, 3600, 600, 86400, kept)
    return _name("example") + struct.pack("!HHIH", SOA, 1, kept, len(data)) + data


def _message(
    question: Question, records: list[bytes], *, flags: int = NO_ERROR, authority: Sequence[bytes] = ()
) -> bytes:
    head = question.wire[:2] + struct.pack("!HHHHH", 0x8180 | flags, 1, len(records), len(authority), 0)
    return head + question.wire[12 : question._end] + b"".join(records) + b"".join(authority)
