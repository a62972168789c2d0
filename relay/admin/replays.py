"""The calls about sending again: one event, many by a filter, and letting go of what a target holds.

Law: a filter's times are fixed when its job is made, and its set is; what a call asks for that makes no sense is
refused with what would.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

import structlog
from aiohttp import web

from relay.admin.answers import Problem, json_body, shown
from relay.admin.calls import Call
from relay.admin.reading import LONGEST, moment
from relay.admin.views import shown_at as time_shown
from relay.delivery.dispatcher import Dispatcher, UnknownTarget
from relay.delivery.replayer import Replayer
from relay.model import Rate, TargetHealth, TargetState
from relay.rules.rate import rate_from, written
from relay.store.replays import JobState, Replayable, ReplayedEvent, ReplayFilter, ReplayJob, Replays

JOBS = 100
"""Jobs in a list."""
DEFAULT_RATE = "50/s"
LARGEST_LIMIT = 1_000_000_000
_FILTER = ("state", "since", "until", "source", "type", "target", "limit")

log = structlog.get_logger()


class ReplayCalls:
    """Replays and discards, asked for and shown."""

    def __init__(
        self,
        replayer: Replayer,
        replays: Replays,
        dispatcher: Dispatcher,
        *,
        pending: Callable[[str], int],
        is_held: Callable[[str], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`pending` tells how many deliveries wait at a target, also at one that the config no longer names; `is_held`
        whether one takes none now."""
        self._replayer = replayer
        self._replays = replays
        self._dispatcher = dispatcher
        self._pending = pending
        self._is_held = is_held
        self._now = now

    def calls(self) -> tuple[Call, ...]:
        """The calls of this family."""
        return (
            Call("POST", "events/{id}/replay", self._replay_event),
            Call("POST", "replays", self._begin),
            Call("GET", "replays", self._list),
            Call("GET", "replays/{id}", self._show),
            Call("POST", "replays/{id}/pause", self._pause),
            Call("POST", "replays/{id}/resume", self._resume),
            Call("POST", "replays/{id}/cancel", self._cancel),
            Call("POST", "targets/{name}/discard", self._discard),
        )

    async def _replay_event(self, request: web.BaseRequest, event_id: str) -> web.Response:
        target = self._target(await json_body(request, "target"))
        replayed = await self._replayer.event(event_id, target)
        if replayed is None:
            raise Problem(404, "unknown event")
        return shown(_replayed_view(replayed))

    async def _begin(self, request: web.BaseRequest) -> web.Response:
        asked = await json_body(request, *_FILTER, "rate", "dry_run")
        wanted, rate = self._filter(asked), _rate(asked)
        if _flag(asked, "dry_run"):
            found = await self._replays.count(wanted)
            targets = {name: number for name, number in sorted(found.items()) if name}
            return shown({"total": sum(found.values()), "targets": targets, "dry_run": True})
        return shown(_job_view(await self._replayer.begin(wanted, rate)))

    async def _list(self, _: web.BaseRequest) -> web.Response:
        return shown({"replays": [_job_view(job) for job in await self._replays.jobs(JOBS)]})

    async def _show(self, _: web.BaseRequest, job_id: str) -> web.Response:
        job = await self._replays.job(job_id)
        return shown(_job_view(job if job is not None else await self._unknown()))

    async def _pause(self, request: web.BaseRequest, job_id: str) -> web.Response:
        return await self._steer(request, job_id, self._replayer.pause, JobState.PAUSED)

    async def _resume(self, request: web.BaseRequest, job_id: str) -> web.Response:
        return await self._steer(request, job_id, self._replayer.resume, JobState.RUNNING)

    async def _cancel(self, request: web.BaseRequest, job_id: str) -> web.Response:
        return await self._steer(request, job_id, self._replayer.cancel, JobState.CANCELLED)

    async def _steer(
        self,
        request: web.BaseRequest,
        job_id: str,
        steer: Callable[[str], Awaitable[ReplayJob | None]],
        to: JobState,
    ) -> web.Response:
        """Move a job. To ask again for what is so already is no mistake."""
        await json_body(request)
        job = await steer(job_id)
        if job is None:
            job = await self._unknown()
        if job.state is not to:
            raise Problem(409, f"it is over: {job.state.value}, {job.done} replayed and {job.skipped} skipped")
        return shown(_job_view(job))

    async def _unknown(self) -> ReplayJob:
        """Refuse, and name the jobs that can still be steered."""
        jobs = [job for job in await self._replays.jobs(JOBS) if not job.is_over]
        known = ", ".join(f"{job.id} ({job.state.value})" for job in jobs) or "none"
        raise Problem(404, f"unknown replay; not over: {known}")

    async def _discard(self, request: web.BaseRequest, name: str) -> web.Response:
        is_dry = _flag(await json_body(request, "dry_run"), "dry_run")
        if name not in self._dispatcher.targets and not self._pending(name):
            raise UnknownTarget(name)
        if not self._is_held(name):
            raise Problem(409, f"{name} is active and takes deliveries; disable it first: relay targets disable {name}")
        if is_dry:
            return shown({"target": name, "discarded": self._pending(name), "dry_run": True})
        number = await self._replays.discard(name, permitted=self._may_discard, now=self._now())
        if number:
            log.warning("target.discarded", target=name, count=number, reason="by hand")
        return shown({"target": name, "discarded": number, "dry_run": False})

    def _may_discard(self, health: TargetHealth) -> bool:
        """Whether nothing leaves for a target: it is disabled, or gone from the config."""
        return health.state is TargetState.DISABLED or health.name not in self._dispatcher.targets

    def _target(self, asked: Mapping[str, Any]) -> str | None:
        """The target that is asked for; it must be one of today's."""
        target = _text(asked, "target")
        if target is not None and target not in self._dispatcher.targets:
            raise UnknownTarget(target)
        return target

    def _filter(self, asked: Mapping[str, Any]) -> ReplayFilter:
        state = asked.get("state")
        if state not in list(Replayable):
            raise Problem(422, f"state must be one of {', '.join(Replayable)}")
        target = self._target(asked)
        if state == Replayable.UNROUTED and target is not None:
            raise Problem(
                422, "target does not go with state unrouted: such an event has none, its routes are asked anew"
            )
        now = self._now()
        return ReplayFilter(
            Replayable(state),
            since=_moment(asked, "since", now),
            until=_moment(asked, "until", now),
            source=_text(asked, "source"),
            type=_text(asked, "type"),
            target=target,
            limit=_limit(asked),
        )


def _text(asked: Mapping[str, Any], name: str) -> str | None:
    if name not in asked:
        return None
    value = asked[name]
    if not (isinstance(value, str) and 0 < len(value) <= LONGEST):
        raise Problem(422, f"{name} must be a string of 1 to {LONGEST} characters")
    return value


def _moment(asked: Mapping[str, Any], name: str, now: datetime) -> datetime | None:
    value = _text(asked, name)
    return None if value is None else moment(value, now, lambda why: Problem(422, f"{name} {why}"))


def _limit(asked: Mapping[str, Any]) -> int | None:
    if "limit" not in asked:
        return None
    value = asked["limit"]
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    if not is_whole or not 1 <= value <= LARGEST_LIMIT:
        raise Problem(422, f"limit must be a whole number from 1 to {LARGEST_LIMIT}")
    return int(value)


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    value = asked.get(name, False)
    if not isinstance(value, bool):
        raise Problem(422, f"{name} must be true or false")
    return value


def _rate(asked: Mapping[str, Any]) -> Rate:
    rate = rate_from(_text(asked, "rate") or DEFAULT_RATE)
    if rate is None:
        raise Problem(422, "rate must be a number in a span of 1ms to 1d, such as 50/s or 150/5m")
    return rate


def _replayed_view(replayed: ReplayedEvent) -> dict[str, Any]:
    return {
        "event": replayed.event_id,
        "replayed": list(replayed.replayed),
        "waiting": list(replayed.waiting),
        "skipped": [{"target": name, "reason": reason} for name, reason in replayed.skipped],
    }


def _job_view(job: ReplayJob) -> dict[str, Any]:
    wanted = {name: getattr(job.filter, name) for name in _FILTER}
    return {
        "id": job.id,
        "state": job.state.value,
        "total": job.total,
        "done": job.done,
        "skipped": job.skipped,
        "rate": written(job.rate),
        "filter": {name: _shown(value) for name, value in wanted.items() if value is not None},
        "created_at": time_shown(job.created_at),
        "ended_at": time_shown(job.ended_at),
        "reason": job.reason,
    }


def _shown(value: object) -> object:
    return time_shown(value) if isinstance(value, datetime) else value
