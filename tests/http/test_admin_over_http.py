"""The admin listener: who may call it, what it shows, and how it steers the targets."""

import inspect
import re

import pytest

from relay import admin
from tests.http.gateway import (
    AUTH,
    JSON,
    TARGETS,
    TOKEN,
    Gateway,
    Start,
    assert_problem,
    chunked,
    request,
    until,
    wired,
)

CALLS = [
    ("GET", "/metrics"),
    ("GET", TARGETS),
    ("POST", f"{TARGETS}/crm/enable"),
    ("POST", f"{TARGETS}/crm/disable"),
    ("POST", f"{TARGETS}/crm/test"),
    ("POST", "/api/v1/reload"),
]


async def tokenless(start: Start) -> Gateway:
    return await start(admin={"token": ""})


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.row("T32", "H57")
async def test_health_and_readiness_need_no_token(gateway: Gateway, path: str) -> None:
    """A probe of an orchestrator has none; foreign names for us are its habit."""
    answer = await gateway.call(path, host="10.1.2.3:8081")
    assert (answer.status, list(answer.json)) == (200, ["status"])
    wrong = await gateway.call(path, method="POST")
    assert_problem(wrong, 405)
    assert wrong["allow"] == "GET, HEAD"


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", "/nowhere"), ("DELETE", TARGETS)])
@pytest.mark.row("H57", "T29", "T31")
async def test_every_other_call_needs_the_token_first(gateway: Gateway, method: str, path: str) -> None:
    """Nothing is told to a stranger, not even what exists."""
    answer = await gateway.call(path, method=method)
    assert_problem(answer, 401)
    assert answer["www-authenticate"] == "Bearer"
    assert gateway.app._dispatcher.health("crm").state == "active"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN} {TOKEN}"},
        {"Authorization": "Bearer \xff\xfe\xe9"},
        {"Cookie": f"token={TOKEN}"},
        {"X-Api-Key": TOKEN},
    ],
)
@pytest.mark.row("H57")
async def test_the_token_counts_in_its_header_alone(gateway: Gateway, headers: dict[str, str]) -> None:
    """Whole and exact; in a query or a cookie it is ignored. All refusals are the same."""
    answers = [
        await gateway.call(TARGETS, headers=headers),
        await gateway.call(TARGETS),
        await gateway.call(f"{TARGETS}?token={TOKEN}"),
        await gateway.call("/metrics", headers=headers),
    ]
    assert len({answer.timeless for answer in answers}) == 1
    assert_problem(answers[0], 401)
    await gateway.log()
    assert TOKEN not in gateway.log_text()


@pytest.mark.row("H57")
def test_the_token_is_compared_in_constant_time() -> None:
    """By the one function that is made for it; a `==` on it would be a leak."""
    source = inspect.getsource(admin.Admin._admit)
    assert re.search(r"hmac\.compare_digest\([^=]*self\._token\.value", source, re.DOTALL)
    assert "== self._token" not in source


@pytest.mark.row("H57", "T26")
async def test_who_guesses_the_token_does_not_fill_the_log(gateway: Gateway) -> None:
    """One line a second, with the number of tries."""
    for _ in range(50):
        await gateway.call(TARGETS)
    lines = await gateway.log("admin.denied")
    assert 1 <= len(lines) < 20
    assert (lines[0]["remote"], lines[0]["path"], lines[0]["count"]) == ("127.0.0.1", TARGETS, 1)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
async def test_the_token_opens_every_call(gateway: Gateway, scheme: str) -> None:
    """The scheme's case does not count (RFC 9110, section 11.1)."""
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    answers = [await gateway.call(path, method=method, headers=headers) for method, path in CALLS]
    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://localhost:1", "http://localhost.evil"])
@pytest.mark.row("H58", "T29")
async def test_a_page_of_another_origin_is_refused(gateway: Gateway, origin: str) -> None:
    """Token or not."""
    answer = await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH | {"Origin": origin})
    assert_problem(answer, 403)
    assert gateway.app._dispatcher.health("crm").state == "active"


async def test_a_page_of_our_own_origin_is_served(gateway: Gateway) -> None:
    """Host and origin agree."""
    headers = AUTH | {"Origin": "http://localhost:8081"}
    assert (await gateway.call(TARGETS, headers=headers, host="localhost:8081")).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil:80", "[::2]", "\xff"])
@pytest.mark.row("H58", "T29")
async def test_without_a_token_a_foreign_host_is_not_served(start: Start, host: str) -> None:
    """A page whose name was made to mean this machine."""
    relay = await tokenless(start)
    assert_problem(await relay.call(TARGETS, host=host), 421)
    assert_problem(await relay.raw(b"GET /metrics HTTP/1.0\r\n\r\n", at=relay.admin), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8081", "127.0.0.1:1", "[::1]", "[::1]:8081"])
async def test_without_a_token_this_machine_is_served(start: Start, host: str) -> None:
    """By each of its usual names."""
    relay = await tokenless(start)
    assert (await relay.call(TARGETS, host=host)).status == 200


async def test_with_a_token_any_host_is_served(gateway: Gateway) -> None:
    """The token is the proof, and names behind a proxy are not ours to know."""
    assert (await gateway.call(TARGETS, headers=AUTH, host="relay.internal.example")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", TARGETS, "GET"),
        ("DELETE", "/metrics", "GET"),
        ("GET", f"{TARGETS}/crm/enable", "POST"),
        ("PUT", f"{TARGETS}/crm/disable", "POST"),
    ],
)
@pytest.mark.row("H58")
async def test_another_method_is_405_and_told_which(gateway: Gateway, method: str, path: str, allow: str) -> None:
    """So that no link or image can steer."""
    answer = await gateway.call(path, method=method, headers=AUTH)
    assert_problem(answer, 405)
    assert answer["allow"] == allow


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "..",
        "%2e%2e%2f%2e%2e%2fx",
        "1%20OR%201=1",
        "%00",
        "x" * 7000,
        "crm%2fenable",
        "CRM",
        "<script>",
        "';--",
    ],
)
@pytest.mark.row("H59")
async def test_an_unknown_target_is_404_and_the_known_ones_are_named(gateway: Gateway, name: str) -> None:
    """Whatever stands in its place, and without repeating it."""
    for verb in ("enable", "disable", "test"):
        answer = await gateway.call(f"{TARGETS}/{name}/{verb}", method="POST", headers=AUTH)
        assert assert_problem(answer, 404)["detail"] == "unknown target; known: crm"


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v1", f"{TARGETS}/crm", f"{TARGETS}/crm/drop", "/api/v1/../targets"]
)
@pytest.mark.row("H59", "T15", "T33")
async def test_there_are_no_other_calls(gateway: Gateway, path: str) -> None:
    """Nor files."""
    for method in ("GET", "POST"):
        assert (await gateway.call(path, method=method, headers=AUTH)).status in {404, 405}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"reason=x", 415),
        ({}, b"{}", 415),
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"\xff\xfe", 400),
        ({"Content-Type": "application/json"}, b"[" * 60_000, 400),
        ({"Content-Type": "application/json"}, b'{"a": ' + b"9" * 5000 + b"}", 400),
        ({"Content-Type": "application/json"}, b"[]", 422),
        ({"Content-Type": "application/json"}, b"null", 422),
        ({"Content-Type": "application/json"}, b'{"reason": 7}', 422),
        ({"Content-Type": "application/json"}, b'{"raeson": "typo"}', 422),
        ({"Content-Type": "application/json"}, b'{"reason": "' + b"x" * 201 + b'"}', 422),
        ({"Content-Type": "application/json"}, b" " * 70_000, 413),
        ({"Content-Type": "application/json", "Expect": "something"}, b"{}", 417),
    ],
)
@pytest.mark.row("H58")
async def test_a_body_that_makes_no_sense_is_refused_and_changes_nothing(
    gateway: Gateway, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Each with the status that says what is wrong."""
    answer = await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH | headers, body=body)
    assert_problem(answer, status)
    assert gateway.app._dispatcher.health("crm").state == "active"


@pytest.mark.row("H58")
async def test_a_broken_body_is_400(gateway: Gateway) -> None:
    """Bad chunks, or a client that leaves, are no fault of ours."""
    head = request(f"{TARGETS}/crm/disable", headers=JSON | {"Transfer-Encoding": "chunked"})
    assert_problem(await gateway.raw(head + b"2\r\n{}zz\r\n", at=gateway.admin), 400)
    async with wired(gateway.admin) as wire:
        await wire.send(head + b"5\r\n")
        await until(lambda: gateway.app._admin._server.connections)
        wire.reset()
    await until(lambda: not gateway.app._admin._server.connections)
    assert not [line for line in await gateway.log() if line["level"] == "error"]


async def test_a_caller_that_waits_to_be_asked_is_asked(gateway: Gateway) -> None:
    """With the token, that is."""
    body = chunked(b'{"reason": "works"}')
    async with wired(gateway.admin) as wire:
        head = request(
            f"{TARGETS}/crm/disable", headers=JSON | {"Transfer-Encoding": "chunked", "Expect": "100-continue"}
        )
        await wire.send(head)
        assert (await wire.answer()).status == 100
        await wire.send(body)
        assert (await wire.answer()).json["reason"] == "works"
        await wire.send(head.replace(TOKEN.encode(), b"wrong"))
        denied = await wire.answer()
        assert (denied.status, denied["connection"]) == (401, "close")


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
    ],
)
@pytest.mark.row("H40", "T13", "T27")
async def test_what_is_no_http_is_a_problem_too(gateway: Gateway, data: bytes) -> None:
    """One kind of error on this listener, whoever finds it."""
    answer = await gateway.raw(data, at=gateway.admin)
    assert assert_problem(answer, 400)["detail"] == "malformed request"
    assert answer["server"] == "relay"


@pytest.mark.row("H40", "T14")
async def test_other_versions_of_http_are_505(gateway: Gateway) -> None:
    """As on the public listener."""
    answer = await gateway.raw(b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", at=gateway.admin)
    assert_problem(answer, 505)
    assert answer.head.startswith(b"HTTP/1.1 505 ")
