"""Opens the store that a URL names.

Law: what is not needed is not loaded: the driver of a database comes with the extra that is named after it.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from relay.store import Store, StoreUnusable, Watcher
from relay.store.following import Following
from relay.store.locations import POSTGRES, SQLITE
from relay.store.replays import Replays
from relay.store.sqlite import SqliteStore

if TYPE_CHECKING:
    import asyncio


class OpenStore(Store, Protocol):
    """A store that is open, with all that an app asks of it."""

    aside: Path | None
    """Where a start that was to begin afresh has put what was there."""
    missing: str | None
    """What to say where something of a killed process is gone."""

    @property
    def replays(self) -> Replays:
        """Its replays."""

    @property
    def following(self) -> Following:
        """Its live side."""

    @property
    def task(self) -> "asyncio.Task[None]":
        """The writing task, to be watched: it ends only by `close` or by a bug."""

    def waiting(self) -> dict[str, int]:
        """How many deliveries wait, by target; also for targets that nobody delivers to now."""

    def counted(self) -> dict[str, int]:
        """How many deliveries are in each state of which a count is kept, over all targets."""

    def pending(self, target: str) -> int:
        """How many deliveries wait at a target."""

    def warning(self) -> str | None:
        """Why the promises may not be kept where it is, None where nothing speaks against it."""

    def clock(self) -> datetime:
        """The time, as all see it who work on this store."""

    def who(self) -> Mapping[str, object]:
        """Which node this is and which others there are, for people; nothing where there is one at most."""


async def open_store(url: str, watcher: Watcher, *, afresh: bool = False) -> OpenStore:
    """Open or make the store that a URL names.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/database`.
        watcher: told of commits and outages.
        afresh: set aside whatever is there and start empty; a file's alone.

    Raises:
        StoreError: it must not or cannot be used.
    """
    if not url.startswith(POSTGRES):
        return await SqliteStore.open(Path(url.removeprefix(SQLITE)).absolute(), watcher, afresh=afresh)
    if afresh:
        raise StoreUnusable("--new-store is for a SQLite file; name another database in store.url, or drop this one")
    from relay.store.postgres import PostgresStore  # noqa: PLC0415 - needs its driver, which is an extra

    return await PostgresStore.open(url, watcher)
