"""What this process knows of a store's files, and what it leaves noted for the next one.

Law: a note that something stands in the log alone is there before anything is tried that could lose it, and is gone
before anybody relies on the log that took its place.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from relay.store.sqlite.file import Guard
from relay.store.sqlite.presence import Presence


class Custody:
    """The files of one opened store."""

    def __init__(self, path: Path, guard: Guard, presence: Presence) -> None:
        self._path = path
        self._guard = guard
        self.presence = presence

    def look(self) -> None:
        """Note what must not be missing, whatever comes of this, and see that the files may be opened anew.

        Raises:
            StoreUnusable: they are not what they were.
            OSError: it cannot be seen or noted.
        """
        mark = self.presence.mark() if self.presence.needs_log else None
        self._guard.remember(self._path, needs_log=mark is not None, mark=mark)
        self.presence.judge()
        self._guard.check(self._path)

    def found_again(self) -> None:
        """Know the files that were opened anew.

        Raises:
            OSError: it cannot be noted; nothing may be promised yet.
        """
        self.presence.pin()
        self._guard.remember(self._path, needs_log=True)

    def closing(self, *, is_out: bool) -> AbstractContextManager[None]:
        """In it the last connection is closed; where the store is out, what the log holds stays there."""
        return self._guard.leaving_log() if is_out else nullcontext()

    def leave(self, *, is_out: bool) -> None:
        """Note how the files are left; where the store is out, also what its log must be.

        Raises:
            OSError: it cannot be noted.
        """
        if is_out:
            self._guard.remember(self._path, needs_log=self.presence.needs_log, mark=self.presence.mark())
        else:
            self._guard.remember(self._path, needs_log=None)
