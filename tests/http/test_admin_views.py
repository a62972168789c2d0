"""What the admin listener shows, and how it steers the targets."""

import asyncio
import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.http.configs import SOURCES
from tests.http.gateway import AUTH, JSON, SECRET, TARGETS, TOKEN, Gateway, Start, assert_problem
from tests.http.outages import fill, locked
from tests.support.store_hangs import hanging


async def test_a_target_is_shown_disabled_and_enabled(gateway: Gateway) -> None:
    """What it is sent meanwhile is held, and leaves when it is enabled. Both are told, and shown by the metric."""
    (shown,) = (await gateway.call(TARGETS, headers=AUTH)).json["targets"]
    assert shown == {
        "name": "crm",
        "configured": True,
        "state": "active",
        "disabled_by": None,
        "reason": "",
        "since": shown["since"],
        "failures": 0,
        "paced": False,
        "counted_events": [],
        "held": 0,
        "pending": 0,
        "in_flight": 0,
        "dead": 0,
        "oldest_pending_at": None,
        "throttled_until": None,
        "next_probe_at": None,
        "attempts_last_hour": 0,
        "success_rate": None,
    }
    body = b'{"reason": "they move house"}'
    answer = await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=JSON, body=body)
    assert answer.json.items() >= {"state": "disabled", "disabled_by": "by hand", "reason": "they move house"}.items()
    line = await gateway.told("target.disabled")
    assert (line["level"], line["target"], line["reason"], line["held"]) == ("warning", "crm", "they move house", 0)
    assert (await gateway.post("/hooks/open")).status == 200
    (shown,) = (await gateway.call(TARGETS, headers=AUTH)).json["targets"]
    assert (shown["state"], shown["held"], shown["pending"]) == ("disabled", 1, 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["oldest_pending_at"])
    samples = await gateway.metrics()
    assert samples["relay_target_disabled", (("target", "crm"),)] == 1
    assert samples["relay_deliveries", (("state", "held"), ("target", "crm"))] == 1
    assert gateway.target.arrivals == []
    answer = await gateway.call(f"{TARGETS}/crm/enable", method="POST", headers=JSON)
    assert (answer.json["state"], answer.json["held"]) == ("active", 0)
    await gateway.target.next()
    assert (await gateway.told("target.enabled"))["target"] == "crm"


@pytest.mark.parametrize("state", ["active", "disabled"])
async def test_a_test_request_goes_out_and_touches_nothing(gateway: Gateway, state: str) -> None:
    """Neither state nor count, whatever the target says; no event is stored."""
    if state == "disabled":
        await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)
    before = gateway.app._dispatcher.health("crm")
    for status, outcome in ((200, "delivered"), (500, "failed"), (410, "gone")):
        gateway.target.status = status
        answer = await gateway.call(f"{TARGETS}/crm/test", method="POST", headers=AUTH)
        assert answer.json.items() >= {"target": "crm", "outcome": outcome, "status": status}.items()
    assert (gateway.target.arrivals[0]["relay-event-type"], gateway.stored()) == ("relay.test", [])
    assert gateway.app._dispatcher.health("crm") == before


@pytest.mark.slow
@pytest.mark.row("H62", "H55")
async def test_steering_while_the_store_is_out_is_503(gateway: Gateway) -> None:
    """And changes nothing."""
    async with locked(gateway):
        answer = await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)
    assert_problem(answer, 503)
    assert answer["retry-after"] == "2"
    assert gateway.app._dispatcher.health("crm").state == "active"


@pytest.mark.row("H62")
async def test_readiness_tells_of_an_outage_of_the_store_and_of_its_end(gateway: Gateway) -> None:
    """Reason codes only; being alive is another question."""
    await fill(gateway)
    assert (await gateway.post("/hooks/open", bytes(500_000))).status == 503
    answer = await gateway.call("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "unready", "reasons": ["store_unavailable"]})
    assert (await gateway.call("/healthz")).status == 200
    assert (await gateway.call("/metrics", headers=AUTH)).status == 200
    async with asyncio.timeout(10):
        while (await gateway.call("/readyz")).status != 200:
            pass


@pytest.mark.row("H62")
async def test_readiness_tells_of_a_drain(gateway: Gateway) -> None:
    """The mark that a stop sets first."""
    gateway.app._draining = True
    assert (await gateway.call("/readyz")).json == {"status": "unready", "reasons": ["draining"]}


@pytest.mark.row("H62")
async def test_readiness_says_nothing_of_slow_or_disabled_targets(gateway: Gateway) -> None:
    """Sending webhooks elsewhere would not help."""
    gateway.target.status = 500
    await gateway.post("/hooks/open")
    await gateway.target.next()
    await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)
    assert (await gateway.call("/readyz")).json == {"status": "ready"}


@pytest.mark.row("H62", "T32")
async def test_the_metrics_parse_and_their_labels_come_from_the_config(start: Start) -> None:
    """Whatever was sent, under whatever name."""
    relay = await start()
    await relay.post("/hooks/stranger-1", headers={"X-Source": "stranger-2"})
    await relay.post("/hooks/key", b"{}", {"X-Key": "stranger-3"})
    await relay.post("/hooks/key", b"{}", {"X-Key": SECRET.decode()})
    await relay.post("/hooks/open", b'{"type": "stranger-4", "id": 1}')
    await relay.post("/hooks/open", b'{"type": "stranger-4", "id": 1}')
    await relay.raw(b"STRANGER-5 / HTTP/1.1\r\n\r\n")
    await relay.target.next(2)
    answer = await relay.call("/metrics", headers=AUTH)
    assert answer["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    known = {
        "source": set(SOURCES),
        "target": {"crm"},
        "result": {"accepted", "unrouted", "duplicate", "refused", "challenged"},
        "outcome": {"delivered", "throttled", "refused", "failed", "unreachable", "gone", "unprepared", "interrupted"},
        "state": {"pending", "held", "in_flight", "dead"},
        "listener": {"hooks", "admin"},
    }
    for family in families.values():
        for sample in family.samples:
            for label in sample.labels.keys() - {"le", "version"}:
                assert sample.labels[label] in known[label]
    samples = await relay.metrics()
    received = {key[1]: value for key, value in samples.items() if key[0] == "relay_events_received_total" and value}
    assert received == {
        (("result", "refused"), ("source", "key")): 1,
        (("result", "accepted"), ("source", "key")): 1,
        (("result", "accepted"), ("source", "open")): 1,
        (("result", "duplicate"), ("source", "open")): 1,
    }
    assert samples["relay_ingest_duration_seconds_count", (("source", "key"),)] == 2
    assert samples["relay_store_bytes", ()] > 0
    documented = {
        "relay_events_received",
        "relay_ingest_duration_seconds",
        "relay_delivery_attempts",
        "relay_delivery_duration_seconds",
        "relay_delivery_latency_seconds",
        "relay_deliveries",
        "relay_oldest_pending_seconds",
        "relay_target_disabled",
        "relay_store_commit_seconds",
        "relay_log_dropped",
        "relay_source_last_event_timestamp_seconds",
        "relay_store_bytes",
        "relay_store_limit_bytes",
        "relay_build_info",
    }
    assert documented <= families.keys()


@pytest.mark.row("T12", "T30")
async def test_the_admin_shows_no_secret(gateway: Gateway) -> None:
    """Not of a source, not of a target, not its own; every object is JSON."""
    await gateway.post("/hooks/key", b"{}", {"X-Key": SECRET.decode()})
    await gateway.target.next()
    for path in (TARGETS, "/metrics", "/readyz", "/healthz"):
        answer = await gateway.call(path, headers=AUTH)
        for secret in (SECRET.decode(), TOKEN, gateway.target.url):
            assert secret not in answer.body.decode()
        if path != "/metrics":
            json.loads(answer.body)


async def test_a_loop_that_failed_is_a_reason_not_to_be_ready(gateway: Gateway) -> None:
    """A fault of ours in a delivery loop, which is restarted: it is told, and the event arrives all the same."""
    claim = gateway.app._store.claim

    async def broken(*_: object, **__: object) -> None:
        gateway.app._store.claim = claim  # type: ignore[method-assign]
        raise RuntimeError("a bug that was planted")

    gateway.app._store.claim = broken  # type: ignore[assignment,method-assign]
    gateway.app._dispatcher.wake(["crm"])  # or its lane would ask at its next look by itself
    assert (await gateway.post("/hooks/open", b"{}")).status == 200
    assert (await gateway.told("delivery.loop_failed"))["target"] == "crm"
    answer = await gateway.call("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "unready", "reasons": ["delivery_loop_failed"]})
    await gateway.target.next()


@pytest.mark.slow
@pytest.mark.row("F7")
async def test_a_stop_does_not_wait_for_a_disk_that_hangs_with_refusals_to_store(start: Start) -> None:
    """What was turned away a moment ago is not worth the process: it is left in time, and the store is said to hang."""
    gateway = await start()
    async with hanging(gateway.app._store):
        assert (await gateway.post("/hooks/key", b"{}")).status == 401
        async with asyncio.timeout(20):
            await gateway.app.stop()
        assert gateway.app.is_stuck
    closing = gateway.app._store._closing
    assert closing is not None
    await closing
