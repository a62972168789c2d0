"""The live stream: what is accepted, refused and attempted, as server-sent events.

Law: a stream reads the store from a position on, at its client's pace, and holds up nobody: what it has not told yet
stands in the store and not in memory. Each message carries the position of who has read it, so whoever is cut off goes
on where they were. A stream ends when its client goes, and at once when the relay stops.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from relay.admin.answers import SAFE, Problem
from relay.admin.calls import Call
from relay.admin.reading import Query
from relay.admin.views import shown_at
from relay.connections import has_left
from relay.model import DeliveryState, OutcomeKind
from relay.rules.crowding import Room
from relay.store import StoreUnavailable
from relay.store.archive import RefusedRequest
from relay.store.following import AcceptedEvent, Following, Occurrence, Position, RecordedAttempt, UnknownPosition

STREAMS = 32
BATCH = 50
"""Of each kind, what one look reads; more would hold up others on the event loop while it is told."""
PAUSE = 0.1
"""Seconds between two looks at least."""
LOOK = 1.0
"""Seconds between two looks at most; so long may it take to see that a client has gone."""
PING = 15.0
RESUME = "Last-Event-ID"
_RESET = "this position is not of this store, which was begun afresh or restored: what was missed is not told"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client wants to hear of; all that is given must hold."""

    source: str | None = None
    target: str | None = None
    failed: bool = False
    """Refused requests, and attempts that did not deliver."""

    def takes(self, what: Occurrence) -> bool:
        """Whether this is wanted. A refused request is not on its way to any target."""
        if self.source not in (None, what.source):
            return False
        match what:
            case AcceptedEvent():
                return not self.failed and self.target in (None, *what.targets)
            case RecordedAttempt():
                is_failure = what.outcome != OutcomeKind.DELIVERED
                return self.target in (None, what.target) and (is_failure or not self.failed)
            case RefusedRequest():
                return self.target is None


class StreamCalls:
    """The streams that are open."""

    def __init__(
        self, following: Following, *, is_held: Callable[[str], bool], now: Callable[[], datetime], room: Room
    ) -> None:
        """`is_held` says of a target whether what is pending there waits for it to be enabled; `room` is how
        many connections the listener may hold, of which streams take half at most: somebody must be able to ask."""
        self._following = following
        self._is_held = is_held
        self._now = now
        self._most = min(STREAMS, max(1, room.served // 2))
        self._open: dict[asyncio.Task[Any], web.BaseRequest] = {}
        self._over = asyncio.Event()

    def calls(self) -> tuple[Call, ...]:
        """The calls of this family."""
        return (Call("GET", "stream", self._stream),)

    def end(self) -> None:
        """End every stream at once, and take no new one; a client that does not read is cut off."""
        self._over.set()
        for task, request in self._open.items():
            task.cancel()
            transport = request.transport
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        query = Query(request, "source", "target", "failed", "from", "since")
        wanted = Wanted(query.text("source"), query.text("target"), query.flag("failed"))
        position = await self._begin(request, query)
        async with self._opened(request) as response:
            await _Stream(self._following, response, request, self._view).run(wanted, position)
        return response

    async def _begin(self, request: web.BaseRequest, query: Query) -> Position:
        """Where a stream begins: behind what its client has seen, else where it asks for, else now."""
        since, begin = query.moment("since", self._now()), query.text("from")
        if since is not None and begin is not None:
            raise Problem(400, "give from or since, not both")
        seen = request.headers.get(RESUME)
        if seen is None and begin == "start":
            return await self._following.first()
        name, text = ("from", begin) if seen is None else (RESUME, seen)
        if text is None:
            return await (self._following.newest() if since is None else self._following.first(since))
        position = Position.parse(text)
        if position is None:
            raise Problem(400, f"{name} must be the id of a message of this stream{' or start' if begin else ''}")
        return position

    @contextlib.asynccontextmanager
    async def _opened(self, request: web.BaseRequest) -> AsyncIterator[EventSourceResponse]:
        """A stream that is counted while it lasts, and is over when this block is left, for whatever reason."""
        if self._over.is_set():
            raise Problem(503, "the relay is stopping", retry_after=1)
        if len(self._open) >= self._most:
            raise Problem(503, f"{self._most} streams are open, and no more can be", retry_after=5)
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = request
        response = EventSourceResponse(ping_interval=PING)
        response.headers.update(SAFE)
        try:
            await response.prepare(request)
            async with response:
                yield response
        except ConnectionError:
            pass  # the client has gone
        except asyncio.CancelledError:
            if not self._over.is_set():
                raise
            task.uncancel()
        finally:
            del self._open[task]

    def _view(self, what: Occurrence, position: Position) -> dict[str, Any]:
        match what:
            case AcceptedEvent():
                told = _accepted(what)
            case RefusedRequest():
                told = _refused(what)
            case RecordedAttempt():
                told = _attempted(what, is_held=self._is_held(what.target))
        return {**told, "position": str(position)}


class _Stream:
    """One stream: it looks, tells, and waits for more."""

    def __init__(
        self,
        following: Following,
        response: EventSourceResponse,
        request: web.BaseRequest,
        view: Callable[[Occurrence, Position], dict[str, Any]],
    ) -> None:
        self._following = following
        self._response = response
        self._request = request
        self._view = view

    async def run(self, wanted: Wanted, position: Position) -> None:
        """Tell what is wanted from a position on until the client goes."""
        await self._arrived(position)
        while not has_left(self._request):
            mark = self._following.mark()
            try:
                batch = await self._following.after(position, limit=BATCH)
            except UnknownPosition:
                position = await self._reset()
                continue
            except StoreUnavailable:
                await self._response.write(b": the store cannot be read now\r\n\r\n")
                await asyncio.sleep(LOOK)
                continue
            told = position
            for happened in batch.happened:
                if wanted.takes(happened.what):
                    told = happened.position
                    await self._tell(self._view(happened.what, told))
            if told != batch.position:
                await self._arrived(batch.position)
            position = batch.position
            if batch.is_last:
                await asyncio.sleep(PAUSE)
                await self._following.changed(mark, within=LOOK)

    async def _tell(self, told: dict[str, Any]) -> None:
        await self._response.send(json.dumps(told), id=told["position"], event=told["kind"])

    async def _arrived(self, position: Position) -> None:
        """Tell where to go on, without a message: what is not wanted is not looked through again."""
        await self._response.write(f"id: {position}\r\n\r\n".encode())

    async def _reset(self) -> Position:
        """Begin anew, and say so: there is no way to know what the client has missed."""
        position = await self._following.newest()
        await self._tell({"kind": "reset", "reason": _RESET, "position": str(position)})
        return position


def _accepted(event: AcceptedEvent) -> dict[str, Any]:
    return {
        "kind": "accepted",
        "at": shown_at(event.at),
        "event_id": event.id,
        "source": event.source,
        "type": event.type,
        "targets": list(event.targets),
        "size": event.size,
    }


def _refused(refusal: RefusedRequest) -> dict[str, Any]:
    return {
        "kind": "refused",
        "at": shown_at(refusal.received_at),
        "source": refusal.source,
        "remote": refusal.remote,
        "status": refusal.status,
        "reason": refusal.reason,
        "detail": refusal.detail,
    }


def _attempted(attempt: RecordedAttempt, *, is_held: bool) -> dict[str, Any]:
    is_pending = attempt.state is DeliveryState.PENDING
    state = "held" if is_pending and is_held else attempt.state and attempt.state.value
    return {
        "kind": "attempted",
        "at": shown_at(attempt.at),
        "event_id": attempt.event_id,
        "source": attempt.source,
        "type": attempt.type,
        "target": attempt.target,
        "attempt": attempt.number,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "duration_ms": attempt.duration_ms,
        "reason": attempt.reason,
        "state": state,
        "next_attempt_at": shown_at(attempt.due_at) if state == "pending" else None,
    }
