"""Several nodes on one database: what each may do, and what it has of the others.

Real: the server, and the nodes, each a store of its own. Fake: time, which is an argument.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from relay.model import Claim, DisabledBy, OutcomeKind, RetryAt, TargetHealth, TargetState, Turn
from relay.store import Bid, Store, StoreUnusable
from relay.store.postgres import PostgresStore
from relay.store.postgres.connection import BEGIN
from relay.store.postgres.following import PostgresFollowing
from relay.store.postgres.numbering import FIRST
from tests.support.postgres_looking import execute
from tests.support.store_backends import PostgresBackend, kept
from tests.support.store_parts import (
    LEASE,
    NOW,
    SECOND,
    Watch,
    accepted_many,
    an_event,
    becomes,
    disabled,
    ids,
    one,
    settlement,
    stored,
    taken,
)

Nodes = list[PostgresStore]


@pytest.fixture
async def nodes(backend: PostgresBackend) -> AsyncIterator[Nodes]:
    """Three nodes on one database."""
    opened = [await PostgresStore.open(backend.url, Watch()) for _ in range(3)]
    yield opened
    await asyncio.gather(*(node.close() for node in opened))


class Lanes:
    """A claimant that takes nothing and remembers what it was told."""

    def __init__(self) -> None:
        self.healths: dict[str, TargetHealth] = {}
        self.woken: list[str] = []

    def bid(self, target: str) -> Bid | None:
        return None

    def stored(self, claims: object, waiting: Iterable[str]) -> None:
        self.woken.extend(waiting)

    def healths_seen(self, healths: Any) -> None:
        self.healths |= healths


async def test_each_delivery_is_claimed_by_one_node(nodes: Nodes, backend: PostgresBackend) -> None:
    """Whatever they ask for at the same time: together they have all, and nothing twice."""
    events = await accepted_many(nodes[0], 300, "crm")
    claimed: list[str] = []

    async def takes(node: Store) -> None:
        while claims := await taken(node, limit=7):
            claimed.extend(ids(claims))

    await asyncio.gather(*(takes(node) for node in nodes for _ in range(3)))
    while claims := await taken(nodes[0], limit=100):  # what was passed over because another was at it
        claimed.extend(ids(claims))
    assert Counter(claimed) == Counter({event.id: 1 for event in events})
    assert backend.counted() == Counter({("crm", "in_flight"): 300})


async def test_a_duplicate_is_one_whichever_nodes_it_comes_to(nodes: Nodes, backend: PostgresBackend) -> None:
    """The same keys at all nodes at once: each is stored once, and all are told of the same first event."""

    async def sent(node: Store, key: str) -> tuple[str, str, bool]:
        accepted = await node.accept(an_event(key=key), ["crm"])
        return key, accepted.event_id, accepted.duplicate

    keys = [str(number) for number in range(40)]
    answers = await asyncio.gather(
        *(sent(node, key) for place, node in enumerate(nodes) for key in (keys if place % 2 else reversed(keys)))
    )
    firsts = {key: id_ for key, id_, is_duplicate in answers if not is_duplicate}
    assert len(firsts) == len(backend.event_ids()) == 40
    assert all(firsts[key] == id_ for key, id_, _ in answers)
    assert sum(is_duplicate for *_, is_duplicate in answers) == 80


async def test_a_probe_is_sent_once_and_not_once_a_node(nodes: Nodes) -> None:
    """While one node has its probe under way no other begins one; what it has found is then known to all."""
    await accepted_many(nodes[0], 5, "crm")
    ill = disabled()._replace(probe_at=NOW, probe_wait=timedelta(minutes=1))
    await nodes[0].change_health("crm", becomes(ill))
    for node in nodes[1:]:  # each learns the health by its first question
        assert await taken(node, turn=Turn.DUE, limit=5) == []
    asked = await asyncio.gather(*(taken(node, turn=Turn.PROBE, since=NOW) for node in nodes))
    probes = [claim for claims in asked for claim in claims]
    assert len(probes) == 1
    for node in nodes:
        if not any(claims for other, claims in zip(nodes, asked, strict=True) if other is node):
            assert await taken(node, turn=Turn.PROBE, since=NOW) == []
    (owner,) = [node for node, claims in zip(nodes, asked, strict=True) if claims]
    later = ill._replace(probe_at=NOW + timedelta(minutes=2))
    await owner.settle(settlement(probes[0], RetryAt(NOW, 0), kind=OutcomeKind.FAILED, health=later))
    others = [node for node in nodes if node is not owner]
    lanes = [Lanes() for _ in others]
    for node, its in zip(others, lanes, strict=True):
        node.serve(its)
        assert await taken(node, turn=Turn.PROBE, since=NOW) == [], "the probe of before was asked for"
        assert its.healths["crm"].probe_at == later.probe_at or node._known.health["crm"].probe_at == later.probe_at


async def test_a_node_hears_that_another_has_disabled_a_target(nodes: Nodes) -> None:
    """Before it claims anything more, and by itself within a moment."""
    await accepted_many(nodes[0], 5, "crm", "books")
    first, second, third = nodes
    lanes, idle = Lanes(), Lanes()
    second.serve(lanes)
    third.serve(idle)
    (claim,) = await taken(first)
    await first.settle(settlement(claim, RetryAt(NOW, 1), kind=OutcomeKind.FAILED, health=disabled()))
    assert await taken(second, limit=5) == []
    assert lanes.healths["crm"].state is TargetState.DISABLED
    async with asyncio.timeout(10):
        while "crm" not in idle.healths:
            await asyncio.sleep(0.05)
    assert idle.healths["crm"].disabled_by is DisabledBy.FAILURES
    assert len(await taken(second, "books", limit=5)) == 5


async def test_other_nodes_hear_of_what_one_does_not_take_at_once(nodes: Nodes) -> None:
    """A hint, which costs them a look; who had given it is not woken by it."""
    lanes = [Lanes() for _ in nodes]
    for node, its in zip(nodes, lanes, strict=True):
        node.serve(its)
    async with asyncio.timeout(10):
        while not all(len(node.who()["nodes"]) == 3 for node in nodes):  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
    await stored(nodes[0], "crm")
    own = len(lanes[0].woken)
    async with asyncio.timeout(10):
        while not (lanes[1].woken and lanes[2].woken):
            await asyncio.sleep(0.05)
    assert {*lanes[1].woken, *lanes[2].woken} == {"crm"}
    assert len(lanes[0].woken) == own == 1


async def test_what_is_stored_for_a_disabled_target_is_handed_to_nobody(nodes: Nodes) -> None:
    """A lane that does not know yet that another node has disabled its target has bid for what comes."""
    first, second, _ = nodes
    handed: list[Claim] = []

    class Keen(Lanes):
        def bid(self, target: str) -> Bid | None:
            return Bid(10, NOW + LEASE)

        def stored(self, claims: Any, waiting: Iterable[str]) -> None:
            handed.extend(claims)

    second.serve(Keen())
    await stored(second, "crm")
    assert len(handed) == 1
    await first.change_health("crm", becomes(disabled()))
    await stored(second, "crm")
    assert len(handed) == 1


async def test_three_failures_are_three_wherever_they_are_recorded(nodes: Nodes) -> None:
    """Each rule is shown the health as the one before has left it, whichever node that was on."""
    await accepted_many(nodes[0], 30, "crm")
    claims = [await taken(node, limit=10) for node in nodes]
    seen: list[int] = []

    def counting(before: TargetHealth) -> Any:
        seen.append(before.failures)
        return settlement(claims[0][0], health=before._replace(failures=before.failures + 1)).rule(before)

    await asyncio.gather(
        *(
            node.settle(settlement(claim, rule=counting))
            for node, its in zip(nodes, claims, strict=True)
            for claim in its
        )
    )
    assert (await nodes[0].target_health("crm")).failures == 30
    assert set(range(30)) <= set(seen), "a transaction that is run again asks again"


async def test_an_ordered_target_has_one_delivery_under_way_over_all_nodes(nodes: Nodes) -> None:
    """The first by arrival is had by one node, and the next by none until that has ended."""
    events = [await stored(nodes[place % 3], "queue") for place in range(6)]
    got: list[str] = []
    for _ in events:
        asked = await asyncio.gather(*(taken(node, "queue", turn=Turn.FIRST) for node in nodes))
        found = [(node, claim) for node, claims in zip(nodes, asked, strict=True) for claim in claims]
        assert len(found) == 1
        for node in nodes:
            assert await taken(node, "queue", turn=Turn.FIRST) == []
        node, claim = found[0]
        got.append(claim.event.id)
        await node.settle(settlement(claim))
    assert got == [event.id for event in events]


async def test_the_work_of_a_node_that_is_gone_is_handed_over_when_its_lease_ends(nodes: Nodes) -> None:
    """Not before; and what comes late of it finds its claim lost and changes nothing."""
    gone, other, _ = nodes
    event = await stored(gone, "crm")
    late = await one(gone)
    assert await other.reclaim(NOW + LEASE - SECOND, alive=frozenset()) == 0
    assert await other.reclaim(NOW + LEASE + SECOND, alive=frozenset()) == 1
    again = await one(other, now=NOW + LEASE + SECOND)
    assert (again.event.id, again.attempt) == (event.id, 2)
    assert (await gone.settle(settlement(late))).ruling is None
    assert (await other.settle(settlement(again))).ruling is not None
    assert await kept(other, "crm") == Counter()


async def test_nodes_that_lock_much_in_other_orders_do_not_stop_each_other(nodes: Nodes) -> None:
    """Settlements of many targets, given in every order, at the same time as events and replays of the counts."""
    names = [f"t{number}" for number in range(8)]
    await accepted_many(nodes[0], 24, *names)
    claims = {
        place: [claim for name in names for claim in await taken(node, name, limit=8)]
        for place, node in enumerate(nodes)
    }
    settling = [
        nodes[place].settle(settlement(claim))
        for place, its in claims.items()
        for claim in (its if place % 2 else reversed(its))
    ]
    await asyncio.gather(*settling, *(accepted_many(node, 20, *names) for node in nodes))
    assert await kept(nodes[1], *names) == Counter({(name, "pending"): 60 for name in names})


async def test_whoever_follows_misses_nothing_of_any_node(nodes: Nodes) -> None:
    """A commit that began earlier and ended later is not passed by: every event is told once."""
    reader = nodes[0].following
    assert isinstance(reader, PostgresFollowing)
    position = await reader.newest()
    told: list[str] = []
    sent: list[str] = []

    async def writes(node: Store) -> None:
        for _ in range(15):
            events = await accepted_many(node, 5, "crm")
            sent.extend(event.id for event in events)

    writing = asyncio.gather(*(writes(node) for node in nodes))
    async with asyncio.timeout(30):
        while not writing.done() or len(told) < len(sent):
            found = await reader.after(position, limit=50)
            told += [happened.what.id for happened in found.happened]  # type: ignore[union-attr]
            position = found.position
            await asyncio.sleep(0)
    await writing
    assert Counter(told) == Counter(sent)


async def test_what_is_still_being_stored_holds_back_what_follows(nodes: Nodes, backend: PostgresBackend) -> None:
    """A transaction that began before is told before, or who has read on would never hear of it."""
    reader = nodes[0].following
    begin = await reader.newest()
    slow = await asyncpg.connect(backend.url)
    await slow.execute(BEGIN)
    await slow.execute(
        """INSERT INTO event (seq, id, source, type, received_at, verified, hops, headers, size, sha256, body)
        VALUES ($1, 'evt_slow', 'shop', 'order', 1, TRUE, 0, '[]', 0, decode(repeat('00', 32), 'hex'), '')""",
        await slow.fetchval(FIRST),
    )
    quick = await stored(nodes[1], "crm")
    assert (await reader.after(begin, limit=10)).happened == []
    await slow.execute("COMMIT")
    await slow.close()
    told = [one.what.id for one in (await reader.after(begin, limit=10)).happened]  # type: ignore[union-attr]
    assert sorted(told) == sorted(["evt_slow", quick.id])


async def test_the_clock_of_all_nodes_is_the_database_s(nodes: Nodes, backend: PostgresBackend) -> None:
    """However the clock of a machine is set: within what a question takes on its way."""
    for node in nodes:
        before = datetime.now(UTC)
        ((at,),) = backend.rows("SELECT clock_timestamp()")
        assert abs(node.clock() - at) < timedelta(seconds=1) + (datetime.now(UTC) - before)


async def test_a_node_is_seen_while_it_lives(nodes: Nodes, backend: PostgresBackend) -> None:
    """Each has a number of its own; one that has left is gone at once, and its number is given again."""
    numbers = {node._known.node for node in nodes}
    assert len(numbers) == 3
    async with asyncio.timeout(10):
        while len(nodes[0].who()["nodes"]) < 3:  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
    left = nodes.pop()
    await left.close()
    async with asyncio.timeout(10):
        while len(nodes[0].who()["nodes"]) > 2:  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
    back = await PostgresStore.open(backend.url, Watch())
    nodes.append(back)
    assert back._known.node == left._known.node
    assert back._writer.node.life > left._writer.node.life


async def test_a_newer_schema_is_not_touched(backend: PostgresBackend) -> None:
    """It is refused with what to do; nothing of it has changed."""
    store = await backend.open(Watch())
    await store.close()
    execute(backend.url, "INSERT INTO relay.migration (number) VALUES (99)")
    with pytest.raises(StoreUnusable, match="its schema has version 99"):
        await backend.open(Watch())


async def test_nodes_that_start_together_make_one_schema(backend: PostgresBackend) -> None:
    """Each waits for the one that makes it, and finds it made."""
    opened = await asyncio.gather(*(PostgresStore.open(backend.url, Watch()) for _ in range(5)))
    assert backend.rows("SELECT count(*) FROM migration WHERE number = 1") == [(1,)]
    await asyncio.gather(*(node.close() for node in opened))


async def test_numbers_go_on_where_a_cluster_counts_its_transactions_anew(backend: PostgresBackend) -> None:
    """A database that was restored elsewhere has rows with higher numbers than its next transaction would give."""
    store = await backend.open(Watch())
    first = await stored(store, "crm")
    await store.close()
    execute(backend.url, "UPDATE relay.event SET seq = seq + (1::bigint << 40)")
    execute(backend.url, "UPDATE relay.delivery SET event_seq = event_seq + (1::bigint << 40)")
    store = await backend.open(Watch())
    second = await stored(store, "crm")
    assert ids(await taken(store, "crm", limit=2, turn=Turn.DUE)) == [first.id, second.id]
    assert [row[0] for row in backend.rows("SELECT id FROM event ORDER BY seq")] == [first.id, second.id]
    await store.close()
