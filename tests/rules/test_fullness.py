"""How full is too full: each state begins at one mark and ends at another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.fullness import RESERVE, Fullness, Room, judge_fullness

LIMIT = 10_000_000
MIB = 1024**2
DISK = 100 * 1024 * MIB


def room(percent: float = 0.0, *, free: int = DISK, disk: int = DISK, owed: int = 0, vacant: int = 0) -> Room:
    """So much of the limit in use, on a disk with so much left, and so much between the log and the file."""
    return Room(used=int(LIMIT * percent / 100), log=owed, free=free, disk=disk, owed=owed, vacant=vacant)


def judged(before: Fullness, at: Room, *, exhausted: bool = False) -> Fullness:
    return judge_fullness(before, at, limit=LIMIT, exhausted=exhausted)


def walked(name: str, *steps: Room, exhausted: bool = True) -> list[bool]:
    """A state after each of several looks."""
    state, seen = Fullness(), []
    for step in steps:
        state = judged(state, step, exhausted=exhausted)
        seen.append(getattr(state, name))
    return seen


@pytest.mark.parametrize(("name", "begins", "ends"), [("near", 80, 75), ("prunes", 90, 85), ("over", 95, 93)])
def test_each_state_begins_at_its_mark_and_ends_below_another(name: str, begins: int, ends: int) -> None:
    """Between the two marks it stays as it was, whichever that is."""
    steps = (begins - 0.1, begins, begins - 0.1, ends, ends - 0.1, ends, begins - 0.1, begins)
    found = walked(name, *(room(step) for step in steps))
    assert found == [False, True, True, True, False, False, False, True]


def test_while_something_may_still_go_nothing_is_refused_below_the_limit() -> None:
    """Deleting comes first; only what outruns it is refused."""
    assert walked("over", room(95), room(99.9), room(100), room(93), room(92.9), exhausted=False) == [
        False,
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(("disk", "reserve"), [(DISK, RESERVE), (200 * MIB, 10 * MIB)])
def test_a_reserve_is_kept_on_the_disk(disk: int, reserve: int) -> None:
    """64 MiB, on a small file system a twentieth; telling begins at twice the reserve."""
    frees = (
        2 * reserve,
        2 * reserve - 1,
        reserve,
        reserve - 1,
        reserve * 5 // 4 - 1,
        reserve * 5 // 4,
        reserve * 5 // 2,
    )
    steps = [room(free=free, disk=disk) for free in frees]
    assert walked("short", *steps) == [False, False, False, True, True, False, False]
    assert walked("near", *steps) == [False, True, True, True, True, True, False]


def test_a_log_is_large_by_what_else_is_free() -> None:
    """From a quarter of it on; an empty one never is."""
    sizes = (0, 0), (24, 100), (25, 100), (26, 100), (1, 0)
    logs = [Room(used=0, log=log, free=free, disk=DISK).has_large_log for log, free in sizes]
    assert logs == [False, False, False, True, True]


def test_what_waits_in_the_log_needs_its_place_on_the_disk() -> None:
    """Moved home it would leave less than the reserve: nothing new, although more is free now."""
    assert not judged(Fullness(), room(free=RESERVE + 50 * MIB, owed=50 * MIB)).short
    assert judged(Fullness(), room(free=RESERVE + 50 * MIB, owed=50 * MIB + 1)).short


def test_what_is_free_inside_the_file_is_free_as_long_as_the_log_has_room() -> None:
    """A store that is empty inside takes events on a disk that it has filled; a quarter of the reserve is the log's."""
    quarter = RESERVE // 4
    assert not judged(Fullness(), room(free=quarter, vacant=RESERVE)).short
    assert judged(Fullness(), room(free=quarter - 1, vacant=100 * RESERVE)).short
    frees = (quarter - 1, quarter * 5 // 4 - 1, quarter * 5 // 4)
    assert walked("short", *(room(free=free, vacant=DISK) for free in frees)) == [True, True, False]


def test_a_disk_that_runs_short_begins_the_deleting_before_anything_is_refused() -> None:
    """From one and a half reserves on until one and three quarters are takable, of which what is deleted is a part."""
    ends = RESERVE * 7 // 4
    lefts = (RESERVE * 3 // 2, RESERVE * 3 // 2 - 1)
    steps = [room(free=free) for free in lefts]
    steps += [room(free=lefts[1], vacant=vacant - lefts[1]) for vacant in (ends - 1, ends)]
    assert walked("prunes", *steps) == [False, True, True, False]
    assert walked("short", *steps) == [False, False, False, False]
    assert [step.lacking for step in steps[2:]] == [1, 0]


def test_nothing_is_deleted_for_the_log_alone() -> None:
    """What is deleted leaves the file as it is: the disk would be as short as before."""
    state = judged(Fullness(), room(free=0, vacant=2 * RESERVE))
    assert (state.short, state.prunes) == (True, False)


@given(free=st.integers(0, 4 * RESERVE), owed=st.integers(0, RESERVE), vacant=st.integers(0, 4 * RESERVE))
def test_what_is_allowed_before_the_next_look_leaves_the_disk_its_log(free: int, owed: int, vacant: int) -> None:
    """In the log and in the file at once; where something is taken at all it can be settled too."""
    at = room(free=free, owed=owed, vacant=vacant)
    size = at.allowance
    if size:
        after = room(free=free - size, owed=owed + max(0, size - vacant), vacant=max(0, vacant - size))
        assert after.left >= RESERVE // 4
        assert after.takable >= RESERVE // 2 - size
    if not judged(Fullness(), at).short and free >= owed + RESERVE // 2:
        assert size > 0


def test_either_shortage_alone_stops_the_accepting() -> None:
    """And only both gone begin it again."""
    assert Fullness().accepts
    assert not Fullness(over=True).accepts
    assert not Fullness(short=True).accepts


@given(st.integers(0, 2 * LIMIT), st.integers(0, DISK), st.booleans(), st.booleans(), st.booleans())
def test_a_second_look_at_the_same_changes_nothing(
    used: int, free: int, near: bool, over: bool, exhausted: bool
) -> None:
    """No state flaps by itself."""
    at = Room(used, 0, free, DISK)
    first = judged(Fullness(near=near, over=over), at, exhausted=exhausted)
    assert judged(first, at, exhausted=exhausted) == first
