"""A program whose wall clock a test sets, also while it runs; the clocks that nobody sets go on as they are.

A library of a page is put before the C library's own (`clock_shim.c`). It needs a C compiler; libfaketime, which does
the same, breaks `time.sleep` of today's Python.
"""

import struct
import subprocess
from datetime import timedelta
from pathlib import Path


class SetClock:
    """The clock of one program, right until it is set."""

    def __init__(self, home: Path) -> None:
        self._file = home / "clock"
        self.set(timedelta(0))
        library = home / "clock_shim.so"
        source = Path(__file__).with_name("clock_shim.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self.environ = {"LD_PRELOAD": str(library), "RELAY_TEST_CLOCK": str(self._file)}
        """For the program."""

    def set(self, by: timedelta) -> None:
        """Let it be wrong by so much from now on."""
        mode = "r+b" if self._file.exists() else "wb"
        with self._file.open(mode) as file:
            file.write(struct.pack("q", int(by.total_seconds())))
