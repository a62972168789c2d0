"""The calls about targets: shown, enabled, disabled, tested."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from aiohttp import web

from relay.admin.answers import Problem, json_body, shown
from relay.admin.calls import Call
from relay.admin.views import by_target, target_view
from relay.delivery.dispatcher import Dispatcher
from relay.model import TargetHealth, TargetState
from relay.store import Store
from relay.store.archive import Archive

LONGEST_REASON = 200


class TargetCalls:
    """What is shown of targets, and how they are steered."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        store: Store,
        archive: Archive,
        *,
        waiting: Callable[[], Iterable[str]],
        now: Callable[[], datetime],
    ) -> None:
        """`waiting` names the targets for which deliveries wait."""
        self._dispatcher = dispatcher
        self._store = store
        self._archive = archive
        self._waiting = waiting
        self._now = now

    def calls(self) -> tuple[Call, ...]:
        """The calls of this family."""
        return (
            Call("GET", "targets", self._list),
            Call("POST", "targets/{name}/enable", self._enable),
            Call("POST", "targets/{name}/disable", self._disable),
            Call("POST", "targets/{name}/test", self._test),
        )

    def gone(self) -> list[str]:
        """Targets that the config no longer names and whose deliveries are held until it does."""
        return [name for name in self._waiting() if name not in self._dispatcher.targets]

    async def _list(self, _: web.BaseRequest) -> web.Response:
        healths, now = {name: self._dispatcher.health(name) for name in self._dispatcher.targets}, self._now()
        outcomes = by_target(await self._archive.tally(now))
        views = [
            target_view(healths[one.target], one, now, outcomes.get(one.target))
            for one in await self._store.backlog(list(healths))
        ]
        return shown({"targets": [*views, *await self._strangers()]})

    async def _strangers(self) -> list[dict[str, Any]]:
        gone = self.gone()
        reason = "not in the config: held until it is back"
        health = {name: TargetHealth(name, state=TargetState.DISABLED, reason=reason) for name in gone}
        now = self._now()
        kept = await self._store.backlog(gone)
        return [target_view(health[one.target], one, now, configured=False) for one in kept]

    async def _enable(self, request: web.BaseRequest, name: str) -> web.Response:
        await json_body(request)
        return await self._shown(await self._dispatcher.enable(name))

    async def _disable(self, request: web.BaseRequest, name: str) -> web.Response:
        reason = (await json_body(request, "reason")).get("reason", "")
        if not isinstance(reason, str) or len(reason) > LONGEST_REASON:
            raise Problem(422, f"reason must be a string of at most {LONGEST_REASON} characters")
        return await self._shown(await self._dispatcher.disable(name, reason or "by hand"))

    async def _shown(self, health: TargetHealth) -> web.Response:
        (backlog,) = await self._store.backlog([health.name])
        outcomes = by_target(await self._archive.tally(self._now()))
        return shown(target_view(health, backlog, self._now(), outcomes.get(health.name)))

    async def _test(self, request: web.BaseRequest, name: str) -> web.Response:
        """One marked request through the same guard and credentials; it touches neither state nor count."""
        await json_body(request)
        began = time.perf_counter()
        outcome = await self._dispatcher.test(name)
        took = round((time.perf_counter() - began) * 1000, 1)
        return shown(
            {
                "target": name,
                "outcome": outcome.kind.value,
                "status": outcome.status,
                "reason": outcome.reason,
                "duration_ms": took,
                "excerpt": outcome.excerpt,
            }
        )
