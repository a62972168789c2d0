"""Expressions on events: total, whatever the event holds."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Event
from relay.rules.expressions import (
    LONGEST_EXPRESSION,
    VIEWED,
    Failed,
    NoExpression,
    as_text,
    compiled,
    found,
    holds,
    reads_data,
    view_of,
)

AT = datetime(2026, 9, 20, 10, 15, 31, 42_999, UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def test_a_view_shows_all_of_an_event() -> None:
    """Headers in lower case, of several the first; the body as JSON, or null."""
    event = Event("e1", "shop", "order.paid", AT, (("X-A", "1"), ("x-a", "2")), b"")
    view = view_of(event, b'{"a": 1.10}', {"b": 2})
    assert tuple(view) == VIEWED
    assert view["headers"] == {"x-a": "1"}
    assert (view["received_at"], view["data"]) == ("2026-09-20T10:15:31.042Z", {"b": 2})
    assert str(view["body"]["a"]) == "1.10"
    assert view_of(event, b"a=b")["body"] is None
    assert view_of(event, b'{"a": NaN}')["body"] is None


EXPRESSIONS = [
    "a",
    "a.b[0]",
    "length(@)",
    "sum(a)",
    "sort_by(a, &b)",
    "max_by(@, &a)",
    "a > b",
    "join(',', @)",
    "keys(@)",
    "to_number(a)",
    "a[?b > `1`].c | [0]",
    "{x: a, y: @}",
]


@given(st.sampled_from(EXPRESSIONS), JSON)
def test_an_expression_never_raises_for_what_an_event_holds(text: str, document: Any) -> None:
    """It finds something, or nothing, or says why it failed without the value."""
    for value in (found(text, document), holds(text, {"a": document})):
        if isinstance(value, Failed):
            assert len(value.reason) < 80


def test_what_is_nested_too_deeply_is_a_reason() -> None:
    """Total also for what no human writes."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert isinstance(found("to_string(@)", deep), Failed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.", "is not a JMESPath expression"),
        ("a" * (LONGEST_EXPRESSION + 1), "longer than"),
        ("lenght(a)", 'unknown JMESPath function "lenght"'),
        ("length(a, b)", "takes 1 arguments, found 2"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, message: str) -> None:
    """When the config is read, not when an event comes."""
    with pytest.raises(NoExpression, match=message):
        compiled(text)


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("data.x", True),
        ("body.data", False),
        ("@", True),
        ("@.data", True),
        ("@.body", False),
        ("body | data", False),
        ("body[?data]", False),
        ("{a: data}", True),
        ("length(data) > `1` && type == 'x'", True),
        ("'data'", False),
        ("`1`", False),
    ],
)
def test_whether_an_expression_needs_what_is_fetched(text: str, does: bool) -> None:
    """Only what is read off the view itself counts."""
    assert reads_data(text) is does


def test_what_a_condition_holds_for() -> None:
    """As in JMESPath: null, false and what is empty do not; the number 0 does."""
    view = {"a": 0, "b": [], "c": False, "d": "x"}
    assert [holds(text, view) for text in ("a", "b", "c", "d", "e", "a == `0`")] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_values_as_text() -> None:
    """A string as it is, null as nothing, the rest as JSON."""
    assert [as_text(value) for value in ("ä", None, True, 1, [1, "ä"], {"a": None})] == [
        "ä",
        "",
        "true",
        "1",
        '[1,"ä"]',
        '{"a":null}',
    ]
