"""The targets of a measurement, as a process: `python -m relay.bench.target COUNT FILE`.

It listens on as many ports, tells them in a line of JSON on stdout, answers 200 to everything, and notes when it saw
which event. When its stdin ends it writes what it has noted to the file and leaves.
"""

import asyncio
import json
import sys
import time
from array import array
from functools import partial
from pathlib import Path

from relay.bench.load import NUMBER_ENDS, NUMBER_STARTS
from relay.bench.wire import Messages
from relay.loops import loop_factory

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class _Target(Messages):
    """One connection of the relay to one target."""

    def __init__(self, seen: "array[int]") -> None:
        super().__init__()
        self._seen = seen

    def message(self, data: bytes, body: int, end: int) -> None:  # noqa: ARG002 - its number stands near the start
        """Note the event, and answer."""
        self._seen.append(int(data[body + NUMBER_STARTS : body + NUMBER_ENDS]))
        self._seen.append(time.monotonic_ns())
        self.transport.write(_OK)


async def _serve(count: int) -> "list[array[int]]":
    loop = asyncio.get_running_loop()
    seen = [array("q") for _ in range(count)]
    servers = [await loop.create_server(partial(_Target, one), "127.0.0.1", 0) for one in seen]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)  # noqa: T201
    await loop.run_in_executor(None, sys.stdin.read)
    return seen


def main() -> None:
    """Be the targets until stdin ends."""
    count, file = int(sys.argv[1]), Path(sys.argv[2])
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        seen = runner.run(_serve(count))
    with file.open("wb") as out:
        for one in seen:
            array("q", [len(one)]).tofile(out)
            one.tofile(out)


if __name__ == "__main__":
    main()
