"""A config that is held in memory: no way of showing it, or a part of it, shows a secret."""

import json
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config import Config, load
from relay.config.values import SecretText
from relay.model import Secret
from relay.telemetry.lines import console_lines, json_lines
from tests.support.canaries import ALL as CANARIES
from tests.support.canaries import found, sections
from tests.support.certificates import Authority, self_signed

KEY = "0123456789abcdef-canary"


def shown(value: Any) -> Iterator[str]:
    """A value in every way in which code shows one by accident."""
    yield from (repr(value), str(value), f"{value}", f"{value!r}", f"{value!s}", f"{value!a}")
    yield from (repr([value]), repr({"a": (value,)}), str(Exception(value)), repr(KeyError(value)))
    yield json.dumps({"a": value}, default=str)
    for render in (json_lines(lambda: 0.0), console_lines(lambda: 0.0, colours=True)):
        yield render("error", {"event": "x", "value": value, "list": [value], "exc_info": ValueError(value)})
    try:
        raise ValueError(value) from KeyError(value)
    except ValueError as error:
        yield "".join(traceback.format_exception(error))


@pytest.mark.row("T62")
@pytest.mark.parametrize("secret", [Secret(KEY.encode()), SecretText(KEY, inline=True)], ids=["key", "text"])
def test_a_secret_shows_itself_in_no_way(secret: object) -> None:
    """Not in a repr, a text, a format, JSON, a log line, or the traceback of what holds it."""
    assert not [text for text in shown(secret) if "canary" in text]
    assert not hasattr(secret, "__dict__")


@pytest.mark.row("T62")
def test_a_secret_is_not_pickled() -> None:
    """It cannot go to a file, a cache or another process unseen."""
    with pytest.raises(TypeError, match="not written out"):
        pickle.dumps({"a": Secret(KEY.encode())})


@pytest.mark.row("T62", "T56")
def test_a_whole_config_shows_no_secret(tmp_path: Path) -> None:
    """Whatever part of it a message, a fault or a debugger shows: no key, no token, no address that is a secret."""
    Authority(tmp_path).issue("me")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(sections(tmp_path, *["http://127.0.0.1:1"] * 3, "https://127.0.0.1:1")))
    config: Config = load(path, {})
    parts = (config, *config.sources, *config.targets, *config.enrichers, *config.routes, config.admin, config.warnings)
    for part in parts:
        for text in shown(part):
            assert found(CANARIES, text) == [], type(part)


INLINE = {
    "sources.partner.secrets[0]": ("sources", "partner", {"secrets": [KEY]}),
    "targets.crm.headers.Authorization": ("targets", "crm", {"headers": {"Authorization": f"Bearer {KEY}"}}),
    "targets.crm.headers.X-Api-Key": ("targets", "crm", {"headers": {"X-Api-Key": KEY}}),
    "targets.crm.url": ("targets", "crm", {"url": f"https://crm.example.com/in/{KEY}"}),
    "targets.crm.auth.token": ("targets", "crm", {"auth": {"scheme": "bearer", "token": KEY}}),
    "targets.crm.sign.secrets[0]": ("targets", "crm", {"sign": {"secrets": [KEY]}}),
    "targets.crm.proxy.password": (
        *("targets", "crm"),
        {"proxy": {"url": "http://proxy.example.com:3128", "username": "me", "password": KEY}},
    ),
    "enrichers.stock.auth.token": ("enrichers", "stock", {"auth": {"scheme": "bearer", "token": KEY}}),
    "enrichers.stock.headers.X-Token": ("enrichers", "stock", {"headers": {"X-Token": KEY}}),
    "enrichers.stock.url": ("enrichers", "stock", {"url": f"https://stock.example.com/x?key={KEY}"}),
    "admin.token": ("admin", None, {"token": KEY}),
}


def document(where: str, *, value: str) -> str:
    """A whole config with one secret in it, its text as given; the source's own comes from the environment."""
    whole: dict[str, Any] = {
        "admin": {},
        "sources": {"partner": {"provider": "custom", "secrets": ["${KEY}"], "verify": {"scheme": "bearer"}}},
        "targets": {"crm": {"url": "https://crm.example.com/hooks"}},
        "enrichers": {"stock": {"url": "https://stock.example.com/x"}},
        "routes": [{"name": "all", "from": "partner", "to": "crm", "enrich": "stock"}],
    }
    section, name, keys = INLINE[where]
    (whole[section] if name is None else whole[section][name]).update(keys)
    return yaml.safe_dump(whole).replace(KEY, value)


@pytest.mark.row("T60")
@pytest.mark.parametrize("where", INLINE)
def test_a_secret_in_a_file_that_everybody_can_read_is_warned_about(tmp_path: Path, where: str) -> None:
    """Wherever in it; not where the file is its owner's alone, or where a variable brings the secret."""

    def warned(mode: int, value: str) -> list[str]:
        path = tmp_path / "config.yaml"
        path.write_text(document(where, value=value))
        path.chmod(mode)
        return [one.key for one in load(path, {"KEY": KEY}).warnings if "every user of this machine" in one.message]

    assert warned(0o644, KEY) == [where]
    assert warned(0o604, KEY) == [where]
    assert warned(0o640, KEY) == []
    assert warned(0o600, KEY) == []
    assert warned(0o644, "${KEY}") == []


@pytest.mark.row("T60", "T48")
def test_a_key_that_everybody_can_read_is_warned_about(tmp_path: Path) -> None:
    """The key of the public listener too."""
    cert, key = self_signed(tmp_path, "127.0.0.1")
    path = tmp_path / "config.yaml"
    tls = yaml.safe_dump({"server": {"tls": {"cert": str(cert), "key": str(key)}}})
    path.write_text(tls + document("targets.crm.url", value="${KEY}"))

    def warned() -> list[str]:
        return [f"{one.key}: {one.message}" for one in load(path, {"KEY": KEY}).warnings]

    assert warned() == []
    key.chmod(0o644)
    assert warned() == ["server.tls.key: every user of this machine can read this key; chmod 600 it"]
