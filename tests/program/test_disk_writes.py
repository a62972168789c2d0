"""A disk on which the n-th write fails, for every n, and other calls too: the whole program, from start to stop."""

import errno
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.support.disk_runs import Run, start_after_a_kill, states, survive, survive_at_the_stop, swept, until
from tests.support.faulty_disk import Call, Fault, How, Kind, quick_place

NUMBERS = range(1, 201)
ERRORS = [errno.EIO, errno.ENOSPC]
CHANGES = Call.WRITE | Call.SYNC | Call.TRUNCATE | Call.UNLINK | Call.OPEN | Call.MAP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def base() -> Iterator[Path]:
    """Where the stores are: in memory, whose calls are as real and cost nothing."""
    with quick_place() as place:
        yield place


@pytest.mark.row("F4", "B35")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
async def test_a_write_that_fails_once_loses_nothing_wherever_it_is(base: Path, error: int) -> None:
    """No 200 for what is not there, one copy for the target, recovery by itself; a refused start says why."""
    await swept([Fault(Call.WRITE, error, n, n) for n in NUMBERS], base, survive)


@pytest.mark.row("F4", "B1", "B35", "B43")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
async def test_writes_that_fail_for_a_while_are_an_outage_that_ends(base: Path, error: int) -> None:
    """From one on all fail, until the disk is well: no restart is needed."""
    faults = [Fault(Call.WRITE, error, n) for n in (1, 30, 60, 77, 79, 80, 90, 100, 117, 140, 200, 400)]
    await swept(faults, base, partial(survive, heal_after=1.0))


@pytest.mark.row("F4")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
async def test_a_write_that_fails_at_the_stop_costs_one_copy_at_most(base: Path, error: int) -> None:
    """Counted from SIGTERM, with an attempt under way: exit code 0, and what is not recorded is sent once more."""
    struck = await swept([Fault(Call.WRITE, error, n, n) for n in range(1, 41)], base, survive_at_the_stop)
    assert sum(map(bool, struck)) >= 20


@pytest.mark.row("F4", "C52")
@pytest.mark.parametrize(
    ("call", "error", "numbers"),
    [
        (Call.READ, errno.EIO, range(1, 31)),
        (Call.OPEN, errno.EMFILE, range(1, 13)),
        (Call.OPEN, errno.EACCES, range(1, 13)),
        (Call.OPEN, errno.EROFS, range(1, 13)),
        (Call.STAT, errno.EIO, range(1, 51)),
        (Call.TRUNCATE, errno.EIO, range(1, 3)),
        (Call.UNLINK, errno.EACCES, range(1, 2)),
        (Call.MAP, errno.ENOMEM, range(1, 2)),
        (Call.WRITE, errno.EROFS, range(5, 201, 13)),
        (Call.WRITE, errno.EDQUOT, range(6, 201, 13)),
    ],
    ids=lambda value: getattr(value, "name", None) or errno.errorcode.get(value if isinstance(value, int) else 0),
)
async def test_other_calls_that_fail_once_lose_nothing_either(
    base: Path, call: Call, error: int, numbers: range
) -> None:
    """Reads, opens, looks, cuts, deletions, the shared index, and other errors, by their number in the run."""
    faults = [Fault(call, error, n, n) for n in numbers]
    await swept(faults, base, survive)


@pytest.mark.row("F4")
async def test_a_disk_that_takes_half_of_a_write_is_given_the_rest(base: Path) -> None:
    """Short writes are no error: SQLite and the guard write on."""
    once = [Fault(Call.WRITE, first=n, last=n, how=How.HALF) for n in range(1, 201, 20)]
    guard = [Fault(Call.WRITE, first=1, files=Kind.GUARD, how=How.HALF)]
    await swept([*once, *guard, Fault(Call.WRITE, first=3, how=How.HALF)], base, survive)


async def test_a_first_start_that_is_killed_anywhere_is_followed_by_one_that_works(base: Path) -> None:
    """Whatever it leaves of a new store, of its journal, of its log: nobody has to tidy up."""
    faults = [Fault(CHANGES, first=n, last=n, how=How.KILL) for n in range(1, 110, 2)]
    killed = await swept(faults, base, start_after_a_kill)
    assert sum(map(bool, killed)) > 40


@pytest.mark.row("F8")
async def test_a_start_by_a_failing_disk_is_not_a_new_store(base: Path) -> None:
    """A store in use whose disk fails at any call of a start is refused or started, and never begun anew."""

    async def restart(run: Run, fault: Fault) -> None:
        assert await run.start()
        await run.accept("before")
        await until(lambda: set(states(run)) == {"delivered"})
        await run.kill()
        await survive(run, fault)
        assert "before" in run.promised

    faults = [Fault(call, errno.EIO, n, n) for call in (Call.READ, Call.STAT, Call.OPEN) for n in range(1, 13)]
    await swept(faults, base, restart)


@pytest.mark.row("F4")
async def test_a_copy_whose_disk_fails_is_none(base: Path) -> None:
    """Each call of a backup fails once: an answer other than 200 or one cut short, nothing left beside the store, one
    word in the log; and the next one is whole."""

    async def backup(run: Run) -> tuple[int, int]:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://{run.admin}/api/v1/backup") as answer:
                return answer.status, len(await answer.read())
        except aiohttp.ClientPayloadError:
            return 0, 0

    async def copied(run: Run, fault: Fault) -> None:
        assert await run.start()
        await run.accept("kept", size=3000)
        run.disk.order(fault)
        status, _ = await backup(run)
        assert run.disk.given == 1
        assert status in (0, 500, 503, 507)
        run.disk.heal()
        status, size = await backup(run)
        assert (status, size > 3000) == (200, True)
        assert not list(run.files.glob("*.copy-*"))
        assert await run.stop() == 0
        assert [line["message"] for line in run.said("http.error")] in ([], ["a backup was cut short"])
        run.check_log()

    calls = {Call.WRITE: (1, 2, 5), Call.OPEN: (1, 2), Call.UNLINK: (2, 3), Call.READ: (1, 2, 3)}
    faults = [Fault(call, errno.EIO, n, n, files=Kind.COPY) for call, numbers in calls.items() for n in numbers]
    await swept(faults, base, copied)
