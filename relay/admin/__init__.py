"""Shows and steers: health, metrics and the API, on a listener that is never the public one.

Law: every call but the two health checks needs the token, where one is set; without one only this machine can be
bound, and a page in a browser cannot use it. Errors are `application/problem+json` and hold no input.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import structlog
from aiohttp import web

from relay.admin.answers import SAFE, Problem, shown
from relay.admin.calls import API, Call, Calls
from relay.admin.description import description_calls
from relay.admin.events import EventCalls
from relay.admin.keeping import KeepingCalls
from relay.admin.reload import reload_calls
from relay.admin.replays import ReplayCalls
from relay.admin.status import status_calls
from relay.admin.stream import StreamCalls
from relay.admin.targets import TargetCalls
from relay.connections import is_one_too_many, speaks_http_1
from relay.delivery.dispatcher import Dispatcher, UnknownTarget
from relay.model import Secret
from relay.store import Backlog, Store, StoreUnavailable, StoreUnusable

__all__ = [
    "Admin",
    "Call",
    "EventCalls",
    "KeepingCalls",
    "Problem",
    "ReplayCalls",
    "StreamCalls",
    "TargetCalls",
    "refuse",
    "reload_calls",
    "status_calls",
]

HANGS_S = 10.0
"""How long a call waits for a store that does not take writes now."""
LASTING = frozenset({f"/{API}/stream", f"/{API}/backup"})
"""Calls whose answers take as long as they take, and are under way long before."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

log = structlog.get_logger()


class Admin:
    """The admin listener's handler."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        store: Store,
        targets: TargetCalls,
        *,
        token: Secret | None,
        hosts: frozenset[str],
        unready: Callable[[], Awaitable[list[str]]],
        render_metrics: Callable[[Iterable[Backlog]], bytes],
        calls: Iterable[Call] = (),
    ) -> None:
        """`hosts` are the names under which a listener without a token may be called, `calls` those of all families
        beside the targets'."""
        self._dispatcher = dispatcher
        self._store = store
        self._targets = targets
        self._token = token
        self._hosts = hosts | LOOPBACK_NAMES
        self._unready = unready
        self._render_metrics = render_metrics
        self._denied_at = float("-inf")
        self._denied = 0
        self._unanswered: set[asyncio.Task[web.StreamResponse]] = set()
        self._open: dict[str, Callable[[], Awaitable[web.Response]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }
        metrics = Call("GET", "/metrics", self._metrics)
        self.calls = Calls((metrics, *targets.calls(), *description_calls(), *calls))

    def change(self, *, token: Secret | None) -> None:
        """Let in by this token from the next call on."""
        self._token = token

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one call."""
        try:
            return await self._answer(request)
        except Problem as problem:
            answer = problem.answer()
            if not request.content.is_eof():
                answer.force_close()
            return answer
        except UnknownTarget:
            known = ", ".join(sorted(self._dispatcher.targets)) or "none"
            return Problem(404, f"unknown target; known: {known}").answer()
        except (StoreUnavailable, StoreUnusable) as error:
            return Problem(503, f"the store cannot take it now: {error}", retry_after=2).answer()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not speaks_http_1(request):
            raise Problem(505, "speak HTTP/1.1")
        path = request.rel_url.raw_path
        if path in self._open:
            if request.method not in ("GET", "HEAD"):
                raise Problem(405, "use GET or HEAD", allow="GET, HEAD")
            return await self._open[path]()
        if is_one_too_many(request):
            raise Problem(503, "too many connections are open", retry_after=1)
        self._admit(request)
        return await (self.calls.answer(request) if path in LASTING else self._in_time(self.calls.answer(request)))

    async def _in_time(self, answer: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        """The answer to a call, unless it waits for a disk that hangs: what was asked is not known to be done then, and
        goes on, so that who is told of a change learns of it."""
        answering = asyncio.create_task(answer)
        try:
            while not (await asyncio.wait({answering}, timeout=HANGS_S))[0]:
                condition = self._store.condition()
                if not condition.writable:
                    self._unanswered.add(answering)
                    answering.add_done_callback(self._forget)
                    raise StoreUnavailable(f"{condition.reason}; what was asked may still be done")
        except asyncio.CancelledError:
            answering.cancel()
            raise
        return answering.result()

    def _forget(self, answering: "asyncio.Task[web.StreamResponse]") -> None:
        self._unanswered.discard(answering)
        if not answering.cancelled():
            answering.exception()  # nobody waits for it any more

    def _admit(self, request: web.BaseRequest) -> None:
        """Let through who has the token; without one, only what no foreign page can send."""
        host = request.headers.get("Host", "")
        if _is_of_another_page(request, host):
            raise Problem(403, "calls from another origin are refused")
        if self._token is None:
            if host.rsplit(":", 1)[0].lower() not in self._hosts and host.lower() not in self._hosts:
                raise Problem(421, "this host name is not served here")
            return
        lines = request.headers.getall("Authorization", [""])
        scheme, _, sent = lines[0].partition(" ")
        if (
            len(lines) > 1
            or scheme.lower() != "bearer"
            or not hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), self._token.value)
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

    async def _healthz(self) -> web.Response:
        return shown({"status": "ok"})

    async def _readyz(self) -> web.Response:
        reasons = await self._unready()
        if reasons:
            return shown({"status": "unready", "reasons": reasons}, status=503)
        return shown({"status": "ready"})

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        try:
            backlog = await self._store.backlog([*self._dispatcher.targets, *self._targets.gone()])
        except StoreUnavailable:  # what the store knows is left out; what the relay counts is wanted now of all times
            backlog = []
        text = self._render_metrics(backlog)
        return web.Response(body=text, headers=SAFE | {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _is_of_another_page(request: web.BaseRequest, host: str) -> bool:
    """Whether a browser says that a page of another origin sends this. A link that somebody follows is no such page's
    doing; an image or a form is."""
    origins = request.headers.getall("Origin", ())
    if any(origin.partition("://")[2] != host for origin in origins):
        return True
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    return request.method not in ("GET", "HEAD") or request.headers.get("Sec-Fetch-Mode") != "navigate"


def refuse(status: int) -> web.Response:
    """What is answered to a request that reaches no call: it is no HTTP, or a fault of ours came before an answer."""
    if status < 500:
        return Problem(status, "malformed request").answer()
    return Problem(status, "a fault of the relay's own; its log tells which", retry_after=1).answer()
