"""Who is told of attempts, and what.

Law: told on the event loop after the commit, each in its turn; an observer must not block.
"""

from datetime import datetime
from typing import NamedTuple, Protocol

from relay.delivery.sender import Sent
from relay.model import Claim, TargetHealth
from relay.store import Settled


class Attempted(NamedTuple):
    """One attempt as it was recorded: what the log and the counters are told."""

    claim: Claim
    sent: Sent
    began_at: datetime
    ended_at: datetime
    settled: Settled


class Observer(Protocol):
    """Who is told of attempts."""

    def attempted(self, attempt: Attempted) -> None:
        """An attempt was recorded."""

    def disabled(self, health: TargetHealth) -> None:
        """A target was disabled by what was recorded."""

    def enabled(self, health: TargetHealth) -> None:
        """A target was enabled by what was recorded."""


class Observers:
    """Several observers as one, told in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def attempted(self, attempt: Attempted) -> None:
        for observer in self._observers:
            observer.attempted(attempt)

    def disabled(self, health: TargetHealth) -> None:
        for observer in self._observers:
            observer.disabled(health)

    def enabled(self, health: TargetHealth) -> None:
        for observer in self._observers:
            observer.enabled(health)
