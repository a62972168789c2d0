"""How fast the disk keeps what it is given, which bounds every answer."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BLOCK = 4096
BLOCKS = 256
"""Written over again and again, as a log of a database is."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Syncs a second, and what one takes, in milliseconds."""

    syncs_per_s: float
    p50_ms: float
    p99_ms: float


def measured(directory: Path, seconds: float) -> Disk:
    """Write and sync 4 KB in a file of a directory for so long.

    Raises:
        OSError: it cannot be written there.
    """
    sync = getattr(os, "fdatasync", os.fsync)
    file = directory / "syncs"
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    took: list[float] = []
    try:
        os.pwrite(fd, bytes(BLOCK * BLOCKS), 0)
        os.fsync(fd)
        ends_at = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends_at:
            os.pwrite(fd, bytes(BLOCK), BLOCK * (len(took) % BLOCKS))
            sync(fd)
            took.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        with suppress(OSError):
            file.unlink()
    return Disk(len(took) / sum(took), percentile(took, 50), percentile(took, 99))


def percentile(seconds: list[float], share: float) -> float:
    """The value that so many per cent do not exceed, in milliseconds; 0 where there is none."""
    if not seconds:
        return 0.0
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] * 1000
