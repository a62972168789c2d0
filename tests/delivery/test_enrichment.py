"""What fetches for all: what it does where the store, a reload or the enricher itself is not as one would wish."""

import asyncio
import contextlib
import gc
import json
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from relay.delivery.enrichment import AT_A_TIME, LARGEST_ON_THE_LOOP, LONGEST_QUEUE, Enriched, Enrichment
from relay.delivery.tokens import Tokens
from relay.model import Enricher, Event, Outcome, OutcomeKind
from relay.rules.egress import EgressPolicy
from relay.rules.enriching import Answer
from relay.store.sqlite import SqliteStore
from tests.support.scripted_target import Received, ScriptedServer, raw, scripted
from tests.support.store_parts import NOW, Watch, an_event

PRIVATE = EgressPolicy()


class Silent:
    """A witness that nobody asks."""

    def enriched(self, enricher: str, event: Event, answer: Answer, *, took: timedelta) -> None:
        """See `Witness`."""

    def enricher_failing(self, enricher: str, reason: str, *, next_at: datetime) -> None:
        """See `Witness`."""

    def enricher_recovered(self, enricher: str) -> None:
        """See `Witness`."""


def json_of(value: object) -> bytes:
    """An answer of 200 with JSON."""
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def stock(port: int, name: str = "stock") -> Enricher:
    """An enricher on this machine."""
    return Enricher(name=name, url=f"http://127.0.0.1:{port}/")


@contextlib.asynccontextmanager
async def enriching(path: Path, *enrichers: Enricher) -> AsyncIterator[tuple[Enrichment, SqliteStore]]:
    """An enrichment over a real store, until the block ends."""
    store = await SqliteStore.open(path, Watch())
    tokens = Tokens(lambda: PRIVATE, user_agent="relay/test")
    one = Enrichment(store, tokens, Silent(), user_agent="relay/test", now=lambda: datetime.now(UTC), rng=Random(1))
    try:
        one.exchange(one.prepared(enrichers, PRIVATE))
        yield one, store
    finally:
        await one.close()
        await tokens.close()
        await store.close()


async def test_what_the_disk_has_damaged_is_fetched_again(tmp_path: Path) -> None:
    """It is no fault of the event, and none that ends a loop; the new answer takes its place."""
    path, event = tmp_path / "relay.db", an_event()
    async with scripted(raw(json_of({"n": 1}))) as api:
        async with enriching(path, stock(api.port)) as (one, store):
            await store.accept(event, ["crm"])
            assert await one.bring("stock", event, event.body) == Enriched({"n": 1})
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE brought SET data = x'7b22ff'")
        for _ in range(2):
            async with enriching(path, stock(api.port)) as (one, store):
                assert await one.bring("stock", event, event.body) == Enriched({"n": 1})
                assert await store.brought(event.id, "stock") == b'{"n":1}'
        assert len(api.received) == 2


async def test_a_large_answer_is_the_same_beside_the_loop(tmp_path: Path) -> None:
    """What is read in a thread is read alike, from the wire and from the store."""
    event, found = an_event(), {"list": list(range(LARGEST_ON_THE_LOOP))}
    async with scripted(raw(json_of(found))) as api:
        async with enriching(tmp_path / "relay.db", stock(api.port)) as (one, store):
            await store.accept(event, ["crm"])
        for _ in range(2):
            async with enriching(tmp_path / "relay.db", stock(api.port)) as (one, _store):
                assert await one.bring("stock", event, event.body) == Enriched(found)
        assert len(api.received) == 1


@pytest.mark.row("B21")
async def test_an_answer_as_deep_as_it_can_just_be_read_ends_no_loop(tmp_path: Path) -> None:
    """How deep may be read depends on where it is read: what one reader takes and the next does not is the event's own
    misfortune, told with a reason, and nothing of it is kept."""
    padding = b" " * LARGEST_ON_THE_LOOP  # so that the answer is read in a thread, and what is kept of it on the loop
    for depth in range(900, 1000, 7):
        body, event = padding + b"[" * depth + b"]" * depth, an_event()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        async with scripted(raw(answer)) as api, enriching(tmp_path / "relay.db", stock(api.port)) as (one, store):
            await store.accept(event, ["crm"])
            found = await one.bring("stock", event, event.body)
            if isinstance(found, Outcome):
                assert found.kind is OutcomeKind.UNPREPARED
                assert await store.brought(event.id, "stock") is None


@pytest.mark.slow
async def test_who_waits_too_long_for_a_busy_enricher_comes_again(tmp_path: Path) -> None:
    """Nobody holds a target's slot for long: it waits without a step, and those before it are served."""
    answer_now = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await answer_now.wait()
        writer.write(json_of({"n": 1}))

    events = [an_event() for _ in range(AT_A_TIME + 1)]
    async with scripted(answer) as api, enriching(tmp_path / "relay.db", patient(api)) as (one, store):
        for event in events:
            await store.accept(event, ["crm"])
        waiting = [asyncio.create_task(one.bring("stock", event, event.body)) for event in events]
        (done,), others = await asyncio.wait(
            waiting, timeout=2 * LONGEST_QUEUE.total_seconds(), return_when=asyncio.FIRST_COMPLETED
        )
        last = done.result()
        assert isinstance(last, Outcome)
        assert (last.kind, last.reason) == (OutcomeKind.INTERRUPTED, "waiting: enricher stock is busy")
        assert last.retry_after
        answer_now.set()
        assert set(map(str, await asyncio.gather(*others))) == {str(Enriched({"n": 1}))}


def patient(api: ScriptedServer) -> Enricher:
    """One that is waited for as long as the YAML allows."""
    return Enricher(name="stock", url=f"http://127.0.0.1:{api.port}/", timeout=timedelta(seconds=30))


async def test_what_was_prepared_for_nothing_is_let_go(tmp_path: Path) -> None:
    """A reload that is refused leaves no session open; what is asked now goes on."""
    event = an_event(at=NOW)
    async with scripted(raw(json_of({"n": 1}))) as api, enriching(tmp_path / "relay.db", stock(api.port)) as both:
        one, store = both
        one.discard(one.prepared([stock(api.port), stock(api.port, "other")], PRIVATE))
        gc.collect()  # a session that is left open complains when it is collected, which fails a test
        await store.accept(event, ["crm"])
        assert await one.bring("stock", event, event.body) == Enriched({"n": 1})
