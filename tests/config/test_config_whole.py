"""The whole config: listeners, store, TLS, limits, places and the editor's schema."""

import resource
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from relay.config import Address, Config, ConfigRefused, Problem, find, json_schema, load
from relay.model import StatusSet
from relay.rules.egress import EgressPolicy

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]


def test_a_problem_is_one_line_with_its_place(refusals: Refuser) -> None:
    """The form of a line is the contract's, to the letter."""
    text = """\
sources:
  partner:
    provider: custom
    secrets: ["0123456789abcdef"]
    verify: {scheme: bearer}
routes:
  - {name: all, from: partner, to: crm}

targets:
  crm:
    url: https://crm.example.com/
    timeout: "15"
"""
    assert refusals(text) == ['config.yaml:12:5: targets.crm.timeout: "15" needs a unit (did you mean 15s?)']
    assert Problem(None, None, "", "is empty").at("conf/relay.yaml") == "conf/relay.yaml: is empty"


def test_every_problem_is_told_at_once_in_order(refusals: Refuser) -> None:
    """Problems of every kind (YAML, variables, types, meaning) come together, by line."""
    text = """\
server: {listen: "::1:80"}
sources:
  a: {provider: custom, verify: none, path: /x}
  b: {provider: custom, verify: hmca, secrets: ["${NOPE}", abc]}
  b: {provider: xoxoday}
  c: {provider: custom, verify: none, path: /X/}
targets:
  crm: {url: "http://169.254.169.254/", timeout: 15}
routes:
  - {name: r, from: [a, d], to: crm2}
"""
    lines = refusals(text)
    assert [line.split(": ")[1] for line in lines] == [
        "server.listen",
        "sources.b.verify",
        "sources.b.secrets[0]",
        "sources.b.secrets[1]",
        "sources.b",
        "sources.c.path",
        "targets.crm.url",
        "targets.crm.timeout",
        "routes[0].from[1]",
        "routes[0].to",
    ]
    assert [int(line.split(":")[1]) for line in lines] == sorted(int(line.split(":")[1]) for line in lines)


def test_a_small_config_has_the_contracts_defaults(build: Loader) -> None:
    """What is left out is what the contract says."""
    config = build()
    assert config.server.listen == Address("0.0.0.0", 8080)
    assert config.server.max_body == 1024 * 1024
    assert config.server.trusted_proxies == ()
    assert config.server.header_timeout == timedelta(seconds=15)
    assert config.server.body_timeout == timedelta(seconds=10)
    assert config.server.drain_timeout == timedelta(seconds=20)
    assert config.server.tls is None
    assert config.admin.listen == Address("127.0.0.1", 8081)
    assert config.admin.token is None
    assert config.store.url == "sqlite:///relay.db"
    assert config.store.retention.delivered == timedelta(days=7)
    assert config.store.retention.dead == timedelta(days=30)
    assert config.store.retention.max_size == 8 * 1024**3
    assert config.egress == EgressPolicy()
    assert (config.log.level, config.log.format) == ("info", "auto")
    (target,) = config.targets
    assert target.timeout == timedelta(seconds=15)
    assert target.concurrency == 8
    assert [wait.total_seconds() for wait in target.schedule] == [
        5, 30, 120, 600, 1800, 7200, 18000, 36000, 50400, 72000, 86400,
    ]  # fmt: skip
    assert target.disable_after == 3
    assert (target.probe_first, target.probe_max) == (timedelta(minutes=1), timedelta(minutes=15))
    assert target.success is None
    assert target.refusals == StatusSet(((400, 400), (413, 413), (415, 415), (422, 422)))
    (source,) = config.sources
    assert source.path == "/hooks/partner"
    assert source.enforce
    assert source.status == 200
    assert config.warnings == ()


@pytest.mark.row("C12")
def test_unknown_keys_are_refused_with_the_nearest_known_one(refused: Refuser) -> None:
    """A misspelt key is told once, wherever it stands."""
    assert refused(souces={}) == ['souces: unknown key "souces"; did you mean "sources"?']
    assert refused(target={"retires": {}}) == ['targets.crm.retires: unknown key "retires"; did you mean "retry"?']
    assert refused(route={"form": "x"}) == ['routes[0].form: unknown key "form"; did you mean "from"?']
    assert refused(server={"tls": {"certt": "x", "key": "y"}}) == [
        'server.tls.certt: unknown key "certt"; did you mean "cert"?'
    ]
    assert refused(store={"retention": {"zzzz": 1}}) == [
        'store.retention.zzzz: unknown key "zzzz"; known: delivered, dead, max_size'
    ]


NAMED = "must name a host and a database: postgresql://user:password@host:5432/database"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:db",
        "postgresql://",
        "postgresql://user@host",
        "postgres://host:x/db",
        "postgresql:///db",
        "postgresql://relay:12/S3cret@host:5432/db",
        "postgresql://relay:hu@S3cret@host/db",
        "postgresql://relay:hu[S3cret]@host/db",
        "postgresql://relay:hu#S3cret@host/db",
        "postgresql://relay:hu?S3cret@host/db",
    ],
)
def test_a_database_is_named_for_certain(refused: Refuser, url: str) -> None:
    """What cannot be read in one way alone is refused, with how it is to be written; no part of it is shown, for
    it may be of a password that was not encoded."""
    (line,) = refused(store={"url": url})
    assert line.removesuffix(", the password percent-encoded") == f"store.url: {NAMED}"


@pytest.mark.parametrize("name", ["password", "PASSWORD", "passfile", "sslpassword"])
def test_a_password_stands_where_it_is_hidden(refused: Refuser, name: str) -> None:
    """Behind the question mark it would be shown with the rest."""
    (line,) = refused(store={"url": f"postgresql://relay@host/db?{name}=S3cret"})
    assert line.startswith("store.url: must have its password before the host")


def test_the_password_of_a_database_is_not_shown(build: Loader) -> None:
    """A URL is shown without its password and its options; one that has none is shown as it is."""
    store = build(store={"url": "postgresql://relay:s3cr%40t:x@db.example:5433/relay?sslmode=require"}).store
    assert store.passwords == {"s3cr%40t:x", "s3cr@t:x"}
    assert store.shown == "postgresql://relay:***@db.example:5433/relay"
    plain = build(store={"url": "postgresql://relay@db.example/relay"}).store
    assert plain.passwords == frozenset()
    assert plain.shown == plain.url


def test_null_is_no_value(refused: Refuser, build: Loader) -> None:
    """An empty key is refused, except for a whole section, where everything in it may be commented out."""
    assert refused(target={"timeout": None}) == ["targets.crm.timeout: found null; give it a value"]
    assert build(server=None, egress=None).server.listen.port == 8080


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"server": []}, "server: must be a mapping, found list"),
        ({"targets": ["x"]}, "targets: must be a mapping, found list"),
        ({"routes": {"a": 1}}, "routes: must be a list, found mapping"),
        ({"source": {"respond": 202}}, "sources.partner.respond: must be a mapping, found integer"),
        ({"log": {"level": "inof"}}, 'log.level: unknown level "inof"; did you mean "info"?'),
        ({"log": {"format": "xml"}}, 'log.format: unknown format "xml"; known: auto, json, console'),
        ({"egress": {"policy": "open"}}, 'egress.policy: unknown policy "open"; known: private, public'),
        ({"egress": {"allow": "10.0.0.1/8"}}, "did you mean 10.0.0.0/8?"),
        ({"egress": {"allow": "169.254.169.254"}}, "egress.allow: cloud metadata address, never allowed"),
        ({"egress": {"allow": "169.254.0.0/16"}}, "egress.allow: link-local address, never allowed"),
    ],
)
def test_wrong_shapes_and_words_are_told(refused: Refuser, parts: dict[str, object], message: str) -> None:
    """A wrong type or an unknown word says what would be right."""
    assert any(message in line for line in refused(**parts))


@pytest.mark.row("C30")
def test_a_config_needs_a_source_and_a_target(refusals: Refuser) -> None:
    """Nothing to receive from or to send to is no config."""
    assert refusals("sources: {}\ntargets: {}\n") == [
        "config.yaml:1:1: sources: needs at least one source",
        "config.yaml:2:1: targets: needs at least one target",
    ]
    assert refusals("log: {level: debug}\n") == [
        "config.yaml: sources: needs at least one source",
        "config.yaml: targets: needs at least one target",
    ]


@pytest.mark.row("C48")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0B", "must be 1B to 64MiB"),
        ("10GiB", "must be 1B to 64MiB"),
        ("1GB", '"1GB" is not a size (512B, 64KiB, 1MiB, 1GiB)'),
        (0, '"0" needs a unit (did you mean 0B?)'),
        ([1], "must be a size (512B, 64KiB, 1MiB, 1GiB), found list"),
    ],
)
def test_max_body_is_a_size_in_range(refused: Refuser, value: object, message: str) -> None:
    """A size has a unit and a range."""
    assert refused(server={"max_body": value}) == [f"server.max_body: {message}"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1023KiB", "must be 1MiB to 1PiB"),
        ("2PiB", "must be 1MiB to 1PiB"),
        (8, '"8" needs a unit (did you mean 8B?)'),
    ],
)
def test_what_a_store_may_take_is_a_size_in_range(refused: Refuser, value: object, message: str) -> None:
    """Less than a mebibyte could not hold the store's own tables and a log."""
    assert refused(store={"retention": {"max_size": value}}) == [f"store.retention.max_size: {message}"]


def test_what_a_store_may_take_is_read_in_large_units(build: Loader) -> None:
    """A tebibyte is not a rare disk."""
    assert build(store={"retention": {"max_size": "2TiB"}}).store.retention.max_size == 2 * 1024**4


@pytest.mark.row("C28")
def test_trusting_every_proxy_is_refused(refused: Refuser, build: Loader) -> None:
    """Whoever is trusted may forge a client's address."""
    for everything in ("0.0.0.0/0", "::/0"):
        assert refused(server={"trusted_proxies": [everything]}) == [
            "server.trusted_proxies[0]: would let any client forge its address"
        ]
    assert [str(network) for network in build(server={"trusted_proxies": "10.0.0.0/8"}).server.trusted_proxies] == [
        "10.0.0.0/8"
    ]


@pytest.mark.row("C50")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("8080", "is not HOST:PORT"),
        (8080, "must be a string such as 0.0.0.0:8080, found integer"),
        (":8080", "write 0.0.0.0:8080 for every address"),
        ("::1:80", "write IPv6 in brackets"),
        ("[::g]:80", "no IPv6 address stands in the brackets"),
        ("0.0.0.0:70000", "with a port up to 65535"),
        ("300.1.1.1:80", "not a valid host"),
        ("a b:80", "not a valid host"),
    ],
)
def test_listen_addresses_are_judged(refused: Refuser, value: object, message: str) -> None:
    """A listen address that cannot be bound is told before anything is."""
    (line,) = refused(server={"listen": value})
    assert line.startswith("server.listen: ")
    assert message in line


def test_listen_takes_ipv6_in_brackets_and_names(build: Loader) -> None:
    """Brackets are taken off; a name is resolved when it is bound."""
    config = build(server={"listen": "[::]:0"}, admin={"listen": "localhost:0"})
    assert config.server.listen == Address("::", 0)
    assert str(config.server.listen) == "[::]:0"
    assert config.admin.listen == Address("localhost", 0)


@pytest.mark.row("C51")
def test_the_admin_listener_off_loopback_needs_a_token(refused: Refuser, build: Loader) -> None:
    """An API that others can reach is never open."""
    for host in ("0.0.0.0", "[::]", "10.0.0.1", "admin.example"):
        assert refused(admin={"listen": f"{host}:8081"}) == [
            f"admin.token: missing; it must be set, since admin.listen {host}:8081 is not on loopback"
        ]
    assert build(admin={"listen": "[::1]:8081", "token": "${NOT_SET:-}"}).admin.token is None
    token = build(admin={"listen": "0.0.0.0:8081", "token": "0123456789abcdef"}).admin.token
    assert token is not None
    assert token.value == b"0123456789abcdef"


@pytest.mark.row("C51")
@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("short", "token too short (5 characters; needs 16 or more)"),
        (1234567890123456, "secret must be a quoted string, found integer"),
        ("0123456789abcde\u00e9f", "token must be visible ASCII without spaces, since a header carries it"),
        ("changeme", "secret is a placeholder; put the real one in its place"),
    ],
)
def test_a_weak_token_is_refused_on_loopback_too(refused: Refuser, token: object, message: str) -> None:
    """A token that can be guessed is none."""
    assert refused(admin={"token": token}) == [f"admin.token: {message}"]


def test_both_listeners_on_one_port_are_refused(refused: Refuser) -> None:
    """The admin listener is never the public one."""
    assert refused(admin={"listen": "127.0.0.1:8080"}) == [
        "admin.listen: port 8080 is the public listener's; take another one"
    ]


def test_a_long_drain_is_warned_about(warned: Refuser, refused: Refuser, build: Loader) -> None:
    """A stop longer than promised is allowed, and told."""
    assert build(server={"drain_timeout": "0s"}).server.drain_timeout == timedelta(0)
    assert warned(server={"drain_timeout": "1m"})[0].startswith("server.drain_timeout: longer than 20s")
    assert refused(server={"drain_timeout": "11m"}) == ["server.drain_timeout: must be 0s to 10m"]


@pytest.mark.row("C52")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("relay.db", "must be sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database"),
        (
            "sqlite://relay.db",
            "must be sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database",
        ),
        ("sqlite:///", "must name a file: sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///:memory:", "must name a file: sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///none/relay.db", "directory none does not exist"),
        ("sqlite:////", "/ is a directory; name a file in it"),
    ],
)
def test_the_store_must_be_a_file_in_a_directory(refused: Refuser, url: str, message: str) -> None:
    """A store that could not be made is told before anything starts."""
    assert refused(store={"url": url}) == [f"store.url: {message}"]


def test_no_file_is_made(build: Loader, tmp_path: Path) -> None:
    """Reading a config leaves nothing behind."""
    build(store={"url": f"sqlite:///{tmp_path}/own.db"})
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """A process that may open 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.row("C47")
@pytest.mark.usefixtures("few_descriptors")
def test_more_connections_than_descriptors_are_refused(refused: Refuser, build: Loader) -> None:
    """The sum of all concurrencies fits into what the process may open."""
    assert build(target={"concurrency": 100}).targets[0].concurrency == 100
    assert refused(target={"concurrency": 1000}) == [
        "targets.crm.concurrency: all targets together need 1052 file descriptors, limit is 256 (ulimit -n)"
    ]


@pytest.mark.row("T21")
def test_connections_are_a_whole_number_that_leaves_room_for_some(refused: Refuser, build: Loader) -> None:
    """Eight at least, so that one can be told that there are too many; 4096 where nothing is said."""
    assert build().server.max_connections == 4096
    assert build(server={"max_connections": 8}).server.max_connections == 8
    for wrong in (7, 100_001, "many"):
        (line,) = refused(server={"max_connections": wrong})
        assert line.startswith("server.max_connections: ")


def test_find_looks_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option wins over the variable, that over the working directory."""
    monkeypatch.chdir(tmp_path)
    assert find(Path("mine.yaml"), {"RELAY_CONFIG": "theirs.yaml"}) == Path("mine.yaml")
    assert find(None, {"RELAY_CONFIG": "theirs.yaml"}) == Path("theirs.yaml")
    with pytest.raises(ConfigRefused) as caught:
        find(None, {})
    for place in ("--config", "$RELAY_CONFIG", "./config.yaml", "/etc/relay/config.yaml"):
        assert place in str(caught.value)
    (tmp_path / "config.yaml").touch()
    assert find(None, {}) == Path("config.yaml")


def test_inline_secrets_in_a_readable_file_are_warned_about(build: Loader, tmp_path: Path) -> None:
    """A file that everybody may read is no place for a secret."""
    build()
    path = tmp_path / "config.yaml"
    path.chmod(0o644)
    (warning,) = load(path, {}).warnings
    assert warning.key == "sources.partner.secrets[0]"
    assert "every user of this machine" in warning.message


def test_no_secret_is_shown_by_a_config(build: Loader) -> None:
    """Neither keys nor a target's URL stand in a repr."""
    config = build(
        source={"secrets": ["hunter2hunter2hunter2"]},
        target={"url": "https://h.example/hunter2", "headers": {"X": "hunter2"}},
        admin={"token": "hunter2hunter2hunter2"},
    )
    assert "hunter2" not in repr(config)


def test_the_editors_schema_knows_every_key() -> None:
    """Every key has a description, unknown ones are errors, and nothing allows null."""
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["sources", "targets"]
    tables = [schema, *schema["$defs"].values()]
    for table in tables:
        assert table["additionalProperties"] is False
        for key, value in table["properties"].items():
            assert value.get("description"), key
    assert "null" not in str(schema)
    defaults = schema["$defs"]["TargetSection"]["properties"]
    assert defaults["timeout"]["default"] == "15s"
    assert defaults["probe"]["anyOf"][-1] == {"const": "never"}
