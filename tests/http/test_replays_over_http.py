"""Replays and discards through the admin API, against a real target."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, JSON, TARGETS, Arrival, Gateway, Start, Target, assert_problem, running, until
from tests.http.outages import locked

EVENTS, REPLAYS = "/api/v1/events", "/api/v1/replays"
ONCE = {"url": "${TARGET}", "retry": {"schedule": []}, "disable_after": "never"}
"""A target whose deliveries are dead after one refusal."""


@pytest.fixture
async def strict(start: Start) -> Gateway:
    """A relay whose target gets each event once."""
    return await start({"open": SOURCES["open"]}, targets={"crm": ONCE})


async def asked(gateway: Gateway, path: str, **body: Any) -> Any:
    """What a POST call answers; it must be 200."""
    answer = await gateway.call(path, method="POST", headers=JSON, body=json.dumps(body).encode())
    assert answer.status == 200, answer.body
    return answer.json


async def refused(gateway: Gateway, path: str, status: int, **body: Any) -> str:
    """The words with which a POST call is refused."""
    answer = await gateway.call(path, method="POST", headers=JSON, body=json.dumps(body).encode())
    return str(assert_problem(answer, status)["detail"])


async def posted(gateway: Gateway, **body: Any) -> str:
    """The id of an event that was accepted."""
    answer = await gateway.post("/hooks/open", json.dumps(body).encode())
    assert answer.status == 200
    return str(answer.json["id"])


async def dead(gateway: Gateway, number: int = 1) -> list[str]:
    """Events that the target has refused for good; it takes all that follows."""
    gateway.target.status = 400
    ids = [await posted(gateway, id=f"dead-{n}") for n in range(number)]
    await until(lambda: states(gateway) == {"dead": number})
    gateway.target.status = 200
    gateway.target.arrivals.clear()
    return ids


def states(gateway: Gateway) -> dict[str, int]:
    """How many deliveries are in which state."""
    return dict(gateway.rows("SELECT state, count(*) FROM delivery GROUP BY state"))


async def job_is(gateway: Gateway, job_id: str, state: str) -> Any:
    """The job, once it is in a state."""
    found: dict[str, Any] = {}
    async with asyncio.timeout(20):
        while found.get("state") != state:
            found = (await gateway.call(f"{REPLAYS}/{job_id}", headers=AUTH)).json
    return found


def sent(arrival: Arrival) -> tuple[str | None, str | None, str | None]:
    return arrival["relay-event-id"], arrival["relay-attempt"], arrival["relay-replay"]


@pytest.mark.row("H60", "B47")
async def test_a_dead_event_is_replayed(strict: Gateway) -> None:
    """The same bytes and id, marked, under the next number; told once. A second call finds nothing that had ended."""
    (event,) = await dead(strict)
    assert await asked(strict, f"{EVENTS}/{event}/replay") == {
        "event": event,
        "replayed": ["crm"],
        "waiting": [],
        "skipped": [],
    }
    arrival = await strict.target.next()
    assert (sent(arrival), arrival.body) == ((event, "2", "1"), b'{"id": "dead-0"}')
    line = await strict.told("event.replayed")
    assert (line["event_id"], line["source"], line["targets"]) == (event, "open", ["crm"])
    await until(lambda: states(strict) == {"delivered": 1})


@pytest.mark.row("B47")
async def test_a_delivered_event_is_replayed_though_its_key_is_known(strict: Gateway) -> None:
    """Dedupe turns away what a sender repeats, not what an operator asks for; and the key stays known."""
    event = await posted(strict, id=1)
    await until(lambda: states(strict) == {"delivered": 1})
    await asked(strict, f"{EVENTS}/{event}/replay", target="crm")
    assert sent(await strict.target.next(2)) == (event, "2", "1")
    assert (await strict.post("/hooks/open", b'{"id": 1}')).json == {"id": event, "duplicate": True}
    await until(lambda: states(strict) == {"delivered": 1})
    assert len(strict.target.arrivals) == 2


async def test_a_replay_has_a_fresh_schedule(start: Start) -> None:
    """What stood at the end of its schedule stands at its beginning; its attempts are numbered on."""
    tough = {"url": "${TARGET}", "retry": {"schedule": ["100ms"]}, "disable_after": "never"}
    relay = await start({"open": SOURCES["open"]}, targets={"crm": tough})
    relay.target.status = 400
    event = await posted(relay, id=1)
    await until(lambda: relay.rows("SELECT step, attempts > 1, state FROM delivery") == [(1, 1, "pending")])
    await asked(relay, f"{TARGETS}/crm/disable")
    await until(lambda: states(relay) == {"pending": 1})
    await asked(relay, f"{TARGETS}/crm/discard")
    ((last,),) = relay.rows("SELECT attempts FROM delivery WHERE state = 'dead' AND step = 1")
    await asked(relay, f"{EVENTS}/{event}/replay")
    row = "SELECT state, step, attempts, first_try_at, settled_at, reason FROM delivery"
    assert relay.rows(row) == [("pending", 0, last, None, None, None)]
    relay.target.arrivals.clear()
    relay.target.status = 200
    await asked(relay, f"{TARGETS}/crm/enable")
    assert sent(await relay.target.next()) == (event, str(last + 1), "1")


async def test_a_replay_to_a_disabled_target_is_held(strict: Gateway) -> None:
    """Until it is enabled; asked for again meanwhile it waits already."""
    (event,) = await dead(strict)
    await asked(strict, f"{TARGETS}/crm/disable")
    await asked(strict, f"{EVENTS}/{event}/replay")
    again = await asked(strict, f"{EVENTS}/{event}/replay")
    assert (again["replayed"], again["waiting"]) == ([], ["crm"])
    (shown,) = (await strict.call(TARGETS, headers=AUTH)).json["targets"]
    assert (shown["held"], shown["dead"]) == (1, 0)
    assert strict.target.arrivals == []
    await asked(strict, f"{TARGETS}/crm/enable")
    assert sent(await strict.target.next()) == (event, "2", "1")


async def test_an_unrouted_event_is_routed_anew_by_the_config_of_today(tmp_path: Path, target: Target) -> None:
    """The route that was missing is there now: alone, and as one of a filter's."""
    routes = [{"name": "none", "from": ["open"], "match": {"type": ["other"]}, "to": ["crm"]}]
    sources = {"open": SOURCES["open"]}
    async with running(tmp_path, document(sources, routes=routes), target) as relay:
        first, second, third = [await posted(relay, id=n, type="paid") for n in range(3)]
        assert (await asked(relay, f"{EVENTS}/{first}/replay"))["replayed"] == []
        made = await asked(relay, f"{EVENTS}/{first}/replay", target="crm")
        assert made["replayed"] == ["crm"]
        await target.next()
    async with running(tmp_path, document(sources), target) as relay:
        assert (await asked(relay, f"{EVENTS}/{second}/replay"))["replayed"] == ["crm"]
        await target.next(2)
        job = await asked(relay, REPLAYS, state="unrouted")
        assert (job["total"], job["filter"]) == (1, {"state": "unrouted"})
        await target.next(3)
        done = await job_is(relay, job["id"], "done")
        assert (done["done"], done["skipped"]) == (1, 0)
    assert [sent(one) for one in target.arrivals] == [(id_, "1", "1") for id_ in (first, second, third)]


async def test_a_filter_counts_first_then_replays_its_set(strict: Gateway) -> None:
    """A dry run does nothing. The job is shown while it runs and when it is done; beginning and end are told."""
    ids = await dead(strict, 5)
    dry = await asked(strict, REPLAYS, state="dead", since="1h", dry_run=True)
    assert dry == {"total": 5, "targets": {"crm": 5}, "dry_run": True}
    assert (await strict.call(REPLAYS, headers=AUTH)).json == {"replays": []}
    job = await asked(strict, REPLAYS, state="dead", since="1h", type="*", source="open", limit=4, rate="600/m")
    assert (job["state"], job["total"], job["rate"]) == ("running", 4, "600/m")
    await strict.target.next(4)
    done = await job_is(strict, job["id"], "done")
    assert done.items() >= {"total": 4, "done": 4, "skipped": 0, "reason": ""}.items()
    assert done["filter"].keys() == {"state", "since", "source", "type", "limit"}
    assert done["filter"]["since"] == job["filter"]["since"] < done["created_at"] <= done["ended_at"]
    assert sorted(sent(one) for one in strict.target.arrivals) == [(id_, "2", "1") for id_ in sorted(ids[:4])]
    assert (await strict.call(REPLAYS, headers=AUTH)).json == {"replays": [done]}
    assert (await strict.told("replay.started"))["total"] == 4
    line = await strict.told("replay.finished")
    assert (line["replay_id"], line["outcome"], line["replayed"]) == (job["id"], "done", 4)


@pytest.mark.row("H60")
async def test_a_job_is_paused_resumed_and_cancelled(strict: Gateway) -> None:
    """Its rate holds it up; paused or cancelled, nothing more is sent; what is over cannot be steered."""
    await dead(strict, 4)
    job = await asked(strict, REPLAYS, state="dead", rate="1/h")
    path = f"{REPLAYS}/{job['id']}"
    await strict.target.next()
    paused = await asked(strict, f"{path}/pause")
    assert paused.items() >= {"state": "paused", "done": 1, "reason": "by hand"}.items()
    assert await asked(strict, f"{path}/pause") == paused
    line = await strict.told("replay.paused")
    assert (line["level"], line["advice"]) == ("warning", f"relay replay --resume {job['id']}")
    resumed = await asked(strict, f"{path}/resume")
    assert (resumed["state"], resumed["reason"]) == ("running", "")
    await strict.target.next(2)
    cancelled = await asked(strict, f"{path}/cancel")
    assert cancelled.items() >= {"state": "cancelled", "done": 2, "total": 4}.items()
    await until(lambda: strict.rows("SELECT count(*) FROM replay_item") == [(0,)])
    for verb in ("pause", "resume"):
        assert "it is over: cancelled, 2 replayed" in await refused(strict, f"{path}/{verb}", 409)
    assert (await strict.told("replay.finished"))["outcome"] == "cancelled"
    assert len(strict.target.arrivals) == 2


async def test_jobs_run_side_by_side(strict: Gateway) -> None:
    """A slow one does not hold up another."""
    await dead(strict, 4)
    slow = await asked(strict, REPLAYS, state="dead", rate="1/d")
    await strict.target.next()
    fast = await asked(strict, REPLAYS, state="dead", rate="100000/s")
    done = await job_is(strict, fast["id"], "done")
    assert (done["done"], done["skipped"]) == (3, 0)
    assert (await job_is(strict, slow["id"], "running"))["done"] == 1


@pytest.mark.row("H60")
async def test_a_restart_pauses_what_ran(tmp_path: Path, target: Target) -> None:
    """It is told and shown, and goes on only when somebody says so."""
    text = document({"open": SOURCES["open"]}, targets={"crm": ONCE})
    async with running(tmp_path, text, target) as relay:
        await dead(relay, 3)
        job = await asked(relay, REPLAYS, state="dead", rate="1/h")
        await target.next()
    async with running(tmp_path, text, target) as relay:
        line = await relay.told("replay.paused")
        assert (line["replay_id"], line["reason"]) == (job["id"], "the relay was restarted")
        shown = (await relay.call(f"{REPLAYS}/{job['id']}", headers=AUTH)).json
        assert shown.items() >= {"state": "paused", "done": 1, "reason": "the relay was restarted"}.items()
        await asked(relay, f"{REPLAYS}/{job['id']}/resume")
        await target.next(2)
        assert await relay.log("replay.started")


@pytest.mark.slow
async def test_a_job_waits_for_an_outage_to_end(strict: Gateway) -> None:
    """Nothing of it is lost or doubled."""
    ids = await dead(strict, 3)
    job = await asked(strict, REPLAYS, state="dead", rate="1/s")
    await strict.target.next()
    async with locked(strict):
        await until(lambda: not strict.app._store.condition().writable)
    done = await job_is(strict, job["id"], "done")
    assert (done["done"], done["skipped"]) == (3, 0)
    await strict.target.next(3)
    assert sorted(one["relay-event-id"] or "" for one in strict.target.arrivals) == sorted(ids)
    assert await strict.log("store.recovered")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "state must be one of dead, delivered, skipped, unrouted"),
        ({"state": "pending"}, "state must be one of"),
        ({"state": ["dead"]}, "state must be one of"),
        ({"state": "dead", "since": "yesterday"}, "since must be a span back"),
        ({"state": "dead", "until": 7}, "until must be a string"),
        ({"state": "dead", "limit": 0}, "limit must be a whole number"),
        ({"state": "dead", "limit": True}, "limit must be a whole number"),
        ({"state": "dead", "rate": "50"}, "rate must be"),
        ({"state": "dead", "rate": "5/2d"}, "rate must be"),
        ({"state": "unrouted", "target": "crm"}, "target does not go with"),
        ({"state": "dead", "source": ""}, "source must be"),
        ({"state": "dead", "dry_run": "yes"}, "dry_run must be true or false"),
        ({"state": "dead", "colour": "red"}, "unknown key; known: state, since"),
    ],
)
async def test_a_filter_that_is_not_understood_is_refused(gateway: Gateway, body: dict[str, Any], words: str) -> None:
    """Nothing is guessed, and no job is made."""
    assert words in await refused(gateway, REPLAYS, 422, **body)
    assert (await gateway.call(REPLAYS, headers=AUTH)).json == {"replays": []}


async def test_what_is_unknown_is_said(strict: Gateway) -> None:
    """An event, a target, a job; the jobs that can still be steered are named."""
    assert await refused(strict, f"{EVENTS}/evt_nobody/replay", 404) == "unknown event"
    event, _ = await dead(strict, 2)
    assert "known: crm" in await refused(strict, f"{EVENTS}/{event}/replay", 404, target="nobody")
    assert "known: crm" in await refused(strict, REPLAYS, 404, state="dead", target="nobody")
    assert "target must be" in await refused(strict, f"{EVENTS}/{event}/replay", 422, target=7)
    assert "not over: none" in await refused(strict, f"{REPLAYS}/rpl_nobody/pause", 404)
    slow = await asked(strict, REPLAYS, state="dead", rate="1/d")
    assert f"not over: {slow['id']} (running)" in await refused(strict, f"{REPLAYS}/rpl_nobody/cancel", 404)
    answer = await strict.call(f"{REPLAYS}/rpl_nobody", headers=AUTH)
    assert_problem(answer, 404)


async def test_what_a_disabled_target_holds_is_discarded(strict: Gateway) -> None:
    """A dry run counts it; then it is dead, told, shown by the metric, and can be replayed. An active one keeps it."""
    await asked(strict, f"{TARGETS}/crm/disable")
    ids = [await posted(strict, id=n) for n in range(3)]
    path = f"{TARGETS}/crm/discard"
    assert await asked(strict, path, dry_run=True) == {"target": "crm", "discarded": 3, "dry_run": True}
    assert states(strict) == {"pending": 3}
    assert await asked(strict, path) == {"target": "crm", "discarded": 3, "dry_run": False}
    assert states(strict) == {"dead": 3}
    line = await strict.told("target.discarded")
    assert (line["level"], line["target"], line["count"]) == ("warning", "crm", 3)
    samples = await strict.metrics()
    assert samples["relay_deliveries", (("state", "dead"), ("target", "crm"))] == 3
    assert samples["relay_deliveries", (("state", "held"), ("target", "crm"))] == 0
    assert (await asked(strict, path))["discarded"] == 0
    await asked(strict, f"{TARGETS}/crm/enable")
    assert "disable it first" in await refused(strict, path, 409)
    assert strict.target.arrivals == []
    await asked(strict, f"{EVENTS}/{ids[0]}/replay")
    assert sent(await strict.target.next()) == (ids[0], "1", "1")


async def test_what_is_held_for_a_target_that_is_gone_is_discarded(tmp_path: Path, target: Target) -> None:
    """The way to let go of it; after that nobody knows the name any more."""
    sources = {"open": SOURCES["open"]}
    both = {"targets": {"crm": ONCE, "old": ONCE}, "routes": [{"name": "all", "from": ["open"], "to": ["crm", "old"]}]}
    async with running(tmp_path, document(sources, **both), target) as relay:
        await asked(relay, f"{TARGETS}/old/disable")
        event = await posted(relay, id=1)
        await until(lambda: states(relay) == {"delivered": 1, "pending": 1})
    async with running(tmp_path, document(sources), target) as relay:
        assert await asked(relay, f"{TARGETS}/old/discard") == {"target": "old", "discarded": 1, "dry_run": False}
        assert "unknown target" in await refused(relay, f"{TARGETS}/old/discard", 404)
        replayed = await asked(relay, f"{EVENTS}/{event}/replay")
        assert replayed["skipped"] == [{"target": "old", "reason": "not in the config"}]
        assert replayed["replayed"] == ["crm"]
