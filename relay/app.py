"""Builds every object once, starts it, and takes it down in order.

Law: nothing is bound before the store is open, and nothing is accepted before it can be delivered. A start that fails
leaves nothing behind and never hangs; a stop loses nothing, whether it is asked for once or twice.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from random import SystemRandom

import structlog

from relay import __version__
from relay.admin import Admin, StreamCalls, TargetCalls, refuse
from relay.api import Behind, calls_over
from relay.config import Config
from relay.delivery.dispatcher import Dispatcher
from relay.delivery.observing import Observer, Observers
from relay.delivery.replayer import Replayer
from relay.ingress import Ingress
from relay.listener import Certificate, Listener, tls_context
from relay.notices import CONTRACT, Notifier, Pace
from relay.outbound import Outbound
from relay.refusals import Refusals
from relay.reloading import (
    Parts,
    Reloading,
    digests,
    forwarded,
    hide_secrets,
    limits,
    rooms_for,
    tell_names,
    tell_of_the_past,
)
from relay.rules.secrets import hideable_token
from relay.standing import Standing
from relay.store import StoreUnavailable
from relay.store.opening import OpenStore, open_store
from relay.store.replays import Destinations
from relay.telemetry.logs import LogPipe
from relay.telemetry.metrics import Metrics
from relay.telemetry.reporter import Reporter
from relay.timekeeping import Timekeeping
from relay.upkeep import Upkeep
from relay.watching import Watch

FINE, FAILURE = 0, 1
"""Exit codes of a relay that was asked to stop, and of one that could not go on."""

COMMIT = timedelta(seconds=3)
"""How long the last request may wait for its commit."""
LONGEST_FINISH = timedelta(seconds=20)
LAST_WORDS = timedelta(seconds=1)
"""How long what was refused may take to be stored at a stop."""
STOP_MARGIN = timedelta(seconds=4)
"""What a stop may take beside `drain_timeout`, whatever does not answer."""

log = structlog.get_logger()
_own_clock = partial(datetime.now, UTC)


class App:
    """One relay. `start`, then `stop` once; both inside one event loop."""

    def __init__(
        self,
        config: Config,
        *,
        new_store: bool = False,
        observer: Observer | None = None,
        environ: Mapping[str, str] = os.environ,
        pace: Pace = CONTRACT,
    ) -> None:
        """`environ` is where a reload finds the variables that the config names, `pace` how often people are told."""
        self._config = config
        self._environ = environ
        self._pipe: LogPipe | None = None
        self._new_store = new_store
        self._also = observer
        self._pace = pace
        self._metrics = Metrics(__version__)
        tell_names(self._metrics, config)
        self._ended = asyncio.Event()
        self._failed = False
        self._reporter = Reporter(self._metrics, end=self._fail)
        self._now: Callable[[], datetime] = _own_clock
        """The store's clock, as soon as that is open."""
        self._draining = False
        self._closing = contextlib.AsyncExitStack()
        self._store: OpenStore
        self._outbound: Outbound
        self._dispatcher: Dispatcher
        self._notifier: Notifier
        self._replayer: Replayer
        self._ingress: Ingress
        self._upkeep: Upkeep
        self._hooks: Listener | None = None
        self._stuck = False
        self._admin: Listener | None = None
        self._reloading: Reloading
        self._streams: StreamCalls

    @property
    def hooks_address(self) -> tuple[str, int]:
        """Where webhooks are received, the port as it was really given."""
        assert self._hooks is not None
        return self._hooks.addresses[0]

    @property
    def admin_address(self) -> tuple[str, int]:
        """Where the admin API is."""
        assert self._admin is not None
        return self._admin.addresses[0]

    @property
    def metrics(self) -> Metrics:
        """The numbers that are kept of this relay."""
        return self._metrics

    @property
    def speaker(self) -> Mapping[str, str]:
        """Which node of the store this is, under `node`; empty where there is one at most."""
        node = self._store.who().get("node")
        return {} if node is None else {"node": str(node)}

    def watch_log(self, pipe: LogPipe) -> None:
        """Count what the log drops, and keep every secret of the config out of it."""
        self._pipe = pipe
        hide_secrets(pipe, self._config)
        self._metrics.watch(log_dropped=lambda: pipe.dropped, http_malformed=lambda: pipe.malformed)

    async def start(self) -> None:
        """Open the store, take up every target, then listen.

        Raises:
            StoreError: the store must not or cannot be used.
            CannotListen: an address cannot be bound.
        """
        try:
            await self._start()
        except BaseException:
            self._draining = True  # what ends from here on is taken down on purpose
            await self._closing.aclose()
            raise

    async def _start(self) -> None:
        config = self._config
        clock = Timekeeping(_own_clock, set_ahead=self._doubt_clock, set_back=self._clock_set_back)
        self._store = await open_store(config.store.url, self._reporter, afresh=self._new_store)
        self._now = self._store.clock
        self._closing.push_async_callback(self._close_store)
        self._closing.push_async_callback(self._close_admin)  # after all that it shows has stopped
        self._store.task.add_done_callback(self._writer_ended)
        tell_of_the_past(self._store, config, self._metrics, now=self._now())
        self._notifier = self._make_notifier()
        self._outbound = Outbound(
            config, self._store, self._reporter, token_fetched=self._hide_token, now=self._now, rng=SystemRandom()
        )
        self._closing.push_async_callback(self._outbound.close)
        self._dispatcher = Dispatcher(
            config.targets,
            self._store,
            sender=lambda target: self._outbound.sender(target, config.egress),
            brings=self._outbound.enrichment,
            observer=Observers(self._reporter, self._notifier, *([self._also] if self._also else [])),
            supervisor=self._reporter,
            now=self._now,
            rng=SystemRandom(),
        )
        self._reporter.count_held_by(self._store.pending)
        self._refusals = Refusals(self._store.archive.keep_refusals, now=self._now)
        await self._dispatcher.start({target.name: digests(target) for target in config.targets})
        self._closing.push_async_callback(self._notifier.close)
        self._closing.push_async_callback(self._finish_work)
        self._replayer = Replayer(
            self._store.replays,
            destinations=self._destinations,
            wake=self._dispatcher.wake,
            witness=self._reporter,
            now=self._now,
        )
        await self._replayer.start()
        self._ingress = Ingress(
            config.sources,
            config.routes,
            forwarded=forwarded(config.targets),
            store=self._store,
            counters=self._metrics,
            refusals=self._refusals,
            limits=limits(config.server),
            now=self._now,
        )
        await self._watch_over_store()
        await self._listen()
        for name, loop in (
            ("clock", clock.run),
            ("fill level", self._upkeep.watch),
            ("retention", self._upkeep.prune_for_ever),
            ("refusals", self._refusals.run),
            ("notices", self._notifier.run),
            ("replays", self._replayer.run),
        ):
            self._dispatcher.look_after(name, loop)

    async def _watch_over_store(self) -> None:
        """Know how full the store is before anything is taken, and how the relay stands."""
        self._upkeep = Upkeep(
            self._store, lambda: self._config.store.retention, now=self._now, nearly_full=self._notifier.nearly_full
        )
        self._upkeep.doubt_clock_since(max(self._store.last_received().values(), default=None))
        with contextlib.suppress(StoreUnavailable):
            await self._upkeep.look()
        self._standing = Standing(
            self._store,
            self._dispatcher,
            self._upkeep,
            self._metrics,
            config=lambda: self._config,
            is_draining=lambda: self._draining,
            started_at=self._now(),
        )
        self._metrics.watch(
            gauges=self._standing.gauges, store_bytes=lambda: self._upkeep.used, store_limit=lambda: self._upkeep.limit
        )

    def _make_notifier(self) -> Notifier:
        notifier = Notifier(
            self._store,
            count=self._metrics.event_received,
            held=self._store.pending,
            last_event=self._metrics.last_event,
            now=self._now,
            pace=self._pace,
        )
        notifier.configure(self._config.sources, self._config.routes)
        notifier.remember(self._store.silences_told())
        return notifier

    def _destinations(self) -> Destinations:
        """Where a replayed event may go, by the config as it is now."""
        return Destinations(self._dispatcher.targets, self._config.routes)

    def _doubt_clock(self) -> None:
        self._upkeep.doubt_clock()

    async def _clock_set_back(self) -> None:
        self._metrics.clock_set_back()
        self._notifier.clock_set_back()
        self._outbound.enrichment.clock_set_back()
        await self._dispatcher.clock_set_back()

    def _writer_ended(self, _: "asyncio.Task[None]") -> None:
        """Without its writing task the store is dead; a process that cannot store must not look alive."""
        if not self._draining:
            log.critical("store.unavailable", reason="the writing task has ended by a fault of ours")
            self._fail()

    def _hide_token(self, token: str) -> None:
        if self._pipe is not None and hideable_token(token):
            self._pipe.hide_for_now(token)

    async def _listen(self) -> None:
        server, admin = self._config.server, self._config.admin
        certificate = None if server.tls is None else Certificate(tls_context(server.tls.cert, server.tls.key))
        room = rooms_for(self._config)
        self._hooks = await Listener.open(
            "hooks",
            self._ingress.handle,
            server.listen.host,
            server.listen.port,
            header_timeout=server.header_timeout,
            room=room.hooks,
            tls=None if certificate is None else certificate.context,
        )
        self._streams = StreamCalls(self._store.following, is_held=self._standing.holds, now=self._now, room=room.admin)
        behind = Behind(
            self._store,
            self._dispatcher,
            self._replayer,
            self._refusals,
            self._upkeep,
            self._standing,
            config=lambda: self._config,
            reload=self._reload,
            now=self._now,
        )
        calls = Admin(
            self._dispatcher,
            self._store,
            TargetCalls(self._dispatcher, self._store, self._store.archive, waiting=self._store.waiting, now=self._now),
            token=admin.token,
            hosts=frozenset({admin.listen.host_name}),
            unready=self._standing.unready,
            render_metrics=self._standing.render,
            calls=(*calls_over(behind), *self._streams.calls()),
        )
        self._admin = await Listener.open(
            "admin",
            calls.handle,
            admin.listen.host,
            admin.listen.port,
            header_timeout=server.header_timeout,
            room=room.admin,
            refuse=refuse,
        )
        self._metrics.watch(crowds={"hooks": self._hooks.crowd, "admin": self._admin.crowd})
        parts = Parts(
            self._dispatcher,
            self._ingress,
            calls,
            (self._hooks, self._admin),
            certificate,
            self._metrics,
            self._notifier,
            self._pipe,
            self._outbound,
            self._store.waiting,
            self._store.last_received,
            self.speaker,
        )
        self._reloading = Reloading(self._config, parts, environ=self._environ, adopt=self._adopt)

    def _adopt(self, config: Config) -> None:
        """What is read of the config when it is needed, as retention and `drain_timeout`, is the new one's."""
        self._config = config
        self._standing.loaded(self._now())

    async def _reload(self) -> dict[str, object]:
        return await self._reloading.reload_for_api()

    def heed_reloads(self, asked: asyncio.Event) -> None:
        """Reload each time that it is asked; what is asked while one is under way is one more."""
        self._dispatcher.look_after("config reload", lambda: self._reloading.reload_whenever(asked))

    def watch_config(self) -> None:
        """Reload by itself when the content of the config's files changes."""
        watch = Watch(self._reloading, is_ready=lambda: self._store.condition().writable)
        self._dispatcher.look_after("config watch", watch.run)

    async def stop(self) -> None:
        """Close the port, finish requests, give attempts under way `drain_timeout`, record it all, close the store.
        What is not done in time is left: it waits for a disk that does not answer."""
        self._draining = True
        self._ingress.drain()
        if self._hooks is not None:
            self._hooks.stop_accepting()
        down = asyncio.create_task(self._closing.aclose(), name="taking down")
        limit = self._config.server.drain_timeout + STOP_MARGIN
        if not (await asyncio.wait({down}, timeout=limit.total_seconds()))[0]:
            self._stuck = True
            return
        await down

    @property
    def is_stuck(self) -> bool:
        """Whether the disk did not let go at the stop: the process can then only be left at once."""
        return self._stuck

    async def _close_store(self) -> None:
        self._stuck = await self._store.close() is False

    async def _close_admin(self) -> None:
        if self._admin is not None:
            self._admin.stop_accepting()
            self._streams.end()  # only now: whoever comes back at once must not find a stream again
            await self._admin.close()

    async def _finish_work(self) -> None:
        """Let requests and attempts under way finish at the same time, each as long as it may take."""
        server = self._config.server
        works = [self._dispatcher.stop(server.drain_timeout)]
        if self._hooks is not None:
            works.append(self._hooks.close(min(server.body_timeout + COMMIT, LONGEST_FINISH).total_seconds()))
        await asyncio.gather(*works)
        if not self._store.condition().writable:
            return  # a disk that hangs must not keep the process for what was turned away
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS.total_seconds()):
                await self._refusals.flush()

    async def run_until(self, asked: asyncio.Event) -> int:
        """Serve until asked to stop or unable to go on; returns the exit code."""
        waits = [asyncio.create_task(asked.wait()), asyncio.create_task(self._ended.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self.stop()
        return FAILURE if self._failed else FINE

    def _fail(self) -> None:
        self._failed = True
        self._ended.set()
