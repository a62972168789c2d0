"""The whole relay tells of itself: what goes out, to whom, and that nobody else can say it."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay.app import App
from relay.config import Config
from relay.notices import Pace
from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, TARGETS, Gateway, Target, running, until
from tests.http.outages import fill

QUICK = Pace(every=timedelta(milliseconds=200), look=timedelta(milliseconds=20))
CRM = {"url": "${TARGET}", "retry": {"schedule": ["100ms", "100ms"]}, "probe": "never"}
NEWS = {"name": "news", "from": ["relay"], "to": ["ops", "crm"]}

Relay = Callable[..., contextlib.AbstractAsyncContextManager[Gateway]]


@pytest.fixture
async def ops() -> AsyncIterator[Target]:
    """The target that is told."""
    far = Target()
    await far.start()
    yield far
    await far.stop()


@pytest.fixture
def relay(tmp_path: Path, target: Target, ops: Target) -> Relay:
    """Runs a relay whose `crm` is the usual far target, with `ops` beside it."""

    def run(
        news: dict[str, Any] | None = NEWS, *, make: Callable[..., App] = App, **crm: object
    ) -> contextlib.AbstractAsyncContextManager[Gateway]:
        routes = [{"name": "all", "from": ["open"], "to": ["crm"]}, *([news] if news else [])]
        targets = {"crm": CRM | crm, "ops": {"url": "${OPS}", "retry": {"schedule": ["100ms"]}}}
        text = document({"open": SOURCES["open"]}, targets=targets, routes=routes)
        return running(tmp_path, text, target, make=make, OPS=ops.url)

    return run


def kinds(relay: Gateway) -> list[str]:
    """The types of the stored events of the source `relay`."""
    return [type_ for source, type_, _ in relay.stored() if source == "relay"]


@pytest.mark.row("B29")
async def test_a_target_that_fails_is_told_to_another_and_never_to_itself(
    relay: Relay, target: Target, ops: Target
) -> None:
    """Three failures, one message: a normal event, stored, counted, logged, delivered, and not to its own subject."""
    target.status = 500
    async with relay() as gateway:
        await gateway.post("/hooks/open", b'{"type": "paid"}')
        told = await ops.next()
        assert (told["relay-source"], told["relay-event-type"]) == ("relay", "target.disabled")
        assert (told["content-type"], told["relay-hops"], told["relay-verified"]) == ("application/json", "1", None)
        message = json.loads(told.body)
        assert message["message"] == "Target crm is disabled (status 500); it holds 1 delivery."
        (note,) = message["notes"]
        assert (note["target"], note["disabled_by"], note["failures"], note["held"]) == ("crm", "failures", 3, 1)
        (line,) = [line for line in await gateway.log("event.accepted") if line["source"] == "relay"]
        assert (line["type"], line["event_id"], line["count"]) == ("target.disabled", told["relay-event-id"], 1)
        assert gateway.counted("relay") == {"accepted": 1}
        assert gateway.rows("SELECT id, routes IS NOT NULL FROM event WHERE source = 'relay'") == [
            (told["relay-event-id"], 1)
        ]
        target.status = 200
        await gateway.app._dispatcher.enable("crm")
        enabled = await ops.next(2)
        assert json.loads(enabled.body)["type"] == "target.enabled"
        carried = "SELECT DISTINCT target FROM delivery JOIN event ON seq = event_seq WHERE source = 'relay'"
        assert gateway.rows(carried) == [("ops",)]


async def test_a_message_is_sent_again_like_any_event(relay: Relay, ops: Target) -> None:
    """The one who is told may be away for a moment."""
    ops.status = 500
    async with relay() as gateway:
        gateway.app._notifier.nearly_full(81, 100)
        first = await ops.next()
        ops.status = 200
        again = await ops.next(2)
        assert (again["relay-event-id"], again["relay-attempt"]) == (first["relay-event-id"], "2")
        assert again.body == first.body


async def test_a_dead_delivery_is_told(relay: Relay, target: Target, ops: Target) -> None:
    """What was given up is kept, and somebody hears of it."""
    target.status = 500
    async with relay(retry={"schedule": []}, disable_after="never") as gateway:
        event_id = (await gateway.post("/hooks/open", b'{"type": "paid"}')).json["id"]
        (note,) = json.loads((await ops.next()).body)["notes"]
        assert (note["event_id"], note["target"], note["source"], note["status"]) == (event_id, "crm", "open", 500)
        assert note["reason"] == (await gateway.told("delivery.dead"))["reason"]
        assert kinds(gateway) == ["delivery.dead"]


async def test_nobody_can_post_as_the_relay(relay: Relay) -> None:
    """The built-in source has no path and no section."""
    async with relay() as gateway:
        assert (await gateway.post("/hooks/relay", b"{}")).status == 404
        assert gateway.stored() == []


async def test_without_a_route_nothing_is_stored_and_nothing_counted(relay: Relay, target: Target) -> None:
    """Who wants no news gets no store full of it; the log has it all the same."""
    target.status = 500
    async with relay(None) as gateway:
        await gateway.post("/hooks/open", b'{"type": "paid"}')
        await gateway.told("target.disabled")
        gateway.app._notifier.reload_refused(["a problem"])
        await gateway.log()
        assert kinds(gateway) == []
        assert not [labels for _, labels in await gateway.metrics() if ("source", "relay") in labels]


async def test_the_relay_is_a_source_in_the_numbers_where_a_route_takes_it(relay: Relay) -> None:
    """From the start, with zeros, like any source of the config."""
    async with relay() as gateway:
        labels = (("result", "accepted"), ("source", "relay"))
        assert (await gateway.metrics())["relay_events_received_total", labels] == 0


async def test_a_message_waits_for_a_store_that_takes_nothing(relay: Relay, ops: Target) -> None:
    """An outage loses no note: it is gathered again and goes with what came meanwhile."""
    async with relay(make=partial(App, pace=QUICK)) as gateway:
        await fill(gateway)
        assert (await gateway.post("/hooks/open", bytes(500_000))).status == 503
        gateway.app._notifier.reload_refused(2)
        gateway.app._notifier.reload_refused(3)
        await until(lambda: sum(json.loads(arrival.body)["count"] for arrival in ops.arrivals) == 2)
        assert set(kinds(gateway)) == {"config.reload_refused"}


async def test_a_full_store_keeps_nobody_from_being_told(relay: Relay, ops: Target) -> None:
    """What others send is refused; that the store is full goes out at once."""
    async with relay() as gateway:
        gateway.app._store.bar("full: for a test")
        gateway.app._notifier.nearly_full(100, 100)
        assert json.loads((await ops.next()).body)["type"] == "store.nearly_full"


async def test_a_stop_sends_what_is_gathered(relay: Relay, ops: Target) -> None:
    """What waits for its minute is stored at the stop and delivered after the next start."""
    async with relay() as gateway:
        gateway.app._notifier.nearly_full(81, 100)
        await ops.next()
        gateway.app._notifier.nearly_full(82, 100)
        gateway.app._notifier.nearly_full(83, 100)
        assert len(kinds(gateway)) == 1
    async with relay():
        await until(lambda: len({arrival["relay-event-id"] for arrival in ops.arrivals}) == 2)
        last = json.loads(ops.arrivals[-1].body)
        assert (last["count"], [note["bytes"] for note in last["notes"]]) == (2, [82, 83])


async def test_a_silent_source_is_told_once_until_it_is_heard_again(relay: Relay, ops: Target) -> None:
    """In the log and as a message; the next event ends it, and after a restart the store remembers it."""

    def impatient(config: Config, **how: Any) -> App:
        sources = tuple(dataclasses.replace(one, expect_every=timedelta(milliseconds=150)) for one in config.sources)
        return App(dataclasses.replace(config, sources=sources), pace=QUICK, **how)

    async with relay(make=impatient) as gateway:
        line = await gateway.told("source.silent")
        assert (line["level"], line["source"], line["last_event_at"]) == ("warning", "open", None)
        first = json.loads((await ops.next()).body)
        assert (first["type"], first["notes"][0]["source"]) == ("source.silent", "open")
        await gateway.post("/hooks/open", b'{"type": "paid"}')
        heard = json.loads((await ops.next(2)).body)["notes"][0]["last_event_at"]
        assert abs(datetime.fromisoformat(heard) - datetime.now(UTC)) < timedelta(minutes=1)
        assert len(await gateway.log("source.silent")) == 2
    async with relay(make=impatient) as gateway:  # the same silence: told before this start, it is not told again
        await until(lambda: gateway.app._notifier._expected["open"].told is not None)
        await gateway.post("/hooks/open", b'{"type": "paid"}')
        remembered = (await gateway.told("source.silent"))["last_event_at"]
        assert datetime.fromisoformat(remembered) > datetime.fromisoformat(heard)
        assert len(await gateway.log("source.silent")) == 1


async def test_a_refused_reload_is_told_and_a_new_route_is_heeded(relay: Relay, ops: Target) -> None:
    """The number of problems goes out, not the lines of the file; routes of before the refusal still hold."""
    async with relay() as gateway:
        whole = gateway.config.read_text()
        gateway.config.write_text(whole + "colour: red\n")
        assert (await gateway.call("/api/v1/reload", method="POST", headers=AUTH)).status == 422
        told = json.loads((await ops.next()).body)
        assert (told["type"], told["notes"][0]["problems"]) == ("config.reload_refused", 1)
        assert "colour" not in json.dumps(told)
        gateway.config.write_text(whole.replace("- relay\n", "- open\n"))
        assert (await gateway.call("/api/v1/reload", method="POST", headers=AUTH)).status == 200
        assert (await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)).status == 200
        assert await gateway.log("target.disabled")
        assert kinds(gateway) == ["config.reload_refused"]
