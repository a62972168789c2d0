"""One request over a kept connection that is under way without a task: most attempts are no more than that.

Law: a task costs as much as the request. So none waits as long as there is nothing to be done but to wait; whatever is
unusual about the answer goes on in a task.
"""

from collections.abc import Callable

from relay.delivery.deadlines import Deadlines
from relay.delivery.plain import Whole
from relay.delivery.pool import Line


class Posting:
    """A request that was sent; it is begun by being made."""

    __slots__ = ("_tell", "deadline", "line")

    def __init__(
        self, line: Line, request: bytes, deadlines: Deadlines, tell: "Callable[[Posting, Whole | None], None]"
    ) -> None:
        """`tell` is called once, unless the posting is cancelled before: with the answer where it is one of the
        plainest; with None where it is not, where the connection is lost, and where the posting is overdue, so that its
        deadline raises as soon as it is entered."""
        self.line = line
        self.deadline = deadlines.begin(self._end)
        self._tell = tell
        line.handler.send(request, self._heard)

    def cancel(self) -> None:
        """Give it up, with its connection, and tell nobody."""
        self.deadline.met()
        self.line.handler.forget()
        self.line.close()

    def _heard(self, whole: Whole | None) -> None:
        self.deadline.overdue = self.line.close  # whoever goes on is told when he enters it
        self._tell(self, whole)

    def _end(self) -> None:
        self.cancel()
        self._tell(self, None)
