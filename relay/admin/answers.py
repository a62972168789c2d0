"""What the admin API answers, and how it reads what it was sent.

Law: every answer is JSON of ours that no browser keeps or sniffs; every refusal is an `application/problem+json`
(RFC 9457) that says what to do and repeats no input but the names of what was wrong.
"""

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.client_exceptions import ClientError

from relay.connections import is_plainly_framed
from relay.listener import SERVER, invite_body

JSON_LIMIT = 64 * 1024
BODY_TIMEOUT = 10.0
"""Seconds for the body of a call."""

SAFE = {
    "Server": SERVER,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every answer: no browser keeps, sniffs, frames or runs any of it, whatever an event holds."""


class Problem(Exception):
    """A call that is refused, as RFC 9457 words it."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        allow: str | None = None,
        retry_after: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`allow` are the methods that a 405 names, `extra` further members of the problem."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.allow = allow
        self.retry_after = retry_after
        self.extra = extra or {}

    def answer(self) -> web.Response:
        """The refusal as it is sent."""
        title = HTTPStatus(self.status).phrase
        shown = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.extra}
        headers = dict(SAFE)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = json.dumps(shown).encode()
        return web.Response(status=self.status, body=body, headers=headers, content_type="application/problem+json")


def shown(value: object, *, status: int = 200) -> web.Response:
    """An answer."""
    return web.Response(status=status, body=json.dumps(value).encode(), headers=SAFE, content_type="application/json")


async def json_body(request: web.BaseRequest, *known: str) -> dict[str, Any]:
    """The JSON object of a call, with no keys but the known ones; nothing at all is an empty one.

    Raises:
        Problem: it is none, too large, too slow, or has another key.
    """
    if not request.body_exists:
        return {}
    # aiohttp's own reading of this header is the standard library's for mail, which recurses as deep as it is told to
    declared = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if declared != "application/json":
        raise Problem(415, "send application/json")
    if not is_plainly_framed(request):
        raise Problem(400, "send no transfer coding but chunked")
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            raw = await _raw_body(request)
    except TimeoutError:
        raise Problem(408, "the body came too slowly") from None
    except (web.RequestPayloadError, ClientError, OSError):
        raise Problem(400, "the body is broken") from None
    try:
        found = json.loads(raw or b"{}")
        json.dumps(found, ensure_ascii=False).encode()  # as deep as it was read, and nothing but text
    except UnicodeEncodeError:  # JSON allows half a surrogate pair
        raise Problem(422, "the body holds an escape that is half a character") from None
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Problem(422, "the body must be a JSON object")
    if set(found) - set(known):
        raise Problem(422, f"unknown key; known: {', '.join(known) or 'none'}")
    return found


async def _raw_body(request: web.BaseRequest) -> bytes:
    if not await invite_body(request):
        raise Problem(417, "expect nothing but 100-continue")
    raw = bytearray()
    while part := await request.content.readany():
        raw += part
        if len(raw) > JSON_LIMIT:
            raise Problem(413, f"send at most {JSON_LIMIT} bytes")
    return bytes(raw)
