"""What `python -m tests.breaking` says of a wrong command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.breaking.__main__ import main, whole_suite


def refused(*arguments: str) -> str:
    """The words of a command line that is refused as one, without a traceback."""
    done = CliRunner().invoke(main, arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    return done.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "old", "words"),
    [
        ("nope", "a", "nope is no file of the project"),
        ("../elsewhere.py", "a", "../elsewhere.py is no file of the project"),
        ("relay", "a", "relay is no file of the project"),
        ("relay/ids.py", "not there", "relay/ids.py holds 'not there' 0 times, not once"),
        ("relay/ids.py", "", "--file needs --old, what stands there, and --new, what is to stand there"),
    ],
)
def test_a_break_of_your_own_that_breaks_nothing_is_a_wrong_command_line(file: str, old: str, words: str) -> None:
    """It is told in words, before any test is run."""
    assert refused("--file", file, "--old", old, "--new", "b") == f"Error: {words}"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"{file: relay/ids.py, old: a, new: b}",
        b"[]",
        b"",
        b"- relay/ids.py",
        b"- {file: relay/ids.py, old: a}",
        b"- {file: relay/ids.py, old: a, new: b, colour: red}",
        b"- {file: relay/ids.py, old: a, new: 5}",
        b"- {file: [",
        b"\xff",
    ],
)
def test_a_list_of_breaks_that_is_none_is_a_wrong_command_line(tmp_path: Path, content: bytes | None) -> None:
    """A file that is not there, no YAML, or anything but a list of breaks: one line, which names it."""
    source = tmp_path / "breaks.yaml"
    if content is not None:
        source.write_bytes(content)
    assert refused("--from", str(source)).startswith(f"Error: Invalid value for --from: {source}")


def test_a_file_beside_the_package_has_a_suite_too() -> None:
    """A break of the Dockerfile or the README is put before all tests as any other."""
    assert sorted(whole_suite("Dockerfile")) == sorted(whole_suite("relay/rules/egress.py"))
