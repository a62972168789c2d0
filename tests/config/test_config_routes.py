"""What a route may say of the events it takes, and every way in which it is refused."""

import pytest

from relay.config import json_schema
from relay.model import Route
from tests.config.conftest import Loader, Refuser

HAS = "is nothing that an event has (id, type, source, received_at, headers, body, form, data)"


def test_a_route_chooses_by_headers_and_conditions(build: Loader) -> None:
    """Of the whole route, and of one of its targets, which may stand beside mere names."""
    (route,) = build(
        route={
            "match": {"type": "order_*", "headers": {"X-Env": "live", "x-shop": ""}},
            "when": "body.mode == 'live'",
            "to": ["crm", {"target": "slack", "when": "body.total > `100`"}, {"target": "log"}],
        },
        targets={name: {"url": f"https://{name}.example.com/"} for name in ("crm", "slack", "log")},
    ).routes
    assert route == Route(
        "all",
        frozenset({"partner"}),
        ("crm", "slack", "log"),
        ("order_*",),
        headers=(("X-Env", "live"), ("x-shop", "")),
        when="body.mode == 'live'",
        target_conditions=(("slack", "body.total > `100`"),),
    )
    assert not route.is_plain


def test_headers_alone_may_choose(build: Loader) -> None:
    """Then the type does not matter."""
    (route,) = build(route={"match": {"headers": {"X-Env": "live"}}}).routes
    assert (route.types, route.headers) == ((), (("X-Env", "live"),))


def test_a_condition_may_stand_on_several_lines(read: Loader) -> None:
    """As YAML folds or keeps them, and with a variable in it."""
    text = """
sources: {partner: {provider: custom, verify: {scheme: bearer}, secrets: ["0123456789abcdef"]}}
targets: {crm: {url: "https://crm.example.com/"}}
routes:
  - name: all
    from: partner
    when: |
      body.mode == '${MODE}'
      && body.total
    to: crm
"""
    (route,) = read(text, MODE="live").routes
    assert route.when == "body.mode == 'live'\n&& body.total\n"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("body.a ==", '"body.a ==" is not a JMESPath expression: it ends too early'),
        ("body.a = 'x'", "is not a JMESPath expression: "),
        ("body.a == 'x", "is not a JMESPath expression: unclosed ' delimiter, column 11"),
        ("body.a b", "is not a JMESPath expression: unexpected b, column 8"),
        ("body.n > 5", "unexpected 5, column 10 (a number stands in backticks: `5`)"),
        ("lenght(body)", 'unknown JMESPath function "lenght"; did you mean "length"?'),
        ("length()", 'JMESPath function "length" takes 1 arguments, found 0'),
        ("mode == 'live'", f'"mode" {HAS}; did you mean body.mode?'),
        ('body.mode == "live"', f"\"live\" {HAS}; a text stands in single quotes: 'live'"),
        ("body.paid == true", f'"true" {HAS}; a literal stands in backticks: `true`'),
        ("headers.\"X-Env\" == 'live'", '"X-Env" must stand in lower case, as all names of headers do here'),
        ("!(headers.X || id)", '"X" must stand in lower case'),
        ("headers.authorization == 'a'", '"authorization" is a credential, which is not kept of an event'),
        ("x" * 1001, "expression longer than 1000 characters"),
        ("", "must not be empty"),
        (" ", "must not be empty"),
        (True, "must be a string, found boolean"),
        (5, "must be a string, found integer"),
        ("data.paid", "reads data, which is null without enrich; name an enricher, or read body"),
        ("body.a && data", "reads data, which is null without enrich; name an enricher, or read body"),
    ],
)
def test_a_condition_that_could_never_be_met_is_refused_with_its_place(
    refused: Refuser, condition: object, message: str
) -> None:
    """On a route and on one of its targets, each told where it is and what is wrong."""
    (line,) = refused(route={"when": condition})
    assert line.startswith("routes[0].when: ")
    assert message in line
    (line,) = refused(route={"to": [{"target": "crm", "when": condition}]})
    assert line.startswith("routes[0].to[0].when: ")
    assert message in line


def test_what_a_variable_brought_into_a_condition_is_not_shown(refusals: Refuser) -> None:
    """It may be a secret."""
    text = """
sources: {partner: {provider: custom, verify: {scheme: bearer}, secrets: ["0123456789abcdef"]}}
targets: {crm: {url: "https://crm.example.com/"}}
routes:
  - {name: one, from: partner, when: "body.a == ${WORD}'", to: crm}
  - {name: two, from: partner, when: "${WORD}", to: crm}
"""
    one, two = refusals(text, WORD="hushhush")
    assert one.endswith("routes[0].when: the expanded value is not a JMESPath expression")
    assert two.endswith(f"routes[1].when: a name in the expanded value {HAS}")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"match": {"type": [], "headers": {"a": "b"}}}, "match.type: an empty list matches nothing"),
        ({"match": {"headers": {}}}, "match: has neither type nor headers; remove match to take every event"),
        ({"match": {"headers": {"X-Env": 1}}}, "match.headers.X-Env: must be a quoted string, found integer"),
        ({"match": {"headers": {"X-Env": True}}}, "match.headers.X-Env: must be a quoted string, found boolean"),
        ({"match": {"headers": {"X-Env": "a\nb"}}}, "match.headers.X-Env: holds a character that no header can have"),
        ({"match": {"headers": {"X-Env": " a"}}}, "match.headers.X-Env: begins or ends with white space"),
        ({"match": {"headers": {"X Env": "a"}}}, 'match.headers."X Env": not a valid header name'),
        ({"match": {"headers": {"X-Env": "a", "x-env": "b"}}}, "match.headers.x-env: the same header as X-Env"),
        ({"match": {"headers": {"Cookie": "a"}}}, "match.headers.Cookie: is a credential, which is not kept"),
        (
            {"match": {"headers": {"authorization": "a"}}},
            "match.headers.authorization: is a credential, which is not kept of an event",
        ),
        ({"match": {"headers": ["a"]}}, "match.headers: must be a mapping, found list"),
        ({"enrich": "shop"}, 'enrich: unknown enricher "shop"; known: none'),
        ({"enrich": "shop", "when": "data.paid"}, 'enrich: unknown enricher "shop"; known: none'),
        ({"to": [{"when": "body.a"}]}, "to[0].target: missing"),
        ({"to": [{"target": "crm", "whem": "body.a"}]}, 'to[0].whem: unknown key "whem"; did you mean "when"?'),
        ({"to": ["crm", {"target": "crm", "when": "body.a"}]}, 'to[1]: target "crm" is named twice'),
        ({"to": [{"target": "cmr", "when": "body.a"}]}, 'to[0]: unknown target "cmr"; did you mean "crm"?'),
        ({"to": [{"target": 5}]}, "to[0].target: must be a string, found integer"),
        ({"to": {"target": "crm"}}, "to: must be a list, found mapping"),
    ],
)
def test_what_a_route_cannot_mean_is_refused(refused: Refuser, parts: dict[str, object], message: str) -> None:
    """Once, at its place."""
    (line,) = refused(route=parts)
    assert line.startswith(f"routes[0].{message}")


def test_a_key_that_is_never_stored_cannot_be_matched(refused: Refuser, build: Loader) -> None:
    """Of the route's own sources; another source's header of that name is an ordinary one."""
    key = {"verify": {"scheme": "api_key", "header": "X-Key"}}
    (line,) = refused(source=key, route={"match": {"headers": {"x-key": "a"}}})
    assert line == "routes[0].match.headers.x-key: is the key of source partner, which is not kept of an event"
    assert build(route={"match": {"headers": {"x-key": "a"}}}).routes[0].headers == (("x-key", "a"),)


def test_editors_know_the_keys_of_choosing() -> None:
    """A destination is a name or a mapping, and `match` needs no type."""
    parts = json_schema()["$defs"]
    route, match = parts["RouteSection"]["properties"], parts["MatchSection"]
    assert {"when", "enrich", "match", "to"} <= route.keys()
    assert "type" not in match.get("required", ())
    assert parts["DestinationSection"]["required"] == ["target"]
