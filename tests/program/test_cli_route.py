"""`relay route`: the real command on a real config; nothing listens anywhere, and nothing is sent."""

import json
from pathlib import Path

import pytest
from test_cli import run_relay

KEY = "canary-partner-0123"
CONFIG = f"""\
sources:
  partner:
    {{provider: custom, secrets: [{KEY}], verify: {{scheme: bearer}}, event_type: type, dedupe_key: "header:X-Id"}}
targets:
  crm: {{url: "http://127.0.0.1:9/"}}
  slack: {{url: "http://127.0.0.1:9/"}}
routes:
  - name: live orders
    from: partner
    match: {{type: "order_*", headers: {{X-Env: live}}}}
    when: "body.total > `0`"
    to: [crm, {{target: slack, when: "body.total >= `100`"}}]
  - {{name: sums, from: partner, when: "sum(body.items) > `1` && body.type != '{KEY}'", to: slack}}
  - {{name: news, from: relay, to: slack}}
"""
ORDER = '{"type": "order_paid", "total": 12}'
LIVE = ("--header", "x-env: live")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory with the config."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_an_event_is_followed_to_its_targets(there: Path) -> None:
    """Each route and target says yes, or why not; exit code 0 when one gets it; nothing is created."""
    (there / "body").write_text(ORDER)
    told = run_relay("route", "--data", "@body", *LIVE, "--header", "X-Id: 7", cwd=there)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines() == [
        "partner  order_paid  (dedupe key 7)",
        "",
        "  + route live orders",
        "    slack: its `when` says no",
        "  x route sums: its `when` failed: sum() was given what it does not take",
        "  x route news: takes events from relay only",
        "",
        "  + to crm",
    ]
    assert sorted(path.name for path in there.iterdir()) == ["body", "config.yaml"]


def test_an_event_that_nobody_gets_is_exit_code_1(there: Path) -> None:
    """Without the header, with another value, of another type."""
    for arguments in ((), ("--header", "X-Env: test"), (*LIVE, "--type", "refund")):
        told = run_relay("route", "--data", ORDER, *arguments, cwd=there)
        assert told.returncode == 1
        assert "no target gets it: it would be stored and go nowhere (event.unrouted)" in told.stdout


def test_a_program_gets_one_object(there: Path) -> None:
    """The routes as the API shows them, and where it goes."""
    told = run_relay("route", "--data", '{"type": "order_paid", "total": 120}', *LIVE, "--output", "json", cwd=there)
    assert (told.returncode, told.stderr, told.stdout.count("\n")) == (0, "", 1)
    found = json.loads(told.stdout)
    assert (found["source"], found["type"], found["dedupe_key"]) == ("partner", "order_paid", None)
    assert found["routes"][0] == {
        "route": "live orders",
        "takes": True,
        "reason": None,
        "targets": [{"target": name, "takes": True, "reason": None} for name in ("crm", "slack")],
    }
    gets = {"changed": False, "content_type": None, "body": '{"type": "order_paid", "total": 120}', "problem": None}
    assert found["targets"] == [
        {"target": name, "reached": True, "reason": None, "ways": [], "gets": gets} for name in ("crm", "slack")
    ]


def test_the_relays_own_events_can_be_followed(there: Path) -> None:
    """The source `relay` is nobody's section, so its events are named by --type."""
    told = run_relay("route", "--source", "relay", "--type", "delivery.dead", cwd=there)
    assert told.returncode == 0
    assert "+ route news" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--source", "partnr"), 1, 'unknown source "partnr"; did you mean "partner"?'),
        (("--data", "@nowhere"), 2, "cannot read nowhere"),
        (("--header", "nonsense"), 2, "number 1 is not of the form 'Name: value'"),
        (("--enriched", "{"), 2, "is not JSON"),
    ],
)
def test_what_cannot_be_meant_is_said(there: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """Exit code 2 for a wrong command line; nothing on stdout."""
    told = run_relay("route", "--data", ORDER, *arguments, cwd=there)
    assert (told.returncode, told.stdout) == (code, "")
    assert words in " ".join(told.stderr.split())


def test_a_source_is_asked_for_where_there_are_several(there: Path) -> None:
    """Whose an event is decides how it is named."""
    more = CONFIG.replace("targets:", "  shop: {provider: plugandpay, secrets: [pnp_0123456789abcdef]}\ntargets:", 1)
    (there / "config.yaml").write_text(more)
    told = run_relay("route", "--data", ORDER, cwd=there)
    assert (told.returncode, told.stdout) == (1, "")
    assert "name one with --source: partner, shop" in told.stderr


def test_a_config_that_is_refused_is_told_with_its_place(there: Path) -> None:
    """Exit code 78, as of every verb that reads it."""
    (there / "config.yaml").write_text(CONFIG.replace("body.total > `0`", "body.total > 0"))
    told = run_relay("route", "--data", ORDER, cwd=there)
    assert (told.returncode, told.stdout) == (78, "")
    assert "routes[0].when: " in told.stderr
    assert "a number stands in backticks: `0`" in told.stderr


@pytest.mark.parametrize("data", ["[" * 50_000, '{"type": ' + "9" * 5000 + "}", '{"type": "\\ud800"}', "", "\x01"])
def test_whatever_the_body_is_words_are_told(there: Path, data: str) -> None:
    """No body is a reason for a traceback, and none for the config's key to be shown."""
    (there / "body").write_text(data)
    for output in ("table", "json"):
        told = run_relay("route", "--data", "@body", *LIVE, "--output", output, cwd=there)
        assert told.returncode == 1
        assert "Traceback" not in told.stderr
        assert KEY not in told.stdout + told.stderr


SHAPED = """\
sources:
  partner: {provider: custom, secrets: [canary-partner-0123], verify: {scheme: bearer}, event_type: type}
enrichers:
  stock: {url: "https://api.example.com/{{ body.sku }}"}
targets:
  crm: {url: "http://127.0.0.1:9/"}
  chat: {url: "http://127.0.0.1:9/", body: {preset: slack, text: "{{ data.left }} left of <{{ body.sku }}>"}}
  erp: {url: "http://127.0.0.1:9/", body: {template: '{"n": {{ body.number }}}'}}
routes:
  - {name: all, from: partner, enrich: stock, to: [crm, {target: chat, when: "data.left < `5`"}, erp]}
"""


def test_what_a_target_would_get_is_told(tmp_path: Path) -> None:
    """With what a fetch would bring: the shaped body, or what it lacks; and what a condition on it decides."""
    (tmp_path / "config.yaml").write_text(SHAPED)
    told = run_relay("route", "--data", '{"sku":"A&1"}', "--enriched", '{"left":1.0}', cwd=tmp_path)
    assert told.returncode == 0
    assert 'gets application/json: {"event":{"sku":"A&1"},"data":{"left":1.0}}' in told.stdout
    assert """gets application/json: {"text":"1.0 left of <A&amp;1>"}""" in told.stdout
    assert "nothing could be sent: template: body: it needs 'number'" in told.stdout
    assert "decided after the fetch" not in told.stdout
    many = run_relay("route", "--data", '{"sku":"A&1"}', "--enriched", '{"left":9}', cwd=tmp_path)
    assert "chat: route all: `when` says no to what was fetched" in many.stdout
    undecided = run_relay("route", "--data", '{"sku":"A&1"}', cwd=tmp_path)
    assert "? to chat: decided after the fetch" in undecided.stdout
    assert "gets" not in undecided.stdout
