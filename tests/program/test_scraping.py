"""What a look at a large relay costs."""

import contextlib
import signal
import sqlite3
import statistics
import time
from pathlib import Path

import aiohttp
import pytest

from tests.support.floods import memory, metric
from tests.support.program import Gateway, Sink, until, webhook, write_config

EVENTS = 340_000
"""With two deliveries each they are a million rows."""


def fill(store: Path) -> None:
    """A million rows as the relay itself would have written them: one target has all, the other holds a third."""
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        db.execute(
            f"{numbers} INSERT INTO event"
            " (seq, id, source, type, received_at, verified, hops, headers, size, sha256, body)"
            " SELECT i, printf('evt_%d', i), 'shop', 'paid', ?, 1, 0, '[]', 2, zeroblob(32), X'7B7D' FROM n",
            (1000 + EVENTS - 1, int(time.time() * 1000)),
        )
        db.execute(
            "INSERT INTO delivery (event_seq, target, state, due_at, attempts, settled_at, outcome)"
            " SELECT seq, 'books', 'delivered', received_at, 1, received_at, 'delivered' FROM event WHERE seq >= 1000"
        )
        db.execute(
            "INSERT INTO delivery (event_seq, target, state, due_at) SELECT seq, 'crm',"
            " CASE seq % 3 WHEN 0 THEN 'pending' ELSE 'delivered' END, received_at FROM event WHERE seq >= 1000",
        )
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.row("B37")
async def test_a_scrape_costs_the_same_with_a_million_rows_as_with_none(tmp_path: Path) -> None:
    """Two relays are scraped in turn: the full one takes no more than a few times as long, and takes webhooks as ever.
    Counting its rows would take hundreds of times as long."""
    async with Sink() as sink, aiohttp.ClientSession() as session:
        folders = [tmp_path / name for name in ("empty", "full")]
        gateways = []
        for folder in folders:
            folder.mkdir()
            gateways.append(Gateway(write_config(folder / "config.yaml", sink, targets={"crm": "", "books": ""})))
        empty, full = gateways
        async with full:
            async with session.post(f"{full.admin}/api/v1/targets/crm/disable", json={}) as answer:
                assert answer.status == 200
            full.signal(signal.SIGTERM)
            assert await full.ended() == 0
            fill(folders[1] / "relay.db")
            await full.start()
            async with empty:
                times: dict[Gateway, list[float]] = {empty: [], full: []}
                for _ in range(40):
                    for gateway in gateways:
                        began = time.perf_counter()
                        async with session.get(f"{gateway.admin}/metrics") as answer:
                            assert answer.status == 200
                            await answer.read()
                        times[gateway].append(time.perf_counter() - began)
                assert await metric(full, "relay_deliveries", state="held", target="crm") == EVENTS // 3
                assert statistics.median(times[full]) < 4 * statistics.median(times[empty]) + 0.005
                assert memory(full.process.pid) - memory(empty.process.pid) < 60
            assert (await full.post(*webhook("one more")))[0] == 200
            await until(lambda: len(sink.arrivals) == 1)
