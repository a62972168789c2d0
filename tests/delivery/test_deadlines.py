"""A deadline ends what takes too long, and nothing else: as `asyncio.timeout` does it, with one timer for all."""

import asyncio

import pytest

from relay.delivery.deadlines import Deadlines
from tests.support.virtual_time import virtual_loop, virtually


async def wait(deadlines: Deadlines, seconds: float) -> float:
    """Sleep under a deadline; returns when it ended."""
    with deadlines.begin():
        await asyncio.sleep(seconds)
    return asyncio.get_running_loop().time()


@virtually
async def test_what_is_in_time_is_left_alone() -> None:
    """Also one that ends just before its deadline, and one that begins after others have ended."""
    deadlines = Deadlines(2.0)
    assert await wait(deadlines, 1.9) == pytest.approx(1.9)
    assert await wait(deadlines, 1.9) == pytest.approx(3.8)


@virtually
async def test_each_is_ended_at_its_own_time() -> None:
    """However many began before it, at other times."""
    deadlines, loop = Deadlines(2.0), asyncio.get_running_loop()
    ends: list[float] = []

    async def one(begin: float, takes: float) -> None:
        await asyncio.sleep(begin)
        try:
            await wait(deadlines, takes)
        except TimeoutError:
            ends.append(loop.time())

    await asyncio.gather(one(0.0, 9), one(0.5, 1), one(0.7, 9), one(5.0, 9))
    assert ends == pytest.approx([2.0, 2.7, 7.0])


@virtually
@pytest.mark.row("F29")
async def test_time_in_which_the_whole_process_stood_still_does_not_count() -> None:
    """What came meanwhile has not been read yet; whoever waits has the rest of his time, and no more."""
    deadlines, loop = Deadlines(5.0), virtual_loop()
    with deadlines.begin() as deadline:
        await asyncio.sleep(2.5)
        assert not deadline.saw_standstill
        loop.stand_still(60)
        await asyncio.sleep(1.5)
        assert deadline.saw_standstill
    waiting = asyncio.create_task(wait(deadlines, 90))
    await asyncio.sleep(2.5)
    loop.stand_still(60)
    await asyncio.sleep(1.5)
    assert not waiting.done()
    await asyncio.sleep(1.5)
    assert isinstance(waiting.exception(), TimeoutError)
    assert not deadlines.begin().saw_standstill


@virtually
@pytest.mark.row("F29")
async def test_what_has_come_during_a_standstill_is_read_first() -> None:
    """Also where the deadline would have been the next thing to be looked at."""
    deadlines, loop = Deadlines(1.0), virtual_loop()
    with deadlines.begin():
        await asyncio.sleep(0.5)
        loop.stand_still(60)
        await asyncio.sleep(0.05)
    late = asyncio.create_task(wait(deadlines, 90))
    await asyncio.sleep(0.5)
    loop.stand_still(60)
    await asyncio.sleep(1)
    assert isinstance(late.exception(), TimeoutError)


@virtually
async def test_a_cancelled_task_stays_cancelled() -> None:
    """A cancellation from outside is not taken for a deadline, also where both come at once."""
    deadlines = Deadlines(2.0)
    early = asyncio.create_task(wait(deadlines, 9))
    late = asyncio.create_task(wait(deadlines, 9))
    await asyncio.sleep(1.0)
    early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early
    (deadline,) = deadlines.under_way
    deadline.end()
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert not deadlines.under_way


@virtually
async def test_an_error_of_its_own_passes_through() -> None:
    """What fails before its deadline fails as it is."""
    with pytest.raises(KeyError), Deadlines(2.0).begin():
        raise KeyError


@virtually
async def test_nothing_is_ended_after_a_close() -> None:
    """No timer is left behind."""
    deadlines = Deadlines(2.0)
    task = asyncio.create_task(wait(deadlines, 3))
    await asyncio.sleep(1)
    deadlines.close()
    assert await task == pytest.approx(3.0)
