"""A config file in a directory of its own, and the ways to read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from relay.config import Config, ConfigRefused, load

ENV = {"DOLLAR": "$abcdefghijklmnop", "PARTNER_SECRET": "0123456789abcdef", "EMPTY": ""}

SOURCE = {"provider": "custom", "secrets": ["0123456789abcdef"], "verify": {"scheme": "bearer"}}
TARGET = {"url": "https://crm.example.com/hooks"}
ROUTE = {"name": "all", "from": ["partner"], "to": ["crm"]}

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Loads a text (or bytes) as `config.yaml` of an own directory."""
    monkeypatch.chdir(tmp_path)

    def loaded(content: str | bytes, **env: str) -> Config:
        path = Path("config.yaml")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)
        return load(path, ENV | env)

    return loaded


@pytest.fixture
def refusals(read: Loader) -> Refuser:
    """The lines with which a text is refused."""

    def lines(content: str | bytes, **env: str) -> list[str]:
        with pytest.raises(ConfigRefused) as caught:
            read(content, **env)
        return str(caught.value).splitlines()

    return lines


@pytest.fixture
def build(read: Loader) -> Loader:
    """Loads a small whole config, some of it replaced: `build(source={…}, target={…}, route={…}, server={…})`."""

    def built(**parts: object) -> Config:
        return read(document(**parts))

    return built


@pytest.fixture
def refused(refusals: Refuser) -> Refuser:
    """The messages with which such a config is refused, places left out."""

    def messages(**parts: object) -> list[str]:
        return [line.split(": ", 1)[1] for line in refusals(document(**parts))]

    return messages


@pytest.fixture
def warned(build: Loader) -> Refuser:
    """The warnings with which such a config is accepted, places left out."""

    def messages(**parts: object) -> list[str]:
        return [f"{warning.key}: {warning.message}" for warning in build(**parts).warnings]

    return messages


def document(**parts: object) -> str:
    """A whole config as YAML; `source`, `target` and `route` add to the only one there is, other keys stand on top."""

    def joined(own: dict[str, object], key: str) -> dict[str, object]:
        extra = parts.pop(key, {})
        assert isinstance(extra, dict)
        return {name: value for name, value in (own | extra).items() if value is not ...}

    whole = {
        "sources": {"partner": joined(dict(SOURCE), "source")},
        "targets": {"crm": joined(dict(TARGET), "target")},
        "routes": [joined(dict(ROUTE), "route")],
    }
    return yaml.safe_dump(whole | parts, sort_keys=False)
