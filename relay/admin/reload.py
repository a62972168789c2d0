"""The call that has the config read again."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from relay.admin.answers import json_body, shown
from relay.admin.calls import Call


def reload_calls(reload: Callable[[], Awaitable[dict[str, object]]]) -> tuple[Call, ...]:
    """The calls of this family; `reload` takes up the config anew and returns what has changed, or raises `Problem`."""

    async def answer(request: web.BaseRequest) -> web.Response:
        await json_body(request)
        return shown({"reloaded": True} | await reload())

    return (Call("POST", "reload", answer),)
