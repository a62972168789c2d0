"""Another config for a relay that runs: taken up whole, or nothing changes."""

import asyncio
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from relay.delivery.sender import Sender
from tests.http.configs import SOURCES, document
from tests.http.gateway import AUTH, ENV, TARGETS, Gateway, Start, Target, request, signature, until, wired
from tests.http.outages import fill
from tests.support.certificates import self_signed
from tests.support.config_keys import BAD, by_depth, holding
from tests.support.odd_files import ODD

OPEN, KEY, SIGNED = ({name: SOURCES[name]} for name in ("open", "key", "signed"))
NOTHING: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
KINDS = ("sources", "targets", "routes", "enrichers")
UNCHANGED = {"reloaded": True, **dict.fromkeys(KINDS, NOTHING), "needs_restart": []}
PROMETHEUS = ("relay_config_reload_success", ())
DOWN = {"timeout": "1s", "retry": {"schedule": ["100ms", "100ms"]}, "disable_after": 1}


def to(*targets: str, sources: dict[str, Any] = SOURCES) -> list[dict[str, Any]]:
    """The only route, to these targets."""
    return [{"name": "all", "from": list(sources), "to": list(targets)}]


async def shown(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """The targets as the API shows them."""
    return {one["name"]: one for one in (await gateway.call(TARGETS, headers=AUTH)).json["targets"]}


async def shows(gateway: Gateway, name: str, **wanted: object) -> dict[str, Any]:
    """A target, waited for until it is shown so."""
    async with asyncio.timeout(10):
        while True:
            view = (await shown(gateway)).get(name, {})
            if wanted.items() <= view.items():
                return view
            await asyncio.sleep(0.01)


async def test_the_same_file_changes_nothing_and_says_so(gateway: Gateway) -> None:
    """Every list is empty; the config's doubts are told again, as at a start."""
    answer = await gateway.reload(gateway.config.read_text())
    assert (answer.status, answer.json) == (200, UNCHANGED)
    line = await gateway.told("config.reloaded")
    assert {key: line[key] for key in UNCHANGED if key != "reloaded"} == {
        key: value for key, value in UNCHANGED.items() if key != "reloaded"
    }
    assert any("open" in line["reason"] for line in await gateway.log("config.warning"))


async def test_sources_come_go_and_change(start: Start) -> None:
    """A new one is received, a removed one is unknown, a changed one is judged anew, its events named anew."""
    gateway = await start(KEY | OPEN)
    changed = {"open": SOURCES["open"] | {"event_type": "kind"}}
    answer = await gateway.reload(document(changed | SIGNED))
    assert answer.json["sources"] == {"added": ["signed"], "removed": ["key"], "changed": ["open"]}
    assert answer.json["routes"]["changed"] == ["all"]
    assert (await gateway.post("/hooks/key", headers={"X-Key": ENV["SECRET"]})).status == 404
    assert (await gateway.post("/hooks/signed", headers=signature(b"{}"))).status == 200
    assert (await gateway.post("/hooks/open", b'{"type": "a", "kind": "b"}')).status == 200
    assert [kind for source, kind, _ in gateway.stored() if source == "open"] == ["b"]
    assert gateway.counted("key") == {}


async def test_a_secret_is_rotated_by_a_reload(start: Start) -> None:
    """The new key is believed and the old one is not, from the next request on."""
    gateway = await start(KEY)
    new = "another-secret-of-ours"
    text = document({"key": SOURCES["key"] | {"secrets": [new]}})
    assert (await gateway.reload(text)).json["sources"]["changed"] == ["key"]
    assert (await gateway.post("/hooks/key", headers={"X-Key": ENV["SECRET"]})).status == 401
    assert (await gateway.post("/hooks/key", headers={"X-Key": new})).status == 200
    await gateway.log()
    assert new not in gateway.log_text()


async def test_what_is_remembered_of_a_source_stays(start: Start) -> None:
    """Its rate goes on counting, and three refusals in a row are three although a reload came in between."""
    limited = {"open": SOURCES["open"] | {"rate": "1/1h"}, "xoxoday": SOURCES["xoxoday"]}
    gateway = await start(limited)
    assert (await gateway.post("/hooks/open")).status == 200
    for _ in range(2):
        await gateway.post("/hooks/xoxoday")
    limited["xoxoday"] = limited["xoxoday"] | {"respond": {"status": 202}}
    assert (await gateway.reload(document(limited))).json["sources"]["changed"] == ["xoxoday"]
    assert (await gateway.post("/hooks/open")).status == 429
    await gateway.post("/hooks/xoxoday")
    assert (await gateway.told("source.may_be_switched_off"))["source"] == "xoxoday"


async def test_a_source_that_is_back_was_heard_when_it_was(start: Start) -> None:
    """What is shown of it begins with its last event, not with the reload that brings it back."""
    gateway = await start(OPEN | KEY)
    heard = ("relay_source_last_event_timestamp_seconds", (("source", "open"),))
    assert (await gateway.post("/hooks/open")).status == 200
    before = (await gateway.metrics())[heard]
    assert (await gateway.reload(document(KEY))).json["sources"]["removed"] == ["open"]
    assert heard not in await gateway.metrics()
    assert (await gateway.reload(document(OPEN | KEY))).json["sources"]["added"] == ["open"]
    ((received,),) = gateway.rows("SELECT received_at FROM event")
    after = (await gateway.metrics())[heard]
    assert received / 1000 <= after <= before


async def test_a_request_under_way_finishes_with_what_it_began_with(start: Start) -> None:
    """Its source is removed and its limit lowered while its body comes: it is accepted as it would have been."""
    gateway = await start(OPEN | KEY)
    body = b'"' + b"x" * 2000 + b'"'
    whole = request("/hooks/open", body)
    async with wired(gateway.hooks) as wire:
        await wire.send(whole[:-1])
        await until(lambda: gateway.app._ingress._intake.in_hand > 0)
        await gateway.reload(document(KEY, server={"max_body": "100B"}))
        await wire.send(whole[-1:])
        assert (await wire.answer()).status == 200
    assert (await gateway.post("/hooks/key", body, {"X-Key": ENV["SECRET"]})).status == 413
    assert len(gateway.stored()) == 1


async def test_targets_come_go_and_change(start: Start, other: Target) -> None:
    """A new one is delivered to, a changed one with its new headers, and metrics know both."""
    gateway = await start(OPEN, targets={"crm": {"url": "${TARGET}"}, "old": {"url": other.url}})
    targets = {"crm": {"url": "${TARGET}", "headers": {"X-New": "yes"}}, "new": {"url": other.url}}
    answer = await gateway.reload(document(OPEN, targets=targets, routes=to("crm", "new", sources=OPEN)))
    assert answer.json["targets"] == {"added": ["new"], "removed": ["old"], "changed": ["crm"]}
    await gateway.post("/hooks/open")
    assert (await gateway.target.next())["x-new"] == "yes"
    await other.next()
    assert (await shown(gateway)).keys() == {"crm", "new"}
    await until(lambda: gateway.rows("SELECT DISTINCT state FROM delivery") == [("delivered",)])
    samples = await gateway.metrics()
    assert samples["relay_delivery_attempts_total", (("outcome", "delivered"), ("target", "new"))] == 1
    assert not any(("target", "old") in labels for _, labels in samples)


async def test_what_a_removed_target_waits_for_is_held_until_it_is_back(start: Start, other: Target) -> None:
    """Shown, told, counted and never dropped; it leaves when the target is in the config again."""
    routes = to("crm", "spare", sources=OPEN)
    both = document(OPEN, targets={"crm": {"url": "${TARGET}"}, "spare": {"url": other.url}}, routes=routes)
    gateway = await start(OPEN, targets={"crm": {"url": "${TARGET}"}, "spare": {"url": other.url}}, routes=routes)
    await gateway.call(f"{TARGETS}/spare/disable", method="POST", headers=AUTH)
    await gateway.post("/hooks/open", b'{"id": 1}')
    await gateway.target.next()
    assert (await gateway.reload(document(OPEN))).json["targets"]["removed"] == ["spare"]
    view = await shows(gateway, "spare", state="disabled", held=1)
    assert view["reason"] == "not in the config: held until it is back"
    assert (await gateway.told("target.unknown"))["target"] == "spare"
    assert (await gateway.metrics())["relay_deliveries", (("state", "held"), ("target", "spare"))] == 1
    assert (await gateway.call(f"{TARGETS}/spare/enable", method="POST", headers=AUTH)).status == 404
    assert (await gateway.reload(both)).json["targets"]["added"] == ["spare"]
    await shows(gateway, "spare", state="disabled", disabled_by="by hand", held=1)  # health survives as well
    assert other.arrivals == []
    await gateway.call(f"{TARGETS}/spare/enable", method="POST", headers=AUTH)
    assert (await other.next()).body == b'{"id": 1}'


async def test_an_attempt_under_way_ends_where_it_began(start: Start, other: Target) -> None:
    """The changed target's attempt finishes at the old URL, once; the next goes to the new one."""
    gateway = await start(OPEN)
    gateway.target.gate.clear()
    await gateway.post("/hooks/open", b'{"id": 1}')
    await gateway.target.next()
    answer = await gateway.reload(document(OPEN, targets={"crm": {"url": other.url}}))
    assert answer.json["targets"]["changed"] == ["crm"]
    await gateway.post("/hooks/open", b'{"id": 2}')
    assert (await other.next()).body == b'{"id": 2}'
    gateway.target.gate.set()
    await until(lambda: gateway.rows("SELECT state FROM delivery") == [("delivered",)] * 2)
    assert (len(gateway.target.arrivals), len(other.arrivals)) == (1, 1)


async def test_what_the_old_url_still_says_does_not_count_at_the_new_one(start: Start, other: Target) -> None:
    """A 410 that was under way when the URL was changed disables nothing; the event goes to the new URL."""
    gateway = await start(OPEN, targets={"crm": {"url": "${TARGET}", "retry": {"schedule": ["100ms"]}}})
    gateway.target.status = 410
    gateway.target.gate.clear()
    await gateway.post("/hooks/open")
    await gateway.target.next()
    await gateway.reload(document(OPEN, targets={"crm": {"url": other.url, "retry": {"schedule": ["100ms"]}}}))
    gateway.target.gate.set()
    await other.next()
    assert (await shows(gateway, "crm", pending=0, in_flight=0))["state"] == "active"
    assert await gateway.log("target.disabled") == []


async def test_a_target_that_is_back_before_its_attempt_is_over_is_sent_nothing_twice(
    start: Start, other: Target
) -> None:
    """Removed and added again while the attempt hangs: the same lane goes on, and the event is delivered once."""
    gateway = await start(OPEN)
    gateway.target.gate.clear()
    await gateway.post("/hooks/open", b'{"id": 1}')
    await gateway.target.next()
    elsewhere = document(OPEN, targets={"new": {"url": other.url}}, routes=to("new", sources=OPEN))
    await gateway.reload(elsewhere)
    assert (await gateway.reload(document(OPEN))).json["targets"]["added"] == ["crm"]
    await gateway.post("/hooks/open", b'{"id": 2}')
    await gateway.target.next(2)
    gateway.target.gate.set()
    await until(lambda: gateway.rows("SELECT state FROM delivery") == [("delivered",)] * 2)
    assert sorted(arrival.body for arrival in gateway.target.arrivals) == [b'{"id": 1}', b'{"id": 2}']


async def test_health_survives_a_reload_and_a_new_url_is_probed_at_once(start: Start, other: Target) -> None:
    """A disabled target stays disabled with its count; only a change of where it is asks for a probe now."""
    gateway = await start(OPEN, targets={"crm": {"url": "${TARGET}"} | DOWN})
    gateway.target.status = 500
    await gateway.post("/hooks/open", b'{"id": 1}')
    before = await shows(gateway, "crm", state="disabled", held=1)
    await gateway.reload(document(OPEN, targets={"crm": {"url": "${TARGET}", "concurrency": 2} | DOWN}))
    assert await shown(gateway) == {"crm": before}
    assert before["failures"] == 1
    await gateway.reload(document(OPEN, targets={"crm": {"url": other.url} | DOWN}))
    assert (await other.next()).body == b'{"id": 1}'
    await shows(gateway, "crm", state="active", held=0, failures=0)
    assert (await gateway.told("target.enabled"))["target"] == "crm"
    assert len(gateway.target.arrivals) == 1


async def test_a_bad_file_changes_nothing_and_names_every_problem(start: Start) -> None:
    """422 with the config's own lines; the gauge says so until a reload is taken up."""
    gateway = await start(OPEN)
    assert (await gateway.metrics())[PROMETHEUS] == 1
    good = gateway.config.read_text()
    bad = document(
        KEY, targets={"crm": {"url": "${TARGET}", "timeout": 15}}, routes=to("cmr", sources=KEY), log={"level": "debug"}
    )
    answer = await gateway.reload(bad)
    assert (answer.status, answer["content-type"]) == (422, "application/problem+json")
    problem = answer.json
    assert [line.split(": ", 1)[1] for line in problem["problems"]] == [
        'targets.crm.timeout: "15" needs a unit (did you mean 15s?)',
        'routes[0].to[0]: unknown target "cmr"; did you mean "crm"? known: crm',
    ]
    assert all(line.startswith(f"{gateway.config}:") for line in problem["problems"])
    line = await gateway.told("config.reload_refused")
    assert (line["level"], line["problems"], line["reason"]) == ("error", problem["problems"], problem["detail"])
    assert (await gateway.metrics())[PROMETHEUS] == 0
    assert (await gateway.post("/hooks/key", headers={"X-Key": ENV["SECRET"]})).status == 404
    assert (await gateway.post("/hooks/open")).status == 200
    await gateway.target.next()
    assert (await gateway.reload(good)).json == UNCHANGED
    assert (await gateway.metrics())[PROMETHEUS] == 1


async def test_many_problems_are_clipped_in_the_log_alone(start: Start) -> None:
    """The API tells them all."""
    gateway = await start(OPEN)
    targets = {f"t{number}": {"url": "nowhere"} for number in range(50)}
    answer = await gateway.reload(document(OPEN, targets=targets, routes=to("t0", sources=OPEN)))
    assert len(answer.json["problems"]) == 50
    told = (await gateway.told("config.reload_refused"))["problems"]
    assert (len(told), told[-1]) == (21, "and 30 more")


async def test_a_file_that_is_gone_changes_nothing(gateway: Gateway) -> None:
    """It is a problem of the whole file."""
    gateway.config.unlink()
    answer = await gateway.call("/api/v1/reload", method="POST", headers=AUTH)
    assert answer.json["problems"] == [f"{gateway.config}: cannot read config: No such file or directory"]
    assert (await gateway.post("/hooks/open")).status == 200


async def test_a_store_that_takes_nothing_lets_no_target_in(start: Start, other: Target) -> None:
    """503, and nothing else of that config is taken up; where no target changes, the store is not needed."""
    gateway = await start(OPEN)
    await fill(gateway)
    while (await gateway.post("/hooks/open", b"x" * 100_000)).status == 200:
        pass
    new = document(KEY, targets={"new": {"url": other.url}}, routes=to("new", sources=KEY), log={"level": "error"})
    assert (await gateway.reload(new)).status == 503
    assert await gateway.log("config.reload_refused")
    assert (await shown(gateway)).keys() == {"crm"}
    assert (await gateway.post("/hooks/key")).status == 404
    assert (await gateway.metrics())[PROMETHEUS] == 0
    assert (await gateway.reload(document(OPEN | KEY))).json["sources"]["added"] == ["key"]


async def test_settings_are_applied_at_once_but_addresses_are_not(start: Start, tmp_path: Path) -> None:
    """The admin token, limits and the log level are the new ones; what needs a restart is named each time."""
    gateway = await start(OPEN)
    new = "another-admin-token-of-the-tests"
    text = document(
        OPEN,
        server={"listen": "127.0.0.1:9", "max_body": "10B", "drain_timeout": "1s"},
        admin={"token": new},
        store={"url": f"sqlite:///{tmp_path}/other.db"},
        log={"level": "error"},
    )
    answer = await gateway.reload(text)
    assert answer.json == UNCHANGED | {"needs_restart": ["server.listen", "store.url"]}
    assert (await gateway.call(TARGETS, headers=AUTH)).status == 401
    assert (await gateway.call(TARGETS, headers={"Authorization": f"Bearer {new}"})).status == 200
    assert (await gateway.post("/hooks/open", b"12345678901")).status == 413
    assert await gateway.log("config.reloaded") == []
    assert new not in gateway.log_text()
    assert not (tmp_path / "other.db").exists()
    again = await gateway.reload(text, headers={"Authorization": f"Bearer {new}"})
    assert again.json["needs_restart"] == ["server.listen", "store.url"]


async def test_a_new_deadline_rules_new_connections(start: Start) -> None:
    """A connection that sends nothing is closed by the new `header_timeout`."""
    gateway = await start(OPEN)
    assert (await gateway.reload(document(OPEN, server={"header_timeout": "100ms"}))).status == 200
    for address in (gateway.hooks, gateway.admin):
        async with wired(address) as wire:
            await wire.send(b"POST / HTTP/1.1\r\n")
            assert b"200" not in await wire.rest()  # within less than the 15 s of before


async def test_a_fault_of_ours_in_a_reload_changes_nothing(gateway: Gateway) -> None:
    """It is told with its place, and answered without."""

    class Broken(dict[str, str]):
        def get(self, *_: object) -> str:  # type: ignore[override]
            raise RuntimeError("a bug in here")

    gateway.app._reloading._environ = Broken()
    answer = await gateway.reload(gateway.config.read_text())
    assert answer.status == 503
    assert b"bug" not in answer.body
    assert "a bug in here" in (await gateway.told("config.reload_refused"))["error"]
    assert (await gateway.metrics())[PROMETHEUS] == 0


async def test_a_change_of_egress_concerns_every_target(start: Start) -> None:
    """A target that has not changed is dialled anew, under the new policy; idle connections of before are closed.
    Tokens are fetched under the new one as well."""
    gateway = await start(OPEN)
    before = gateway.app._dispatcher._lanes["crm"]._carrier._sender
    await gateway.post("/hooks/open")
    await gateway.target.next()
    assert (await gateway.reload(document(OPEN, egress={"deny": ["10.0.0.0/8"]}))).json == UNCHANGED
    after = gateway.app._dispatcher._lanes["crm"]._carrier._sender
    assert isinstance(before, Sender)
    assert isinstance(after, Sender)
    assert after._session.connector._egress.deny == (ip_network("10.0.0.0/8"),)  # type: ignore[union-attr]
    assert gateway.app._outbound._tokens._egress() == after._session.connector._egress  # type: ignore[union-attr]
    await until(lambda: before._session.closed)
    await gateway.post("/hooks/open")
    await gateway.target.next(2)


async def test_two_reloads_at_once_are_two_reloads(start: Start, other: Target) -> None:
    """They wait for each other; both are answered."""
    gateway = await start(OPEN)
    text = document(OPEN | KEY, targets={"crm": {"url": other.url}})
    first, second = await asyncio.gather(gateway.reload(text), gateway.reload(text))
    added = [answer.json["sources"]["added"] for answer in (first, second)]
    assert sorted(added) == [[], ["key"]]
    await gateway.post("/hooks/open")
    await other.next()


async def test_a_reload_is_asked_for_without_words(gateway: Gateway) -> None:
    """What is sent along would do nothing, so it is refused."""
    answer = await gateway.call(
        "/api/v1/reload", method="POST", body=b'{"force": true}', headers=AUTH | {"Content-Type": "application/json"}
    )
    assert answer.status == 422
    assert (await gateway.call("/api/v1/reload", headers=AUTH)).status == 405


async def certificate(gateway: Gateway) -> bytes | None:
    """What the public listener proves itself with now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*gateway.hooks, ssl=context)
    found: ssl.SSLObject = writer.get_extra_info("ssl_object")
    served = found.getpeercert(binary_form=True)
    writer.close()
    return served


async def test_a_certificate_is_read_anew(start: Start, tmp_path: Path) -> None:
    """New connections see the new one; a pair that does not fit is refused and the old one is served on."""
    cert, key = self_signed(tmp_path, "127.0.0.1")
    tls = {"tls": {"cert": str(cert), "key": str(key)}}
    gateway = await start(OPEN, server=tls)
    text = gateway.config.read_text()
    first = await certificate(gateway)
    self_signed(tmp_path, "127.0.0.1")
    assert (await gateway.reload(text)).json == UNCHANGED
    second = await certificate(gateway)
    assert second not in (None, first)
    key.write_text("no key")
    assert (await gateway.reload(text)).status == 422
    assert await certificate(gateway) == second
    assert (await gateway.reload(document(OPEN))).json["needs_restart"] == ["server.tls"]
    assert await certificate(gateway) == second


@pytest.mark.parametrize("changed", ["header", "removed"])
async def test_a_sources_old_key_reaches_no_target_after_a_reload(start: Start, other: Target, changed: str) -> None:
    """An event that waits while its source goes: the key that one target asks for is kept from the other."""
    targets = {"crm": {"url": "${TARGET}"}, "safe": {"url": other.url, "forward_headers": ["X-Key"]}}
    routes = to("crm", "safe", sources=KEY)
    gateway = await start(KEY, targets=targets, routes=routes)
    await gateway.call(f"{TARGETS}/crm/disable", method="POST", headers=AUTH)
    await gateway.post("/hooks/key", headers={"X-Key": ENV["SECRET"]})
    assert (await other.next())["x-key"] == ENV["SECRET"]
    sources = OPEN if changed == "removed" else KEY | OPEN
    await gateway.reload(document(sources, targets=targets, routes=to("crm", "safe", sources=sources)))
    await gateway.call(f"{TARGETS}/crm/enable", method="POST", headers=AUTH)
    assert (await gateway.target.next())["x-key"] is None


@pytest.mark.row("T65", "B50")
async def test_a_secret_is_rotated_twice(start: Start) -> None:
    """The second rotation is as the first: both keys are good while both stand there, in either order, and the line
    says which one it was, so that nobody has to guess when the old one may go."""
    keys = ("first-key-of-three", "second-key-of-three", "third-key-of-three")
    gateway = await start({"key": SOURCES["key"] | {"secrets": [keys[0]]}})
    told = 0
    for stand in ((1, 0), (1,), (2, 1), (1, 2), (2,), (0, 2), (0,)):
        text = document({"key": SOURCES["key"] | {"secrets": [keys[number] for number in stand]}})
        assert (await gateway.reload(text)).status == 200
        for number, key in enumerate(keys):
            answer = await gateway.post("/hooks/key", headers={"X-Key": key})
            assert answer.status == (200 if number in stand else 401), f"{number} of {stand}"
            if number in stand:
                told += 1
                lines = [line for line in await gateway.log() if line["event"] == "event.accepted"]
                assert (len(lines), lines[-1].get("key_index", 0)) == (told, stand.index(number))


@pytest.mark.row("B33")
async def test_what_a_reload_changes_rules_the_very_next_request_and_attempt(start: Start) -> None:
    """Nothing of before is remembered: not the address, the credentials, the check, nor where events go."""
    gateway = await start(KEY)
    for number in range(5):
        key, token = f"key-number-{number}-of-many", f"token-{number}"
        target = {
            "url": "${TARGET}",
            "headers": {"X-Token": token},
            "auth": {"scheme": "bearer", "token": f"b-{number}"},
        }
        source = SOURCES["key"] | {"secrets": [key], "respond": {"status": 200 + number}}
        assert (await gateway.reload(document({"key": source}, targets={"crm": target}))).status == 200
        assert (await gateway.post("/hooks/key", headers={"X-Key": key})).status == 200 + number
        arrival = await gateway.target.next(number + 1)
        assert (arrival["x-token"], arrival["authorization"]) == (token, f"Bearer b-{number}")


@pytest.mark.slow
@pytest.mark.row("C56")
async def test_whatever_is_wrong_with_a_config_the_one_of_before_runs_on(gateway: Gateway) -> None:
    """Each is answered with every problem, told in one line, and changes nothing."""
    good = gateway.config.read_text()
    others = [*ODD.values(), *(holding(keys, value).encode() for value in BAD.values() for keys in by_depth())]
    refused = 0
    for content in (one for one in others if len(one) < 100_000):
        gateway.config.write_bytes(content)
        answer = await gateway.call("/api/v1/reload", method="POST", headers=AUTH)
        if answer.status == 200:
            continue  # a value that happens to be right
        refused += 1
        assert answer.status == 422
        assert answer.json["problems"]
        assert all(line.startswith(f"{gateway.config}") for line in answer.json["problems"])
        assert "Traceback" not in answer.body.decode()
    assert refused > 100
    lines = await gateway.log("config.reload_refused")
    assert len(lines) == refused
    assert (await gateway.post("/hooks/open", b'{"type": "a"}')).status == 200
    assert (await gateway.reload(good)).json == UNCHANGED
