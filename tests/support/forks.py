"""The relay's command in processes that are forked from one that has imported it: a start costs a few milliseconds.

As a program it is that process: `python -m tests.support.forks`, one line of JSON for each command. The parent has no
thread and no loop, so that what is forked from it is as fresh as a process that has just imported everything.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.faulty_disk import FaultyDisk, library

START_S = 60.0


@dataclass
class Fork:
    """One run of the command."""

    pid: int
    out: Path
    err: Path
    code: "asyncio.Future[int]"

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged; the last line may still be under way."""
        text = self.out.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def errors(self) -> str:
        """What it has said on stderr."""
        return self.err.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it is over."""
        if not self.code.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Forks:
    """The process that forks; it ends with the block, and what was forked from it too."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()
        self._running: dict[int, Fork] = {}

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.forks"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"LD_PRELOAD": str(library())},
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        for fork in self._running.values():
            fork.signal(signal.SIGKILL)
        self._process.stdin.close()
        await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def run(self, disk: FaultyDisk, place: Path, *arguments: str) -> Fork:
        """Start the command, its log in `place`, with what holds for its disk."""
        assert self._process is not None
        assert self._process.stdin is not None
        loop = asyncio.get_running_loop()
        pid: asyncio.Future[int] = loop.create_future()
        number = len(list(place.glob("out-*")))
        out, err = place / f"out-{number}", place / f"err-{number}"
        out.touch()
        order = {"arguments": arguments, "out": str(out), "err": str(err), "page": str(disk.page)}
        self._asked.put_nowait(pid)
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(START_S):
            fork = Fork(await pid, out, err, loop.create_future())
        self._running[fork.pid] = fork
        return fork

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            told = json.loads(raw)
            if "forked" in told:
                self._asked.get_nowait().set_result(told["forked"])
                await asyncio.sleep(0)  # who asked learns of it before its end can be told
            else:
                fork = self._running.pop(told["ended"])
                fork.code.set_result(told["code"])


def _as_command(order: dict[str, Any]) -> None:
    """Be the command, in a process that was just forked."""
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for fd, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, flags), fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    attached = ctypes.CDLL(str(os.environ["LD_PRELOAD"])).faulty_disk_attach(order["page"].encode())
    assert attached == 0
    from relay.cli import main

    sys.argv = ["relay", *order["arguments"]]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter itself would
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Fork on demand until there is nobody to ask."""
    for module in ("relay.cli.running", "relay.process", "uvloop"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing)
    running: set[int] = set()
    rest = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            for pid in [*running]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    running.discard(pid)
                    print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)
        if 0 in ready:
            part = os.read(0, 65536)
            if not part:  # whoever asked is gone, and nothing may outlive it
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return
            *orders, rest = (rest + part).split(b"\n")
            for raw in orders:
                pid = os.fork()
                if not pid:
                    _as_command(json.loads(raw))
                running.add(pid)
                print(json.dumps({"forked": pid}), flush=True)


if __name__ == "__main__":
    serve()
