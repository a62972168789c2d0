"""The installed command run under `strace`, and what was recorded of it put in order for power cuts."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.support.after_a_cut import Sent
from tests.support.power_cut import Step
from tests.support.program import Gateway, Sink, until, webhook, write_config
from tests.support.system_calls import CALLS, Reader

ROOT = Path(__file__).resolve().parents[2]
"""Where this package of tests is found."""
LONGEST = 1 << 20
"""No single write of a store's file is longer."""


def recording(trace: Path, *faults: str, program: Path | None = None) -> list[str]:
    """The beginning of a command that is recorded."""
    copy = [] if program is None else ["env", f"--chdir={program}", f"PYTHONPATH={program}:{ROOT}"]
    injected = [word for fault in faults for word in ("-e", f"inject={fault}")]
    fast = [] if any("signal=" in fault for fault in faults) else ["--seccomp-bpf"]  # with it no signal is injected
    options = ["-f", *fast, "-q", "-xx", "-s", str(LONGEST), "-e", "signal=none", "-e", f"trace={CALLS}"]
    return [*copy, "strace", *options, *injected, "-o", str(trace)]


class Recorded(Gateway):
    """`relay run` under `strace`; signals go to the relay itself."""

    def __init__(self, config: Path, trace: Path, *faults: str, program: Path | None = None) -> None:
        """`faults` are injections of strace; `program` is a directory with another copy of the package."""
        super().__init__(config, within=recording(trace, *faults, program=program))

    @property
    def _relay(self) -> int | None:
        """The process that strace watches."""
        with suppress(OSError):
            pid = self.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._relay or self.process.pid, number)


class Recording:
    """One store and all that is recorded of the processes that have it, one after the other."""

    def __init__(self, home: Path, sink: Sink, *, program: Path | None = None) -> None:
        """`home` is a directory for all of it; `program` holds another copy of the package."""
        self.sent = Sent()
        self._store = home / "store"
        self._store.mkdir(parents=True)
        self._home = home
        self._program = program
        self._traces: list[Path] = []
        self._numbers = iter(range(1_000_000))
        self.config = write_config(self._store / "config.yaml", sink, targets=dict.fromkeys(self.sent.targets, ""))
        self.config = self.config.rename(home / "config.yaml")

    def running(self, *faults: str) -> Recorded:
        """The next process, to be entered."""
        self._traces.append(self._home / f"trace-{len(self._traces)}")
        return Recorded(self.config, self._traces[-1], *faults, program=self._program)

    async def send(self, gateway: Gateway, number: int, *, senders: int) -> None:
        """So many webhooks from each of so many senders; what is answered 200 is remembered, all else is sent anew, as
        another one."""

        async def sender() -> None:
            async with aiohttp.ClientSession() as session:
                for _ in range(number):
                    await self._answered(session, gateway.hooks)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(senders):
                group.create_task(sender())

    async def send_until_killed(self, gateway: Gateway, number: int, *, senders: int, after: int | None = None) -> None:
        """The same to a process that dies over it, or is killed after so many answers."""
        enough = None if after is None else len(self.sent.bodies) + after
        sending = asyncio.create_task(self.send(gateway, number, senders=senders))
        await until(lambda: sending.done() or (enough is not None and len(self.sent.bodies) >= enough))
        with suppress(ExceptionGroup):  # connections that broke; what was not answered counts for nothing
            if enough is None:
                await sending
            await gateway.kill()
            await sending

    async def _answered(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            source, body, headers = webhook(next(self._numbers))
            async with session.post(f"{url}/hooks/{source}", data=body, headers=headers) as answer:
                if answer.status == 200:
                    self.sent.bodies[(await answer.json())["id"]] = body
                    return
            await asyncio.sleep(0.02)

    async def commits(self, gateway: Gateway) -> int:
        """How many transactions it has committed."""
        async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/metrics") as answer:
            found = re.search(r"^relay_store_commit_seconds_count (\d+)", await answer.text(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    def steps(self) -> list[Step]:
        """All that was recorded, in order."""
        reader = Reader(self._store)
        for trace in self._traces:
            with trace.open(encoding="ascii") as lines:
                reader.read(lines)
        return reader.steps
