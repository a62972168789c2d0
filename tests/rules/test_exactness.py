"""JSON that is read and written without a loss."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Content
from relay.model.numbers import Exact, number
from relay.model.receiving import loads_in_turns
from relay.rules.exactness import ascii_json, document, read, text_json
from relay.rules.expressions import found

NUMBERS = [
    "1.10",
    "1E400",
    "-0.0",
    "9223372036854775808123",
    "0.1000000000000000055511151231257827",
    "1e5",
    "12.00",
    "3",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_leaves_as_it_was_written(number: str) -> None:
    """Alone, inside, and through an expression."""
    text = f'{{"b":[{number}],"a":{{"n":{number}}}}}'
    value = read(text)
    assert ascii_json(value) == text_json(value) == text
    assert ascii_json(found("{n: a.n, l: b}", value)) == f'{{"n":{number},"l":[{number}]}}'


def test_an_exact_number_still_is_one() -> None:
    """Expressions count and compare with it."""
    value = read('{"a": [1.10, 2.20]}')
    assert found("sum(a) > `3.2`", value) is True
    assert found("a[?@ > `2.0`] | length(@)", value) == 1
    assert found("type(a[0])", value) == "number"
    assert str(value["a"][0]) == "1.10"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_json_comes_back_in_its_order(value: Any) -> None:
    """Compact, in ASCII or readable, it is the same as any other writer's."""
    assert ascii_json(value) == json.dumps(value, separators=(",", ":"))
    assert text_json(value) == json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert ascii_json(read(json.dumps(value))) == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b' {"a": 1}\n', '{"a": 1}'),
        (b'\xef\xbb\xbf{"a": 1}', '{"a": 1}'),
        ('{"a": "ä"}'.encode("utf-16"), '{"a": "ä"}'),
        (b"null", "null"),
        (b"", None),
        (b"a=b", None),
        (b"NaN", None),
        (b'{"a": Infinity}', None),
        (b'"\xff"', None),
        (b"[" * 200_000, None),
        (b"9" * 5000, None),
    ],
)
def test_the_text_of_a_body_is_had_only_where_it_is_json(body: bytes, text: str | None) -> None:
    """As RFC 8259 has it, in any encoding that it allowed; anything else is opaque."""
    made = document(body)
    assert (made and made[0]) == text


def test_what_no_json_can_hold_is_refused() -> None:
    """A number that is none, and a key that is no text, where it cannot be one."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        ascii_json(float("nan"))
    with pytest.raises(TypeError):
        ascii_json({(1, 2): 3})
    assert ascii_json({1: (2, None), "a": {}, "b": []}) == '{"1":[2,null],"a":{},"b":[]}'


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@pytest.mark.row("F39")
@given(VALUES)
def test_parsing_in_turns_changes_no_value(value: object) -> None:
    """Numbers keep their kind, keys their order, also what JSON does not have."""
    text = json.dumps(value)
    assert repr(loads_in_turns(text)) == repr(json.loads(text))


@pytest.mark.row("F39")
@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": 1', "", "nan", '{"a": 01}'])
def test_parsing_in_turns_refuses_the_same(text: str) -> None:
    """With the same errors, which their callers know."""
    with pytest.raises((ValueError, RecursionError)) as plain:
        json.loads(text)
    with pytest.raises(plain.type):
        loads_in_turns(text)


PARTS = [b"{", b"}", b"[", b"]", b'"a"', b":", b",", b"1", b"1.50", b"e5", b"NaN", b"null", b'{"a": 1}', b" \t\r\n"]
PARTS += ["\ufeff".encode(), "\xa0".encode(), b"\x0b", b"\x00", b"\xff\xfe", b"\xed\xa0\x80"]
PARTS += ['{"a": 1}'.encode(coding) for coding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32-be")]


@given(st.lists(st.sampled_from(PARTS), max_size=6).map(b"".join))
def test_a_body_is_the_json_that_python_says_it_is(body: bytes) -> None:
    """In whatever coding, with white space around it or something else: the same value, or none."""
    try:
        expected = json.loads(body, parse_float=number, parse_constant=Exact)
    except ValueError:
        expected = None
    assert repr(Content((), body).json) == repr(expected)


@pytest.mark.row("F39")
@pytest.mark.parametrize("read_large", [lambda body: Content((), body).json, read], ids=["named", "read exactly"])
def test_others_have_turns_while_a_large_document_is_parsed(read_large: Callable[[bytes], object]) -> None:
    """A million numbers are parsed in a thread: meanwhile this one is never kept waiting for half of that time. In C
    alone it would be kept waiting for all of it."""
    body = ("{" + ",".join(f'"k{n}":{n}' for n in range(150_000)) + "}").encode()
    waits: list[float] = []
    for _ in range(3):
        waits.append(_longest_wait(lambda: read_large(body)))
        if waits[-1] < 0.5:
            return
    raise AssertionError(f"shares of the time that others waited: {waits}")


def _longest_wait(work: Callable[[], object]) -> float:
    """The longest time that this thread did not get to run while another works, as a share of that work's time."""
    began, ended = threading.Event(), threading.Event()
    spent = 0.0

    def run() -> None:
        nonlocal spent
        began.wait()
        start = time.perf_counter()
        work()
        spent = time.perf_counter() - start
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    longest, last = 0.0, time.perf_counter()
    began.set()
    while not ended.wait(0.001):
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    longest = max(longest, time.perf_counter() - last)
    thread.join()
    return longest / spent
