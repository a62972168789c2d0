"""The calls about what is kept: pruned by hand, one event erased, all of it copied.

Law: what deletes says how much; what copies gives the whole length before the first byte, so that a copy that was cut
short is never taken for a whole one.
"""

from typing import Protocol

import structlog
from aiohttp import web

from relay.admin.answers import SAFE, Problem, json_body, shown
from relay.admin.calls import Call
from relay.admin.reading import Query
from relay.store import (
    COPY_TYPE,
    CopyUnderWay,
    NoCopies,
    NoRoomForCopy,
    Outlived,
    Store,
    StoreUnavailable,
    StoreUnusable,
)

LONGEST_ID = 128

log = structlog.get_logger()


class Keeper(Protocol):
    """Who deletes."""

    async def prune(self) -> int:
        """Delete all that is over now; return how many events went."""

    async def outlived(self) -> Outlived:
        """How many that would be."""

    async def erase(self, event_id: str) -> int | None:
        """Delete one event; return how many deliveries went with it, None where there is no such event."""


class KeepingCalls:
    """How what is kept is deleted and copied."""

    def __init__(self, keeper: Keeper, store: Store) -> None:
        self._keeper = keeper
        self._store = store

    def calls(self) -> tuple[Call, ...]:
        """The calls of this family."""
        return (
            Call("POST", "prune", self._prune),
            Call("DELETE", "events/{id}", self._delete),
            Call("GET", "backup", self._backup),
        )

    async def _prune(self, request: web.BaseRequest) -> web.Response:
        asked = await json_body(request, "dry_run", "event")
        is_dry = asked.get("dry_run", False)
        if not isinstance(is_dry, bool):
            raise Problem(422, "dry_run must be true or false")
        if "event" in asked:
            return await self._prune_event(asked["event"], is_dry=is_dry)
        if is_dry:
            found = await self._keeper.outlived()
            return shown({"pruned": found.events, "dry_run": True, "more": not found.is_whole})
        return shown({"pruned": await self._keeper.prune(), "dry_run": False})

    async def _prune_event(self, event_id: object, *, is_dry: bool) -> web.Response:
        if not isinstance(event_id, str) or not 1 <= len(event_id) <= LONGEST_ID:
            raise Problem(422, f"event must be an event's id, a string of at most {LONGEST_ID} characters")
        if not is_dry:
            return shown({"pruned": 1, "dry_run": False, "deliveries": await self._erased(event_id)})
        record = await self._store.archive.event(event_id)
        if record is None:
            raise _no_such_event()
        return shown({"pruned": 1, "dry_run": True, "deliveries": len(record.event.deliveries)})

    async def _delete(self, request: web.BaseRequest, event_id: str) -> web.Response:
        Query(request)
        await json_body(request)
        return shown({"erased": 1, "deliveries": await self._erased(event_id)})

    async def _erased(self, event_id: str) -> int:
        deliveries = await self._keeper.erase(event_id)
        if deliveries is None:
            raise _no_such_event()
        return deliveries

    async def _backup(self, request: web.BaseRequest) -> web.StreamResponse:
        Query(request)
        try:
            async with self._store.copy() as copy:
                headers = SAFE | {"Content-Type": COPY_TYPE, "Content-Disposition": 'attachment; filename="relay.db"'}
                answer = web.StreamResponse(headers=headers)
                answer.content_length = copy.size
                await answer.prepare(request)
                try:
                    async for part in copy.parts():
                        await answer.write(part)
                except StoreUnavailable as error:  # it is too late for another answer: cut short, it is no copy
                    log.error("http.error", message="a backup was cut short", error=str(error))
                    raise ConnectionResetError from None
                await answer.write_eof()
                return answer
        except NoCopies as error:
            raise Problem(501, str(error)) from None
        except CopyUnderWay as error:
            raise Problem(409, str(error)) from None
        except NoRoomForCopy as error:
            raise Problem(507, str(error)) from None
        except StoreUnusable as error:
            raise Problem(500, str(error)) from None


def _no_such_event() -> Problem:
    return Problem(404, "no such event")
