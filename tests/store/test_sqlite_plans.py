"""What waits is found through its partial index, and the cost of a claim is that of what it takes."""

import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.model import Turn
from relay.store import Retention
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.ledger import Ledger
from relay.store.sqlite.schema import MIGRATIONS
from relay.store.sqlite.statements import EVENT_INSERT
from tests.support.store_backends import SqliteBackend
from tests.support.store_parts import (
    LEASE,
    NOW,
    SECOND,
    Watch,
    an_event,
    disabled,
    failed,
    one,
    settlement,
    stored,
    taken,
)


class Traced:
    """A live store whose statements are remembered as they are run, with their values in place."""

    def __init__(self, store: SqliteStore, path: Path) -> None:
        self.store = store
        self.path = path
        self._seen: list[str] = []

    async def watch(self) -> None:
        """Remember from now on what both connections run."""
        for db in (self.store._writer._db, await self.store._reading.connection()):
            assert db is not None
            await db.set_trace_callback(self._seen.append)

    def plans(self) -> dict[str, list[str]]:
        """The plan of every statement that was run since the last call, by its text."""
        statements, self._seen[:] = list(self._seen), []
        with closing(sqlite3.connect(self.path)) as db:
            return {
                statement: [row[3] for row in db.execute("EXPLAIN QUERY PLAN " + statement)]
                for statement in statements
                if re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)\b", statement)
            }


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    """A store with a little of everything in it."""
    file = tmp_path / "relay.db"
    store = await SqliteStore.open(file, Watch())
    for _ in range(6):
        await stored(store, "crm", "books")
    await failed(store, await one(store), again=NOW + SECOND)
    await one(store, "books")
    traced = Traced(store, file)
    await traced.watch()
    yield traced
    await store.close()


def using(plans: dict[str, list[str]]) -> set[str]:
    """The indexes that plans name."""
    return {name for plan in plans.values() for name in re.findall(r"USING (?:COVERING )?INDEX (\w+)", " ".join(plan))}


def scanned(plans: dict[str, list[str]]) -> list[str]:
    """The tables that plans walk from end to end, by name or alias; `tried` and `new` are cut to a horizon."""
    tables = re.compile(r"SCAN (delivery|event|attempt|target|d|e|last)\b")
    return [step for plan in plans.values() for step in plan if tables.match(step)]


@pytest.mark.row("F38")
@pytest.mark.parametrize(
    ("turn", "index"),
    [
        (Turn.DUE, "COVERING INDEX delivery_due"),
        (Turn.PROBE, "INDEX delivery_open"),
        (Turn.ARRIVAL, "INDEX delivery_open"),
    ],
)
async def test_a_claim_finds_what_it_takes_by_its_partial_index(traced: Traced, turn: Turn, index: str) -> None:
    """Each turn has its index; the rows are then changed by their key, and the next due time is one look."""
    await traced.store.claim("crm", limit=9, turn=turn, now=NOW, lease=LEASE, since=NOW)
    plans = traced.plans()
    (choosing,) = [plan for text, plan in plans.items() if text.startswith("WITH rows")]
    (marking,) = [plan for text, plan in plans.items() if text.startswith("UPDATE delivery SET state = 'in_flight'")]
    assert "SEARCH delivery USING PRIMARY KEY (event_seq=? AND target=?)" in choosing
    assert marking[0] == "SEARCH delivery USING PRIMARY KEY (event_seq=? AND target=?)"
    assert any(f"USING {index} (target=?" in step for step in choosing)
    (next_due,) = [plan for text, plan in plans.items() if text.startswith("SELECT t.column1")]
    assert any("INDEX delivery_due (target=?)" in step for step in next_due)
    assert using(plans) <= {index.split()[-1], "delivery_due", "attempt_of"}
    assert scanned(plans) == []


@pytest.mark.row("F38")
async def test_what_waits_and_what_is_dead_is_counted_without_its_rows(traced: Traced) -> None:
    """By entries of their indexes alone: else each costs a look for a row of which nothing is read."""
    with closing(sqlite3.connect(traced.path)) as db:
        counted: list[str] = []
        db.set_trace_callback(counted.append)
        Ledger().load(db)
        db.set_trace_callback(None)
        counting = [db.execute(f"EXPLAIN QUERY PLAN {text}").fetchall() for text in counted if "count(*)" in text]
    steps = {step for plan in counting for *_, step in plan}
    assert {step for step in steps if "delivery_claimed" not in step} == {
        "SCAN delivery USING COVERING INDEX delivery_due",
        "SCAN delivery USING COVERING INDEX delivery_dead",
        "USE TEMP B-TREE FOR GROUP BY",
    }


async def test_a_row_of_a_delivery_is_checked_without_a_table_of_its_own(traced: Traced) -> None:
    """SQLite makes one anew for each row where a check names more than two values behind IN; the checks still hold."""
    await traced.store.settle(settlement(await one(traced.store)))
    traced.plans()
    await traced.store.settle(settlement(await one(traced.store)))
    (settling,) = [text for text in traced.plans() if text.startswith("INSERT INTO delivery")]
    with closing(sqlite3.connect(traced.path)) as db:
        assert "OpenEphemeral" not in {step[1] for step in db.execute("EXPLAIN " + settling)}
        with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed: state"):
            db.execute("UPDATE delivery SET state = 'elsewhere'")


@pytest.mark.row("F38")
async def test_the_first_in_order_is_one_look(traced: Traced) -> None:
    """By the index of open deliveries, and by that of the claims, whose size is that of what is under way."""
    await stored(traced.store, "books")
    traced.plans()
    for _ in range(2):
        await traced.store.claim("books", limit=1, turn=Turn.FIRST, now=NOW, lease=LEASE)
    await traced.store.archive.overdue(["books"], NOW, ordered=["books"])
    plans = traced.plans()
    (choosing, *_) = [plan for text, plan in plans.items() if text.startswith("WITH rows")]
    assert any("USING INDEX delivery_open (target=?" in step for step in choosing)
    walked = {step for plan in plans.values() for step in plan if re.match("SCAN (delivery|event|attempt|busy)", step)}
    assert walked == {"SCAN busy USING INDEX delivery_claimed"}
    assert using(plans) <= {"delivery_open", "delivery_claimed"}


async def test_the_last_try_of_each_held_delivery_is_one_look(traced: Traced) -> None:
    """Choosing whom to probe looks up attempts by their key, for each delivery its own."""
    await taken(traced.store, turn=Turn.PROBE)
    (plan,) = [plan for text, plan in traced.plans().items() if text.startswith("WITH rows")]
    assert "CORRELATED SCALAR SUBQUERY" in "".join(plan)
    assert "SEARCH last USING INDEX attempt_of (event_seq=? AND target=?)" in plan


async def test_a_settlement_touches_its_own_rows(traced: Traced) -> None:
    """Event by id, delivery by the key whose conflict it settles."""
    claim = await one(traced.store)
    traced.plans()
    await traced.store.settle(settlement(claim))
    plans = traced.plans()
    (changing,) = [text for text in plans if "ON CONFLICT DO UPDATE SET state" in text]
    assert changing.startswith("INSERT INTO delivery")
    assert scanned(plans) == []
    assert using(plans) == {"sqlite_autoindex_event_1"}


@pytest.mark.row("B25")
async def test_lost_claims_are_found_by_their_lease(traced: Traced) -> None:
    """The reaper looks at what is claimed, not at what waits or was delivered."""
    assert await traced.store.reclaim(NOW + 2 * LEASE, alive=frozenset()) == 1
    plans = traced.plans()
    assert "delivery_claimed" in using(plans)
    assert scanned(plans) == []


async def test_a_known_key_is_found_by_its_index(traced: Traced) -> None:
    """However many events are kept."""
    await stored(traced.store, "crm", key="order-1")
    await traced.store.accept(an_event(key="order-1"), ["crm"])
    plans = traced.plans()
    assert "event_dedupe" in using(plans)
    assert scanned(plans) == []


async def test_the_oldest_waiting_is_one_look(traced: Traced) -> None:
    """Gauges are kept, not counted by scanning tables."""
    await traced.store.backlog(["crm", "books"])
    plans = traced.plans()
    assert using(plans) == {"delivery_open"}
    assert scanned(plans) == []
    assert not any("count(" in text for text in plans)


async def test_following_goes_on_by_number(traced: Traced) -> None:
    """Of what lies behind a position nothing is looked at, however much is kept; nor to find a time."""
    await traced.store.settle(settlement(await one(traced.store, now=NOW + 2 * SECOND)))
    traced.plans()
    position = await traced.store.following.first(NOW - SECOND)
    await traced.store.following.after(position, limit=2)
    plans = traced.plans()
    walks = [plan for text, plan in plans.items() if "ORDER BY" in text]
    assert len(walks) > 3
    assert [plan for plan in walks if not re.match(r"SEARCH \w+ USING INTEGER PRIMARY KEY \(rowid>", plan[0])] == []
    assert scanned(plans) == []


async def test_enabling_walks_only_what_waits_at_the_target(traced: Traced) -> None:
    """By the index of its open deliveries, each then changed by its key."""
    await traced.store.change_health("crm", lambda _: disabled())
    await traced.store.change_health("crm", lambda health: type(health)("crm"))
    plans = traced.plans()
    assert using(plans) == {"delivery_open"}
    assert scanned(plans) == []


async def test_pruning_and_bodies_go_by_key(traced: Traced) -> None:
    """A look for what is over walks events by number, from where the last one ended."""
    event = await stored(traced.store)
    await traced.store.body(event.id)
    assert await traced.store.prune(Retention(SECOND, SECOND), NOW + timedelta(days=1)) == 1
    assert scanned(traced.plans()) == []


async def test_making_room_and_erasing_go_by_key(traced: Traced) -> None:
    """The walk for want of room goes by number, its test by the deliveries' own key; so does what is deleted."""
    event = await stored(traced.store, "crm")
    await stored(traced.store)
    assert await traced.store.prune_oldest(1 << 40) == 1
    assert await traced.store.erase(event.id) == 1
    await traced.store.outlived(Retention(SECOND, SECOND), NOW, wanted=1 << 40)
    assert scanned(traced.plans()) == []


def filled(path: Path, waiting: int, *, tried: bool) -> None:
    """A store in which so many deliveries wait at one target, made without the port because it is quicker."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.executemany(
            EVENT_INSERT.format(rows="(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)"),
            ((seq, f"evt_{seq}", "s", "t", seq, 1, 0, None, "[]", 0, bytes(32), b"") for seq in range(1, waiting + 1)),
        )
        db.executemany(
            "INSERT INTO delivery (event_seq, target, state, due_at, attempts) VALUES (?, 'crm', 'pending', ?, ?)",
            ((seq, seq, int(tried)) for seq in range(1, waiting + 1)),
        )
        if tried:
            db.executemany(
                "INSERT INTO attempt VALUES (NULL, ?, 'crm', 1, ?, 0, 'failed', 500, '', '')",
                ((seq, seq) for seq in range(1, waiting + 1)),
            )
        db.execute("COMMIT")


class Steps:
    """Counts the steps of SQLite's machine that a connection takes: what work costs, without a clock."""

    EACH = 10

    def __init__(self) -> None:
        self.taken = 0

    def __call__(self) -> int:
        self.taken += self.EACH
        return 0


async def cost(directory: Path, waiting: int, work: Callable[[SqliteStore], Any], *, tried: bool = False) -> int:
    """The steps that some work takes on the writing and the reading connection while so many wait."""
    backend = SqliteBackend(directory / f"{waiting}-{tried}")
    await (await backend.open(Watch())).close()
    filled(backend.path, waiting, tried=tried)
    store = await backend.open(Watch())
    steps = Steps()
    for db in (store._writer._db, await store._reading.connection()):
        assert db is not None
        await db.set_progress_handler(steps, Steps.EACH)
    await work(store)
    await store.close()
    return steps.taken


def claiming(turn: Turn) -> Callable[[SqliteStore], Any]:
    """A claim of 50 by a turn, or of one probe."""

    async def claim(store: SqliteStore) -> None:
        limit = 50 if turn is Turn.DUE else 1
        await store.claim("crm", limit=limit, turn=turn, now=NOW, lease=LEASE, since=NOW)

    return claim


async def looking(store: SqliteStore) -> None:
    await store.backlog(["crm"])


async def accepting(store: SqliteStore) -> None:
    await stored(store, "crm", key="fresh")


async def reclaiming(store: SqliteStore) -> None:
    await store.reclaim(NOW + timedelta(days=1), alive=frozenset())


@pytest.mark.row("F38")
@pytest.mark.parametrize(
    "work",
    [*map(claiming, (Turn.DUE, Turn.PROBE, Turn.ARRIVAL, Turn.FIRST)), looking, accepting, reclaiming],
    ids=["due", "probe", "arrival", "first", "backlog", "accept", "reclaim"],
)
async def test_the_cost_is_the_same_whatever_waits(tmp_path: Path, work: Callable[[SqliteStore], Any]) -> None:
    """With 20,000 waiting a verb takes hardly more steps than with 200."""
    few = await cost(tmp_path, 200, work)
    many = await cost(tmp_path, 20_000, work)
    assert few > 0
    assert many <= 1.5 * few


async def test_choosing_a_probe_among_many_that_were_tried_is_bounded(tmp_path: Path) -> None:
    """It looks at the newest ten thousand at most."""
    some = await cost(tmp_path, 10_000, claiming(Turn.PROBE), tried=True)
    many = await cost(tmp_path, 20_000, claiming(Turn.PROBE), tried=True)
    assert many <= 1.5 * some


def test_every_index_of_deliveries_is_partial() -> None:
    """Their size is that of the backlog, not of the history."""
    made = re.findall(r"CREATE (?:UNIQUE )?INDEX (\w+) ON (\w+) [^;]*?(WHERE [^;]+)?;", "".join(MIGRATIONS))
    assert {name for name, table, _ in made if table == "delivery"} == {
        "delivery_due",
        "delivery_open",
        "delivery_claimed",
        "delivery_dead",
    }
    assert all(where for _, table, where in made if table == "delivery")
