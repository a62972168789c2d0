"""What the writer tells the store's watcher.

Law: each outage and its end is told once, and a watcher that fails neither stops the writing nor goes unnoticed.
"""

import contextlib
from datetime import UTC, datetime

from relay.store import Condition, Watcher


class Teller:
    """Tells one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._told: Condition | None = None
        self._is_watched = True

    @property
    def tells_of_outage(self) -> bool:
        """Whether an outage was told whose end was not."""
        return self._told is not None

    def condition(self, condition: Condition) -> None:
        """Tell what has changed, once each way."""
        told = self._told
        if condition.writable == (told is None):
            return
        self._told = None if condition.writable else condition
        with contextlib.suppress(Exception):
            if told is None:
                self._watcher.unavailable(condition.reason)
            else:
                self._watcher.recovered((datetime.now(UTC) - (told.since or datetime.now(UTC))).total_seconds())

    def committed(self, seconds: float) -> None:
        """Tell of a commit; that the watcher failed is told once, and is over at once: the commit stands."""
        try:
            self._watcher.committed(seconds)
            self._is_watched = True
        except Exception as error:  # noqa: BLE001 - a bug of who watches is no reason to lose what was handed in
            if self._is_watched and self._told is None:
                self._is_watched = False
                self.bug(f"the watcher of commits failed: {type(error).__name__}: {error}")

    def bug(self, reason: str) -> None:
        """Tell of what is over at once."""
        with contextlib.suppress(Exception):
            self._watcher.unavailable(reason)
            self._watcher.recovered(0.0)
