"""The deadlines of one target's requests, with one timer for all of them.

Law: as `asyncio.timeout`, whose own timer for each request costs about as much as its headers. The requests of a
target have all the same span, so the oldest is always the first to be overdue.
"""

import asyncio
from types import TracebackType
from typing import Self


class Deadlines:
    """Makes deadlines of one span, in seconds. Build inside a running loop, `close` when done."""

    def __init__(self, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.seconds = seconds
        self.under_way: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> "Deadline":
        """A deadline that starts now; its `with` block raises TimeoutError when it is overdue."""
        deadline = Deadline(self)
        self.under_way[deadline] = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline.at, self._look)
        return deadline

    def _look(self) -> None:
        """End what is overdue, and come back for the next."""
        now = self.loop.time()
        overdue: list[Deadline] = []
        self._timer = None
        for deadline in self.under_way:
            if deadline.at > now:
                self._timer = self.loop.call_at(deadline.at, self._look)
                break
            overdue.append(deadline)
        for deadline in overdue:
            del self.under_way[deadline]
            deadline.end()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


class Deadline:
    """One deadline of the task that made it."""

    __slots__ = ("_all", "_cancelling", "_is_overdue", "_task", "at")

    def __init__(self, all_: Deadlines) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.at = all_.loop.time() + all_.seconds
        self._all = all_
        self._task = task
        self._cancelling = task.cancelling()
        self._is_overdue = False

    def end(self) -> None:
        """Cancel what the task waits for."""
        self._is_overdue = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._all.under_way.pop(self, None)
        if self._is_overdue and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
