"""Targets and routes: where events may go, and how."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Config, urls
from relay.config.problems import Refused
from relay.model import Route, StatusSet, Target

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]


def only(config: Config) -> Target:
    (target,) = config.targets
    return target


@pytest.mark.row("C34", "C35", "C36", "C37", "C38", "C44", "T43", "T56")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must not be empty"),
        ("http:/x", "not an absolute http(s) URL with a host"),
        ("http:///x", "not an absolute http(s) URL with a host"),
        ("http://:80/x", "not an absolute http(s) URL with a host"),
        ("//h/x", "not an absolute http(s) URL with a host"),
        ("h/x", "not an absolute http(s) URL with a host"),
        ("h.example:8080/x", "scheme must be http or https"),
        ("file:///etc/passwd", "scheme must be http or https"),
        ("ftp://h/", "scheme must be http or https"),
        ("gopher://h/", "scheme must be http or https"),
        ("unix:/run/x", "scheme must be http or https"),
        ("https://user:hunter2@h.example/", "credentials in URLs are not allowed; send them with headers"),
        ("https://hunter2@h.example/", "credentials in URLs are not allowed; send them with headers"),
        ("https://h:0/", "port out of range 1-65535"),
        ("https://h:99999/", "port out of range 1-65535"),
        ("https://h:abc/", "port out of range 1-65535"),
        ("https://h:/", "port out of range 1-65535"),
        ("https://[::1]:/", "port out of range 1-65535"),
        ("https://ex ample/", "holds white space, a control character or a backslash"),
        ("https://h\\x/", "holds white space, a control character or a backslash"),
        ("https://a%00b/", "not a valid host name"),
        ("https://-a.example/", "not a valid host name"),
        ("https://a..example/", "not a valid host name"),
        ("https://" + "a" * 64 + "/", "not a valid host name"),
        ("https://::1/", "not a valid host name: IPv6 stands in brackets"),
        ("https://[::g]/", "not a valid host name: IPv6 stands in brackets"),
        ("https://[1.2.3.4]/", "not a valid host name: IPv6 stands in brackets"),
        ("http://127.1/", '"127.1" is not a canonical IPv4 address'),
        ("http://2130706433/", '"2130706433" is not a canonical IPv4 address'),
        ("http://0x7f.1/", '"0x7f.1" is not a canonical IPv4 address'),
        ("http://0x7f000001/", '"0x7f000001" is not a canonical IPv4 address'),
        ("http://127.0.0.1./", '"127.0.0.1." is not a canonical IPv4 address'),
        ("http://010.0.0.1/", '"010.0.0.1" is not a canonical IPv4 address'),
        ("http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", "not a valid host name"),
        ("https://h.example/#x", "a fragment (#…) is never sent; remove it"),
        ("https://h.example/\u00e4", "path and query must be ASCII with other characters percent-encoded"),
        ("https://h.example/<x>", "path and query must be ASCII with other characters percent-encoded"),
        (5, "must be a string, found integer"),
    ],
)
def test_unusable_urls_are_refused(refused: Refuser, url: object, message: str) -> None:
    """A URL that no request could be sent to is told, and never repeated whole."""
    (line,) = refused(target={"url": url})
    assert line.startswith("targets.crm.url: ")
    assert message in line
    assert "hunter2" not in line


@pytest.mark.row("C40")
@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://metadata.google.internal/",
        "http://METADATA.google.internal./computeMetadata",
        "http://100.100.100.200/",
    ],
)
def test_metadata_is_never_a_target(refused: Refuser, url: str) -> None:
    """Whatever `allow` says."""
    allow = {"allow": ["0.0.0.0/0", "::/0"]}
    assert refused(target={"url": url}, egress=allow) == ["targets.crm.url: cloud metadata address, never allowed"]


@pytest.mark.row("C41")
def test_private_targets_need_leave_under_public(refused: Refuser, build: Loader) -> None:
    """Policy `public` names the way out; `allow` is it."""
    public = {"policy": "public"}
    for host, address, reason in (
        ("10.0.0.5", "10.0.0.5", "private address"),
        ("localhost", "localhost", "loopback address"),
        ("[::1]", "::1", "loopback address"),
    ):
        assert refused(target={"url": f"http://{host}/"}, egress=public) == [
            f"targets.crm.url: {address} is forbidden ({reason}); name it under egress.allow if it is meant"
        ]
    allowed = {"policy": "public", "allow": ["10.0.0.0/8"]}
    assert only(build(target={"url": "http://10.0.0.5/"}, egress=allowed)).url == "http://10.0.0.5/"
    assert only(build(target={"url": "http://10.0.0.5/"})).url == "http://10.0.0.5/"


def test_a_target_that_the_config_itself_denies_is_told_so(refused: Refuser) -> None:
    """`deny` wins over `allow`, so only taking it out helps."""
    denied = {"deny": ["10.0.0.0/8"], "allow": ["10.0.0.5/32"]}
    assert refused(target={"url": "http://10.0.0.5/"}, egress=denied) == [
        "targets.crm.url: 10.0.0.5 is forbidden (closed by egress.deny); take it out of there if it is meant"
    ]


@pytest.mark.row("C40")
def test_link_local_and_unspecified_targets_are_refused(refused: Refuser) -> None:
    """Under the default policy too."""
    assert refused(target={"url": "http://169.254.1.1/"}) == ["targets.crm.url: link-local address, never allowed"]
    assert "name it under egress.allow" in refused(target={"url": "http://[fe80::1]/"})[0]
    assert "without a zone" in refused(target={"url": "http://[fe80::1%25eth0]/"})[0]
    assert "unspecified address" in refused(target={"url": "http://0.0.0.0/"})[0]


def test_a_url_is_kept_as_it_was_written(build: Loader) -> None:
    """No library's idea of a tidy URL breaks a secret in its path."""
    for url in (
        "https://H.Example/hooks/T0%2FB0/a%3Db?x=1&y=a+b;c",
        "https://crm_service:8443",
        "http://[::1]:9000/a?b",
        "https://crm.example.com.:443/x//y/./z",
    ):
        assert only(build(target={"url": url})).url == url


@pytest.mark.row("C44")
def test_an_internationalised_host_becomes_punycode(build: Loader, warned: Refuser) -> None:
    """What is dialled is shown."""
    parts = {"target": {"url": "https://B\u00fccher.example:8443/a"}}
    assert only(build(**parts)).url == "https://xn--bcher-kva.example:8443/a"
    assert warned(**parts) == ["targets.crm.url: the host is read as xn--bcher-kva.example"]


@pytest.mark.row("C43")
@pytest.mark.parametrize("host", ["crm.example.com", "8.8.8.8", "crm.example.com."])
def test_plain_http_to_a_public_host_is_warned_about(warned: Refuser, host: str) -> None:
    """What travels in the clear is told."""
    (line,) = warned(target={"url": f"http://{host}/"})
    assert line.startswith("targets.crm.url: plain http to a public host")


@pytest.mark.parametrize("host", ["crm", "crm.internal", "x.svc.cluster.local", "10.0.0.5", "[::1]", "localhost"])
def test_plain_http_at_home_is_fine(warned: Refuser, host: str) -> None:
    """Containers and private networks speak plain http."""
    assert warned(target={"url": f"http://{host}:9000/"}) == []


@pytest.mark.row("T55")
@pytest.mark.parametrize(
    ("listen", "host", "is_loop"),
    [
        ("0.0.0.0:8080", "localhost", True),
        ("0.0.0.0:8080", "127.0.0.1", True),
        ("[::]:8080", "[::1]", True),
        ("127.0.0.1:8080", "localhost", True),
        ("10.0.0.1:8080", "10.0.0.1", True),
        ("10.0.0.1:8080", "10.0.0.2", False),
        ("0.0.0.0:8080", "crm", False),
    ],
)
def test_a_target_that_is_the_relay_is_warned_about(warned: Refuser, listen: str, host: str, is_loop: bool) -> None:
    """A URL that is our own listen address would go in circles."""
    lines = warned(target={"url": f"http://{host}:8080/hooks/partner"}, server={"listen": listen})
    assert ["a loop" in line for line in lines] == ([True] if is_loop else [])


@given(st.text(max_size=40) | st.from_regex(r"https?://[^/]{0,20}/[^ ]{0,10}", fullmatch=True))
def test_the_url_parser_is_total(text: str) -> None:
    """Any text is a URL or is refused."""
    try:
        parsed = urls.parsed(text)
    except Refused:
        return
    assert parsed.url.isascii()
    assert 1 <= parsed.port <= 65535


@pytest.mark.row("C22", "T50")
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"a b": "x"}, 'headers."a b": not a valid header name'),
        ({"": "x"}, 'headers."": not a valid header name'),
        ({"Host": "x"}, "headers.Host: set by the connection itself; it cannot be configured"),
        ({"content-length": "5"}, "headers.content-length: set by the connection itself; it cannot be configured"),
        ({"Proxy-Authorization": "x"}, "set by the connection itself; it cannot be configured"),
        ({"Relay-Event-Id": "x"}, "headers.Relay-Event-Id: relay- headers are the relay's own"),
        ({"X-A": "1", "x-a": "2"}, "headers.x-a: the same header as X-A"),
        ({"X": "a\r\nb"}, "headers.X: not a valid header value: only printable ASCII may be sent"),
        ({"X": 5}, "headers.X: must be a quoted string, found integer"),
        ("X: y", "headers: must be a mapping, found string"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(refused: Refuser, headers: object, message: str) -> None:
    """Names and values are fit for the wire; what belongs to the connection is not the YAML's."""
    (line,) = refused(target={"headers": headers})
    assert line.startswith("targets.crm.headers")
    assert message in line


def test_header_lists(build: Loader, refused: Refuser) -> None:
    """Names are compared in lower case; what is never forwarded cannot be asked for."""
    target = only(build(target={"forward_headers": "Authorization", "strip_headers": ["X-A", "x-b"]}))
    assert target.forward_headers == {"authorization"}
    assert target.strip_headers == {"x-a", "x-b"}
    assert refused(target={"forward_headers": "TE"}) == [
        "targets.crm.forward_headers: TE is never forwarded: set by the connection itself; it cannot be configured"
    ]
    assert refused(target={"forward_headers": ["Cookie"], "strip_headers": ["x", "cookie"]}) == [
        "targets.crm.strip_headers[1]: cookie stands under forward_headers as well"
    ]


@pytest.mark.row("C47")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "needs at least 1, found 0"),
        (-1, "needs at least 1, found -1"),
        (1025, "must be at most 1024"),
        ("8", "must be a whole number, found string"),
        (True, "must be a whole number, found boolean"),
    ],
)
def test_concurrency_is_a_whole_number_in_range(refused: Refuser, value: object, message: str) -> None:
    """No target is without a slot."""
    assert refused(target={"concurrency": value}) == [f"targets.crm.concurrency: {message}"]


@pytest.mark.row("C49")
@pytest.mark.parametrize("value", [0, -1, "three", True, 1.5, []])
def test_disable_after_is_a_count_or_never(refused: Refuser, build: Loader, value: object) -> None:
    """Anything else is told what may be written."""
    assert refused(target={"disable_after": value}) == [
        "targets.crm.disable_after: must be 1 or more (up to 1000), or never"
    ]
    assert only(build(target={"disable_after": "never"})).disable_after is None
    assert only(build(target={"disable_after": 5})).disable_after == 5


@pytest.mark.row("C55", "B14")
def test_probes_and_schedules(build: Loader, refused: Refuser) -> None:
    """Waits have ranges and an order; an empty schedule is a single try."""
    assert refused(target={"probe": {"first": "30m"}}) == [
        "targets.crm.probe: first (30m) must not be longer than max (15m)"
    ]
    assert refused(target={"probe": "nver"}) == ["targets.crm.probe: must be a mapping {first: 1m, max: 15m}, or never"]
    assert only(build(target={"probe": "never"})).probe_first is None
    target = only(build(target={"probe": {"first": "1s", "max": "1s"}, "retry": {"schedule": []}}))
    assert (target.probe_first, target.schedule) == (timedelta(seconds=1), ())
    assert only(build(target={"retry": {"schedule": "5s"}})).schedule == (timedelta(seconds=5),)
    assert refused(target={"retry": {"schedule": ["5s", "0s", "31d", 7]}}) == [
        "targets.crm.retry.schedule[1]: must be 100ms to 30d",
        "targets.crm.retry.schedule[2]: must be 100ms to 30d",
        'targets.crm.retry.schedule[3]: "7" needs a unit (did you mean 7s?)',
    ]
    assert refused(target={"retry": {"schedule": ["5s"] * 101}}) == [
        "targets.crm.retry.schedule: has more than 100 items"
    ]


def test_success_and_refusals(build: Loader, refused: Refuser) -> None:
    """Status lists are ranges, never empty where nothing would be delivered, and never at odds."""
    target = only(build(target={"success": ["200-299", 409], "refusals": []}))
    assert target.success == StatusSet(((200, 299), (409, 409)))
    assert target.refusals == StatusSet(())
    assert only(build(target={"success": 202})).success == StatusSet(((202, 202),))
    assert refused(target={"success": []}) == [
        "targets.crm.success: an empty list would never deliver; remove it or name statuses"
    ]
    assert refused(target={"success": ["200-499"], "refusals": [422]}) == [
        "targets.crm.refusals: 422 stands under success as well"
    ]
    assert "is not a status" in refused(target={"success": ["2xx"]})[0]


def test_a_route_is_read(build: Loader) -> None:
    """Names and globs, each of which may stand alone; the contract's own example has a space in a name."""
    (route,) = build(route={"name": "paid orders", "from": "partner", "match": {"type": "order_*"}}).routes
    assert route == Route("paid orders", frozenset({"partner"}), ("crm",), ("order_*",))


@pytest.mark.row("C30")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"to": ["crm2"]}, 'to[0]: unknown target "crm2"; did you mean "crm"? known: crm'),
        ({"to": ["zzz"]}, 'to[0]: unknown target "zzz"; known: crm'),
        ({"from": ["partnr"]}, 'from[0]: unknown source "partnr"; did you mean "partner"? known: partner'),
        ({"to": []}, "to: needs at least one target"),
        ({"from": []}, "from: needs at least one source"),
        ({"to": ...}, "to: missing"),
        ({"name": ...}, "name: missing"),
        ({"to": ["crm", "crm"]}, 'to[1]: target "crm" is named twice'),
        ({"from": ["partner", "partner"]}, 'from[1]: source "partner" is named twice'),
        ({"match": {"type": []}}, "match.type: an empty list matches nothing; remove match to take every event"),
        ({"match": {}}, "match: has neither type nor headers; remove match to take every event"),
        ({"match": {"type": [""]}}, "match.type[0]: must not be empty"),
        ({"name": "Rewards!"}, "name: name must match"),
        ({"name": "a  b"}, "name: name must match"),
        ({"name": 5}, "name: must be a string, found integer"),
        ({"to": [5]}, "to[0]: must be a string, found integer"),
    ],
)
def test_a_route_names_what_exists(refused: Refuser, parts: dict[str, object], message: str) -> None:
    """An unknown name is answered with the known ones."""
    (line,) = refused(route=parts)
    assert line.startswith(f"routes[0].{message}")


def test_a_route_takes_the_relays_own_events(build: Loader, warned: Refuser, refused: Refuser) -> None:
    """The built-in source needs no section, stands beside others, and is no name to be suggested."""
    assert build(route={"from": ["relay", "partner"]}).routes[0].sources == {"relay", "partner"}
    assert warned(routes=[{"name": "own", "from": "relay", "match": {"type": "target.*"}, "to": "crm"}]) == [
        "sources.partner: no route takes its events"
    ]
    (line,) = refused(route={"from": ["relais"]})
    assert line.endswith("known: partner")
    (line,) = refused(route={"to": ["relay"]})
    assert 'unknown target "relay"' in line


def test_a_glob_that_fits_none_of_the_relays_own_events_is_warned_about(warned: Refuser) -> None:
    """Waiting for what never comes is told, unless the glob may be meant for another source of the route."""
    kinds = "target.disabled, target.enabled, delivery.dead, source.silent, store.nearly_full, config.reload_refused"
    message = f"fits none of the relay's own events: {kinds}"

    def told(sources: list[str], *types: str) -> list[str]:
        return warned(routes=[{"name": "own", "from": sources, "match": {"type": list(types)}, "to": "crm"}])

    unused = "sources.partner: no route takes its events"
    assert told(["relay"], "target.disable", "delivery.*", "silent") == [
        unused,
        f'routes[0].match.type[0]: "target.disable" {message}',
        f'routes[0].match.type[2]: "silent" {message}',
    ]
    assert told(["relay"], "*") == [unused]
    assert told(["relay", "partner"], "order.*", "*.dead") == []
    assert told(["relay", "partner"], "order.*") == [f'routes[0].match.type[0]: "order.*" {message}']


def test_names_of_routes_are_unique(refused: Refuser) -> None:
    """Two routes of one name could not be told apart."""
    route = {"name": "a", "from": "partner", "to": "crm"}
    assert refused(routes=[route, route]) == ['routes[1].name: another route is named "a"']


@pytest.mark.row("C31")
def test_what_is_never_used_is_warned_about(warned: Refuser) -> None:
    """A target that nothing leads to and a source that nothing takes are told, not refused."""
    custom = {"provider": "custom", "secrets": ["0123456789abcdef"], "verify": {"scheme": "bearer"}}
    target = {"url": "https://h.example/"}
    assert warned(sources={"partner": custom, "spare": custom}, targets={"crm": target, "old": target}) == [
        "sources.spare: no route takes its events",
        "targets.old: no route leads here",
    ]
    assert warned(routes=[]) == ["routes: no routes: events are stored and go nowhere"]
