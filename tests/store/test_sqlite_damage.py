"""What the disk has changed is never delivered as if it were what was received."""

import asyncio
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.model import OutcomeKind, RetryAt, TargetHealth, TargetState
from relay.store import StoreUnusable
from relay.store.sqlite import SqliteStore
from tests.support.store_files import strange
from tests.support.store_parts import (
    NOW,
    SECOND,
    Watch,
    an_event,
    becomes,
    disabled,
    ids,
    one,
    settlement,
    taken,
)

SIZES = [1, 700, 5_000, 64 * 1024, 300_000]


def body_of(size: int) -> bytes:
    """A body that is found in the file by its beginning."""
    return (b"Body with a beginning " + bytes(range(65, 91)) * (size // 26 + 1))[:size] if size > 30 else b"\xa7" * size


async def written(file: Path, *sizes: int) -> list[str]:
    """A closed store that holds an event of each size; all bytes are in the one file."""
    store = await SqliteStore.open(file, Watch())
    events = [an_event(body=body_of(size), headers=(("X-Sign", "a-signature"),)) for size in sizes]
    for event in events:
        await store.accept(event, ["crm"])
    await store.close()
    return [event.id for event in events]


def rot(file: Path, event_id: str, column: str, place: int) -> None:
    """Flip the lowest bit of one byte of a value, as a failing disk would: nothing else of the file changes."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        (seq,) = db.execute("SELECT seq FROM event WHERE id = ?", (event_id,)).fetchone()
        with db.blobopen("event", column, seq) as blob:
            blob.seek(place)
            octet = blob.read(1)[0]
            blob.seek(place)
            blob.write(bytes([octet ^ 1]))


def rot_in_the_file(file: Path, needle: bytes) -> None:
    """The same with no help of SQLite, in the bytes on the disk."""
    content = bytearray(file.read_bytes())
    content[content.index(needle) + 5] ^= 1
    file.write_bytes(content)


@pytest.mark.row("F8")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("where", ["first", "last"])
async def test_a_damaged_body_is_refused_and_never_handed_out(file: Path, size: int, where: str) -> None:
    """One bit that fell over, which the start's own check cannot see: the claim carries no body, and asking says so."""
    damaged, sound = await written(file, size, size)
    rot(file, damaged, "body", 0 if where == "first" else size - 1)
    store = await SqliteStore.open(file, Watch())
    claims = {claim.event.id: claim for claim in await taken(store, limit=2)}
    assert claims[damaged].body_deferred
    assert claims[damaged].event.body == b""
    assert claims[damaged].event.headers == (("X-Sign", "a-signature"),)
    with pytest.raises(StoreUnusable, match=f"the stored body of event {damaged} is damaged"):
        await store.body(damaged)
    assert claims[sound].event.body == (body_of(size) if size <= 64 * 1024 else b"")
    assert await store.body(sound) == body_of(size)
    await store.close()


async def test_a_bit_that_fell_over_on_the_disk_passes_the_start_but_not_the_claim(file: Path) -> None:
    """The reason for the checksum."""
    (damaged,) = await written(file, 700)
    rot_in_the_file(file, b"Body with a beginning")
    store = await SqliteStore.open(file, Watch())
    assert (await one(store)).event.body == b""
    with pytest.raises(StoreUnusable):
        await store.body(damaged)
    await store.close()


@pytest.mark.parametrize("place", [0, 1, 2, 12])
async def test_damaged_headers_do_not_block_their_target(file: Path, place: int) -> None:
    """Headers that cannot be read make the one event undeliverable, and the ones behind it go on."""
    damaged, sound = await written(file, 700, 700)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        (headers,) = db.execute("SELECT headers FROM event WHERE id = ?", (damaged,)).fetchone()
        rotten = headers.encode()[:place] + b"\xff" + headers.encode()[place + 1 :]
        db.execute("UPDATE event SET headers = CAST(? AS TEXT) WHERE id = ?", (rotten, damaged))
    store = await SqliteStore.open(file, Watch())
    claims = await taken(store, limit=9)
    assert ids(claims) == [damaged, sound]
    assert (claims[0].body_deferred, claims[0].event.headers, claims[0].event.body) == (True, (), b"")
    with pytest.raises(StoreUnusable, match="headers"):
        await store.body(damaged)
    assert claims[1].event.body == body_of(700)
    await store.close()


async def test_headers_of_another_shape_are_damaged_too(file: Path) -> None:
    """JSON that is not a list of pairs is no headers."""
    for headers in ("7", "[7]", '[["a"]]', "null", '{"a": 1}', "", "[[]]"):
        file.with_name("relay.db").unlink(missing_ok=True)
        file.with_name("relay.db.guard").unlink(missing_ok=True)
        (damaged,) = await written(file, 700)
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("UPDATE event SET headers = ?", (headers,))
        store = await SqliteStore.open(file, Watch())
        claim = await one(store)
        assert claim.body_deferred, headers
        with pytest.raises(StoreUnusable):
            await store.body(damaged)
        await store.close()


async def test_a_damaged_event_can_be_settled_and_pruned_like_others(file: Path) -> None:
    """Its delivery takes its course: tried, recorded, and one day dead with a reason."""
    (damaged,) = await written(file, 700)
    rot(file, damaged, "body", 3)
    store = await SqliteStore.open(file, Watch())
    claim = await one(store)
    await store.settle(settlement(claim, RetryAt(NOW + SECOND, 1), kind=OutcomeKind.UNPREPARED, status=None))
    assert (await one(store, now=NOW + SECOND)).step == 1
    await store.close()


async def test_an_event_that_is_not_there_has_no_body(file: Path) -> None:
    """Pruned or never known: the words name it."""
    store = await SqliteStore.open(file, Watch())
    with pytest.raises(StoreUnusable, match="event evt_none is not in the store"):
        await store.body("evt_none")
    await store.close()


@pytest.mark.row("F8")
async def test_a_page_that_breaks_under_a_running_store_is_an_error_of_the_port(file: Path) -> None:
    """A reader of a broken page is told in the port's words, with the file; no raw error of the database escapes."""
    (event_id,) = await written(file, 300_000)
    store = await SqliteStore.open(file, Watch())
    content = file.read_bytes()
    start = content.index(b"Body with a beginning") // 4096 * 4096
    with file.open("r+b") as raw:
        raw.seek(start + 4096)
        raw.write(b"\xff" * 4 + b"\0" * 64)
    with pytest.raises(StoreUnusable, match=re.escape(str(file))):
        await asyncio.wait_for(store.body(event_id), 10)
    await store.close()


@pytest.mark.row("F8")
@pytest.mark.parametrize(
    ("ruin", "reason"),
    [
        ("DELETE FROM event WHERE seq = 1", "its event is missing from the store"),
        ("UPDATE event SET received_at = 9000000000000000000 WHERE seq = 1", "damaged"),
        ("UPDATE event SET received_at = 'noon' WHERE seq = 1", "damaged"),
        ("UPDATE event SET hops = 'many' WHERE seq = 1", "damaged"),
        ("UPDATE event SET source = CAST(x'ff' AS TEXT) WHERE seq = 1", "damaged"),
        ("UPDATE delivery SET step = 'x' WHERE event_seq = 1", "damaged"),
        ("UPDATE delivery SET first_try_at = 9000000000000000000 WHERE event_seq = 1", "damaged"),
    ],
)
async def test_a_row_that_can_never_be_sent_is_dead_and_the_ones_behind_it_go_on(
    file: Path, ruin: str, reason: str
) -> None:
    """It would fail every claim of its target for ever: it is dead with a reason, counted, and out of the way."""
    _, sound = await written(file, 700, 700)
    strange(file, ruin)
    store = await SqliteStore.open(file, Watch())
    await store.backlog(["crm"])
    assert await taken(store, limit=1) == []
    assert ids(await taken(store, limit=9)) == [sound]
    (backlog,) = await store.backlog(["crm"])
    assert (backlog.pending, backlog.in_flight, backlog.dead) == (0, 1, 1)
    await store.close()
    with closing(sqlite3.connect(file)) as db:
        ((seq, why),) = db.execute("SELECT event_seq, reason FROM delivery WHERE state = 'dead'")
    assert seq == 1
    assert reason in why


async def test_a_missing_event_does_not_bar_the_enabling_of_its_target(file: Path) -> None:
    """What has no arrival any more keeps its due time; the rest is due."""
    await written(file, 700, 700)
    strange(file, "DELETE FROM event WHERE seq = 1; UPDATE delivery SET attempts = 1")
    store = await SqliteStore.open(file, Watch())
    await store.change_health("crm", becomes(disabled()))
    await store.change_health("crm", becomes(TargetHealth("crm")))
    assert (await store.target_health("crm")).state is TargetState.ACTIVE
    await store.close()
