"""The calls that answer "where is my webhook?": events, refused requests, totals."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from aiohttp import web

from relay.admin.answers import SAFE, Problem, shown
from relay.admin.calls import Call
from relay.admin.reading import Query
from relay.admin.views import HELD, UNROUTED, event_view, record_view, refusal_view, tally_view
from relay.delivery.dispatcher import Dispatcher
from relay.model import Content, DeliveryState, Route, Source
from relay.rules.exactness import read
from relay.rules.expressions import Failed, View, view_from
from relay.rules.routing import DAMAGED, Subject, Verdict, decided, judged, meant
from relay.rules.secrets import presentable
from relay.store import Store, StoreUnusable
from relay.store.archive import Archive, EventQuery, EventRecord, RefusalQuery

STATES = (*(state.value for state in DeliveryState), HELD, UNROUTED)
FILTERS = ("source", "type", "target", "state", "since", "until", "limit", "cursor")


class EventCalls:
    """What is kept, shown."""

    def __init__(
        self,
        archive: Archive,
        store: Store,
        dispatcher: Dispatcher,
        *,
        sources: Callable[[], Sequence[Source]],
        routes: Callable[[], Sequence[Route]],
        waiting: Callable[[], Iterable[str]],
        is_held: Callable[[str], bool],
        flush_refusals: Callable[[], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        """`waiting` names the targets for which deliveries wait, `is_held` says whether one takes none now;
        `flush_refusals` stores what was refused up to now."""
        self._archive = archive
        self._store = store
        self._dispatcher = dispatcher
        self._sources = sources
        self._routes = routes
        self._waiting = waiting
        self._is_held = is_held
        self._flush_refusals = flush_refusals
        self._now = now

    def calls(self) -> tuple[Call, ...]:
        """The calls of this family."""
        return (
            Call("GET", "events", self._events),
            Call("GET", "events/{id}", self._event),
            Call("GET", "events/{id}/body", self._body),
            Call("GET", "refusals", self._refusals),
            Call("GET", "stats", self._stats),
        )

    async def _events(self, request: web.BaseRequest) -> web.Response:
        query, now = Query(request, *FILTERS), self._now()
        held = self._held()
        state, target = query.choice("state", STATES), query.text("target")
        among = None if target is None else frozenset({target})
        if state == HELD:
            among = frozenset(held) if among is None else among & held
        elif state == DeliveryState.PENDING:
            among = frozenset({*self._waiting(), *self._dispatcher.targets} if among is None else among) - held
        asked = EventQuery(
            source=query.text("source"),
            type=query.text("type"),
            since=query.moment("since", now),
            until=query.moment("until", now),
            state=_delivery_state(state),
            among=among,
            unrouted=state == UNROUTED,
        )
        limit, mark = query.limit(), query.mark()
        if asked.unrouted and among is not None:  # both would hold for the same delivery, and it has none
            return shown({"events": [], "next_cursor": None})
        page = await self._archive.events(asked, limit=limit, before=mark)
        return shown({"events": [event_view(one, held) for one in page.events], "next_cursor": _cursor(page.next)})

    def _held(self) -> frozenset[str]:
        """The targets whose deliveries are held: disabled, or not in the config."""
        return frozenset(name for name in {*self._dispatcher.targets, *self._waiting()} if self._is_held(name))

    async def _event(self, request: web.BaseRequest, event_id: str) -> web.Response:
        query = Query(request, "body")
        with_body = query.flag("body")
        record = await self._record(event_id, with_data=with_body)
        targets = self._dispatcher.targets
        names = [one.target for one in record.event.deliveries]
        ordered = [name for name in names if name in targets and targets[name].ordered]
        view = record_view(
            record,
            self._held(),
            targets=targets,
            firsts=await self._archive.firsts(ordered) if ordered else {},
            headers=presentable(record.headers, self._key_header(record.event.source)),
            verdicts=await self._verdicts(record),
        )
        if with_body:
            view |= _body_view(await self._read_body(event_id))
        return shown(view)

    async def _record(self, event_id: str, *, with_data: bool = False) -> EventRecord:
        record = await self._archive.event(event_id, with_data=with_data)
        if record is None:
            raise Problem(404, "no such event: it never came, or retention has deleted it")
        return record

    def _key_header(self, source: str) -> str | None:
        return next((one.key_header for one in self._sources() if one.name == source), None)

    async def _verdicts(self, record: EventRecord) -> list[Verdict]:
        """What today's routes say of an event; of one that goes somewhere, those for its source. Its body is read only
        where one of them asks for it."""
        event, routes = record.event, self._routes()
        if event.deliveries:
            routes = [route for route in routes if event.source in route.sources]
        asking = any(not route.is_plain for route in meant(event.source, event.type, routes))
        view = await self._view(record) if asking else DAMAGED
        subject = Subject(event.source, event.type, headers=lambda: record.headers, view=lambda: view)
        verdicts = await asyncio.to_thread(lambda: [judged(route, subject) for route in routes])
        if isinstance(view, Failed) or not any(one.is_open for verdict in verdicts for one in verdict.targets):
            return verdicts
        data = {one.enricher: await self._store.brought(event.id, one.enricher) for one in record.fetches}
        return await asyncio.to_thread(_decided, verdicts, view, data)

    async def _view(self, record: EventRecord) -> View | Failed:
        """What conditions see of a stored event."""
        event = record.event
        try:
            content = Content(record.headers, await self._store.body(event.id))
        except StoreUnusable:
            return DAMAGED
        parsed, form = content.json, content.declared_form
        return view_from(event.id, event.type, event.source, event.received_at, record.headers, parsed, form)

    async def _body(self, request: web.BaseRequest, event_id: str) -> web.Response:
        Query(request)
        await self._record(event_id)
        body = await self._read_body(event_id)
        return web.Response(body=body, headers=SAFE, content_type="application/octet-stream")

    async def _read_body(self, event_id: str) -> bytes:
        try:
            return await self._store.body(event_id)
        except StoreUnusable as error:
            raise Problem(500, str(error)) from None

    async def _refusals(self, request: web.BaseRequest) -> web.Response:
        query, now = Query(request, "source", "since", "until", "limit", "cursor"), self._now()
        await self._flush_refusals()
        asked = RefusalQuery(query.text("source"), query.moment("since", now), query.moment("until", now))
        page = await self._archive.refusals(asked, limit=query.limit(), before=query.mark())
        return shown({"refusals": [refusal_view(one) for one in page.refusals], "next_cursor": _cursor(page.next)})

    async def _stats(self, request: web.BaseRequest) -> web.Response:
        Query(request)
        await self._flush_refusals()
        tally = await self._archive.tally(self._now())
        names = [source.name for source in self._sources()]
        return shown(tally_view(tally, names, tuple(self._dispatcher.targets)))


def _decided(verdicts: Sequence[Verdict], view: View, data: Mapping[str, bytes | None]) -> list[Verdict]:
    """What was left open decided on what was fetched; what of it is damaged decides nothing."""
    brought: dict[str, Any] = {}
    for enricher, found in data.items():
        with suppress(ValueError, RecursionError):
            brought |= {} if found is None else {enricher: read(found)}
    return [decided(verdict, view, brought) for verdict in verdicts]


def _delivery_state(state: str | None) -> DeliveryState | None:
    if state == HELD:
        return DeliveryState.PENDING
    return None if state in (None, UNROUTED) else DeliveryState(state)


def _cursor(mark: int | None) -> str | None:
    return None if mark is None else str(mark)


def _body_view(body: bytes) -> dict[str, Any]:
    """A body for JSON: as text where it is some, and always in Base64."""
    try:
        text: str | None = body.decode()
    except UnicodeDecodeError:
        text = None
    return {"body": text, "body_base64": base64.b64encode(body).decode()}
