"""The calls of the admin API by method and path; each family of them is a module beside this one.

Law: a path is matched part by part, never decoded: what a part holds is compared with names and ids, and used for
nothing else.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

from relay.admin.answers import Problem

API = "api/v1"
Handler = Callable[..., Awaitable[web.StreamResponse]]
"""Answers a request; the parts of the path that are in braces are further arguments, in order."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: `Call("POST", "targets/{name}/enable", handler)`; the path is below `/api/v1` unless it begins with
    a slash."""

    method: str
    path: str
    handler: Handler


class Calls:
    """All calls, found by method and path."""

    def __init__(self, calls: Iterable[Call]) -> None:
        calls = tuple(calls)
        self.names = frozenset((call.method, _whole(call.path)) for call in calls)
        """Method and path of each, the path as it is written for people."""
        self._by_path: dict[tuple[str, ...], dict[str, Handler]] = {}
        for call in calls:
            parts = tuple("" if part.startswith("{") else part for part in _whole(call.path)[1:].split("/"))
            self._by_path.setdefault(parts, {})[call.method] = call.handler

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have the call answered.

        Raises:
            Problem: there is no such call, or not with this method.
        """
        parts = request.rel_url.raw_path.strip("/").split("/")
        for pattern, methods in self._by_path.items():
            if len(pattern) != len(parts) or not all(
                want in ("", part) for want, part in zip(pattern, parts, strict=True)
            ):
                continue
            handler = methods.get(request.method)
            if handler is None:
                raise Problem(405, f"use {' or '.join(sorted(methods))}", allow=", ".join(sorted(methods)))
            return await handler(request, *(part for want, part in zip(pattern, parts, strict=True) if not want))
        raise Problem(404, "no such call")


def _whole(path: str) -> str:
    return path if path.startswith("/") else f"/{API}/{path}"
