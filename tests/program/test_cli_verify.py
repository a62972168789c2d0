"""`relay verify`: the real command on a real config; nothing listens anywhere."""

import hmac
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from test_cli import command, environment, run_relay

XOXODAY, PARTNER, OPEN_PATH = "a1p2z5b7v68b9112234", "canary-partner-0123", "a8f3k2l9x7q1m4n6b0"
PLUGANDPAY = "pnp_test_key_0123456789abcdef"
SECRETS = (XOXODAY, PARTNER, OPEN_PATH, PLUGANDPAY)
CONFIG = f"""\
server: {{trusted_proxies: [10.0.0.0/8]}}
sources:
  xoxoday: {{provider: xoxoday, secrets: [{XOXODAY}], allow_ips: [52.76.120.90]}}
  plugandpay: {{provider: plugandpay, secrets: [{PLUGANDPAY}]}}
  partner:
    provider: custom
    secrets: [{PARTNER}]
    verify:
      {{scheme: hmac, header: X-Sig, algorithm: sha256, signed: "{{timestamp}}.{{body}}", timestamp_header: X-Time}}
    enforce: false
  v1: {{provider: plugandpay_v1, path: /hooks/v1/{OPEN_PATH}}}
targets:
  crm: {{url: "http://127.0.0.1:9/"}}
routes:
  - {{name: all, from: [xoxoday, plugandpay, partner], to: crm}}
"""
DOCUMENTED = (
    b'{"event":{"trigger_type":"order_payment_completed","triggerable_id":77,"triggerable_type":"order"},'
    b'"rule_id":1,"tenant_id":1,"sent_at":"2026-09-20T10:15:30.000000Z"}'
)
SIGNATURE = "X-Signature: 494a53e8b36e5325c2106662a2e25363c16fd98e88eeb9778c8e6968aba5e3b7"
ORDER = '{"id":1,"data":{"orderId":2,"deliveryStatus":"Delivered"}}'


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory with the config."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_a_genuine_webhook_is_proven_and_followed_to_its_targets(there: Path) -> None:
    """Bytes out of a file or a pipe are taken as they are; exit code 0; nothing is created."""
    (there / "body").write_bytes(DOCUMENTED)
    for data, given in (("@body", b""), ("-", DOCUMENTED), (DOCUMENTED.decode(), b"")):
        told = run_relay("verify", "plugandpay", "--header", SIGNATURE, "--data", data, cwd=there, given=given)
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout.startswith("plugandpay: proven; the relay answers 200\n\n")
        assert "✓ type       order_payment_completed\n" in told.stdout
        assert "✓ routes     all to crm\n" in told.stdout
    assert sorted(path.name for path in there.iterdir()) == ["body", "config.yaml"]


def test_a_body_that_was_changed_is_explained_within_80_columns(there: Path) -> None:
    """The commonest 401 of all: a newline that an editor has added."""
    data = ("--header", SIGNATURE, "--data", "-")
    told = run_relay("verify", "plugandpay", *data, cwd=there, given=DOCUMENTED + b"\n", env={"COLUMNS": "80"})
    assert (told.returncode, told.stderr) == (1, "")
    assert told.stdout.startswith("plugandpay: not proven; the relay answers 401\n")
    assert "✗ signature  X-Signature matches no secret (bad_signature)\n" in told.stdout
    expected = hmac.new(PLUGANDPAY.encode(), DOCUMENTED + b"\n", "sha256").hexdigest()
    assert f"\n    {expected}\n" in told.stdout
    assert "over the body without its last newline" in " ".join(told.stdout.split())
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_a_program_gets_one_object(there: Path) -> None:
    """Every step with its verdict; several headers, and a proxy in between."""
    headers = ("--header", f'X-API-Key: "{XOXODAY}"', "--header", "X-Forwarded-For: 52.76.120.90")
    way = ("--remote", "10.1.2.3", "--data", ORDER, "--output", "json")
    told = run_relay("verify", "xoxoday", *headers, *way, cwd=there)
    assert (told.returncode, told.stderr, told.stdout.count("\n")) == (1, "", 1)
    found = json.loads(told.stdout)
    steps = {step["step"]: step for step in found.pop("steps")}
    assert found == {
        "source": "xoxoday",
        "proven": False,
        "status": 401,
        "event_type": "delivered",
        "dedupe_key": '["1","2","delivered"]',
        "routes": ["all"],
        "targets": ["crm"],
    }
    names = ["path", "method", "address", "proof", "size", "type", "dedupe", "routes"]
    assert [(name, step["ok"]) for name, step in steps.items()] == list(
        zip(names, [None, None, True, False, True, True, True, True], strict=True)
    )
    assert steps["proof"]["advice"] == "It is the key, but it stands in quotes: correct it at the sender."
    assert set(steps["size"]) == {"step", "ok", "said"}


def test_no_header_says_where_the_provider_has_its_key(there: Path) -> None:
    """Xoxoday sends none until somebody switches it on."""
    told = run_relay("verify", "xoxoday", "--data", ORDER, "--remote", "52.76.120.90", cwd=there)
    assert told.returncode == 1
    assert "Add Custom Header" in " ".join(told.stdout.split())


def test_an_address_that_is_not_allowed_is_exit_code_1(there: Path) -> None:
    """A right key from a wrong address is turned away."""
    told = run_relay("verify", "xoxoday", "--header", f"x-api-key: {XOXODAY}", "--remote", "9.9.9.9", cwd=there)
    assert told.returncode == 1
    assert told.stdout.startswith("xoxoday: not proven; the relay answers 403\n")
    assert "no body was given (--data)" in told.stdout


def test_an_old_webhook_is_judged_as_of_its_own_time(there: Path) -> None:
    """What is stale now was not when it came; a source that does not enforce takes it all the same."""
    digest = hmac.new(PARTNER.encode(), b"1700000000.{}", "sha256").hexdigest()
    given = ("--header", "X-Time: 1700000000", "--header", f"X-Sig: {digest}", "--data", "{}")
    stale = run_relay("verify", "partner", *given, cwd=there)
    assert stale.returncode == 1
    assert stale.stdout.startswith("partner: not proven, but let through; the relay answers 200\n")
    assert "stale_timestamp" in stale.stdout
    assert run_relay("verify", "partner", *given, "--at", "2023-11-14T22:14:00Z", cwd=there).returncode == 0


def test_a_source_that_proves_nothing_is_exit_code_0(there: Path) -> None:
    """There is nothing to prove, and that is said."""
    told = run_relay("verify", "v1", "--data", "webhook_event=contracts.new", cwd=there)
    assert told.returncode == 0
    assert told.stdout.startswith("v1: nothing to prove; the relay answers 200\n")
    assert "no route is from v1" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("xoxodai",), 1, 'unknown source "xoxodai"; did you mean "xoxoday"?'),
        (("xoxoday", "--header", f"no colon {XOXODAY}"), 2, "number 1 is not of the form 'Name: value'"),
        (("xoxoday", "--data", "@missing"), 2, "cannot read missing: No such file or directory"),
        (("xoxoday", "--remote", "nowhere"), 2, "nowhere is not an IP address"),
        (("xoxoday", "--at", "2026-01-01T00:00:00"), 2, "is not a time with its zone"),
        (("xoxoday", "--at", "0001-01-01T00:00:00+14:00"), 2, "is not a time with its zone"),
        (("xoxoday", "--at", "yesterday"), 2, "is not a time with its zone"),
        ((), 2, "SOURCE"),
        (("xoxoday", "--config", "bad.yaml"), 78, "bad.yaml:1:1: sauces: unknown key"),
    ],
)
def test_what_was_asked_wrongly_is_said(there: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """A wrong command line, an unknown source, a config that is refused: each with its exit code."""
    (there / "bad.yaml").write_text("sauces: {}\n")
    told = run_relay("verify", *arguments, cwd=there)
    assert (told.returncode, told.stdout) == (code, "")
    assert words in told.stderr
    assert XOXODAY not in told.stderr


@pytest.mark.parametrize("source", ["xoxoday", "plugandpay", "partner", "v1"])
def test_no_secret_is_shown_whatever_was_sent(there: Path, source: str) -> None:
    """Neither the one that was expected nor one that came, in either output."""
    headers = [("X-Api-Key", XOXODAY + "1"), ("X-Signature", PLUGANDPAY), ("X-Sig", PARTNER), (PARTNER, "x")]
    lines = [part for name, value in headers for part in ("--header", f"{name}: {value}")]
    body = json.dumps({"event": {"trigger_type": PLUGANDPAY}, "id": XOXODAY, "data": {"deliveryStatus": PARTNER}})
    for output in ("table", "json"):
        told = run_relay("verify", source, *lines, "--data", body, "--output", output, cwd=there)
        assert told.returncode in {0, 1}
        assert told.stdout
        assert not [secret for secret in SECRETS if secret in told.stdout + told.stderr]


@pytest.mark.parametrize(("extra", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_it_wants_none(there: Path, extra: dict[str, str], is_coloured: bool) -> None:
    """NO_COLOR is obeyed; the marks are there either way."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("verify", "v1", "--data", "x"),
        cwd=there,
        env=environment(TERM="xterm", **extra),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        assert process.wait(30) == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("\x1b[" in shown) is is_coloured
    assert re.search(r"✓\S* address", shown)


def test_a_terminal_that_has_no_marks_gets_plain_ones(there: Path) -> None:
    """Nothing is shown as an escape."""
    told = run_relay("verify", "xoxoday", cwd=there, env={"PYTHONIOENCODING": "ascii"})
    assert told.returncode == 1
    assert "  x proof      no x-api-key header" in told.stdout
    assert "> Either the sender does not send" in told.stdout
    assert "\\u" not in told.stdout
