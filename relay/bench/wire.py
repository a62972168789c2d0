"""The least of HTTP/1.1 that a sender and a target of a measurement need, so that they cost little beside the relay.

Law: it reads only what a well-behaved other end writes: a length in each head, no chunks. Anything else ends the
measurement loudly.
"""

import asyncio
from typing import Any

_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"


class NotPlain(Exception):
    """The other end wrote what is not read here."""


class Messages(asyncio.Protocol):
    """One connection that hands on what arrives, a whole message at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Something has arrived."""
        data = self._rest + data if self._rest else data
        while (ends := data.find(_END)) >= 0:
            whole = ends + len(_END) + _length(data, ends)
            if len(data) < whole:
                break
            self.message(data, ends + len(_END), whole)
            data = data[whole:]
        self._rest = data

    def message(self, data: bytes, body: int, end: int) -> None:
        """A message is whole: its head begins `data`, its body is `data[body:end]`."""
        raise NotImplementedError


def _length(data: bytes, ends: int) -> int:
    """The length of a body that its head tells.

    Raises:
        NotPlain: it does not.
    """
    head = data[:ends].lower()
    at = head.find(_LENGTH)
    if at < 0:
        raise NotPlain("a message without Content-Length")
    return int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
