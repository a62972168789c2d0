"""The deadlines of one target's requests, with one timer for all of them.

Law: as `asyncio.timeout`, whose own timer for each request costs about as much as its headers. The requests of a
target have all the same span, so the oldest is always the first to be overdue. Time in which the whole process stood
still does not count: what came meanwhile has not been read yet, and a target must not be judged by our own pause.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

LOOK_EVERY_S = 1.0
STANDSTILL_S = 1.0
"""A look that comes later than this was held up: the process was stopped, suspended, or starved of the processor."""
MOMENT_S = 0.1
"""What is left to each after a standstill at least, so that what has come meanwhile is read first."""


class Deadlines:
    """Makes deadlines of one span, in seconds. Build inside a running loop, `close` when done."""

    def __init__(self, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.seconds = seconds
        self.under_way: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self.stood_still_at = float("-inf")
        """When a standstill ended last."""

    def begin(self, overdue: Callable[[], None] | None = None) -> "Deadline":
        """A deadline that starts now. Its `with` block raises TimeoutError in its task when it is overdue.

        Args:
            overdue: called when it is, as long as no task has entered the block; without it, enter at once.
        """
        deadline = Deadline(self, overdue)
        self.under_way[deadline] = None
        if self._timer is None:
            self._look_again(deadline.at)
        return deadline

    def _look_again(self, at: float) -> None:
        """Come back then, or soon, to see that the process goes on."""
        self._look_at = min(at, self.loop.time() + LOOK_EVERY_S)
        self._timer = self.loop.call_at(self._look_at, self._look)

    def _look(self) -> None:
        """End what is overdue, and come back for the next."""
        now = self.loop.time()
        late = now - self._look_at
        if late > STANDSTILL_S:
            self.stood_still_at = now
            for deadline in self.under_way:
                deadline.at += late + MOMENT_S
        overdue: list[Deadline] = []
        self._timer = None
        for deadline in self.under_way:
            if deadline.at > now:
                self._look_again(deadline.at)
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
    """One deadline: of the task that is in its `with` block, or else of whoever is called when it is overdue."""

    __slots__ = ("_all", "_began", "_cancelling", "_is_overdue", "_task", "at", "overdue")

    def __init__(self, all_: Deadlines, overdue: Callable[[], None] | None) -> None:
        self._began = all_.loop.time()
        self.at = self._began + all_.seconds
        self._all = all_
        self.overdue = overdue
        """Called when it is, as long as no task has entered its block; a task that enters later is told as well."""
        self._task: asyncio.Task[Any] | None = None
        self._is_overdue = False

    @property
    def saw_standstill(self) -> bool:
        """Whether the process stood still since it was made."""
        return self._all.stood_still_at > self._began

    def end(self) -> None:
        """Cancel what the task waits for, or call whoever is to be called."""
        self._is_overdue = True
        if self._task is not None:
            self._task.cancel()
        elif self.overdue is not None:
            self.overdue()

    def met(self) -> None:
        """What it was for is over."""
        self._all.under_way.pop(self, None)
        self.overdue = None  # whoever is called by it holds it

    def __enter__(self) -> Self:
        if self._is_overdue:
            raise TimeoutError
        self._task = asyncio.current_task(self._all.loop)
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.met()
        assert self._task is not None
        if self._is_overdue and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
