"""A disk on which the n-th synchronisation fails, for every n: the whole program, from its start to its stop."""

import errno
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.disk_runs import survive, survive_at_the_stop, swept
from tests.support.faulty_disk import Call, Fault, quick_place

NUMBERS = (*range(1, 41), *range(45, 201, 31))
"""All of the start and of the first events, and some far behind; an event has two, the second a moment later."""
ERRORS = [errno.EIO, errno.ENOSPC]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def base() -> Iterator[Path]:
    """Where the stores are: in memory, whose calls are as real and cost nothing."""
    with quick_place() as place:
        yield place


@pytest.mark.row("F3", "B35")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
async def test_a_sync_that_fails_once_loses_nothing_wherever_it_is(base: Path, error: int) -> None:
    """No 200 for what is not there, one copy for the target, recovery by itself; a refused start says why."""
    await swept([Fault(Call.SYNC, error, n, n) for n in NUMBERS], base, survive)


@pytest.mark.row("F3", "B1", "B35", "B43")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
async def test_syncs_that_fail_for_a_while_are_an_outage_that_ends(base: Path, error: int) -> None:
    """From one on all fail, until the disk is well: no restart is needed."""
    faults = [Fault(Call.SYNC, error, n) for n in (1, 5, 11, 14, 15, 16, 17, 18, 40, 80, 120, 200)]
    await swept(faults, base, partial(survive, heal_after=1.0))


@pytest.mark.row("F3")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
async def test_a_sync_that_fails_at_the_stop_costs_one_copy_at_most(base: Path, error: int) -> None:
    """Counted from SIGTERM, with an attempt under way: exit code 0, and what is not recorded is sent once more."""
    struck = await swept([Fault(Call.SYNC, error, n, n) for n in range(1, 9)], base, survive_at_the_stop)
    assert sum(map(bool, struck)) >= 3
