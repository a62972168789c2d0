"""The verbs that talk to a running relay: `send`, `targets`, `health`; the real command against the real gateway."""

import http.server
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_cli import command, environment, run_relay

TOKEN = "0123456789abcdef-token"
CONFIG = f"""\
server: {{listen: "127.0.0.1:HOOKS"}}
admin: {{listen: "127.0.0.1:ADMIN", token: {TOKEN}}}
sources:
  xoxoday: {{provider: xoxoday, secrets: [a1p2z5b7v68b9112234, oldoldoldold1234]}}
  plugandpay: {{provider: plugandpay, secrets: [pnp_test_key_0123456789abcdef]}}
  partner:
    provider: custom
    secrets: [0123456789abcdef]
    verify: {{scheme: standard_webhooks}}
  open: {{provider: custom, verify: none}}
targets:
  crm: {{url: "http://127.0.0.1:CRM/"}}
  broken: {{url: "http://127.0.0.1:CRM/", headers: {{X-Answer: "500"}}, disable_after: 1}}
routes:
  - {{name: all, from: [xoxoday, plugandpay, partner, open], to: crm}}
"""
Relay = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass
class Crm:
    """A target on loopback that keeps what it gets."""

    server: http.server.ThreadingHTTPServer
    bodies: list[bytes] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, body: bytes) -> bool:
        """Whether this body has arrived within a bound."""
        with self.came:
            return self.came.wait_for(lambda: body in self.bodies, timeout=15)


def _handler(crm: list[Crm]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with crm[0].came:
                crm[0].bodies.append(body)
                crm[0].came.notify_all()
            self.send_response(int(self.headers.get("X-Answer", "200")))
            self.end_headers()
            self.wfile.write(b"out of \x1b[31mpaper")

        def log_request(self, *arguments: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture(scope="module")
def crm() -> Iterator[Crm]:
    """A target that answers as the header X-Answer asks."""
    holder: list[Crm] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(holder)) as server:
        holder.append(Crm(server))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield holder[0]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def home(crm: Crm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose `config.yaml` is that of a relay that runs, with the ports it really has."""
    directory = tmp_path_factory.mktemp("relay")
    text = CONFIG.replace("CRM", str(crm.server.server_port))
    (directory / "started.yaml").write_text(text.replace("HOOKS", "0").replace("ADMIN", "0"))
    with subprocess.Popen(
        command("run", "--config", "started.yaml"), cwd=directory, env=environment(), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        started = json.loads(next(line for line in process.stdout if b"relay.started" in line))
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        hooks, admin = (str(started[key]).rpartition(":")[2] for key in ("listen", "admin"))
        (directory / "config.yaml").write_text(text.replace("HOOKS", hooks).replace("ADMIN", admin))
        yield directory
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        reader.join()


@pytest.fixture
def relay(home: Path) -> Relay:
    """Runs a verb beside that relay."""

    def run(*arguments: str, given: bytes = b"", **env: str) -> "subprocess.CompletedProcess[str]":
        return run_relay(*arguments, cwd=home, env=env, given=given)

    return run


@pytest.mark.parametrize(
    "source",
    [
        "xoxoday",
        "plugandpay",
        pytest.param("partner", marks=pytest.mark.slow),
        pytest.param("open", marks=pytest.mark.slow),
    ],
)
def test_a_sample_of_every_source_is_believed(relay: Relay, source: str) -> None:
    """What is sent is signed as the provider of the source signs."""
    sent = relay("send", source)
    assert sent.returncode == 0
    assert sent.stdout.startswith('200 {"id": "evt_')
    assert ("nothing is signed" in sent.stderr) is (source == "open")


@pytest.mark.slow
def test_samples_are_events_of_their_own(relay: Relay) -> None:
    """`--count` sends so many events, not one and its duplicates."""
    lines = relay("send", "xoxoday", "--count", "3").stdout.splitlines()
    assert len({json.loads(line.removeprefix("200 "))["id"] for line in lines}) == 3
    assert all('"duplicate": false' in line for line in lines)


@pytest.mark.slow
def test_given_data_is_sent_byte_for_byte(relay: Relay, home: Path, crm: Crm) -> None:
    """From a file, from stdin and from the command line alike, whatever the bytes are."""
    odd = b'{"odd": "\xff\x00"}\r\n'
    (home / "odd.bin").write_bytes(odd)
    assert relay("send", "plugandpay", "--data", "@odd.bin").returncode == 0
    assert relay("send", "plugandpay", "--data", "-", given=odd + b"2").returncode == 0
    assert relay("send", "partner", "--data", "plain é", "--header", "Content-Type: text/plain").returncode == 0
    assert all(crm.wait_for(body) for body in (odd, odd + b"2", "plain é".encode()))


def test_a_forgery_is_refused_with_a_hint(relay: Relay) -> None:
    """A header of the user replaces the proof; the answer is shown and makes the exit code 1."""
    sent = relay("send", "xoxoday", "--header", "X-API-Key: forged-forged")
    assert (sent.returncode, sent.stdout) == (1, '401 {"error": "unauthorized"}\n')
    assert "does not believe it" in sent.stderr


@pytest.mark.slow
def test_what_cannot_be_sent_is_said(relay: Relay) -> None:
    """An unknown source and an address where nobody listens."""
    unknown = relay("send", "xoxodai")
    assert (unknown.returncode, unknown.stderr) == (1, 'relay: unknown source "xoxodai"; did you mean "xoxoday"?\n')
    nobody = relay("send", "xoxoday", "--url", "http://127.0.0.1:1")
    assert nobody.returncode == 1
    assert "nobody listens at http://127.0.0.1:1" in nobody.stderr
    unfixed = relay("send", "xoxoday", "--config", "started.yaml")
    assert unfixed.returncode == 1
    assert "--url" in unfixed.stderr


@pytest.mark.slow
def test_programs_get_the_targets_one_object_a_line(relay: Relay) -> None:
    """The options may stand before the second word, too; the objects are the API's."""
    listed = relay("targets", "--output", "json", "list").stdout
    objects = [json.loads(line) for line in listed.splitlines()]
    assert [one["name"] for one in objects] == ["crm", "broken"]
    assert {"state", "reason", "held", "pending", "in_flight", "dead"} <= set(objects[0])


def test_a_target_is_switched_off_and_on(relay: Relay) -> None:
    """Who finds it disabled reads why, and how to end it; the table fits 80 columns."""
    off = relay("targets", "disable", "broken", "--reason", "being repaired " * 8)
    assert off.returncode == 0
    assert "broken is disabled" in off.stdout
    shown = relay("targets").stdout
    assert "being repaired" in shown
    assert "relay targets enable broken" in shown
    assert max(map(len, shown.splitlines())) <= 80
    on = relay("targets", "enable", "broken", "--output", "json")
    assert json.loads(on.stdout)["state"] == "active"


@pytest.mark.slow
def test_a_target_is_tested(relay: Relay) -> None:
    """The outcome decides the exit code; what the target says cannot steer the terminal."""
    good = relay("targets", "test", "crm")
    assert (good.returncode, good.stdout[:15]) == (0, "crm: delivered,")
    bad = relay("targets", "test", "broken")
    assert bad.returncode == 1
    assert "status 500" in bad.stdout
    assert r"out of \x1b[31mpaper" in bad.stdout


@pytest.mark.slow
def test_an_unknown_target_gets_the_known_ones(relay: Relay) -> None:
    """No guess at what might have been meant is acted on."""
    for name, hint in (("brokn", 'did you mean "broken"?'), ("..", "known: broken, crm")):
        refused = relay("targets", "enable", name)
        assert refused.returncode == 1
        assert hint in refused.stderr


@pytest.mark.slow
def test_the_token_is_asked_for(relay: Relay, home: Path) -> None:
    """A wrong token and a missing one are told apart, and neither is shown."""
    wrong = relay("targets", RELAY_ADMIN_TOKEN="wrong-wrong-wrong-wrong")
    assert wrong.returncode == 1
    assert "refuses this token" in wrong.stderr
    assert "wrong-wrong" not in wrong.stderr
    assert relay("targets", "--token", TOKEN, RELAY_ADMIN_TOKEN="wrong-wrong-wrong-wrong").returncode == 0
    partial = (home / "config.yaml").read_text().replace(f", token: {TOKEN}", "")
    (home / "tokenless.yaml").write_text(partial.replace("a1p2z5b7v68b9112234", '"${NOT_SET_HERE}"'))
    missing = relay("targets", "--config", "tokenless.yaml")
    assert missing.returncode == 1
    assert "wants a token" in missing.stderr


@pytest.mark.slow
def test_who_is_no_relay_is_told_from_who_is_not_there(relay: Relay, crm: Crm) -> None:
    """The way to reach one is in the message; the environment is asked where no option says."""
    nobody = relay("targets", RELAY_ADMIN_URL="127.0.0.1:1", RELAY_ADMIN_TOKEN=TOKEN)
    assert nobody.returncode == 1
    assert "no relay answers at http://127.0.0.1:1 ($RELAY_ADMIN_URL)" in nobody.stderr
    assert "relay run" in nobody.stderr
    other = relay("targets", "--admin", f"http://127.0.0.1:{crm.server.server_port}")
    assert other.returncode == 1
    assert "not as a relay" in other.stderr


def test_a_relay_that_runs_is_ready(relay: Relay) -> None:
    """It is found by the config, and asked without its token."""
    assert relay("health", "--ready").stdout == "ready\n"


@pytest.mark.slow
def test_unready_is_told_with_its_reasons(relay: Relay) -> None:
    """A relay that wants no traffic is exit code 1, with its own words."""

    class Unready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"status": "unready", "reasons": ["draining", "\\u001b[2J"]}')

        def log_request(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Unready) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        unready = relay("health", "--ready", "--admin", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert unready.returncode == 1
    assert r"answered 503: draining, \x1b[2J" in unready.stderr


def test_what_is_no_relay_is_not_alive(relay: Relay) -> None:
    """Another program on the port answers 200 as well; a health check must not be content with that."""

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>It works!</h1>")

        def log_request(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = relay("health", "--admin", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert found.returncode == 1
    assert "is not a relay's admin API" in found.stderr


@pytest.mark.slow
def test_health_ends_in_time_and_says_who_did_not_answer(relay: Relay) -> None:
    """A container's health check: alive is exit code 0; one that hangs or is not there is 1, within the time it has."""
    alive = relay("health")
    assert (alive.returncode, alive.stdout) == (0, "alive\n")
    nobody = relay("health", "--admin", "http://127.0.0.1:1")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        began = time.monotonic()
        late = relay("health", RELAY_ADMIN_URL=f"http://127.0.0.1:{hanging.getsockname()[1]}")
        assert time.monotonic() - began < 10
    assert late.returncode == 1
    assert "did not answer within 3 s" in late.stderr
