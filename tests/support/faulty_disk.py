"""A disk that fails on purpose: orders to the library `faulty_disk.c`, which is loaded before the C library.

Law: real calls fail, those of SQLite and those of ours, counted over all threads from the start of the process on. The
orders lie in memory that both share, so that a test can make a disk ill and well while the process runs.
"""

import atexit
import ctypes
import enum
import errno
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_suffix(".c")
LAST = (1 << 63) - 1
"""The number of a call that never comes."""


class Call(enum.IntFlag):
    """Kinds of calls."""

    WRITE, SYNC, READ, OPEN, TRUNCATE, UNLINK, STAT, MAP, LOCK, RENAME = (1 << n for n in range(10))


class Kind(enum.IntFlag):
    """Kinds of files below a store's directory, and the directory itself."""

    DATABASE, LOG, INDEX, GUARD, JOURNAL, COPY, DIRECTORY, OTHER = (1 << n for n in range(8))


EVERYTHING = Kind(255)


class How(enum.IntEnum):
    """What happens to a call."""

    FAIL, HALF, DELAY, HANG, KILL = range(5)


class _Orders(ctypes.Structure):
    _fields_ = [
        ("armed", ctypes.c_int),
        ("calls", ctypes.c_uint),
        ("files", ctypes.c_uint),
        ("error", ctypes.c_int),
        ("how", ctypes.c_int),
        ("released", ctypes.c_int),
        ("first", ctypes.c_long),
        ("last", ctypes.c_long),
        ("pause_us", ctypes.c_long),
        ("count", ctypes.c_long),
        ("given", ctypes.c_long),
        ("hanging", ctypes.c_long),
        ("home", ctypes.c_char * 1024),
    ]


@dataclass(frozen=True)
class Fault:
    """Which calls fail, and how: those from the `first` to the `last` that match."""

    calls: Call
    error: int = errno.EIO
    first: int = 1
    last: int = LAST
    files: Kind = EVERYTHING
    how: How = How.FAIL
    pause_s: float = 0.0

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.how is How.FAIL else self.how.name
        return f"{what} at {self.calls.name} {self.first}" + ("" if self.last == self.first else f" to {self.last}")


@cache
def library() -> Path:
    """The compiled library, for as long as this process lives."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "a C compiler is needed: apt-get install gcc libc6-dev"
    made = Path(tempfile.gettempdir()) / f"faulty-disk-{os.getuid()}-{os.getpid()}.so"
    atexit.register(made.unlink, missing_ok=True)
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


@dataclass
class FaultyDisk:
    """What holds for the files below one directory, in one process."""

    home: Path
    page: Path
    """The file of the orders; it stands outside of `home`."""
    _orders: _Orders = field(init=False)

    def __post_init__(self) -> None:
        self.page.write_bytes(bytes(mmap.PAGESIZE))
        with self.page.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._orders = _Orders.from_buffer(self._memory)
        self._orders.home = str(self.home.resolve()).encode()

    def environment(self) -> dict[str, str]:
        """What a process is started with, so that it gets these orders."""
        return {"LD_PRELOAD": str(library()), "FAULTY_DISK": str(self.page)}

    def order(self, fault: Fault) -> Self:
        """Count from nothing, and let these calls fail from now on."""
        orders = self._orders
        orders.armed = 0
        orders.calls, orders.files = int(fault.calls), int(fault.files)
        orders.error, orders.how, orders.released = fault.error, int(fault.how), 0
        orders.first, orders.last, orders.pause_us = fault.first, fault.last, int(fault.pause_s * 1e6)
        orders.count = orders.given = 0
        orders.armed = 1
        return self

    def heal(self) -> None:
        """Everything succeeds from now on, and what hangs goes on."""
        self._orders.armed = 0
        self._orders.released = 1

    @property
    def count(self) -> int:
        """Calls that matched."""
        return int(self._orders.count)

    @property
    def given(self) -> int:
        """Calls that were struck."""
        return int(self._orders.given)

    @property
    def hanging(self) -> int:
        """Calls that hang now."""
        return int(self._orders.hanging)


@contextmanager
def quick_place() -> Iterator[Path]:
    """A directory in memory, where there is such a place: a sync that is not failed costs nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="relay-", dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)
