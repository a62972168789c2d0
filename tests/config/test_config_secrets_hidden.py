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
from tests.support.certificates import Authority

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
