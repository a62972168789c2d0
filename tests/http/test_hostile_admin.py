"""Whatever a caller of the admin API sends, with the token or without: an answer that the API knows, never a fault."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.store.following import Position
from tests.http.configs import document
from tests.http.gateway import (
    AUTH,
    JSON,
    PATIENCE,
    TARGETS,
    TOKEN,
    Answer,
    Gateway,
    Start,
    Target,
    assert_problem,
    chunked,
    request,
    running,
    until,
    wired,
)
from tests.http.test_fuzz_http import statuses

EVENTS = "/api/v1/events"
REPLAYS = "/api/v1/replays"


async def no_fault_of_ours(gateway: Gateway) -> None:
    """No line tells of one."""
    assert not [line for line in await gateway.log() if line["level"] in {"error", "critical"}]


ODD_QUERIES = [
    "limit=0",
    "limit=-1",
    "limit=201",
    "limit=1e9",
    "limit=abc",
    "limit=1.0",
    "limit=%2B5",
    "limit=%205",
    "limit=1_0",
    "limit=0x10",
    "limit=%D9%A3",
    "limit=%C2%B2",
    "limit=00000000199999999999999999999",
    "limit=0000000019999",
    "limit=" + "9" * 250,
    "limit=" + "9" * 7000,
    "limit=%00",
    "limit",
    "limit=5&limit=5",
    "limit=5;limit=5",
    "limit=true",
    "limit=NaN",
    "cursor=-1",
    "cursor=abc",
    "cursor=" + "9" * 19,
    "cursor=" + "9" * 400,
    "cursor=1-2-3-4",
    "cursor=ZXZ0XzAxTThNRDc=",
    "cursor=evt_01M8MD7D5YZMSTNDTZG7DP7EP7",
    "cursor=1%00",
    "cursor=%D9%A3",
    "cursor=1;DROP%20TABLE%20event",
    "cursor=",
    "since=yesterday",
    "since=1h2m",
    "since=-1h",
    "since=" + "9" * 10 + "d",
    "until=2026-02-30",
    "until=" + "2" * 300,
    "state=DEAD",
    "state=dead&state=pending",
    "type=" + "x" * 257,
    "target=%ED%A0%80&x=1",
    "=",
    "%00=1",
    "__class__=1",
]


@pytest.mark.row("H61")
async def test_an_odd_limit_cursor_or_time_is_refused(gateway: Gateway) -> None:
    """By its name and with 400, whatever its digits would mean to somebody else."""
    for query in ODD_QUERIES:
        for path in (EVENTS, "/api/v1/refusals"):
            answer = await gateway.call(f"{path}?{query}", headers=AUTH)
            assert (query, answer.status) == (query, 400)
            assert_problem(answer, 400)
    await no_fault_of_ours(gateway)


@pytest.mark.row("H61")
async def test_what_is_odd_and_yet_right_is_taken(gateway: Gateway) -> None:
    """A page has two hundred at most; a cursor of another store is a number like ours, and shows where that number
    leads."""
    for query in ("limit=007", "limit=200", "cursor=0", "cursor=" + "9" * 18, "since=9999-12-31", "&&"):
        answer = await gateway.call(f"{EVENTS}?{query}", headers=AUTH)
        assert (query, answer.status, answer.json) == (query, 200, {"events": [], "next_cursor": None})


IDS = [
    "..",
    "../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cx",
    "1%20OR%201=1",
    "';DROP%20TABLE%20event;--",
    "%00",
    "evt_%00",
    "%ff%fe",
    "%ED%A0%80",
    "%E2%80%AE",
    "x" * 7900,
    "-1",
    "0",
    "NaN",
    "*",
    "%2a",
    "<script>alert(1)</script>",
    "%0d%0aX-Evil:1",
    "evt_01M8MD7D5YZMSTNDTZG7DP7EP7",
    "EVT_01M8MD7D5YZMSTNDTZG7DP7EP7",
    "{}",
    ".",
    "%",
    "%zz",
]


@pytest.mark.row("H59", "T33")
async def test_an_odd_id_is_not_found(gateway: Gateway) -> None:
    """It is compared with ids and used for nothing else; nothing of it is repeated."""
    for id_ in IDS:
        for method, path in calls_with(id_):
            answer = await gateway.call(path, method=method, headers=AUTH)
            assert (method, path, answer.status in {404, 405}) == (method, path, True)
            assert len(id_) < 4 or id_.encode() not in answer.head + answer.body
            assert answer["x-evil"] is None
    await no_fault_of_ours(gateway)


def calls_with(id_: str) -> list[tuple[str, str]]:
    """Every call that takes an id or a name."""
    return [
        ("GET", f"{EVENTS}/{id_}"),
        ("GET", f"{EVENTS}/{id_}/body"),
        ("DELETE", f"{EVENTS}/{id_}"),
        ("POST", f"{EVENTS}/{id_}/replay"),
        ("GET", f"{REPLAYS}/{id_}"),
        ("POST", f"{REPLAYS}/{id_}/cancel"),
        ("POST", f"{TARGETS}/{id_}/discard"),
    ]


@pytest.mark.row("H59")
async def test_an_id_in_bytes_that_no_url_has_is_malformed(gateway: Gateway) -> None:
    """Bytes beyond ASCII stand percent-encoded in a path, or nowhere (RFC 3986, section 2)."""
    for odd in (b"\xff\xfe", "é".encode(), b"\xed\xa0\x80", b"\x7f"):
        data = b"GET /api/v1/events/%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (odd, TOKEN.encode())
        assert_problem(await gateway.raw(data, at=gateway.admin), 400)


@pytest.mark.row("H58", "B21")
async def test_a_body_as_deep_as_it_can_just_be_read_is_no_fault_of_ours(gateway: Gateway) -> None:
    """Some depth is the first that cannot be read, and another the first that cannot be walked: each is refused."""
    async with wired(gateway.admin) as wire:
        for depth in range(900, 1010):
            for body in (b'{"reason": ' + b"[" * depth + b"]" * depth + b"}", b'{"a":' * depth + b"1" + b"}" * depth):
                await wire.send(request(f"{TARGETS}/crm/disable", body, JSON))
                assert (await wire.answer()).status in {400, 422}
    await no_fault_of_ours(gateway)


CONTENT_TYPES = [
    ("(" * 500, 415),
    ("application/json" + "(" * 500, 415),
    ("application/json; " + "(" * 4000, 200),
    ('application/json; a="' + '\\"' * 2000, 200),
    ("application/json; charset=\xff", 200),
    ("application/json;;;;", 200),
    (" APPLICATION/json ;x", 200),
    ("application/json; a*0*=''%ff; a*1=x", 200),
    ("application/json, text/plain", 415),
    ("text/json", 415),
    ("application/x-json", 415),
    ("=?utf-8?q?application/json?=", 415),
    ("multipart/form-data; boundary=x", 415),
    (";", 415),
    ("", 415),
    ("\xff", 415),
]


@pytest.mark.row("H58")
async def test_a_content_type_is_read_as_far_as_its_semicolon(gateway: Gateway) -> None:
    """What follows is nobody's business, however it is nested, quoted or encoded."""
    for content_type, status in CONTENT_TYPES:
        headers = AUTH | {"Content-Type": content_type}
        answer = await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=headers, body=b'{"reason": "x"}')
        assert (content_type, answer.status) == (content_type, status)
    await no_fault_of_ours(gateway)


@pytest.mark.row("H26", "T13")
async def test_a_body_in_another_coding_than_chunked_is_refused(gateway: Gateway) -> None:
    """As on the public listener; the connection ends with it."""
    for coding in ("gzip, chunked", "gzip,chunked", "deflate, chunked", "x, chunked"):
        head = request(f"{TARGETS}/crm/disable", headers=JSON | {"Transfer-Encoding": coding})
        async with wired(gateway.admin) as wire:
            await wire.send((head + chunked(b'{"reason": "x"}')) * 2)
            assert_problem(await wire.answer(), 400)
            assert await wire.rest() == b""
    assert gateway.app._dispatcher.health("crm").state == "active"


AUTHORIZATIONS = [
    [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
    [f"Bearer {TOKEN}", "Bearer wrong"],
    ["Bearer wrong", f"Bearer {TOKEN}"],
    [f"Bearer {TOKEN}", ""],
    [f"Bearer {TOKEN}, Bearer {TOKEN}"],
    [f"Bearer\t{TOKEN}"],
    [f"Bearer={TOKEN}"],
    [f"Bearer token={TOKEN}"],
    [f"bearer{TOKEN}"],
    [f"Token {TOKEN}"],
]


@pytest.mark.row("H57", "T4")
async def test_a_token_that_is_said_twice_or_otherwise_opens_nothing(gateway: Gateway) -> None:
    """One line, one token; two are ambiguous also where they agree."""
    for lines in AUTHORIZATIONS:
        answer = await gateway.call(TARGETS, headers=[("Authorization", line) for line in lines])
        assert (lines, answer.status) == (lines, 401)


FETCHES = [
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
    ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "whatever-comes-next"}, 403),
    ({"Sec-Fetch-Site": ""}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ({}, 200),
]


@pytest.mark.row("T29", "H58")
async def test_what_a_browser_sends_for_a_page_of_another_site_is_refused(
    start: Start,
) -> None:
    """Also where it names no origin, as for an image, and where no token is set. A link is somebody's own doing; a form
    is not."""
    relay = await start(admin={"token": ""})
    for fetch, status in FETCHES:
        assert (fetch, (await relay.call(TARGETS, headers=fetch)).status) == (fetch, status)
        posted = await relay.call(f"{TARGETS}/crm/disable", method="POST", headers=fetch)
        is_ours = fetch.get("Sec-Fetch-Site") in {None, "none", "same-origin"}
        assert (fetch, posted.status) == (fetch, 200 if is_ours else 403)


HOSTS = [
    "evil.example:8081",
    "localhost.",
    "localhost@evil.example",
    "evil.example#localhost",
    "127.0.0.1.nip.io",
    "127.1",
    "2130706433",
    "0x7f000001",
    "[::1",
    "::1",
    "::1:8081",
    "[::ffff:127.0.0.1]",
    "[fe80::1%25lo]",
    "[::1].evil.example:80",
    "localhost,evil.example",
    "127.0.0.1 evil.example",
    "",
]


@pytest.mark.row("T29", "H58")
async def test_a_name_that_is_only_like_this_machines_is_foreign(start: Start) -> None:
    """A name server may have any of them mean 127.0.0.1, so none but the usual ones is served without a token."""
    relay = await start(admin={"token": ""})
    for host in HOSTS:
        answer = await relay.call(TARGETS, host=host)
        assert (host, answer.status in {400, 421}) == (host, True)
        assert_problem(await relay.call(f"{TARGETS}/crm/disable", method="POST", host=host), answer.status)
    assert relay.app._dispatcher.health("crm").state == "active"


ODD_REPLAYS: list[Any] = [
    {"state": "dead", "limit": float("nan")},
    {"state": "dead", "limit": float("inf")},
    {"state": "dead", "limit": True},
    {"state": "dead", "limit": "5"},
    {"state": "dead", "limit": 10**400},
    {"state": "dead", "limit": 1_000_000_001},
    {"state": "dead", "limit": 0},
    {"state": "dead", "rate": "1/0s"},
    {"state": "dead", "rate": "-1/s"},
    {"state": "dead", "rate": "1e3/s"},
    {"state": "dead", "rate": "٣/s"},
    {"state": "dead", "rate": "1/s\n"},
    {"state": "dead", "rate": 50},
    {"state": ["dead"]},
    {"state": {"dead": 1}},
    {"state": None},
    {},
    {"state": "dead", "since": "\x00"},
    {"state": "dead", "since": ["1h"]},
    {"state": "dead", "dry_run": 1},
    {"state": "dead", "source": ""},
    {"state": "dead", "type": "x" * 300},
    {"state": "dead", "__proto__": {}},
    [],
    "dead",
]


@pytest.mark.row("H58", "H61", "T31")
async def test_a_replay_that_makes_no_sense_is_refused_and_begins_nothing(gateway: Gateway) -> None:
    """Each with words that say what would be right."""
    for body in ODD_REPLAYS:
        answer = await gateway.call(REPLAYS, method="POST", headers=JSON, body=json.dumps(body).encode())
        assert (body, answer.status) == (body, 422)
        assert_problem(answer, 422)
    assert (await gateway.call(REPLAYS, headers=AUTH)).json == {"replays": []}


@pytest.mark.row("T31", "B63")
async def test_replaying_needs_the_token_has_a_rate_and_is_told(start: Start) -> None:
    """Nobody without the token sends anything again; who has it does so at a rate, and leaves a line behind."""
    relay = await start(targets={"crm": {"url": "${TARGET}", "retry": {"schedule": []}}})
    relay.target.status = 400
    posted = await relay.post("/hooks/open", b'{"id": 1}')
    path, body = f"{EVENTS}/{posted.json['id']}/replay", b'{"state": "dead"}'
    await until(lambda: relay.rows("SELECT state FROM delivery") == [("dead",)])
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"token={TOKEN}"}):
        denied = headers | {"Content-Type": "application/json"}
        assert_problem(await relay.call(path, method="POST", headers=denied), 401)
        assert_problem(await relay.call(REPLAYS, method="POST", headers=denied, body=body), 401)
    assert len(relay.target.arrivals) == 1
    relay.target.status = 200
    job = (await relay.call(REPLAYS, method="POST", headers=JSON, body=body)).json
    assert (job["total"], job["rate"]) == (1, "50/s")
    arrival = await relay.target.next(2)
    assert arrival["relay-replay"] == "1"
    line = await relay.told("replay.started")
    assert line["rate"] == "50/s"
    await until(lambda: relay.rows("SELECT state FROM delivery") == [("delivered",)])
    await relay.call(path, method="POST", headers=AUTH)
    assert (await relay.told("event.replayed"))["event_id"] == posted.json["id"]


PAGE = b"<!doctype html><script>alert(document.domain)</script>"


@pytest.mark.row("T30", "B63")
async def test_nothing_of_an_event_is_ever_a_page(start: Start) -> None:
    """Whatever stands in a webhook's headers and body, and however it is asked for: no answer is HTML, and no browser
    takes it for some."""
    relay = await start()
    evil = {"Content-Type": "text/html", "X-Name": PAGE.decode(), "Accept": "text/html"}
    body = json.dumps({"id": 1, "type": PAGE.decode()}).encode()
    posted = await relay.post("/hooks/open", body, evil)
    page = await relay.post("/hooks/open", PAGE, evil)
    await relay.post("/hooks/key", PAGE, evil | {"X-Key": PAGE.decode()})
    browser = AUTH | {"Accept": "text/html,application/xhtml+xml,*/*"}
    event = f"{EVENTS}/{posted.json['id']}"
    paths = [EVENTS, event, f"{event}?body=true", f"{event}/body", f"{EVENTS}/{page.json['id']}/body"]
    paths += ["/api/v1/refusals", "/api/v1/stats", "/api/v1/status", "/metrics", "/healthz", "/readyz", TARGETS]
    paths += ["/api/v1/openapi.json", "/api/v1/nowhere", f"{EVENTS}/<script>", "/api/v1/backup"]
    for answer in [await relay.call(path, headers=browser) for path in paths]:
        assert_no_page(answer)
    async with wired(relay.admin) as wire:
        await wire.send(request("/api/v1/stream?from=start", headers=browser, method="GET", length=False))
        assert_no_page(await wire.answer(to_head=True))
    assert_no_page(await relay.raw(b"GARBAGE <script>\r\n\r\n", at=relay.admin))
    for answer in (posted, page):
        assert answer["content-type"] == "application/json; charset=utf-8"[: len(answer["content-type"] or "")]
        assert b"script" not in answer.body


def assert_no_page(answer: Answer) -> None:
    """Its type is none that a browser runs, and it may not guess another, keep it, frame it or load anything for it."""
    declared = (answer["content-type"] or "").partition(";")[0]
    assert declared in {
        "application/json",
        "application/problem+json",
        "application/octet-stream",
        "application/vnd.sqlite3",
        "text/plain",
        "text/event-stream",
    }
    assert (answer["x-content-type-options"], answer["cache-control"]) == ("nosniff", "no-store")
    assert answer["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


PLACES = ["", "0", "1-2-3", "1-2-3-4-5", "-1-0-0-0", "1-2-3-٣", "9" * 19 + "-0-0-0", "\xff", "1-2-3-4\t1", "9" * 4000]


async def test_an_odd_place_in_the_stream_is_refused(gateway: Gateway) -> None:
    """A place is four numbers, as a message of the stream has said."""
    for place in PLACES:
        headers = AUTH | {"Last-Event-ID": place.encode().decode("latin-1")}
        assert (place, (await gateway.call("/api/v1/stream", headers=headers)).status) == (place, 400)


NUMBERS = st.integers(0, 10**18 - 1)


@settings(deadline=None)
@given(st.builds(Position, NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.text())
def test_a_place_in_the_stream_is_read_as_it_was_written(position: Position, noise: str) -> None:
    """And nothing else is one."""
    assert Position.parse(str(position)) == position
    found = Position.parse(noise)
    assert found is None or len(str(found)) <= len(noise)


METHODS = st.sampled_from(["GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE"])
PARTS = st.sampled_from(
    [
        "api",
        "v1",
        "events",
        "refusals",
        "stats",
        "targets",
        "crm",
        "enable",
        "disable",
        "test",
        "discard",
        "replays",
        "replay",
        "prune",
        "status",
        "body",
        "pause",
        "cancel",
        "stream",
        "metrics",
        "..",
        "%00",
        "%2e",
        "{id}",
        "x",
    ]
)
PATHS = st.one_of(
    st.sampled_from([EVENTS, "/api/v1/refusals", f"{TARGETS}/crm/disable", REPLAYS, "/api/v1/prune", "/api/v1/stats"]),
    st.lists(PARTS, max_size=6).map(lambda parts: "/" + "/".join(parts)),
)
NAMES = st.sampled_from(["limit", "cursor", "since", "until", "state", "type", "target", "source", "body", "from", "x"])
WORDS = st.one_of(
    st.sampled_from(
        ["1", "0", "200", "1h", "2026-01-01T00:00:00Z", "held", "unrouted", "dead", "true", "crm", "[", "*"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=12),
    st.binary(max_size=6).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)),
)
QUERIES = st.lists(st.tuples(NAMES, WORDS), max_size=4).map(lambda some: "&".join(f"{key}={one}" for key, one in some))
KEYS = st.sampled_from(
    ["state", "since", "until", "source", "type", "target", "limit", "rate", "dry_run", "event", "reason"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.one_of(
    st.just(b""),
    st.dictionaries(KEYS, VALUES, max_size=4).map(lambda value: json.dumps(value).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
)
KNOWN = {200, 400, 401, 403, 404, 405, 409, 411, 413, 415, 417, 422}


async def ask(gateway: Gateway, method: str, path: str, body: bytes) -> list[int]:
    headers = [*JSON.items(), ("Content-Length", str(len(body))), ("Connection", "close")]
    async with wired(gateway.admin) as wire:
        await wire.send(request(path, body, headers, method=method, host="localhost"))
        wire.writer.write_eof()
        found = await wire.rest()
    return statuses(found) if method != "HEAD" else [int(found.split(b" ")[1])]


@pytest.mark.slow
@pytest.mark.row("H58", "H59", "H61", "B21")
def test_no_call_of_who_has_the_token_is_a_fault_of_ours(tmp_path: Path) -> None:
    """Four hundred calls that are half right, each with one answer that the API knows; the log tells of no fault."""
    with asyncio.Runner() as runner:
        target = Target()
        runner.run(target.start())
        context = running(tmp_path, document(), target)
        gateway = runner.run(context.__aenter__())

        @settings(
            max_examples=400,
            deadline=PATIENCE * 1000,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(METHODS, PATHS, QUERIES, BODIES)
        def example(method: str, path: str, query: str, body: bytes) -> None:
            found = runner.run(ask(gateway, method, f"{path}?{query}" if query else path, body))
            assert len(found) == 1
            assert found[0] in KNOWN

        try:
            for number in range(3):
                runner.run(gateway.post("/hooks/open", json.dumps({"id": number, "type": "t"}).encode()))
            example()
            runner.run(no_fault_of_ours(gateway))
            assert runner.run(gateway.call("/readyz")).status == 200
        finally:
            runner.run(context.__aexit__(None, None, None))
            runner.run(target.stop())
