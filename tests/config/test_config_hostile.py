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


ODD = {
    "nothing": b"",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "white space": b" \n \n",
    "comments": b"# one\n# two\n",
    "a document mark": b"---\n",
    "an end mark": b"...\n",
    "null": b"null",
    "a number": b"42",
    "a list": b"- a\n- b\n",
    "text": b"relay",
    "a directive": b"%YAML 3.0\n---\na: 1\n",
    "a directive alone": b"%YAML 1.2\n",
    "a tag directive": b"%TAG ! tag:evil,2000:\n---\na: !x 1\n",
    "UTF-16": "sources: {}".encode("utf-16"),
    "UTF-16 without a mark": "sources: {}".encode("utf-16-le"),
    "UTF-32": "sources: {}".encode("utf-32"),
    "Latin-1": "sources: {é: 1}".encode("latin-1"),
    "surrogates": b"a: \xed\xa0\x80\n",
    "an overlong form": b"a: \xc0\xaf\n",
    "NUL": b"a: \0\n",
    "an escape": b"a: \x1b[31m\n",
    "DEL": b"a: \x7f\n",
    "random bytes": bytes(range(256)),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00",
    "ELF": b"\x7fELF\x02\x01\x01\x00",
    "JSON that is cut off": b'{"sources": {"a": ',
    "HTML": b"<!doctype html><html><body>404</body></html>",
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "TOML": b"[sources]\na = 1\n",
    "shell": b"#!/bin/sh\nset -e\necho $((1+1))\n",
    "a merge conflict": b"<<<<<<< HEAD\nsources: {}\n=======\ntargets: {}\n>>>>>>> other\n",
    "a key without a value": b"sources\n",
    "a value without a key": b": x\n",
    "a complex key": b"? [a, b]\n: c\n",
    "a mapping as a key": b"{{a: 1}: 2}\n",
    "an alias as a key": b"a: &x 1\n*x : 2\n",
    "an alias of nothing": b"a: *nothing\n",
    "an alias of itself": b"&a [*a]\n",
    "an anchor twice": b"a: &x 1\nb: &x 2\nc: *x\n",
    "an anchor alone": b"&a\n",
    "a tag alone": b"!!map\n",
    "a binary tag": b"sources: !!binary aGVsbG8=\n",
    "a set": b"sources: !!set {a, b}\n",
    "an ordered map": b"sources: !!omap [a: 1]\n",
    "an object": b"sources: !!python/object:os.system {}\n",
    "a module": b"a: !!python/module:os\n",
    "a name": b"a: !!python/name:os.system\n",
    "a tuple": b"a: !!python/tuple [1]\n",
    "a merge": b"a: &a {b: 1}\nsources:\n  <<: *a\n",
    "a block scalar": b"|\n  a\n  b\n",
    "a folded scalar with a wrong indicator": b"a: >99\n  b\n",
    "lists without end": b"[" * 100_000,
    "mappings without end": b"{a: " * 50_000,
    "dashes without end": b"- " * 50_000,
    "keys without end": b"? " * 50_000,
    "aliases without end": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in range(97, 110)),
    "a very long key": b"a" * 200_000 + b": 1\n",
    "a very long value": b"server: {listen: " + b"1" * 500_000 + b"}\n",
    "very many keys": b"".join(b"k%d: 1\n" % n for n in range(30_000)),
    "a file of two MiB": b"# " + b"x" * (2 << 20),
    "very many anchors": b"".join(b"k%d: &a%d 1\n" % (n, n) for n in range(19_000)),
    "very many documents": b"---\na: 1\n" * 5_000,
    "only quotes": b'"' * 9_999,
    "only colons": b":" * 9_999,
    "only line breaks and a tab": b"\n" * 9_999 + b"\t",
    "numbers that are none": b"a: 0x1F\nb: 0o17\nc: 1_000\nd: 12:30:45\ne: 0b1\nf: +.inf\n",
}


@pytest.mark.row("C2", "C3", "C4", "C5", "C6", "C8", "C10", "T61")
@pytest.mark.parametrize("what", ODD)
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
