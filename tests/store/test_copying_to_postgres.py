"""A SQLite store moved into PostgreSQL: whole, in order, from wherever it was cut off, and compared on both sides."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.model import Way
from relay.rules.rate import rate_from
from relay.store import StoreUnusable
from relay.store.replays import JobState, Replayable, ReplayFilter, ReplayJob
from relay.store.sqlite import SqliteStore
from tests.support.postgres import needed, server
from tests.support.postgres_looking import execute, rows
from tests.support.store_backends import PostgresBackend, SqliteBackend
from tests.support.store_parts import (
    NOW,
    Watch,
    an_event,
    becomes,
    disabled,
    failed,
    killed,
    settlement,
    stored,
    taken,
)

TABLES = (
    *("event", "delivery", "attempt", "target", "refusal", "rerouted", "brought", "tally", "heard", "replay"),
    "replay_item",
)


@pytest.fixture
def database() -> Iterator[str]:
    """The url of an empty database, for the time of a test."""
    needed()
    with server().database() as url:
        yield url


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows a transaction that a small store takes many."""
    monkeypatch.setattr("relay.store.sqlite.leaving.ROWS", 3)
    monkeypatch.setattr("relay.store.postgres.arriving.FETCHED", 2)


def relay(*arguments: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """A verb, run to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", *arguments], capture_output=True, text=True, timeout=50, **how
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


async def copied(file: Path, url: str, moved: Any = lambda *_: None) -> Any:
    """The copy itself."""
    from relay.store.moving import copy

    return await copy(file, url, moved)


async def filled(file: Path) -> None:
    """A store with a row of every kind, as a relay leaves it that was killed: some of it is claimed."""
    store = await SqliteStore.open(file, Watch())
    course = {"crm": (Way("all", "customer", ("a == 1",)),)}
    event = an_event(key="once", body=bytes(range(256)) * 9, headers=(("X-Odd", "\0 \u20ac \\x00"),))
    await store.accept(event, ["crm", "erp"], course)
    await store.keep_brought(event.id, "customer", b'{"name": "Ada"}', now=NOW)
    for number in range(12):
        await stored(store, "crm", "erp", at=NOW + timedelta(seconds=number), body=b"x" * number, key=f"k{number}")
    await stored(store)
    claims = await taken(store, "crm", limit=6, now=NOW + timedelta(minutes=1))
    await store.settle(settlement(claims[0]))
    await failed(store, claims[1], again=NOW + timedelta(hours=1))
    await killed(store, claims[2])
    await killed(store, claims[3])
    await store.change_health("erp", becomes(disabled("erp")))
    pace = rate_from("5/s")
    assert pace is not None
    await store.replays.create(ReplayJob("rpl_1", ReplayFilter(state=Replayable.DEAD), pace, NOW))
    await store.close()
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE delivery SET reason = 'a' || char(0) || 'b' WHERE state = 'dead'")
        db.execute("INSERT INTO rerouted SELECT max(seq), '[\"late\"]' FROM event")
        db.execute("INSERT INTO refusal VALUES (7, 1, 'partner', NULL, 401, 'signature', 'no', 3, '[]')")
        db.execute("UPDATE delivery SET state = 'in_flight', claim = 5, lease_until = 9 WHERE event_seq = 9")
        db.execute("UPDATE heard SET silence_told_at = at + 1")


def looked(file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(file)) as db:
        return {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}


def there(url: str) -> dict[str, int]:
    return {name: rows(url, f"SELECT count(*) FROM {name}")[0][0] for name in TABLES}


def content(url: str) -> list[list[tuple[Any, ...]]]:
    """All that was copied, without what differs from database to database: the base of its numbers."""
    ((base,),) = rows(url, "SELECT base FROM copy")
    found = []
    for name in TABLES:
        columns = [
            f"{column} - {base}" if column in ("event_seq", "seq") and name != "replay" else column
            for (column,) in rows(
                url,
                "SELECT column_name::text FROM information_schema.columns "
                "WHERE table_schema = 'relay' AND table_name = ? ORDER BY 1",
                name,
            )
        ]
        found.append(sorted(rows(url, f"SELECT {', '.join(columns)} FROM {name}"), key=repr))
    return found


async def test_every_kind_of_row_is_moved_and_a_relay_goes_on_from_it(database: str, file: Path) -> None:
    """All rows, in their order, what was claimed due again, the kept counts right; then it is a store like any."""
    await filled(file)
    result = await copied(file, database)
    assert result.is_equal, [one for one in result.tables if not one.is_equal]
    before = looked(file)
    assert min(before.values()) > 0
    assert there(database) == before | {"tally": before["tally"] - 1}  # but for when the file itself began
    old, new = SqliteBackend(file.parent), PostgresBackend(server(), database)
    assert {key: row.__dict__ for key, row in new.deliveries().items()} == {
        key: row.__dict__ | {"reason": row.reason and row.reason.replace("\0", "\\x00")}
        for key, row in old.deliveries().items()
    }
    assert new.attempts() == old.attempts()
    assert new.rows("SELECT id, body FROM event ORDER BY seq") == old.rows("SELECT id, body FROM event ORDER BY seq")
    assert new.rows("SELECT DISTINCT state FROM delivery ORDER BY 1") == [("dead",), ("delivered",), ("pending",)]
    store = await new.open(Watch())
    try:
        kept = rows(database, "SELECT target, state, sum(number)::int FROM counted WHERE target != '' GROUP BY 1, 2")
        assert Counter({(target, state): number for target, state, number in kept}) == new.counted()
        assert (await store.room()).used == sum(size + 512 for (size,) in rows(database, "SELECT size FROM event"))
        assert new.rows("SELECT id, state FROM replay") == [("rpl_1", str(JobState.PAUSED))]
        again = await store.accept(an_event(key="once", body=bytes(range(256)) * 9), ["crm"])
        assert (again.duplicate, again.same_body) == (True, True)
        newest = await stored(store, "crm")
        ((last,),) = rows(database, "SELECT id FROM event ORDER BY seq DESC LIMIT 1")
        assert last == newest.id
    finally:
        await store.close()


async def test_what_comes_after_a_large_copy_has_greater_numbers(database: str, file: Path) -> None:
    """Numbers of the source may reach beyond those that the database would give next."""
    await filled(file)
    with closing(sqlite3.connect(file)) as db, db:
        db.execute(
            "INSERT INTO event SELECT 50000000, 'evt_far', source, type, received_at, verified, hops, NULL, "
            "headers, size, sha256, body, routes, failed_conditions FROM event WHERE seq = 3"
        )
    assert (await copied(file, database)).is_equal
    store = await PostgresBackend(server(), database).open(Watch())
    newest = await stored(store, "crm")
    await store.close()
    assert rows(database, "SELECT id FROM event ORDER BY seq DESC LIMIT 2") == [(newest.id,), ("evt_far",)]


@pytest.mark.usefixtures("small_parts")
async def test_cut_off_behind_any_part_it_goes_on_and_ends_the_same(database: str, file: Path) -> None:
    """Every part is the last of one call; meanwhile no relay starts on it, and in the end all is as of one call."""
    await filled(file)
    parts = 0

    class Cut(Exception):
        """Stands for whatever ends it."""

    def cut(what: str, *_: int) -> None:
        if what == "copy":
            raise Cut

    while True:
        try:
            result = await copied(file, database, cut)
        except Cut:
            parts += 1
            with pytest.raises(StoreUnusable, match="is not finished; finish it with: relay copy sqlite:////"):
                await PostgresBackend(server(), database).open(Watch())
        else:
            break
    assert parts > 20
    assert result.is_equal
    with server().database() as other:
        await copied(file, other)
        assert content(other) == content(database)
    store = await PostgresBackend(server(), database).open(Watch())
    await store.close()
    again = await copied(file, database)
    assert (again.was_done, again.is_equal, again.tables) == (True, True, result.tables)


async def test_killed_at_any_moment_the_same_command_ends_it(database: str, file: Path, tmp_path: Path) -> None:
    """SIGKILL hits it wherever it is."""
    await filled(file)
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("""INSERT INTO event (id, source, type, received_at, verified, hops, headers, size, sha256, body)
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
            SELECT 'evt_more' || i, source, type, received_at, 1, 0, headers, size, sha256, body
            FROM event, n WHERE seq = 3""")
    await (await SqliteStore.open(file, Watch())).close()
    command = [sys.executable, "-m", "relay", "copy", f"sqlite:///{file}", database]
    seen: list[int] = []
    for wanted in (1, 4000, 9000):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 30
        while not moved_there(database) >= wanted:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr and process.stderr.read()
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen.append(moved_there(database))
    assert seen == sorted(seen)
    done = relay("copy", f"sqlite:///{file}", database, "--output", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["equal"]) == (0, True)
    assert told["rows_moved"] < there(database)["event"]
    assert there(database)["event"] == looked(file)["event"]


def moved_there(url: str) -> int:
    if rows(url, "SELECT to_regclass('relay.copy') IS NULL") == [(True,)]:
        return 0
    return sum(number for (number,) in rows(url, "SELECT moved FROM copy"))


CHANGES: Sequence[tuple[str, str, str]] = [
    ("UPDATE event SET body = body || 'x' WHERE seq = (SELECT min(seq) FROM event)", "event", "body"),
    ("UPDATE delivery SET step = step + 1 WHERE state = 'dead'", "delivery", "step"),
    ("DELETE FROM attempt WHERE number = 1", "attempt", "not copied"),
    (
        "INSERT INTO tally VALUES (99, 'source', 'zz', 'accepted', 0, 1)",
        "tally",
        "minute 99, kind source, name zz, what accepted: only in the copy",
    ),
    ("UPDATE brought SET data = '{}'", "brought", "data"),
    ("UPDATE counted SET number = number + 1 WHERE target = 'erp'", "kept counts", "erp, pending"),
]


@pytest.mark.parametrize(("change", "what", "where"), CHANGES, ids=[what for _, what, _ in CHANGES])
@pytest.mark.usefixtures("small_parts")
async def test_what_is_not_equal_is_found_and_named(
    change: str, what: str, where: str, database: str, file: Path
) -> None:
    """A byte of a body, a number, a row that is gone or too many: the table and the place are told."""
    await filled(file)
    is_changed = False

    def spoil(phase: str, *_: int) -> None:
        nonlocal is_changed
        if not is_changed and rows(database, "SELECT part FROM copy") == [(len(TABLES),)]:
            is_changed = True
            execute(database, f"SET search_path TO relay; {change}; SET search_path TO relay, public")

    result = await copied(file, database, spoil)
    (found,) = [one for one in result.tables if not one.is_equal]
    assert found.what == what
    assert where in (found.differs or "")
    with pytest.raises(StoreUnusable, match="is not finished"):
        await PostgresBackend(server(), database).open(Watch())
    done = relay("copy", f"sqlite:///{file}", database)
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout
    assert "the copy is not equal" in done.stderr


async def test_the_verb_tells_what_it_has_moved(database: str, file: Path) -> None:
    """A table for people and an object for programs; a second call finds it done."""
    await filled(file)
    done = relay("copy", f"sqlite:///{file}", database)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:-1]] == [*TABLES, "kept"]
    assert "both sides are equal" in done.stdout
    told = json.loads(relay("copy", f"sqlite:///{file}", database, "--output", "json").stdout)
    assert (told["equal"], told["already_copied"], told["rows_moved"]) == (True, True, 0)
    assert all(len(one["checksum"]) == 64 for one in told["tables"])


async def test_what_must_not_be_copied_is_refused(database: str, file: Path, tmp_path: Path) -> None:
    """A relay on either side, a used destination, another source, a source that went on: each says what to do."""
    await filled(file)
    source = f"sqlite:///{file}"
    held = await SqliteStore.open(file, Watch())
    done = relay("copy", source, database)
    assert (done.returncode, "in use by another relay" in done.stderr, "stop it first" in done.stderr) == (
        75,
        True,
        True,
    )
    await held.close()
    node = await PostgresBackend(server(), database).open(Watch())
    done = relay("copy", source, database)
    assert (done.returncode, "runs on it" in done.stderr) == (75, True)
    await stored(node, "crm")
    await node.close()
    done = relay("copy", source, database)
    assert (done.returncode, "holds rows of its own already" in done.stderr) == (74, True)
    with server().database() as empty:
        assert relay("copy", source, empty).returncode == 0
        other = tmp_path / "other" / "relay.db"
        other.parent.mkdir()
        await filled(other)
        done = relay("copy", f"sqlite:///{other}", empty)
        assert (done.returncode, "is being copied into it" in done.stderr or "was copied" in done.stderr) == (74, True)
        went_on = await SqliteStore.open(file, Watch())
        await went_on.change_health("crm", becomes(disabled()))  # no event, no attempt: and yet it is another store
        await went_on.close()
        done = relay("copy", source, empty)
        assert (done.returncode, "a relay has run on it since" in done.stderr) == (74, True)


async def test_a_damaged_source_is_named(database: str, file: Path) -> None:
    """The event whose body is not what it was, and a row that is none of ours."""
    await filled(file)
    with closing(sqlite3.connect(file)) as db, db:
        ((event_id,),) = db.execute("SELECT id FROM event WHERE seq = 4").fetchall()
        db.execute("UPDATE event SET body = x'00' WHERE seq = 4")
    done = relay("copy", f"sqlite:///{file}", database)
    assert done.returncode == 74
    assert f"event {event_id} is damaged" in done.stderr
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE event SET body = x'', size = 0, sha256 = zeroblob(32), received_at = 'x' WHERE seq = 4")
    done = relay("copy", f"sqlite:///{file}", database)
    assert (done.returncode, "its received_at is no number" in done.stderr) == (74, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("relay.db", "postgresql://u@h/d"), 2, "write sqlite:///relative.db"),
        (
            ("sqlite:///relay.db", "mysql://u:secret@h/d"),
            2,
            "must name a host and a database: postgresql://user:password@host:5432/database",
        ),
        (
            ("sqlite:///relay.db", "postgresql://u:secret@h:port/d"),
            2,
            "must name a host and a database: postgresql://user:password@host:5432/database",
        ),
        (
            ("sqlite:///relay.db", "postgresql://u:secret@[::1/d"),
            2,
            "must name a host and a database: postgresql://user:password@host:5432/database",
        ),
        (("sqlite:///relay.db",), 2, "Missing argument"),
        (("sqlite:///absent.db", "postgresql://u@127.0.0.1:1/d"), 74, "there is no such file"),
        (("sqlite:///text.db", "postgresql://u@127.0.0.1:1/d"), 74, "file is not a database"),
        (("sqlite:///good.db", "postgresql://u:secret@127.0.0.1:1/d"), 74, "cannot be reached"),
    ],
)
async def test_a_bad_command_says_what_to_write(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    """No password of an argument is repeated."""
    (tmp_path / "text.db").write_text("no database " * 20)
    await filled(tmp_path / "good.db")
    done = relay("copy", *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "secret" not in done.stderr
