"""The call that tells how the relay stands."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from relay.admin.answers import shown
from relay.admin.calls import Call
from relay.admin.reading import Query


def status_calls(status: Callable[[], Awaitable[dict[str, Any]]]) -> tuple[Call, ...]:
    """The calls of this family; `status` is asked each time."""

    async def answer(request: web.BaseRequest) -> web.Response:
        Query(request)
        return shown(await status())

    return (Call("GET", "status", answer),)
