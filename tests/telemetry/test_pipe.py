"""Logging never waits: what nobody reads is dropped and counted."""

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import pytest

from relay.telemetry.logs import start_logging
from relay.telemetry.pipe import LogPipe


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe's reading and writing descriptor."""
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        with suppress(OSError):
            os.close(fd)


def lines(count: int) -> list[str]:
    return [f'{{"n":{n:06d},"pad":"{"x" * 80}"}}\n' for n in range(count)]


def fill(fd: int) -> int:
    """Write until the pipe takes no more; how many bytes it took."""
    os.set_blocking(fd, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(fd, b"#" * 4096)
    os.set_blocking(fd, True)
    return filled


def read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_lines_are_written_whole_and_in_order(ends: tuple[int, int]) -> None:
    """Everything that was put before the close is read after it."""
    read, write = ends
    pipe = LogPipe(os.fdopen(write, "wb", closefd=False), gather=0.0)
    said = lines(200)
    for line in said:
        pipe.put(line)
    assert pipe.close(10)
    os.close(write)
    assert read_all(read).decode() == "".join(said)
    assert pipe.dropped == 0


@pytest.mark.row("T25")
def test_a_pipe_that_nobody_reads_costs_the_caller_nothing(ends: tuple[int, int]) -> None:
    """Into a pipe that is full, lines are put without waiting; the surplus is counted, and the close is bounded."""
    read, write = ends
    filled = fill(write)
    pipe = LogPipe(os.fdopen(write, "wb", closefd=False), limit=500, gather=0.0)
    began = perf_counter()
    said = lines(20_000)
    for line in said:
        pipe.put(line)
    assert perf_counter() - began < 2
    assert pipe.dropped > 10_000
    assert not pipe.close(0.05)
    os.close(write)
    kept: list[bytes] = []
    reader = threading.Thread(target=lambda: kept.append(read_all(read)))
    reader.start()
    pipe._thread.join(10)
    reader.join(10)
    written = kept[0][filled:].decode().splitlines(keepends=True)
    assert set(written) <= set(said)
    assert len(written) + pipe.dropped == len(said)


def test_a_reader_that_comes_back_gets_what_still_waits(ends: tuple[int, int]) -> None:
    """After a stall new lines are taken again."""
    read, write = ends
    pipe = LogPipe(os.fdopen(write, "wb", closefd=False), limit=5000, gather=0.0)
    for line in lines(2000):
        pipe.put(line)
    os.close(write)
    kept: list[bytes] = []
    reader = threading.Thread(target=lambda: kept.append(read_all(read)))
    reader.start()
    pipe.put("late\n")
    assert pipe.close(10)
    reader.join(10)
    assert kept[0].decode() == "".join(lines(2000)) + "late\n"


def test_a_reader_that_is_gone_never_raises_into_the_program(ends: tuple[int, int]) -> None:
    """A broken pipe costs the lines, which are counted, and nothing else."""
    read, write = ends
    os.close(read)
    pipe = LogPipe(os.fdopen(write, "wb", closefd=False), gather=0.0)
    for line in lines(30):
        pipe.put(line)
    assert pipe.close(10)
    assert pipe.dropped == 30


def test_a_descriptor_set_to_non_blocking_loses_nothing(ends: tuple[int, int]) -> None:
    """A full pipe that another made non-blocking is waited for, in the thread."""
    read, write = ends
    filled = fill(write)
    os.set_blocking(write, False)
    pipe = LogPipe(os.fdopen(write, "wb", closefd=False), gather=0.0)
    said = lines(3000)
    for line in said:
        pipe.put(line)
    os.close(write)
    assert read_all_in_step(read, pipe)[filled:] == "".join(said)
    assert pipe.dropped == 0


def read_all_in_step(read: int, pipe: LogPipe) -> str:
    kept: list[bytes] = []
    reader = threading.Thread(target=lambda: kept.append(read_all(read)))
    reader.start()
    assert pipe.close(10)
    reader.join(10)
    return kept[0].decode()


def test_a_line_torn_by_a_full_disk_does_not_swallow_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that broke off inside a line, the next one starts on its own."""
    read, write = os.pipe()
    room = [10, 0, 0]

    def half_a_write(fd: int, data: memoryview) -> int:
        if room:
            space = room.pop(0)
            if not space:
                raise OSError(28, "No space left on device")
            return real(fd, data[:space])
        return real(fd, data)

    real = os.write
    pipe = LogPipe(os.fdopen(write, "wb"), gather=0.0)
    monkeypatch.setattr("relay.telemetry.pipe.os.write", half_a_write)
    pipe._write_lines(["first line that is cut\n", "second\n"])
    pipe._write_lines(["third\n", "fourth\n"])
    pipe._write_lines(["fifth\n"])
    pipe._write_lines(["sixth\n"])
    assert pipe.close(10)
    pipe._stream.close()
    assert read_all(read) == b"first line\nfifth\nsixth\n"
    assert pipe.dropped == 4
    os.close(read)


@pytest.mark.row("T62")
def test_known_secrets_are_blotted_out_in_either_spelling() -> None:
    """A secret never leaves, raw or as JSON escapes it; a value too short to be one changes nothing."""
    out = io.StringIO()
    pipe = LogPipe(out, gather=0.0)
    pipe.hide(["hunter2-hunter2", 'quo"ted-caf\u00e9', "info"])
    pipe.put('{"a":"hunter2-hunter2 and quo\\"ted-caf\\u00e9","level":"info"}\n')
    assert pipe.close(10)
    assert out.getvalue() == '{"a":"*** and ***","level":"info"}\n'


def test_after_the_close_lines_are_counted_and_the_undoing_is_done() -> None:
    """A late line is dropped, never written into what the descriptor may have become."""
    undone: list[str] = []
    out = io.BytesIO()
    pipe = LogPipe(out)
    pipe.put("in time\n")
    pipe.at_close(lambda: undone.append("first"))
    pipe.at_close(lambda: undone.append("second"))
    assert pipe.close()
    pipe.put("late\n")
    assert (pipe.dropped, out.getvalue(), undone) == (1, b"in time\n", ["second", "first"])
    assert pipe.close()


def test_a_stream_that_is_closed_only_costs_the_lines() -> None:
    """A stream without a descriptor that refuses is counted."""
    out = io.StringIO()
    pipe = LogPipe(out, gather=0.0)
    out.close()
    pipe.put("x\n")
    assert pipe.close(10)
    assert pipe.dropped == 1


@pytest.mark.row("T25", "T26")
def test_once_somebody_reads_again_what_was_dropped_is_told(ends: tuple[int, int]) -> None:
    """One line with the number, so that a gap in the log is not taken for silence."""
    read, write = ends
    fill(write)
    pipe = start_logging("info", "json", os.fdopen(write, "wb", closefd=False))
    for line in lines(20_000):
        pipe.put(line)
    dropped = pipe.dropped
    assert dropped > 0
    found = b""
    while b"relay.log_dropped" not in found:
        found += os.read(read, 1 << 20)
    assert pipe.close(10)
    os.close(write)
    found += read_all(read)
    (told,) = (json.loads(line) for line in found.splitlines() if b"relay.log_dropped" in line)
    assert told["count"] == dropped == pipe.dropped
    assert told["reason"] == "nobody read the log in time"


@pytest.mark.row("F6", "T26")
def test_lines_that_a_full_disk_cost_are_told_with_its_own_words(ends: tuple[int, int]) -> None:
    """Once the log is written again, whoever reads it looks to the disk and not for a slow reader; told once."""
    read, write = ends
    with Path("/dev/full").open("wb", buffering=0) as full:
        pipe = start_logging("info", "json", full)
    pipe._write_lines(["first\n", "second\n"])
    assert pipe._fd is not None
    os.dup2(write, pipe._fd)
    pipe.put("third\n")
    found = b""
    while b"relay.log_dropped" not in found:
        found += os.read(read, 1 << 20)
    assert pipe.close(10)
    told = json.loads(found.splitlines()[-1])
    assert (told["count"], told["reason"]) == (2, "the log cannot be written: No space left on device")
    assert pipe._error == ""


@pytest.mark.row("T26")
def test_a_full_disk_under_the_log_is_counted_and_costs_nothing(tmp_path: Path) -> None:
    """What cannot be written is lost and counted; nothing waits and nothing fails."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        pipe = LogPipe(full, gather=0.0)
        for line in lines(1000):
            pipe.put(line)
        assert pipe.close(10)
    assert pipe.dropped == 1000
