"""What a target's answer means: every row of the outcome table, and a parser that takes anything."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import OutcomeKind, StatusSet, Target
from relay.rules.answers import meaning, parse_retry_after, status_line
from relay.rules.retry import RETRY_AFTER_CAP

NOW = datetime(2031, 1, 1, tzinfo=UTC)
CRM = Target("crm", "https://crm.example.com/hooks")
A_MINUTE = timedelta(minutes=1)


@pytest.mark.row("F19", "F21", "B70")
@pytest.mark.parametrize(
    ("status", "retry_after", "kind"),
    [
        *((status, None, OutcomeKind.DELIVERED) for status in (200, 201, 202, 204, 206, 226, 299)),
        (200, A_MINUTE, OutcomeKind.DELIVERED),
        (429, None, OutcomeKind.THROTTLED),
        (429, A_MINUTE, OutcomeKind.THROTTLED),
        (503, A_MINUTE, OutcomeKind.THROTTLED),
        (503, timedelta(0), OutcomeKind.THROTTLED),
        (503, None, OutcomeKind.FAILED),
        *((status, None, OutcomeKind.REFUSED) for status in (400, 413, 415, 422)),
        *((status, None, OutcomeKind.FAILED) for status in (300, 301, 302, 303, 307, 308)),
        *(
            (status, None, OutcomeKind.FAILED)
            for status in (101, 401, 403, 404, 405, 408, 409, 421, 500, 502, 504, 599)
        ),
        *((status, A_MINUTE, OutcomeKind.FAILED) for status in (401, 500, 502, 504)),
        (410, None, OutcomeKind.GONE),
    ],
)
def test_every_status_has_the_meaning_of_the_table(
    status: int, retry_after: timedelta | None, kind: OutcomeKind
) -> None:
    """2xx delivers, 429 throttles, four statuses refuse, 410 is gone, and all else is a failure."""
    assert meaning(status, CRM, retry_after=retry_after) is kind


@given(status=st.integers(100, 999), retry_after=st.none() | st.just(A_MINUTE))
def test_every_status_has_exactly_one_meaning(status: int, retry_after: timedelta | None) -> None:
    """No status that a wire can carry is without meaning, and only a 2xx is a delivery."""
    kind = meaning(status, CRM, retry_after=retry_after)
    assert (kind is OutcomeKind.DELIVERED) == (200 <= status < 300)
    assert kind not in (OutcomeKind.UNREACHABLE, OutcomeKind.UNPREPARED, OutcomeKind.INTERRUPTED)


def test_the_lists_of_the_target_win_over_the_table() -> None:
    """`success:` and `refusals:` of a target decide before the table does, and `success:` first."""
    api = Target(
        "api",
        "https://api.example.com",
        success=StatusSet(((200, 200), (404, 404), (410, 410))),
        refusals=StatusSet(((404, 404), (429, 429), (202, 202))),
    )
    kinds = {status: meaning(status, api, retry_after=None) for status in (200, 404, 410, 429, 202, 201, 400, 503)}
    assert kinds == {
        200: OutcomeKind.DELIVERED,
        404: OutcomeKind.DELIVERED,
        410: OutcomeKind.DELIVERED,
        429: OutcomeKind.REFUSED,
        202: OutcomeKind.REFUSED,
        201: OutcomeKind.FAILED,
        400: OutcomeKind.FAILED,
        503: OutcomeKind.FAILED,
    }


@pytest.mark.row("F19", "B7")
@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", timedelta(0)),
        ("1", timedelta(seconds=1)),
        (" 120 ", timedelta(minutes=2)),
        ("0000000000000030", timedelta(seconds=30)),
        ("86400", RETRY_AFTER_CAP),
        ("86401", RETRY_AFTER_CAP),
        ("315360000", RETRY_AFTER_CAP),
        ("9" * 5000, RETRY_AFTER_CAP),
        ("Wed, 01 Jan 2031 00:01:00 GMT", A_MINUTE),
        ("Wed, 01 Jan 2031 00:01:00 -0000", A_MINUTE),
        ("Wed, 01 Jan 2031 01:01:00 +0100", A_MINUTE),
        ("Wednesday, 01-Jan-31 00:01:00 GMT", A_MINUTE),
        ("Mon, 01 Jan 2041 00:00:00 GMT", RETRY_AFTER_CAP),
        ("Tue, 31 Dec 2030 23:59:00 GMT", timedelta(0)),
        ("Wed, 01 Jan 2031 00:00:00 GMT", timedelta(0)),
        ("-1", None),
        ("+5", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("", None),
        ("   ", None),
        ("soon", None),
        ("Wed, 99 Foo 2031 99:99:99 GMT", None),
        ("Wed, 01 Jan 999999999999 00:00:00 GMT", None),
        ("Wed, 01 Jan 2031 00:00:00 +9999", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else(value: str | None, wait: timedelta | None) -> None:
    """Seconds or an HTTP date, at most 24 h; a date that is over asks for no wait, garbage for nothing."""
    assert parse_retry_after(value, NOW) == wait


SEEDS = st.sampled_from(["Wed, 01 Jan 2031 00:00:00 GMT", "120", "-0000", "Jan", ":", "GMT+25", "\udcff"])


@pytest.mark.row("F19")
@given(value=st.text() | st.lists(SEEDS | st.text(max_size=4), max_size=8).map(" ".join))
def test_retry_after_takes_anything(value: str) -> None:
    """No header a target can send raises, asks for the past, or asks for more than a day."""
    wait = parse_retry_after(value, NOW)
    assert wait is None or timedelta(0) <= wait <= RETRY_AFTER_CAP


@given(seconds=st.integers(1, 200_000))
def test_a_date_and_its_seconds_ask_for_the_same(seconds: int) -> None:
    """The two forms of RFC 9110, section 10.2.3, agree."""
    as_date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(as_date, NOW) == parse_retry_after(str(seconds), NOW)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n", 200),
        (b"HTTP/1.0 204 ", 204),
        (b"HTTP/1.1 200\r", 200),
        (b"HTTP/1.1 200\n", 200),
        (b"HTTP/1.1 200", 200),
        (b"HTTP/1.1 2000", None),
        (b"HTTP/1.1 20", None),
        (b"HTTP/1.1 2x0 ", None),
        (b"HTTP/2.0 200 ", None),
        (b"ICY 200 OK\r\n\r\n", None),
        (b"", None),
    ],
)
def test_a_status_is_read_from_the_first_bytes(head: bytes, status: int | None) -> None:
    """A broken answer has said all that counts once its status line is whole."""
    assert status_line(head) == status


@given(st.binary(max_size=20))
def test_first_bytes_may_be_anything(head: bytes) -> None:
    """Whatever comes first is a status of three digits or none."""
    status = status_line(head)
    assert status is None or 0 <= status <= 999


def test_410_of_a_templated_url_refuses_one_event() -> None:
    """One resource is gone, and not the receiver; the target's own lists still win."""
    templated = replace(CRM, url_template="https://h.example/{{ body.id }}")
    assert meaning(410, CRM, retry_after=None) is OutcomeKind.GONE
    assert meaning(410, templated, retry_after=None) is OutcomeKind.REFUSED
    listed = replace(templated, success=StatusSet(((410, 410),)))
    assert meaning(410, listed, retry_after=None) is OutcomeKind.DELIVERED
