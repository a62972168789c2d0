"""PostgreSQL for the tests: a cluster of their own, which lives as long as the test process, or a server that is given.

`server()` is the one that a test process shares; with several workers each has its own. It is started when it is first
asked for. Nothing of a cluster outlives the process, whatever ends it: a keeper waits for the process's end and then
stops the cluster and removes its directory.
"""

import atexit
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.postgres_looking import execute, forget

GIVEN = "RELAY_TEST_POSTGRES_URL"
NEEDED = "RELAY_TEST_NEEDS_POSTGRES"
STARTS_WITHIN_S = 60.0
STOPS_WITHIN_S = 30.0

STOPS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

ALWAYS = {"listen_addresses": "127.0.0.1", "max_connections": "100", "shared_buffers": "32MB", "max_wal_size": "256MB"}
UNSAFE = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
"""For tests in which no power is cut: what is committed is with the kernel, where it outlives any process."""

KEEPER = 'cat >/dev/null; "$1" stop -D "$2" -m immediate -w -t 20 >/dev/null 2>&1; rm -rf "$3"'


def _places() -> list[Path]:
    """Where PostgreSQL's programs may be: where PATH has `initdb`, then where Debian has them, the newest first."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: float(place.parent.name), reverse=True)
    return ([Path(on_path).resolve().parent] if on_path else []) + debian


def binary(name: str) -> str | None:
    """The path of one of PostgreSQL's programs; all are taken from one place, for they must be of one version."""
    paths = (place / name for place in _places())
    return next((str(path) for path in paths if path.exists()), None) or shutil.which(name)


def no_binaries() -> str | None:
    """Why no cluster can be made, if none can."""
    if all(binary(name) for name in ("initdb", "postgres", "pg_ctl", "pg_dump")):
        return None
    return f"no PostgreSQL server binaries found: install Debian's package postgresql, or set {GIVEN}"


def missing() -> str | None:
    """Why tests with PostgreSQL cannot run, if they cannot."""
    if not os.environ.get(GIVEN):
        return no_binaries()
    return None if binary("pg_dump") else f"{GIVEN} is set, but no pg_dump found: install Debian's postgresql-client"


def needed(why_not: Callable[[], str | None] = missing) -> None:
    """Skip a test for which there is no PostgreSQL; where the environment says that it is needed, fail it."""
    reason = why_not()
    if reason is None:
        return
    if os.environ.get(NEEDED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Server:
    """A running server, on which databases are made; those that are still there are dropped when it is closed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: set[str] = set()

    def url(self, database: str) -> str:
        """Where a database of that name is, or would be."""
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))

    def create_database(self) -> str:
        """The url of a new and empty database."""
        name = f"relay_{secrets.token_hex(8)}"
        execute(self._url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        url = self.url(name)
        self._made.add(url)
        return url

    def drop_database(self, url: str) -> None:
        """Have it gone, whoever is still connected to it."""
        forget(url)
        execute(self._url, f"DROP DATABASE IF EXISTS {urlsplit(url).path[1:]} WITH (FORCE)")
        self._made.discard(url)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The url of a new database, for a while."""
        url = self.create_database()
        try:
            yield url
        finally:
            self.drop_database(url)

    def close(self) -> None:
        """Leave nothing behind."""
        for url in list(self._made):
            self.drop_database(url)
        forget(self._url)


class Cluster(Server):
    """A cluster in a temporary directory, on 127.0.0.1; `durable` has PostgreSQL's own settings against a power cut."""

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__("")
        self._durable = durable
        self._owner = _owner()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()
        self.home = Path(tempfile.mkdtemp(prefix="relay-pg-"))
        self.data = self.home / "data"
        self._keeper = self._started(
            *("sh", "-c", KEEPER, "keeper", _found("pg_ctl"), str(self.data), str(self.home)), stdin=subprocess.PIPE
        )
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self, *command: str, **how: Any) -> "subprocess.Popen[bytes]":
        """A process as the cluster's owner, in a session of its own: Ctrl-C is for the tests, which then end it."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        return subprocess.Popen(
            command,
            cwd="/",
            env=environment | {"LC_ALL": "C"},
            start_new_session=True,
            **self._owner,
            **how,
        )

    def _make(self) -> None:
        if self._owner:
            shutil.chown(self.home, self._owner["user"], self._owner["group"])
        command = (_found("initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
        made = self._started(*command, "--locale=C", "--no-sync", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = made.communicate()
        assert made.returncode == 0, said.decode(errors="replace")

    def start(self) -> None:
        """Start it; returns when it takes connections. It keeps its port, so that a url stays good over a restart."""
        assert self._process is None, "it runs already"
        tries = 1 if self._url else 5  # whoever takes a free port between the look and its use has it
        while True:
            port = urlsplit(self._url).port if self._url else _free_port()
            try:
                self._start(port)
            except AssertionError:
                tries -= 1
                if not tries:
                    raise
            else:
                self._url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
                return

    def _start(self, port: int | None) -> None:
        settings = ALWAYS | ({} if self._durable else UNSAFE)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.home / "log").open("ab") as log:
            self._process = self._started(
                *(_found("postgres"), "-D", str(self.data), "-p", str(port), "-k", str(self.home), *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                self._process = None
                raise AssertionError(f"PostgreSQL does not start:\n{self.log()[-4000:]}")
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        assert self._process is not None
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def log(self) -> str:
        """All that the server has said."""
        return (self.home / "log").read_text(errors="replace")

    def stop(self, mode: str = "fast") -> None:
        """Stop it as `pg_ctl stop -m MODE` does; returns when it is down. One that is down stays so."""
        if self._process is None:
            return
        forget(self._beginning())  # a smart stop waits for everybody to leave
        self._process.send_signal(STOPS[mode])
        self._process.wait(STOPS_WITHIN_S)
        self._process = None

    def kill(self) -> None:
        """A crash: all its processes are killed, none ends anything in order; returns when none is left."""
        assert self._process is not None, "it does not run"
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)  # it shall neither begin another process nor tell the others what happens
        children = _children(pid)
        for one in (*children, pid):
            os.kill(one, signal.SIGKILL)
        self._process.wait(STOPS_WITHIN_S)
        self._process = None
        deadline = time.monotonic() + STOPS_WITHIN_S
        while not all(is_gone(one) for one in children):
            assert time.monotonic() < deadline, "a process of the cluster does not die"
            time.sleep(0.005)
        forget(self._beginning())

    def restart(self) -> None:
        """Stop and start it in order."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it, and leave nothing behind."""
        if self._pid != os.getpid():
            return  # a fork ends; the cluster is its parent's
        if self._process is not None:
            self.stop("immediate")
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # a crash leaves it, with a number that may be another's
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(STOPS_WITHIN_S)

    def _beginning(self) -> str:
        return self._url.removesuffix("postgres")


@functools.cache
def server() -> Server:
    """The server of this test process, which is closed when that ends."""
    given = os.environ.get(GIVEN)
    if given:
        found = Server(given)
    else:
        found = Cluster()
        atexit.register(found.close)
        found.start()
        return found
    pid = os.getpid()
    atexit.register(lambda: found.close() if os.getpid() == pid else None)
    return found


def _found(name: str) -> str:
    path = binary(name)
    assert path is not None, no_binaries()
    return path


def _owner() -> dict[str, Any]:
    """Who runs the server's programs, which refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _stat(pid: int | str) -> list[str]:
    """The fields of a process behind its name: its state, its parent, ...; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    """Every process that another has begun and that is still there."""
    if Path("/proc/self/stat").exists():
        processes = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [int(one) for one in processes if _stat(one)[1:2] == [str(pid)]]
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in listed.stdout.split()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has asked for its end yet holds nothing any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return _stat(pid)[:1] == ["Z"]
