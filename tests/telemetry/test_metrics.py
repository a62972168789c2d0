"""The numbers, as Prometheus reads them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.model import OutcomeKind
from relay.telemetry.metrics import Metrics, TargetGauges

NOW = datetime(2026, 9, 20, 10, 15, 31, tzinfo=UTC)


def scraped(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scraped(metrics).get((name, tuple(sorted(labels.items()))))


class Numbers:
    """What is known of a listener's connections."""

    open, refused, displaced = 3, 2, 1


@pytest.fixture
def metrics() -> Metrics:
    """Two sources and two targets, at a fixed time."""
    made = Metrics("1.2.3", now=NOW.timestamp)
    made.know(["xoxoday", "partner"], ["crm", "books"], ["plugandpay"])
    made.watch(crowds={"hooks": Numbers()})
    return made


def test_every_metric_of_the_contract_is_there_with_zeros_from_the_start(metrics: Metrics) -> None:
    """A dashboard has all its series before the first event."""
    names = {name for name, _ in scraped(metrics)}
    assert {
        "relay_events_received_total",
        "relay_ingest_duration_seconds_bucket",
        "relay_delivery_attempts_total",
        "relay_delivery_duration_seconds_count",
        "relay_delivery_latency_seconds_sum",
        "relay_deliveries",
        "relay_oldest_pending_seconds",
        "relay_target_disabled",
        "relay_store_commit_seconds_count",
        "relay_log_dropped_total",
        "relay_source_last_event_timestamp_seconds",
        "relay_store_bytes",
        "relay_store_limit_bytes",
        "relay_build_info",
        "relay_http_malformed_total",
        "process_resident_memory_bytes",
    } <= names
    assert not any(name.endswith("_created") for name in names)
    assert value(metrics, "relay_events_received_total", source="partner", result="refused") == 0
    assert value(metrics, "relay_delivery_attempts_total", target="books", outcome="unreachable") == 0
    assert value(metrics, "relay_deliveries", target="books", state="held") == 0
    assert value(metrics, "relay_build_info", version="1.2.3") == 1


def test_what_is_received_is_counted_by_source_and_result(metrics: Metrics) -> None:
    """Only what was not refused moves the time of the source's last event."""
    metrics.event_received("partner", "refused")
    assert value(metrics, "relay_source_last_event_timestamp_seconds", source="partner") == 0
    metrics.event_received("partner", "accepted")
    metrics.ingested("partner", 0.003)
    assert value(metrics, "relay_events_received_total", source="partner", result="accepted") == 1
    assert value(metrics, "relay_events_received_total", source="partner", result="refused") == 1
    assert value(metrics, "relay_source_last_event_timestamp_seconds", source="partner") == NOW.timestamp()
    assert value(metrics, "relay_ingest_duration_seconds_bucket", source="partner", le="0.005") == 1
    metrics.source_seen("xoxoday", NOW - timedelta(hours=1))
    assert value(metrics, "relay_source_last_event_timestamp_seconds", source="xoxoday") == NOW.timestamp() - 3600


def test_when_a_source_was_heard_last_can_be_asked() -> None:
    """By whoever looks for silences: a refusal is no sign of life, a duplicate is one, and
    what the store remembers sets nothing back; who left the config is forgotten."""
    metrics = Metrics("1", now=NOW.timestamp)
    metrics.know(["partner"], [])
    metrics.event_received("partner", "refused")
    assert metrics.last_event("partner") is None
    metrics.source_seen("partner", NOW - timedelta(hours=1))
    assert metrics.last_event("partner") == NOW - timedelta(hours=1)
    metrics.event_received("partner", "duplicate")
    assert metrics.last_event("partner") == NOW
    metrics.source_seen("partner", NOW - timedelta(hours=1))
    assert metrics.last_event("partner") == NOW
    metrics.know([], [])
    metrics.know(["partner"], [])
    assert metrics.last_event("partner") is None


def test_what_is_sent_is_counted_by_target_and_outcome(metrics: Metrics) -> None:
    """Attempts, their length, the way from receipt to delivery, and the store's commits."""
    metrics.attempted("crm", OutcomeKind.FAILED, 0.2)
    metrics.delivered("crm", 90.0)
    metrics.committed(0.002)
    assert value(metrics, "relay_delivery_attempts_total", target="crm", outcome="failed") == 1
    assert value(metrics, "relay_delivery_duration_seconds_sum", target="crm") == 0.2
    assert value(metrics, "relay_delivery_latency_seconds_bucket", target="crm", le="300.0") == 1
    assert value(metrics, "relay_store_commit_seconds_count") == 1


def test_labels_come_from_the_config_alone(metrics: Metrics) -> None:
    """A name or result that nobody configured is neither counted nor shown, and raises nothing."""
    before = scraped(metrics)
    metrics.event_received("evil\n", "accepted")
    metrics.event_received("partner", "hacked")
    metrics.ingested("evil", 1)
    metrics.source_seen("evil", NOW)
    metrics.attempted("evil", OutcomeKind.FAILED, 1)
    metrics.delivered("evil", 1)
    after = scraped(metrics)
    moving = {key for key in before if key[0].startswith("process_")}
    assert {key: number for key, number in after.items() if key not in moving} == {
        key: number for key, number in before.items() if key not in moving
    }


def test_a_target_that_left_the_config_is_shown_while_it_has_deliveries(metrics: Metrics) -> None:
    """What is held for it is not to be forgotten; it is the store that names it."""
    metrics.watch(gauges=lambda: [TargetGauges("gone", held=3, disabled=True)])
    assert value(metrics, "relay_deliveries", target="gone", state="held") == 3
    assert value(metrics, "relay_deliveries", target="crm", state="held") == 0


def test_a_reload_keeps_what_stays_and_forgets_what_is_gone(metrics: Metrics) -> None:
    """Counters of names that stay go on; those of names that are gone disappear."""
    metrics.event_received("partner", "accepted")
    metrics.know(["partner", "new"], ["crm"])
    assert value(metrics, "relay_events_received_total", source="partner", result="accepted") == 1
    assert value(metrics, "relay_events_received_total", source="new", result="accepted") == 0
    assert not [key for key in scraped(metrics) if ("source", "xoxoday") in key[1] or ("target", "books") in key[1]]
    metrics.attempted("books", OutcomeKind.DELIVERED, 1)
    assert value(metrics, "relay_delivery_attempts_total", target="books", outcome="delivered") is None


def test_gauges_are_read_from_who_keeps_them(metrics: Metrics) -> None:
    """States, age and disabling of a target; the store's size; what the log and the parser dropped."""
    kept = [
        TargetGauges(
            "crm", pending=4, held=3, in_flight=2, dead=1, oldest_pending_at=NOW - timedelta(minutes=2), disabled=True
        )
    ]
    metrics.watch(gauges=lambda: kept, store_bytes=lambda: 4096, store_limit=lambda: 8192)
    metrics.watch(log_dropped=lambda: 7, http_malformed=lambda: 9)
    for state, count in {"pending": 4, "held": 3, "in_flight": 2, "dead": 1}.items():
        assert value(metrics, "relay_deliveries", target="crm", state=state) == count
    assert value(metrics, "relay_oldest_pending_seconds", target="crm") == 120
    assert value(metrics, "relay_oldest_pending_seconds", target="books") == 0
    assert value(metrics, "relay_target_disabled", target="crm") == 1
    assert value(metrics, "relay_target_disabled", target="books") == 0
    assert value(metrics, "relay_store_bytes") == 4096
    assert value(metrics, "relay_store_limit_bytes") == 8192
    assert value(metrics, "relay_log_dropped_total") == 7
    assert value(metrics, "relay_http_malformed_total") == 9


@pytest.mark.row("B60")
def test_no_gauge_is_ever_negative(metrics: Metrics) -> None:
    """A miscount and a clock that was set back show as zero."""
    ahead = NOW + timedelta(hours=1)
    metrics.watch(gauges=lambda: [TargetGauges("crm", pending=-1, oldest_pending_at=ahead)])
    assert value(metrics, "relay_deliveries", target="crm", state="pending") == 0
    assert value(metrics, "relay_oldest_pending_seconds", target="crm") == 0


def test_the_readme_lists_every_metric_with_its_labels(metrics: Metrics) -> None:
    """The metrics reference is in step with the code, both ways."""
    chapter = (Path(__file__).parents[2] / "README.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([a-z_]+(?:\{[a-z,]+\})?)`", chapter, re.MULTILINE))
    shown = set()
    for family in text_string_to_metric_families(metrics.render().decode()):
        if family.name.startswith("relay_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            order = ("listener", "source", "target", "enricher", "result", "outcome", "state", "version")
            inside = ",".join(name for name in order if name in labels)
            name = f"{family.name}_total" if family.type == "counter" else family.name
            shown.add(f"{name}{{{inside}}}" if inside else name)
    assert listed == shown
