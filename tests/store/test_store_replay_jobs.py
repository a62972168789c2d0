"""Stored replays: a fixed set, oldest first, each item once whatever happens in between."""

from dataclasses import replace
from datetime import timedelta

import pytest

from relay.ids import fresh_id
from relay.model import Event, Rate, Route
from relay.store import Retention
from relay.store.replays import Advanced, JobState, Replayable, ReplayFilter, ReplayJob
from relay.store.sqlite import SqliteStore
from tests.support.store_backends import SqliteBackend, kept
from tests.support.store_parts import (
    NOW,
    SECOND,
    Watch,
    ids,
    killed,
    one,
    settlement,
    stored,
    taken,
    towards,
)

LATER = NOW + timedelta(hours=1)
ALL = towards("crm", "books")
DEAD = ReplayFilter(Replayable.DEAD)


def a_job(wanted: ReplayFilter = DEAD) -> ReplayJob:
    """A job that is still to be stored."""
    return ReplayJob(fresh_id("rpl", NOW), wanted, Rate(50, SECOND), NOW)


async def dead(store: SqliteStore, *targets: str, **parts: object) -> Event:
    """An event that its targets have refused for good."""
    event = await stored(store, *targets, **parts)  # type: ignore[arg-type]
    for target in targets:
        await killed(store, await one(store, target, now=LATER))
    return event


async def advanced(store: SqliteStore, job: ReplayJob, number: int = 100) -> ReplayJob:
    """The job after so many items."""
    found = (await store.replays.advance(job.id, number, ALL, now=LATER)).job
    assert found is not None
    return found


def items(backend: SqliteBackend) -> list[tuple[str, str]]:
    """What is left of all sets: (event id, target), in order."""
    return backend.rows(
        """SELECT e.id, i.target FROM replay_item i JOIN event e ON e.seq = i.event_seq
        ORDER BY i.replay_seq, i.event_seq, i.target"""
    )


async def test_a_job_replays_its_set_oldest_first(store: SqliteStore, backend: SqliteBackend) -> None:
    """In parts, counted after each; the last ends it. What died later is not of the set."""
    first, second = await dead(store, "crm", "books"), await dead(store, "crm")
    job = await store.replays.create(a_job())
    assert (job.state, job.total, job.done) == (JobState.RUNNING, 3, 0)
    assert await store.replays.job(job.id) == job
    await dead(store, "crm")
    assert items(backend) == [(first.id, "books"), (first.id, "crm"), (second.id, "crm")]
    step = await store.replays.advance(job.id, 2, ALL, now=LATER)
    assert step == Advanced(replace(job, done=2), frozenset({"crm", "books"}))
    assert await kept(store, "crm", "books") == backend.counted()
    assert ids(await taken(store, now=LATER, limit=9)) == [first.id]
    over = await advanced(store, job)
    assert over == replace(job, done=3, state=JobState.DONE, ended_at=LATER)
    assert await store.replays.job(job.id) == over
    assert items(backend) == []
    assert ids(await taken(store, now=LATER, limit=9)) == [second.id]
    assert await advanced(store, job) == over


async def test_a_filter_finds_what_it_says(store: SqliteStore) -> None:
    """All that is given holds; the count is the set's size, by target."""
    day = timedelta(days=1)

    async def at(when: timedelta, *targets: str, **parts: object) -> Event:
        moment = NOW - when
        return await dead(store, *targets, at=moment, name=fresh_id("evt", moment), **parts)

    await at(3 * day, "crm", "books", source="shop", kind="order.paid")
    await at(2 * day, "crm", source="shop", kind="order.lost")
    await at(1 * day, "crm", source="bank", kind="order.paid")
    for wanted, number in (
        (DEAD, {"crm": 3, "books": 1}),
        (replace(DEAD, since=NOW - 2 * day), {"crm": 2}),
        (replace(DEAD, until=NOW - 2 * day), {"crm": 1, "books": 1}),
        (replace(DEAD, since=NOW), {}),
        (replace(DEAD, source="shop"), {"crm": 2, "books": 1}),
        (replace(DEAD, type="*.paid"), {"crm": 2, "books": 1}),
        (replace(DEAD, type="order.[!p]*"), {"crm": 1}),
        (replace(DEAD, target="books"), {"books": 1}),
        (replace(DEAD, target="nobody"), {}),
        (replace(DEAD, limit=2), {"crm": 1, "books": 1}),
        (replace(DEAD, source="shop", type="*.paid", target="crm", since=NOW - 4 * day, limit=9), {"crm": 1}),
        (ReplayFilter(Replayable.DELIVERED), {}),
        (ReplayFilter(Replayable.UNROUTED), {}),
    ):
        assert await store.replays.count(wanted) == number, wanted
        job = await store.replays.create(a_job(wanted))
        assert job.total == sum(number.values())
        assert await store.replays.job(job.id) == job


async def test_delivered_and_unrouted_ones_are_found_among_the_others(store: SqliteStore) -> None:
    """There is no index of what has ended well; it is found all the same."""
    delivered = await stored(store, "crm", "books")
    for target in ("crm", "books"):
        await store.settle(settlement(await one(store, target)))
    await dead(store, "crm")
    await stored(store, "crm")
    await stored(store)
    assert await store.replays.count(ReplayFilter(Replayable.DELIVERED)) == {"crm": 1, "books": 1}
    assert await store.replays.count(ReplayFilter(Replayable.DELIVERED, target="crm")) == {"crm": 1}
    assert await store.replays.count(ReplayFilter(Replayable.UNROUTED)) == {"": 1}
    job = await store.replays.create(a_job(ReplayFilter(Replayable.DELIVERED, target="crm")))
    assert (await advanced(store, job)).done == 1
    (again,) = [claim for claim in await taken(store, limit=9, now=LATER) if claim.replayed]
    assert (again.event.id, again.attempt) == (delivered.id, 2)


@pytest.mark.row("H60")
async def test_what_is_not_to_be_replayed_any_more_is_skipped(store: SqliteStore, backend: SqliteBackend) -> None:
    """Pending or under way already, delivered by another replay, its event or its target gone: each counts as skipped,
    and nothing of it changes."""
    names = ("pending", "under way", "delivered", "gone", "of a target that is gone", "dead")
    events = {name: await dead(store, "strange" if "target" in name else "crm") for name in names}
    job = await store.replays.create(a_job())
    for name in ("under way", "delivered", "pending"):
        await store.replays.event(events[name].id, ALL, now=LATER)
        if name != "pending":
            claim = await one(store, now=LATER)
        if name == "delivered":
            await store.settle(settlement(claim))
    assert await store.erase(events["gone"].id) == 1
    before = backend.deliveries()
    over = await advanced(store, job)
    assert (over.state, over.done, over.skipped, over.total) == (JobState.DONE, 1, 5, 6)
    after = backend.deliveries()
    assert [key[0] for key in after if after[key] != before[key]] == [events["dead"].id]
    assert await kept(store, "crm", "strange") == backend.counted()


def backend_seq(backend: SqliteBackend, event: Event) -> int:
    """An event's number."""
    ((seq,),) = backend.rows("SELECT seq FROM event WHERE id = ?", event.id)
    return int(seq)


async def test_two_jobs_with_the_same_set_replay_it_once(store: SqliteStore, backend: SqliteBackend) -> None:
    """Whichever comes first; for the other it waits already."""
    await dead(store, "crm")
    jobs = [await store.replays.create(a_job()) for _ in range(2)]
    assert [(await advanced(store, job)).done for job in jobs] == [1, 0]
    assert backend.rows("SELECT replays FROM delivery") == [(1,)]


async def test_unrouted_events_are_routed_anew_when_their_turn_comes(
    store: SqliteStore, backend: SqliteBackend
) -> None:
    """By the routes of that moment. Those that no route wants, and those that have got a delivery, are skipped."""
    wanted, unwanted, routed = [await stored(store, kind=kind) for kind in ("paid", "lost", "paid")]
    job = await store.replays.create(a_job(ReplayFilter(Replayable.UNROUTED)))
    assert job.total == 3
    await store.replays.event(routed.id, ALL, now=NOW, target="books")
    anew = towards("crm", "books", routes=[Route("r", frozenset({"partner"}), ("crm", "books"), ("paid",))])
    over = await store.replays.advance(job.id, 9, anew, now=LATER)
    assert over.job is not None
    assert (over.job.done, over.job.skipped, over.targets) == (1, 2, {"crm", "books"})
    assert backend.deliveries().keys() == {(wanted.id, "crm"), (wanted.id, "books"), (routed.id, "books")}
    assert unwanted.id in backend.event_ids()
    assert await kept(store, "crm", "books") == backend.counted()


async def test_a_paused_job_stands_still_until_it_is_resumed(store: SqliteStore, backend: SqliteBackend) -> None:
    """After the answer nothing more of it is replayed; nothing is forgotten either."""
    for _ in range(3):
        await dead(store, "crm")
    job = await store.replays.create(a_job())
    await advanced(store, job, 1)
    paused = await store.replays.steer(job.id, JobState.PAUSED, "by hand", now=LATER)
    assert paused is not None
    assert (paused.before.state, paused.job.state, paused.job.reason) == (JobState.RUNNING, JobState.PAUSED, "by hand")
    assert await advanced(store, job) == paused.job
    assert len(items(backend)) == 2
    resumed = await store.replays.steer(job.id, JobState.RUNNING, "", now=LATER)
    assert resumed is not None
    assert (resumed.job.state, resumed.job.reason, resumed.job.done) == (JobState.RUNNING, "", 1)
    assert (await advanced(store, job)).done == 3


async def test_a_cancelled_job_is_over_and_its_set_is_thrown_away(store: SqliteStore, backend: SqliteBackend) -> None:
    """What it has replayed stays so; it cannot be resumed."""
    for _ in range(3):
        await dead(store, "crm")
    job = await store.replays.create(a_job())
    other = await store.replays.create(a_job())
    await advanced(store, job, 1)
    cancelled = await store.replays.steer(job.id, JobState.CANCELLED, "by hand", now=LATER)
    assert cancelled is not None
    assert (cancelled.job.state, cancelled.job.ended_at) == (JobState.CANCELLED, LATER)
    for to in JobState:
        again = await store.replays.steer(job.id, to, "", now=LATER)
        assert again is not None
        assert again.job == again.before == cancelled.job
    assert await store.replays.sweep() == 2
    assert await store.replays.sweep() == 0
    assert len(items(backend)) == other.total
    assert await store.replays.steer("rpl_nobody", JobState.PAUSED, "", now=LATER) is None
    assert await store.replays.job("rpl_nobody") is None
    assert (await store.replays.advance("rpl_nobody", 1, ALL, now=LATER)).job is None


async def test_jobs_are_listed_newest_first(store: SqliteStore) -> None:
    """As many as are asked for."""
    jobs = [await store.replays.create(a_job()) for _ in range(3)]
    assert await store.replays.jobs(2) == [jobs[2], jobs[1]]


async def test_an_empty_set_is_done_at_once(store: SqliteStore) -> None:
    """Nothing to do is no failure."""
    job = await store.replays.create(a_job())
    assert (job.total, (await advanced(store, job)).state) == (0, JobState.DONE)


@pytest.mark.row("H60")
async def test_killed_anywhere_each_item_is_replayed_once(store: SqliteStore, backend: SqliteBackend) -> None:
    """After any step, the files of that moment hold a job that goes on where it was, with its counts."""
    events = [await dead(store, "crm") for _ in range(5)]
    job = await store.replays.create(a_job())
    for done in range(1, 5):
        await advanced(store, job, 1)
        left = backend.after_a_kill()
        again = await left.open(Watch())
        (interrupted,) = await again.replays.interrupt("the relay was restarted")
        assert (interrupted.state, interrupted.done, interrupted.reason) == (
            JobState.PAUSED,
            done,
            "the relay was restarted",
        )
        assert (await advanced(again, job)).done == done
        assert await again.replays.interrupt("once more") == []
        await again.replays.steer(job.id, JobState.RUNNING, "", now=LATER)
        assert (await advanced(again, job)).done == 5
        assert left.rows("SELECT DISTINCT replays, state FROM delivery") == [(1, "pending")]
        assert ids(await taken(again, limit=9, now=LATER)) == [event.id for event in events]
        await again.close()


@pytest.mark.row("H60")
async def test_no_commit_lies_between_a_replay_and_its_removal_from_the_set(backend: SqliteBackend) -> None:
    """Whatever commit a kill follows: what was replayed and what is still to be are together the whole set."""
    seen: set[tuple[int, int]] = set()

    class AtEachCommit(Watch):
        def committed(self, seconds: float) -> None:
            ((replayed, left),) = backend.rows(
                "SELECT (SELECT sum(replays) FROM delivery), (SELECT count(*) FROM replay_item)"
            )
            seen.add((replayed, left))

    store = await backend.open(AtEachCommit())
    for _ in range(6):
        await dead(store, "crm")
    job = await store.replays.create(a_job())
    seen.clear()
    while (await advanced(store, job, 2)).state is JobState.RUNNING:
        pass
    assert seen == {(2, 4), (4, 2), (6, 0)}
    await store.close()


async def test_counts_stay_true_when_pruning_comes_between(store: SqliteStore, backend: SqliteBackend) -> None:
    """Retention may delete what a job still has in its set."""
    for _ in range(4):
        await dead(store, "crm")
    job = await store.replays.create(a_job())
    await advanced(store, job, 1)
    retention = Retention(timedelta(0), timedelta(0))
    assert await store.prune(retention, LATER) == 3
    over = await advanced(store, job)
    assert (over.state, over.done, over.skipped) == (JobState.DONE, 1, 3)
    assert await kept(store, "crm") == backend.counted() == {("crm", "pending"): 1}
