"""Tells how the relay stands: whether it is ready, its gauges, its status.

Law: everything told is kept by its owner and only read here, so that a look costs the same whatever waits. A slow or
disabled target is no reason against the relay: its own parts are.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from relay import __version__
from relay.config import Config
from relay.delivery.dispatcher import Dispatcher
from relay.model import TargetState
from relay.rules.forwarding import rfc3339
from relay.store import Backlog, Condition, StoreError
from relay.telemetry.metrics import Metrics, TargetGauges

READS_WITHIN = 2.0
"""Seconds that the store has for a look; one that hangs is as bad as one that fails."""


class Kept(Protocol):
    """What a store knows of itself without being asked to read."""

    def condition(self) -> Condition:
        """Whether it takes writes now."""

    def waiting(self) -> dict[str, int]:
        """How many deliveries wait, by target."""

    def who(self) -> Mapping[str, object]:
        """Which node this is and which others there are; nothing where there is one at most."""

    def counted(self) -> dict[str, int]:
        """How many deliveries are pending, in flight and dead, over all targets."""


class Room(Protocol):
    """How full the store is."""

    @property
    def used(self) -> int:
        """Bytes in use."""

    @property
    def limit(self) -> int:
        """Bytes that may be in use."""


class Standing:
    """What is told of a running relay."""

    def __init__(
        self,
        store: Kept,
        dispatcher: Dispatcher,
        room: Room,
        metrics: Metrics,
        *,
        config: Callable[[], Config],
        is_draining: Callable[[], bool],
        started_at: datetime,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._room = room
        self._metrics = metrics
        self._config = config
        self._is_draining = is_draining
        self._started_at = started_at
        self._loaded_at = started_at
        self._backlog: dict[str, Backlog] = {}

    def loaded(self, at: datetime) -> None:
        """The config that runs was taken up at this time."""
        self._loaded_at = at

    async def unready(self) -> list[str]:
        """Why no traffic should be sent here; empty when all is well."""
        reasons: list[str] = []
        if self._is_draining():
            reasons.append("draining")
        condition = self._store.condition()
        if not condition.accepting:
            reasons.append("store_full" if condition.writable else "store_unavailable")
        if self._dispatcher.failing():
            reasons.append("delivery_loop_failed")
        if self._dispatcher.stale_lanes():
            reasons.append("delivery_loop_stuck")
        try:
            async with asyncio.timeout(READS_WITHIN):
                if await self._dispatcher.unclaimed():
                    reasons.append("due_deliveries_unclaimed")
        except (StoreError, TimeoutError):
            reasons.append("store_unavailable")
        return list(dict.fromkeys(reasons))

    def render(self, backlog: Iterable[Backlog]) -> bytes:
        """The metrics, with these counts for gauges."""
        self._backlog = {one.target: one for one in backlog}
        return self._metrics.render()

    def gauges(self) -> Iterable[TargetGauges]:
        """What is kept of each target's deliveries."""
        for name, kept in self._backlog.items():
            is_held = self.holds(name)
            yield TargetGauges(
                name,
                pending=0 if is_held else kept.pending,
                held=kept.pending if is_held else 0,
                in_flight=kept.in_flight,
                dead=kept.dead,
                oldest_pending_at=kept.oldest_received_at,
                disabled=is_held,
            )

    def holds(self, target: str) -> bool:
        """Whether what waits for a target is held: it is disabled, or the config does not name it."""
        is_known = target in self._dispatcher.targets
        return not is_known or self._dispatcher.health(target).state is TargetState.DISABLED

    async def status(self) -> dict[str, Any]:
        """All of it in one object."""
        config, condition, counted = self._config(), self._store.condition(), self._store.counted()
        held = sum(number for target, number in self._store.waiting().items() if self.holds(target))
        reasons = await self.unready()
        return {
            "version": __version__,
            "started_at": rfc3339(self._started_at),
            "ready": not reasons,
            "reasons": reasons,
            "store": {
                "url": config.store.shown,
                **self._store.who(),
                "writable": condition.writable,
                "accepting": condition.accepting,
                "reason": condition.reason,
                "bytes": self._room.used,
                "limit_bytes": self._room.limit,
            },
            "config": {
                "path": str(config.path),
                "loaded_at": rfc3339(self._loaded_at),
                "reload_ok": self._metrics.is_config_taken,
            },
            "sources": len(config.sources),
            "targets": len(config.targets),
            "routes": len(config.routes),
            "held": held,
            **counted,
            "pending": counted["pending"] - held,
        }
