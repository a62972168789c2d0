"""A disk whose locks, maps and opens fail, and that gets well: what SQLite holds of them must get well too."""

import errno
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.disk_runs import Run, survive, swept
from tests.support.faulty_disk import Call, Fault, quick_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

AT_THE_START = (1, 2, 3, 5, 8, 10, 16)
"""The locks of a start: the guard's, the file's, the index's."""
OF_A_LIFE = (*AT_THE_START, 25, 38, 47, 62, 74, 86, 98, 122, 134)
"""Claims, accepts and settlements; one that is not let go of bars the next for as long as SQLite tries by itself."""
ABREAST = 16
"""Most of these runs is waiting: SQLite asks for a lock again and again, for ten seconds."""


@pytest.fixture
def base() -> Iterator[Path]:
    """Where the stores are: in memory, whose calls are as real and cost nothing."""
    with quick_place() as place:
        yield place


async def once_or_for_a_while(run: Run, fault: Fault) -> None:
    """What fails more than once is healed after a second."""
    await survive(run, fault, heal_after=None if fault.first == fault.last else 1.0)


def failing_locks(numbers: Iterable[int]) -> Iterator[Fault]:
    """The n-th alone, and all from the n-th on."""
    for n in numbers:
        yield from (Fault(Call.LOCK, errno.EIO, n, n), Fault(Call.LOCK, errno.EIO, n))


async def refused(run: Run, fault: Fault) -> str:
    """Why a start is refused, nothing where it is not; the same store starts when the disk is well."""
    run.disk.order(fault)
    if await run.start():
        return ""
    run.check_refused_start()
    reason: str = run.said("relay.start_refused")[0]["reason"]
    assert reason.endswith(("Input/output error", "disk I/O error")), reason
    run.disk.heal()
    assert await run.start()
    assert await run.stop() == 0
    run.check_log()
    return reason


@pytest.mark.row("F4", "B1", "B35")
async def test_locks_that_fail_bar_nobody_once_the_disk_is_well(base: Path) -> None:
    """Not to be had or not to be let go of, at the start or later, once or for a while: everything is taken and shown
    in the end, and no restart is needed."""
    await swept(failing_locks(OF_A_LIFE), base, once_or_for_a_while, abreast=ABREAST)


@pytest.mark.row("F4")
async def test_a_start_that_gets_no_lock_says_so_and_blames_no_program(base: Path) -> None:
    """Exit code 74 and what the system says; SQLite itself takes a failed lock on the index for another program's."""
    faults = [Fault(Call.LOCK, errno.EIO, n) for n in (*AT_THE_START, 33, 35)]
    reasons = [str(reason) for reason in await swept(faults, base, refused, abreast=ABREAST)]
    assert all(reasons[: len(AT_THE_START)])
    assert any("-shm: cannot be locked" in reason or "relay.db: cannot be locked" in reason for reason in reasons)


@pytest.mark.row("F4", "B1", "B35")
async def test_a_recovery_is_tried_until_all_that_it_needs_is_there(base: Path) -> None:
    """In an outage the file cannot be opened either, or its index cannot be made; then the disk is well."""
    kinds = ((Call.WRITE | Call.OPEN, errno.EMFILE), (Call.WRITE | Call.MAP | Call.TRUNCATE, errno.ENOMEM))
    faults = [Fault(calls, error, n) for calls, error in kinds for n in (1, 9, 20, 50, 130, 170)]
    await swept(faults, base, partial(survive, heal_after=1.5), abreast=ABREAST)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_the_same_holds_for_every_lock(base: Path) -> None:
    """Each one from the start on, once and for a while, and a start that gets none from it on."""
    await swept(failing_locks(range(1, 161)), base / "life", once_or_for_a_while, abreast=ABREAST)
    await swept([Fault(Call.LOCK, errno.EIO, n) for n in range(1, 36)], base / "start", refused, abreast=ABREAST)
