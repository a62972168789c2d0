"""Shows and steers: health, metrics and the targets, on a listener that is never the public one.

Law: every call but the two health checks needs the token, where one is set; without one only this machine can be
bound, and a page in a browser cannot use it. Errors are `application/problem+json` and hold no input.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.client_exceptions import ClientError

from relay.admin.views import target_view
from relay.delivery.dispatcher import Dispatcher, UnknownTarget
from relay.listener import SERVER, invite_body
from relay.model import Secret, TargetHealth, TargetState
from relay.store import Backlog, Store, StoreUnavailable

JSON_LIMIT = 64 * 1024
BODY_TIMEOUT = 10.0
"""Seconds for the body of a call."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

log = structlog.get_logger()


class Problem(Exception):
    """A call that is refused, as RFC 9457 words it."""

    def __init__(self, status: int, detail: str, *, allow: str | None = None) -> None:
        """`allow` are the methods that a 405 names."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.allow = allow


class Admin:
    """The admin listener's handler."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        store: Store,
        *,
        token: Secret | None,
        hosts: frozenset[str],
        unready: Callable[[], list[str]],
        render_metrics: Callable[[Iterable[Backlog]], bytes],
        waiting: Callable[[], Iterable[str]],
        now: Callable[[], datetime],
    ) -> None:
        """`hosts` are the names under which a listener without a token may be called."""
        self._dispatcher = dispatcher
        self._store = store
        self._token = token
        self._hosts = hosts | LOOPBACK_NAMES
        self._unready = unready
        self._render_metrics = render_metrics
        self._waiting = waiting
        self._now = now
        self._denied_at = float("-inf")
        self._denied = 0
        self._open: dict[str, Callable[[], web.Response]] = {"/healthz": self._healthz, "/readyz": self._readyz}
        self._calls: dict[tuple[str, ...], dict[str, Callable[[web.BaseRequest], Awaitable[web.Response]]]] = {
            ("metrics",): {"GET": self._metrics},
            ("api", "v1", "targets"): {"GET": self._targets},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one call."""
        try:
            return await self._answer(request)
        except Problem as problem:
            answer = _problem(problem.status, problem.detail, allow=problem.allow)
            if not request.content.is_eof():
                answer.force_close()
            return answer
        except UnknownTarget:
            return _problem(404, f"unknown target; known: {', '.join(sorted(self._dispatcher.targets)) or 'none'}")
        except StoreUnavailable as error:
            return _problem(503, f"the store cannot take it now: {error}", retry_after=2)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.version not in (HttpVersion10, HttpVersion11):
            raise Problem(505, "speak HTTP/1.1")
        path = request.rel_url.raw_path
        if path in self._open:
            _allow(request, ("GET", "HEAD"))
            return self._open[path]()
        self._admit(request)
        parts = tuple(path.strip("/").split("/"))
        if parts[:3] == ("api", "v1", "targets") and len(parts) == 5:
            _allow(request, ("POST",))
            return await self._steer(parts[3], parts[4], request)
        calls = self._calls.get(parts)
        if calls is None:
            raise Problem(404, "no such call")
        _allow(request, tuple(calls))
        return await calls[request.method](request)

    def _admit(self, request: web.BaseRequest) -> None:
        """Let through who has the token; without one, only what no foreign page can send."""
        origin = request.headers.get("Origin")
        host = request.headers.get("Host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise Problem(403, "calls from another origin are refused")
        if self._token is None:
            if host.rsplit(":", 1)[0].lower() not in self._hosts and host.lower() not in self._hosts:
                raise Problem(421, "this host name is not served here")
            return
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            sent.strip().encode("utf-8", "surrogateescape"), self._token.value
        ):
            self._tell_denied(request)
            raise Problem(401, "send the admin token as Authorization: Bearer TOKEN")

    def _tell_denied(self, request: web.BaseRequest) -> None:
        """Tell of a wrong token, once a second at most: who guesses must not fill the log."""
        self._denied += 1
        now = time.monotonic()
        if now - self._denied_at < 1:
            return
        log.warning("admin.denied", path=request.rel_url.raw_path[:128], remote=request.remote, count=self._denied)
        self._denied_at, self._denied = now, 0

    def _healthz(self) -> web.Response:
        return _json({"status": "ok"})

    def _readyz(self) -> web.Response:
        reasons = self._unready()
        if reasons:
            return _json({"status": "unready", "reasons": reasons}, status=503)
        return _json({"status": "ready"})

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        names = [*self._dispatcher.targets, *self._gone()]
        backlog = await self._store.backlog(names)
        text = self._render_metrics(backlog)
        return web.Response(body=text, headers=_SAFE | {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _targets(self, _: web.BaseRequest) -> web.Response:
        names = list(self._dispatcher.targets)
        backlog = await self._store.backlog(names)
        views = [target_view(self._dispatcher.health(one.target), one, self._now()) for one in backlog]
        return _json({"targets": [*views, *await self._strangers()]})

    def _gone(self) -> list[str]:
        """Targets that the config no longer names and whose deliveries are held until it does."""
        return [name for name in self._waiting() if name not in self._dispatcher.targets]

    async def _strangers(self) -> list[dict[str, Any]]:
        gone = self._gone()
        reason = "not in the config: held until it is back"
        health = {name: TargetHealth(name, state=TargetState.DISABLED, reason=reason) for name in gone}
        return [target_view(health[one.target], one, self._now()) for one in await self._store.backlog(gone)]

    async def _steer(self, name: str, verb: str, request: web.BaseRequest) -> web.Response:
        body = await _body(request)
        if verb == "enable":
            return await self._shown(await self._dispatcher.enable(name))
        if verb == "disable":
            if set(body) - {"reason"}:
                raise Problem(422, "unknown key; known: reason")
            reason = body.get("reason") or "by hand"
            if not isinstance(reason, str) or len(reason) > 200:
                raise Problem(422, "reason must be a string of at most 200 characters")
            return await self._shown(await self._dispatcher.disable(name, reason))
        if verb == "test":
            return await self._test(name)
        raise Problem(404, "no such call; known: enable, disable, test")

    async def _shown(self, health: TargetHealth) -> web.Response:
        (backlog,) = await self._store.backlog([health.name])
        return _json(target_view(health, backlog, self._now()))

    async def _test(self, name: str) -> web.Response:
        """One marked request through the same guard and credentials; it touches neither state nor count."""
        began = time.perf_counter()
        outcome = await self._dispatcher.test(name)
        took = round((time.perf_counter() - began) * 1000, 1)
        return _json(
            {
                "target": name,
                "outcome": outcome.kind.value,
                "status": outcome.status,
                "reason": outcome.reason,
                "duration_ms": took,
                "excerpt": outcome.excerpt,
            }
        )


def _allow(request: web.BaseRequest, methods: tuple[str, ...]) -> None:
    if request.method not in methods:
        raise Problem(405, f"use {' or '.join(methods)}", allow=", ".join(methods))


async def _body(request: web.BaseRequest) -> dict[str, Any]:
    """The JSON object of a call; nothing at all is an empty one."""
    if not request.body_exists:
        return {}
    if request.content_type != "application/json":
        raise Problem(415, "send application/json")
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            raw = await _raw_body(request)
    except TimeoutError:
        raise Problem(408, "the body came too slowly") from None
    except (web.RequestPayloadError, ClientError, OSError):
        raise Problem(400, "the body is broken") from None
    try:
        found = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Problem(422, "the body must be a JSON object")
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


def refuse(status: int) -> web.Response:
    """What is answered to a request that reaches no call: it is no HTTP, or a fault of ours came before an answer."""
    if status < 500:
        return _problem(status, "malformed request")
    return _problem(status, "a fault of the relay's own; its log tells which", retry_after=1)


_SAFE = {"Server": SERVER, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(value).encode(), headers=_SAFE, content_type="application/json")


def _problem(status: int, detail: str, *, retry_after: int | None = None, allow: str | None = None) -> web.Response:
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = dict(_SAFE)
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if allow is not None:
        headers["Allow"] = allow
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=status, body=json.dumps(problem).encode(), headers=headers, content_type="application/problem+json"
    )
