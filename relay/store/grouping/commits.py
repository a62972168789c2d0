"""Who waits for the next commit is woken by it."""

import asyncio

from relay.store import Watcher


class Commits:
    """Counts commits on their way to the store's watcher, and wakes who waits for the next."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._next: asyncio.Event | None = None
        self.number = 0

    def committed(self, seconds: float) -> None:
        """See `Watcher.committed`."""
        self.number += 1
        if self._next is not None:
            self._next.set()
            self._next = None
        self._watcher.committed(seconds)

    def unavailable(self, reason: str) -> None:
        """See `Watcher.unavailable`."""
        self._watcher.unavailable(reason)

    def recovered(self, seconds: float) -> None:
        """See `Watcher.recovered`."""
        self._watcher.recovered(seconds)

    async def next(self) -> None:
        """Wait for the next commit."""
        if self._next is None:
            self._next = asyncio.Event()
        await self._next.wait()
