"""Configs that were made, copied or cut off badly: each is refused in lines with places, or means what it says."""

import os
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from relay.cli.configs import check
from relay.config import ConfigRefused, load
from tests.support.canaries import ALL as CANARIES
from tests.support.canaries import sections
from tests.support.certificates import Authority
from tests.support.odd_files import ODD

LINE = re.compile(r"config\.yaml(:[1-9][0-9]*:[1-9][0-9]*)?: .+")
CORES = tuple(secret.lower()[:-2] for secret in CANARIES)

INSERTED = (
    *("\t", "!!str ", "!secret ", "!!python/object/apply:os.system ", "*a ", "&a ", "&a *a ", "{", "}", "[", "]"),
    *("'", '"', "|", ">", "%", "@", "`", "? ", ": ", "- ", "# ", ",", "\0", "\x85", "\u2028", "\ufeff", "\x1b[2J"),
    *("\ud800", "<<: ", "~ ", "${", "${x", "${NOT_SET}", "${file:/}", "${file:/dev/zero}", "$$", "{{", "{%"),
    *("\n", "\r", "\n\n---\n", "\n...\n", "\n\t", "0x", "0o", "1_", "12:30:45 ", "-", "1e9", "é", "\U0001d54f"),
    *("a" * 5000, "{{ range(10**9) | list }}", "{% for a in range(9**9) %}{% endfor %}", "{{ id * 10**9 }}"),
    *("{{ 9**9**9 }}", "{{ ''.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
)  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config in which every secret is a canary."""
    monkeypatch.chdir(tmp_path)
    Authority(tmp_path).issue("me")
    parts = sections(tmp_path, *["http://127.0.0.1:1"] * 3, "https://127.0.0.1:1")
    return yaml.safe_dump(parts, sort_keys=False, width=10**9)


def judged(content: str | bytes) -> list[str] | None:
    """The lines of a refusal, None where it is fit; nothing else may come of it."""
    path = Path("config.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        load(path, {})
    except ConfigRefused as refused:
        lines = str(refused).splitlines()
        assert lines
        assert [line for line in lines if not LINE.fullmatch(line) or not line.isprintable()] == []
        return lines
    return None


def mangled(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """A text with one thing wrong with it, again and again, each with where."""
    lines = text.split("\n")
    while True:
        number = rng.randrange(len(lines) - 1)
        line = lines[number]
        what = rng.choice(("insert", "insert", "insert", "cut", "delete", "twice", "indent", "colon", "end"))
        at = rng.choice((len(line) - len(line.lstrip()), line.find(": ") + 2, rng.randrange(len(line) + 1)))
        made = line
        match what:
            case "insert":
                made = line[:at] + rng.choice(INSERTED) + line[at:]
            case "cut":
                made = line[:at]
            case "delete":
                made = line[:at] + line[at + 1 :]
            case "twice":
                made = f"{line}\n{line}"
            case "indent":
                made = f" {line}" if rng.random() < 0.5 else line[1:]
            case "colon":
                made = line.replace(": ", rng.choice((":", "=", " : ", ":  - ", ": {", "\n"))) + rng.choice(
                    ("", "}", ":")
                )
            case "end":
                yield "\n".join(lines[:number]) + "\n" + made[:at], line
                continue
        yield "\n".join((*lines[:number], made, *lines[number + 1 :])), line


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.row("C4", "C5", "C6", "C8", "C12", "C13", "C15", "T61", "T62")
def test_a_config_with_one_thing_wrong_tells_that_and_no_secret(whole: str) -> None:
    """Hundreds of slips and attacks, anywhere in the file: refused in lines with places, or read as what it says; the
    secrets of all other lines, and that of the very line, stay unsaid."""
    rng = random.Random(20_260)
    assert judged(whole) is None
    refused = 0
    texts = mangled(whole, rng)
    for _ in range(600):
        text, line = next(texts)
        lines = judged(text)
        refused += lines is not None
        said = "\n".join(lines or ()).lower()
        assert not [core for core in CORES if core in said], f"{line}\n{said}"
    assert refused > 300


@pytest.mark.row("C2", "C3", "C4", "C5", "C6", "C8", "C10", "T61")
@pytest.mark.parametrize(
    "what", [pytest.param(one, marks=pytest.mark.slow) if one == "very many anchors" else one for one in ODD]
)
def test_whatever_is_no_config_is_refused_in_words(whole: str, what: str) -> None:
    """Bytes of any kind, bombs and other people's files; one that works goes on working behind what YAML allows."""
    assert judged(ODD[what]) is not None


@pytest.mark.row("C4", "T61")
@pytest.mark.parametrize(
    "made",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: f"---\n{text}\n...\n",
        lambda text: f"%YAML 1.2\n---\n{text}",
        lambda text: text + "\n" * 1000,
        lambda text: text.replace("\n", " # a remark\n"),
        lambda text: text.rstrip("\n"),
    ],
)
def test_what_yaml_allows_around_a_config_is_no_fault(whole: str, made: object) -> None:
    """Byte order marks, other systems' line breaks, marks of a document and remarks change nothing."""
    assert judged(made(whole)) is None  # type: ignore[operator]


@pytest.mark.row("C1")
def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory, a pipe to which nobody writes, a device without end, a ring of links, an impossible name."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("ring").symlink_to("ring")
    Path("astray").symlink_to("nowhere")
    Path("folder").mkdir()
    wanted = {
        "folder": "Is a directory",
        "pipe": "is empty",
        "ring": "symbolic links",
        "astray": "No such file",
        "missing/config.yaml": "No such file",
        "/dev/null": "is empty",
        "/dev/zero": "larger than 1 MiB",
        "/proc/self/mem": "cannot read config",
        "x" * 5000: "File name too long",
    }
    for name, words in wanted.items():
        done = CliRunner().invoke(check, [name])
        assert (done.exit_code, done.output.count("\n")) == (78, 1), done.output
        assert words in done.output


@pytest.mark.row("C1")
def test_a_config_may_come_through_a_pipe(whole: str, tmp_path: Path) -> None:
    """As from a program that makes it; it is read to its end."""
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text(whole), daemon=True)
    held = os.open("pipe", os.O_RDWR)  # so that the pipe has both ends from the beginning
    writer.start()
    writer.join(0.2)
    closing = threading.Timer(0.3, os.close, [held])
    closing.start()
    config = load(Path("pipe"), {})
    closing.join()
    assert len(config.sources) == 8
