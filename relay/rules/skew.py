"""When the failures of one source look like a wrong clock, here or there, rather than like replays.

Law: pure. Only requests whose signature is right count: the others say nothing of clocks, and anybody can send them.
"""

from dataclasses import dataclass, replace

SPAN_S = 60.0
LEAST = 3
"""Some senders give up after so many refusals, so that no more may ever come."""
SHARE = 0.9
SAMPLES = 99


@dataclass(frozen=True, slots=True)
class Window:
    """What came of one source within a minute, and whether its clock was told of."""

    began: float = float("-inf")
    """In seconds of any clock that is never set."""
    timely: int = 0
    untimely: int = 0
    skews: tuple[int, ...] = ()
    """Of the last that were untimely: how many seconds their clock was ahead of ours."""
    told: bool = False

    @property
    def is_suspect(self) -> bool:
        """Whether nearly all failed for their time alone."""
        return self.untimely >= LEAST and self.untimely > SHARE * (self.untimely + self.timely)


def noted(window: Window, skew: int | None, at: float) -> tuple[Window, int | None]:
    """One more request whose signature is right, with its skew where that is too large: the window with it, and the
    median skew where it is to be told now. That happens once; a minute that is well ends it."""
    if at - window.began >= SPAN_S:
        window = Window(at, told=window.told and (window.is_suspect or not window.timely))
    if skew is None:
        return replace(window, timely=window.timely + 1), None
    skews = (*window.skews, skew)[-SAMPLES:]
    window = replace(window, untimely=window.untimely + 1, skews=skews)
    if window.told or not window.is_suspect:
        return window, None
    return replace(window, told=True), sorted(skews)[len(skews) // 2]
