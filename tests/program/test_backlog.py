"""A start with a hundred thousand deliveries waiting: soon, in order, within bounds of memory, and no herd."""

import asyncio
import hashlib
import json
import signal
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from relay.store.sqlite import SqliteStore
from relay.store.sqlite.statements import EVENT_INSERT
from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config
from tests.support.store_parts import Watch

WAITING = 100_000
LIMIT_MIB = 160
CONCURRENCY = 4


async def filled(file: Path, targets: Sequence[str]) -> None:
    """A store in which so many deliveries wait, made without the port because it is quicker. The later an event, the
    longer is it due."""
    await (await SqliteStore.open(file, Watch())).close()
    began = (int(time.time()) - 3600) * 1000
    insert = EVENT_INSERT.format(rows="(?, ?, 'shop', 'order', ?, 1, 0, NULL, '[]', ?, ?, ?, '[]', NULL)")
    deliver = "INSERT INTO delivery (event_seq, target, state, due_at) VALUES (?, ?, 'pending', ?)"
    number = WAITING // len(targets)
    bodies = [json.dumps({"id": seq, "text": "x" * 400}).encode() for seq in range(1, number + 1)]
    rows = ((seq, f"evt_{seq:08}", began, len(b), hashlib.sha256(b).digest(), b) for seq, b in enumerate(bodies, 1))
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.executemany(insert, rows)
        for target in targets:
            db.executemany(deliver, ((seq, target, began + number - seq) for seq in range(1, number + 1)))
        db.execute("COMMIT")


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.row("F32", "F38")
async def test_a_start_with_a_hundred_thousand_waiting_is_soon_orderly_and_small(tmp_path: Path) -> None:
    """Webhooks are taken at once; what is due longest leaves first, never more at a time than a target takes; memory
    stays within 160 MiB, also after thousands were delivered."""
    targets = {f"t{number}": f", concurrency: {CONCURRENCY}" for number in range(4)}
    under_way: dict[str, int] = dict.fromkeys(targets, 0)
    most = 0

    async def answer(arrival: Arrival) -> int:
        nonlocal most
        under_way[arrival.target] += 1
        most = max(most, under_way[arrival.target])
        await asyncio.sleep(0.01)
        under_way[arrival.target] -= 1
        return 200

    async with Sink(answer) as sink:
        config = write_config(tmp_path / "c.yaml", sink, targets=targets)
        await filled(tmp_path / "relay.db", tuple(targets))
        began = time.monotonic()
        async with Gateway(config) as gateway:
            started = time.monotonic() - began
            assert (await gateway.post(*webhook("new")))[0] == 200
            taken = time.monotonic() - began
            await until(lambda: bool(sink.arrivals))
            print(
                f"listens after {started:.2f} s, takes after {taken:.2f}, delivers after {time.monotonic() - began:.2f}"
            )
            await until(lambda: len(sink.arrivals) > 3000, within=60)
            assert most <= CONCURRENCY
            for target in targets:
                numbers = [int(each[4:]) for each in sink.ids(target) if each.startswith("evt_0000")]
                for place, number in enumerate(numbers):
                    assert abs(WAITING // 4 - place - number) <= 2 * CONCURRENCY
            print(f"peak {peak_mib(gateway.process.pid):.0f} MiB")
            assert peak_mib(gateway.process.pid) < LIMIT_MIB
            assert len(sink.arrivals) == len({(one.target, one.event_id) for one in sink.arrivals})
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0
