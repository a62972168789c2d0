"""Files that were damaged anywhere: what opens never hands out what was not received, and what does not says so."""

import asyncio
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from relay.store import StoreUnavailable, StoreUnusable
from relay.store.sqlite import SqliteStore
from tests.support.store_files import refused, used
from tests.support.store_parts import NOW, Watch, an_event, settlement, stored, taken

SEEDS = 25
Ruin = Callable[[random.Random, bytearray], None]


def bits(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def zeros(rng: random.Random, content: bytearray) -> None:
    start = rng.randrange(len(content)) // 512 * 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))


def rubbish(rng: random.Random, content: bytearray) -> None:
    start = rng.randrange(len(content)) // 4096 * 4096
    content[start : start + 4096] = rng.randbytes(len(content[start : start + 4096]))


def another_page(rng: random.Random, content: bytearray) -> None:
    """A write that went to the wrong place."""
    one, other = (rng.randrange(max(1, len(content) // 4096)) * 4096 for _ in range(2))
    page = content[one : one + 4096]
    content[other : other + len(page)] = page


def header(rng: random.Random, content: bytearray) -> None:
    content[rng.randrange(min(100, len(content)))] = rng.randrange(256)


def cut(rng: random.Random, content: bytearray) -> None:
    del content[rng.choice([0, 1, 99, 100, 512, 4095, 4096, 4097, rng.randrange(len(content))]) :]


AFRESH = "relay run --new-store"

RUINS: list[Ruin] = [bits, zeros, rubbish, another_page, header, cut]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The files of a store in use whose process was killed, and the bodies of its events."""
    home = tmp_path_factory.mktemp("sound")
    bodies: dict[str, bytes] = {}

    async def made() -> None:
        store = await SqliteStore.open(home / "relay.db", Watch())
        for number in range(40):
            event = an_event(body=bytes([65 + number % 26]) * (10 + number * number * 20), key=f"key-{number}")
            bodies[event.id] = event.body
            await store.accept(event, ["crm"] if number % 3 else ["crm", "books"])
            if number == 20:
                await store.close()
                store = await SqliteStore.open(home / "relay.db", Watch())
        for claim in await taken(store, limit=10):
            await store.settle(settlement(claim))
        killed = home / "killed"
        killed.mkdir()
        for end in ("", "-wal", ".guard"):
            shutil.copy(home / f"relay.db{end}", killed)
        await store.close()

    asyncio.run(made())
    return home / "killed", bodies


async def handed_out(store: SqliteStore) -> dict[str, bytes]:
    """Every body that a target would get; what is damaged is refused in the port's words."""
    found: dict[str, bytes] = {}
    for target in ("crm", "books"):
        for _ in range(20):
            try:
                claims = await taken(store, target, limit=9, now=NOW + timedelta(days=1))
                for claim in claims:
                    body = await store.body(claim.event.id) if claim.body_deferred else claim.event.body
                    found[claim.event.id] = body
                    await store.settle(settlement(claim))
            except (StoreUnavailable, StoreUnusable):
                continue
    return found


@pytest.mark.slow
@pytest.mark.row("F8", "C53")
@pytest.mark.parametrize("end", ["", "-wal"], ids=["database", "log"])
@pytest.mark.parametrize("ruin", RUINS)
async def test_damage_anywhere_is_refused_or_harmless(
    sound: tuple[Path, dict[str, bytes]], tmp_path: Path, ruin: Ruin, end: str
) -> None:
    """Refused, the words name the file and it is as it was found; opened, no target gets a byte that was not received,
    nothing is made up, and no error but those of the port comes out."""
    killed, bodies = sound
    words: list[str] = []
    ends = {"refused": 0, "opened": 0}
    for seed in range(SEEDS):
        home = tmp_path / str(seed)
        shutil.copytree(killed, home)
        file = home / "relay.db"
        ruined = home / f"relay.db{end}"
        content = bytearray(ruined.read_bytes())
        ruin(random.Random(f"{ruin.__name__}{end}{seed}"), content)
        ruined.write_bytes(content)
        before = {name: (home / name).read_bytes() for name in ("relay.db", "relay.db-wal")}
        try:
            store = await asyncio.wait_for(SqliteStore.open(file, Watch()), 20)
        except StoreUnusable as error:
            words.append(str(error))
            assert {name: (home / name).read_bytes() for name in before} == before, seed
            ends["refused"] += 1
        else:
            found = await handed_out(store)
            for event_id, body in found.items():
                assert body == bodies.get(event_id, body), seed
            assert await store.close()
            ends["opened"] += 1
        shutil.rmtree(home)
    assert all(str(tmp_path) in one for one in words)
    print(ruin.__name__, end, ends, words[:2])
    if (not end or ruin is not cut) and ruin is not header:
        assert ends["refused"] > 0


# what SQLite itself passes over


async def killed_with(file: Path, home: Path, events: int) -> Path:
    """The files of a killed store whose log holds so many commits."""
    await used(file)
    store = await SqliteStore.open(file, Watch())
    for _ in range(events):
        await stored(store, "crm", body=b"y" * 5000)
    home.mkdir()
    for end in ("", "-wal", ".guard"):
        shutil.copy(file.with_name(file.name + end), home)
    await store.close()
    return home / file.name


@pytest.mark.row("F8", "C53")
@pytest.mark.parametrize("place", [0, 3, 18, 26, 34, 32 + 4120 + 500], ids=str)
async def test_a_log_that_is_broken_in_its_middle_is_refused(file: Path, tmp_path: Path, place: int) -> None:
    """SQLite would take the damage for the end and forget, in silence, what was promised behind it."""
    killed = await killed_with(file, tmp_path / "killed", 6)
    log = killed.with_name("relay.db-wal")
    content = bytearray(log.read_bytes())
    content[place] ^= 0x10
    log.write_bytes(content)
    words = await refused(killed)
    assert "commits after it would be lost" in words
    assert AFRESH in words
    content[place] ^= 0x10
    log.write_bytes(content)
    store = await SqliteStore.open(killed, Watch())
    assert len(await taken(store, limit=99)) == 9
    await store.close()


@pytest.mark.row("F8")
@pytest.mark.parametrize("left", [0.25, 0.5, 0.75, 0.999])
async def test_a_log_whose_end_is_torn_is_taken_up_to_there(file: Path, tmp_path: Path, left: float) -> None:
    """A power cut tears what was being written, which was promised to nobody: it is no damage."""
    killed = await killed_with(file, tmp_path / "killed", 1)
    more = await killed_with(killed, tmp_path / "more", 1)
    log = more.with_name("relay.db-wal")
    os.truncate(log, int(log.stat().st_size * left))
    store = await SqliteStore.open(more, Watch())
    assert len(await taken(store, limit=99)) >= 4
    await store.close()


def log_after(killed: Path, home: Path, size: int) -> bytes:
    """The log of a copy of a killed store after one commit more, as large as that."""
    shutil.copytree(killed.parent, home)
    with closing(sqlite3.connect(home / killed.name)) as db:
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"CREATE TABLE more AS SELECT randomblob({size}) AS filler")
        return (home / f"{killed.name}-wal").read_bytes()


@pytest.mark.row("F3", "F8")
async def test_the_ends_of_commits_whose_sync_failed_are_no_damage(file: Path, tmp_path: Path) -> None:
    """Each was written over by a shorter one. Nobody was promised what stands in such ends, however many there are."""
    killed = await killed_with(file, tmp_path / "killed", 2)
    logs = [log_after(killed, tmp_path / str(size), size) for size in (10_000, 100_000, 300_000)]
    done = logs[0]
    for log in logs[1:]:
        done += log[len(done) :]
    killed.with_name("relay.db-wal").write_bytes(done)
    store = await SqliteStore.open(killed, Watch())
    assert len(await taken(store, limit=99)) == 5
    await store.close()


@pytest.mark.row("F8")
async def test_a_table_that_lost_a_column_is_refused_before_anything_is_written(file: Path, tmp_path: Path) -> None:
    """One bit in the description of a table: the words say what is missing, and the log is left as it was."""
    killed = await killed_with(file, tmp_path / "killed", 2)
    content = bytearray(killed.read_bytes())
    content[content.index(b"counted_events")] ^= 1
    killed.write_bytes(content)
    words = await refused(killed)
    assert "damaged (target.counted_events is missing)" in words
    assert killed.with_name("relay.db-wal").stat().st_size > 0


@pytest.mark.parametrize("note", [b'{"pid": 1', b"\0" * 64, b"[]", b'{"bytes": "many"}'])
async def test_a_guard_whose_note_is_torn_still_knows_that_there_was_a_store(file: Path, note: bytes) -> None:
    """A note that cannot be read must not make a loss look like a first start; with the store it is no matter."""
    await used(file)
    file.with_name("relay.db.guard").write_bytes(note)
    await used(file)
    file.with_name("relay.db.guard").write_bytes(note)
    file.unlink()
    assert "vanished since its last use" in await refused(file)
