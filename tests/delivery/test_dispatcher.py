"""All lanes together: on real sockets, through bugs in a loop, outages of the store, and stops."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from relay.delivery.dispatcher import Dispatcher, UnknownTarget
from relay.delivery.lane import UNSETTLED
from relay.delivery.observing import Attempted
from relay.delivery.sender import Sender
from relay.model import Event, OutcomeKind, Rate, Target, TargetHealth, TargetState, Turn
from relay.rules.egress import EgressPolicy
from relay.store import Claimed, Condition, Settled, Settlement, StoreUnavailable
from relay.store.sqlite import SqliteStore
from tests.support.enrichers import NoEnrichers
from tests.support.scripted_target import Answerer, Received, closed_port, in_turn, raw, scripted, status
from tests.support.simulation import Gateway, gateway, target
from tests.support.virtual_time import DOWN, HANGS, Reply, Script, virtual_loop, virtually

OK = status(200)
A_WHILE = timedelta(seconds=5)


def now() -> datetime:
    """The real wall clock."""
    return datetime.now(UTC)


class Witness:
    """Observer, supervisor and watcher in one, of a relay in real time."""

    def __init__(self) -> None:
        self.attempts: list[Attempted] = []
        self.told: list[TargetHealth] = []
        self.outages: list[str] = []
        self.recovered_after: list[float] = []
        self.changed = asyncio.Event()

    def attempted(self, attempt: Attempted) -> None:
        self.attempts.append(attempt)
        self.changed.set()

    def disabled(self, health: TargetHealth) -> None:
        self.told.append(health)

    def enabled(self, health: TargetHealth) -> None:
        self.told.append(health)

    def loop_failed(self, target: str, error: BaseException, *, restart_in: timedelta) -> None:
        raise AssertionError(error)

    def reclaimed(self, number: int) -> None:
        pass

    def loops_keep_failing(self, error: BaseException) -> None:
        raise AssertionError(error)

    def committed(self, seconds: float) -> None:
        self.changed.set()

    def unavailable(self, reason: str) -> None:
        self.outages.append(reason)
        self.changed.set()

    def recovered(self, seconds: float) -> None:
        self.recovered_after.append(seconds)
        self.changed.set()

    def kinds(self, target: str = "crm") -> list[OutcomeKind]:
        """What the attempts at a target came to, in the order of their records."""
        return [one.sent.outcome.kind for one in self.attempts if one.claim.target == target]

    async def until_attempts(self, number: int) -> None:
        """Wait until so many attempts are recorded."""
        while len(self.attempts) < number:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)


class Relay:
    """Dispatcher, store and senders as they are run."""

    def __init__(self, store: SqliteStore, dispatcher: Dispatcher, witness: Witness) -> None:
        self.store, self.dispatcher, self.witness = store, dispatcher, witness
        self._numbers = 0

    async def post(self, *targets: str, number: int = 1, body: bytes = b"{}") -> None:
        """Accept events, as the ingress does."""
        for _ in range(number):
            self._numbers += 1
            await self.store.accept(Event(f"evt_{self._numbers:04}", "shop", "order", now(), (), body), targets)


@asynccontextmanager
async def real_relay(home: Path, *targets: Target) -> AsyncIterator[Relay]:
    """A relay in real time on real sockets."""
    witness = Witness()
    store = await SqliteStore.open(home / "relay.db", witness)
    try:
        dispatcher = Dispatcher(
            targets,
            store,
            sender=lambda one: Sender(one, EgressPolicy(), key_headers={}, user_agent="relay/test", now=now),
            brings=NoEnrichers(),
            observer=witness,
            supervisor=witness,
            now=now,
            rng=Random(1),
        )
        await dispatcher.start({one.name: ("url", "settings") for one in targets})
        try:
            yield Relay(store, dispatcher, witness)
        finally:
            await dispatcher.stop(timedelta(seconds=0.2))
    finally:
        await store.close()


def at_port(name: str, port: int, *, schedule: tuple[float, ...] = (0.05, 0.05), timeout: float = 5) -> Target:
    """A target on a loopback port, with waits short enough for real time."""
    return Target(
        name,
        f"http://127.0.0.1:{port}/{name}",
        timeout=timedelta(seconds=timeout),
        schedule=tuple(timedelta(seconds=wait) for wait in schedule),
    )


def rows(home: Path) -> list[tuple[str, str, int, int]]:
    """(target, state, step, attempts) of all deliveries in the file."""
    with closing(sqlite3.connect(home / "relay.db")) as db:
        return db.execute("SELECT target, state, step, attempts FROM delivery ORDER BY event_seq, target").fetchall()


# --- real sockets ---


@pytest.mark.row("B24", "F13")
async def test_a_failed_delivery_is_tried_again_with_the_same_id(tmp_path: Path) -> None:
    """In real time over real sockets: the same bytes and id, a rising `relay-attempt`, until it is taken."""
    async with (
        scripted(in_turn(status(500), raw(then="reset"), OK)) as server,
        real_relay(tmp_path, at_port("crm", server.port)) as relay,
    ):
        await relay.post("crm", body=b'{"total": 10}')
        await relay.witness.until_attempts(3)
        assert relay.witness.kinds() == [OutcomeKind.FAILED, OutcomeKind.UNREACHABLE, OutcomeKind.DELIVERED]
        assert [request.one("relay-attempt") for request in server.received] == ["1", "2", "3"]
        assert {request.one("relay-event-id") for request in server.received} == {"evt_0001"}
        assert {request.body for request in server.received} == {b'{"total": 10}'}
        assert rows(tmp_path) == [("crm", "delivered", 2, 3)]


@pytest.mark.row("F15", "F16")
@pytest.mark.parametrize(
    ("cut", "copies"),
    [
        (raw(then="close"), 3),
        (raw(then="reset"), 3),
        (raw(b"HTTP/1.1 20", then="reset", pause=0.05), 3),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n", then="close", pause=0.05), 3),
        (raw(b"HTTP/1.1 200 OK\r\n", then="reset", pause=0.05), 1),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", then="close"), 1),
    ],
    ids=["closed", "reset", "in the status line", "behind an interim answer", "behind the status line", "in the body"],
)
async def test_an_answer_that_is_lost_on_its_way_costs_one_copy_an_attempt(
    tmp_path: Path, cut: Answerer, copies: int
) -> None:
    """A target that has taken an event and cannot say so gets it again, once for each attempt, under the same id and a
    rising number; and not again once a 2xx has come as far as its status line."""
    async with (
        scripted(in_turn(cut, cut, OK)) as server,
        real_relay(tmp_path, at_port("crm", server.port)) as relay,
    ):
        await relay.post("crm", body=b'{"total": 10}')
        await relay.witness.until_attempts(copies)
        await relay.post("crm")
        await relay.witness.until_attempts(copies + 1)
        first = [request for request in server.received if request.one("relay-event-id") == "evt_0001"]
        assert [request.one("relay-attempt") for request in first] == [str(one) for one in range(1, copies + 1)]
        assert {request.body for request in first} == {b'{"total": 10}'}
        assert rows(tmp_path)[0] == ("crm", "delivered", copies - 1, copies)


@pytest.mark.row("B27")
async def test_an_event_goes_to_every_target_it_is_for(tmp_path: Path) -> None:
    """One event, many targets, one delivery each; what fails at one is delivered once at the others."""
    async with scripted(OK) as server:
        names = [f"t{number}" for number in range(50)]
        broken = at_port("broken", closed_port(), schedule=(3600,))
        async with real_relay(tmp_path, broken, *(at_port(name, server.port) for name in names)) as relay:
            await relay.post("broken", *names)
            await relay.post()
            await relay.witness.until_attempts(51)
        assert sorted(request.line.split()[1] for request in server.received) == sorted(f"/{name}" for name in names)
        assert {row[0] for row in rows(tmp_path) if row[1] == "pending"} == {"broken"}


@pytest.mark.row("F14", "F24")
async def test_a_hung_target_costs_the_others_nothing(tmp_path: Path) -> None:
    """While one target holds all its connections open without a word, nine others get everything at once."""
    async with scripted(raw(then="hang")) as hung, scripted(OK) as well:
        names = [f"t{number}" for number in range(9)]
        targets = [at_port("hung", hung.port, timeout=60), *(at_port(name, well.port) for name in names)]
        async with real_relay(tmp_path, *targets) as relay:
            began = asyncio.get_running_loop().time()
            await relay.post("hung", *names, number=40)
            await relay.witness.until_attempts(9 * 40)
            assert asyncio.get_running_loop().time() - began < 10
            assert len(well.received) == 9 * 40
            assert hung.connections == len(hung.received) == 8
            assert relay.witness.kinds("hung") == []
            (backlog,) = await relay.store.backlog(["hung"])
            assert backlog.pending + backlog.in_flight == 40


@pytest.mark.slow
async def test_a_group_keeps_its_rate_over_real_sockets(tmp_path: Path) -> None:
    """Twenty a second among three targets, one of which fails: never more beyond the burst of a second, nor much less,
    and each gets its part."""
    async with scripted(OK) as well, scripted(status(500)) as ill:
        shared = Rate(20, timedelta(seconds=1))
        ports = {"one": well.port, "two": well.port, "ill": ill.port}
        targets = [replace(at_port(name, port), rate=shared, limit_group="all") for name, port in ports.items()]
        async with real_relay(tmp_path, *targets) as relay:
            await relay.post("one", "two", "ill", number=60)
            began = asyncio.get_running_loop().time()
            await relay.witness.until_attempts(100)
            took = asyncio.get_running_loop().time() - began
        times = sorted(one.began_at for one in relay.witness.attempts)
        for first, at in enumerate(times):
            for number, other in enumerate(times[first:], 1):
                assert number <= 20 + 20 * (other - at).total_seconds() + 2, (
                    "2: an attempt begins a moment after its token"
                )
        assert took < (100 - 20) / 20 / 0.95 + 2
        counts = {name: len(relay.witness.kinds(name)) for name in ports}
        assert abs(counts["one"] - counts["two"]) < 15
        assert counts["ill"] >= 3


@pytest.mark.slow
@pytest.mark.row("B38")
async def test_an_outage_of_the_store_keeps_the_order(tmp_path: Path) -> None:
    """At an ordered target nothing follows an event whose outcome cannot be written: not until it is."""
    reached, answered = asyncio.Event(), asyncio.Event()

    async def slowly(request: object, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await answered.wait()
        await OK(request, writer)  # type: ignore[arg-type]

    async with scripted(slowly) as server:
        queue = replace(at_port("crm", server.port, timeout=30), ordered=True)
        async with real_relay(tmp_path, queue) as relay:
            await relay.post("crm", number=20)
            await reached.wait()
            with closing(sqlite3.connect(tmp_path / "relay.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                answered.set()
                while not relay.witness.outages:
                    relay.witness.changed.clear()
                    await asyncio.wait_for(relay.witness.changed.wait(), 10)
                assert relay.witness.attempts == []
                assert len(server.received) == 1
            await relay.witness.until_attempts(20)
        ids = [request.one("relay-event-id") for request in server.received]
        assert ids == [f"evt_{number:04}" for number in range(1, 21)]


@pytest.mark.row("B68")
async def test_a_large_body_is_fetched_when_it_is_sent(tmp_path: Path) -> None:
    """A body that is left in the store at the claim arrives whole."""
    body = Random(1).randbytes(300_000)
    async with scripted(OK) as server, real_relay(tmp_path, at_port("crm", server.port)) as relay:
        await relay.post("crm", body=body)
        await relay.witness.until_attempts(1)
        assert server.received[0].body == body


@pytest.mark.row("B68", "F31")
@pytest.mark.parametrize("before", [0, 8], ids=["over new connections", "over kept ones"])
async def test_a_stop_interrupts_a_hung_request_without_a_step(tmp_path: Path, before: int) -> None:
    """An attempt that does not end within the drain is cut off, recorded as interrupted, and due again."""

    async def first(request: Received, writer: asyncio.StreamWriter) -> None:
        while len(server.received) < before:  # each has a connection of its own
            await asyncio.sleep(0.001)
        await (OK if request in server.received[:before] else raw(then="hang"))(request, writer)

    async with scripted(first) as server:
        async with real_relay(tmp_path, at_port("crm", server.port, timeout=60)) as relay:
            await relay.post("crm", number=before)
            await relay.witness.until_attempts(before)
            assert server.connections == before
            await relay.post("crm", number=100)
            while len(server.received) < before + 8:
                await asyncio.sleep(0)
            names = {task.get_name().partition(" ")[0] for task in asyncio.all_tasks()}
            assert ("attempt" in names) is (before == 0)
        assert relay.witness.kinds() == [OutcomeKind.DELIVERED] * before + [OutcomeKind.INTERRUPTED] * 8
        hung = [("crm", "pending", 0, 1)] * 8 + [("crm", "pending", 0, 0)] * 92
        assert rows(tmp_path) == [("crm", "delivered", 0, 1)] * before + hung


@pytest.mark.slow
@pytest.mark.row("B38")
async def test_an_outage_of_the_store_sends_nothing_twice(tmp_path: Path) -> None:
    """Outcomes that cannot be written are kept, no attempt begins meanwhile, and all is recorded when it is over."""
    held = asyncio.Event()

    async def slowly(request: object, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        await OK(request, writer)  # type: ignore[arg-type]

    async with scripted(slowly) as server, real_relay(tmp_path, at_port("crm", server.port, timeout=30)) as relay:
        await relay.post("crm", number=30)
        while len(server.received) < 8:
            await asyncio.sleep(0)
        with closing(sqlite3.connect(tmp_path / "relay.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            held.set()
            while not relay.witness.outages:
                relay.witness.changed.clear()
                await asyncio.wait_for(relay.witness.changed.wait(), 10)
            sent_by_then = len(server.received)
            with pytest.raises(StoreUnavailable):
                await relay.dispatcher.enable("crm")
            assert relay.witness.attempts == []
            assert len(server.received) == sent_by_then
        await relay.witness.until_attempts(30)
        assert len(relay.witness.recovered_after) == 1
        assert sorted(request.one("relay-event-id") for request in server.received) == [
            f"evt_{number:04}" for number in range(1, 31)
        ]
        assert rows(tmp_path) == [("crm", "delivered", 0, 1)] * 30


async def test_a_test_by_hand_goes_the_targets_own_way_and_leaves_no_trace(tmp_path: Path) -> None:
    """`test` makes one request of type `relay.test`; nothing is stored, and neither state nor count is touched."""
    async with scripted(in_turn(OK, status(410))) as server:
        async with real_relay(tmp_path, at_port("crm", server.port)) as relay:
            assert (await relay.dispatcher.test("crm")).kind is OutcomeKind.DELIVERED
            assert (await relay.dispatcher.test("crm")).kind is OutcomeKind.GONE
            assert relay.dispatcher.health("crm").state is TargetState.ACTIVE
            assert server.received[0].one("relay-event-type") == "relay.test"
            for call in (relay.dispatcher.test("nobody"), relay.dispatcher.enable("nobody")):
                with pytest.raises(UnknownTarget):
                    await call
        assert rows(tmp_path) == []


# --- a loop that fails ---


class Failing(Gateway):
    """A gateway whose observer has a bug: it raises for some attempts."""

    raises_for: frozenset[str] = frozenset()

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.restarts: list[float] = []
        self.gave_up: list[BaseException] = []

    def attempted(self, attempt: Attempted) -> None:
        if attempt.claim.event.id in self.raises_for:
            raise RuntimeError("a bug")

    def loop_failed(self, target: str, error: BaseException, *, restart_in: timedelta) -> None:
        assert isinstance(error, RuntimeError)
        self.restarts.append(restart_in.total_seconds())

    def reclaimed(self, number: int) -> None:
        pass

    def loops_keep_failing(self, error: BaseException) -> None:
        self.gave_up.append(error)


@pytest.mark.row("F34", "B66")
@virtually
async def test_a_loop_that_fails_is_restarted(tmp_path: Path) -> None:
    """A bug is told, the loop goes on after a moment, and nothing is lost or sent again."""
    relay = Failing(tmp_path, {target(): lambda event, attempt, now: Reply()})
    relay.raises_for = frozenset({"evt_000002"})
    await relay.start()
    await relay.post("crm", number=20)
    await asyncio.sleep(0.2)
    assert relay.dispatcher.failing()
    await relay.quiet("crm", within=timedelta(seconds=10))
    assert relay.restarts == [0.5]
    assert relay.states() == {"delivered": 20}
    await asyncio.sleep(61)
    assert not relay.dispatcher.failing()
    await relay.stop()
    relay.assert_sound()


@pytest.mark.row("F34")
@virtually
async def test_five_failures_of_loops_in_a_minute_end_the_process(tmp_path: Path) -> None:
    """The waits grow, and the fifth failure within a minute is told once, as the end."""
    relay = Failing(tmp_path, {target(): lambda event, attempt, now: Reply()})
    relay.raises_for = frozenset(f"evt_{number:06}" for number in range(1, 20))
    await relay.start()
    for _ in range(10):
        await relay.post("crm")
        await asyncio.sleep(5)
    assert relay.restarts == [0.5, 1, 2, 4]
    assert len(relay.gave_up) == 1
    await relay.stop()


@pytest.mark.row("F34")
@virtually
async def test_failures_far_apart_neither_end_the_process_nor_lengthen_the_wait(tmp_path: Path) -> None:
    """A loop that has run well for a minute starts afresh with its waits."""
    relay = Failing(tmp_path, {target(): lambda event, attempt, now: Reply()})
    relay.raises_for = frozenset(f"evt_{number:06}" for number in range(1, 20))
    await relay.start()
    for _ in range(8):
        await relay.post("crm")
        await asyncio.sleep(100)
    assert relay.restarts == [0.5] * 8
    assert relay.gave_up == []
    await relay.stop()


@pytest.mark.row("F34", "B25")
@virtually
async def test_a_sender_with_a_bug_frees_its_slot_and_its_delivery(tmp_path: Path) -> None:
    """An attempt that raises is no lost slot: the claim ends with its lease, and it is tried again."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        if attempt == 1:
            raise RuntimeError("a bug")
        return Reply()

    relay = Failing(tmp_path, {target(concurrency=1): script})
    await relay.start()
    await relay.post("crm", number=3)
    await relay.quiet("crm", within=timedelta(minutes=5))
    assert relay.states() == {"delivered": 3}
    assert [request.attempt for request in relay.sends("evt_000001")] == [1, 2]
    await relay.stop()


# --- a stop ---


@pytest.mark.row("B68", "F31")
@virtually
async def test_a_stop_lets_attempts_under_way_finish_and_gives_back_the_rest(tmp_path: Path) -> None:
    """What ends within the drain is recorded, what does not is interrupted, what waited was never tried."""
    slow = {"evt_000001": Reply(200, takes=10), "evt_000002": Reply(500, takes=19), "evt_000003": Reply(200, takes=40)}

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return slow.get(event.id, Reply()) if attempt == 1 else Reply()

    relay = Gateway(tmp_path, {target(concurrency=3): script})
    await relay.start()
    await relay.post("crm", number=100)
    await asyncio.sleep(5)
    began = relay.now()
    await relay.stop()
    assert 20 <= relay.since(began) < 22.5
    stand = {row.event: (row.state, row.step, row.attempts, row.outcome) for row in relay.rows().values()}
    assert stand.pop("evt_000001") == ("delivered", 0, 1, "delivered")
    assert stand.pop("evt_000002") == ("pending", 1, 1, "failed")
    assert stand.pop("evt_000003") == ("pending", 0, 1, "interrupted")
    assert set(stand.values()) == {("pending", 0, 0, None)}
    await relay.start()
    await relay.quiet("crm", within=timedelta(minutes=2))
    await relay.stop()
    assert relay.states() == {"delivered": 100}
    assert len(relay.requests) == 102
    relay.assert_sound()


@pytest.mark.row("B68")
@pytest.mark.parametrize("turns", range(0, 12, 2))
@virtually
async def test_a_stop_at_the_time_of_a_probe_leaves_nothing_half_done(tmp_path: Path, turns: int) -> None:
    """A probe that is chosen as the stop comes is finished or given back, its number untouched."""
    async with gateway(tmp_path, {target(disable_after=1): lambda event, attempt, now: DOWN}) as relay:
        await relay.post("crm", number=3)
        await asyncio.sleep(1)
        probe_at = relay.health("crm").probe_at
        assert probe_at is not None
        await asyncio.sleep((probe_at - relay.now()).total_seconds())
        for _ in range(turns):
            await asyncio.sleep(0)
        await relay.stop()
        assert all(request.kind is not None for request in relay.requests)
        await relay.start()
        assert sum(row.attempts for row in relay.rows().values()) == len(relay.requests)
        relay.assert_sound()


@virtually
async def test_switching_off_while_a_probe_is_chosen_begins_none(tmp_path: Path) -> None:
    """Between the choice of a probe and its begin the operator's word counts already."""
    async with gateway(tmp_path, {target(disable_after=1): lambda event, attempt, now: DOWN}) as relay:
        await relay.post("crm", number=3)
        await asyncio.sleep(1)
        probe_at = relay.health("crm").probe_at
        assert probe_at is not None
        loop = asyncio.get_running_loop()
        at = loop.time() + (probe_at - relay.now()).total_seconds()
        switched: list[asyncio.Task[TargetHealth]] = []
        loop.call_at(at, lambda: switched.append(loop.create_task(relay.dispatcher.disable("crm", "by hand"))))
        await asyncio.sleep(3600)
        assert (await switched[0]).state is TargetState.DISABLED
        assert len([one for one in relay.requests if one.turn is Turn.PROBE]) <= 1
        assert relay.states() == {"pending": 3}
        assert sum(row.attempts for row in relay.rows().values()) == len(relay.requests)
        relay.assert_sound()


@virtually
async def test_what_readiness_asks_of_the_loops(tmp_path: Path) -> None:
    """Loops beat, and nothing due is left unclaimed, also while a target hangs, is throttled, or is disabled."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return {0: HANGS, 1: Reply(429, retry_after="600"), 2: Reply(410)}[int(event.id[-1]) % 3]

    async with gateway(tmp_path, {target(): script}) as relay:
        for _ in range(30):
            await relay.post("crm")
            await asyncio.sleep(30)
            assert relay.dispatcher.stale_lanes() == []
            assert await relay.dispatcher.unclaimed() == frozenset()
        assert list(relay.dispatcher.targets) == ["crm"]
        relay.assert_sound()


@virtually
async def test_what_others_cancel_is_not_recorded_as_our_own_stop(tmp_path: Path) -> None:
    """Whoever cancels an attempt means it to end there and then, as the end of the event loop does. Its delivery is
    taken back when its lease is over, and what came of it is not made up."""

    def hangs_once(_: Event, attempt: int, __: datetime) -> Reply:
        return HANGS if attempt == 1 else Reply(200)

    async with gateway(tmp_path, {target(): hangs_once}) as relay:
        await relay.post("crm")
        await asyncio.sleep(1)
        (attempt,) = [task for task in asyncio.all_tasks() if task.get_name().startswith("attempt ")]
        attempt.cancel()
        await asyncio.sleep(1)
        assert attempt.cancelled()
        assert relay.states() == {"in_flight": 1}
        await asyncio.sleep(600)
        assert relay.states() == {"delivered": 1}
        assert [request.attempt for request in relay.requests] == [1, 2]


@virtually
async def test_claims_that_cannot_be_given_back_are_due_when_their_lease_is_over(tmp_path: Path) -> None:
    """A store that is out just then costs them a wait, and nobody an error."""
    complaints: list[dict[str, Any]] = []
    virtual_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def out(_: object) -> None:
        raise StoreUnavailable("out")

    async with gateway(tmp_path, {target(concurrency=1): lambda event, attempt, now: Reply(200, takes=1.0)}) as relay:
        await relay.post("crm", number=20)
        await asyncio.sleep(5.5)
        assert relay.states()["in_flight"] > 1
        give_back, relay.store.release = relay.store.release, out  # type: ignore[method-assign,assignment]
        await relay.dispatcher.disable("crm", "by hand")
        await asyncio.sleep(2)
        relay.store.release = give_back  # type: ignore[method-assign]
        assert relay.states()["in_flight"] > 0
        await asyncio.sleep(600)
        assert relay.states() == {"delivered": len(relay.requests), "pending": 20 - len(relay.requests)}
        gc.collect()
        assert complaints == []


@pytest.mark.parametrize("burst", [50, 2 * UNSETTLED], ids=["handed over as they come", "waiting"])
@virtually
async def test_no_more_is_begun_than_the_store_can_record(tmp_path: Path, burst: int) -> None:
    """A target that is quicker than the disk would be sent thousands of events of which a kill knows nothing."""
    may_record = asyncio.Event()
    async with gateway(tmp_path, {target(concurrency=64): lambda event, attempt, now: Reply(200)}) as relay:
        record = relay.store.settle

        async def later(settlement: Settlement) -> Settled:
            await may_record.wait()
            return await record(settlement)

        relay.store.settle = lambda one: asyncio.ensure_future(later(one))  # type: ignore[method-assign]
        for _ in range(2 * UNSETTLED // burst):
            await relay.post("crm", number=burst)
            await asyncio.sleep(0.1)
        await asyncio.sleep(15)
        assert UNSETTLED < len(relay.requests) <= UNSETTLED + 64
        may_record.set()
        await relay.quiet("crm", within=timedelta(minutes=2))
        assert relay.states() == {"delivered": 2 * UNSETTLED}
        relay.assert_sound()


@virtually
async def test_what_is_claimed_is_not_begun_while_the_store_takes_nothing(tmp_path: Path) -> None:
    """It could not be recorded either."""
    async with gateway(tmp_path, {target(concurrency=1): lambda event, attempt, now: Reply(200, takes=1.0)}) as relay:
        await relay.post("crm", number=20)
        await asyncio.sleep(5.5)
        begun = len(relay.requests)
        assert relay.states()["in_flight"] > 1
        condition = relay.store.condition
        relay.store.condition = lambda: Condition(writable=False, reason="out")  # type: ignore[method-assign]
        await asyncio.sleep(10)
        assert len(relay.requests) == begun
        relay.store.condition = condition  # type: ignore[method-assign]
        await relay.quiet("crm", within=timedelta(minutes=1))
        assert relay.states() == {"delivered": 20}


@virtually
async def test_due_deliveries_that_nobody_takes_are_noticed(tmp_path: Path) -> None:
    """A claim that finds nothing although something is due, by whatever bug, does not look like a quiet target: what is
    due is asked of the store. Once it is taken, all is well again."""

    async def nothing(*_: object, **__: object) -> Claimed:
        return Claimed(())

    async with gateway(tmp_path, {target(): lambda event, attempt, now: Reply(200)}) as relay:
        relay.store.serve(None)
        claim, relay.store.claim = relay.store.claim, nothing  # type: ignore[method-assign]
        await relay.post("crm")
        relay.dispatcher.wake(["crm"])
        for seconds, found in ((50, frozenset[str]()), (20, frozenset({"crm"}))):
            await asyncio.sleep(seconds)
            with virtual_loop().really():
                assert await relay.dispatcher.unclaimed() == found
        relay.store.claim = claim  # type: ignore[method-assign]
        await asyncio.sleep(30)
        assert relay.states() == {"delivered": 1}
        with virtual_loop().really():
            assert await relay.dispatcher.unclaimed() == frozenset()


@virtually
async def test_what_waits_for_a_slot_a_step_or_an_operator_is_not_unclaimed(tmp_path: Path) -> None:
    """A target that hangs, one that is paced, and one that is disabled are no fault of the loops."""

    def always(reply: Reply) -> Script:
        return lambda event, attempt, now: reply

    scripts = {
        target("hung", concurrency=1, timeout=timedelta(minutes=10)): HANGS,
        target("paced"): DOWN,
        target("off"): Reply(200),
    }
    async with gateway(tmp_path, {one: always(reply) for one, reply in scripts.items()}) as relay:
        await relay.dispatcher.disable("off", "by hand")
        await relay.post("hung", "paced", "off", number=3)
        for _ in range(8):
            await asyncio.sleep(61)
            with virtual_loop().really():
                assert await relay.dispatcher.unclaimed() == frozenset()


@virtually
async def test_a_loop_that_is_dead_is_noticed(tmp_path: Path) -> None:
    """It turns no more, and that is seen within little more than a minute."""
    async with gateway(tmp_path, {target(): lambda event, attempt, now: Reply(200)}) as relay:
        relay.dispatcher._loops["crm"].cancel()
        await asyncio.sleep(59)
        assert relay.dispatcher.stale_lanes() == []
        await asyncio.sleep(12)
        assert relay.dispatcher.stale_lanes() == ["crm"]
