"""Single values: durations and sizes mean what they say, and nothing else is taken for one."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import values
from relay.config.expansion import Expanded
from relay.config.problems import Refused, key_text
from relay.model import Rate, StatusSet
from tests.config.conftest import Refuser

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SIZES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4, "PiB": 1024**5}
EVERY = {"low": timedelta(0), "high": timedelta(days=10_000)}


@given(count=st.integers(min_value=0, max_value=9999), unit=st.sampled_from(list(UNITS)))
def test_a_duration_is_its_number_of_units(count: int, unit: str) -> None:
    """Every duration that can be written is read, and written again as the same span."""
    span = values.duration(f"{count}{unit}", **EVERY)
    assert span == timedelta(milliseconds=count * UNITS[unit])
    assert values.duration(values.duration_text(span), **EVERY) == span


@given(count=st.integers(min_value=0, max_value=9999), unit=st.sampled_from(list(SIZES)))
def test_a_size_is_its_number_of_units(count: int, unit: str) -> None:
    """Every size that can be written is read, and written again as the same number of bytes."""
    size = values.size(f"{count}{unit}", low=0, high=2**64)
    assert size == count * SIZES[unit]
    assert values.size(values.size_text(size), low=0, high=2**64) == size


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text())))
def test_parsers_refuse_what_they_do_not_take(value: Any) -> None:
    """Nothing makes a parser raise anything but a refusal, and a refusal is one line."""
    for parse in (
        lambda: values.duration(value, **EVERY),
        lambda: values.size(value, low=1, high=2**40),
        lambda: values.rate(value),
        lambda: values.network(value),
        lambda: values.address(value),
        lambda: values.statuses(value),
        lambda: values.header_name(value),
        lambda: values.header_value(value),
        lambda: values.listen_path(value),
        lambda: values.text(value),
        lambda: values.integer(value, low=1, high=5),
    ):
        try:
            parse()
        except Refused as refused:
            assert len(str(refused).splitlines()) == 1  # noqa: PT017 - most values are taken by some parser


@pytest.mark.row("C45")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (15, '"15" needs a unit (did you mean 15s?)'),
        ("15", '"15" needs a unit (did you mean 15s?)'),
        (0, '"0" needs a unit (did you mean 0s?)'),
        ("0s", "must be 100ms to 10m"),
        ("11m", "must be 100ms to 10m"),
        ("1d", "must be 100ms to 10m"),
        ("-1s", '"-1s" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        ("1e9s", '"1e9s" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        ("1.5s", '"1.5s" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        ("5 s", '"5 s" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        ("5S", '"5S" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        ("\u0665s", '"\u0665s" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        (float("inf"), '"inf" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        (float("nan"), '"nan" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        (1.5, '"1.5" is not a duration (500ms, 5s, 2m, 1h, 7d)'),
        (True, "must be a duration (500ms, 5s, 2m, 1h, 7d), found boolean"),
        ([5], "must be a duration (500ms, 5s, 2m, 1h, 7d), found list"),
        ("9" * 400 + "s", "is not a duration"),
    ],
)
def test_a_duration_needs_a_unit_and_a_range(value: Any, message: str) -> None:
    """A bare number is answered with what was probably meant."""
    with pytest.raises(Refused) as caught:
        values.duration(value, low=timedelta(milliseconds=100), high=timedelta(minutes=10))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 5000, "must be at most 5"),
        (Expanded([("9" * 5000, True)]), "must be at most 5"),
        ("-" + "9" * 20, "needs at least 1"),
        ("five", "must be a whole number, found string"),
    ],
)
def test_a_number_of_any_length_is_told_for_its_size(value: Any, message: str) -> None:
    """A number that is too long to be read as one is too large, not a string."""
    with pytest.raises(Refused) as caught:
        values.integer(value, low=1, high=5)
    assert str(caught.value) == message


@pytest.mark.row("C27")
@pytest.mark.parametrize("value", ["300.1.1.1", "10.0.0", "crm.example.com", "10.0.0.1-10.0.0.9", "", "10.0.0.0/33"])
def test_what_is_no_network_is_refused(value: str) -> None:
    """A network is an address with an optional prefix length."""
    with pytest.raises(Refused, match="is not an IP network"):
        values.network(value)


@pytest.mark.row("C27")
@pytest.mark.parametrize("value", ["::1%eth0", "fe80::1%eth0/128", "fe80::%1/64", "fe80::1%"])
@pytest.mark.parametrize(
    ("section", "key", "place"),
    [
        ("source", "allow_ips", "sources.partner.allow_ips"),
        ("server", "trusted_proxies", "server.trusted_proxies"),
        ("egress", "allow", "egress.allow"),
        ("egress", "deny", "egress.deny"),
    ],
)
def test_a_network_with_a_zone_is_refused(refused: Refuser, section: str, key: str, place: str, value: str) -> None:
    """Addresses are judged without their zone: one in the config would promise a bound that nobody keeps."""
    words = f'{place}[0]: "{value}" is not an IP network: an address stands without a zone'
    assert refused(**{section: {key: [value]}}) == [words]


def test_a_network_may_be_an_address_in_any_spelling() -> None:
    """An address is a network of one; IPv4 in IPv6 is the IPv4 it means."""
    assert str(values.network("10.0.0.5")) == "10.0.0.5/32"
    assert str(values.network("::ffff:10.0.0.5")) == "10.0.0.5/32"
    assert str(values.network("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    assert str(values.network("2001:db8::/32")) == "2001:db8::/32"


def test_rates_and_statuses() -> None:
    """Rates have a span, statuses are codes and ranges."""
    assert values.rate("100/s") == Rate(100, timedelta(seconds=1))
    assert values.rate("150/5m") == Rate(150, timedelta(minutes=5))
    for wrong in ("100", "0/s", "1/0s", "1/w", "-1/s", 100, "1/2d"):
        with pytest.raises(Refused):
            values.rate(wrong)
    assert values.statuses([200, "204", "300-399"]) == StatusSet(((200, 200), (204, 204), (300, 399)))
    assert values.statuses(202) == StatusSet(((202, 202),))
    for wrong in (100, 600, "299-200", "2xx", True, None, "200-"):
        with pytest.raises(Refused):
            values.statuses(wrong)


@pytest.mark.row("C22")
@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "\u00e4", "a\x00", None, 5, "(x)"])
def test_a_header_name_is_a_token(name: object) -> None:
    """RFC 9110's token and nothing else."""
    with pytest.raises(Refused, match="is not a valid header name"):
        values.header_name(name)


def test_a_header_value_cannot_split_a_request() -> None:
    """Line breaks, control characters and what is no ASCII never reach the wire; the value is not shown."""
    for value in ("a\r\nhunter2: b", "hunter2\x00", "hunter2\u00e4", " hunter2", "hunter2\t", 5):
        with pytest.raises(Refused) as caught:
            values.header_value(value)
        assert "hunter2" not in str(caught.value)


def test_keys_are_shown_on_one_line() -> None:
    """A key of any text is told without breaking the line."""
    assert key_text(("targets", "crm", "retry", "schedule", 1)) == "targets.crm.retry.schedule[1]"
    assert key_text(("a\nb",)) == '"a\\nb"'
    assert len(key_text(("x" * 1000,))) < 70
