"""The numbers Relay keeps of itself, in Prometheus' text format.

Law: labels come from the config alone, whatever strangers send; observing costs about a microsecond, because every
child is made beforehand; and a scrape costs the same with a million rows as with none, because gauges are kept by
their owners and only read here.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay.accepting import Crowd
from relay.model import OUTCOMES, DeliveryState, OutcomeKind
from relay.telemetry.tallies import Counts, Spreads

FETCHES = ("fetched", "refused", "throttled", "failed")
"""What comes of a fetch."""
RESULTS = ("accepted", "unrouted", "duplicate", "refused", "challenged")
NO_EVENTS = frozenset({"refused", "challenged"})
"""Results that are no event of the source."""
"""What became of a received event."""

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ATTEMPT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
_LATENCY = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 3 * 24 * 3600)


@dataclass(frozen=True, slots=True)
class TargetGauges:
    """What is kept of one target's deliveries; `pending` does not count what is held."""

    target: str
    pending: int = 0
    held: int = 0
    in_flight: int = 0
    dead: int = 0
    oldest_pending_at: datetime | None = None
    """When the oldest event that is pending or held was received."""
    disabled: bool = False


def _no_gauges() -> Iterable[TargetGauges]:
    return ()


def _zero() -> int:
    return 0


class _Kept(Collector):
    """Reads, at a scrape, the numbers that others keep."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.targets: tuple[str, ...] = ()
        self.gauges: Callable[[], Iterable[TargetGauges]] = _no_gauges
        self.store_bytes: Callable[[], int] = _zero
        self.store_limit: Callable[[], int] = _zero
        self.log_dropped: Callable[[], int] = _zero
        self.http_malformed: Callable[[], int] = _zero
        self.crowds: Mapping[str, Crowd] = {}

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads no number."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The kept numbers, for every configured target, and for one that left the config and still has deliveries."""
        kept = {gauges.target: gauges for gauges in self.gauges()}
        deliveries = GaugeMetricFamily("relay_deliveries", "Deliveries by state.", labels=("target", "state"))
        oldest = GaugeMetricFamily(
            "relay_oldest_pending_seconds",
            "Time since the oldest event that waits for a target, held or not, was received.",
            labels=("target",),
        )
        disabled = GaugeMetricFamily("relay_target_disabled", "1 while a target is disabled.", labels=("target",))
        now = self.now()
        for target in dict.fromkeys((*self.targets, *kept)):  # the config may have lost one that still has deliveries
            gauges = kept.get(target) or TargetGauges(target)
            deliveries.add_metric((target, DeliveryState.PENDING), max(0, gauges.pending))
            deliveries.add_metric((target, "held"), max(0, gauges.held))
            deliveries.add_metric((target, DeliveryState.IN_FLIGHT), max(0, gauges.in_flight))
            deliveries.add_metric((target, DeliveryState.DEAD), max(0, gauges.dead))
            since = gauges.oldest_pending_at
            oldest.add_metric((target,), 0.0 if since is None else max(0.0, now - since.timestamp()))
            disabled.add_metric((target,), int(gauges.disabled))
        yield from (deliveries, oldest, disabled)
        yield GaugeMetricFamily("relay_store_bytes", "Bytes that the store uses.", value=self.store_bytes())
        yield GaugeMetricFamily(
            "relay_store_limit_bytes", "Bytes that it may use, store.retention.max_size.", value=self.store_limit()
        )
        yield CounterMetricFamily(
            "relay_log_dropped", "Log lines that were not written, or read too late.", value=self.log_dropped()
        )
        yield CounterMetricFamily(
            "relay_http_malformed", "Requests that were no HTTP, refused by the parser.", value=self.http_malformed()
        )
        yield from self._connections()

    def _connections(self) -> Iterator[Metric]:
        """How crowded the listeners are."""
        by = ("listener",)
        now = GaugeMetricFamily("relay_http_connections", "Connections that are open.", labels=by)
        refused = CounterMetricFamily("relay_http_connections_refused", "Told that there are too many.", labels=by)
        closed = CounterMetricFamily("relay_http_connections_displaced", "Closed to make room.", labels=by)
        for listener, crowd in self.crowds.items():
            now.add_metric((listener,), crowd.open)
            refused.add_metric((listener,), crowd.refused)
            closed.add_metric((listener,), crowd.displaced)
        yield from (now, refused, closed)


class Metrics:
    """All metrics of one relay, in a registry of its own; others may add theirs to `registry`.

    A name that the config does not know is not counted: an attempt may still be under way for a target that a reload
    has just removed.
    """

    def __init__(self, version: str, *, now: Callable[[], float] = time.time) -> None:
        """`now` gives Unix seconds."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        source, target = ("source",), ("target",)
        self._now = now
        self._events = Counts("relay_events_received", "Webhooks by what became of them.", ("source", "result"))
        self._ingest = Spreads("relay_ingest_duration_seconds", "Request to answer.", _FAST, source)
        self._last_event = Gauge(
            "relay_source_last_event_timestamp_seconds", "Time of a source's last event.", source, registry=registry
        )
        self._attempts = Counts("relay_delivery_attempts", "Attempts by their outcome.", ("target", "outcome"))
        self._duration = Spreads("relay_delivery_duration_seconds", "Length of an attempt.", _ATTEMPT, target)
        self._latency = Spreads("relay_delivery_latency_seconds", "Receipt to delivery.", _LATENCY, target)
        self._commit = Spreads("relay_store_commit_seconds", "Length of a commit of the store.", _FAST)
        self._fetches = Counts("relay_enrichments", "Fetches by what came of them.", ("enricher", "outcome"))
        for one in (self._events, self._ingest, self._attempts, self._duration, self._latency, self._commit):
            registry.register(one)
        registry.register(self._fetches)
        self._insecure = Gauge(
            "relay_tls_insecure_targets", "Targets whose certificate is not checked.", registry=registry
        )
        self._reload = Gauge("relay_config_reload_success", "1 unless the last reload was refused.", registry=registry)
        self.config_taken()
        Gauge("relay_build_info", "The running version.", ("version",), registry=registry).labels(version).set(1)
        ProcessCollector(registry=registry)
        self._kept = _Kept(now)
        registry.register(self._kept)
        self._heard_of: frozenset[str] = frozenset()
        self._heard: dict[str, float] = {}

    def know(
        self, sources: Iterable[str], targets: Iterable[str], enrichers: Iterable[str] = (), *, insecure: int = 0
    ) -> None:
        """Take the names of a config: new ones are shown with zeros, those that are gone are shown no more; and of how
        many targets the certificate is not checked."""
        self._insecure.set(insecure)
        sources, targets = tuple(sources), tuple(targets)
        for gone in self._heard_of - set(sources):
            self._last_event.remove(gone)
            self._heard.pop(gone, None)
        self._heard_of = frozenset(sources)
        for name in sources:
            self._last_event.labels(name).set_function(partial(self._heard_at, name))
        self._events.know((name, one) for name in sources for one in RESULTS)
        self._ingest.know((name,) for name in sources)
        self._attempts.know((name, one) for name in targets for one in OUTCOMES)
        self._duration.know((name,) for name in targets)
        self._latency.know((name,) for name in targets)
        self._fetches.know((name, one) for name in enrichers for one in FETCHES)
        self._kept.targets = targets

    def watch(
        self,
        *,
        gauges: Callable[[], Iterable[TargetGauges]] | None = None,
        store_bytes: Callable[[], int] | None = None,
        store_limit: Callable[[], int] | None = None,
        log_dropped: Callable[[], int] | None = None,
        http_malformed: Callable[[], int] | None = None,
        crowds: Mapping[str, Crowd] | None = None,
    ) -> None:
        """Name who keeps the gauges; each is called at a scrape and must cost next to nothing. None changes nothing."""
        self._kept.gauges = gauges or self._kept.gauges
        self._kept.store_bytes = store_bytes or self._kept.store_bytes
        self._kept.store_limit = store_limit or self._kept.store_limit
        self._kept.log_dropped = log_dropped or self._kept.log_dropped
        self._kept.http_malformed = http_malformed or self._kept.http_malformed
        self._kept.crowds = crowds or self._kept.crowds

    def event_received(self, source: str, result: str) -> None:
        """Count a webhook; one that is an event, be it a known one, is also its source's last."""
        known = self._events.of.get((source, result))
        if known is None:
            return
        known.number += 1
        if result not in NO_EVENTS:
            self._heard[source] = self._now()

    def source_seen(self, source: str, at: datetime) -> None:
        """Set the time of a source's last event, as the store remembers it, unless a later one is known."""
        if source in self._heard_of:
            self._heard[source] = max(at.timestamp(), self._heard_at(source))

    def clock_set_back(self) -> None:
        """No source was heard later than now."""
        now = self._now()
        self._heard.update({source: min(at, now) for source, at in self._heard.items()})

    def last_event(self, source: str) -> datetime | None:
        """When the last event of a source came, duplicates included; None where none has."""
        at = self._heard.get(source)
        return None if at is None else datetime.fromtimestamp(at, UTC)

    def _heard_at(self, source: str) -> float:
        return self._heard.get(source, 0.0)

    def ingested(self, source: str, seconds: float) -> None:
        """Note how long a request took from its head to its answer."""
        known = self._ingest.of.get((source,))
        if known is not None:
            known.observe(seconds)

    def attempted(self, target: str, outcome: OutcomeKind, seconds: float) -> None:
        """Count an attempt and note how long it took."""
        known = self._attempts.of.get((target, outcome))
        if known is not None:
            known.number += 1
            self._duration.of[(target,)].observe(seconds if seconds > 0 else 0.0)

    def enriched(self, enricher: str, outcome: str) -> None:
        """Count a fetch."""
        known = self._fetches.of.get((enricher, outcome))
        if known is not None:
            known.number += 1

    def delivered(self, target: str, latency_seconds: float) -> None:
        """Note how long an event took from its receipt to its delivery."""
        known = self._latency.of.get((target,))
        if known is not None:
            known.observe(latency_seconds if latency_seconds > 0 else 0.0)

    def committed(self, seconds: float) -> None:
        """Note how long the store took for a commit."""
        self._commit.of[()].observe(seconds)

    def config_taken(self) -> None:
        """The config runs as it was last asked to."""
        self.is_config_taken = True
        self._reload.set(1)

    def config_refused(self) -> None:
        """A reload was refused: what runs is not what the file says."""
        self.is_config_taken = False
        self._reload.set(0)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)
