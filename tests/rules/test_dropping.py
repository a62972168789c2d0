"""What is taken out of fetched data: paths step by step, and nothing beside them."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.dropping import steps, without
from relay.rules.expressions import NoExpression, found

ORDER = {
    "id": 7,
    "vouchers": [{"voucherCode": "SECRET", "pin": 1, "amount": 5}, {"voucherCode": "HIDDEN", "amount": 6}],
    "billing": {"contact": {"email": "a@b.c", "phone": "1"}},
    "rows": [[{"pin": "x"}], {"pin": "y"}],
}


@pytest.mark.parametrize(
    ("paths", "left"),
    [
        (("vouchers",), {**ORDER, "vouchers": None}),
        (("vouchers[*].voucherCode", "vouchers[].pin"), {**ORDER, "vouchers": [{"amount": 5}, {"amount": 6}]}),
        (("vouchers[0]",), {**ORDER, "vouchers": ORDER["vouchers"][1:]}),
        (("vouchers[-1].amount",), {**ORDER, "vouchers": [ORDER["vouchers"][0], {"voucherCode": "HIDDEN"}]}),
        (("vouchers[*]",), {**ORDER, "vouchers": []}),
        (("vouchers[?amount > `5`]",), {**ORDER, "vouchers": ORDER["vouchers"][:1]}),
        (("vouchers[?pin].voucherCode",), {**ORDER, "vouchers": [{"pin": 1, "amount": 5}, ORDER["vouchers"][1]]}),
        (("billing.contact.email",), {**ORDER, "billing": {"contact": {"phone": "1"}}}),
        (("billing.*.phone",), {**ORDER, "billing": {"contact": {"email": "a@b.c"}}}),
        (("billing.*",), {**ORDER, "billing": {}}),
        (("rows[].pin",), {**ORDER, "rows": [[{}], {}]}),
        (("vouchers[*][].pin",), {**ORDER, "vouchers": [{"voucherCode": "SECRET", "amount": 5}, ORDER["vouchers"][1]]}),
        (("vouchers[].pin[]",), {**ORDER, "vouchers": [{"voucherCode": "SECRET", "amount": 5}, ORDER["vouchers"][1]]}),
        (("nothing.there", "id.x", "vouchers[9]", "billing[0]", "id[*].x"), ORDER),
    ],
    ids=str,
)
def test_what_a_path_finds_is_gone_and_nothing_else(paths: tuple[str, ...], left: dict[str, Any]) -> None:
    """A path removes what it finds, in any depth; one that finds nothing removes nothing."""
    kept = without(copy.deepcopy(ORDER), paths)
    assert kept == {name: value for name, value in left.items() if value is not None}


@pytest.mark.parametrize(
    "text", ["length(vouchers)", "[id, vouchers]", "{a: id}", "a || b", "a[0:2]", "@", "a | b", "a ="]
)
def test_what_stands_nowhere_in_the_document_cannot_be_dropped(text: str) -> None:
    """What computes, cuts or joins is refused: nobody may believe it removed."""
    with pytest.raises(NoExpression):
        steps(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
paths = st.lists(st.sampled_from(["a", "b", "[0]", "[*]", "*", "[]", "[?a]"]), min_size=1, max_size=4).map(
    lambda parts: ".".join(parts).replace(".[", "[")
)


def is_hollow(value: Any) -> bool:
    """Whether there is nothing in a value but empty lists."""
    return all(map(is_hollow, value)) if isinstance(value, list) else value in ({}, None)


@given(document=json_values, path=paths)
def test_dropping_never_fails_and_leaves_nothing_to_be_found(document: Any, path: str) -> None:
    """Whatever the document is, a path without an index finds nothing more, or empty lists, once it was dropped."""
    kept = without(copy.deepcopy(document), (path,))
    json.dumps(kept)
    if "[0]" not in path:
        assert is_hollow(found(path, kept))
