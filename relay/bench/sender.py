"""The senders of a measurement, as a process: `python -m relay.bench.sender LOAD FILE`, the load as JSON.

It writes a line of JSON with how many it has sent to stdout now and then, and at the end three numbers an event to the
file: when it was to be sent, when the answer was there, and its status.

Law: at an offered rate an answer's time counts from when the event was to be sent, not from when a connection was
free for it, or a relay that stands still would look quick.
"""

import asyncio
import json
import selectors
import sys
import time
from array import array
from collections import deque
from pathlib import Path

from relay.bench.load import Load, Requests
from relay.bench.wire import Messages
from relay.loops import loop_factory

TELL_EVERY_S = 0.25
LEAST_PAUSE_S = 0.0005
"""Between two looks at what has become due, at an offered rate: what comes faster is sent a few at a time."""
LAST_ANSWERS_S = 15.0
"""How long the last answers are waited for."""


class _Sender(Messages):
    """One connection, with one request at a time."""

    def __init__(self, senders: "Senders") -> None:
        super().__init__()
        self._senders = senders
        self.place = -1
        """Of the event that is under way, in what is noted."""

    def message(self, data: bytes, body: int, end: int) -> None:  # noqa: ARG002 - the status says enough
        """The answer is there."""
        self._senders.answered(self, int(data[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever it was, there is no answer
        """The relay has hung up."""
        self._senders.lost(self)


class Senders:
    """All connections of one load, and what is noted of their events."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = Requests(load)
        self._loop = asyncio.get_running_loop()
        self._idle: deque[_Sender] = deque()
        self._under_way = 0
        self._due: deque[int] = deque()
        self._ends_at = 0
        self._over = asyncio.Event()
        self.noted = array("q")

    async def send(self) -> None:
        """Send all of it, and wait for the last answers."""
        for _ in range(self._load.connections):
            _, one = await self._loop.create_connection(lambda: _Sender(self), "127.0.0.1", self._load.port)
            self._idle.append(one)
        telling = asyncio.create_task(self._tell())
        began = time.monotonic_ns()
        self._ends_at = began + int(self._load.seconds * 1e9)
        if self._load.rate:
            await self._offer(began)
        else:
            while self._idle:
                self._send(self._idle.popleft(), time.monotonic_ns())
            await asyncio.sleep(self._load.seconds)
        try:
            async with asyncio.timeout(LAST_ANSWERS_S):
                while self._under_way or self._due:
                    self._over.clear()
                    await self._over.wait()
        except TimeoutError:
            pass  # what has no answer by now has a status of 0
        telling.cancel()

    async def _offer(self, began: int) -> None:
        """Send what is due by the clock; what finds no connection free waits, and that counts."""
        step, number, count = 1e9 / self._load.rate, 0, int(self._load.seconds * self._load.rate)
        while number < count:
            now = time.monotonic_ns()
            while number < count and began + int(number * step) <= now:
                self._due.append(began + int(number * step))
                number += 1
            while self._due and self._idle:
                self._send(self._idle.popleft(), self._due.popleft())
            due_in_s = (began + int(number * step) - time.monotonic_ns()) / 1e9
            await asyncio.sleep(max(LEAST_PAUSE_S, due_in_s))

    def _send(self, one: _Sender, at: int) -> None:
        place = len(self.noted)
        request = self._requests.numbered(self._load.first + place // 3)
        self.noted.extend((at, 0, 0))
        one.place = place
        self._under_way += 1
        one.transport.write(request)

    def answered(self, one: _Sender, status: int) -> None:
        """Note an answer, and send the next where there is one."""
        now = time.monotonic_ns()
        self.noted[one.place + 1], self.noted[one.place + 2] = now, status
        one.place = -1
        self._under_way -= 1
        if self._due:
            self._send(one, self._due.popleft())
        elif not self._load.rate and now < self._ends_at:
            self._send(one, now)
        else:
            self._idle.append(one)
            self._over.set()

    def lost(self, one: _Sender) -> None:
        """A connection is gone; its event has no answer."""
        if one.place >= 0:
            self._under_way -= 1
            self._over.set()
        elif one in self._idle:
            self._idle.remove(one)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            print(json.dumps({"sent": len(self.noted) // 3}), flush=True)  # noqa: T201 - read by who has started it


async def _send(load: Load) -> "array[int]":
    senders = Senders(load)
    await senders.send()
    return senders.noted


def _punctual_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are as fine as the clock: those of the others are of whole milliseconds, which would be told
    as the relay's own wherever it answers in less. It takes descriptors up to 1023."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    """Send one load."""
    load, file = Load(**json.loads(sys.argv[1])), Path(sys.argv[2])
    with asyncio.Runner(loop_factory=_punctual_loop if load.rate else loop_factory()) as runner:
        noted = runner.run(_send(load))
    with file.open("wb") as out:
        noted.tofile(out)


if __name__ == "__main__":
    main()
