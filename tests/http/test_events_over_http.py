"""What came and what became of it, over the admin API; and what was turned away."""

import base64
from typing import Any

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import AUTH, SECRET, TARGETS, TOKEN, Gateway, Start, assert_problem, until

EVENTS = "/api/v1/events"
REFUSALS = "/api/v1/refusals"


async def got(gateway: Gateway, path: str) -> Any:
    answer = await gateway.call(path, headers=AUTH)
    assert answer.status == 200, answer.body
    return answer.json


async def posted(gateway: Gateway, body: bytes, source: str = "open", **headers: str) -> str:
    answer = await gateway.post(
        f"/hooks/{source}", body, {key.replace("_", "-"): value for key, value in headers.items()}
    )
    assert answer.status == 200
    return str(answer.json["id"])


async def states(gateway: Gateway, event_id: str) -> dict[str, str]:
    event = await got(gateway, f"{EVENTS}/{event_id}")
    return {delivery["target"]: delivery["state"] for delivery in event["deliveries"]}


async def test_an_event_is_listed_as_the_contract_says(gateway: Gateway) -> None:
    """Its fields, and its deliveries with theirs."""
    event_id = await posted(gateway, b'{"type": "paid", "id": 1}')
    await gateway.target.next()
    await until(lambda: gateway.rows("SELECT 1 FROM delivery WHERE state = 'delivered'"))
    (event,) = (await got(gateway, EVENTS))["events"]
    assert event == {
        "id": event_id,
        "source": "open",
        "type": "paid",
        "received_at": event["received_at"],
        "deliveries": [
            {
                "target": "crm",
                "state": "delivered",
                "attempts": 1,
                "outcome": "delivered",
                "status": 200,
                "next_attempt_at": None,
            }
        ],
    }


async def test_one_event_tells_everything(gateway: Gateway) -> None:
    """Headers without credentials, routes, attempts with the beginning of the answer, and the body byte for byte."""
    gateway.target.status = 500
    event_id = await posted(gateway, b"\xff\x00 raw", X_Api_Token="hide-me-please", X_Signature="sha256=ab", Accept="x")
    await until(lambda: gateway.rows("SELECT 1 FROM attempt"))
    event = await got(gateway, f"{EVENTS}/{event_id}?body=true")
    assert (event["routes"], event["failed_conditions"], event["size"]) == (["all"], [], 6)
    crm = {"target": "crm", "takes": True, "reason": None}
    assert event["routing"] == [{"route": "all", "takes": True, "reason": None, "targets": [crm]}]
    headers = dict(map(tuple, event["headers"]))
    assert (headers["X-Api-Token"], headers["X-Signature"], headers["Accept"]) == ("***", "sha256=ab", "x")
    assert (event["body"], base64.b64decode(event["body_base64"])) == (None, b"\xff\x00 raw")
    (delivery,) = event["deliveries"]
    assert (delivery["state"], delivery["tries"], delivery["step"]) == ("pending", 12, 1)
    (attempt,) = delivery["attempt_log"]
    assert (attempt["number"], attempt["outcome"], attempt["status"]) == (1, "failed", 500)
    assert delivery["next_attempt_at"] > attempt["began_at"]
    raw = await gateway.call(f"{EVENTS}/{event_id}/body", headers=AUTH)
    assert (raw.body, raw["content-type"]) == (b"\xff\x00 raw", "application/octet-stream")


async def test_an_unrouted_event_says_why(start: Start) -> None:
    """Each route of today's config tells what it wants instead."""
    routes = [
        {"name": "paid", "from": ["open"], "match": {"type": ["order_*"]}, "to": ["crm"]},
        {"name": "keyed", "from": ["key"], "to": ["crm"]},
    ]
    gateway = await start(routes=routes)
    event_id = await posted(gateway, b'{"type": "ping"}')
    event = await got(gateway, f"{EVENTS}/{event_id}")
    assert event["routes"] == []
    paid, keyed = event["routing"]
    assert paid == {
        "route": "paid",
        "takes": False,
        "reason": "no glob of its match.type (order_*) fits the type",
        "targets": [],
    }
    assert (keyed["route"], keyed["reason"]) == ("keyed", "takes events from key only")
    assert [one["id"] for one in (await got(gateway, f"{EVENTS}?state=unrouted"))["events"]] == [event_id]


async def test_what_a_disabled_target_keeps_is_held(gateway: Gateway) -> None:
    """It is shown as held and found as held, and is not among the pending."""
    assert (await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)).status == 200
    event_id = await posted(gateway, b"{}")
    assert await states(gateway, event_id) == {"crm": "held"}
    assert [one["id"] for one in (await got(gateway, f"{EVENTS}?state=held"))["events"]] == [event_id]
    assert [one["id"] for one in (await got(gateway, f"{EVENTS}?state=held&target=crm"))["events"]] == [event_id]
    assert (await got(gateway, f"{EVENTS}?state=pending"))["events"] == []
    assert (await got(gateway, f"{EVENTS}?state=held&target=other"))["events"] == []


async def test_pages_go_on_where_the_last_one_ended(gateway: Gateway) -> None:
    """The cursor of a page begins the next one."""
    ids = [await posted(gateway, b"{}") for _ in range(3)]
    page = await got(gateway, f"{EVENTS}?limit=2")
    assert [one["id"] for one in page["events"]] == ids[:0:-1]
    rest = await got(gateway, f"{EVENTS}?limit=2&cursor={page['next_cursor']}")
    assert ([one["id"] for one in rest["events"]], rest["next_cursor"]) == (ids[:1], None)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("limit=0", "limit must be 1 to 200"),
        ("limit=-1", "limit must be 1 to 200"),
        ("limit=1e9", "limit must be 1 to 200"),
        ("limit=%D9%A3", "limit must be 1 to 200"),
        ("cursor=x", "cursor must be the next_cursor of the page before"),
        ("since=yesterday", "since must be a span back from now (30m, 24h, 7d) or a time (2026-03-01T12:00:00Z)"),
        ("state=lost", "state must be one of pending, in_flight, delivered, dead, skipped, held, unrouted"),
        ("colour=red", "unknown parameter; known: source, type, target, state, since, until, limit, cursor"),
        ("source=a&source=b", "source is given twice"),
        ("source=", "source must have 1 to 256 characters"),
        (f"type={'x' * 300}", "type must have 1 to 256 characters"),
    ],
)
@pytest.mark.row("H61")
async def test_a_query_that_makes_no_sense_is_refused(gateway: Gateway, query: str, said: str) -> None:
    """400, with the parameter and what it must be."""
    answer = await gateway.call(f"{EVENTS}?{query}", headers=AUTH)
    assert_problem(answer, 400)
    assert answer.json["detail"] == said


@pytest.mark.parametrize("path", ["../../x", "1%20OR%201=1", "%00", "x" * 5000, "evt_nobody", "evt_nobody/body"])
@pytest.mark.row("H59")
async def test_an_id_that_is_none_is_not_found(gateway: Gateway, path: str) -> None:
    """Whatever it looks like, it is compared with ids and nothing else."""
    assert_problem(await gateway.call(f"{EVENTS}/{path}", headers=AUTH), 404)


async def test_what_was_turned_away_is_kept_without_its_secrets(start: Start) -> None:
    """What came, from where and why; no value that could be a key, and no body."""
    gateway = await start(server={"max_body": "10B"})
    wrong = {
        "X-Kye": SECRET.decode(),
        "Authorization": f"Bearer {SECRET.decode()}",
        "X-Signature": "sha256=feed",
        "User-Agent": "shop/1",
    }
    assert (await gateway.post("/hooks/key", b"{}", wrong)).status == 401
    assert (await gateway.post("/hooks/open", b"x" * 11)).status == 413
    large, unproven = (await got(gateway, REFUSALS))["refusals"]
    assert (large["source"], large["status"], large["reason"], large["bytes"]) == ("open", 413, "too_large", 11)
    assert (
        unproven.items()
        >= {"source": "key", "remote": "127.0.0.1", "status": 401, "reason": "missing_signature"}.items()
    )
    headers = dict(map(tuple, unproven["headers"]))
    assert headers["User-Agent"] == "shop/1"
    assert {headers[name] for name in ("X-Kye", "Authorization", "X-Signature")} == {"***"}
    assert SECRET.decode() not in str(gateway.rows("SELECT * FROM refusal"))
    assert (await got(gateway, f"{REFUSALS}?source=key"))["refusals"] == [unproven]
    page = await got(gateway, f"{REFUSALS}?limit=1")
    assert (await got(gateway, f"{REFUSALS}?cursor={page['next_cursor']}"))["refusals"] == [unproven]


async def test_totals_tell_what_came_and_what_arrived(gateway: Gateway) -> None:
    """By source and by target, ever and for the last hour; a target's success is that of its last hour."""
    for _ in range(2):
        await posted(gateway, b'{"id": 7}')
    await gateway.post("/hooks/key", b"{}", {"X-Key": "wrong"})
    await until(lambda: gateway.rows("SELECT 1 FROM delivery WHERE state = 'delivered'"))
    stats = await got(gateway, "/api/v1/stats")
    assert stats["totals"] == stats["last_hour"]
    assert stats["totals"]["sources"].keys() == SOURCES.keys()
    assert stats["totals"]["sources"]["open"] == {"accepted": 1, "unrouted": 0, "duplicate": 1, "refused": 0}
    assert stats["totals"]["sources"]["key"]["refused"] == 1
    assert stats["totals"]["targets"] == {"crm": {"delivered": 1, "dead": 0}}
    (crm,) = (await got(gateway, TARGETS))["targets"]
    assert (crm["attempts_last_hour"], crm["success_rate"]) == (1, 1.0)


@pytest.mark.parametrize("path", [EVENTS, f"{EVENTS}/x", f"{EVENTS}/x/body", REFUSALS, "/api/v1/stats"])
async def test_what_is_kept_is_shown_to_who_has_the_token(gateway: Gateway, path: str) -> None:
    """Bodies of webhooks are nobody else's business."""
    assert_problem(await gateway.call(path), 401)
    assert_problem(await gateway.call(path, headers={"Authorization": f"Bearer x{TOKEN}"}), 401)
    assert_problem(await gateway.call(path, method="PUT", headers=AUTH), 405)


async def test_the_status_tells_how_the_relay_stands(gateway: Gateway) -> None:
    """Version, readiness, store, config and what waits, in one call."""
    assert (await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)).status == 200
    await posted(gateway, b"{}")
    status = await got(gateway, "/api/v1/status")
    assert (status["ready"], status["reasons"], status["store"]["writable"]) == (True, [], True)
    assert (status["held"], status["pending"], status["in_flight"], status["dead"]) == (1, 0, 0, 0)
    assert (status["sources"], status["targets"], status["routes"]) == (len(SOURCES), 1, 1)
    assert status["config"]["reload_ok"] is True
    assert status["store"]["bytes"] > 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/prune", b'{"event": "\\ud800"}'),
        ("POST", "/api/v1/replays", b'{"state": "dead", "source": "a\\udfff"}'),
        ("POST", f"{TARGETS}/crm/disable", b'{"reason": "\\ud800"}'),
    ],
)
async def test_half_a_character_is_refused(gateway: Gateway, method: str, path: str, body: bytes) -> None:
    """JSON lets a surrogate stand alone; nothing that we store or tell can."""
    answer = await gateway.call(path, method=method, headers=AUTH | {"Content-Type": "application/json"}, body=body)
    assert_problem(answer, 422)
    assert await gateway.log("http.error") == []
