"""How many connections there may be, and what is never given to callers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.crowding import (
    FEWEST_ADMIN,
    FEWEST_HOOKS,
    MOST_ADMIN,
    OWN_DESCRIPTORS,
    descriptors_for,
    descriptors_needed,
    rooms,
)

requests = st.lists(st.integers(1, 1024), max_size=20)


@pytest.mark.row("T21", "F27")
@given(spare=st.integers(0, 100_000), requests=requests, most=st.integers(8, 100_000))
def test_callers_never_get_what_the_relay_itself_needs(spare: int, requests: list[int], most: int) -> None:
    """Under any limit that suffices, both listeners full to the brim leave all targets and the store their part."""
    limit = descriptors_needed(requests) + spare
    found = rooms(limit, requests, most)
    hooks = found.hooks.served + found.hooks.refused
    admin = found.admin.served + found.admin.refused
    assert OWN_DESCRIPTORS + descriptors_for(requests) + hooks + admin <= limit
    assert FEWEST_HOOKS <= hooks <= most
    assert FEWEST_ADMIN <= admin <= MOST_ADMIN


@pytest.mark.row("T21")
@given(requests=requests, most=st.integers(8, 100_000))
def test_without_a_limit_the_config_decides(requests: list[int], most: int) -> None:
    """As many as it says, those that are told 503 among them."""
    found = rooms(None, requests, most)
    assert found.hooks.served + found.hooks.refused == most
    assert found.hooks.served > 0 < found.hooks.refused


@pytest.mark.row("T21")
def test_a_limit_that_was_lowered_since_leaves_a_few() -> None:
    """The relay can still be reached, by few, where the arithmetic leaves nobody a place."""
    found = rooms(10, [1024], 4096)
    assert found.hooks.served >= 1
    assert found.admin.served >= 1


@pytest.mark.row("F27")
def test_a_small_relay_fits_into_sixty_four_descriptors() -> None:
    """One target at the default concurrency."""
    assert descriptors_needed([8]) <= 64
