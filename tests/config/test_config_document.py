"""YAML as a document: what cannot be read is told with its place, and nothing is guessed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.config import Config, ConfigRefused, load

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

WHOLE = """\
sources:
  partner:
    provider: custom
    secrets: ["${PARTNER_SECRET}"]
    verify: {scheme: bearer}
targets:
  crm:
    url: https://crm.example.com/hooks
routes:
  - name: all
    from: partner
    to: crm
"""


@pytest.mark.row("C1")
def test_a_file_that_cannot_be_read_is_told_without_a_line(tmp_path: Path) -> None:
    """A missing file and a directory are named, and the system's reason."""
    with pytest.raises(ConfigRefused) as caught:
        load(tmp_path / "none.yaml", {})
    assert str(caught.value) == f"{tmp_path}/none.yaml: cannot read config: No such file or directory"
    with pytest.raises(ConfigRefused) as caught:
        load(tmp_path, {})
    assert str(caught.value) == f"{tmp_path}: cannot read config: Is a directory"
    assert caught.value.problems[0].line is None


@pytest.mark.row("C2")
@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "null", "sources:\n", "\n\n"])
def test_an_empty_file_says_what_it_needs(refusals: Refuser, content: str) -> None:
    """Nothing at all is told as such."""
    assert refusals(content) == ["config.yaml: is empty; needs `sources` and `targets`"]


@pytest.mark.row("C3")
@pytest.mark.parametrize(("content", "kind"), [("- a\n", "list"), ("hello\n", "string"), ("12\n", "integer")])
def test_the_top_level_must_be_a_mapping(refusals: Refuser, content: str, kind: str) -> None:
    """A list or a scalar at the top is named."""
    assert refusals(content) == [f"config.yaml:1:1: top level must be a mapping, found {kind}"]


@pytest.mark.row("C4")
@pytest.mark.parametrize(
    ("content", "place"),
    [("server:\n\tlisten: x\n", "2:1"), ("\tserver: x\n", "1:1"), ("server: x\n\tlisten: y\n", "2:1")],
)
def test_tabs_are_named(refusals: Refuser, content: str, place: str) -> None:
    """Indentation by tabs is told in plain words."""
    assert refusals(content) == [f"config.yaml:{place}: YAML does not allow tabs for indentation"]


@pytest.mark.row("C5")
@pytest.mark.parametrize(
    ("content", "place"), [("a: 'open\n", "2:1"), ("a: b\n c: d\n", "2:3"), ("a: [1, 2\n", "2:1"), ("a: @b\n", "1:4")]
)
def test_broken_yaml_is_one_line_with_its_place(refusals: Refuser, content: str, place: str) -> None:
    """A syntax error is one line with a line and a column."""
    (line,) = refusals(content)
    assert line.startswith(f"config.yaml:{place}: not valid YAML: ")


@pytest.mark.row("C6")
def test_two_documents_are_refused(refusals: Refuser) -> None:
    """A file holds one document."""
    assert refusals("a: 1\n---\nb: 2\n") == ["config.yaml:2:1: more than one YAML document"]


@pytest.mark.row("C8", "T61")
def test_tags_are_refused_and_nothing_is_run(refusals: Refuser, tmp_path: Path) -> None:
    """A tag that would construct an object constructs none; a private one is not repeated, it may be a secret."""
    content = f"server: !!python/object/apply:os.system ['touch {tmp_path}/run']\n{WHOLE}"
    assert refusals(content) == [
        "config.yaml:1:1: server: must be a mapping, found list",
        'config.yaml:1:9: server: tag "!!python/object/apply:os.system" is not allowed',
    ]
    assert not (tmp_path / "run").exists()
    (line,) = refusals("a: !hunter2hunter2 x\n" + WHOLE)[:1]
    assert "hunter2" not in "\n".join(refusals("a: !hunter2hunter2 x\n" + WHOLE))
    assert line.startswith("config.yaml:1:")
    assert 'quote a value that begins with "!"' in "\n".join(refusals("a: !x!hunter2 y\n" + WHOLE))


@pytest.mark.row("C10")
def test_a_large_file_is_refused(refusals: Refuser) -> None:
    """More than 1 MiB is no config."""
    assert refusals("#" * (1024 * 1024 + 1)) == ["config.yaml: config larger than 1 MiB"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: \xff\n", "config.yaml:2:4: not UTF-8 text"),
        ("a: 1\r\nbé: \x07\r\n".encode(), "config.yaml:2:5: character U+0007 is not allowed in YAML"),
    ],
)
def test_bytes_that_are_no_text_are_told_with_their_place(refusals: Refuser, content: bytes, expected: str) -> None:
    """Invalid UTF-8 and control characters are refused where they stand."""
    assert refusals(content) == [expected]


def test_a_byte_order_mark_is_no_content(read: Loader) -> None:
    """Editors that write a BOM do no harm."""
    assert read(b"\xef\xbb\xbf" + WHOLE.encode()).targets[0].name == "crm"


@pytest.mark.row("T61")
def test_duplicate_keys_are_refused(refusals: Refuser) -> None:
    """The second of two equal keys is named, and the first one's line."""
    (line,) = refusals(WHOLE.replace("    from: partner\n", "    from: partner\n    from: other\n"))
    assert line == 'config.yaml:12:5: routes[0].from: duplicate key "from" (first in line 11)'


@pytest.mark.row("T61")
def test_aliases_work_and_merge_keys_do_not(read: Loader, refusals: Refuser) -> None:
    """An alias stands for a whole value; `<<` is refused by name."""
    aliased = WHOLE.replace("  crm:\n", "  first: &t\n").replace("to: crm", "to: [first, second]")
    aliased = aliased.replace("routes:", "  second: *t\nroutes:")
    assert [target.name for target in read(aliased).targets] == ["first", "second"]
    merged = aliased.replace("second: *t", "second: {<<: *t}")
    assert any("merge keys" in line for line in refusals(merged))


@pytest.mark.row("T61")
def test_a_bomb_of_aliases_is_refused_fast(refusals: Refuser) -> None:
    """342 bytes that would expand to billions of values cost milliseconds."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{previous}'] * 9)}]\n"
    begun = time.monotonic()
    assert refusals(bomb) == ["config.yaml: holds more than 20,000 values or 64 levels, aliases counted as copies"]
    assert time.monotonic() - begun < 2


@pytest.mark.row("T61")
@pytest.mark.parametrize("content", ["[" * 2000, "{a: " * 2000, "- " * 2000, "a: " + "[" * 100_000])
def test_depth_is_bounded(refusals: Refuser, content: str) -> None:
    """Nesting never recurses past 64 levels."""
    (line,) = refusals(content)
    assert line.endswith("nested deeper than 64 levels")


def test_depth_through_aliases_is_bounded(refusals: Refuser) -> None:
    """Aliases that nest each other are no way round the bound."""
    chain = "a: &a [x]\n" + "".join(f"k{i}: &k{i} [*{'a' if i == 0 else f'k{i - 1}'}]\n" for i in range(300))
    assert refusals(chain) == ["config.yaml: holds more than 20,000 values or 64 levels, aliases counted as copies"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: &a [*a]\n", "config.yaml:1:8: a: an alias cannot stand inside what it names"),
        ("a: *hunter2\n", 'config.yaml:1:4: a: undefined alias; quote a value that begins with "*"'),
        ("? [a]\n: b\n", "config.yaml:1:3: a key must be plain text"),
    ],
)
def test_odd_structures_are_refused(refusals: Refuser, content: str, expected: str) -> None:
    """Cycles, undefined aliases (whose name may be a secret) and keys that are no text are told."""
    assert refusals(content) == [expected]


@pytest.mark.row("C13", "T61")
@pytest.mark.parametrize("text", ["on", "no", "12:30", "0123456789", "2026-01-01", "0x1F", "1_000", "y", "NO"])
def test_yaml_1_1_traps_stay_text(read: Loader, text: str) -> None:
    """What YAML 1.1 takes for booleans, times, octals and dates is text here."""
    config = read(WHOLE.replace("url: https", f"headers: {{X-Value: {text}}}\n    url: https"))
    assert config.targets[0].headers == (("X-Value", text),)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("12", "integer"),
        ("-3", "integer"),
        ("1e3", "number"),
        ("1.5", "number"),
        (".inf", "number"),
        ("true", "boolean"),
    ],
)
def test_numbers_and_booleans_are_no_text(refusals: Refuser, text: str, kind: str) -> None:
    """Where text belongs, another type is refused rather than turned into text."""
    (line,) = refusals(WHOLE.replace("url: https", f"headers: {{X-Value: {text}}}\n    url: https"))
    assert line == f"config.yaml:8:15: targets.crm.headers.X-Value: must be a quoted string, found {kind}"


@pytest.mark.row("C15")
@pytest.mark.parametrize("content", ["${NOT_THERE}", "${EMPTY}", "x${NOT_THERE}y"])
def test_an_unset_variable_is_told_with_its_place(refusals: Refuser, content: str) -> None:
    """Unset and empty are the same: not set."""
    (line,) = refusals(WHOLE.replace("${PARTNER_SECRET}", content))
    name = "EMPTY" if "EMPTY" in content else "NOT_THERE"
    assert line == f"config.yaml:4:15: sources.partner.secrets[0]: environment variable {name} is not set"


@pytest.mark.row("C15")
def test_a_variable_has_a_default_or_a_message(read: Loader, refusals: Refuser) -> None:
    """`:-` gives a default, `:?` a message, `$$` a dollar sign."""
    url = "https://${HOST:-crm.example.com}/a$$b"
    assert read(WHOLE.replace("https://crm.example.com/hooks", url)).targets[0].url == "https://crm.example.com/a$b"
    assert (
        read(WHOLE.replace("https://crm.example.com/hooks", url), HOST="h.example")
        .targets[0]
        .url.startswith("https://h.example/")
    )
    (line,) = refusals(WHOLE.replace("${PARTNER_SECRET}", "${NOPE:?ask the partner}"))
    assert line.endswith("environment variable NOPE is not set: ask the partner")


@pytest.mark.parametrize("content", ["${", "${A", "${A B}", "${}", "${A:+b}"])
def test_a_malformed_reference_is_refused(refusals: Refuser, content: str) -> None:
    """What looks like a reference and is none is not sent as it stands."""
    (line,) = refusals(WHOLE.replace("${PARTNER_SECRET}", content))
    assert line.startswith("config.yaml:4:15: sources.partner.secrets[0]: ")


def test_a_value_cannot_change_the_documents_shape(read: Loader) -> None:
    """What comes out of a variable stays one string, and is not expanded again."""
    value = "a', b: [c] ${PARTNER_SECRET} $$ #"
    config = read(WHOLE.replace("url: https", 'headers: {X: "${TRICKY}"}\n    url: https'), TRICKY=value)
    assert config.targets[0].headers == (("X", value),)


def test_a_number_may_come_from_a_variable(read: Loader, refusals: Refuser) -> None:
    """Digits in a variable are a number where one belongs; nothing else is, and it is not shown."""
    text = WHOLE.replace("url: https", 'concurrency: "${N}"\n    url: https')
    assert read(text, N="4").targets[0].concurrency == 4
    assert refusals(text, N="hunter2") == [
        "config.yaml:8:5: targets.crm.concurrency: must be a whole number, found string"
    ]
    timed = WHOLE.replace("url: https", 'timeout: "${N}"\n    url: https')
    assert "hunter2" not in refusals(timed, N="hunter2")[0]


@pytest.mark.row("C16")
def test_a_secret_may_stand_in_a_file(read: Loader, tmp_path: Path) -> None:
    """One trailing line break is taken off; a file that everybody may read is warned about."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789abcdef\n\n")
    secret.chmod(0o600)
    config = read(WHOLE.replace("${PARTNER_SECRET}", f"${{file:{secret}}}").replace("bearer", "standard_webhooks"))
    assert config.sources[0].check.secrets[0].value == b"0123456789abcdef\n"  # type: ignore[union-attr]
    secret.write_bytes(b"0123456789abcdef\n")
    secret.chmod(0o644)
    config = read(WHOLE.replace("${PARTNER_SECRET}", f"${{file:{secret}}}"))
    assert config.sources[0].check.secrets[0].value == b"0123456789abcdef"  # type: ignore[union-attr]
    assert [warning.message for warning in config.warnings] == [
        f"file {secret} can be read by every user of this machine"
    ]


@pytest.mark.row("C16")
def test_a_secret_file_that_cannot_serve_is_refused(refusals: Refuser, tmp_path: Path) -> None:
    """Missing, a directory, a pipe, too large, empty or no text: each is named."""
    (tmp_path / "large").write_bytes(b"x" * 4097)
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "binary").write_bytes(b"\xff" * 20)
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("none", "cannot read file {}: No such file or directory"),
        ("", "Is a directory"),
        ("large", "is larger than 4 KiB"),
        ("empty", "is empty"),
        ("binary", "is not UTF-8 text"),
        ("pipe", "is not a regular file"),
    ):
        path = tmp_path / name
        (line,) = refusals(WHOLE.replace("${PARTNER_SECRET}", f"${{file:{path}}}"))
        assert message.format(path) in line
        assert line.startswith("config.yaml:4:15: sources.partner.secrets[0]: ")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
@example(b"\xef\xbb\xbf")
@example(b"sources: {a: {provider: {x: 1}}}\ntargets: [1]\nroutes: {a: b}\n")
@example(b"%YAML 9.9\n---\n")
@example(b'a: "\\ud800"\n')
def test_no_bytes_raise_anything_but_a_refusal(read: Loader, content: bytes) -> None:
    """Whatever a file holds, the answer is a config or a refusal."""
    with pytest.raises(ConfigRefused):
        read(content)


_WORDS = """
server admin store egress log sources targets routes listen tls cert key token url retention
delivered policy allow provider secrets verify scheme header signed path allow_ips rate respond
status event_type timeout headers retry schedule probe first max success name from to match type x
"""
_KEYS = st.sampled_from(_WORDS.split())
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["none", "never", "custom", "xoxoday", "5s", "0s", "1MiB", "${X}", "https://h/", "/a", "::1", "hmac", ""]
    ),
    st.text(max_size=8),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_KEYS, _TREES, max_size=6))
def test_no_document_raises_anything_but_a_refusal(read: Loader, content: dict[str, object]) -> None:
    """Keys of ours with values of any shape are refused, not stumbled over."""
    with pytest.raises(ConfigRefused):
        read(yaml.safe_dump(content, allow_unicode=True))
