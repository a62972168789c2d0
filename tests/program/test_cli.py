"""The command line as a whole, and the verbs about the YAML: the real command, as a process of its own."""

import json
import os
import pty
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from relay.cli import FAMILIES
from relay.cli import relay as overview
from relay.config import json_schema, load

ROOT = Path(__file__).parents[2]
EXAMPLE_ENV = {
    "XOXODAY_API_KEY": "a1p2z5b7v68b9112234",
    "PLUGANDPAY_WEBHOOK_KEY": "pnp_test_key_0123456789abcdef",
    "PARTNER_SECRET": "0123456789abcdef0",
    "CRM_TOKEN": "crm-token-0123456789",
    "ACCOUNTING_URL": "https://accounting.example.com/hooks/abc",
    "PLUGANDPAY_API_TOKEN": "an-access-token-of-plugandpay",
}
WHOLE = """\
sources:
  partner: {provider: custom, secrets: ["${PARTNER_SECRET:-0123456789abcdef}"], verify: {scheme: bearer}}
targets:
  crm: {url: "http://127.0.0.1:9/"}
  spare: {url: "http://127.0.0.1:9/"}
routes:
  - {name: all, from: partner, to: crm}
"""


def environment(**extra: str) -> dict[str, str]:
    """A clean environment: nothing that would lead to another relay."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "NO_COLOR"))}
    return kept | {"PYTHONPATH": str(ROOT)} | extra


def command(*arguments: str) -> list[str]:
    """The command as a list for `subprocess`."""
    return [sys.executable, "-m", "relay", *arguments]


def run_relay(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, given: bytes = b""
) -> "subprocess.CompletedProcess[str]":
    """Run a verb to its end, within a bound."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**(env or {})), input=given, capture_output=True, timeout=30
    )
    assert b"Traceback" not in done.stderr
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_relay_alone_shows_every_verb_in_its_family(tmp_path: Path) -> None:
    """A newcomer who types the bare name is told where to start."""
    shown = run_relay(cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    places = [shown.stdout.index(f"\n{family}:\n") for family in FAMILIES]
    assert places == sorted(places)
    for verbs in FAMILIES.values():
        for name, verb in verbs.items():
            assert re.search(rf"^  {name} +{re.escape(verb.sentence)}$", shown.stdout, re.MULTILINE)


def test_every_verb_that_is_shown_exists_and_says_what_it_does() -> None:
    """The overview cannot name a verb that cannot be called."""
    context = overview.make_context("relay", ["version"])
    for name in overview.list_commands(context):
        verb = overview.get_command(context, name)
        assert verb is not None
        assert verb.name == name
        assert verb.help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chek",), "Did you mean check?"),
        (("evnt",), "No such command 'evnt'."),
        (("run", "--confg", "x"), "--config"),
        (("health", "--admin", "http://[::1"), "is not a URL"),
        (("send", "xoxoday", "--header", "no colon"), "'Name: value'"),
        (("check", "a.yaml", "--config", "b.yaml"), "name the file once"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_with_words(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """What was typed wrong is said, with what was probably meant."""
    refused = run_relay(*arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert words in refused.stderr


def test_the_version_is_told_in_both_ways(tmp_path: Path) -> None:
    """`relay version` and `relay --version` say the same."""
    told = [run_relay(way, cwd=tmp_path).stdout for way in ("version", "--version")]
    assert told[0] == told[1]
    assert re.fullmatch(r"relay [0-9.]+\n", told[0])


def test_the_schema_is_json_for_editors(tmp_path: Path) -> None:
    """What an editor reads is what the config accepts."""
    assert json.loads(run_relay("schema", cwd=tmp_path).stdout) == json_schema()


def test_a_reader_that_goes_away_is_no_error_worth_words(tmp_path: Path) -> None:
    """`relay schema | head -1` is quiet."""
    process = subprocess.Popen(
        command("schema"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_output_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A full disk behind `>` is exit code 1 and one line."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("schema"), cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, timeout=30
        )
    assert (done.returncode, done.stderr) == (1, b"relay: cannot write: No space left on device\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.row("F6")
@pytest.mark.parametrize("full", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="-".join)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "--config", "not-there.yaml"), 78),
        (("check", "bad.yaml"), 78),
        (("run", "--config", "taken.yaml"), 74),
        (("frobnicate",), 2),
    ],
    ids=["no config", "bad config", "store refused", "wrong command line"],
)
def test_a_refusal_keeps_its_code_where_its_words_can_go_nowhere(
    tmp_path: Path, arguments: tuple[str, ...], code: int, full: tuple[str, ...]
) -> None:
    """Whoever starts it goes by the code, also when the disk behind stdout or stderr is full."""
    (tmp_path / "bad.yaml").write_text(WHOLE.replace("to: crm", "to: cmr"))
    (tmp_path / "notes.txt").write_text("what is no database\n")
    (tmp_path / "taken.yaml").write_text(f"{WHOLE}store: {{url: 'sqlite:///{tmp_path}/notes.txt'}}\n")
    with Path("/dev/full").open("wb") as device:
        streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | dict.fromkeys(full, device)
        done = subprocess.run(command(*arguments), cwd=tmp_path, env=environment(), timeout=30, check=False, **streams)
    assert done.returncode == code
    assert b"Traceback" not in (done.stderr or b"")


def test_a_whole_config_is_counted_and_its_doubts_are_told(tmp_path: Path) -> None:
    """The counts are on stdout for scripts, warnings on stderr; nothing is created."""
    (tmp_path / "config.yaml").write_text(WHOLE)
    checked = run_relay("check", cwd=tmp_path)
    assert checked.returncode == 0
    assert checked.stdout == "config ok: 1 source, 2 targets, 1 route\n"
    assert checked.stderr == "warning: config.yaml:5:3: targets.spare: no route leads here\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("arguments", [("run",), ("check", "config.yaml")])
def test_a_refused_config_is_told_in_its_own_lines(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Every verb tells every problem with its place, exit code 78, and leaves nothing behind."""
    (tmp_path / "config.yaml").write_text(WHOLE.replace('9/"}', '9/", timeout: 15}').replace("to: crm", "to: cmr"))
    refused = run_relay(*arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (78, "")
    assert refused.stderr.splitlines() == [
        'config.yaml:4:37: targets.crm.timeout: "15" needs a unit (did you mean 15s?)',
        'config.yaml:5:39: targets.spare.timeout: "15" needs a unit (did you mean 15s?)',
        'config.yaml:7:32: routes[0].to: unknown target "cmr"; did you mean "crm"? known: crm, spare',
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("admin", "words"),
    [
        ("{listen: *c}", "holds more than 20,000 values or 64 levels, aliases counted as copies"),
        ("{listen: [a, b]}", ""),
        ("{listen: 5}", ""),
        ("{listen: null}", ""),
        ("{listen: '${NOT_SET_HERE}'}", "NOT_SET_HERE"),
    ],
)
def test_an_admin_address_that_cannot_be_read_is_a_refusal(tmp_path: Path, admin: str, words: str) -> None:
    """Who asks a running relay is told what is wrong with its config; aliases that multiply cost no traceback."""
    several = ", ".join(["x"] * 100)
    aliases = f"a: &a [{several}]\nb: &b [{several.replace('x', '*a')}]\nc: &c [{several.replace('x', '*b')}]\n"
    (tmp_path / "big.yaml").write_text(f"{aliases}admin: {admin}\n")
    refused = run_relay("health", "--config", "big.yaml", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (78, "")
    assert refused.stderr.startswith("big.yaml:4:")
    assert words in refused.stderr


def test_without_a_config_it_is_said_where_one_was_looked_for(tmp_path: Path) -> None:
    """The way out is in the message."""
    refused = run_relay("run", cwd=tmp_path)
    assert refused.returncode == 78
    assert "$RELAY_CONFIG" in refused.stderr


def test_a_starter_config_is_whole_private_and_has_secrets_of_its_own(tmp_path: Path) -> None:
    """What `init` writes can be run as it is, and no two are alike."""
    written = run_relay("init", cwd=tmp_path)
    assert written.returncode == 0
    assert "relay run" in written.stdout
    file = tmp_path / "config.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    checked = run_relay("check", cwd=tmp_path)
    assert (checked.stdout, checked.stderr) == ("config ok: 3 sources, 1 target, 1 route\n", "")
    (tmp_path / "other").mkdir()
    run_relay("init", "other", cwd=tmp_path)
    other = tmp_path / "other" / "config.yaml"
    first, second = (re.findall(r"[0-9a-f]{40}", path.read_text()) for path in (file, other))
    assert len({*first, *second}) == 8
    assert load(other, {}).store.url == f"sqlite:///{other.with_name('relay.db')}"


@pytest.mark.slow
def test_a_starter_config_never_overwrites(tmp_path: Path) -> None:
    """A file that exists is left as it is, be it a link to nowhere."""
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere.yaml")
    for arguments in (("init",), ("init", "link.yaml")):
        refused = run_relay(*arguments, cwd=tmp_path)
        assert refused.returncode == 1
        assert "exists and is left as it is" in refused.stderr
    assert (tmp_path / "config.yaml").read_text() == "mine"
    assert not (tmp_path / "nowhere.yaml").exists()
    refused = run_relay("init", "absent/config.yaml", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "cannot write absent/config.yaml" in refused.stderr


def test_the_example_names_every_variable_that_is_missing(tmp_path: Path) -> None:
    """Without its variables the example is refused, each with its place."""
    refused = run_relay("run", "--config", str(ROOT / "config.example.yaml"), cwd=tmp_path)
    assert refused.returncode == 78
    missing = re.findall(r"environment variable (\w+) is not set", refused.stderr)
    assert sorted(missing) == sorted(EXAMPLE_ENV)
    assert len(refused.stderr.splitlines()) == len(missing)


def test_the_example_is_whole_once_its_variables_are_set(tmp_path: Path) -> None:
    """The example can be run as it is, without a doubt about it."""
    checked = run_relay("check", str(ROOT / "config.example.yaml"), cwd=tmp_path, env=EXAMPLE_ENV)
    assert (checked.stdout, checked.stderr) == ("config ok: 3 sources, 3 targets, 4 routes\n", "")


@pytest.mark.slow
def test_the_example_runs_and_stops(tmp_path: Path) -> None:
    """It starts with its own store in the working directory, and ends with 0 when it is told to."""
    text = (ROOT / "config.example.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("0.0.0.0:8080", "127.0.0.1:0").replace(":8081", ":0"))
    with subprocess.Popen(
        command("run"), cwd=tmp_path, env=environment(**EXAMPLE_ENV), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "relay.started"
        process.send_signal(signal.SIGTERM)
        last = process.stdout.read().splitlines()[-1]
        assert json.loads(last)["event"] == "relay.stopped"
        assert process.wait(30) == 0
    assert (tmp_path / "relay.db").exists()


def test_without_standard_output_the_log_goes_to_standard_error(tmp_path: Path) -> None:
    """Whoever starts it with its output closed (`>&-`) still gets every line."""
    text = WHOLE + "server: {listen: 127.0.0.1:0}\nadmin: {listen: 127.0.0.1:0}\n"
    (tmp_path / "config.yaml").write_text(text)
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command("run")],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        assert next(line for line in lines if b'"relay.started"' in line)
        process.send_signal(signal.SIGTERM)
        assert b'"relay.stopped"' in [*lines][-1]
        assert process.wait(30) == 0


def test_the_commented_example_is_refused_until_it_is_filled_in(tmp_path: Path) -> None:
    """A path that is printed in every copy of the example is no secret."""
    text = (ROOT / "config.example.yaml").read_text()
    block = re.search(r"^  # plugandpay_v1:\n(?:  #   .*\n)+", text, re.MULTILINE)
    assert block is not None
    opened = text.replace(block[0], block[0].replace("  # ", "  "))
    for content, code in ((opened, 78), (re.sub("PUT-32-.*HERE", "3f9c2a7be41d50683f9c2a7be41d5068", opened), 0)):
        (tmp_path / "config.yaml").write_text(content)
        assert run_relay("check", cwd=tmp_path, env=EXAMPLE_ENV).returncode == code


def _keys(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[str]:
    """Every key that the config may hold below a part of its schema."""
    if "$ref" in node:
        yield from _keys(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    for name, inner in node.get("properties", {}).items():
        yield name
        yield from _keys(schema, inner)
    for inner in (*node.get("anyOf", ()), *(node[key] for key in ("items", "additionalProperties") if key in node)):
        if isinstance(inner, dict):
            yield from _keys(schema, inner)


def test_the_example_shows_every_key_there_is() -> None:
    """A key that is built is in the example, be it in a comment."""
    schema = json_schema()
    text = (ROOT / "config.example.yaml").read_text()
    keys = set(_keys(schema, schema))
    assert {"listen", "tolerance", "probe", "respond", "type"} <= keys
    assert {key for key in keys if not re.search(rf"\b{key}:", text)} == set()


@pytest.mark.parametrize(("env", "is_coloured"), [({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False)])
@pytest.mark.slow
def test_colours_need_a_terminal_and_obey_no_color(tmp_path: Path, env: dict[str, str], *, is_coloured: bool) -> None:
    """A terminal gets colours, unless its owner does not want any."""
    (tmp_path / "config.yaml").write_text(WHOLE)
    main, side = pty.openpty()
    try:
        subprocess.run(
            command("check"), cwd=tmp_path, env=environment(**env), stdout=side, stderr=side, timeout=30, check=True
        )
        shown = os.read(main, 65536)
    finally:
        os.close(main)
        os.close(side)
    assert b"warning:" in shown
    assert (b"\x1b[" in shown) is is_coloured


@pytest.mark.slow
def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    """Whoever gives up waiting reads no traceback; the shell is told 130."""
    (tmp_path / "config.yaml").write_text(WHOLE)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            command("send", "partner", "--url", url),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)
    assert (process.returncode, *said) == (130, b"", b"\n")
