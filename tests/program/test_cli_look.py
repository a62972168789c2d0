"""The verbs that look: `events`, `show`, `stats`; the real command against the real gateway."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import command, environment, run_relay

from tests.support.program import KEY, Arrival, Gateway, Sink, until, webhook, write_config

WIDE, NARROW = "160", "80"


class Looked:
    """A relay with a little of everything, and the verbs that look at it."""

    def __init__(self, gateway: Gateway, home: Path, ids: list[str], sink: Sink) -> None:
        self.gateway = gateway
        self.home = home
        self.ids = ids
        self.sink = sink

    def run(self, *arguments: str, columns: str = NARROW) -> str:
        """What a verb says, which ends well."""
        done = self.tried(*arguments, columns=columns)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self, *arguments: str, columns: str = NARROW) -> "subprocess.CompletedProcess[str]":
        env = {"RELAY_ADMIN_URL": self.gateway.admin, "COLUMNS": columns}
        return run_relay(*arguments, cwd=self.home, env=env)

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--output", "json").splitlines()]


@pytest.fixture
async def looked(tmp_path: Path) -> AsyncIterator[Looked]:
    """Three events: at `crm` delivered, at `books` refused and waiting; and a request that was turned away."""

    async def answer(arrival: Arrival) -> int:
        return 200 if arrival.target == "crm" else 422

    async with Sink(answer) as sink:
        books = ", retry: {schedule: [1h]}"
        config = write_config(tmp_path / "config.yaml", sink, targets={"crm": "", "books": books})
        async with Gateway(config) as gateway:
            ids = [(await gateway.post(*webhook(number)))[1]["id"] for number in range(3)]
            assert (await gateway.post("shop", b"{}", {"X-Key": "wrong", "X-Other": KEY}))[0] == 401
            await until(lambda: len(sink.arrivals) == 6 and len(gateway.said("delivery.attempted")) == 6)
            yield Looked(gateway, tmp_path, ids, sink)


async def test_where_is_my_webhook(looked: Looked) -> None:
    """`events` lists them newest first, the API's objects for programs; every line fits the terminal."""
    found = looked.objects("events")
    assert [event["id"] for event in found] == looked.ids[::-1]
    assert {delivery["target"]: delivery["state"] for delivery in found[0]["deliveries"]} == {
        "crm": "delivered",
        "books": "pending",
    }
    assert [event["id"] for event in looked.objects("events", "--target", "crm", "--limit", "1")] == looked.ids[-1:]
    assert looked.objects("events", "--state", "dead") == []
    assert looked.run("events", "--state", "dead") == "no events\n"
    narrow, wide = looked.run("events"), looked.run("events", columns=WIDE)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert len(narrow.splitlines()) > len(wide.splitlines()) == 4
    assert re.search(r"books pending after 1 attempt \(refused 422\) next in \d+[mh], crm delivered", wide)


async def test_a_cursor_goes_on_where_the_last_call_ended(looked: Looked) -> None:
    """What is left out is said on stderr, with how to see it."""
    done = looked.tried("events", "--limit", "2", "--output", "json")
    cursor = re.fullmatch(r"there is more: --cursor (\d+)\n", done.stderr)
    assert cursor is not None
    assert [event["id"] for event in looked.objects("events", "--cursor", cursor[1])] == looked.ids[:1]


async def test_what_was_turned_away_and_why(looked: Looked) -> None:
    """`events --refused` tells what came, from where, and the reason; filters of events do not go with it."""
    (refusal,) = looked.objects("events", "--refused")
    assert (refusal["source"], refusal["status"], refusal["remote"]) == ("shop", 401, "127.0.0.1")
    told = looked.run("events", "--refused")
    assert re.search(r"shop +401 +127\.0\.0\.1 +bad_signature", told)
    assert "relay verify SOURCE" in told
    assert KEY not in told + json.dumps(refusal)
    assert looked.tried("events", "--refused", "--state", "dead").returncode == 2


async def test_show_tells_what_holds_an_event_back(tmp_path: Path) -> None:
    """At an ordered target: the event that comes first there, and no time of its own."""

    async def answer(arrival: Arrival) -> int:
        return 200 if arrival.target == "crm" else 422

    async with Sink(answer) as sink:
        books = ", ordered: true, retry: {schedule: [1h]}"
        config = write_config(tmp_path / "config.yaml", sink, targets={"crm": "", "books": books})
        async with Gateway(config) as gateway:
            ids = [(await gateway.post(*webhook(number)))[1]["id"] for number in range(2)]
            await until(lambda: len(sink.arrivals) == 3 and len(gateway.said("delivery.attempted")) == 3)
            looked = Looked(gateway, tmp_path, ids, sink)
            told = [" ".join(looked.run("show", event_id).split()) for event_id in ids]
            assert "next in" in told[0]
            assert "comes first" not in told[0]
            assert f"its target takes events in order, and {ids[0]} comes first" in told[1]
            assert "due now" not in told[1]
            (shown,) = looked.objects("show", ids[1])
            held_back = {one["target"]: one["held_back_by"] for one in shown["deliveries"]}
            assert held_back == {"crm": None, "books": ids[0]}


async def test_show_tells_every_attempt(looked: Looked) -> None:
    """Headers, routes, deliveries, attempts and, when asked, the body."""
    (shown,) = looked.objects("show", looked.ids[0])
    assert (shown["id"], shown["routes"]) == (looked.ids[0], ["all"])
    assert "body" not in shown
    told = looked.run("show", looked.ids[0], "--body")
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "Content-Type: application/json" in told
    assert re.search(r"^  routes +all$", told, re.MULTILINE)
    assert re.search(r"^books  pending after 1 attempt \(refused 422\) next in \d+[mh]$", told, re.MULTILINE)
    assert re.search(r"^  #1 .* refused +422 +\d+ ms$", told, re.MULTILINE)
    assert told.endswith('{"id": 0}\n')
    done = looked.tried("show", "evt_nobody")
    assert (done.returncode, done.stderr) == (
        1,
        "relay: no such event: it never came, or retention has deleted it\n",
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl to run the command with")
async def test_the_printed_command_sends_it_again(looked: Looked) -> None:
    """It runs as it is, and the target gets the same bytes under the same id."""
    printed = looked.run("show", looked.ids[1], "--curl", "--target", "crm")
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", printed], capture_output=True, timeout=30, check=False, env=os.environ
    )
    assert b"200 OK" in done.stdout, done
    again = looked.sink.arrivals[-1]
    assert (again.event_id, again.body, again.attempt) == (looked.ids[1], b'{"id": 1}', 2)
    assert KEY not in printed


async def test_a_printed_command_holds_what_proves_us(looked: Looked) -> None:
    """Static credentials as they are; what is made for one request alone has a name, and a remark says what it is."""
    config = looked.home / "config.yaml"
    more = "auth: {scheme: bearer, token: tok-1}, sign: {secrets: [canary-of-16-bytes]}, proxy: 'http://127.0.0.1:3128'"
    config.write_text(config.read_text().replace("  crm: {", f"  crm: {{{more}, "))
    printed = looked.run("show", looked.ids[0], "--curl", "--target", "crm")
    for word in (
        "-H 'Authorization: Bearer tok-1'",
        f"-H 'webhook-id: {looked.ids[0]}'",
        "--proxy http://127.0.0.1:31",
    ):
        assert word in printed
    assert "\n# NOW and SIGNATURE are made anew for each request" in printed
    assert "canary" not in printed


async def test_totals_are_shown_by_source_and_target(looked: Looked) -> None:
    """`stats` has a table for each, for the last hour and ever."""
    (stats,) = looked.objects("stats")
    assert stats["totals"]["sources"]["shop"] == {"accepted": 3, "unrouted": 0, "duplicate": 0, "refused": 1}
    assert stats["totals"]["targets"]["books"] == {"refused": 3, "delivered": 0, "dead": 0}
    told = looked.run("stats")
    assert told.count("SOURCE") == told.count("TARGET") == 2
    assert re.search(r"^books +0 +3 +0$", told, re.MULTILINE)
    assert re.search(r"^crm .* 100%$", looked.run("targets"), re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        ("events", "--since", "yesterday"),
        ("events", "--limit", "0"),
        ("events", "--state", "lost"),
        ("events", "--cursor", "x"),
        ("events", "--state", "unrouted", "--target", "crm"),
        ("show", "evt_1", "--curl", "--output", "json"),
        ("show", "evt_1", "--curl", "--body"),
    ],
)
async def test_a_wrong_option_is_told_with_exit_code_2(looked: Looked, arguments: tuple[str, ...]) -> None:
    """Whether this side or the relay found it."""
    done = looked.tried(*arguments)
    assert done.returncode == 2
    assert any(words in done.stderr for words in ("must be", "is not", "not go with", "goes with neither"))


def test_no_relay_to_talk_to_is_told(tmp_path: Path) -> None:
    """Exit code 1, and how to reach one."""
    for verb in (("events",), ("show", "evt_1"), ("stats",)):
        done = subprocess.run(
            command(*verb, "--admin", "http://127.0.0.1:1"),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert "start one with `relay run`" in done.stderr


async def test_a_target_that_left_the_config_is_shown_with_the_way_out(tmp_path: Path) -> None:
    """What waits for it is held until it is back; it can be let go of, though the config does not name it."""
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink, targets={"crm": "", "books": ""})
        async with Gateway(config) as gateway:
            look = Looked(gateway, tmp_path, [], sink)
            look.run("targets", "disable", "books")
            await gateway.post(*webhook(1))
            write_config(config, sink, targets={"crm": ""})
            gateway.signal(signal.SIGHUP)
            await until(lambda: bool(gateway.said("config.reloaded")))
            told = look.run("targets")
            assert "put it back and reload" in told.replace("\n    ", " ")
            assert "relay targets discard books" in told
            assert look.run("targets", "discard", "books", "--yes").startswith("books: 1 delivery discarded")
            (event,) = look.objects("events", "--state", "dead")
            assert event["deliveries"][0]["target"] == "books"


async def test_the_printed_command_has_the_shaped_request_or_says_why_not(tmp_path: Path) -> None:
    """What a target would get is printed as it would be made; where the event lacks something, that is named."""
    async with Sink() as sink:
        shapes = {
            "crm": ', body: {template: \'{"n": {{ body.id }}}\'}, headers: {X-N: "{{ body.id }}"}',
            "books": ", body: {pick: body.total}, retry: {schedule: [1h]}",
        }
        config = write_config(tmp_path / "config.yaml", sink, targets=shapes)
        async with Gateway(config) as gateway:
            event_id = (await gateway.post(*webhook(7)))[1]["id"]
            await until(lambda: len(gateway.said("delivery.attempted")) == 2)
            env = {"RELAY_ADMIN_URL": gateway.admin}
            printed = run_relay("show", event_id, "--curl", cwd=tmp_path, env=env).stdout
    assert """--data-raw '{"n": 7}'""" in printed
    assert "-H 'X-N: 7'" in printed
    assert (
        f"# {event_id} to books: cannot be told here what it would get\n# pick: the expression found nothing" in printed
    )


async def test_an_event_tells_why_each_route_and_target_did_or_did_not_take_it(tmp_path: Path) -> None:
    """What today's config says of those for its source, and which conditions failed when it was received."""
    routes = """routes:
  - {name: typed, from: shop, match: {type: refund}, to: crm}
  - {name: plain, from: shop, to: crm}
  - {name: split, from: shop, to: [crm, {target: books, when: "abs(type) > `1`"}]}
  - {name: headed, from: shop, match: {headers: {X-Env: live}}, to: books}
"""
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink, targets={"crm": "", "books": ""})
        config.write_text(config.read_text().partition("routes:")[0] + routes)
        async with Gateway(config) as gateway:
            event_id = (await gateway.post(*webhook(1)))[1]["id"]
            told = Looked(gateway, tmp_path, [event_id], sink).run("show", event_id, columns=WIDE)
    lines = [line.strip() for line in told.splitlines()]
    place = lines.index("routes      plain, split")
    assert lines[place + 1 : place + 6] == [
        "typed: no glob of its match.type (refund) fits the type",
        "split: takes it by today's config",
        "books: its `when` failed: abs() was given what it does not take",
        "headed: its match.headers wants X-Env, which the event does not have",
        "when it was received, the `when` of split > books failed: abs() was given what it does not take",
    ]
    assert lines[place + 6].startswith("headers ")


UNDECODABLE = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", ""), '"" is no id of an event'),
        (("show", "."), '"." is no id of an event'),
        (("show", ".."), '".." is no id of an event'),
        (("replay", ".."), '".." is no id of an event'),
        (("show", UNDECODABLE), '"\\udcff" is no id of an event'),
        (("events", "--type", UNDECODABLE), "'--type': is not UTF-8 text"),
        (("events", "--target", UNDECODABLE), "'--target': is not UTF-8 text"),
        (("tail", "--source", UNDECODABLE), "'--source': is not UTF-8 text"),
        (("targets", "disable", "crm", "--reason", UNDECODABLE), "'--reason': is not UTF-8 text"),
        (("targets", "enable", UNDECODABLE), "is not UTF-8 text"),
        (("prune", "--event", UNDECODABLE), "'--event': is not UTF-8 text"),
        (("backup", ""), "is empty; it names no file"),
        (("check", ""), "is empty; it names no file"),
        (("run", "--config", ""), "is empty; it names no file"),
        (("events", "--config", ""), "is empty; it names no file"),
        (("health", "--config", ""), "is empty; it names no file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    """Exit code 2 with words, never a traceback."""
    done = run_relay(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["send", "verify", "route"])
@pytest.mark.parametrize("data", ["@/dev/zero", "-"])
def test_a_body_that_never_ends_is_not_gathered_for_ever(tmp_path: Path, verb: str, data: str) -> None:
    """Exit code 2 beyond what any relay takes, in little memory."""
    source = ("--source", "shop") if verb == "route" else ("shop",)
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            ("sh", "-c", 'ulimit -v 1500000; exec "$@"', "sh", *command(verb, *source, "--data", data)),
            cwd=tmp_path,
            env=environment(),
            stdin=endless,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert "is larger than 64 MiB" in done.stderr


async def test_a_tail_of_nothing_names_what_there_is(looked: Looked) -> None:
    """A name that no source and no target has would be waited for without end."""
    for option, name, words in (
        ("--source", "nope", 'unknown source "nope"; known: relay, shop'),
        ("--source", "shpo", 'unknown source "shpo"; did you mean "shop"?'),
        ("--target", "nope", 'unknown target "nope"; known: books, crm'),
        ("--target", "", 'unknown target ""; known: books, crm'),
    ):
        done = looked.tried("tail", option, name)
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
