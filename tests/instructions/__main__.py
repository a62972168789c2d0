"""Count the instructions that an event costs, from its arrival to its third delivery: `python -m tests.instructions`.

A relay runs under valgrind's callgrind, which counts every instruction outside of the kernel; events come one at a
time. Held against it is what a bare aiohttp handler needs for a request, counted in the same run: the ratio of the two
says little of the processor and of how Python was built. A ratio that is higher than the known one by more than the
tolerance ends with exit code 1; one that is lower asks for a new known one.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from relay.bench.load import Load
from relay.bench.trial import child, line_of, relay_for, sent_all, targets

KNOWN = {"3.11": 16.1}
"""Instructions of an event for each of a bare request, by the version of Python that they were counted with."""
TOLERANCE = 0.12
"""Two runs differ by less than a hundredth; but how much of what belongs to one event is committed together depends on
the pace of the machine, and makes a tenth of the cost."""
EVENTS, RATE = 60, 5.0
WARM = 30
"""Events before the counting begins."""


def under(home: Path) -> list[str]:
    """The beginning of a command whose instructions are counted, from when that is asked for."""
    return ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet", f"--callgrind-out-file={home}/counted"]


async def counted(pid: int, port: int, home: Path) -> float:
    """Instructions that a process needs for each of the events that are sent to it."""

    async def send(number: int, first: int) -> None:
        sent = await sent_all(Load(port, 1, 1024, number / RATE, RATE, first), home / "sent", lambda _: None)
        if others := {status for status in sent[2::3] if status != 200}:
            sys.exit(f"not every event was answered 200, but some with {others}")
        await asyncio.sleep(2)  # the last deliveries; a wait that is too short would only count less of one

    await send(WARM, 0)
    control(pid, "--instr=on")
    await send(EVENTS, WARM)
    control(pid, "--instr=off")
    control(pid, "--dump")
    lines = [line for file in home.glob("counted.*") for line in file.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("totals:")) / EVENTS


def control(pid: int, what: str) -> None:
    """Ask callgrind for something."""
    quiet = subprocess.DEVNULL
    subprocess.run(["callgrind_control", what, str(pid)], check=True, timeout=60, stdout=quiet, stderr=quiet)


async def of_a_relay(home: Path) -> float:
    """Of an event with three targets."""
    async with targets(3, home) as (ports, _), relay_for(ports, home, within=under(home)) as relay:
        return await counted(relay.pid, relay.port, home)


async def of_a_bare_handler(home: Path) -> float:
    """Of a request that is only read and answered."""
    async with child("-m", "relay.bench.bare", within=under(home)) as process:
        return await counted(process.pid, int(await line_of(process)), home)


@click.command()
def main() -> None:
    """Count, and hold the ratio against the known one."""
    with tempfile.TemporaryDirectory(prefix="relay-instructions-") as name:
        places = [Path(name, one) for one in ("relay", "bare")]
        for place in places:
            place.mkdir()
        event = asyncio.run(of_a_relay(places[0]))
        request = asyncio.run(of_a_bare_handler(places[1]))
    ratio = event / request
    version = "{}.{}".format(*sys.version_info[:2])
    known = KNOWN.get(version)
    click.echo(json.dumps({"event": round(event), "bare_request": round(request), "ratio": round(ratio, 2)}))
    if known is None:
        click.echo(f"nothing is known of Python {version}; it is counted with {', '.join(KNOWN)}")
    elif ratio > known * (1 + TOLERANCE):
        sys.exit(f"an event costs {ratio:.1f} bare requests; known are {known}: find what has become dearer")
    elif ratio < known * (1 - TOLERANCE):
        click.echo(f"cheaper than known ({known}): let the next change be held against {ratio:.1f}")


if __name__ == "__main__":
    main()
