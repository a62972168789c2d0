"""An event loop whose clock jumps to the next timer, and a far target that answers by script on it.

Law: nothing of ours is patched and nothing sleeps. Days of retries pass in seconds, but while a thread of ours works
the loop really waits for it, so that a transaction takes no virtual time.
"""

import asyncio
import contextlib
import functools
import selectors
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from relay.delivery.sender import ComeTo, Sent
from relay.model import Claim, Event, Outcome, OutcomeKind, Target, Turn
from relay.rules.answers import meaning, parse_retry_after

EPOCH = datetime(2031, 1, 1, tzinfo=UTC)
"""What the wall clock says when a loop begins."""
PATIENCE_S = 20.0
"""How long a thread may really work before the loop gives up on it."""

P = ParamSpec("P")
T = TypeVar("T")


class Stuck(RuntimeError):
    """Nothing is scheduled and nothing works: the loop would wait for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing but a working thread; every other wait is skipped by moving the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.busy: list[Callable[[], bool]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or any(works() for works in self.busy):
            ready = super().select(PATIENCE_S)
            if not ready:
                raise Stuck("nothing is scheduled, or a thread does not come back")
            return ready
        self.clock += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop on virtual time. `now` is the wall clock that goes with it."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._set_by = timedelta(0)
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop began."""
        return self._jumping.clock

    def now(self) -> datetime:
        """The virtual wall clock."""
        return EPOCH + self._set_by + timedelta(seconds=self._jumping.clock)

    def set_clock(self, by: timedelta) -> None:
        """Set the wall clock, as a person or a time service does; no timer of the loop goes by it."""
        self._set_by += by

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which the loop does nothing, as while its process is stopped."""
        self._jumping.clock += seconds

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads however long it really takes: a span of virtual time would be over at once."""
        await super().shutdown_default_executor()

    def waits_for(self, works: Callable[[], bool]) -> Callable[[], None]:
        """Really wait while a predicate holds; returns what takes it off again."""
        self._jumping.busy.append(works)
        return lambda: self._jumping.busy.remove(works)

    @contextlib.contextmanager
    def really(self) -> Iterator[None]:
        """Time stands still inside, for a call that a thread of its own carries out."""
        forget = self.waits_for(lambda: True)
        try:
            yield
        finally:
            forget()


def virtual_loop() -> VirtualTimeLoop:
    """The running loop, which must be a virtual one."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a scripted target does with one request: a status, or None for no answer at all, after `takes` seconds.

    `short` stands for a shortage of our own: nothing was sent.
    """

    status: int | None = 200
    takes: float = 0.02
    retry_after: str | None = None
    short: bool = False


DOWN = Reply(None, takes=0.001)
"""Nobody listens."""
HANGS = Reply(None, takes=15.0)
"""No answer until the timeout."""

Script = Callable[[Event, int, datetime], Reply]
"""What happens to an event's n-th attempt that begins at a time."""


@dataclass(slots=True)
class Request:
    """One request as the far side saw it; `ended_at` stays None where it was cut off."""

    event: str
    target: str
    attempt: int
    step: int
    turn: Turn
    lease_until: datetime
    at: datetime
    ended_at: datetime | None = None
    kind: OutcomeKind | None = None


class UnderWay:
    """A request that was sent, until it ends."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    def cancel(self) -> None:
        """End it, once."""
        end, self._end = self._end, None
        if end is not None:
            end()


class ScriptedTarget:
    """The outermost edge for one target: implements `SendsOne` by script, in virtual time."""

    def __init__(
        self,
        target: Target,
        script: Script,
        *,
        begun: Callable[[Request, int], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`begun` is told of each request and of how many others are under way, and says whether it gets anywhere."""
        self._target = target
        self._script = script
        self._begun = begun
        self._now = now
        self._open = 0
        self._kept = 0
        self.closed = False

    async def send(self, claim: Claim, body: bytes, data: Any = None) -> Sent:
        """Make one request for a claim, as the script has it."""
        came: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        under_way = self._ask(claim, came.set_result)
        try:
            return await came
        finally:
            under_way.cancel()

    def begin(self, claim: Claim, body: bytes, come_to: ComeTo) -> "UnderWay | None":
        """The same without a task, where a connection is left of a request that was answered."""
        return self._ask(claim, come_to) if self._kept else None

    def _ask(self, claim: Claim, come_to: Callable[[Sent], None]) -> "UnderWay":
        request = Request(
            claim.event.id, claim.target, claim.attempt, claim.step, claim.turn, claim.lease_until, self._now()
        )
        if not self._begun(request, self._open):
            return UnderWay(lambda: None)
        self._kept -= self._kept > 0
        reply = self._script(claim.event, claim.attempt, request.at)

        def answer() -> None:
            under_way.cancel()
            self._kept += reply.status is not None
            outcome = self._outcome(reply)
            request.ended_at, request.kind = self._now(), outcome.kind
            come_to(Sent(outcome))

        def end() -> None:
            timer.cancel()
            self._open -= 1

        self._open += 1
        timer = asyncio.get_running_loop().call_later(reply.takes, answer)
        under_way = UnderWay(end)
        return under_way

    def _outcome(self, reply: Reply) -> Outcome:
        if reply.short:
            return Outcome(OutcomeKind.INTERRUPTED, reason="short of resources: Too many open files")
        if reply.status is None:
            return Outcome(OutcomeKind.UNREACHABLE, reason="connect: Connection refused")
        asked = parse_retry_after(reply.retry_after, self._now())
        kind = meaning(reply.status, self._target, retry_after=asked)
        return Outcome(kind, reply.status, f"status {reply.status}", asked)

    async def close(self) -> None:
        """There is nothing to let go of."""
        self.closed = True


def virtually(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a coroutine a test that runs on virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtually(test(*args, **kwargs))

    return run
