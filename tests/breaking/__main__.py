"""Break lines of a copy of the project, one at a time, and see the tests turn red: `python -m tests.breaking`.

A break that the tests named beside it do not see is put before the whole suite, the longer tests included. One that
nothing sees has survived, and the exit code is 1. First of all the named tests must be green on unbroken code, or red
would mean nothing.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

from tests.breaking.lines import LINES, Break

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("relay", "tests", "README.md", "config.example.yaml", "pyproject.toml", "Dockerfile")
LONGEST_S = 1800
"""For the whole suite; one that takes longer hangs, which is red too."""
NEAREST = {"rules": "rules", "providers": "rules", "store": "store", "delivery": "delivery", "config": "config"}
"""The folder of tests that is asked first of the whole suite, by the floor of the broken file; else `http`."""

FORM = "{file, old, new[, name]}"
"""What a list of breaks holds."""


@dataclass(frozen=True)
class Seen:
    """What the tests said to a break."""

    is_red: bool
    seconds: float
    first: str
    """The first test that turned red, or why there is none."""
    by_whole_suite: bool


class NoBreak(Exception):
    """What should be broken is not there, or broke more than a line."""


def broken(one: Break, root: Path) -> str:
    """The content of a break's file with the break in it.

    Raises:
        NoBreak: its line does not occur exactly once.
    """
    path = root / one.file
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        raise NoBreak(f"{one.file} is no file of the project")
    content = path.read_text()
    if content.count(one.old) != 1:
        raise NoBreak(f"{one.file} holds {one.old!r} {content.count(one.old)} times, not once")
    return content.replace(one.old, one.new)


@contextmanager
def copied(root: Path = ROOT) -> Iterator[Path]:
    """A copy of the project that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="relay-breaking-") as name:
        home = Path(name)
        for item in COPIED:
            if (root / item).is_dir():
                shutil.copytree(root / item, home / item, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(root / item, home / item)
        yield home


def asked(home: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Run tests in a copy until the first is red; the exit code of pytest and what it wrote."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not soak", *options, *tests]
    try:
        run = subprocess.run(
            command,
            cwd=home,
            timeout=LONGEST_S,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return pytest.ExitCode.TESTS_FAILED, f"FAILED {' '.join(tests)}::they hang"
    return run.returncode, run.stdout


def whole_suite(file: str) -> list[str]:
    """The folders of all tests, the likeliest first: the run ends with the first red one."""
    floor = "".join(Path(file).parts[1:2]).removesuffix(".py")  # a file beside the packages has none
    nearest = ROOT / "tests" / NEAREST.get(floor, "http")
    with_tests = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests"}
    folders = sorted(with_tests, key=lambda folder: (folder != nearest, folder.name == "program", folder.name))
    loose = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in (*folders, *loose)]


def first_red(output: str) -> str | None:
    """The name of the test that turned red; None where none did."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", output, re.MULTILINE)
    return found[1] if found else None


def tried(one: Break, *, root: Path = ROOT) -> Seen:
    """Put one break before the tests.

    Raises:
        NoBreak: its line is not there, or the tests cannot even be collected with it.
    """
    began = time.monotonic()
    runs: list[tuple[Sequence[str], Sequence[str]]] = [(one.seen_by, ())] if one.seen_by else []
    runs.append((whole_suite(one.file), ("-n", "2")))
    with copied(root) as home:
        (home / one.file).write_text(broken(one, root))
        for tests, options in runs:
            code, output = asked(home, tests, *options)
            if red := first_red(output):
                return Seen(True, time.monotonic() - began, red, not one.seen_by or tests != one.seen_by)
            if code != pytest.ExitCode.OK:
                raise NoBreak(f"pytest ended with {code}:\n{output[-2000:]}")
    return Seen(False, time.monotonic() - began, "no test turned red", True)


def told(one: Break) -> bool:
    """Try a break and print what came of it; whether it was seen."""
    try:
        seen = tried(one)
    except NoBreak as error:
        click.echo(f"no break  {one.name}: {error}")
        return False
    note = "  (by none of the tests named)" if seen.is_red and seen.by_whole_suite and one.seen_by else ""
    click.echo(f"{'red     ' if seen.is_red else 'SURVIVED'}  {seen.seconds:5.1f} s  {one.name}: {seen.first}{note}")
    return seen.is_red


def chosen(names: Sequence[str], source: Path | None, file: str, old: str, new: str) -> list[Break]:
    """The breaks that the command line asks for."""
    if file and not old:
        raise click.UsageError("--file needs --old, what stands there, and --new, what is to stand there")
    if file:
        one = Break(f"{file}: {old!r}", file, old, new)
        try:
            broken(one, ROOT)
        except NoBreak as error:
            raise click.UsageError(str(error)) from None
        return [one]
    if source is not None:
        return listed(source)
    return [one for one in LINES if not names or any(name in one.name for name in names)]


def listed(source: Path) -> list[Break]:
    """The breaks that a YAML file lists.

    Raises:
        click.BadParameter: it cannot be read, or lists something else.
    """
    try:
        items = yaml.safe_load(source.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise click.BadParameter(f"{source}: {words}", param_hint="--from") from None
    if not isinstance(items, list) or not items or not all(is_break(item) for item in items):
        raise click.BadParameter(f"{source} is no list of {FORM}, each a text", param_hint="--from")
    return [Break(**{"name": item["file"], **item}) for item in items]


def is_break(item: object) -> bool:
    """Whether one item of such a list says what to break, and nothing else."""
    if not isinstance(item, dict) or not all(isinstance(value, str) for value in item.values()):
        return False
    return {"file", "old", "new"} <= item.keys() <= {"file", "old", "new", "name"}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--jobs", default=2, show_default=True, help="Breaks that are tried at a time.")
@click.option("--known-green", is_flag=True, help="Do not see first that the tests are green on unbroken code.")
@click.option("--list", "is_list", is_flag=True, help="Print the breaks and end.")
@click.option("--from", "source", type=click.Path(path_type=Path), help=f"YAML: a list of {FORM}.")
@click.option("--file", default="", help="A break of your own: the file, with --old and --new.")
@click.option("--old", default="", help="What stands there exactly once.")
@click.option("--new", default="", help="What is to stand there.")
def main(
    names: tuple[str, ...],
    jobs: int,
    known_green: bool,
    is_list: bool,
    source: Path | None,
    file: str,
    old: str,
    new: str,
) -> None:
    """Break each line that carries a promise (or those whose names hold one of NAMES), and see the tests turn red."""
    breaks = chosen(names, source, file, old, new)
    if is_list or not breaks:
        for one in LINES:
            click.echo(f"{one.name}  ({one.file})")
        sys.exit(0 if is_list else 2)
    named = sorted({test for one in breaks for test in one.seen_by})
    if named and not known_green:
        with copied() as home:
            code, output = asked(home, named, "-n", "2")
        if code != pytest.ExitCode.OK:
            click.echo(output)
            sys.exit("the tests are red on unbroken code")
    with ThreadPoolExecutor(jobs) as pool:
        seen = list(pool.map(told, breaks))
    click.echo(f"{sum(seen)} of {len(seen)} breaks were seen")
    sys.exit(0 if all(seen) else 1)


if __name__ == "__main__":
    main()
