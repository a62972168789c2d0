"""A store in a process of its own, for what cannot be tried inside the test's: `python -m … PATH VERB`.

It prints one line of JSON for each thing that happened, so that the parent knows when to go on.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 - who has given up root's rights may not read it any more
import contextlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from relay.model import Event
from relay.store import StoreError, StoreUnavailable
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.connection import migrate
from tests.support.store_parts import Watch, an_event, one, settlement, stored

NOBODY = 65534


def say(**what: object) -> None:
    """One line to the parent."""
    print(json.dumps(what), flush=True)


async def hold(path: Path) -> None:
    """Open the store, say so, and hold it until the parent closes our input."""
    store = await SqliteStore.open(path, Watch())
    say(pid=os.getpid())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await store.close()


async def only_open(path: Path, *, afresh: bool = False) -> None:
    """Try to open, say what came of it and which threads are left."""
    try:
        store = await SqliteStore.open(path, Watch(), afresh=afresh)
    except StoreError as error:
        say(refused=type(error).__name__, words=str(error))
    else:
        await store.close()
        say(opened=True)
    mine = (threading.main_thread().name, "asyncio_")  # the loop ends its own helpers
    others = [thread for thread in threading.enumerate() if not thread.name.startswith(mine)]
    for thread in others:
        thread.join(5)
    say(threads=sum(thread.is_alive() for thread in others))


async def begin_afresh(path: Path) -> None:
    """The same, and whatever is there is set aside."""
    await only_open(path, afresh=True)


async def unprivileged(path: Path, *, afresh: bool = False) -> None:
    """The same without root's rights, which no file mode stops."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    await only_open(path, afresh=afresh)


async def unprivileged_afresh(path: Path) -> None:
    """The same, to set aside what is there."""
    await unprivileged(path, afresh=True)


async def small_files(path: Path) -> None:
    """Run into a limit on the size of files, and have it lifted."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    await without_room(
        path,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, most)),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )


async def full_disk(path: Path) -> None:
    """Fill a small file system beside the store, and clear it again."""
    ballast = path.with_name("ballast")

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    await without_room(path, fill, ballast.unlink)


async def without_room(path: Path, tighten: Callable[[], None], loosen: Callable[[], None]) -> None:
    """Accept until nothing more fits, settle meanwhile, then make room: all in one process."""
    watch = Watch()
    store = await SqliteStore.open(path, watch)
    first = await stored(store, "crm")
    claim = await one(store)
    tighten()
    promised: list[str] = []
    refused = 0
    for _ in range(40):
        event = an_event(body=b"x" * 30_000)
        try:
            await asyncio.wait_for(store.accept(event, ["crm"]), 20)
            promised.append(event.id)
        except StoreUnavailable:
            refused += 1
    settling = asyncio.ensure_future(store.settle(settlement(claim)))
    claims_refused = False
    try:
        await one(store)
    except StoreUnavailable:
        claims_refused = True
    waits = not settling.done()
    loosen()
    settled = await asyncio.wait_for(settling, 20)
    last = await stored(store, "crm")
    await store.close()
    say(
        first=first.id,
        promised=[*promised, last.id],
        refused=refused,
        waits=waits,
        claims_refused=claims_refused,
        settled=settled.ruling is not None,
        outages=watch.outages,
        recoveries=len(watch.recoveries),
    )


async def killed_in_a_migration(path: Path) -> None:
    """Die in the middle of the second step of a migration, its first statements done."""
    import aiosqlite

    db = await aiosqlite.connect(path, isolation_level=None)
    await db.execute("PRAGMA journal_mode=WAL")
    await db.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    await migrate(db, ("CREATE TABLE one (n);", "CREATE TABLE two (n); INSERT INTO two VALUES (1); SELECT die();"))


async def accept_for_ever(path: Path) -> None:
    """Accept, and say the id of each event after it was promised, until killed."""
    store = await SqliteStore.open(path, Watch())

    async def sender(name: str) -> None:
        for number in range(1_000_000):
            event: Event = an_event(f"evt_{name}_{number}", key=f"{name}-{number}")
            await store.accept(event, ["crm", "books"])
            say(id=event.id)

    await asyncio.gather(*(sender(str(number)) for number in range(8)))


VERBS: dict[str, Callable[[Path], Awaitable[None]]] = {
    verb.__name__: verb
    for verb in (
        hold,
        only_open,
        begin_afresh,
        unprivileged_afresh,
        unprivileged,
        small_files,
        full_disk,
        killed_in_a_migration,
        accept_for_ever,
    )
}


def main() -> None:
    """Run one verb on one file."""

    async def run() -> None:
        await VERBS[sys.argv[2]](Path(sys.argv[1]))

    asyncio.run(run())


if __name__ == "__main__":
    main()
