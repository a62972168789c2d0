"""Looks at the files of the config, and has it reloaded when their content is another.

Law: the content counts, through links, renames and swapped mounts. A content is taken up when two looks on end find it,
so that a file that is just being written, or is missing for a moment, is left alone. One that was refused is not tried
again before it changes.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from relay.config import Fingerprint, fingerprint_of
from relay.reloading import Reloading, ReloadRefused, aside
from relay.store import StoreUnavailable

EVERY = timedelta(seconds=2)


class Watch:
    """Watches what one relay's config was read from."""

    def __init__(self, reloading: Reloading, *, is_ready: Callable[[], bool]) -> None:
        """`is_ready` says whether a reload could succeed at all; until then nothing is tried, and nothing forgotten."""
        self._reloading = reloading
        self._is_ready = is_ready
        self._before: dict[Path, Fingerprint | None] = {}
        self._tried: dict[Path, Fingerprint | None] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(EVERY.total_seconds())
            if self._is_ready():
                await self.look()

    async def look(self) -> None:
        """Look once."""
        files = tuple(self._reloading.seen)
        found = await aside(lambda: {file: fingerprint_of(file) for file in files})
        is_settled, self._before = found == self._before, found
        if not is_settled or found in (self._reloading.seen, self._tried):
            return
        self._tried = found
        try:
            await self._reloading.reload()
        except ReloadRefused as refused:  # told already
            if not refused.problems and refused.__cause__ is None:
                self._tried = {}  # neither the content's fault nor a bug of ours: it may do the next time
        except StoreUnavailable:
            self._tried = {}  # nothing is wrong with the content
