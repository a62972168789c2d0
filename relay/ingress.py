"""Receives a webhook: read, verify, route, accept, answer.

Law: a 2xx is given after the commit and never before. Checks run cheapest first; what is unproven reaches neither the
parser nor the store. Faults of our own are 503, never a 4xx, because some senders do not retry those.
"""

import asyncio
import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from aiohttp import web

from relay.connections import speaks_http_1
from relay.desks import Desk, Lines, Memory
from relay.ids import fresh_id
from relay.intake import RETRY_SOON, Held, Intake, Limits, Turned
from relay.listener import REFUSALS, Receipt, json_answer, peer_of, plain_answer
from relay.model import NO_TYPE, Content, Event, Headers, ReceivedRequest, Route, Source, VerifiedRequest
from relay.rules.expressions import view_from
from relay.rules.forwarding import MOST_HOPS, incoming_hops, storable_headers
from relay.rules.rate import take
from relay.rules.routing import CONDITION_FAILED, Routed, Subject, meant, routed
from relay.rules.secrets import harmless
from relay.rules.verification import Refusal, claimed, unproven, verify
from relay.store import Accepted, Store, StoreFull, StoreUnavailable
from relay.store.archive import RefusedRequest

HEALTH_PATH = "/healthz"
NOBODY = "_unknown"
"""The source, in lines, of a request whose path is none's."""
HEAVY_BODY = 256 * 1024
"""Bodies beyond this are verified in a thread, so that they do not hold up the others."""
LARGEST_ON_THE_LOOP = 64 * 1024
"""Bodies beyond this are named and routed in a thread: conditions may look at every member of them."""
RETRY_WHEN_FULL = 10
"""Seconds that a sender is asked to wait when there is no room, which takes longer to change than other faults."""

log = structlog.get_logger()


class Counters(Protocol):
    """What is counted of requests."""

    def event_received(self, source: str, result: str) -> None:
        """A request of a source ended as accepted, unrouted, duplicate, refused or challenged."""

    def ingested(self, source: str, seconds: float) -> None:
        """A request took so long, from its head to its answer."""


class KeepsRefusals(Protocol):
    """Who keeps what was turned away."""

    def refused(self, source: str, status: int, request: Callable[[], RefusedRequest]) -> None:
        """A request of a source was turned away; `request` makes what is kept of it."""


class Ingress:
    """The public listener's handler."""

    def __init__(
        self,
        sources: Iterable[Source],
        routes: Sequence[Route],
        *,
        forwarded: frozenset[str],
        store: Store,
        counters: Counters,
        refusals: KeepsRefusals,
        limits: Limits,
        now: Callable[[], datetime],
    ) -> None:
        self._memories: dict[str, Memory] = {}
        self._desks: dict[str, Desk] = {}
        self._intake = Intake(limits)
        self._store = store
        self._counters = counters
        self._refusals = refusals
        self._now = now
        self._log = log.bind()  # the logger itself: the way to it by its stand-in takes a seventh of a line
        self._strays = Lines(NOBODY)
        self._keys_now = frozenset[str]()
        self.change(sources, routes, forwarded=forwarded, limits=limits)

    def change(
        self, sources: Iterable[Source], routes: Sequence[Route], *, forwarded: frozenset[str], limits: Limits
    ) -> None:
        """Receive by this config from the next request on; those under way finish with what they began with.

        Args:
            forwarded: what any target asks for of the headers that are left out by default.
        """
        sources = tuple(sources)
        self._memories = {source.name: self._memories.get(source.name) or Memory(source.name) for source in sources}
        self._desks = {source.path: Desk(source, routes, forwarded, self._memories[source.name]) for source in sources}
        known = frozenset[str]().union(*(desk.keys for desk in self._desks.values()))
        self._keys, self._keys_now = known | self._keys_now, known  # those of before are still sent for a while
        self._intake.limits = limits

    def drain(self) -> None:
        """Turn every further request away."""
        self._intake.draining = True

    async def handle(self, request: web.BaseRequest) -> web.Response | Receipt:
        """Answer one request."""
        began = time.perf_counter()
        path = request.rel_url.raw_path
        desk = self._desks.get(path)
        if desk is None:
            return self._elsewhere(request, path)
        try:
            with self._intake.held() as held:
                answer = await self._receive(request, desk, held)
        except StoreFull as error:
            answer = Turned(503, "store_full", str(error), RETRY_WHEN_FULL)
        except StoreUnavailable as error:
            answer = Turned(503, "store_unavailable", str(error), RETRY_SOON)
        except Exception as error:  # a bug of ours: told, counted, and answered like an outage
            log.error("request.failed", source=desk.source.name, exc_info=error)
            answer = Turned(503, "internal", type(error).__name__, RETRY_SOON)
        if isinstance(answer, Turned):
            self._refused(desk, answer, request)
            response: web.Response | Receipt = _turned_away(answer)
            if "Expect" in request.headers and not request.content.is_eof():
                response.force_close()  # nobody knows whether the body still comes, so nothing behind it can be read
        else:
            response = answer
        self._watch_sender(desk, response.status)
        self._counters.ingested(desk.source.name, time.perf_counter() - began)
        return response

    def _elsewhere(self, request: web.BaseRequest, path: str) -> web.Response:
        if not speaks_http_1(request):
            return _turned_away(Turned(505, "http_version", closes=True))
        if path != HEALTH_PATH:
            return self._stray(request, path)
        if request.method not in ("GET", "HEAD"):
            return json_answer(405, REFUSALS[405], allow="GET, HEAD")
        return json_answer(200, b'{"status": "ok"}')

    def _stray(self, request: web.BaseRequest, path: str) -> web.Response:
        """Refuse a path that is no source's; it may be a mistyped one and most of a secret, so it is not told."""
        turned = Turned(404, "unknown_path")
        if request.method == "POST":
            self._strays.tell("request.refused", lambda: self._why(turned, request) | self._near(path))
        else:
            log.debug("request.refused", source=NOBODY, status=404, reason="unknown_path", remote=peer_of(request))
        return _turned_away(turned)

    def _near(self, path: str) -> dict[str, object]:
        """The source whose path is like one that is none's, for the lines that are told: the search is not cheap."""
        near = difflib.get_close_matches(path[:256], self._desks, 1, 0.8)
        return {"detail": f"like that of source {self._desks[near[0]].source.name}"} if near else {}

    async def _receive(self, request: web.BaseRequest, desk: Desk, held: Held) -> web.Response | Receipt | Turned:
        """The path of one webhook, in order."""
        began = time.perf_counter()
        headers: Headers = tuple(request.headers.items())
        remote = self._intake.check_head(request, desk.source)
        if isinstance(remote, Turned):
            return remote
        claim = claimed(headers, desk.source.check)
        if isinstance(claim, Refusal) and desk.source.enforce:
            return Turned(401, claim.reason, claim.detail)
        body = self._intake.check_room(request) or self._check_rate(desk) or self._intake.at_hand(request, held)
        if body is None:
            body = await self._intake.read(request, held)
        if isinstance(body, Turned):
            return body
        received, check, now = ReceivedRequest(headers, body, remote), desk.source.check, self._now()
        if len(body) > HEAVY_BODY:
            verified = self._judged(await asyncio.to_thread(verify, received, check, now, claim), received, desk)
        else:
            verified = self._judged(verify(received, check, now, claim), received, desk)
        if isinstance(verified, Refusal):
            return Turned(401, verified.reason, verified.detail)
        content = Content(headers, body)
        told = desk.source.challenge(content) if desk.source.challenge is not None else None
        if told is not None:
            return self._challenged(desk.source, told, verified)
        hops = incoming_hops(headers)
        if hops is not None and hops > MOST_HOPS:
            return Turned(508, "loop", f"relay-hops is {hops}")
        if hops is None:
            desk.memory.lines.tell("request.bad_hops", lambda: {"reason": "relay-hops is no number and counts as 0"})
        now = self._now()
        known = verified, content, desk, fresh_id("evt", now), now, hops or 0
        if len(body) > LARGEST_ON_THE_LOOP:
            event, found = await asyncio.to_thread(self._named, *known)
        else:
            event, found = self._named(*known)
        accepted = await self._store.accept(event, found.targets, found.courses)
        if not accepted.duplicate:
            self._tell_failed(desk, event)
        return self._accepted(desk, event, accepted, found.targets, verified, began)

    def _check_rate(self, desk: Desk) -> Turned | None:
        if desk.source.rate is None:
            return None
        desk.memory.bucket, wait = take(desk.memory.bucket, desk.source.rate, self._now())
        return None if wait is None else Turned(429, "rate", retry_after=-(-wait // timedelta(seconds=1)))

    def _judged(
        self, found: VerifiedRequest | Refusal, request: ReceivedRequest, desk: Desk
    ) -> VerifiedRequest | Refusal:
        """What a source makes of a verdict: it may tell by it of a wrong clock, and let through what is not proven."""
        if desk.signs_time:
            desk.memory.clock.judged(found)
        if isinstance(found, Refusal) and not desk.source.enforce:
            desk.memory.lines.tell("request.unproven", lambda: {"reason": found.reason, "detail": found.detail})
            return unproven(request)
        return found

    def _challenged(self, source: Source, told: bytes, request: VerifiedRequest) -> web.Response:
        """Tell a sender back what it asked to see whether we are there: no event, so nothing is stored."""
        self._counters.event_received(source.name, "challenged")
        log.info("request.challenged", source=source.name, verified=request.proven, remote=request.remote)
        return plain_answer(200, told)

    def _named(
        self, request: VerifiedRequest, content: Content, desk: Desk, id_: str, now: datetime, hops: int
    ) -> tuple[Event, Routed]:
        """The event that a request becomes, and where it goes; in any thread."""
        source = desk.source.name
        type_ = desk.source.event_type(content) or NO_TYPE
        headers = storable_headers(
            request.headers, key_header=desk.key_header, forwarded=desk.forwarded, keys=desk.keys
        )
        found = desk.routed_by_name(type_)
        if found is None:
            found = routed(_subject(source, type_, id_, now, headers, content), desk.routes)
        event = Event(
            id=id_,
            source=source,
            type=type_,
            received_at=now,
            headers=headers,
            body=request.body,
            verified=request.proven,
            hops=hops,
            dedupe_key=desk.source.dedupe_key(content),
            routes=found.routes,
            failed_conditions=found.failed,
        )
        return event, found

    def _tell_failed(self, desk: Desk, event: Event) -> None:
        """Tell of the conditions that could not be evaluated on an event."""
        for place, reason in event.failed_conditions:
            fields: dict[str, object] = {"route": place, "event_id": event.id, "type": event.type, "reason": reason}
            desk.memory.lines.tell(CONDITION_FAILED, fields.copy)

    def _accepted(
        self,
        desk: Desk,
        event: Event,
        accepted: Accepted,
        targets: Sequence[str],
        request: VerifiedRequest,
        began: float,
    ) -> Receipt:
        """Answer and tell what was committed."""
        source = desk.source
        if accepted.duplicate:
            result, line = "duplicate", "event.duplicate"
        else:
            result, line = ("accepted", "event.accepted") if targets else ("unrouted", "event.unrouted")
        self._counters.event_received(source.name, result)
        extra: dict[str, object] = {}
        if accepted.duplicate and not accepted.same_body:
            extra["reason"] = "id_reuse: the same id came with another body"
        if not targets and not accepted.duplicate:
            extra["reason"] = _unrouted_because(event, desk.routes)
        tell = self._log.warning if extra else self._log.info
        if desk.rotates:
            extra["key_index"] = request.key_index
        tell(
            line,
            source=source.name,
            type=event.type,
            event_id=accepted.event_id,
            targets=len(targets),
            bytes=len(event.body),
            verified=event.verified,
            remote=request.remote,
            duration_ms=round((time.perf_counter() - began) * 1000, 2),
            **extra,
        )
        # an id of ours needs no escape
        answer = f'{{"id": "{accepted.event_id}", "duplicate": {"true" if accepted.duplicate else "false"}}}'
        return Receipt(200 if accepted.duplicate else source.status, answer.encode())

    def _refused(self, desk: Desk, turned: Turned, request: web.BaseRequest) -> None:
        """Count a refusal and tell of it."""
        self._counters.event_received(desk.source.name, "refused")
        self._refusals.refused(desk.source.name, turned.status, lambda: self._kept(desk.source, turned, request))
        desk.memory.lines.tell("request.refused", lambda: self._why(turned, request))

    def _kept(self, source: Source, turned: Turned, request: web.BaseRequest) -> RefusedRequest:
        """What is kept of a refused request."""
        return RefusedRequest(
            received_at=self._now(),
            source=source.name,
            remote=self._remote(request),
            status=turned.status,
            reason=turned.reason,
            detail=turned.detail,
            size=request.content_length,
            headers=harmless(tuple(request.headers.items()), self._keys),
        )

    def _why(self, turned: Turned, request: web.BaseRequest) -> dict[str, object]:
        """What a line says of a refusal."""
        why: dict[str, object] = {"detail": turned.detail} if turned.detail else {}
        return {"status": turned.status, "reason": turned.reason, "remote": self._remote(request), **why}

    def _remote(self, request: web.BaseRequest) -> str | None:
        """Where a refused request came from, as far as that is known."""
        client = self._intake.client(request)
        return client if isinstance(client, str) else peer_of(request)

    def _watch_sender(self, desk: Desk, status: int) -> None:
        """Say it once when a sender that gives up easily has had enough refusals to give up. One who does not even post
        is somebody with a browser."""
        if status == 405:
            return
        memory, source = desk.memory, desk.source
        memory.other_than_200 = 0 if status == 200 else memory.other_than_200 + 1
        if source.gives_up_after is not None and memory.other_than_200 == source.gives_up_after:
            log.error(
                "source.may_be_switched_off",
                source=source.name,
                reason=f"{memory.other_than_200} answers other than 200 in a row: the sender may have disabled the URL",
                advice=source.revival,
            )


def _subject(source: str, type_: str, id_: str, now: datetime, headers: Headers, content: Content) -> Subject:
    """What routes judge of a request that is to become this event."""
    return Subject(
        source,
        type_,
        headers=lambda: headers,
        view=lambda: view_from(id_, type_, source, now, headers, content.json, content.declared_form),
    )


def _unrouted_because(event: Event, routes: Sequence[Route]) -> str:
    """Why no route wants an event, in a few words; `relay show` has the reason of each."""
    if event.failed_conditions:
        place, reason = event.failed_conditions[0]
        return f"no route wants it; the condition of {place} failed: {reason}"
    if meant(event.source, event.type, routes):
        return "no route wants it: the headers or conditions of those for its type say no"
    return "no route wants this type"


def _turned_away(turned: Turned) -> web.Response:
    answer = json_answer(
        turned.status,
        REFUSALS[turned.status],
        retry_after=turned.retry_after,
        allow="POST" if turned.status == 405 else None,
    )
    if turned.closes:
        answer.force_close()
    return answer
