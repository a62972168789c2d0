"""Keeps the requests that were turned away, for who asks "why 401?".

Law: a refusal costs a stranger's request no write to the disk: what is refused is gathered here, bounded, and stored
now and then in one transaction. What is kept holds no body, and of the headers only values that cannot be a secret.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from relay.store import StoreUnavailable
from relay.store.archive import RefusedRequest

KEPT = frozenset({401, 403, 408, 413})
"""The answers whose requests are kept; what was no webhook, or our own fault, is told by the log and counted."""
GATHERED = 1000
"""Refusals that may wait to be stored; the oldest are forgotten first, as in the store."""
FLUSH_EVERY = 1.0
"""Seconds."""

Keep = Callable[..., Awaitable[None]]


class Refusals:
    """What was refused since the last time it was stored."""

    def __init__(self, keep: Keep, *, now: Callable[[], datetime], wake: Callable[[], None] = lambda: None) -> None:
        """`keep` is `Archive.keep_refusals`; `wake` is told when something was stored."""
        self._keep = keep
        self._now = now
        self._wake = wake
        self._gathered: deque[RefusedRequest] = deque(maxlen=GATHERED)
        self._counts: Counter[str] = Counter()
        self._flushing = asyncio.Lock()

    def refused(self, source: str, status: int, request: Callable[[], RefusedRequest]) -> None:
        """Count a refusal of a source; `request` is asked for what is kept of it, where it is to be kept."""
        self._counts[source] += 1
        if status in KEPT:
            self._gathered.append(request())

    async def flush(self) -> None:
        """Store what was gathered; during an outage it waits here, as much as there is room for."""
        async with self._flushing:
            if not self._counts:
                return
            gathered, counts = list(self._gathered), self._counts
            self._gathered.clear()
            self._counts = Counter()
            try:
                await self._keep(gathered, counts=counts, at=self._now())
            except StoreUnavailable:
                self._put_back(gathered, counts)
            else:
                self._wake()

    def _put_back(self, gathered: Sequence[RefusedRequest], counts: Mapping[str, int]) -> None:
        self._gathered.extendleft(list(reversed(gathered))[: GATHERED - len(self._gathered)])
        self._counts.update(counts)

    async def run(self) -> None:
        """Store now and then what was refused, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            with suppress(StoreUnavailable):
                await self.flush()
