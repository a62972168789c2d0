"""The verb that measures: `bench`; real senders, targets and a real relay, for a second."""

import json
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_cli import command, environment, run_relay

from relay.bench.disk import percentile
from relay.bench.results import NoResults, compared, read
from tests.support.broken import with_break
from tests.support.program import until
from tests.support.recorded import ROOT

SHORT = ("bench", "--seconds", "1", "--connections", "4")


def objects(text: str) -> list[dict[str, Any]]:
    """Lines of JSON."""
    return [json.loads(line) for line in text.splitlines()]


def test_every_event_of_a_measurement_is_counted_in_three_places(tmp_path: Path) -> None:
    """What was accepted is in the store and at each target; all figures are there; nothing is left behind."""
    home = tmp_path / "home"
    home.mkdir()
    done = run_relay(*SHORT, "--rate", "40", "--fan-out", "2", "--dir", str(home), "--output", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in objects(done.stdout)}
    assert list(rows) == ["machine", "disk", "bare", "fan-out 2", "40/s"]
    assert rows["40/s"]["accepted"] == 40
    assert rows["40/s"]["fan_out"] == 3
    assert rows["fan-out 2"]["share_of_bare"] > 0
    assert rows["bare"]["requests_per_s"] > rows["fan-out 2"]["events_per_s"] > 0
    for name in ("fan-out 2", "40/s"):
        row = rows[name]
        assert (row["lost"], row["copies"], row["refused"]) == (0, 0, 0)
        assert 0 < row["answer_p50_ms"] <= row["answer_p99_ms"]
        assert 0 < row["arrival_p50_ms"] <= row["arrival_p99_ms"]
        assert row["disk_bytes"] > 1024
        assert row["start_s"] > 0
    assert rows["disk"]["syncs_per_s"] > 0
    assert list(home.iterdir()) == []
    assert "about" in done.stderr


def test_a_person_gets_a_table(tmp_path: Path) -> None:
    """With the machine, its disk, and what is lost; no bar where nobody watches."""
    done = run_relay(*SHORT, "--rate", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    machine, disk, _, titles, row = done.stdout.splitlines()
    assert machine.startswith("relay ")
    assert "syncs/s" in disk
    assert titles.split()[:4] == ["EVENTS/S", "OF", "BARE", "ANSWER"]
    assert titles.split()[-1] == "LOST"
    assert row.split()[0] == "20/s"
    assert row.split()[-2:] == ["0", "0"]
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "broken",
    ["Accepted(event.id, duplicate=False)", "await self._store.accept(event, found.targets[:2], found.courses)"],
    ids=["not stored", "a target left out"],
)
def test_what_is_missing_anywhere_fails_the_measurement(tmp_path: Path, broken: str) -> None:
    """A relay that answers 200 for what it does not keep, or does not send everywhere, is found out."""
    accepts = "await self._store.accept(event, found.targets, found.courses)"
    program = with_break(tmp_path, "ingress.py", accepts, broken)
    env = {"PYTHONPATH": f"{program}:{ROOT}"}
    done = run_relay(*SHORT, "--rate", "20", "--output", "json", cwd=program, env=env)
    assert done.returncode == 1, done.stdout
    *_, row = objects(done.stdout)
    assert row["accepted"] == 20
    assert row["lost"] >= 20
    assert "missing" in done.stderr


async def test_an_interrupted_measurement_leaves_nothing(tmp_path: Path) -> None:
    """Neither a process nor a file, and the exit code that shells expect."""
    process = await measuring(tmp_path)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    await until(lambda: not _with_argument(str(tmp_path)))


async def test_a_measurement_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """The relay goes with it, and so do senders and targets; the files stay, as with every kill."""
    process = await measuring(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    await until(lambda: not _with_argument(str(tmp_path)))


async def measuring(home: Path) -> "subprocess.Popen[bytes]":
    """A measurement under way."""
    arguments = command("bench", "--seconds", "20", "--rate", "5", "--dir", str(home))
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, start_new_session=True)
    await until(lambda: any(home.glob("*/0/relay.db-wal")))
    assert _with_argument(str(home))
    return process


def _with_argument(text: str) -> list[str]:
    """Processes that were started for a place."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = place.read_bytes()
            if text.encode() in line:
                found.append(line.decode())
    return found


# results beside each other


def a_row(name: str = "fan-out 3", **figures: float) -> str:
    return json.dumps({"kind": "trial", "name": name, **figures})


def test_two_results_are_compared_where_both_have_a_figure(tmp_path: Path) -> None:
    """More events a second are better, more milliseconds worse, and a tenth is no difference."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(a_row(events_per_s=1000.0, answer_p50_ms=2.0, cpu_us=300.0, lost=0) + "\n" + a_row("9/s"))
    new.write_text(a_row(events_per_s=2000.0, answer_p50_ms=4.0, cpu_us=310.0, lost=0) + "\n" + a_row("8/s"))
    done = run_relay("bench", "--compare", str(old), str(new), "--output", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {row["figure"]: (row["ratio"], row["verdict"]) for row in objects(done.stdout)}
    assert found == {
        "events_per_s": (2.0, "better"),
        "answer_p50_ms": (2.0, "worse"),
        "cpu_us": (1.033, "same"),
        "lost": (None, "same"),
    }
    shown = run_relay("bench", "--compare", str(old), str(new), cwd=tmp_path).stdout
    assert shown.splitlines()[1].split() == ["fan-out", "3", "events_per_s", "1,000.00", "2,000.00", "2.00"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "no json", '{"kind": 1}', '"text"', "null"])
def test_a_file_without_results_is_refused_in_words(text: str) -> None:
    """With its name, and how such a file is made or where it goes wrong."""
    with pytest.raises(NoResults, match=r"^old"):
        read(text, "old")


def test_results_with_nothing_in_common_are_told(tmp_path: Path) -> None:
    """Rather than an empty table."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(a_row("9/s", cpu_us=1.0))
    new.write_text(a_row("8/s", cpu_us=1.0))
    done = run_relay("bench", "--compare", str(old), str(new), cwd=tmp_path)
    assert done.returncode == 1
    assert "no figure in common" in done.stderr


def test_a_figure_that_was_nothing_has_no_ratio() -> None:
    """And what is lost now is worse than nothing."""
    (row,) = compared(read(a_row(lost=0), "old"), read(a_row(lost=3), "new"))
    assert (row["ratio"], row["verdict"]) == (None, "worse")


def test_percentiles_are_values_that_were_measured() -> None:
    """In milliseconds; of nothing it is 0."""
    assert percentile([], 99) == 0.0
    assert percentile([0.001], 50) == 1.0
    assert percentile([n / 1000 for n in range(100)], 99) == 99.0
    assert percentile([n / 1000 for n in range(100)], 50) == 50.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seconds", "0"), "0"),
        (("--rate", "0"), "1<=x<=100000"),
        (("--fan-out", "51"), "1<=x<=50"),
        (("--body", "10"), "<=x<="),
        (("--dir", "nowhere"), "does not exist"),
        (("--compare", "nothing", "nothing"), "does not exist"),
    ],
)
def test_what_cannot_be_measured_is_a_wrong_command_line(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    """Told before anything starts."""
    done = run_relay("bench", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
