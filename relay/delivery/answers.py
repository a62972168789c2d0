"""The answer of a target: its head, and as much of its text as is read."""

import asyncio
from dataclasses import dataclass
from enum import Enum, auto

import aiohttp

from relay.delivery.faults import FAULTS
from relay.delivery.pool import Line

ANSWER_CAP = 64 * 1024
"""Bytes of an answer that are read so that the connection can be used again; a longer one costs the connection."""


@dataclass(slots=True)
class Answer:
    """The head of an answer, and its body where that came with it."""

    status: int
    body: bytes
    retry_after: str | None = None
    content: aiohttp.StreamReader | None = None
    """From which the body is still to be read."""
    connection: Line | aiohttp.ClientResponse | None = None
    """Released or closed after the answer; None where it has been already."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no body to be read."""
        return not self.body if self.content is None else self.content.at_eof()

    def release(self) -> None:
        """Give the connection back to the pool; one whose answer was not read to its end is closed by it."""
        if self.connection is not None:
            self.connection.release()

    def close(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()


class End(Enum):
    """How the reading of an answer's body ended."""

    WHOLE = auto()
    CUT = auto()
    """It is longer than is read."""
    BROKEN = auto()
    """It broke off, or dripped until the deadline."""


async def read(answer: Answer, deadline: float) -> tuple[bytes, End]:
    """The answer's body up to the cap. Where the status has said all that counts, a body that breaks or drips is no
    fault."""
    content = answer.content
    if content is None:
        return answer.body, End.WHOLE
    text = bytearray()
    end = End.WHOLE
    try:
        async with asyncio.timeout_at(deadline):
            while len(text) < ANSWER_CAP and not content.at_eof():
                text += await content.readany()
            if not content.at_eof():
                end = End.CUT
    except FAULTS:
        end = End.BROKEN
    if end is not End.WHOLE:
        answer.close()
    return bytes(text), end
