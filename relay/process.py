"""Runs the app as a process: its log, its event loop, its signals, its exit code.

Law: the first signal stops tidily, the second leaves at once, and both lose nothing; a refused start says why in
one line and ends. SIGHUP has the config read again, and ends the process at no time.
"""

import asyncio
import ctypes
import gc
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import structlog

from relay import __version__
from relay.app import FAILURE, App
from relay.config import Config
from relay.listener import CannotListen, has_native_parser
from relay.loops import loop_factory
from relay.reloading import tell_warnings
from relay.store import StoreError, StoreInUse
from relay.telemetry.logs import LogPipe, start_logging

CANNOT_LISTEN, STORE_UNUSABLE, STORE_IN_USE = 69, 74, 75
"""Exit codes of a start that was refused, as sysexits has them."""
START_PATIENCE_S = 15.0
"""How long a start goes on that was asked to stop."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LEAST = re.compile(r">=\s*([0-9][0-9A-Za-z.]*)")
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)*")
MMAP_THRESHOLD, ARENA_MAX = -3, -8
"""Names of `mallopt`, as glibc's malloc.h has them."""

log = structlog.get_logger()


def run(config: Config, *, new_store: bool = False, watch: bool = False) -> int:
    """Serve until a signal says stop; returns the exit code of the process. `watch` has the config reloaded when the
    content of its files changes."""
    if sys.stdout is None:  # closed by whoever started it: the log still must go somewhere
        sys.stdout = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    _give_memory_back()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it would hold secrets
    pipe = start_logging(config.log.level, config.log.format, sys.stdout)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(config, pipe, new_store=new_store, watch=watch))
    except StoreError as error:
        return _refuse_start(error, STORE_IN_USE if isinstance(error, StoreInUse) else STORE_UNUSABLE)
    except CannotListen as error:
        return _refuse_start(error, CANNOT_LISTEN)
    finally:
        pipe.close()


async def _serve(config: Config, pipe: LogPipe, *, new_store: bool, watch: bool) -> int:
    asked, hung_up = asyncio.Event(), asyncio.Event()
    _heed_signals(asked, hung_up, pipe)
    try:
        return await _serve_until(asked, hung_up, config, pipe, new_store=new_store, watch=watch)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def _serve_until(
    asked: asyncio.Event, hung_up: asyncio.Event, config: Config, pipe: LogPipe, *, new_store: bool, watch: bool
) -> int:
    if not has_native_parser():
        log.critical("relay.start_refused", reason="aiohttp lacks its native parser; install a wheel of it")
        return FAILURE
    if old := outdated():
        log.critical(
            "relay.start_refused", reason=f"older than it must be, and may be open to attack: {', '.join(old)}"
        )
        return FAILURE
    tell_warnings(config)
    app = App(config, new_store=new_store)
    app.watch_log(pipe)
    if not await _started(app, asked):
        log.info("relay.stopped", exit_code=0)
        _leave_stuck(pipe, 0)
    _settle_memory()
    log.info(
        "relay.started",
        version=__version__,
        listen="{}:{}".format(*app.hooks_address),
        admin="{}:{}".format(*app.admin_address),
        sources=len(config.sources),
        targets=len(config.targets),
        routes=len(config.routes),
        store=config.store.shown,
        pid=os.getpid(),
        **app.speaker,
    )
    app.heed_reloads(hung_up)
    if watch:
        app.watch_config()
    code = await app.run_until(asked)
    log.info("relay.stopped", exit_code=code)
    if app.is_stuck:
        _leave_stuck(pipe, code)
    return code


def outdated() -> list[str]:
    """What is installed in a version below that which our own package demands; installers can be talked past that."""
    try:
        wanted = metadata.requires("relay-gateway") or ()
    except metadata.PackageNotFoundError:
        return []  # run from a folder; nobody knows what was wanted
    found: list[str] = []
    for requirement in wanted:
        name, least = _NAME.match(requirement), _LEAST.search(requirement)
        if name is None or least is None or "extra ==" in requirement:
            continue
        with suppress(metadata.PackageNotFoundError):  # what is missing has failed to import before this
            version = metadata.version(name[0])
            if _numbers(version) < _numbers(least[1]):
                found.append(f"{name[0]} {version} (needs {least[1]})")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version (PEP 440), zeros at its end left out: enough to say which is older."""
    release = _RELEASE.match(version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _give_memory_back() -> None:
    """Have large bodies be mappings of their own, which end with them: glibc would else keep what a burst of them took,
    once for each thread, until the process ends. Other C libraries do so by themselves, or have no such call."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 128 * 1024)
        libc.mallopt(ARENA_MAX, 2)


async def _started(app: App, asked: asyncio.Event) -> bool:
    """Start the app; False where a stop was asked for and the start does not end: it waits for a disk that hangs."""
    starting = asyncio.create_task(app.start(), name="start")
    stopping = asyncio.create_task(asked.wait(), name="stop asked for")
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done() and not (await asyncio.wait({starting}, timeout=START_PATIENCE_S))[0]:
        return False
    await starting
    return True


def _leave_stuck(pipe: LogPipe, code: int) -> NoReturn:
    """End the process without waiting for threads that wait for the disk."""
    log.error("store.unavailable", reason="the disk does not answer; what was acknowledged is safe, leaving at once")
    pipe.close(0.5)
    os._exit(code)


def _settle_memory() -> None:
    """Leave what was built at the start out of every later garbage collection."""
    gc.collect()
    gc.freeze()


def _heed_signals(asked: asyncio.Event, hung_up: asyncio.Event, pipe: LogPipe) -> None:
    """The first signal asks to stop, the second leaves at once: what is in the store is safe. SIGHUP asks for a reload,
    which a start under way makes when it is done."""
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if asked.is_set():
            log.warning("relay.stopping", reason=f"{number.name} again: leaving at once, what is stored is safe")
            log.info("relay.stopped", exit_code=FAILURE)
            pipe.close(0.5)
            os._exit(FAILURE)
        log.info("relay.stopping", reason=number.name)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)


def _refuse_start(error: Exception, code: int) -> int:
    log.critical("relay.start_refused", reason=str(error))
    if not sys.stdout.isatty():  # on a terminal the line above has just said it
        with suppress(OSError):  # the code holds also where the words can go nowhere
            print(f"relay: {error}", file=sys.stderr)  # noqa: T201 - a person or a script starts it and reads this
    return code
