"""A request over a kept connection is under way without a task; what is unusual about its answer goes on in one."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.delivery.posting import Posting
from relay.delivery.sender import Sender, Sent
from relay.model import Claim, Event, Headers, OutcomeKind, Target
from relay.rules.egress import EgressPolicy
from tests.support.scripted_target import Received, ScriptedServer, listening, scripted

NOW = datetime(2026, 9, 20, tzinfo=UTC)
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
TEXT = b"HTTP/1.1 422 No\r\nContent-Length: 4\r\n\r\nnope"

Came = Sent | Coroutine[Any, Any, Sent]


def claim(body: bytes = b"{}", headers: Headers = ()) -> Claim:
    event = Event("evt_1", "shop", "order.paid", NOW, headers, body)
    return Claim(event, "crm", attempt=1, step=0, token=1, lease_until=NOW)


@dataclass
class Posted:
    """A sender that keeps one connection, the target behind it, and what the postings came to."""

    sender: Sender
    server: ScriptedServer
    came: list[Came] = field(default_factory=list)

    def begin(self, body: bytes = b"{}", headers: Headers = ()) -> Posting | None:
        """Begin one."""
        return self.sender.begin(claim(body, headers), body, self.came.append)

    async def sent(self) -> Sent:
        """What the posting under way comes to."""
        async with asyncio.timeout(5):
            while not self.came:
                await asyncio.sleep(0.001)
        came = self.came.pop()
        return came if isinstance(came, Sent) else await came


@asynccontextmanager
async def posting(*answers: bytes, timeout: float = 5, **settings: Any) -> AsyncIterator[Posted]:
    """A target that has said 204 once, answers so in turn, and is silent from then on."""
    said = iter((OK, *answers))

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(next(said, b""))

    async with scripted(answer) as server:
        target = Target("crm", server.url, timeout=timedelta(seconds=timeout), **settings)
        sender = Sender(target, EgressPolicy(), key_headers={}, user_agent="relay/test", now=lambda: NOW)
        try:
            assert (await sender.send(claim(), b"{}")).outcome.kind is OutcomeKind.DELIVERED
            yield Posted(sender, server)
        finally:
            await sender.close()


async def until_lost(server: ScriptedServer) -> None:
    """Wait until the target sees that its connections have ended."""
    async with asyncio.timeout(5):
        while server.open:
            await asyncio.sleep(0.001)


async def test_a_plain_answer_is_told_without_any_task() -> None:
    """Over the connection that was kept, and it is kept again; nothing is left that only a collection would free."""
    async with posting(OK, TEXT, OK) as posted:
        gc.collect()
        gc.disable()
        try:
            for status in (204, 422, 204):
                before = asyncio.all_tasks()
                assert posted.begin() is not None
                assert asyncio.all_tasks() <= before
                while not posted.came:
                    await asyncio.sleep(0.001)
                assert isinstance(posted.came[0], Sent)
                assert (await posted.sent()).outcome.status == status
            assert not any(isinstance(one, Posting) for one in gc.get_objects())
        finally:
            gc.enable()
        assert posted.server.connections == 1
        assert [one.body for one in posted.server.received] == [b"{}"] * 4


async def test_the_text_of_a_plain_answer_is_read() -> None:
    """A refusal keeps its beginning; a target that asks for more than a status gets it judged."""
    async with posting(TEXT) as posted:
        posted.begin()
        outcome = (await posted.sent()).outcome
        assert (outcome.kind, outcome.status, outcome.excerpt) == (OutcomeKind.REFUSED, 422, "nope")


@pytest.mark.parametrize("answer", [CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_any_other_answer_goes_on_in_a_coroutine(answer: bytes) -> None:
    """The parser reads it to its end, or to the deadline; what its status says counts."""
    async with posting(answer, OK, timeout=0.5) as posted:
        posted.begin()
        while not posted.came:
            await asyncio.sleep(0.001)
        assert not isinstance(posted.came[0], Sent)
        assert (await posted.sent()).outcome.kind is OutcomeKind.DELIVERED


async def test_nothing_is_begun_where_no_connection_is_kept() -> None:
    """Neither at first, nor while the only one is under way, nor once the target has taken its leave."""
    async with posting() as posted:
        assert posted.begin() is not None
        assert posted.begin() is None
        posted.server.hang_up()
        assert (await posted.sent()).outcome.kind is OutcomeKind.UNREACHABLE
        assert posted.begin() is None
        assert posted.came == []


async def test_what_cannot_be_sent_as_it_came_is_not_begun() -> None:
    """What is to be told of it is told by the way of a task."""
    async with posting(OK) as posted:
        assert posted.begin(headers=(("X-Odd", "a\x00b"),)) is None
        assert posted.begin(b"x" * (64 * 1024 + 1)) is None
        assert posted.begin() is not None
        assert (await posted.sent()).outcome.status == 204


async def test_a_request_that_would_break_the_framing_costs_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by the way of a task; the next one goes over the connection that was kept."""

    def breaking(*_: object, **__: object) -> bytes:
        raise ValueError

    async with posting(OK) as posted:
        with monkeypatch.context() as broken:
            broken.setattr(posted.sender._wire, "request", breaking)
            assert posted.begin() is None
        assert posted.begin() is not None
        assert (await posted.sent()).outcome.status == 204
        assert posted.server.connections == 1


async def test_nothing_is_begun_for_a_target_that_asks_for_more() -> None:
    """Another body, or credentials, are made on the way of a task."""
    async with posting(headers=(("Host", "inner.example"),)) as posted:
        assert posted.begin() is None


async def test_a_silent_target_is_given_up_at_its_deadline() -> None:
    """As one that a task waits for, with its connection."""
    async with posting(timeout=0.2) as posted:
        posted.begin()
        outcome = (await posted.sent()).outcome
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert "timeout" in outcome.reason
        await until_lost(posted.server)
        assert not posted.sender._deadlines.under_way


async def test_of_a_posting_that_is_given_up_nothing_is_told() -> None:
    """Its connection ends, and its deadline with it."""
    async with posting(timeout=0.2) as posted:
        given_up = posted.begin()
        assert given_up is not None
        given_up.cancel()
        await until_lost(posted.server)
        await asyncio.sleep(0.3)
        assert posted.came == []


async def test_an_answer_that_breaks_off_is_judged_by_its_status_line() -> None:
    """A target that has said 200 has taken the event."""
    async with posting(b"HTTP/1.1 200 OK\r\nContent-Le") as posted:
        posted.begin()
        await asyncio.sleep(0.05)
        posted.server.hang_up()
        outcome = (await posted.sent()).outcome
        assert (outcome.kind, outcome.status) == (OutcomeKind.DELIVERED, 200)


async def test_a_bug_ends_the_attempt_and_not_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by whoever carries the attempt, and what else is under way goes on."""
    async with posting(TEXT, OK) as posted:
        with monkeypatch.context() as broken:
            broken.setattr(posted.sender, "_judged", lambda *_: 1 / 0)
            posted.begin()
            with pytest.raises(ZeroDivisionError):
                await posted.sent()
        posted.begin()
        assert (await posted.sent()).outcome.status == 204
        assert posted.server.connections == 1


async def test_a_deadline_between_the_first_word_and_the_task_is_told_once() -> None:
    """The answer is there, but not heard out in time: its connection ends, and nothing comes to anything twice."""
    async with posting(CHUNKED) as posted:
        begun = posted.begin()
        assert begun is not None
        while not posted.came:
            await asyncio.sleep(0.001)
        begun.deadline.end()
        assert len(posted.came) == 1
        outcome = (await posted.sent()).outcome
        assert (outcome.kind, outcome.status) == (OutcomeKind.DELIVERED, 200)
        await until_lost(posted.server)
        assert posted.came == []


async def test_a_connection_that_is_lost_at_the_deadline_is_told_once() -> None:
    """A target may give up after just the time after which we do."""
    async with posting() as posted:
        begun = posted.begin()
        assert begun is not None
        begun.line.handler.connection_lost(None)
        begun.deadline.end()
        assert len(posted.came) == 1
        assert (await posted.sent()).outcome.kind is OutcomeKind.UNREACHABLE
        assert posted.came == []


async def test_a_target_that_has_spoken_first_is_heard_by_the_parser() -> None:
    """What it said before it was asked is no answer to what it is asked; the attempt is told of once."""

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await reader.read(1)
        writer.write(OK)
        await asyncio.sleep(30)

    async with listening(chatty) as port:
        target = Target("crm", f"http://127.0.0.1:{port}/", timeout=timedelta(seconds=5))
        sender = Sender(target, EgressPolicy(), key_headers={}, user_agent="relay/test", now=lambda: NOW)
        assert sender._wire is not None
        line = await sender._wire._pool.connected()
        sender._wire.keep(line)
        while not line.handler._tail:
            await asyncio.sleep(0.001)
        sender._wire._pool._quiet.append(sender._wire._pool._fresh.pop())  # as if it had been looked at before
        sender._wire._pool._looked_at = float("inf")
        came: list[Came] = []
        assert sender.begin(claim(), b"{}", came.append) is not None
        (what,) = came
        assert not isinstance(what, Sent)
        assert (await what).outcome.status == 204
        await asyncio.sleep(0.05)
        assert len(came) == 1
        await sender.close()
