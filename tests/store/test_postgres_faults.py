"""What a node does when its database fails, is cut off, hangs or is reached through a pooler.

Real: a durable server of its own, its kills, its locks, a pooler in transaction mode. Fake: only the clock of events.
"""

import asyncio
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path

import asyncpg
import pytest

from relay.model import OutcomeKind, RetryAt
from relay.store import StoreError, StoreUnavailable
from relay.store.postgres import PostgresStore
from relay.store.postgres.connection import FROZEN_S
from relay.store.postgres.transaction import Transaction
from tests.support.postgres import Cluster, needed, no_binaries
from tests.support.postgres_looking import execute, forget, rows
from tests.support.store_hangs import until
from tests.support.store_parts import NOW, Watch, an_event, one, settlement, stored, taken

PATIENCE_S = 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server that keeps what it has promised."""
    needed(no_binaries)
    with Cluster(durable=True) as started:
        yield started


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """A database of its own on it."""
    made = cluster.create_database()
    yield made
    cluster.drop_database(made)


@pytest.fixture
async def node(url: str, watch: Watch) -> AsyncIterator[PostgresStore]:
    """A node on it."""
    opened = await PostgresStore.open(url, watch)
    yield opened
    await opened.close()


async def kept_on(node: PostgresStore, stop: asyncio.Event) -> list[str]:
    """The ids of events that were accepted, one after the other, until asked to stop; what is refused is sent again as
    another one."""
    accepted: list[str] = []
    while not stop.is_set():
        event = an_event()
        with suppress(StoreUnavailable):
            accepted.append((await node.accept(event, ["crm"])).event_id)
        await asyncio.sleep(0)
    return accepted


async def test_a_server_that_is_killed_under_load_loses_nothing_of_what_was_answered(
    cluster: Cluster, node: PostgresStore, url: str, watch: Watch
) -> None:
    """It is refused while it is gone, told once, and goes on by itself when it is back."""
    stop = asyncio.Event()
    senders = [asyncio.create_task(kept_on(node, stop)) for _ in range(8)]
    await until(lambda: watch.commits > 20)
    await asyncio.to_thread(cluster.kill)
    await until(lambda: bool(watch.outages))
    assert not node.condition().writable
    with pytest.raises(StoreUnavailable):
        await node.accept(an_event(), ["crm"])
    await asyncio.to_thread(cluster.start)
    async with asyncio.timeout(PATIENCE_S):
        while not node.condition().writable:
            await asyncio.sleep(0.05)
    before = watch.commits
    await until(lambda: watch.commits > before + 5)
    stop.set()
    promised = [event_id for found in await asyncio.gather(*senders) for event_id in found]
    kept = {event_id for (event_id,) in rows(url, "SELECT id FROM event")}
    assert len(promised) > 20
    assert set(promised) <= kept
    assert len(watch.outages) == len(watch.recoveries) == 1


async def test_an_outcome_outlives_an_outage(cluster: Cluster, node: PostgresStore, url: str) -> None:
    """What a target has said while the database was gone is written when it is back; nothing is sent again for it."""
    await stored(node, "crm")
    claim = await one(node)
    await asyncio.to_thread(cluster.stop, "immediate")
    settling = asyncio.create_task(asyncio.wait_for(node.settle(settlement(claim)), PATIENCE_S))
    await until(lambda: not node.condition().writable)
    forget(url)
    await asyncio.to_thread(cluster.start)
    assert (await settling).ruling is not None
    assert rows(url, "SELECT state, attempts FROM delivery") == [("delivered", 1)]


async def test_connections_that_are_cut_are_made_anew(node: PostgresStore, url: str, watch: Watch) -> None:
    """By a server that ends them, one after the other: what was being written is refused or stored, never half."""
    promised: list[str] = []
    for _ in range(5):
        promised.append((await stored_at_last(node)).removeprefix(""))
        execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database()",
        )
        promised.append(await stored_at_last(node))
    found = {event_id for (event_id,) in rows(url, "SELECT id FROM event")}
    assert set(promised) <= found
    assert Counter(rows(url, "SELECT state FROM delivery"))[("pending",)] == len(found)
    assert await node.archive.event(promised[0]) is not None


async def stored_at_last(node: PostgresStore) -> str:
    """The id of an event that was stored, sent again as long as it was refused."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(StoreUnavailable):
                return (await node.accept(an_event(), ["crm"])).event_id
            await asyncio.sleep(0.05)


async def test_a_frozen_transaction_of_another_holds_up_no_sender(node: PostgresStore, url: str) -> None:
    """A stranger holds the row that a settlement needs: events are refused in time rather than left hanging, and all
    that was to be written is written when the row is free."""
    await stored(node, "crm")
    await node.change_health("crm", lambda health: health)
    claim = await one(node)
    stranger = await asyncpg.connect(url)
    await stranger.execute("BEGIN; SELECT FROM relay.target WHERE name = 'crm' FOR UPDATE")
    settling = asyncio.ensure_future(node.settle(settlement(claim, RetryAt(NOW, 1), kind=OutcomeKind.FAILED)))
    await until(lambda: bool(rows(url, "SELECT FROM pg_locks WHERE NOT granted")))
    with pytest.raises(StoreUnavailable, match="no commit within"):
        await node.accept(an_event(), ["books"])
    assert not node.condition().writable
    await stranger.execute("ROLLBACK")
    await stranger.close()
    assert (await asyncio.wait_for(settling, PATIENCE_S)).ruling is not None
    await stored_at_last(node)


async def test_a_node_that_is_frozen_in_a_transaction_holds_up_the_others_for_a_moment(
    node: PostgresStore, url: str
) -> None:
    """What it has locked is free again soon; what it was about to write is undone, and it goes on when it wakes up."""
    other = await PostgresStore.open(url, Watch())
    await stored(node, "crm")
    claim = await one(other)

    async def frozen(tx: Transaction) -> None:
        await tx.lock_health(["crm"])
        await asyncio.sleep(FROZEN_S + 2)
        await tx.run("UPDATE target SET reason = 'it went on' WHERE name = 'crm'")

    freezing = asyncio.ensure_future(node._writer.work(frozen))
    await until(lambda: bool(rows(url, "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction'")))
    settled = await asyncio.wait_for(other.settle(settlement(claim)), FROZEN_S + 2)
    assert settled.ruling is not None
    with pytest.raises(StoreUnavailable):
        await freezing
    await stored_at_last(node)
    assert rows(url, "SELECT reason FROM target WHERE name = 'crm'") == [("",)]
    await other.close()


async def test_a_commit_that_is_undone_by_another_is_made_again(node: PostgresStore, url: str) -> None:
    """A stranger who locks in the other order makes a deadlock; who is chosen to yield runs its transaction again."""
    events = [await stored(node, "crm", "books") for _ in range(2)]
    await node.change_healths(dict.fromkeys(("crm", "books"), lambda health: health))
    claims = [(await taken(node, target, limit=2)) for target in ("crm", "books")]
    stranger = await asyncpg.connect(url)
    await stranger.execute("BEGIN; SELECT FROM relay.target WHERE name = 'crm' FOR UPDATE")
    settling = asyncio.gather(*(node.settle(settlement(claim)) for its in claims for claim in its))
    await until(lambda: bool(rows(url, "SELECT FROM pg_locks WHERE NOT granted")))
    with suppress(asyncpg.DeadlockDetectedError):
        await stranger.execute("SELECT FROM relay.target WHERE name = 'books' FOR UPDATE")
    await stranger.execute("ROLLBACK")
    await stranger.close()
    settled = await asyncio.wait_for(settling, PATIENCE_S)
    assert all(each.ruling is not None for each in settled)
    assert len(rows(url, "SELECT FROM attempt")) == 2 * len(events)


async def test_a_database_that_cannot_be_reached_is_named(url: str) -> None:
    """Where, what and what to do; the password is not said."""
    missing = url.rpartition("/")[0] + "/nothing_here"
    with pytest.raises(StoreError, match=r"see its name in store\.url"):
        await PostgresStore.open(missing, Watch())


@pytest.fixture
def pooled(url: str, cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The same database through a pooler that gives each transaction another session."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        needed(lambda: "no pgbouncer found: install Debian's package pgbouncer")
        raise AssertionError
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    host, _, name = url.rpartition("@")[2].partition("/")
    config = tmp_path / "pgbouncer.ini"
    users = tmp_path / "users.txt"
    users.write_text('"postgres" ""\n')
    config.write_text(
        f"""[databases]
{name} = host={host.partition(":")[0]} port={host.partition(":")[2]} dbname={name} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
auth_file = {users}
pool_mode = transaction
default_pool_size = 3
server_lifetime = 1
unix_socket_dir =
logfile = {tmp_path}/pgbouncer.log
"""
    )
    for path in (tmp_path, config, users):
        path.chmod(0o777 if path.is_dir() else 0o644)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent != Path("/") and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    running = subprocess.Popen(
        [program, "-u", "postgres", str(config)] if shutil.which("su") else [program, str(config)]
    )
    yield f"postgresql://postgres@127.0.0.1:{port}/{name}"
    running.terminate()
    running.wait(10)


async def test_a_pooler_in_transaction_mode_changes_nothing(pooled: str, url: str) -> None:
    """Statements that another session has prepared are found out and prepared anew; hints that it lets not through are
    not needed."""
    async with asyncio.timeout(60):
        opened = [await PostgresStore.open(pooled, Watch()) for _ in range(3)]
        sent = [
            (await node.accept(an_event(key=f"{n}"), ["crm"])).event_id
            for n in range(40)
            for node in opened[n % 3 :][:1]
        ]
        for node in opened:
            claims = await taken(node, limit=10)
            await asyncio.gather(*(node.settle(settlement(claim)) for claim in claims))
            assert await node.archive.event(sent[0]) is not None
            assert (await node.backlog(["crm"]))[0].in_flight == 0
        await asyncio.gather(*(node.close() for node in opened))
    assert Counter(rows(url, "SELECT state FROM delivery")) == Counter({("delivered",): 30, ("pending",): 10})


async def test_what_is_committed_is_on_the_disk_whatever_the_server_s_default_is(url: str) -> None:
    """A database whose commits need not be synced by default: ours are."""
    execute(url, f'ALTER DATABASE "{url.rpartition("/")[2]}" SET synchronous_commit TO off')
    node = await PostgresStore.open(url, Watch())
    ((setting,),) = await node._writer.work(lambda tx: tx.rows("SHOW synchronous_commit"))
    await node.close()
    assert setting == "on"
