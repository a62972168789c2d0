"""Lives of the relay that cost a fork each: a process that has the package loaded and forks a child for each.

Run as a program it takes lines on its input (`start CONFIG LOG`, an empty one ends it) and answers on its output: the
child's pid, and later its end as `ended PID CODE`. A life is `relay run` as the command line calls it, in a process of
its own, with the file LOG for its output; only the imports are made beforehand.
"""

import asyncio
import contextlib
import os
import select
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Self


def log_of(config: Path) -> Path:
    """Where all lives by a config write."""
    return config.with_name("lives.log")


class Nursery:
    """The same from the side of a test."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.nursery"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), 30)

    async def _heard(self) -> list[str]:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(40):
            return (await self._process.stdout.readline()).decode().split()

    async def life(self, config: Path) -> "Life":
        """Begin a life by a config; it runs. It writes `lives.log` beside that."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"start {config} {log_of(config)}\n".encode())
        word, pid = await self._heard()
        assert word == "born"
        return Life(self, int(pid))


class Life:
    """One process."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self._nursery = nursery

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that is over gets none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        word, pid, code = await self._nursery._heard()
        assert (word, int(pid)) == ("ended", self.pid)
        return int(code)

    async def kill(self) -> int:
        """End it at once."""
        self.signal(signal.SIGKILL)
        return await self.ended()


def _be_born(config: str, log: str) -> None:
    """The child: `relay run`, and nothing of the parent's."""
    from relay.cli import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["relay", "run", "--config", config]
    code = 70
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def _nurse() -> None:
    for loaded in ("relay.process", "relay.cli.running", "uvloop"):
        import_module(loaded)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    commands = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    print("ended", ended[0], os.waitstatus_to_exitcode(ended[1]), flush=True)
        if 0 not in ready:
            continue
        more = os.read(0, 4096)
        if not more:
            return
        *lines, commands = (commands + more).split(b"\n")
        for line in lines:
            _, config, log = line.decode().split()
            pid = os.fork()
            if not pid:
                os.close(woken)
                signal.set_wakeup_fd(-1)
                _be_born(config, log)
            print("born", pid, flush=True)


if __name__ == "__main__":
    _nurse()
