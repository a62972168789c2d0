"""What becomes of a webhook whose sender is believed, and how a request is turned away before that."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from relay import desks
from relay.desks import LINES_A_SECOND
from tests.http.configs import SOURCES
from tests.http.gateway import SECRET, TOKEN, Gateway, Start, chunked, request, signature, until, wired

OPEN = {"open": SOURCES["open"]}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.row("H1")
async def test_only_post_is_taken(gateway: Gateway, method: str) -> None:
    """405 says which method is."""
    async with wired(gateway.hooks) as wire:
        await wire.send(request("/hooks/open", method=method))
        answer = await wire.answer(to_head=method == "HEAD")
    assert answer["allow"] == "POST"
    await gateway.turned_away(answer, 405, "method", source="open")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/hooks",
        "/hooks/",
        "/hooks/nobody",
        "/hooks/open/",
        "/hooks/Open",
        "/HOOKS/open",
        "//hooks/open",
        "/hooks//open",
        "/hooks/%6fpen",
        "/hooks%2fopen",
        "/x/../hooks/open",
        "/hooks/./open",
        "/hooks/open%00",
        "/hooks/open;a=b",
        "/" + "x" * 4000,
    ],
)
@pytest.mark.row("H2", "T15", "T28")
async def test_a_path_is_a_source_exactly_or_nothing(gateway: Gateway, path: str) -> None:
    """Nothing is decoded, joined or cut; who posts there may have mistyped it, so it is told, but is no label."""
    answer = await gateway.post(path)
    assert (answer.status, answer.json) == (404, {"error": "not found"})
    line = await gateway.told("request.refused")
    assert (line["level"], line["source"], line["reason"]) == ("warning", "_unknown", "unknown_path")
    assert "path" not in line
    assert "_unknown" not in str(await gateway.metrics())


async def test_a_path_that_is_nearly_a_sources_is_told_with_its_name(gateway: Gateway) -> None:
    """The usual reason of a 404; the path itself may be most of a secret and stays out of the log."""
    assert (await gateway.post("/hook/open")).status == 404
    assert (await gateway.told("request.refused"))["detail"] == "like that of source open"


async def test_a_scanners_noise_is_told_for_debugging_alone(gateway: Gateway) -> None:
    """Who does not even post means no webhook."""
    assert (await gateway.raw(request("/wp-login.php", method="GET"))).status == 404
    assert (await gateway.told("request.refused"))["level"] == "debug"


@pytest.mark.parametrize("form", ["/hooks/open?key=secret", "/hooks/open#part", "http://evil.example/hooks/open"])
@pytest.mark.row("H38", "T12", "T15")
async def test_query_and_authority_do_not_choose_the_source(gateway: Gateway, form: str) -> None:
    """The path alone does, and a query reaches neither log nor target."""
    assert (await gateway.raw(request(form, b"{}", host="evil.example"))).status == 200
    assert (await gateway.target.next())["host"] != "evil.example"
    await gateway.log()
    assert "key=secret" not in gateway.log_text()


async def test_a_source_may_have_a_path_of_its_own(start: Start) -> None:
    """Then its usual one is unknown."""
    relay = await start({"open": SOURCES["open"] | {"path": "/in/from_Partner-1"}})
    assert (await relay.post("/in/from_Partner-1")).status == 200
    assert (await relay.post("/hooks/open")).status == 404


async def test_health_is_told_on_the_public_listener_and_nothing_else(gateway: Gateway) -> None:
    """A constant: whoever asks learns that something listens."""
    health = await gateway.raw(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (health.status, health.json) == (200, {"status": "ok"})
    wrong = await gateway.post("/healthz")
    assert (wrong.status, wrong["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/readyz", "/metrics", "/api/v1/targets", "/api/v1/targets/crm/disable", "/api/v1/status", "/debug"]
)
@pytest.mark.row("T15", "T32")
async def test_the_public_listener_serves_nothing_of_the_admins(gateway: Gateway, path: str) -> None:
    """Not even with the token."""
    for method in ("GET", "POST"):
        answer = await gateway.raw(request(path, method=method, headers={"Authorization": f"Bearer {TOKEN}"}))
        assert answer.status == 404


async def test_an_accepted_event_is_answered_stored_told_counted_and_delivered(gateway: Gateway) -> None:
    """The whole way of one webhook."""
    body = b'{"type": "paid", "id": "e1"}'
    answer = await gateway.post("/hooks/open", body, {"Content-Type": "application/json", "X-Mine": "1"})
    assert (answer.status, answer["content-type"]) == (200, "application/json")
    assert answer.json == {"id": answer.json["id"], "duplicate": False}
    assert gateway.stored() == [("open", "paid", body)]
    line = await gateway.told("event.accepted")
    assert line.items() >= {"event_id": answer.json["id"], "type": "paid", "targets": 1, "bytes": len(body)}.items()
    got = await gateway.target.next()
    assert (got.body, got["relay-event-id"], got["x-mine"]) == (body, answer.json["id"], "1")
    assert gateway.counted("open") == {"accepted": 1}


@pytest.mark.row("H15", "T6")
async def test_a_duplicate_gets_the_first_id_and_no_second_delivery(gateway: Gateway) -> None:
    """Another body under the same id is a duplicate too, and somebody should look at it."""
    first = await gateway.post("/hooks/open", b'{"id": "e1"}')
    again = await gateway.post("/hooks/open", b'{"id": "e1"}')
    other = await gateway.post("/hooks/open", b'{"id": "e1", "total": 2}')
    assert again.json == other.json == {"id": first.json["id"], "duplicate": True}
    same, odd = await gateway.log("event.duplicate")
    assert (same["level"], odd["level"]) == ("info", "warning")
    assert odd["reason"].startswith("id_reuse")
    await gateway.target.next()
    assert (len(gateway.rows("SELECT 1 FROM delivery")), len(gateway.stored())) == (1, 1)
    assert gateway.counted("open") == {"accepted": 1, "duplicate": 2}


@pytest.mark.row("B11")
async def test_the_same_id_of_two_sources_is_two_events(gateway: Gateway) -> None:
    """A key is known for its source alone."""
    body = b'{"id": "e1"}'
    answers = [await gateway.post("/hooks/open", body), await gateway.post("/hooks/signed", body, signature(body))]
    assert [answer.json["duplicate"] for answer in answers] == [False, False]


@pytest.mark.row("B26")
async def test_an_event_that_no_route_wants_is_kept_and_told(start: Start) -> None:
    """So that "my webhook does not arrive" has an answer."""
    route = {"name": "paid", "from": ["open"], "match": {"type": ["paid", "order_*"]}, "to": ["crm"]}
    relay = await start(OPEN, routes=[route])
    assert (await relay.post("/hooks/open", b'{"type": "lost"}')).status == 200
    assert (await relay.post("/hooks/open", b'{"type": "order_new"}')).status == 200
    line = await relay.told("event.unrouted")
    assert (line["type"], line["level"], line["targets"]) == ("lost", "warning", 0)
    assert relay.counted("open") == {"accepted": 1, "unrouted": 1}
    assert [row[1] for row in relay.stored()] == ["lost", "order_new"]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
@pytest.mark.row("B27")
async def test_every_matching_target_gets_its_delivery_in_the_same_transaction(start: Start, count: int) -> None:
    """Each once, however many routes name it."""
    names = [f"t{number}" for number in range(count)]
    targets = {name: {"url": "${TARGET}"} for name in [*names, "spare"]}
    routes = [{"name": f"r{turn}", "from": ["open"], "to": names} for turn in range(2)] if names else []
    relay = await start(OPEN, targets=targets, routes=routes)
    assert (await relay.post("/hooks/open")).status == 200
    assert sorted(row[0] for row in relay.rows("SELECT target FROM delivery")) == sorted(names)
    if names:
        await relay.target.next(count)


async def test_another_status_may_stand_for_accepted_but_a_duplicate_gets_200(start: Start) -> None:
    """`respond: {status: 202}`."""
    relay = await start({"open": SOURCES["open"] | {"respond": {"status": 202}}})
    assert (await relay.post("/hooks/open", b'{"id": 1}')).status == 202
    again = await relay.post("/hooks/open", b'{"id": 1}')
    assert (again.status, again.json["duplicate"]) == (200, True)


@pytest.mark.parametrize(
    ("hops", "status"), [("5", 200), ("6", 508), ("9" * 5000, 508)], ids=["last", "one more", "far more"]
)
@pytest.mark.row("H50", "T55")
async def test_a_webhook_that_goes_in_circles_is_stopped(gateway: Gateway, hops: str, status: int) -> None:
    """After five relays; before that the count goes on."""
    answer = await gateway.post("/hooks/open", headers={"relay-hops": hops})
    if status == 200:
        assert (await gateway.target.next())["relay-hops"] == "6"
    else:
        await gateway.turned_away(answer, 508, "loop", source="open")


@pytest.mark.parametrize("hops", ["many", "-1", "1.5", "\xb2"])
@pytest.mark.row("H50")
async def test_hops_that_are_no_number_count_as_none_and_are_told(gateway: Gateway, hops: str) -> None:
    """Somebody in between is not a relay."""
    assert (await gateway.post("/hooks/open", headers={"relay-hops": hops})).status == 200
    assert (await gateway.target.next()).all("relay-hops") == ["1"]
    assert (await gateway.told("request.bad_hops"))["source"] == "open"


@pytest.mark.row("H54", "T23", "B53")
async def test_a_source_over_its_rate_waits_and_the_others_do_not(start: Start) -> None:
    """429 says how long, and the limit is the source's own."""
    relay = await start({"open": SOURCES["open"] | {"rate": "1/5m"}, "key": SOURCES["key"]})
    assert (await relay.post("/hooks/open")).status == 200
    answers = [await relay.post("/hooks/open") for _ in range(9)]
    assert {answer.status for answer in answers} == {429}
    assert all(290 <= int(answer["retry-after"] or 0) <= 300 for answer in answers)
    assert (await relay.log("request.refused"))[0]["reason"] == "rate"
    assert relay.counted("open") == {"accepted": 1, "refused": 9}
    assert (await relay.post("/hooks/key", b"{}", {"X-Key": SECRET.decode()})).status == 200


@pytest.mark.row("T26")
async def test_a_flood_of_refusals_is_counted_whole_and_told_in_part(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty lines a second and source; the next line says how many were not told."""
    now = 1000.0
    monkeypatch.setattr(desks, "time", SimpleNamespace(monotonic=lambda: now))  # a flood may take a busy machine longer
    tries = 5 * LINES_A_SECOND
    async with wired(gateway.hooks) as wire:
        await wire.send(request("/hooks/key") * tries)
        assert {(await wire.answer()).status for _ in range(tries)} == {401}
        lines = await gateway.log("request.refused")
        assert len(lines) == LINES_A_SECOND
        assert not any("suppressed" in line for line in lines)
        now += 1
        await wire.send(request("/hooks/key"))
        assert (await wire.answer()).status == 401
    lines = await gateway.log("request.refused")
    assert len(lines) == LINES_A_SECOND + 1
    assert lines[-1]["suppressed"] == tries - LINES_A_SECOND
    assert gateway.counted("key") == {"refused": tries + 1}


CANARY = "canary7f3a"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (f"/{CANARY}", {}, 404),
        ("/hooks/key", {"X-Key": CANARY}, 401),
        ("/hooks/closed", {"X-Forwarded-For": CANARY}, 403),
        ("/hooks/open", {"Transfer-Encoding": f"gzip, {CANARY}"}, 400),
        ("/hooks/open", {"Expect": CANARY}, 417),
        ("/hooks/open", {"Content-Length": f"1{CANARY}"}, 400),
        ("/hooks/open", {f"X {CANARY}": "1"}, 400),
        ("/hooks/open", {"relay-hops": "7", "X": CANARY}, 508),
        (f"/hooks/open?{CANARY}", {"Content-Length": "99999999"}, 413),
    ],
)
@pytest.mark.row("T27", "T12")
async def test_no_answer_repeats_what_was_sent_or_names_what_we_are_built_of(
    start: Start, path: str, headers: dict[str, str], status: int
) -> None:
    """Constant bodies, a plain `Server`, and nothing of it in the log but lines of our own."""
    relay = await start(SOURCES | {"closed": SOURCES["open"] | {"allow_ips": ["10.0.0.0/8"]}})
    answer = await relay.raw(request(path, CANARY.encode(), headers))
    assert answer.status == status
    assert list(answer.json) == ["error"]
    await relay.log()
    for told in (answer.head, answer.body, relay.log_text().encode()):
        assert CANARY.encode() not in told
    assert answer["server"] == "relay"
    assert re.search(rb"aiohttp|python", answer.head, re.IGNORECASE) is None


async def test_the_good_answers_name_a_plain_server_too(gateway: Gateway) -> None:
    """Nobody learns the version of anything."""
    auth = {"Authorization": f"Bearer {TOKEN}"}
    answers = [
        await gateway.post("/hooks/open"),
        await gateway.raw(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"),
        await gateway.call("/healthz"),
        await gateway.call("/metrics", headers=auth),
        await gateway.call("/api/v1/targets", headers=auth),
        await gateway.call("/nowhere", headers=auth),
    ]
    assert {answer["server"] for answer in answers} == {"relay"}


async def test_an_ordinary_client_keeps_its_connection(gateway: Gateway) -> None:
    """aiohttp's own client, with a body in chunks, over one connection."""

    async def parts() -> Any:
        for part in (b'{"type": ', b'"paid"}'):
            yield part

    url = "http://{}:{}/hooks/open".format(*gateway.hooks)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(3):
            async with session.post(url, data=parts()) as answer:
                assert (answer.status, (await answer.json())["duplicate"]) == (200, False)
    assert gateway.app._hooks._server.requests_count == 3
    assert [row[1:] for row in gateway.stored()] == [("paid", b'{"type": "paid"}')] * 3


@pytest.mark.row("B21")
async def test_a_bug_of_ours_is_a_503_that_is_told_and_counted(gateway: Gateway) -> None:
    """Never a 4xx, which some senders do not retry, and never an echo. The rule stands for any code of ours."""

    def broken(_: object) -> str:
        raise RuntimeError("a rule with a bug")

    desk = gateway.app._ingress._desks["/hooks/open"]
    desk.source = dataclasses.replace(desk.source, event_type=broken)
    answer = await gateway.post("/hooks/open")
    assert answer["retry-after"] == "2"
    await gateway.turned_away(answer, 503, "internal", source="open")
    assert "a rule with a bug" in (await gateway.told("request.failed"))["error"]
    assert b"bug" not in answer.body


@pytest.mark.row("T16", "T23")
async def test_the_bytes_in_hand_are_bounded_over_all_connections(start: Start) -> None:
    """Bodies of undeclared length cannot fill the memory together, however large one may be."""
    relay = await start(OPEN, server={"max_body": "64MiB"})
    part = bytes(1024 * 1024)
    begun = b"POST /hooks/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with wired(relay.hooks) as one, wired(relay.hooks) as two:
        forty = begun + (b"%x\r\n%b\r\n" % (len(part), part)) * 40
        await one.send(forty)
        await until(lambda: relay.app._ingress._intake.in_hand == 40 * len(part))
        await two.send(forty)
        answer = await two.answer()
        assert (answer["connection"], answer["retry-after"]) == ("close", "2")
        await relay.turned_away(answer, 503, "memory", source="open")
        await one.send(chunked())
        assert (await one.answer()).status == 200
