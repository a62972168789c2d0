"""The way of a log line out of the process: a bounded queue and one thread that writes.

Law: `put` never waits, whatever the reader does. What finds the queue full, or the reader gone, is dropped and counted.
Known secrets are blotted out on the way, in case a line from a library or an exception holds one.
"""

import atexit
import io
import json
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import Event, Thread
from typing import IO, Any

_BATCH = 1000
"""Lines that are joined into one write."""

_MOST_PASSING = 256
"""Tokens and the like that are kept out of the log at a time."""
_SHORTEST_SECRET = 8
"""Shorter values are refused as secrets by the config, and would blot out innocent text."""
_TELL_AGAIN = 10.0
"""Seconds between two lines about lines that were dropped."""


def _descriptor(stream: IO[Any]) -> int | None:
    """A descriptor of our own for the stream, so that closing the stream never sends our lines into another file."""
    try:
        stream.flush()
        return os.dup(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _is_binary(stream: object) -> bool:
    return isinstance(stream, io.RawIOBase | io.BufferedIOBase)


class LogPipe:
    """Takes lines and writes them, in order and whole, for as long as somebody reads."""

    def __init__(self, stream: IO[Any], *, limit: int = 10_000, gather: float = 0.01) -> None:
        """Start the writing thread: `limit` is in lines; `gather` seconds pass between two writes, to join lines."""
        self.malformed = 0
        """HTTP requests that the server's parser refused; counted by the taken-over aiohttp logger."""
        self.tell_dropped: Callable[[int, str], object] | None = None
        """Called with the number of lines that were dropped and why, once lines are written again."""
        self._told = 0
        self._told_at = float("-inf")
        self._queue: deque[str] = deque()
        self._limit = limit
        self._gather = gather
        self._refused = 0
        self._lost = 0
        self._error = ""
        """What the system said of the latest lines that it did not take, until that is told."""
        self._torn = False
        self._hidden: tuple[bytes, ...] = ()
        self._configured: frozenset[str] = frozenset()
        self._passing: deque[str] = deque(maxlen=_MOST_PASSING)
        self._idle = False
        self._wake = Event()
        self._closing = Event()
        self._at_close = ExitStack()
        self._stream = stream
        self._takes_bytes = _is_binary(stream)
        self._fd = _descriptor(stream)
        self._thread = Thread(target=self._run, name="relay-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """Lines that were never written: the queue was full, the reader gone, or the pipe closed."""
        return self._refused + self._lost

    def put(self, line: str) -> None:
        """Hand in one line, with its newline. Never waits and never raises."""
        if len(self._queue) >= self._limit or self._closing.is_set():
            self._refused += 1
            return
        self._queue.append(line)
        if self._idle:
            self._wake.set()

    def hide(self, values: Iterable[str]) -> None:
        """Blot these values out of every line from now on; the call replaces the values of the one before."""
        self._configured = frozenset(values)
        self._blot()

    def hide_for_now(self, value: str) -> None:
        """Blot out a value that is good for a while only, as a token is, beside all others; the latest are kept."""
        self._passing.append(value)
        self._blot()

    def _blot(self) -> None:
        values = self._configured.union(self._passing)
        forms = {form for value in values for form in (value, json.dumps(value)[1:-1])}
        hidden = (form.encode("utf-8", "surrogatepass") for form in forms if len(form) >= _SHORTEST_SECRET)
        self._hidden = tuple(sorted(hidden, key=len, reverse=True))

    def at_close(self, undo: Callable[[], object]) -> None:
        """Have `undo` called when the pipe closes, last first."""
        self._at_close.callback(undo)

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, for `timeout` seconds at most; False if a blocked reader left some unwritten.

        The thread is a daemon, so a write that hangs cannot keep the process.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        atexit.unregister(self.close)
        self._at_close.close()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
            if batch:
                if self._write_lines(batch):
                    self._tell_of_dropped()
                self._closing.wait(self._gather)
            elif self._closing.is_set():
                break
            else:
                self._rest()
        if self._fd is not None:
            os.close(self._fd)

    def _rest(self) -> None:
        """Wait for a line. `_idle` is set before the last look, so a line put in between wakes us."""
        self._idle = True
        if not self._queue:
            self._wake.wait()
        self._idle = False
        if not self._closing.is_set():
            self._wake.clear()

    def _tell_of_dropped(self) -> None:
        """Hand in a line about what was dropped, when there is room for one again."""
        untold, now = self.dropped - self._told, time.monotonic()
        if untold and self.tell_dropped is not None and len(self._queue) < self._limit and not self._closing.is_set():
            if now - self._told_at < _TELL_AGAIN:
                return
            self._told, self._told_at = self._told + untold, now
            why = f"the log cannot be written: {self._error}" if self._error else "nobody read the log in time"
            self._error = ""
            self.tell_dropped(untold, why)

    def _write_lines(self, batch: list[str]) -> bool:
        """Write; False where some could not be written."""
        data = "".join(batch).encode("utf-8", "backslashreplace")
        for secret in self._hidden:
            data = data.replace(secret, b"***")
        if self._torn:
            data = b"\n" + data
        left = self._write_stream(data) if self._fd is None else self._write_descriptor(self._fd, memoryview(data))
        written = data[: len(data) - len(left)]
        if written:
            self._torn = not written.endswith(b"\n")
            self._lost += left.count(b"\n")
        else:
            self._lost += len(batch) if left else 0
        return not left

    def _write_descriptor(self, fd: int, data: memoryview) -> bytes:
        """Write to a pipe, file or terminal; returns what could not be written."""
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                # somebody set the shared descriptor to non-blocking: wait for room, as a blocking write would
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                poll.poll(1000)
            except OSError as error:
                self._error = error.strerror or type(error).__name__
                return bytes(data)
        return b""

    def _write_stream(self, data: bytes) -> bytes:
        """Write to a stream that has no descriptor, as a test's; returns what could not be written."""
        try:
            self._stream.write(data if self._takes_bytes else data.decode("utf-8", "replace"))
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._error = getattr(error, "strerror", None) or str(error)
            return data
        return b""
