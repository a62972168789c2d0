"""`relay demo`: what it shows is what happened."""

import re
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_cli import command, environment, run_relay

from relay.cli.stage import Arrival, Witness, findings, write_config
from relay.config import load
from relay.model import ApiKeyCheck
from relay.providers import PROVIDERS
from relay.rules.signing import sign

SIGNED = [provider.name for provider in PROVIDERS.values() if provider.signed]
UNSIGNED = [provider.name for provider in PROVIDERS.values() if not provider.signed]
ALL = list(PROVIDERS)
OK = f"demo ok: {len(ALL)} webhooks, {2 * len(ALL)} deliveries, nothing lost"


def test_it_shows_every_hop_and_ends_when_all_has_arrived(tmp_path: Path) -> None:
    """One genuine sample of each provider, each to both targets; nothing is left behind."""
    shown = run_relay("demo", "--once", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[-1] == OK
    assert len([line for line in lines if re.match(r"  sent +\d+ bytes", line)]) == len(ALL)
    assert len([line for line in lines if re.match(r"  committed +200 after .* evt_", line)]) == len(ALL)
    arrivals = [
        line for line in lines if re.match(r"  delivered +(crm|accounting) +attempt 1 .* bytes identical", line)
    ]
    assert len(arrivals) == 2 * len(ALL)
    keyed = [name for name in ALL if isinstance(PROVIDERS[name].check, ApiKeyCheck)]
    assert len([line for line in arrivals if line.endswith("key withheld")]) == 2 * len(keyed)
    assert len([line for line in arrivals if line.endswith("marked unsigned")]) == 2 * len(UNSIGNED)
    proven = len(ALL) - len(keyed) - len(UNSIGNED)
    assert len([line for line in arrivals if line.endswith("signature valid")]) == 2 * proven
    assert max(len(line) for line in lines if not line.startswith("  store ")) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_it_made_is_kept_on_request(tmp_path: Path) -> None:
    """The store, the config and the gateway's log, for who wants to look."""
    shown = run_relay("demo", "--once", "--keep", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert shown.returncode == 0
    (kept,) = tmp_path.iterdir()
    assert f"kept: {kept}" in shown.stdout
    assert {"config.yaml", "relay.db", "relay.log"} <= {path.name for path in kept.iterdir()}
    assert (kept / "relay.log").read_text().count('"delivery.attempted"') == 2 * len(ALL)


@pytest.mark.slow
def test_it_keeps_running_until_ctrl_c_and_shows_what_others_send(tmp_path: Path) -> None:
    """The commands it prints work as they stand; Ctrl-C ends it with a last word and 0."""
    with subprocess.Popen(
        command("demo"),
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        printed = ""
        while "/metrics" not in printed:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed += line
        send = re.search(r"^  relay (send .*) \\\n +(--config .*)$", printed, re.MULTILINE)
        assert send is not None
        sent = run_relay(*f"{send[1]} {send[2]}".replace("--count 10", "--count 2").split(), cwd=tmp_path)
        assert sent.returncode == 0
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (0, "")
    assert rest.count("  delivered  ") == 4
    webhooks = len(ALL) + 2
    assert rest.splitlines()[-1] == f"demo ok: {webhooks} webhooks, {2 * webhooks} deliveries, nothing lost"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("provider", SIGNED)
def test_its_targets_would_notice_what_went_wrong(tmp_path: Path, provider: str) -> None:
    """Changed bytes, a broken signature and a leaked key are findings, not successes."""
    witness = Witness("crm")
    witness.url = "http://127.0.0.1:9/"
    config = load(write_config(tmp_path, [witness]), {})
    source = next(one for one in config.sources if one.name == provider)
    now = datetime.now(UTC)
    body = PROVIDERS[provider].sample.body(now, 1)
    proof = sign(source.check, body, now=now, message_id="msg_1")
    kept = () if source.key_header else proof
    assert findings(Arrival(kept, body), source, body)[0]
    assert not findings(Arrival(kept, body + b" "), source, body)[0]
    wrong = proof if source.key_header else ()
    assert not findings(Arrival(wrong, body), source, body)[0]
