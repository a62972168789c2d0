"""Every parser of what strangers, targets and the YAML's author write, under a fuzzer that looks for new ways in.

A finding becomes a plain test beside the parser. `RELAY_FUZZ_SECONDS` is how long each target is fuzzed.
"""

import asyncio
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.support.hostile import mutated

SECONDS = int(os.environ.get("RELAY_FUZZ_SECONDS", "6"))
LONG = int(os.environ.get("RELAY_FUZZ_SECONDS", "300"))
GUIDED = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="there is no atheris for this Python")


@pytest.mark.parametrize("name", ["parsers", "config"])
def test_the_seeds_are_sound(name: str) -> None:
    """What a fuzzer begins with raises nothing, and neither does any of it cut short."""
    for seed in targets.seeds(name):
        for length in {len(seed), len(seed) // 2, len(seed) * 3 // 4}:
            getattr(targets, name)(seed[:length])


@pytest.mark.row("B21", "H12", "H20", "H35", "H61", "T25")
@pytest.mark.parametrize("name", [*targets.PARSERS, "config"])
def test_no_bytes_break_a_parser(name: str) -> None:
    """Noise, and genuine samples with something wrong in them: the thing, or a named refusal, and its laws hold."""
    seeds, parse = targets.seeds(name), getattr(targets, name)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=80) | st.builds(mutated, st.sampled_from(seeds), st.randoms(use_true_random=False)))
    def example(data: bytes) -> None:
        parse(data)

    example()


async def fuzzed(name: str, seconds: int, folder: Path) -> tuple[int, str]:
    """Its exit code and what it said, what was found included."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fuzz.harness", name, str(seconds), str(folder)),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    found = [f"{path.name}: {path.read_bytes()!r}" for path in folder.glob("*-*")]
    return process.returncode or 0, said.decode(errors="replace")[-8000:] + "\n".join(found)


async def judge(name: str, seconds: int, folder: Path) -> None:
    code, said = await fuzzed(name, seconds, folder)
    assert code == 0, said
    runs = re.search(r"number_of_executed_units: (\d+)", said)
    assert runs is not None, said
    assert int(runs[1]) > 3 * seconds, said


@GUIDED
@pytest.mark.slow
@pytest.mark.timeout(300 + 3 * SECONDS)
@pytest.mark.row("B21", "T13", "H12", "H20", "H35", "H40", "H61")
@pytest.mark.parametrize("name", ["parsers", "config", "http"])
async def test_a_fuzzer_finds_nothing_in_seconds(tmp_path: Path, name: str) -> None:
    """No stray exception, no broken law, no hang."""
    await judge(name, SECONDS, tmp_path / "fuzzed")


@GUIDED
@pytest.mark.soak
@pytest.mark.timeout(300 + 3 * LONG)
@pytest.mark.parametrize("name", [*targets.PARSERS, "config", "http"])
async def test_a_fuzzer_finds_nothing_in_minutes(tmp_path: Path, name: str) -> None:
    """Each parser by itself."""
    await judge(name, LONG, tmp_path / "fuzzed")
