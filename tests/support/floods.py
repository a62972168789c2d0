"""What floods of a running relay are made of and measured by."""

import contextlib
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.support.program import Gateway

MIB = 1024 * 1024


def within(*, loop: str, files: int | None = None, folder: Path) -> tuple[str, ...]:
    """A command that starts another on this event loop, and lets it open so many files."""
    command = 'exec "$@"' if files is None else f'ulimit -n {files}; exec "$@"'
    if loop == "asyncio":  # as where uvloop is not installed
        (folder / "uvloop.py").write_text('raise ImportError("not here")\n')
        command = f"export PYTHONPATH={shlex.quote(str(folder))}; {command}"
    return ("sh", "-c", command, "sh")


def memory(pid: int, what: str = "VmRSS") -> float:
    """What a process holds of the memory, in MiB; `VmHWM` is the most that it ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1024


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def address(url: str) -> tuple[str, int]:
    """Host and port of `http://host:port`."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


@contextlib.contextmanager
def silent(url: str, number: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections that say this and then nothing, and read nothing. Those that the port does not take yet wait
    there."""
    sockets = []
    try:
        for _ in range(number):
            one = socket.socket()
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(10)
            one.connect(address(url))
            one.setblocking(False)
            with contextlib.suppress(OSError):
                one.send(first)
        yield sockets
    finally:
        for one in sockets:
            one.close()


def ended(connection: socket.socket) -> bool:
    """Whether the relay has closed a connection; what it said before is read away."""
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


async def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """One sample as the admin listener shows it."""
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/metrics") as answer:
        for family in text_string_to_metric_families(await answer.text()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
    raise AssertionError(f"{name}{labels} is not shown")
