"""A small file system of a test's own, to run full."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


def can_mount() -> bool:
    """Whether this system lets us have one."""
    command = shutil.which("unshare")
    return command is not None and subprocess.run([command, "-m", "true"], capture_output=True).returncode == 0


@asynccontextmanager
async def small_disk(home: Path, size: str) -> AsyncIterator[tuple[str, ...]]:
    """A file system of this size at this place, for those alone that the command which is given back starts."""
    script = f"mount -t tmpfs -o size={size} none {home} && echo mounted && exec cat"
    holder = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-c", script), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert await holder.stdout.readline() == b"mounted\n"
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={Path.cwd()}")
    finally:
        holder.stdin.close()
        await holder.wait()
