"""Promise 1 without the mains: the installed command is recorded under load, the disk rebuilt at every point of it."""

import asyncio
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import aiosqlite
import pytest

from relay.store import StoreUnusable
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.checkpoints import CHECKPOINT_COMMITS
from relay.store.sqlite.connection import migrate
from relay.store.sqlite.schema import MIGRATIONS
from tests.support.after_a_cut import DATABASE, Sent, laid_out, open_deliveries, wrongs
from tests.support.broken import with_break
from tests.support.power_cut import (
    Cut,
    DirectorySynced,
    Image,
    Model,
    Named,
    Promised,
    Resized,
    Step,
    Synced,
    Wrote,
    cuts_at,
    every_strict_cut,
    settled,
)
from tests.support.program import Arrival, Gateway, Sink, until, write_config
from tests.support.recorded import ROOT, Recording, recording
from tests.support.store_files import abandoned, used
from tests.support.store_parts import Watch, taken
from tests.support.store_processes import told
from tests.support.system_calls import Reader

SCATTERED = int(os.environ.get("RELAY_SCATTERED_CUTS", "120"))
"""Images of which a random half of what was not synced is left."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the runs; install it to run these"),
]


@pytest.fixture(scope="module")
def seed() -> int:
    """Which half is left; printed, so that a failure can be had again."""
    return int(os.environ.get("RELAY_POWER_CUT_SEED") or random.SystemRandom().randrange(10**6))


@dataclass
class Recorded:
    """What a run has left behind."""

    steps: list[Step]
    sent: Sent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A whole life: a first start, checkpoints, a kill under load, an event erased, a stop, a start."""
    return asyncio.run(a_life(tmp_path_factory.mktemp("life")))


async def a_life(home: Path) -> Recorded:
    async def refuse_some(arrival: Arrival) -> int:
        return 400 if arrival.target == "books" and arrival.attempt == 1 and arrival.body.endswith(b"3}") else 200

    async with Sink(refuse_some) as sink:
        life = Recording(home, sink)
        async with life.running() as gateway:
            while await life.commits(gateway) < CHECKPOINT_COMMITS + 30:
                await life.send(gateway, 10, senders=3)
            await life.send(gateway, 10, senders=16)
            await life.send_until_killed(gateway, 30, senders=4, after=20)
        async with life.running() as gateway:
            await life.send(gateway, 5, senders=4)
            erased = next(iter(life.sent.bodies))
            del life.sent.bodies[erased]
            async with aiohttp.ClientSession() as session:
                call = session.post(f"{gateway.admin}/api/v1/prune", json={"event": erased})
                async with call as answer:
                    assert answer.status == 200
            await life.send(gateway, 5, senders=4)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
        async with life.running() as gateway:
            await life.send(gateway, 5, senders=4)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
    return Recorded(life.steps(), life.sent)


async def all_wrongs(cuts: Iterable[Cut], sent: Sent) -> tuple[int, list[str]]:
    """How many images were opened, and what is wrong with them."""
    number, found = 0, []
    for cut in cuts:
        number += 1
        found += [f"after {cut.after} steps, {cut.model.name}: {wrong}" for wrong in await wrongs(cut, sent)]
    return number, found


def promised(steps: Sequence[Step], kind: str) -> set[str]:
    return {step.what[1] for step in steps if isinstance(step, Promised) and step.what[0] == kind}


def files(steps: Sequence[Step]) -> dict[str, set[int]]:
    """The numbers of the files that have borne a name."""
    found: dict[str, set[int]] = {}
    for step in steps:
        for name, number in step.names.items() if isinstance(step, Named) else ():
            if number is not None:
                found.setdefault(name, set()).add(number)
    return found


def is_delicate(step: Step) -> bool:
    """A step after which much depends on what of it is left."""
    return isinstance(step, Named | Resized | Synced | DirectorySynced)


@pytest.mark.row("F2")
async def test_the_recording_has_all_that_a_cut_could_spoil(run: Recorded) -> None:
    """Every answer that a sender got is in it, group commits, deliveries settled, checkpoints of both kinds, a log that
    is written over from its beginning, a kill, a stop: else the others would prove less than they say."""
    answered = promised(run.steps, "answered")
    assert answered >= set(run.sent.bodies)
    assert len(run.sent.bodies) > 200
    assert len(promised(run.steps, "delivered")) > 200
    named = files(run.steps)
    (database,) = named[DATABASE]
    logs = named[f"{DATABASE}-wal"]
    assert len(logs) >= 2  # a stop deletes the log, a start makes another
    synced = Counter(step.file for step in run.steps if isinstance(step, Synced))
    assert synced[database] >= 4
    assert sum(synced[log] for log in logs) > 200
    assert any(isinstance(step, Resized) and step.file in logs and step.size == 0 for step in run.steps)
    between = 0
    together = []
    for step in run.steps:
        if isinstance(step, Promised) and step.what[0] == "answered":
            between += 1
        elif isinstance(step, Synced):
            together.append(between)
            between = 0
    assert max(together) >= 4


@pytest.mark.row("F2")
async def test_what_was_answered_is_there_after_a_power_cut_at_any_point(run: Recorded) -> None:
    """Of everything only what was synced is left: no event, delivery or record of one is missing, nothing is damaged,
    and the program's own opening refuses no image."""
    number, found = await all_wrongs(every_strict_cut(run.steps), run.sent)
    print(f"{number} images stand for {len(run.steps)} points")
    assert found == []
    assert number > 200


@pytest.mark.row("F2")
async def test_what_was_answered_is_there_whatever_else_a_power_cut_leaves(run: Recorded, seed: int) -> None:
    """The same where a random half of the rest has reached the disk too, torn at sectors, in any order, or all."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    delicate = [number for number, step in enumerate(run.steps, 1) if is_delicate(step)]
    points = rng.sample(delicate, SCATTERED // 3) + rng.choices(range(len(run.steps) + 1), k=SCATTERED)
    number, found = await all_wrongs(cuts_at(run.steps, points, Model.SCATTERED, rng), run.sent)
    print(f"{number} scattered images")
    assert found == []
    number, found = await all_wrongs(cuts_at(run.steps, points[: SCATTERED // 4], Model.FLUSHED, rng), run.sent)
    assert found == []


@pytest.mark.row("F2")
async def test_a_power_cut_during_the_first_start_leaves_a_store_that_starts(run: Recorded, seed: int) -> None:
    """Nothing is promised yet, and whatever is left, of files and of names, needs no hand: neither a half-made file nor
    the journal of its making bars the next start."""
    rng = random.Random(seed)
    first = next(number for number, step in enumerate(run.steps) if isinstance(step, Promised))
    points = [number for number in range(first) if number < 20 or is_delicate(run.steps[number - 1])]
    for _ in range(4):
        _, found = await all_wrongs(cuts_at(run.steps, points, Model.SCATTERED, rng), run.sent)
        assert found == [], f"seed {seed}"


@pytest.mark.row("F2")
async def test_the_installed_command_delivers_what_a_power_cut_has_left(
    run: Recorded, seed: int, tmp_path: Path
) -> None:
    """`relay run` on such an image: all that was answered and is not recorded as delivered arrives, byte for byte."""
    for cut in cuts_at(run.steps, [len(run.steps) // 4, len(run.steps) // 2], Model.STRICT, random.Random(seed)):
        due = open_deliveries(cut.image)
        assert due
        async with Sink() as sink:
            config = write_config(tmp_path / "config.yaml", sink, targets=dict.fromkeys(run.sent.targets, ""))
            with laid_out(cut.image) as database:
                config.write_text(config.read_text().replace(str(tmp_path / DATABASE), str(database)))
                async with Gateway(config):
                    await until(lambda: {(one.event_id, one.target) for one in sink.arrivals} == due)  # noqa: B023
            for one in sink.arrivals:
                assert run.sent.bodies.get(one.event_id, one.body) == one.body
        recorded = {(what[1], what[2]) for what in cut.promised if what[0] == "delivered"}
        assert not recorded & due


# starts that change more than others


async def a_copy(path: Path) -> None:
    await used(path)
    store = await SqliteStore.open(path, Watch())
    async with store.copy() as copy:
        whole = b"".join([part async for part in copy.parts()])
    await store.close()
    path.write_bytes(whole)


async def an_old_schema(path: Path) -> None:
    db = await aiosqlite.connect(path, isolation_level=None)
    await db.execute("PRAGMA journal_mode=WAL")
    await migrate(db, MIGRATIONS[:1])
    await db.close()


async def a_killed_store(path: Path) -> None:
    killed = await abandoned(path.with_name("used.db"), path.parent / "killed")
    for file in killed.parent.iterdir():
        shutil.move(file, path.parent / file.name.replace("used.db", path.name))


MISSED = "vanished since its last use"


@pytest.mark.row("F2", "F37")
@pytest.mark.parametrize(
    ("before", "verb", "due"),
    [(a_copy, "only_open", {3}), (an_old_schema, "only_open", {0}), (a_killed_store, "begin_afresh", {6, 0, MISSED})],
)
async def test_a_power_cut_during_a_start_that_changes_the_files_loses_nothing(
    before: Callable[[Path], Awaitable[None]], verb: str, due: set[int | str], seed: int, tmp_path: Path
) -> None:
    """A copy that gets a log, a migration, a store that is set aside: each is done, or not, or begun again by the next
    start. Between being set aside and begun afresh the old store is missed; it is never opened without its log."""
    home = tmp_path / "store"
    home.mkdir()
    await before(home / DATABASE)
    image = {file.name: file.read_bytes() for file in sorted(home.glob(f"{DATABASE}*"))}
    steps = settled(image)
    reader, since = Reader(home, steps), len(steps)
    assert told(home / DATABASE, verb, within=recording(tmp_path / "trace"))[0] == {"opened": True}
    with (tmp_path / "trace").open(encoding="ascii") as lines:
        reader.read(lines)
    rng = random.Random(seed)
    points = rng.choices(range(since, len(reader.steps)), k=60)
    cuts = [*every_strict_cut(reader.steps, since=since), *cuts_at(reader.steps, points, Model.SCATTERED, rng)]
    found = Counter([await what_is_due(cut.image) for cut in cuts])
    assert found.keys() <= due, f"seed {seed}"
    assert len(found) == len(due)


async def what_is_due(image: Image) -> int | str:
    """How many deliveries a start finds, or why it refuses."""
    with laid_out(image) as path:
        try:
            store = await SqliteStore.open(path, Watch())
        except StoreUnusable as error:
            return str(error).partition(f"{path}: ")[2].partition(";")[0]
        found = len(await taken(store, limit=9))
        await store.close()
        return found


# two faults, one after the other


@pytest.mark.row("F2", "F3")
@pytest.mark.parametrize("then", ["it recovers", "it is killed"])
async def test_a_failed_fsync_and_then_a_power_cut_lose_nothing(tmp_path: Path, then: str) -> None:
    """What the failed fsync was to bring to the disk is never there, though it is read back from memory: nothing that
    is answered afterwards, by the same process or by the next one, stands behind it in the log."""
    found = await after_a_failed_fsync(tmp_path, is_killed=then == "it is killed")
    assert found == []


async def after_a_failed_fsync(home: Path, *, is_killed: bool, program: Path | None = None) -> list[str]:
    """All that is wrong after power cuts."""
    async with Sink() as sink:
        life = Recording(home / "run", sink, program=program)
        async with life.running(f"fdatasync:error=EIO:{'signal=KILL:' if is_killed else ''}when=30") as gateway:
            if is_killed:
                await life.send_until_killed(gateway, 200, senders=4)
            else:
                while not gateway.said("store.recovered"):
                    await life.send(gateway, 5, senders=4)
                await life.send(gateway, 5, senders=4)
                await gateway.kill()
        async with life.running() as gateway:
            await life.send(gateway, 5, senders=4)
            await gateway.kill()
    steps = life.steps()
    assert any(isinstance(step, Synced) and not step.is_good for step in steps)
    number, found = await all_wrongs(every_strict_cut(steps), life.sent)
    assert number > 50
    rng = random.Random(1)
    points = rng.choices(range(len(steps)), k=30)
    return found + (await all_wrongs(cuts_at(steps, points, Model.SCATTERED, rng), life.sent))[1]


@pytest.mark.row("F2", "F1")
async def test_a_kill_during_a_checkpoint_and_then_a_power_cut_leave_a_store_that_starts(
    run: Recorded, tmp_path: Path
) -> None:
    """The file had grown, in memory alone: how large it was then is not held against it after the cut."""
    number, found = await after_a_killed_checkpoint(run, tmp_path)
    assert found == []
    assert number > 5


async def after_a_killed_checkpoint(run: Recorded, home: Path, program: Path | None = None) -> tuple[int, list[str]]:
    """Kill at the moment before the first checkpoint is synced, start again, cut the power."""
    (database,) = files(run.steps)[DATABASE]
    grown = [number for number, step in enumerate(run.steps) if isinstance(step, Wrote) and step.file == database]
    moment = next(number for number in grown[2:] if isinstance(run.steps[number + 1], Synced | Resized))
    (killed,) = cuts_at(run.steps, [moment + 1], Model.FLUSHED, random.Random(0))
    with laid_out(killed.image) as path:
        assert told(path, "only_open", within=recording(home / "trace", program=program))[0] == {"opened": True}
        reader = Reader(path.parent, run.steps[: moment + 1])
    with (home / "trace").open(encoding="ascii") as lines:
        reader.read(lines)
    return await all_wrongs(every_strict_cut(reader.steps, since=moment + 1), run.sent)


# the check of the check: what is broken on purpose is found

FULL = "store/sqlite/connection.py", '"synchronous=FULL"', '"synchronous=NORMAL"'
READ_BACK = "store/sqlite/connection.py", "synchronous != 2", "synchronous != 1"
BROKEN = {
    "synchronous=NORMAL": (FULL, READ_BACK),
    "answered before the commit": (
        ("store/sqlite/committing.py", '    db.execute("COMMIT")\n', ""),
        (
            "store/grouping/writer.py",
            "            operation.resolve(result)\n",
            '            operation.resolve(result)\n        await self._db.run(lambda own: own.execute("COMMIT"))\n',
        ),
    ),
    "a checkpoint that is not synced": (
        ("store/sqlite/checkpoints.py", "CHECKPOINT_COMMITS = 200", "CHECKPOINT_COMMITS = 20"),
        ("store/sqlite/checkpoints.py", "CHECKPOINT_S = 0.5", "CHECKPOINT_S = 0.1"),
        (
            "store/sqlite/checkpoints.py",
            '    return _moved(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())\n',
            (
                '    db.execute("PRAGMA synchronous=OFF")\n'
                '    row = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()\n'
                '    db.execute("PRAGMA synchronous=FULL")\n'
                "    return _moved(row)\n"
            ),
        ),
    ),
}


@pytest.mark.row("F2")
@pytest.mark.parametrize("broken", BROKEN)
async def test_a_program_that_syncs_too_little_is_found_out(tmp_path: Path, broken: str) -> None:
    """The same program with a line or two of it broken loses what it answered, and such cuts show it."""
    for place in BROKEN[broken]:
        program = with_break(tmp_path, *place)
    async with Sink() as sink:
        life = Recording(tmp_path / "run", sink, program=program)
        async with life.running() as gateway:
            await life.send_until_killed(gateway, 25, senders=4, after=90)
    steps = life.steps()
    first = next(number for number, step in enumerate(steps) if isinstance(step, Promised))
    cuts = list(cuts_at(steps, range(first, len(steps), len(steps) // 30), Model.STRICT, random.Random(0)))
    lost = [cut for cut in cuts if await wrongs(cut, life.sent)]
    print(f"{broken}: {len(lost)} of {len(cuts)} cuts lose something")
    assert lost


@pytest.mark.row("F2")
async def test_a_directory_that_was_never_synced_is_found_out(run: Recorded) -> None:
    """Without the fsyncs of the directory no file of the store has a name after a cut."""
    steps = [step for step in run.steps if not isinstance(step, DirectorySynced)]
    points = range(len(steps) // 2, len(steps), len(steps) // 20)
    cuts = list(cuts_at(steps, points, Model.STRICT, random.Random(0)))
    lost = [cut for cut in cuts if await wrongs(cut, run.sent)]
    assert len(lost) == len(cuts) > 5


@pytest.mark.row("F2", "F3")
async def test_a_log_that_is_not_written_anew_is_found_out(tmp_path: Path) -> None:
    """After a failed fsync and a kill, what the next process answers is lost with what it trusted; a start that sees it
    refuses to go on without it."""
    program = with_break(tmp_path, "store/sqlite/starting.py", "        renew_log(path)\n", "")
    found = await after_a_failed_fsync(tmp_path, is_killed=True, program=program)
    assert any("lost: answered" in wrong or "commits after it would be lost" in wrong for wrong in found)


@pytest.mark.row("F2")
async def test_a_size_that_is_noted_too_early_is_found_out(run: Recorded, tmp_path: Path) -> None:
    """A file that was larger in memory than on the disk is called truncated."""
    program = with_break(tmp_path, "store/sqlite/file.py", "            os.fsync(self._file)\n", "            pass\n")
    _, found = await after_a_killed_checkpoint(run, tmp_path, program)
    assert any("truncated since its last use" in wrong for wrong in found)


@pytest.mark.row("F2")
async def test_a_store_that_is_not_fully_synchronised_is_refused(tmp_path: Path) -> None:
    """The pragma is read back: with that line alone broken, the program does not start."""
    program = with_break(tmp_path, *FULL)
    (first, _) = told(tmp_path / DATABASE, "only_open", within=["env", f"--chdir={program}", f"PYTHONPATH={ROOT}"])
    assert first["refused"] == "StoreUnusable"
    assert "full synchronisation" in first["words"]
