"""Following: what happened is read from a position on, each thing once, whoever was started anew meanwhile."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from relay.model import DeliveryState, RetryAt
from relay.store.archive import RefusedRequest
from relay.store.following import AcceptedEvent, Following, Happened, Position, RecordedAttempt, UnknownPosition
from relay.store.sqlite import SqliteStore
from tests.support.store_backends import Backend
from tests.support.store_parts import NOW, SECOND, Watch, failed, one, settlement, stored


def following(store: Any) -> Following:
    found: Following = store.following
    return found


async def refused(store: Any, source: str = "partner", *, at: Any = NOW) -> None:
    """One request that was turned away."""
    refusal = RefusedRequest(at, source, "192.0.2.1", 401, "missing_key", "no X-Key")
    await store.archive.keep_refusals([refusal], counts={source: 1}, at=refusal.received_at)


async def all_after(store: Any, position: Position, *, limit: int = 100) -> list[Happened]:
    """Everything beyond a position, read batch by batch."""
    found: list[Happened] = []
    while True:
        batch = await following(store).after(position, limit=limit)
        assert len(batch.happened) <= 3 * limit
        found += batch.happened
        position = batch.position
        if batch.is_last:
            return found


def words(found: list[Happened]) -> list[str]:
    """What happened, in short."""
    short: list[str] = []
    for one_ in found:
        match one_.what:
            case AcceptedEvent(id=event_id):
                short.append(f"accepted {event_id}")
            case RecordedAttempt(event_id=event_id, number=number):
                short.append(f"attempted {event_id} {number}")
            case RefusedRequest(source=source):
                short.append(f"refused {source}")
    return short


async def a_history(store: Any) -> list[str]:
    """Some of everything, a second apart; returns it in order."""
    first = await stored(store, "crm", "books", name="evt_a", at=NOW)
    await refused(store, at=NOW + SECOND)
    await failed(store, await one(store), again=NOW + 4 * SECOND, at=NOW + SECOND)
    await stored(store, name="evt_b", at=NOW + 3 * SECOND)
    again = await one(store, now=NOW + 9 * SECOND)
    await store.settle(settlement(again, at=NOW + 4 * SECOND))
    await refused(store, "shop", at=NOW + 9 * SECOND)
    return [
        f"accepted {first.id}",
        "refused partner",
        f"attempted {first.id} 1",
        "accepted evt_b",
        f"attempted {first.id} 2",
        "refused shop",
    ]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_all_that_happened_is_told_once_in_order_of_time(store: Any, limit: int) -> None:
    """Whatever the size of a batch: it bounds the memory and changes nothing else."""
    history = await a_history(store)
    start = await following(store).first()
    assert words(await all_after(store, start, limit=limit)) == history


async def test_every_position_goes_on_just_behind_its_own(store: Any) -> None:
    """Whoever is cut off after any one of them misses none and gets none twice."""
    history = await a_history(store)
    found = await all_after(store, await following(store).first())
    for number, happened in enumerate(found, 1):
        rest = await all_after(store, happened.position, limit=2)
        assert words(rest) == history[number:]
    assert found[-1].position == await following(store).newest()


async def test_what_happened_is_told_with_its_parts(store: Any) -> None:
    """An event with its targets, an attempt with its delivery as it stands, a refusal without secrets."""
    event = await stored(store, "crm", "books", source="shop", kind="order.paid")
    await failed(store, await one(store), again=NOW + timedelta(minutes=1))
    accepted, attempted = (one_.what for one_ in await all_after(store, await following(store).first()))
    assert accepted == AcceptedEvent(NOW, event.id, "shop", "order.paid", ("books", "crm"), len(event.body))
    assert attempted == RecordedAttempt(
        at=NOW + SECOND,
        event_id=event.id,
        source="shop",
        type="order.paid",
        target="crm",
        number=1,
        outcome="failed",
        status=500,
        duration_ms=1000,
        reason="it said failed",
        state=DeliveryState.PENDING,
        due_at=NOW + timedelta(minutes=1),
    )


async def test_who_begins_at_the_newest_hears_only_of_what_follows(store: Any) -> None:
    """Nothing old, and all that is new."""
    await a_history(store)
    newest = await following(store).newest()
    assert await all_after(store, newest) == []
    await stored(store, name="evt_new")
    assert words(await all_after(store, newest)) == ["accepted evt_new"]


async def test_who_begins_at_a_time_hears_of_what_followed_it(store: Any) -> None:
    """Of each kind, from the first that is not older."""
    history = await a_history(store)
    for seconds, left in ((-1, 6), (0, 6), (1, 5), (2, 4), (3, 3), (4, 2), (6, 1), (9, 1), (10, 0)):
        since = await following(store).first(NOW + seconds * SECOND)
        assert words(await all_after(store, since)) == history[len(history) - left :]


async def test_a_position_outlives_a_kill_of_the_process(backend: Backend, store: Any) -> None:
    """It is in the store's own numbers: after a start it goes on where it was, and numbers are never given again."""
    history = await a_history(store)
    found = await all_after(store, await following(store).first())
    after_a_kill = await backend.after_a_kill().open(Watch())
    try:
        assert words(await all_after(after_a_kill, found[2].position)) == history[3:]
        await stored(after_a_kill, name="evt_new")
        assert words(await all_after(after_a_kill, found[-1].position)) == ["accepted evt_new"]
    finally:
        await after_a_kill.close()


async def test_a_position_of_another_store_is_refused(store: Any) -> None:
    """One that has not got so far, and one of another birth: their numbers mean something else."""
    await a_history(store)
    newest = await following(store).newest()
    beyond = 1 if isinstance(store, SqliteStore) else 10**17  # several nodes leave out numbers
    for unknown in (
        Position(newest.birth, newest.event + beyond, newest.attempt, newest.refusal),
        Position(newest.birth, newest.event, newest.attempt + beyond, newest.refusal),
        Position(newest.birth, newest.event, newest.attempt, newest.refusal + beyond),
        Position(newest.birth - 1, newest.event, newest.attempt, newest.refusal),
    ):
        with pytest.raises(UnknownPosition):
            await following(store).after(unknown, limit=10)


async def test_attempts_made_at_once_come_in_the_order_of_their_record(store: Any) -> None:
    """Also where the clock went back in between: a number behind the position is never new."""
    for _ in range(3):
        await stored(store, "crm", at=NOW - timedelta(minutes=1))
    claims = [await one(store) for _ in range(3)]
    for claim, seconds in zip(claims, (5, 1, 3), strict=True):
        at = NOW + seconds * SECOND
        await store.settle(settlement(claim, RetryAt(at + SECOND, 1), at=at))
    found = await all_after(store, await following(store).first(), limit=2)
    assert words(found)[3:] == [f"attempted {claim.event.id} 1" for claim in claims]
    positions = [one_.position.attempt for one_ in found]
    numbers = [0, 1, 2, 3] if isinstance(store, SqliteStore) else sorted({*positions})  # several nodes leave out some
    assert len(numbers) == 4
    assert positions == [*[numbers[0]] * 3, *numbers[1:]]


async def test_a_commit_wakes_who_waits(store: Any) -> None:
    """Also one that came between the mark and the wait; without any, the wait ends by itself."""
    mark = following(store).mark()
    waiting = asyncio.create_task(following(store).changed(mark, within=30))
    await asyncio.sleep(0)
    await stored(store)
    async with asyncio.timeout(10):
        await waiting
        await following(store).changed(mark, within=30)
        await following(store).changed(following(store).mark(), within=0.01)


@pytest.mark.parametrize(
    "text", ["", "1-2-3", "1-2-3-4-5", "a-2-3-4", "1-2-3-", "-1-2-3-4", "1-2-3-4 ", "\uff11-2-3-4"]
)
def test_what_is_no_position_is_none(text: str) -> None:
    """Whoever sends it hears so; a position is read back as it was written."""
    assert Position.parse(text) is None
    assert Position.parse(str(Position(1, 2, 3, 4))) == Position(1, 2, 3, 4)
