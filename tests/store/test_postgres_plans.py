"""What a claim costs beside a large backlog: counted in pages that the server reads, not in seconds."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from relay.model import Turn
from relay.store.postgres.claiming import TAKES
from relay.store.postgres.connection import BEGIN
from tests.support.postgres_looking import execute
from tests.support.store_backends import PostgresBackend
from tests.support.store_parts import NOW, Watch, accepted_many

WAITING = 200_000
DUE_AT = round(NOW.timestamp() * 1000)
BACKLOG = f"""
    INSERT INTO relay.event (seq, id, source, type, received_at, verified, hops, headers, size, sha256, body)
        SELECT n, 'evt_old_' || n, 'shop', 'order', {DUE_AT}, TRUE, 0, '[]', 2, decode(repeat('00', 32), 'hex'), '{{}}'
        FROM generate_series(1, {WAITING}) n;
    INSERT INTO relay.delivery (event_seq, target, state, due_at)
        SELECT n, 'crm', 'pending', {DUE_AT} + n FROM generate_series(1, {WAITING}) n;
    ANALYZE relay.event; ANALYZE relay.delivery;
"""


@pytest.fixture
async def db(backend: PostgresBackend) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to a database with some deliveries that wait."""
    store = await backend.open(Watch())
    await accepted_many(store, 300, "crm", "books")
    await store.close()
    opened = await asyncpg.connect(backend.url)
    yield opened
    await opened.close()


async def plan(db: "asyncpg.Connection[asyncpg.Record]", turn: Turn) -> dict[str, Any]:
    """How the server makes a claim of a hundred, and what that costs; undone afterwards."""
    await db.execute(BEGIN)
    query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {TAKES[turn]}"
    explained = await db.fetchval(query, "crm", DUE_AT + 10 * WAITING, 100, 0, 7, 1)
    await db.execute("ROLLBACK")
    found: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return found


def nodes(plan: dict[str, Any]) -> list[str]:
    """The kinds of all steps of a plan."""
    return [plan["Node Type"], *(kind for part in plan.get("Plans", []) for kind in nodes(part))]


def pages(plan: dict[str, Any]) -> int:
    """Pages that were looked at."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.parametrize("turn", [Turn.DUE, Turn.FIRST, Turn.ARRIVAL])
async def test_a_claim_costs_the_same_whatever_waits(
    backend: PostgresBackend, db: "asyncpg.Connection[asyncpg.Record]", turn: Turn
) -> None:
    """By the index of what waits, and each row by its key; no table is gone through, before or after its statistics."""
    few = await plan(db, turn)
    execute(backend.url, BACKLOG)
    many = await plan(db, turn)
    assert "Seq Scan" not in nodes(few) + nodes(many)
    assert pages(many) < 2 * pages(few) + 200
