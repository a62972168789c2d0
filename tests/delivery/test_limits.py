"""The rate of a target and of a group: never above it, hardly below it, and nobody starves; on virtual time."""

import asyncio
import itertools
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.delivery.dispatcher import RECLAIM_EVERY
from relay.delivery.lane import LOOK_AGAIN
from relay.delivery.limits import GRACE, Limit, Limits
from relay.model import Event, OutcomeKind, Rate, TargetState, Turn
from relay.rules.rate import rate_from
from tests.support.simulation import Gateway, gateway, target
from tests.support.virtual_time import DOWN, EPOCH, HANGS, Reply, Request, Script, virtual_loop, virtually

OK = Reply()
SECOND = timedelta(seconds=1)


def rate(text: str) -> Rate:
    """A rate as it is written."""
    found = rate_from(text)
    assert found is not None
    return found


def always(reply: Reply) -> Script:
    """A target that does the same for ever."""
    return lambda event, attempt, now: reply


def at(moment: datetime) -> float:
    """Seconds since the simulation began."""
    return (moment - EPOCH).total_seconds()


def assert_never_above(requests: Iterable[Request], limit: Rate) -> None:
    """In no window were there more requests than the burst and what the window gives."""
    a_second = limit.count / limit.span.total_seconds()
    burst = max(1.0, a_second)
    # with `number / rate - time` rising at most by the burst over any stretch, no window is above
    lowest = float("inf")
    for number, request in enumerate(sorted(requests, key=lambda one: one.at)):
        level = number - at(request.at) * a_second
        lowest = min(lowest, level)
        assert level - lowest + 1 <= burst + 0.001, f"{request} is one too many"


def within(requests: Iterable[Request], start: float, end: float) -> list[Request]:
    """The requests that began in a stretch of seconds."""
    return [one for one in requests if start <= at(one.at) < end]


@pytest.mark.parametrize(
    ("text", "seconds", "takes"),
    [
        ("1/s", 60, 0.02),
        ("150/5m", 120, 0.3),
        ("50/s", 20, 0.1),
        ("3/2s", 60, 0.5),
        ("900/s", 3, 0.002),
        ("1/m", 900, 1),
    ],
)
@virtually
async def test_a_rate_is_kept_under_load(tmp_path: Path, text: str, seconds: int, takes: float) -> None:
    """Never above in any window beyond the burst, and at least 95 % of it while there is work."""
    limit = rate(text)
    async with gateway(tmp_path, {target(rate=limit): always(Reply(takes=takes))}) as relay:
        wanted = round(limit.count / limit.span.total_seconds() * seconds)
        await relay.post("crm", number=2 * wanted + 20)
        await asyncio.sleep(seconds)
        assert_never_above(relay.requests, limit)
        assert len(relay.requests) >= 0.95 * wanted
        relay.assert_sound()


@pytest.mark.parametrize("takes", [0.02, 2.5])
@virtually
async def test_a_slow_target_is_limited_by_its_slots_and_its_rate(tmp_path: Path, takes: float) -> None:
    """Two slots and two a second: the one that lets fewer through rules, and tokens are not saved up."""
    limit = rate("2/s")
    async with gateway(tmp_path, {target(rate=limit, concurrency=2): always(Reply(takes=takes))}) as relay:
        await relay.post("crm", number=100)
        await asyncio.sleep(30)
        assert_never_above(relay.requests, limit)
        assert len(relay.requests) >= 0.95 * 30 * min(2, 2 / takes)
        relay.assert_sound()


@virtually
async def test_a_low_rate_neither_claims_ahead_nor_spins_nor_looks_idle(tmp_path: Path) -> None:
    """What waits for its token waits in the store, and a relay that waits for a rate is ready."""
    async with gateway(tmp_path, {target(rate=rate("1/10m")): always(OK)}) as relay:
        await relay.post("crm", number=20)
        await asyncio.sleep(60)
        before = relay.commits
        for _ in range(24):
            await asyncio.sleep(75)
            with virtual_loop().really():
                assert await relay.dispatcher.unclaimed() == frozenset()
                (backlog,) = await relay.store.backlog(["crm"])
            assert backlog.in_flight <= 1
        assert len(relay.requests) == 4
        by_itself = 24 * 75 / RECLAIM_EVERY.total_seconds()
        assert relay.commits - before <= by_itself + 3 * 4, "a claim, an attempt's record, and little else"
        assert {row.attempts for row in relay.rows().values()} <= {0, 1}
        relay.assert_sound()


def group(*names: str, text: str, **settings: object) -> list[object]:
    """Targets of one group."""
    return [target(name, rate=rate(text), limit_group="shared", **settings) for name in names]


@pytest.mark.parametrize("text", ["1/s", "20/s", "1/m"])
@virtually
async def test_the_targets_of_a_group_take_turns(tmp_path: Path, text: str) -> None:
    """They share one bucket, evenly, however much each has to send."""
    limit = rate(text)
    seconds = 60 * limit.span.total_seconds() / min(limit.count, 10)
    one, other, third = group("one", "other", "third", text=text)
    scripts = {one: always(OK), other: always(Reply(takes=0.2)), third: always(Reply(500))}
    async with gateway(tmp_path, scripts) as relay:  # type: ignore[arg-type]
        number = int(limit.count / limit.span.total_seconds() * seconds)
        await relay.post("one", number=3 * number)
        await relay.post("other", number=3 * number)
        await asyncio.sleep(seconds)
        assert_never_above(relay.requests, limit)
        assert len(relay.requests) >= 0.95 * number
        counts = [len([r for r in relay.requests if r.target == name]) for name in ("one", "other")]
        assert abs(counts[0] - counts[1]) <= 0.1 * sum(counts) + 2, counts
        relay.assert_sound()


@virtually
async def test_a_busy_target_starves_no_other_of_its_group(tmp_path: Path) -> None:
    """Who sends seldom waits for two tokens at most, while its neighbour has thousands to send."""
    busy, calm = group("busy", "calm", text="2/s")
    async with gateway(tmp_path, {busy: always(OK), calm: always(OK)}) as relay:  # type: ignore[dict-item]
        await relay.post("busy", number=2000)
        for _ in range(20):
            await asyncio.sleep(3.1)
            (event,) = await relay.post("calm")
            await asyncio.sleep(1.3)
            assert [one.kind for one in relay.sends(event)] == [OutcomeKind.DELIVERED]
        assert_never_above(relay.requests, rate("2/s"))
        assert len(relay.requests) >= 0.95 * 2 * at(relay.now())
        relay.assert_sound()


@pytest.mark.parametrize("text", ["1/m", "1/20s", "3/s"])
@virtually
async def test_who_comes_late_to_a_busy_group_has_its_turn(tmp_path: Path, text: str) -> None:
    """After one token for each of the others at the latest, also where that is too far off to claim anything yet."""
    names = ("one", "two", "three", "late")
    scripts = {each: always(OK) for each in group(*names, text=text)}
    async with gateway(tmp_path, scripts) as relay:  # type: ignore[arg-type]
        for name in names[:3]:
            await relay.post(name, number=200)
        interval = rate(text).span.total_seconds() / rate(text).count
        await asyncio.sleep(10 * interval)
        for _ in range(5):
            (event,) = await relay.post("late")
            await asyncio.sleep(4 * interval + 0.5)
            assert [one.kind for one in relay.sends(event)] == [OutcomeKind.DELIVERED]
        assert_never_above(relay.requests, rate(text))
        counts = [len([one for one in relay.requests if one.target == name]) for name in names[:3]]
        assert max(counts) - min(counts) <= 5, "the burst of the start, and a turn"
        assert len(relay.requests) >= 0.95 * at(relay.now()) / interval
        relay.assert_sound()


@pytest.mark.parametrize("how", ["hangs", "disabled", "throttled", "removed"])
@virtually
async def test_who_cannot_send_holds_up_no_other_of_its_group(tmp_path: Path, how: str) -> None:
    """Whatever keeps one target from its turn, the rate is the others' to use."""
    well, ill = group("well", "ill", text="2/s", concurrency=1)
    reply = {"hangs": Reply(takes=3600), "throttled": Reply(429, retry_after="3600")}.get(how, OK)
    scripts = {well: always(OK), ill: always(reply)}
    async with gateway(tmp_path, scripts) as relay:  # type: ignore[arg-type]
        await relay.post("well", "ill", number=300)
        await asyncio.sleep(5)
        if how == "disabled":
            await relay.dispatcher.disable("ill", "by hand")
        if how == "removed":
            await relay.reload({well: always(OK)})  # type: ignore[dict-item]
        began = at(relay.now())
        await asyncio.sleep(60)
        sent = [one for one in within(relay.requests, began, began + 60) if one.target == "well"]
        assert len(sent) >= 0.95 * 2 * 60 - 1
        assert_never_above(relay.requests, rate("2/s"))


@virtually
async def test_every_kind_of_request_takes_a_token(tmp_path: Path) -> None:
    """Retries, probes, the tries of arrivals, what leaves after a disabling: all of it counts."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return DOWN if 5 <= at(now) < 200 or event.id == "evt_000001" else OK

    limit = rate("1/s")
    async with gateway(tmp_path, {target(rate=limit, schedule=[1, 2, 3]): script}) as relay:
        traffic = asyncio.create_task(relay.traffic("crm", rate=0.7, seconds=300))
        await traffic
        await relay.quiet("crm", within=timedelta(hours=2))
        assert {one.turn for one in relay.requests} >= {Turn.DUE, Turn.PROBE}
        assert len(relay.told(TargetState.DISABLED)) >= 1
        assert_never_above(relay.requests, limit)
        enabled = at(relay.told(TargetState.ACTIVE)[0].at)
        assert len(within(relay.requests, enabled, enabled + 30)) >= 0.95 * 30 - 1, "the backlog leaves at the rate"
        relay.assert_sound()


@virtually
async def test_an_arrival_at_a_disabled_target_waits_for_its_token(tmp_path: Path) -> None:
    """It is tried at once where the rate allows, and not before."""
    script: Script = lambda event, attempt, now: DOWN if event.id == "evt_000001" else OK  # noqa: E731
    async with gateway(tmp_path, {target(rate=rate("1/20s")): script}) as relay:
        await relay.post("crm")
        while relay.health("crm").state is not TargetState.DISABLED:
            await asyncio.sleep(0.5)
        last = relay.requests[-1].at
        await relay.post("crm")
        await asyncio.sleep(30)
        arrival = next(one for one in relay.requests if one.turn is Turn.ARRIVAL)
        assert (arrival.at - last).total_seconds() == pytest.approx(20, abs=0.1)
        assert relay.health("crm").state is TargetState.ACTIVE
        assert_never_above(relay.requests, rate("1/20s"))
        relay.assert_sound()


@virtually
async def test_a_target_that_asked_for_silence_has_it_and_then_its_rate(tmp_path: Path) -> None:
    """`Retry-After` and the rate hold both; what was not sent meanwhile is not made up for at once."""
    script: Script = lambda event, attempt, now: Reply(429, retry_after="30") if 10 <= at(now) < 11 else OK  # noqa: E731
    limit = rate("5/s")
    async with gateway(tmp_path, {target(rate=limit): script}) as relay:
        await relay.post("crm", number=1000)
        await asyncio.sleep(100)
        assert_never_above(relay.requests, limit)
        assert within(relay.requests, 11, 40) == []
        assert len(within(relay.requests, 50, 100)) >= 0.95 * 5 * 50
        relay.assert_sound()


@pytest.mark.parametrize("kind", [Turn.PROBE, Turn.ARRIVAL])
@pytest.mark.parametrize("reply", [Reply(429, retry_after="1000"), Reply(503, retry_after="1000")])
@virtually
async def test_a_silence_that_is_asked_for_at_any_try_is_kept(tmp_path: Path, kind: Turn, reply: Reply) -> None:
    """Also by the answer to a probe or to the try of an arrival: nothing at all is sent until it is over."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        if event.id == "evt_000001" and at(now) < (900 if kind is Turn.ARRIVAL else 50):
            return DOWN
        return OK if at(now) > 1000 else reply

    async with gateway(tmp_path, {target(): script}) as relay:
        await relay.post("crm")
        while relay.health("crm").state is not TargetState.DISABLED:
            await asyncio.sleep(0.5)
        if kind is Turn.ARRIVAL:
            await relay.post("crm")
        while not (asked := [one for one in relay.requests if one.turn is kind]):
            await asyncio.sleep(0.5)
        assert asked[0].turn is kind
        await relay.post("crm", number=3)
        await relay.quiet("crm", within=timedelta(hours=30))
        assert asked[0].kind is OutcomeKind.THROTTLED
        after = next(one for one in relay.requests if one.at > asked[0].at)
        assert (after.at - asked[0].at).total_seconds() >= 1000
        relay.assert_sound()


@virtually
async def test_a_reload_gives_no_new_tokens(tmp_path: Path) -> None:
    """The bucket of a target, and of a group, goes on as it was; at another rate with what is left."""
    crm, books = target(rate=rate("10/m")), target("books", rate=rate("10/m"), limit_group="shared")
    scripts = {crm: always(OK), books: always(OK)}
    async with gateway(tmp_path, scripts) as relay:
        await relay.post("crm", "books", number=100)
        for turn in range(20):
            await asyncio.sleep(3)
            changed = target(rate=rate("10/m"), timeout=timedelta(seconds=10 + turn))
            joining = target(f"more{turn}", rate=rate("10/m"), limit_group="shared")
            await relay.reload({changed: always(OK), books: always(OK), joining: always(OK)})
        assert_never_above([one for one in relay.requests if one.target == "crm"], rate("10/m"))
        assert_never_above([one for one in relay.requests if one.target != "crm"], rate("10/m"))
        assert len([one for one in relay.requests if one.target == "crm"]) >= 9
        began = at(relay.now())
        await relay.reload({target(rate=rate("5/s")): always(OK), books: always(OK)})
        await asyncio.sleep(10)
        sent = within(relay.requests, began, began + 10)
        assert 0.95 * 50 <= len([one for one in sent if one.target == "crm"]) <= 50 + 1
        relay.assert_sound()


@pytest.mark.parametrize("end", [Gateway.restart, Gateway.crash])
@virtually
async def test_a_start_spends_one_burst_at_most(tmp_path: Path, end: object) -> None:
    """Nothing of the bucket is stored: at a low rate a start costs one request."""
    async with gateway(tmp_path, {target(rate=rate("1/m")): always(OK)}) as relay:
        await relay.post("crm", number=20)
        for _ in range(5):
            await asyncio.sleep(20)
            await end(relay)  # type: ignore[operator]
        await asyncio.sleep(20)
        assert len(relay.requests) <= 2 + 5
        relay.assert_sound(killed=end is Gateway.crash)


@virtually
async def test_a_test_by_hand_takes_a_token_and_waits_for_none(tmp_path: Path) -> None:
    """It is answered at once; what follows waits until the debt is made good."""
    async with gateway(tmp_path, {target(rate=rate("1/10s")): always(OK)}) as relay:
        for _ in range(3):
            assert (await relay.dispatcher.test("crm")).kind is OutcomeKind.DELIVERED
        assert at(relay.now()) < 1
        await relay.post("crm")
        await asyncio.sleep(60)
        assert at(relay.requests[-1].at) == pytest.approx(30, abs=0.5)
        assert len(relay.requests) == 4


@virtually
async def test_a_hung_store_makes_nobody_lose_its_turn_for_long(tmp_path: Path) -> None:
    """After the claims of one target came to nothing, both go on, at the rate."""
    one, other = group("one", "other", text="4/s")
    async with gateway(tmp_path, {one: always(HANGS), other: always(OK)}) as relay:  # type: ignore[dict-item]
        await relay.post("one", "other", number=400)
        await asyncio.sleep(60)
        assert_never_above(relay.requests, rate("4/s"))
        assert len([r for r in relay.requests if r.target == "other"]) >= 0.9 * 4 * 60 - 20
        relay.assert_sound()


# --- the queue by itself ---


def asked(limit: Limit, name: str, now: datetime) -> timedelta | None:
    """Ask for a token; who calls back is not of interest."""
    return limit.take(name, lambda: None, now)


def test_whoever_does_not_come_is_passed_over() -> None:
    """A place in the queue is worth a moment, not more; afterwards the next is first."""
    limit, now = Limit(Rate(1, SECOND)), EPOCH
    assert asked(limit, "gone", now) is None
    assert asked(limit, "gone", now) == SECOND
    assert asked(limit, "here", now) == 2 * SECOND + GRACE
    now += SECOND
    wait = asked(limit, "here", now)
    assert wait is not None, "the token is for the first"
    now += GRACE
    assert asked(limit, "here", now) is None


def test_whoever_leaves_calls_the_next() -> None:
    """A place that is given up is at once the next one's."""
    limit, called = Limit(Rate(1, SECOND)), []
    for name in ("one", "two", "three"):
        limit.take(name, lambda name=name: called.append(name), EPOCH)
    limit.take("one", lambda: None, EPOCH)
    assert limit.wait("two", EPOCH) == SECOND
    limit.leave("two", EPOCH)
    assert called == ["three"]
    assert limit.wait("three", EPOCH) == SECOND
    limit.leave("three", EPOCH)
    limit.leave("unknown", EPOCH)
    assert limit.wait("one", EPOCH) == SECOND


def test_a_clock_that_steps_back_blocks_nobody() -> None:
    """Also one who only looks, because the next token is far: it comes after its own span."""
    limit, hour = Limit(Rate(1, 3600 * SECOND)), 3600 * SECOND
    assert asked(limit, "one", EPOCH) is None
    yesterday = EPOCH - 24 * hour
    assert limit.wait("one", yesterday) == hour
    assert not limit.free_for(SECOND, yesterday + hour)
    assert limit.wait("one", yesterday + hour) == timedelta(0)
    assert limit.free_for(SECOND, yesterday + hour + SECOND)
    assert asked(limit, "one", yesterday + hour) is None


def test_tokens_ahead_are_shared_by_those_who_wait() -> None:
    """Nobody claims what will be another's."""
    limit = Limit(Rate(10, SECOND))
    assert limit.ahead("one", EPOCH, 10 * SECOND) == 110
    for _ in range(11):
        asked(limit, "one", EPOCH)
    assert limit.ahead("one", EPOCH, 10 * SECOND) == 100
    assert limit.ahead("two", EPOCH, 10 * SECOND) == 50
    assert limit.ahead("two", EPOCH, SECOND / 100) == 0


def test_a_limit_is_shared_by_name_and_lives_as_long_as_it_is_used() -> None:
    """The targets of a group have one; a target of the same name as a group has its own."""
    limits = Limits()
    one, other = (target(name, rate=rate("1/s"), limit_group="crm") for name in ("one", "other"))
    alone, free = target("crm", rate=rate("1/s")), target("free")
    first, second, own = (limits.share(each, EPOCH) for each in (one, other, alone))
    assert first is not None
    assert second is not None
    assert own is not None
    assert first.take(EPOCH, lambda: None) is None
    assert second.take(EPOCH, lambda: None) == SECOND
    assert own.take(EPOCH, lambda: None) is None
    assert limits.share(free, EPOCH) is None
    again = limits.share(target("third", rate=rate("1/s"), limit_group="crm"), EPOCH)
    assert again is not None
    assert again.wait(EPOCH) > SECOND
    assert list(itertools.islice(limits._limits, 9)) == [("group", "crm"), ("target", "crm")]
    del first, second, again
    assert list(limits._limits) == [("target", "crm")]


def test_the_queue_is_looked_at_again_well_before_it_is_forgotten() -> None:
    """The grace is short beside the pause of a lane that has nothing to do."""
    assert 10 * GRACE < LOOK_AGAIN
