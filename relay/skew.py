"""Says when a source's requests fail for their time alone: then a clock is wrong, and all it sends is turned away.

Law: told once, at error level, for the refusals themselves look like those of replayed requests.
"""

import time
from collections.abc import Callable

import structlog

from relay.model import VerifiedRequest
from relay.rules.skew import Window, noted
from relay.rules.verification import Refusal

ADVICE = "see whether the clock of this machine is right (timedatectl); if it is, tell the sender that its own is not"

log = structlog.get_logger()


class ClockWatch:
    """What the requests of one source say of its clock and of ours."""

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._window = Window()

    def judged(self, found: VerifiedRequest | Refusal) -> None:
        """A request was judged."""
        skew = found.skew_s if isinstance(found, Refusal) else None
        if isinstance(found, Refusal) and skew is None:
            return
        self._window, median = noted(self._window, skew, self._clock())
        if median is not None:
            log.error(
                "clock.suspect",
                source=self._source,
                skew_s=median,
                reason=f"nearly all its requests fail for their time alone: its clock is {abs(median)} s "
                f"{'ahead of' if median > 0 else 'behind'} ours",
                advice=ADVICE,
            )
