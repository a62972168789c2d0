"""Takes up another config while everything runs.

Law: a reload happens whole or not at all. What can fail comes first: the file is read and checked, the certificate
loaded, the senders made, the targets' healths stored. The rest happens within one turn of the loop and cannot fail, so
no request and no attempt ever sees half of a config. A refused one changes nothing and is told in one line.
"""

import asyncio
import concurrent.futures
import hashlib
import json
import resource
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

import structlog

from relay.admin import Admin, Problem
from relay.config import Changes, Config, ConfigRefused, Fingerprint, ServerSettings, changes, load, runnable
from relay.delivery.dispatcher import Dispatcher, Stopping
from relay.delivery.enrichment import AT_A_TIME, Enrichers
from relay.ingress import Ingress
from relay.intake import Limits
from relay.listener import Certificate, Listener, tls_context
from relay.model import Target
from relay.notices import Notifier, names_of
from relay.outbound import Outbound
from relay.rules.crowding import Rooms, rooms
from relay.rules.secrets import log_secrets
from relay.store import StoreUnavailable
from relay.store.opening import OpenStore
from relay.telemetry.logs import LogPipe, clip, set_format, set_level
from relay.telemetry.metrics import Metrics

READING = timedelta(seconds=30)
"""How long the files of a config may take; a disk or a pipe that hangs must not hold up the next reload for ever."""
MOST_TOLD = 20
"""Problems in a log line; the API tells them all."""

Result = TypeVar("Result")

log = structlog.get_logger()


class ReloadRefused(Exception):
    """Nothing was changed. `problems` are the config's own lines, none where the config is not to blame."""

    def __init__(self, reason: str, problems: Iterable[str] = ()) -> None:
        super().__init__(reason)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a reload changes."""

    dispatcher: Dispatcher
    ingress: Ingress
    admin: Admin
    listeners: tuple[Listener, ...]
    certificate: Certificate | None
    metrics: Metrics
    notifier: Notifier
    pipe: LogPipe | None
    outbound: Outbound
    waiting: Callable[[], Mapping[str, int]]
    """How many deliveries wait, by target."""
    last_received: Callable[[], Mapping[str, datetime]]
    """When each source was last heard, those that are not in the config too."""
    speaker: Mapping[str, str]
    """Which node it is, for whoever is told of a reload; empty where there is one at most."""


class Reloading:
    """Reloads one relay; one reload at a time."""

    def __init__(
        self,
        running: Config,
        parts: Parts,
        *,
        environ: Mapping[str, str],
        adopt: Callable[[Config], None],
    ) -> None:
        """`adopt` is told the config that runs from then on."""
        self._running = running
        self._parts = parts
        self._environ = environ
        self._adopt = adopt
        self._one_at_a_time = asyncio.Lock()
        self.seen: dict[Path, Fingerprint | None] = dict(running.files)
        """The files that the config was last read from, with what they held, whether it was taken up or refused."""

    async def reload(self) -> Changes:
        """Read the config's file again and take it up; returns what has changed.

        Raises:
            ReloadRefused: nothing has changed.
            StoreUnavailable: likewise; targets cannot be taken up now.
        """
        async with self._one_at_a_time:
            try:
                found = await self._take_up(await self._read())
            except (ReloadRefused, StoreUnavailable) as error:
                self._refused(str(error), getattr(error, "problems", ()))
                raise
            except Exception as error:
                self._refused("a fault of ours", exc_info=error)
                raise ReloadRefused("a fault of the relay's own; its log tells which") from error
            self._parts.metrics.config_taken()
            tell_warnings(self._running)
            self._tell_held(found.targets.removed)
            log.info("config.reloaded", **found.shown(), **self._parts.speaker)
            return found

    async def reload_whenever(self, asked: asyncio.Event) -> None:
        """Reload each time that it is asked, for ever."""
        while True:
            await asked.wait()
            asked.clear()
            with suppress(ReloadRefused, StoreUnavailable):  # told already
                await self.reload()

    async def reload_for_api(self) -> dict[str, object]:
        """What the API answers to a reload.

        Raises:
            Problem: it is refused; with all that is wrong where the config is to blame.
            StoreUnavailable: nothing has changed.
        """
        try:
            return {**(await self.reload()).shown(), **self._parts.speaker}
        except ReloadRefused as refused:
            extra = {"problems": list(refused.problems)} if refused.problems else None
            raise Problem(422 if refused.problems else 503, str(refused), extra=extra) from None

    async def _read(self) -> Config:
        path = self._running.path
        try:
            async with asyncio.timeout(READING.total_seconds()):
                wanted = await aside(partial(load, path, self._environ))
        except TimeoutError:
            raise ReloadRefused(f"{path} could not be read within {READING.total_seconds():g} s") from None
        except ConfigRefused as refused:
            self.seen |= refused.files
            raise _unfit(path, (problem.at(path) for problem in refused.problems)) from None
        return wanted

    async def _take_up(self, wanted: Config) -> Changes:
        parts, running = self._parts, self._running
        found, config = changes(running, wanted), runnable(running, wanted)
        served = self._load_certificate(wanted)
        try:
            enrichers = await self._deliver_by(config)
        except Stopping:
            raise ReloadRefused("the relay is stopping") from None
        except ssl.SSLError as error:  # changed since it was checked a moment ago
            raise ReloadRefused(f"a target's certificate cannot be used: {error.reason}") from None
        except OSError as error:  # no descriptor left for a resolver
            raise ReloadRefused(f"short of resources: {error.strerror or type(error).__name__}") from None
        if parts.certificate is not None and served is not None:
            parts.certificate.exchange(served)
        self._swap(config, enrichers)
        self.seen = dict(wanted.files)
        return found

    async def _deliver_by(self, config: Config) -> Enrichers:
        """Deliver to the targets of a config; returns what its enrichers are to be asked with, for the swap."""
        parts, running = self._parts, self._running
        enrichers = parts.outbound.prepared(config)
        try:
            await parts.dispatcher.change(
                config.targets,
                {target.name: digests(target) for target in config.targets},
                sender=lambda target: parts.outbound.sender(target, config.egress),
                rewired=() if config.egress == running.egress else [target.name for target in config.targets],
                patience=config.server.drain_timeout,
            )
        except BaseException:
            parts.outbound.discard(enrichers)
            raise
        return enrichers

    def _load_certificate(self, config: Config) -> ssl.SSLContext | None:
        files = config.server.tls
        if files is None or self._parts.certificate is None:
            return None
        try:
            return tls_context(files.cert, files.key)
        except OSError as error:  # changed since it was checked a moment ago
            reason = getattr(error, "reason", None) or error.strerror
            raise _unfit(config.path, [f"{config.path}: certificate {files.cert} cannot be used: {reason}"]) from None

    def _swap(self, config: Config, enrichers: Enrichers) -> None:
        """Let everything else go by the new config; nothing here waits or fails."""
        parts, running = self._parts, self._running
        if parts.pipe is not None:
            hide_secrets(parts.pipe, running, config)
            set_level(config.log.level)
            set_format(config.log.format)
        parts.outbound.change(config, enrichers)
        tell_names(parts.metrics, config)
        for source, at in parts.last_received().items():  # one that is back in the config was heard before
            parts.metrics.source_seen(source, at)
        parts.notifier.configure(config.sources, config.routes)
        parts.ingress.change(
            config.sources, config.routes, forwarded=forwarded(config.targets), limits=limits(config.server)
        )
        parts.admin.change(token=config.admin.token)
        room = rooms_for(config)
        for listener, own in zip(parts.listeners, (room.hooks, room.admin), strict=True):
            listener.change(header_timeout=config.server.header_timeout, room=own)
        self._running = config
        self._adopt(config)

    def _tell_held(self, removed: Iterable[str]) -> None:
        waiting = self._parts.waiting()
        for name in removed:
            if waiting.get(name):
                tell_unknown(name, waiting[name])

    def _refused(self, reason: str, problems: Sequence[str] = (), **fields: object) -> None:
        """Tell that nothing has changed, and why."""
        self._parts.metrics.config_refused()
        self._parts.notifier.reload_refused(problems)
        if problems:
            told = [clip(problem) for problem in problems[:MOST_TOLD]]
            more = len(problems) - len(told)
            fields["problems"] = [*told, f"and {more} more"] if more else told
        log.error("config.reload_refused", reason=reason, **fields)


def _unfit(path: Path, problems: Iterable[str]) -> ReloadRefused:
    lines = tuple(problems)
    number = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return ReloadRefused(f"{path} has {number}; the config of before runs on", lines)


def digests(target: Target) -> tuple[str, str]:
    """Digests of a target's URL and of its headers and other credentials: a change of either is worth a probe."""
    address, headers, *others = target.access
    settings = json.dumps(headers) + (repr(_plainly(tuple(others))) if any(others) else "")
    return tuple(hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in (str(address), settings))  # type: ignore[return-value]


def _plainly(value: object) -> object:
    """What a value is made of, secrets included, whose repr shows nothing."""
    if isinstance(value, tuple):
        return tuple(map(_plainly, value))
    if not is_dataclass(value):
        return value
    return type(value).__name__, tuple(_plainly(getattr(value, one.name)) for one in fields(value))


def limits(server: ServerSettings) -> Limits:
    """What one request may take."""
    return Limits(server.max_body, server.body_timeout, server.trusted_proxies)


def rooms_for(config: Config) -> Rooms:
    """How many connections the listeners may hold, by the config and by what the process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    requests = [target.concurrency for target in config.targets] + [AT_A_TIME] * len(config.enrichers)
    return rooms(None if limit == resource.RLIM_INFINITY else limit, requests, config.server.max_connections)


def forwarded(targets: Iterable[Target]) -> frozenset[str]:
    """What any target asks for of the headers that are left out by default."""
    return frozenset[str]().union(*(target.forward_headers for target in targets))


def tell_names(metrics: Metrics, config: Config) -> None:
    """Have everything counted that a config names."""
    metrics.know(
        names_of(config.sources, config.routes),
        (target.name for target in config.targets),
        (enricher.name for enricher in config.enrichers),
        insecure=sum(target.tls is not None and target.tls.insecure for target in config.targets),
    )


def hide_secrets(pipe: LogPipe, *configs: Config) -> None:
    """Keep every secret of these configs out of the log; what is under way may still tell of the one before."""
    sources = [source for config in configs for source in config.sources]
    targets = [target for config in configs for target in config.targets]
    targets += [enricher.as_target for config in configs for enricher in config.enrichers]
    pipe.hide(
        frozenset[str]().union(
            *(log_secrets(sources, targets, config.admin.token, config.store.passwords) for config in configs)
        )
    )


def tell_warnings(config: Config) -> None:
    """Tell what in a config is legal and risky."""
    for warning in config.warnings:
        log.warning("config.warning", reason=warning.at(config.path))


def tell_unknown(target: str, held: int) -> None:
    """Tell that deliveries wait for a target that the config does not name."""
    log.warning("target.unknown", target=target, held=held, reason="not in the config: held until it is back")


def tell_of_the_past(store: OpenStore, config: Config, metrics: Metrics, *, now: datetime) -> None:
    """Tell at a start what the store remembers and the config does not say: unsafe ground, deliveries of targets that
    are gone, and when each source was last heard."""
    if store.aside is not None:
        log.warning("store.set_aside", reason=f"--new-store: begun afresh, the old one is {store.aside}")
    if store.missing is not None:
        log.error("store.log_missing", reason=store.missing)
    unsafe = store.warning()
    if unsafe:
        log.warning("config.warning", reason=unsafe)
    configured = {target.name for target in config.targets}
    for name, held in store.waiting().items():
        if name not in configured:
            tell_unknown(name, held)
    for source, at in store.last_received().items():
        metrics.source_seen(source, min(at, now))


async def aside(call: Callable[[], Result]) -> Result:
    """Call in a thread of its own, which keeps no process alive where the call hangs."""
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)

    Thread(target=run, name="relay-config", daemon=True).start()
    return await asyncio.wrap_future(future)
