"""Requests that are wrong in one way or several, made from right ones; the same for the same seed."""

import random
from collections.abc import Sequence

CANARY = b"zqCANARYqz"
"""Stands wherever a stranger may write something; no answer repeats it."""

_HEADERS = b"Host: relay.example\r\nX-Note: %b\r\nX-Key: %b\r\n"


def asking(path: bytes, body: bytes, *lines: bytes, method: bytes = b"POST", key: bytes = b"no") -> bytes:
    """A right request."""
    head = b"%b %b HTTP/1.1\r\n" % (method, path) + _HEADERS % (CANARY, key) + b"".join(one + b"\r\n" for one in lines)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(path: bytes, *parts: bytes, lines: Sequence[bytes] = (), key: bytes = b"no") -> bytes:
    """A right request whose body comes in chunks."""
    head = b"POST %b HTTP/1.1\r\n" % path + _HEADERS % (CANARY, key) + b"".join(one + b"\r\n" for one in lines)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


_LINES = [
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b" folded: yes",
    b"\tfolded",
    b"Content-Length: 3",
    b"Content-Length: 7,7",
    b"Content-Length: +7",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 0x7",
    b"Host: other.example",
    b"Expect: 100-continue",
    b"Expect: " + CANARY,
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"Connection: close",
    b"Connection: Content-Length, Transfer-Encoding",
    b"Content-Encoding: gzip",
    b"Content-Type: " + b"(" * 300,
    b"X-Forwarded-For: " + b"10.0.0.1, " * 60,
    b"relay-hops: 99999999999999999999",
    b"relay-hops: " + CANARY,
    b"Origin: https://" + CANARY,
    b"Authorization: Bearer " + CANARY,
    b"Last-Event-ID: " + CANARY,
    b"X-Long: " + b"a" * 9000,
    b"X-Odd: \xff\xfe\xed\xa0\x80",
    b"X-Odd: a\rb",
    b"X-Odd: a\nb",
    b"X-Odd: a\x00b",
    b"X-Odd: \x1b[31m",
    b"no colon " + CANARY,
    b": no name",
    b"\xef\xbb\xbfX: 1",
]
_PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\x00", b"\xff", b" ", b"\t", b":", b";", b"0\r\n\r\n", b"\r\n\r\n"),
    *(b"ffffffffffffffff\r\n", b"HTTP/0.9", b"HTTP/1.9", b"HTTP/2.0", b"http://" + CANARY + b"/", b"*", b"CONNECT "),
    *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-OpenSSH_9.2\r\n"),
    *(b"%00", b"%2e%2e/", b"//", b"?" + CANARY, b"A" * 9000, b"\r\nX: 1" * 200, CANARY),
]


def samples(path: bytes, key: bytes) -> list[bytes]:
    """Right requests to one place, with what opens it and without."""
    body = b'{"id": "%b"}' % CANARY
    return [
        asking(path, body),
        asking(path, body, key=key),
        asking(path, b"", key=key),
        in_chunks(path, body, key=key),
        in_chunks(path, b"x", b"y" * 300),
        asking(path, body, b"Content-Type: application/json", method=b"PUT", key=key),
        asking(b"/" + CANARY, body),
        asking(b"/healthz", b"", method=b"GET"),
    ]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same with up to four things wrong with it."""
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0:
                data = data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
            case 1:
                data = data[:place] + data[place + chance.randrange(1, 40) :]
            case 2:
                data = data[:place] + data[max(0, place - chance.randrange(1, 60)) :]
            case 3:
                data = data[:place] + chance.choice(_PIECES) + data[place:]
            case 4 | 5:
                head, end, rest = data.partition(b"\r\n")
                data = head + end + chance.choice(_LINES) + end + rest
            case 6:
                old, new = chance.sample([b"\r\n", b"\n", b"\r", b" ", b"HTTP/1.1", b"HTTP/1.0", b"POST", b"GET"], 2)
                data = data.replace(old, new, chance.randint(1, 3))
            case _:
                data = data[:place]
    return data


def statuses(data: bytes) -> list[int]:
    """The status of each answer in a stream of them; nothing stands between two."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1."), lines[0]
        found.append(int(lines[0].split(b" ")[1]))
        lengths = [int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-length:")]
        data = data[sum(lengths) if found[-1] >= 200 else 0 :]
    return found
