"""Processes of `store_child`, started and ended."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def child(path: Path, verb: str, *, within: Sequence[str] = ()) -> "Iterator[subprocess.Popen[str]]":
    """A store in a process of its own, which does not outlive the block; `within` is a command that starts it."""
    command = [*within, sys.executable, "-m", "tests.support.store_child", str(path), verb]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def told(path: Path, verb: str, *, within: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All that such a process said."""
    with child(path, verb, within=within) as process:
        out, _ = process.communicate(timeout=50)
    return [json.loads(line) for line in out.splitlines()]
