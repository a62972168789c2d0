"""Which routes take an event by its headers and its content, by which ways it goes, and why not."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.model import Event, Headers, Route, Way
from relay.rules.expressions import WHOLE, Failed, found, holds, reads, reads_data, view_of
from relay.rules.routing import (
    DAMAGED,
    OPEN,
    Destination,
    Subject,
    TargetVerdict,
    barred_because,
    destinations,
    judged,
    meant,
    routed,
    subject_of,
    summed,
)

SHOP = frozenset({"shop"})
LIVE = "body.mode == 'live'"
PAID = "data.status == 'paid'"
FAILING = "abs(body.mode)"
OTHER = "its match.headers wants another value of X-Env"
UNLIKE = "a text and a number cannot be compared; to_number(…) makes a number of a text"
WHY_FAILING = "abs() was given what it does not take"


def an_event(body: bytes = b'{"mode": "live", "n": 1}', headers: Headers = (("X-Env", "live"),)) -> Event:
    """An event of the source `shop`."""
    return Event("evt_1", "shop", "order.paid", datetime(2026, 9, 20, 10, tzinfo=UTC), headers, body)


def subject(body: bytes = b'{"mode": "live", "n": 1}', headers: Headers = (("X-Env", "live"),)) -> Subject:
    """The same, as routes judge it."""
    event = an_event(body, headers)
    return subject_of(event, event.body)


def a_route(name: str = "r", *targets: str, **parts: Any) -> Route:
    """A route of the source `shop`."""
    return Route(name, SHOP, targets or ("crm",), **parts)


# headers


@pytest.mark.parametrize(
    ("wanted", "headers", "why"),
    [
        ((("X-Env", "live"),), (("x-env", "live"),), None),
        ((("x-env", "live"),), (("X-ENV", "live"),), None),
        ((("X-Env", "live"),), (("X-Env", "Live"),), "its match.headers wants another value of X-Env"),
        ((("X-Env", "live"),), (("X-Env", "live "),), "its match.headers wants another value of X-Env"),
        (
            (("X-Env", "live"),),
            (("X-Env", "test"), ("X-Env", "live")),
            "its match.headers wants another value of X-Env",
        ),
        ((("X-Env", "live"),), (("X-Env", "live"), ("X-Env", "test")), None),
        (
            (("X-Env", "live"), ("X-Shop", "1"), ("X-Mode", "2")),
            (("X-Env", "live"),),
            "its match.headers wants X-Shop, X-Mode, which the event does not have",
        ),
        ((("X-Env", "live"), ("X-Shop", "1")), (("X-Env", "live"), ("x-shop", "1")), None),
    ],
)
def test_all_headers_must_say_just_that(wanted: Headers, headers: Headers, why: str | None) -> None:
    """Names in any case, values exactly, of a repeated header the first; a reason tells names and no values."""
    route = a_route(headers=wanted)
    assert judged(route, subject(headers=headers)).because == why
    assert bool(routed(subject(headers=headers), [route]).targets) is (why is None)


# conditions


@pytest.mark.parametrize(
    ("when", "because"),
    [
        (LIVE, None),
        ("body.mode == 'test'", "its `when` says no"),
        ("body.nothing", "its `when` says no"),
        ("body.n", None),
        ("type == 'order.paid' && source == 'shop' && id == 'evt_1'", None),
        ("starts_with(received_at, '2026-09-20T10')", None),
        ("headers.\"x-env\" == 'live'", None),
        ("headers.\"X-Env\" == 'live'", "its `when` says no"),
        ("data.status", "its `when` says no"),
        (FAILING, f"its `when` failed: {WHY_FAILING}"),
        ("body.mode > `5`", f"its `when` failed: {UNLIKE}"),
        ("sort_by(body, &n)", "its `when` failed: sort_by() was given what it does not take"),
    ],
)
def test_a_condition_decides_whether_a_route_takes_an_event(when: str, because: str | None) -> None:
    """Of a route, and of one of its targets; one that fails is a no whose reason is kept."""
    whole = judged(a_route(when=when), subject())
    assert whole.because == because
    alone = judged(a_route("r", "crm", "books", target_conditions=(("crm", when),)), subject())
    assert alone.because is None
    assert alone.targets == (
        TargetVerdict("crm", None if because else Way("r"), because or ""),
        TargetVerdict("books", Way("r")),
    )
    has_failed = bool(because) and "failed" in str(because)
    reason = str(because).removeprefix("its `when` failed: ")
    assert whole.failed == ((("r", reason),) if has_failed else ())
    assert alone.failed == ((("r > crm", reason),) if has_failed else ())


def test_a_route_none_of_whose_targets_wants_an_event_does_not_take_it() -> None:
    """It is unrouted then, and says of each target why."""
    route = a_route("r", "crm", "books", target_conditions=(("crm", "body.x"), ("books", FAILING)))
    verdict = judged(route, subject())
    assert verdict.because == "none of its targets wants it"
    assert [one.because for one in verdict.targets] == ["its `when` says no", f"its `when` failed: {WHY_FAILING}"]
    found_ = routed(subject(), [route])
    assert (found_.routes, found_.targets, found_.courses) == ((), (), {})
    assert found_.failed == (("r > books", WHY_FAILING),)


def test_what_reads_data_is_left_open_where_something_is_fetched() -> None:
    """The rest is decided at once: a no of the route, or of the target, needs no fetch."""
    both = a_route(when=PAID, enricher="shop", target_conditions=(("crm", LIVE),))
    assert judged(both, subject()).ways == (TargetVerdict("crm", Way("r", "shop", (PAID,))),)
    assert judged(both, subject()).targets[0].is_open
    assert judged(both, subject(b'{"mode": "test"}')).because == "none of its targets wants it"
    one = a_route(when=LIVE, enricher="shop", target_conditions=(("crm", PAID),))
    assert routed(subject(), [one]).courses == {"crm": (Way("r", "shop", (PAID,)),)}
    assert routed(subject(b"{}"), [one]).targets == ()
    plain = a_route(when=LIVE, enricher="shop")
    assert routed(subject(), [plain]).courses == {"crm": (Way("r", "shop"),)}


@pytest.mark.parametrize(
    ("names", "course"),
    [
        (["plain"], ()),
        (["plain", "open"], ()),
        (["no", "plain"], ()),
        (["open"], ("open",)),
        (["open", "plain", "fetched"], ("open", "plain")),
        (["no", "failing", "open", "other", "fetched", "plain"], ("open", "other", "fetched")),
        (["fetched", "plain"], ("fetched",)),
        (["live", "fetched"], ()),
    ],
)
def test_a_course_ends_at_the_first_way_on_which_nothing_is_left_to_decide(
    names: list[str], course: tuple[str, ...]
) -> None:
    """Routes in their order; what says no is no way, and a plain first way needs no course at all."""
    known = {
        "plain": a_route("plain"),
        "no": a_route("no", when="body.x"),
        "failing": a_route("failing", when=FAILING),
        "open": a_route("open", when=PAID, enricher="shop"),
        "other": a_route("other", enricher="shop", target_conditions=(("crm", PAID),)),
        "fetched": a_route("fetched", enricher="shop"),
        "live": a_route("live", when=LIVE),
    }
    found_ = routed(subject(), [known[name] for name in names])
    assert tuple(way.route for way in found_.courses.get("crm", ())) == course
    assert found_.targets == ("crm",)
    assert found_.routes == tuple(name for name in names if name not in ("no", "failing"))


def test_each_target_has_a_course_of_its_own() -> None:
    """Names in the order of the routes, each once."""
    routes = [
        a_route("first", "crm", "slack", when=PAID, enricher="shop"),
        a_route("second", "books", "crm"),
        a_route("third", "slack", when="body.x"),
    ]
    found_ = routed(subject(), routes)
    assert (found_.routes, found_.targets) == (("first", "second"), ("crm", "slack", "books"))
    assert found_.courses == {
        "crm": (Way("first", "shop", (PAID,)), Way("second")),
        "slack": (Way("first", "shop", (PAID,)),),
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"status": "paid", "n": 1}, None),
        ({"status": "open", "n": 1}, "route r: `when` says no to what was fetched"),
        ({"status": "paid"}, "route r: `when` failed on what was fetched: abs() was given what it does not take"),
        (None, "route r: `when` says no to what was fetched"),
        ([], "route r: `when` says no to what was fetched"),
    ],
)
def test_a_way_is_closed_by_what_was_fetched(data: Any, why: str | None) -> None:
    """All its conditions must hold; the first that does not says why."""
    way = Way("r", "shop", (PAID, "abs(data.n) > `0`"))
    assert barred_because(way, view_of(an_event(), an_event().body, data)) == why
    assert barred_because(Way("r", "shop"), view_of(an_event(), b"", data)) is None


def test_where_an_event_goes_is_told_before_and_after_a_fetch() -> None:
    """Before, what is open may be reached; after, the first way that is left is taken, or every no is told."""
    routes = [
        a_route("first", "crm", "slack", "log", when=PAID, enricher="shop"),
        a_route("second", "crm"),
        a_route("third", "books"),
        a_route("fourth", "log", when="abs(data.status)", enricher="shop"),
    ]
    found_ = routed(subject(), routes)
    ways = {"first": Way("first", "shop", (PAID,)), "second": Way("second")}
    fourth = Way("fourth", "shop", ("abs(data.status)",))
    assert destinations(found_, None) == (
        Destination("crm", True, (ways["first"], ways["second"])),
        Destination("slack", None, (ways["first"],), OPEN),
        Destination("log", None, (ways["first"], fourth), OPEN),
        Destination("books"),
    )
    event = an_event()
    no = "route first: `when` says no to what was fetched"
    failed = "route fourth: `when` failed on what was fetched: abs() was given what it does not take"
    assert destinations(found_, view_of(event, event.body, {"status": "open"})) == (
        Destination("crm", True, (ways["second"],)),
        Destination("slack", False, (ways["first"],), no),
        Destination("log", False, (ways["first"], fourth), f"{no}; {failed}"),
        Destination("books"),
    )
    paid = destinations(found_, view_of(event, event.body, {"status": "paid"}))
    assert [one.ways for one in paid] == [(ways["first"],)] * 3 + [()]


def test_a_damaged_event_fits_no_route_that_asks_for_more_than_its_type() -> None:
    """Neither by a header nor by a condition, and both say why."""
    lost = Subject("shop", "order.paid", headers=lambda: DAMAGED, view=lambda: DAMAGED)
    for route in (a_route(headers=(("a", "b"),)), a_route(when="`true`")):
        assert DAMAGED.reason in str(judged(route, lost).because)
        assert routed(lost, [route]).targets == ()
    assert routed(lost, [a_route()]).targets == ("crm",)


# totality

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["live", "\ud800", "\udcff"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["mode", "n", "a", "data", "\udc80"]), inner, max_size=4)
    ),
    max_leaves=12,
)
EXPRESSIONS = [
    LIVE,
    FAILING,
    PAID,
    "data",
    "@",
    "body",
    "body[*].a",
    "body[?n > `1`] | [0]",
    "body.a || data.a",
    "!(body.a)",
    "{a: body, b: data}",
    "sort_by(body, &n)",
    "max_by(body, &n)",
    "sort(body)",
    "join(',', body)",
    "to_number(body.n)",
    "to_string(body)",
    "sum(body)",
    "avg(body[].n)",
    "keys(body)",
    "length(body)",
    "contains(body, 'live')",
    "merge(body, data)",
    "map(&n, body)",
    "body[::0]",
    "body[::-1]",
    "not_null(body.a, data.n)",
    "reverse(body)",
    "ceil(body.n)",
    "headers.a == body",
    "a_name_that_no_event_has",
]
HOSTILE = [
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"mode": ' + b"9" * 5000 + b"}",
    b'{"n": 1e999999}',
    b'[{"n": NaN}, {"n": "x"}, {"n": Infinity}]',
    b'{"mode": "\\ud800"}',
    b"\xff\xfe\x00",
    b'{"a": 1, "a": 2}',
    b"",
    b"\x00",
]


@settings(max_examples=150)
@given(
    body=JSON_VALUES.map(lambda value: json.dumps(value).encode()) | st.sampled_from(HOSTILE) | st.binary(max_size=40),
    headers=st.lists(st.tuples(st.text(max_size=4), st.text(st.characters(), max_size=6)), max_size=4).map(tuple),
    whens=st.lists(st.none() | st.sampled_from(EXPRESSIONS), min_size=1, max_size=5),
    own=st.lists(st.none() | st.sampled_from(EXPRESSIONS), min_size=5, max_size=5),
    enricher=st.sampled_from([None, "shop"]),
    data=JSON_VALUES,
)
@example(HOSTILE[1], (), ["to_string(body)", "body == data"], [None] * 5, None, None)
def test_routing_is_total_and_adds_up(
    body: bytes,
    headers: Headers,
    whens: list[str | None],
    own: list[str | None],
    enricher: str | None,
    data: object,
) -> None:
    """Whatever is sent: nothing is raised, each route is judged, a failure is a no that is told, and every target that
    is reached has an open way or one without conditions."""
    routes = [
        a_route(
            f"r{index}",
            "crm",
            "books",
            when=when,
            enricher=enricher,
            target_conditions=(("books", mine),) if mine else (),
        )
        for index, (when, mine) in enumerate(zip(whens, own, strict=False))
    ]
    event = an_event(body, headers)
    seen = subject_of(event, body)
    verdicts = [judged(route, seen) for route in routes]
    found_ = routed(seen, routes)
    assert found_ == summed(verdicts) or all(route.is_plain for route in meant("shop", "order.paid", routes))
    assert found_.routes == tuple(one.route for one in verdicts if one.because is None)
    for verdict in verdicts:
        assert (verdict.because is None) is any(one.way is not None for one in verdict.targets)
        for place, reason in verdict.failed:
            assert place.split(" > ")[0] == verdict.route
            assert reason
    for target, course in found_.courses.items():
        assert target in found_.targets
        assert all(way.conditions for way in course[:-1])
        for way in course:
            barred_because(way, view_of(event, body, data))
    if enricher is None:
        assert not any(way.conditions for course in found_.courses.values() for way in course)


@given(text=st.sampled_from(EXPRESSIONS), body=JSON_VALUES, data=JSON_VALUES)
def test_what_does_not_read_data_says_the_same_whatever_was_fetched(text: str, body: object, data: object) -> None:
    """So it may be decided before the fetch."""
    event = an_event(json.dumps(body).encode())
    if not reads_data(text):
        before, after = (repr(found(text, view_of(event, event.body, one))) for one in (None, data))
        assert before == after


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("body.data", {"body"}),
        ("data.body", {"data"}),
        ("body[?data == 'x'].type", {"body"}),
        ("body.a == data.b", {"body", "data"}),
        ("contains(body.a, type)", {"body", "type"}),
        ("body | data", {"body"}),
        ("@ | data", {"data"}),
        ("@.data.x", {"data"}),
        ("{x: data, y: id}", {"data", "id"}),
        ("sort_by(body.a, &data)[0]", {"body"}),
        ("*.data", {WHOLE}),
        ("keys(@)", {WHOLE}),
        ("`1`", set()),
        ("!data", {"data"}),
        ("body.a.[data]", {"body"}),
    ],
)
def test_it_is_known_what_of_an_event_an_expression_reads(text: str, names: set[str]) -> None:
    """A member's own member of the same name is another thing."""
    assert reads(text) == names
    assert reads_data(text) is bool(names & {"data", WHOLE})


def test_an_expression_that_is_none_fails_on_every_event() -> None:
    """A config never holds one; a store that was damaged may."""
    assert isinstance(holds("a..b", {}), Failed)
    assert reads_data("a..b")
    verdict = judged(a_route(when="a..b"), subject())
    assert verdict.because == "its `when` failed: failed on this event (NoExpression)"
    assert verdict.failed == (("r", "failed on this event (NoExpression)"),)
