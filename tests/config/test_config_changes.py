"""What a reload changes: pure, out of two configs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.config import Changes, Config, NameChanges, changes, load, runnable
from relay.config.fingerprints import fingerprint, fingerprint_of
from tests.config.conftest import document

Loader = Callable[..., Config]

NOTHING = Changes(NameChanges(), NameChanges(), NameChanges())
RULES = {"event_type": "data.type", "dedupe_key": "header:X-Id"}
PARTNER = {"provider": "custom", "verify": {"scheme": "api_key", "header": "X-Key"}, "secrets": ["${NEW_SECRET}"]}
ENV = {"NEW_SECRET": "a-secret-that-is-long"}
ROUTE = {"name": "all", "from": ["partner"], "to": ["crm"]}


@pytest.fixture
def built(tmp_path: Path) -> Loader:
    """The config of a document, read from the same file each time."""

    def build(**parts: object) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(document(**parts))
        return load(path, ENV | {"SECRET": "a-sound-secret-of-ours"})

    return build


@pytest.mark.parametrize("source", [{}, RULES, {"event_type": "header:X-Type"}, {"dedupe_key": "[id, type]"}])
def test_the_same_file_changes_nothing(built: Loader, source: dict[str, Any]) -> None:
    """Two configs of one file are equal, rules that are compiled included."""
    assert built(source=source) == built(source=source)
    assert changes(built(source=source), built(source=source)) == NOTHING


@pytest.mark.parametrize("provider", ["xoxoday", "plugandpay"])
def test_a_providers_own_rules_are_the_same_each_time(built: Loader, provider: str) -> None:
    """A source that is described by its provider changes by what its YAML says alone."""
    source = {"provider": provider, "verify": ...}
    assert changes(built(source=source), built(source=source)) == NOTHING


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"event_type": "type"}),
        (RULES, RULES | {"event_type": "data.kind"}),
        (RULES, RULES | {"dedupe_key": "header:X-Other"}),
        ({}, {"enforce": False}),
        ({}, {"path": "/other"}),
        ({}, {"rate": "5/s"}),
        ({}, {"secrets": ["${NEW_SECRET}"]}),
        ({}, {"allow_ips": ["10.0.0.0/8"]}),
    ],
)
def test_whatever_a_source_says_otherwise_is_a_change(
    built: Loader, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Rules, secrets and limits all count."""
    found = changes(built(source=before), built(source=after))
    assert found == Changes(NameChanges(changed=("partner",)), NameChanges(), NameChanges())


@pytest.mark.parametrize(
    "parts",
    [
        {"when": "body.n"},
        {"match": {"headers": {"X-Env": "live"}}},
        {"match": {"type": "x", "headers": {"X-Env": "live"}}},
        {"to": [{"target": "crm", "when": "body.n"}]},
    ],
)
def test_whatever_a_route_says_otherwise_is_a_change(built: Loader, parts: dict[str, Any]) -> None:
    """And what it says in the same words is none."""
    assert changes(built(route=parts), built(route=parts)) == NOTHING
    found = changes(built(), built(route=parts))
    assert found == Changes(NameChanges(), NameChanges(), NameChanges(changed=("all",)))


def test_added_removed_and_changed_are_named(built: Loader) -> None:
    """Each kind by itself; a route that leads elsewhere is changed, its targets are not."""
    target, spare = {"url": "https://crm.example.com/"}, {"url": "https://spare.example.com/"}
    before = built(targets={"crm": target, "gone": spare, "same": spare}, routes=[ROUTE | {"name": "old"}, ROUTE])
    after = built(
        sources={"partner": PARTNER | {"secrets": ["${SECRET}"]}, "more": PARTNER},
        targets={"crm": target | {"timeout": "3s"}, "new": spare, "same": spare},
        routes=[ROUTE | {"to": ["new"]}, ROUTE | {"name": "late"}],
    )
    found = changes(before, after)
    assert found.targets == NameChanges(("new",), ("gone",), ("crm",))
    assert found.routes == NameChanges(("late",), ("old",), ("all",))
    assert found.sources.added == ("more",)
    assert found.shown()["targets"] == {"added": ["new"], "removed": ["gone"], "changed": ["crm"]}


@pytest.mark.parametrize(
    ("section", "changed", "key"),
    [
        ("server", {"listen": "127.0.0.1:9001"}, "server.listen"),
        ("admin", {"listen": "127.0.0.1:9002"}, "admin.listen"),
        ("store", {"url": "sqlite:///other.db"}, "store.url"),
    ],
)
def test_what_needs_a_restart_is_named_and_left_as_it_runs(
    built: Loader, section: str, changed: dict[str, str], key: str
) -> None:
    """The rest of the new config is runnable; the same file asks for the restart again."""
    running, wanted = built(), built(**{section: changed}, log={"level": "debug"})
    assert changes(running, wanted).needs_restart == (key,)
    now_running = runnable(running, wanted)
    assert getattr(now_running, section) == getattr(running, section)
    assert now_running.log == wanted.log
    assert changes(now_running, wanted).needs_restart == (key,)


def test_what_needs_no_restart_is_applied(built: Loader) -> None:
    """Limits, retention, egress and the token are the new config's."""
    running = built()
    wanted = built(
        server={"max_body": "2KiB", "drain_timeout": "1s"},
        admin={"token": "a-token-of-32-characters-at-least"},
        store={"retention": {"dead": "1d"}},
        egress={"deny": ["10.0.0.0/8"]},
    )
    assert changes(running, wanted) == NOTHING
    assert runnable(running, wanted) == wanted


def test_an_open_admin_listener_keeps_its_token_until_the_restart(built: Loader) -> None:
    """A config that moves the admin API to loopback and drops its token must not open the address that still runs."""
    running = built(admin={"listen": "0.0.0.0:8081", "token": "a-token-of-32-characters-at-least"})
    wanted = built(admin={"listen": "127.0.0.1:8081"})
    assert changes(running, wanted).needs_restart == ("admin.listen", "admin.token")
    assert runnable(running, wanted).admin == running.admin


def test_a_config_knows_what_it_was_read_from(tmp_path: Path) -> None:
    """The YAML and files of secrets, each by its content at that time; a refused one tells it too."""
    secret = tmp_path / "secret"
    secret.write_text("a-sound-secret-of-ours")
    path = tmp_path / "config.yaml"
    path.write_text(document(source={"secrets": [f"${{file:{secret}}}"]}))
    assert load(path, {}).files == {path: fingerprint(path.read_bytes()), secret: fingerprint(secret.read_bytes())}
    assert load(path, {}).files == {path: fingerprint_of(path), secret: fingerprint_of(secret)}
    secret.unlink()
    with pytest.raises(Exception, match="cannot read file") as refused:
        load(path, {})
    assert getattr(refused.value, "files") == {path: fingerprint_of(path), secret: None}  # noqa: B009
    assert fingerprint_of(tmp_path) is None
