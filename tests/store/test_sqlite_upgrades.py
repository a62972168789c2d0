"""Stores that earlier versions have written: opened, brought up to date, and everything kept."""

import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from relay.model import DisabledBy, TargetState
from relay.store.sqlite import SqliteStore
from relay.store.sqlite.schema import MIGRATIONS
from tests.support.store_parts import NOW, Watch, an_event, one, taken
from tests.support.store_schemas import SCHEMAS, STANDING, VERSIONS, body_of, restored, standing


def schema(file: Path) -> set[tuple[str, str, str, tuple[str, ...]]]:
    """Every table and index, its columns and its checks."""
    with closing(sqlite3.connect(file)) as db:
        made = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'").fetchall()
        return {
            (kind, name, str(db.execute(f"PRAGMA table_info({name})").fetchall()), tuple(re.findall("CHECK .*", sql)))
            for kind, name, sql in made
        }


@pytest.mark.row("F37")
def test_there_is_a_store_of_every_version() -> None:
    """Who changes the schema adds one."""
    assert {file.name for file in SCHEMAS.iterdir()} == {f"schema-{version}.sql" for version in VERSIONS}


@pytest.mark.row("F37")
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_store_of_an_earlier_version_is_brought_up_with_all_that_it_holds(file: Path, version: int) -> None:
    """Bodies, states, attempts, health, and what events are known again by; only claims are taken back."""
    restored(version, file)
    assert standing(file) == STANDING
    store = await SqliteStore.open(file, Watch())
    kept = STANDING | {("evt_under_way", "crm"): "pending"}
    assert standing(file) == kept
    for event_id in {event_id for event_id, _ in STANDING} | {"evt_unrouted"}:
        assert await store.body(event_id) == body_of(event_id)
    books = await store.target_health("books")
    assert (books.state, books.disabled_by, books.failures) == (TargetState.DISABLED, DisabledBy.FAILURES, 3)
    attempts = {each.number for each in (await store.archive.event("evt_dead")).attempts}  # type: ignore[union-attr]
    assert attempts == {1, 2}
    assert (await store.accept(an_event(key="fresh", source="shop"), ["crm"])).event_id == "evt_fresh"
    assert store.last_received()["shop"] >= NOW
    claims = {claim.event.id: claim for claim in await taken(store, limit=9, now=NOW + timedelta(hours=2))}
    assert claims["evt_under_way"].attempt == 2
    assert claims["evt_under_way"].event.headers == (("Content-Type", "application/json"), ("X-Shop", "Ünï"))
    assert (await one(store, "books", now=NOW + timedelta(hours=2))).event.id == "evt_held"
    await store.close()
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.row("F37")
@pytest.mark.parametrize("version", VERSIONS)
async def test_whichever_version_made_it_a_store_ends_up_the_same(file: Path, tmp_path: Path, version: int) -> None:
    """Table by table and index by index as one that is made today."""
    (tmp_path / "old").mkdir()
    old = restored(version, tmp_path / "old" / "relay.db")
    for each in (file, old):
        await (await SqliteStore.open(each, Watch())).close()
    assert schema(old) == schema(file)
