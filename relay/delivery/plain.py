"""Reads the plainest answer: a small one, whole, in one piece of data. Most targets send nothing else.

Law: two ways of reading read the same. What is accepted here, aiohttp's parser reads to the same status and body, would
keep the connection after it, and finds no header in it that a sender asks for. Whatever is unusual in any way, of
framing, spelling or size, is not for here: None, and the parser judges it.
"""

import re
from functools import lru_cache

LONGEST = 4096
"""Bytes of an answer, head and body, that is read here."""
_SAME_AGAIN = 512
"""Bytes of one that is likely to come again, to the last of them: few say more than a status and the second."""

Whole = tuple[int, bytes]
"""The status of an answer that was read to its end, and its body."""

_UNUSUAL = (
    rb"(?i:content-length|transfer-encoding|retry-after|upgrade|sec-websocket-key1|proxy-connection"
    rb"|connection(?!: keep-alive\r)):"
)
"""What changes the meaning of an answer, or asks for something."""
_FIELD = rb"(?!" + _UNUSUAL + rb")[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e]*+\r\n"
_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9]{2}) [\t\x20-\x7e]*+\r\n"
    rb"(?:" + _FIELD + rb"){0,60}+"
    rb"(?:(?i:content-length): ?([0-9]{1,4})\r\n(?:" + _FIELD + rb"){0,60}+)?+\r\n"
)


def plainest(data: bytes) -> Whole | None:
    """The answer that `data` is, from its first byte to its last, or None where it is not one of the plainest.

    A 204 has no length (RFC 9110, section 8.6), every other answer has one; what a 304's would mean is for the parser.
    """
    if len(data) > LONGEST:
        return None
    return _read_before(data) if len(data) <= _SAME_AGAIN else _read(data)


def _read(data: bytes) -> Whole | None:
    if (head := _HEAD.match(data)) is None:
        return None
    status, length, end = int(head[1]), head[2], head.end()
    if length is None or status == 204 or status == 304:
        return (status, b"") if length is None and status == 204 and len(data) == end else None
    return (status, data[end:]) if end + int(length) == len(data) else None


_read_before = lru_cache(maxsize=64)(_read)
