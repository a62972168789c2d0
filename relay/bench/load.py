"""What is sent: signed events of one size, each with its number where it is easily found.

Law: an event is as a provider's: JSON, an id for the dedupe key, a type, a signature over the whole body.
"""

import hashlib
import hmac
from dataclasses import dataclass

SECRET = "a-secret-of-the-measurement-0123456789"  # noqa: S105 - it protects nothing but a measurement on loopback
SOURCE = "bench"
_HEAD, _TAIL = b'{"id": "', b'", "type": "bench.event", "filler": "'
_DIGITS = 12
NUMBER_STARTS, NUMBER_ENDS = len(_HEAD), len(_HEAD) + _DIGITS
"""Where the number of an event stands in its body."""
LEAST_BODY = NUMBER_ENDS + len(_TAIL) + 2
"""Bytes of the smallest body."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one sender does.

    Attributes:
        port: where the relay listens.
        connections: requests at a time.
        body: bytes of a body.
        seconds: how long it sends.
        rate: events a second that are offered; 0 sends whenever a connection is free.
        first: the number of the first event.
    """

    port: int
    connections: int
    body: int
    seconds: float
    rate: float = 0.0
    first: int = 0


class Requests:
    """Makes the requests of a load, ready to be written."""

    def __init__(self, load: Load) -> None:
        self._filler = _TAIL + b"x" * (load.body - LEAST_BODY) + b'"}'
        self._head = (
            f"POST /hooks/{SOURCE} HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {load.body}\r\nX-Signature: sha256="
        ).encode()
        self._key = hmac.new(SECRET.encode(), digestmod=hashlib.sha256)

    def numbered(self, number: int) -> bytes:
        """The request that brings one event."""
        body = b"%b%012d%b" % (_HEAD, number, self._filler)
        proof = self._key.copy()
        proof.update(body)
        return b"%b%b\r\n\r\n%b" % (self._head, proof.hexdigest().encode(), body)
