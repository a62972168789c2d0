"""Where an event goes."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Route
from relay.rules.routing import Subject, judged, routed

ROUTES = (
    Route("rewards", frozenset({"xoxoday"}), ("crm", "books"), ("delivered", "canceled")),
    Route("orders", frozenset({"plugandpay", "xoxoday"}), ("books", "slack"), ("order_*", "d*")),
    Route("all", frozenset({"plugandpay"}), ("log",)),
)


def matching_targets(source: str, event_type: str, routes: Sequence[Route]) -> tuple[str, ...]:
    """Where an event goes."""
    return routed(named(source, event_type), routes).targets


def named(source: str, event_type: str) -> Subject:
    """An event of which nothing but its source and type may be asked."""

    def never() -> NoReturn:
        raise AssertionError("a plain route asked for more")

    return Subject(source, event_type, headers=never, view=never)


def test_a_target_is_named_once_in_the_order_of_the_routes() -> None:
    """Two routes to one target make one delivery."""
    assert matching_targets("xoxoday", "delivered", ROUTES) == ("crm", "books", "slack")


def test_a_route_without_globs_wants_every_type() -> None:
    """No match key is everything, an event without a type included."""
    assert matching_targets("plugandpay", "", ROUTES) == ("log",)
    assert matching_targets("plugandpay", "order_paid", ROUTES) == ("books", "slack", "log")


def test_an_event_that_nobody_wants_has_no_targets() -> None:
    """An unknown source, an unknown type and another case match nothing."""
    assert matching_targets("stranger", "delivered", ROUTES) == ()
    assert matching_targets("xoxoday", "Delivered", ROUTES) == ()
    assert matching_targets("xoxoday", "undelivered", ROUTES) == ()


@given(glob=st.text("ab*?[]!-\n", max_size=12), event_type=st.text("ab[]!-\n\udc80", max_size=12))
def test_a_glob_means_what_the_standard_library_says(glob: str, event_type: str) -> None:
    """Routing and fnmatchcase agree on every pattern."""
    route = Route("r", frozenset({"s"}), ("t",), (glob,))
    assert bool(matching_targets("s", event_type, [route])) == fnmatchcase(event_type, glob)


@pytest.mark.parametrize(
    ("source", "event_type", "why"),
    [
        ("xoxoday", "canceled", None),
        ("xoxoday", "expired", "no glob of its match.type (delivered, canceled) fits the type"),
        ("partner", "delivered", "takes events from xoxoday only"),
    ],
)
def test_a_route_says_why_it_does_not_want_an_event(source: str, event_type: str, why: str | None) -> None:
    """The reason is there exactly when the route does not take the event."""
    assert judged(ROUTES[0], named(source, event_type)).because == why
    assert (why is None) == bool(matching_targets(source, event_type, ROUTES[:1]))
