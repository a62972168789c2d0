"""Puts the admin API's calls together over the parts that run.

Law: what a call shows is read when it is called, so that a reload changes it without a word here.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from relay.admin import Call, EventCalls, KeepingCalls, ReplayCalls, reload_calls, status_calls
from relay.config import Config
from relay.delivery.dispatcher import Dispatcher
from relay.delivery.replayer import Replayer
from relay.refusals import Refusals
from relay.standing import Standing
from relay.store.opening import OpenStore
from relay.upkeep import Upkeep


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind the API."""

    store: OpenStore
    dispatcher: Dispatcher
    replayer: Replayer
    refusals: Refusals
    upkeep: Upkeep
    standing: Standing
    config: Callable[[], Config]
    reload: Callable[[], Awaitable[dict[str, object]]]
    now: Callable[[], datetime]


def calls_over(behind: Behind) -> tuple[Call, ...]:
    """The calls beside those of the targets and the live stream."""
    store, standing = behind.store, behind.standing
    events = EventCalls(
        store.archive,
        store,
        behind.dispatcher,
        sources=lambda: behind.config().sources,
        routes=lambda: behind.config().routes,
        waiting=store.waiting,
        is_held=standing.holds,
        flush_refusals=behind.refusals.flush,
        now=behind.now,
    )
    replays = ReplayCalls(
        behind.replayer,
        store.replays,
        behind.dispatcher,
        pending=store.pending,
        is_held=standing.holds,
        now=behind.now,
    )
    return (
        *status_calls(standing.status),
        *reload_calls(behind.reload),
        *events.calls(),
        *replays.calls(),
        *KeepingCalls(behind.upkeep, store).calls(),
    )
