"""Every key of the schema with values that it cannot have: all told at once, each with its place, and nothing shown."""

import copy
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config import Config, ConfigRefused, load
from relay.config.problems import key_text
from tests.support.config_keys import BAD, NULL, Key, by_depth, every_key, holding

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

CANARY = "cANary7x9QzzLeak"
LINE = re.compile(r"config\.yaml(:[1-9][0-9]*:[1-9][0-9]*)?: [^\n]+")
KEYS = every_key()
TOP = {"server", "admin", "store", "egress", "log", "sources", "targets", "enrichers", "routes"}

LISTS = {key.text for key in KEYS if key.is_list} | {"targets.*.success", "targets.*.refusals"}
SECTIONS = {key.text for key in KEYS if key.is_section or key.is_named}
TEMPLATES = {key.text for key in KEYS if key.path[-1] == "signed"} | {
    "targets.*.body.template",
    "targets.*.body.text",
    "enrichers.*.body",
}
SECRETS = {key.text for key in KEYS if key.is_secret}
"""Judged with the provider or the scheme that they are for, which some of these suit."""
LEGAL: dict[str, set[str]] = {
    "null": TOP,
    "empty text": SECRETS
    | {"sources.*.verify.prefix", "targets.*.auth.prefix", "enrichers.*.auth.prefix", "admin.token"},
    "true": {"sources.*.verify.allow_weak", "targets.*.auth.allow_weak", "enrichers.*.auth.allow_weak"}
    | {"sources.*.enforce", "targets.*.ordered", "targets.*.tls.insecure"},
    "a number": {"targets.*.concurrency", "targets.*.disable_after"},
    "a list": LISTS,
    "a mapping": SECTIONS,
    "a control character": TEMPLATES | SECRETS,
    "a line break": TEMPLATES | SECRETS,
}
"""What a key may have of these, or what another key is blamed for, as an empty list of secrets without a check."""


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is bound or opened for writing meanwhile."""
    done: list[str] = []
    active = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not active:
            return
        if event in {"socket.bind", "socket.connect", "os.mkdir", "os.rename", "os.remove", "subprocess.Popen"}:
            done.append(f"{event} {args}")
        if event == "open" and any(mark in str(args[1]) for mark in "wax+"):
            done.append(f"{event} {args}")

    sys.addaudithook(hook)  # it cannot be taken back, so it is put to sleep
    try:
        yield done
    finally:
        active = False


@pytest.mark.row("C12", "C13", "C45", "C47", "C48", "C49")
@pytest.mark.parametrize("what", BAD)
def test_every_key_refuses_what_it_cannot_have(refusals: Refuser, what: str) -> None:
    """Each is told in one line with its place, and all together; whatever else is wrong hides none of them."""
    for keys in by_depth():
        lines = refusals(holding(keys, BAD[what]))
        assert [line for line in lines if not LINE.fullmatch(line)] == []
        told = {line.split(": ")[1] for line in lines}
        for key in keys:
            if key.text in LEGAL.get(what, set()):
                continue
            path = key_text(key.path)
            around = {path, f"{path}[0]", f"{path}[0][0]", f"{path}.zzz", f"{path}[0].zzz", f"{path}.url"}
            assert told & around, f"{path} took {BAD[what]!r}: {lines}"


@pytest.mark.row("C12")
def test_beside_every_key_an_unknown_one_is_refused(refusals: Refuser) -> None:
    """No section anywhere lets a stranger pass."""
    sections = [(), *(key.path for key in KEYS if key.is_section)]
    sections += [key.path[:-1] for key in KEYS if not any(key.path[:-1] == path for path in sections)]
    for path in dict.fromkeys(sections):
        key = Key((*path, "zzz"), is_section=False, is_named=False, is_list=False, is_secret=False)
        lines = refusals(holding([key], 1))
        text = key_text(key.path)
        assert [line for line in lines if f": {text}: unknown key" in line], f"{text}: {lines}"


FORMS = {
    "the only key of a mapping": {CANARY: NULL},
    "a key in a list, as of a secret that ends in a colon": [{CANARY: NULL}],
    "a key with another's text": {"a": {CANARY: NULL}},
    "a key whose value is not set": {CANARY: "${NOT_SET}"},
    "a key twice": f"{{{CANARY}: 1, {CANARY}: 2}}",
    "a header with its value as a key": {f"X-Key: {CANARY}": NULL},
    "a header in one text": f"X-Key: {CANARY}",
    "a header in a list": [f"Authorization=Bearer {CANARY}"],
}
"""What becomes of a secret that somebody writes with the wrong brackets, dashes or colons."""

SHOWN = {"sources", "targets", "enrichers", "targets.*.headers", "enrichers.*.headers", "routes.match.headers"}
"""Mappings whose keys the user names."""


def _shows_names(text: str, form: str) -> bool:
    """Whether what stands as a key is a name there, or a value that is no secret anywhere."""
    if text in SHOWN:
        return "a key" in form or "the only key" in form
    return False


@pytest.mark.slow
@pytest.mark.row("T62", "C13")
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_that_was_written_as_a_key_is_not_shown(read: Loader, form: str) -> None:
    """Whatever YAML makes of it, a place or a message repeats nothing that may be a secret."""
    value = FORMS[form]
    for key in KEYS:
        if _shows_names(key.text, form) or (isinstance(value, str) and "header" in form and not key.is_secret):
            continue
        text = holding([key], value)
        if isinstance(value, str) and value.startswith("{"):
            text = text.replace(f"'{value}'", value)
        if "header" in form and isinstance(value, list) and not key.text.endswith("headers") and not key.is_secret:
            continue
        assert CANARY.lower() not in told(read, text, ""), key.text


SHAPES = (
    "{} ((", "https://user:{}@h.example/", "mysql://u:{}@h/db", "sqlite:///no-{}/x.db", "{{{{ {} ", "{{{{ '{} }}}}",
    "{{% {} %}}", "header:{} {}", "X-Key: {}", "/hooks/{}/.", "{}:99999", "10.0.0.0/{}", "nofunc({})", "'{}",
    "http://h.example/{}#x", "{}-299", "{}/s", "{}s", "{}\n", "-----BEGIN PRIVATE KEY-----{}", "{} NAME!", "${{{}}}",
    "{{{}}}{{body}}", "{}\x07", "[{}", "{0}" * 400, " {}", "9{}", "{}==", "!!{}", "*{}",
)  # fmt: skip


@pytest.mark.row("T62", "C13", "C14", "C15")
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_variable_brings_is_never_repeated(read: Loader, shape: str) -> None:
    """Whichever key it is given to, and whatever is wrong with it there."""
    held = shape.format(*[CANARY] * 2)
    for keys in by_depth():
        leaves = [key for key in keys if not (key.is_section or key.is_named)]
        if not leaves:
            continue
        assert CANARY.lower() not in told(read, holding(leaves, "${HELD}"), held)


def told(read: Loader, text: str, held: str) -> str:
    """All that is said of a config."""
    try:
        config = read(text, HELD=held)
    except ConfigRefused as refused:
        return str(refused).lower()
    return "\n".join(warning.at("config.yaml") for warning in config.warnings).lower()


FOR_SCHEMES = {
    "oauth2": {"token_url", "client_id", "client_secret", "scope", "audience"},
    "basic": {"username", "password"},
    "api_key": {"query", "value"},
    "hmac": {"header", "signed", "secret", "prefix", "timestamp_header", "id_header"},
}


WHOLE: dict[str, Any] = {
    "sources": {"partner": {"provider": "custom", "secrets": ["0123456789abcdef"], "verify": {"scheme": "bearer"}}},
    "targets": {"crm": {"url": "https://crm.example.com/hooks"}},
    "enrichers": {"stock": {"url": "https://stock.example.com/x"}},
    "routes": [{"name": "all", "from": ["partner"], "to": [{"target": "crm"}], "enrich": "stock"}],
}
SECTIONS_WHOLE: dict[str, dict[str, Any]] = {
    "tls": {"cert": "a.pem", "key": "b.pem"},
    "sign": {"secrets": ["0123456789abcdef"]},
    "proxy": {"url": "http://proxy.example.com:80"},
}


def alone(key: Key, value: str) -> dict[str, Any]:
    """A whole config in which one key has a value."""
    whole = copy.deepcopy(WHOLE)
    holder: Any = whole
    for step in key.path[:-1]:
        if isinstance(holder, dict):
            holder = holder.setdefault(step, copy.deepcopy(SECTIONS_WHOLE.get(str(step), {})))
        else:
            holder = holder[int(step)]
    holder[key.path[-1]] = value
    if "auth" in key.path:
        schemes = (scheme for scheme, keys in FOR_SCHEMES.items() if key.path[-1] in keys)
        holder.setdefault("scheme", next(schemes, "bearer"))
    if key.text in {"enrichers.*.include", "enrichers.*.base_url", "enrichers.*.token"}:
        del holder["url"]
        holder |= {"provider": "plugandpay"} | ({"token": "abc"} if key.path[-1] != "token" else {})
    return whole


@pytest.mark.slow
@pytest.mark.row("T62", "C13", "T56")
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_variable_brings_is_never_repeated_where_all_else_is_right(read: Loader, shape: str) -> None:
    """Where nothing else is wrong the last of the checks is reached; it tells as little."""
    held = shape.format(*[CANARY] * 2)
    for key in KEYS:
        if not (key.is_section or key.is_named):
            said = told(read, yaml.safe_dump(alone(key, "${HELD}"), sort_keys=False), held)
            assert CANARY.lower() not in said, f"{key.text}: {said}"


@pytest.mark.row("C12", "C56")
def test_a_config_that_is_read_touches_nothing(read: Loader, refusals: Refuser) -> None:
    """Fit or not, and whatever is wrong: nothing is bound, and no file is made."""
    whole = yaml.safe_dump(WHOLE)
    with watched() as done:
        (path := Path("other.txt")).write_text("")
    assert done, "the watch sees what is written"
    path.unlink()
    Path("config.yaml").write_text(whole)
    broken = [holding(keys, value) for value in BAD.values() for keys in by_depth()]
    with watched() as done:
        load(Path("config.yaml"), {})
    assert done == []
    assert len(broken) > 50
    for text in broken:
        Path("config.yaml").write_text(text)
        with watched() as done, pytest.raises(ConfigRefused):
            load(Path("config.yaml"), {})
        assert done == []
    assert [path.name for path in Path().iterdir()] == ["config.yaml"]
