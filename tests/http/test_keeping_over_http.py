"""A store that is nearly full, one that is, and what is pruned, erased and copied through the admin API."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relay.store.sqlite.copying import verify_copy
from tests.http.configs import SOURCES
from tests.http.gateway import (
    AUTH,
    JSON,
    TARGETS,
    Answer,
    Gateway,
    Start,
    Target,
    assert_problem,
    request,
    until,
    wired,
)

OPEN = {"open": SOURCES["open"]}
MIB = 1024**2
PRUNE, BACKUP, EVENTS = "/api/v1/prune", "/api/v1/backup", "/api/v1/events"


def limited(size: str) -> dict[str, Any]:
    """A store that may take so much."""
    return {"url": "${STORE}", "retention": {"max_size": size}}


def body(number: int, size: int = 40_000) -> bytes:
    return json.dumps({"type": "paid", "id": f"e{number}", "filler": "x" * size}).encode()


async def posted(relay: Gateway, number: int) -> Answer:
    return await relay.post("/hooks/open", body(number))


async def steered(relay: Gateway, verb: str) -> None:
    answer = await relay.call(f"{TARGETS}/crm/{verb}", method="POST", headers=JSON)
    assert answer.status == 200


async def asked(relay: Gateway, **what: object) -> Answer:
    return await relay.call(PRUNE, method="POST", headers=JSON, body=json.dumps(what).encode())


@pytest.mark.slow
@pytest.mark.row("F5")
async def test_delivered_events_make_room_for_new_ones(start: Start) -> None:
    """Four times what the store may take goes through it; a refusal in between is over within moments."""
    relay = await start(OPEN, store=limited("2MiB"))
    promised: list[str] = []
    for number in range(200):
        async with asyncio.timeout(20):
            while (answer := await posted(relay, number)).status != 200:
                assert (answer.status, answer["retry-after"]) == (503, "10")
                await asyncio.sleep(0.05)
        promised.append(answer.json["id"])
        await relay.target.next(number + 1)
        if number % 20 == 19:
            await until(lambda: relay.rows("SELECT sum(size) FROM event")[0][0] < 1.8 * MIB)
    assert {arrival["relay-event-id"] for arrival in relay.target.arrivals} == set(promised)
    async with asyncio.timeout(20):
        while not (lines := await relay.log("events.pruned")):
            await asyncio.sleep(0.05)
    assert {line["reason"] for line in lines} == {"size"}
    kept = [row[0] for row in relay.rows("SELECT id FROM event ORDER BY seq")]
    assert kept == promised[-len(kept) :]
    metrics = await relay.metrics()
    assert metrics["relay_store_limit_bytes", ()] == 2 * MIB
    assert metrics["relay_store_bytes", ()] > 0


@pytest.mark.slow
@pytest.mark.row("F5", "B1")
async def test_full_of_what_must_stay_it_refuses_delivers_and_takes_again_by_itself(start: Start) -> None:
    """503 with Retry-After, told, shown and counted; nothing that was promised is lost, and nothing needs a hand."""
    one_at_a_time = {"crm": {"url": "${TARGET}", "concurrency": 1}}  # else two may overtake each other on their way
    relay = await start(OPEN, store=limited("1MiB"), targets=one_at_a_time)
    await steered(relay, "disable")
    promised: list[str] = []
    number = 0
    async with asyncio.timeout(30):
        while (answer := await posted(relay, number)).status == 200:
            promised.append(answer.json["id"])
            number += 1
            await asyncio.sleep(0.05)
    assert (answer.status, answer.json, answer["retry-after"]) == (503, {"error": "unavailable, send again"}, "10")
    assert (await relay.log("request.refused"))[-1]["reason"] == "store_full"
    assert (await relay.call("/readyz")).json == {"status": "unready", "reasons": ["store_full"]}
    assert (await relay.call("/healthz")).status == 200
    line = await relay.told("store.full")
    assert (line["level"], line["limit"]) == ("error", MIB)
    assert (await relay.told("store.nearly_full"))["level"] == "warning"
    assert await relay.log("events.pruned") == []
    await steered(relay, "enable")
    await relay.target.next(len(promised))
    async with asyncio.timeout(20):
        while (await posted(relay, number)).status != 200:
            await asyncio.sleep(0.05)
    assert (await relay.told("store.accepting"))["level"] == "warning"
    assert (await relay.call("/readyz")).status == 200
    await relay.target.next(len(promised) + 1)
    arrived = [arrival["relay-event-id"] for arrival in relay.target.arrivals]
    assert arrived[:-1] == promised
    assert await relay.log("store.unavailable") == []


async def test_a_start_on_a_full_store_refuses_from_the_first_request_on(start: Start) -> None:
    """What must stay may be more than a new limit allows; nothing is deleted for it."""
    relay = await start(OPEN)
    await steered(relay, "disable")
    for number in range(40):
        assert (await posted(relay, number)).status == 200
    await relay.app.stop()
    relay = await start(OPEN, store=limited("1MiB"))
    assert (await posted(relay, 99)).status == 503
    assert relay.rows("SELECT count(*) FROM event") == [(40,)]


async def test_prune_deletes_what_is_over_and_counts_it(start: Start) -> None:
    """A dry run counts only."""
    relay = await start(OPEN, store={"url": "${STORE}", "retention": {"delivered": "1s"}})
    for number in range(3):
        await posted(relay, number)
    await relay.target.next(3)
    async with asyncio.timeout(20):
        while (answer := await asked(relay, dry_run=True)).json["pruned"] < 3:
            await asyncio.sleep(0.05)
    assert answer.json == {"pruned": 3, "dry_run": True, "more": False}
    assert relay.rows("SELECT count(*) FROM event") == [(3,)]
    assert (await asked(relay)).json == {"pruned": 3, "dry_run": False}
    assert relay.rows("SELECT count(*) FROM event") == [(0,)]
    assert [(line["count"], line["reason"]) for line in await relay.log("events.pruned")] == [(3, "retention")]


@pytest.mark.parametrize("way", ["prune", "delete"])
async def test_one_event_is_erased_and_told_without_a_word_of_it(start: Start, way: str) -> None:
    """A pending one too; the others are delivered, and the counts stay true."""
    relay = await start(OPEN)
    await steered(relay, "disable")
    first, second = [(await posted(relay, number)).json["id"] for number in range(2)]
    foretold = await asked(relay, event=first, dry_run=True)
    assert foretold.json == {"pruned": 1, "dry_run": True, "deliveries": 1}
    assert relay.rows("SELECT count(*) FROM event") == [(2,)]
    if way == "prune":
        assert (await asked(relay, event=first)).json == {"pruned": 1, "dry_run": False, "deliveries": 1}
    else:
        answer = await relay.call(f"{EVENTS}/{first}", method="DELETE", headers=JSON)
        assert (answer.status, answer.json) == (200, {"erased": 1, "deliveries": 1})
    line = await relay.told("event.erased")
    assert (line["level"], line["event_id"], line["deliveries"]) == ("warning", first, 1)
    assert_problem(await asked(relay, event=first), 404)
    assert_problem(await relay.call(f"{EVENTS}/{first}", method="DELETE", headers=JSON), 404)
    (shown,) = (await relay.call(TARGETS, headers=AUTH)).json["targets"]
    assert shown["held"] == 1
    await steered(relay, "enable")
    assert (await relay.target.next())["relay-event-id"] == second


@pytest.mark.parametrize("what", [{"event": 7}, {"event": ""}, {"event": "x" * 200}, {"dry_run": "no"}, {"days": 1}])
async def test_a_prune_that_is_not_understood_deletes_nothing(gateway: Gateway, what: dict[str, object]) -> None:
    """The problem names the key."""
    problem = assert_problem(await asked(gateway, **what), 422)
    assert any(key in problem["detail"] for key in (*what, "key"))


@pytest.mark.parametrize("call", [("POST", PRUNE), ("DELETE", f"{EVENTS}/evt_1"), ("GET", BACKUP)])
async def test_what_deletes_and_copies_needs_the_token(gateway: Gateway, call: tuple[str, str]) -> None:
    """Like every call."""
    method, path = call
    assert_problem(await gateway.call(path, method=method), 401)


async def backed_up(relay: Gateway, to: Path) -> Answer:
    answer = await relay.call(BACKUP, headers=AUTH)
    assert answer.status == 200
    to.write_bytes(answer.body)
    verify_copy(to)
    return answer


async def test_a_backup_is_streamed_with_its_length(start: Start, tmp_path: Path) -> None:
    """A whole database with all that was answered, of no reader's cache."""
    relay = await start(OPEN)
    ids = [(await posted(relay, number)).json["id"] for number in range(30)]
    answer = await backed_up(relay, tmp_path / "copy")
    assert int(answer["content-length"] or 0) == len(answer.body) > 30 * 40_000
    assert answer["content-type"] == "application/vnd.sqlite3"
    assert answer["cache-control"] == "no-store"
    with closing(sqlite3.connect(tmp_path / "copy")) as db:
        assert [row[0] for row in db.execute("SELECT id FROM event ORDER BY seq")] == ids
    assert_problem(await relay.call(f"{BACKUP}?x=1", headers=AUTH), 400)


async def test_while_one_backup_is_fetched_another_is_refused(start: Start, tmp_path: Path) -> None:
    """409; a client that goes away ends its own, and then there is one again. Nothing is left beside the store."""
    relay = await start(OPEN)
    for number in range(10):
        assert (await relay.post("/hooks/open", body(number, 900_000))).status == 200
    async with wired(relay.admin) as wire:
        await wire.send(request(BACKUP, headers=AUTH, method="GET", host="localhost"))
        await until(lambda: relay.app._store._copying._is_under_way)
        assert_problem(await relay.call(BACKUP, headers=AUTH), 409)
        assert (await posted(relay, 77)).status == 200
        wire.reset()
    await until(lambda: not relay.app._store._copying._is_under_way)
    await backed_up(relay, tmp_path / "copy")
    assert [file.name for file in tmp_path.iterdir() if ".copy-" in file.name] == []


@pytest.mark.slow
async def test_a_stop_does_not_wait_for_a_backup(start: Start, target: Target, tmp_path: Path) -> None:
    """It is cut short, which its client sees by the length."""
    relay = await start(OPEN)
    for number in range(10):
        assert (await relay.post("/hooks/open", body(number, 900_000))).status == 200
    async with wired(relay.admin) as wire:
        await wire.send(request(BACKUP, headers=AUTH, method="GET", host="localhost"))
        await until(lambda: relay.app._store._copying._is_under_way)
        async with asyncio.timeout(10):
            await relay.app.stop()
        assert len(await wire.rest()) < 9_000_000
    assert [file.name for file in tmp_path.iterdir() if ".copy-" in file.name] == []
