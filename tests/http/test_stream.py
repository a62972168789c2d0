"""The live stream: what is accepted, refused and attempted, each thing once, whoever is cut off meanwhile."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.admin.stream import BATCH, STREAMS, Wanted
from relay.model import DeliveryState
from relay.store.archive import RefusedRequest
from relay.store.following import AcceptedEvent, Occurrence, RecordedAttempt
from tests.http.configs import document
from tests.http.gateway import (
    AUTH,
    PATIENCE,
    TOKEN,
    Gateway,
    Start,
    Target,
    assert_problem,
    request,
    running,
    until,
    wired,
)
from tests.support.store_parts import an_event

STREAM = "/api/v1/stream"


@dataclass(frozen=True)
class Message:
    """One message of a stream; one without data only says where to go on."""

    id: str
    event: str | None
    data: Any


class Stream:
    """A client of the stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id: str | None = None

    async def block(self) -> list[str] | None:
        """The lines up to the next empty one; None at the end."""
        lines: list[str] = []
        async with asyncio.timeout(PATIENCE):
            while raw := await self.response.content.readline():
                if raw == b"\r\n":
                    return lines
                lines.append(raw.decode().rstrip("\r\n"))
        return None

    async def message(self) -> Message | None:
        """The next message that says what happened; None at the end."""
        while (lines := await self.block()) is not None:
            fields = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                return Message(fields["id"], fields.get("event"), json.loads(fields["data"]))
        return None

    async def next(self) -> dict[str, Any]:
        """The object of the next message, which must come."""
        message = await self.message()
        assert message is not None
        assert (message.id, message.event) == (message.data["position"], message.data["kind"])
        found: dict[str, Any] = message.data
        return found


@contextlib.asynccontextmanager
async def streaming(gateway: Gateway, query: str = "", *, after: str | None = None) -> AsyncIterator[Stream]:
    """An open stream that has begun: it says where, before anything else."""
    headers = AUTH | ({} if after is None else {"Last-Event-ID": after})
    url = "http://{}:{}{}{}".format(*gateway.admin, STREAM, query)
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        stream = Stream(response)
        lines = await stream.block()
        assert lines is not None
        assert lines[0].startswith("id: ")
        stream.last_id = lines[0].removeprefix("id: ")
        yield stream


async def turn_away(gateway: Gateway, source: str = "key") -> None:
    """Have a refusal kept."""
    refusal = RefusedRequest(datetime.now(UTC), source, "192.0.2.1", 401, "missing_key", "no X-Key")
    await gateway.app._store.archive.keep_refusals([refusal], counts={source: 1}, at=refusal.received_at)


async def recorded(gateway: Gateway, number: int) -> None:
    """Wait until so many attempts are recorded."""
    await until(lambda: gateway.rows("SELECT count(*) FROM attempt") == [(number,)])


async def test_each_kind_is_told_once_as_it_happens(gateway: Gateway) -> None:
    """What was there before is not told; what comes is, with all of its parts."""
    await gateway.post("/hooks/open", b'{"type": "before"}')
    await recorded(gateway, 1)
    async with streaming(gateway) as stream:
        answer = await gateway.post("/hooks/open", b'{"type": "paid"}')
        told = await stream.next()
        same = {"event_id": answer.json["id"], "source": "open", "type": "paid"}
        assert told == same | {"kind": "accepted", "targets": ["crm"], "size": 16} | {
            key: told[key] for key in ("at", "position")
        }
        assert datetime.fromisoformat(told["at"]).tzinfo is not None
        told = await stream.next()
        parts = {"target": "crm", "attempt": 1, "outcome": "delivered", "status": 200, "reason": "status 200"}
        parts |= {"kind": "attempted", "state": "delivered", "next_attempt_at": None}
        assert told == same | parts | {key: told[key] for key in ("at", "position", "duration_ms")}
        await turn_away(gateway)
        told = await stream.next()
        assert told == {"kind": "refused", "source": "key", "remote": "192.0.2.1", "status": 401} | {
            "reason": "missing_key", "detail": "no X-Key", "at": told["at"], "position": told["position"]
        }  # fmt: skip
        assert TOKEN not in json.dumps(told)


async def test_a_failed_attempt_says_when_it_is_made_again(gateway: Gateway) -> None:
    """And one at a disabled target that it is held."""
    gateway.target.status = 500
    async with streaming(gateway, "?failed=true") as stream:
        await gateway.post("/hooks/open")
        told = await stream.next()
        assert (told["kind"], told["outcome"], told["status"], told["state"]) == ("attempted", "failed", 500, "pending")
        assert told["next_attempt_at"] > told["at"]
        before = told["position"]
    await gateway.call("/api/v1/targets/crm/disable", method="POST", headers=AUTH)
    async with streaming(gateway, "?from=start&failed=true") as stream:
        told = await stream.next()
        assert (told["position"], told["state"], told["next_attempt_at"]) == (before, "held", None)


def occurrences() -> dict[str, Occurrence]:
    """One of each kind."""
    at = datetime(2026, 9, 20, tzinfo=UTC)

    def attempt(outcome: str) -> RecordedAttempt:
        return RecordedAttempt(at, "evt_1", "shop", "paid", "crm", 1, outcome, 200, 3, "", DeliveryState.PENDING, at)

    return {
        "accepted": AcceptedEvent(at, "evt_1", "shop", "paid", ("crm", "books"), 2),
        "unrouted": AcceptedEvent(at, "evt_2", "shop", "paid", (), 2),
        "refused": RefusedRequest(at, "shop", None, 401, "missing_key"),
        "delivered": attempt("delivered"),
        "failed": attempt("failed"),
    }


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Wanted(), "accepted unrouted refused delivered failed"),
        (Wanted(source="shop"), "accepted unrouted refused delivered failed"),
        (Wanted(source="other"), ""),
        (Wanted(target="crm"), "accepted delivered failed"),
        (Wanted(target="books"), "accepted"),
        (Wanted(failed=True), "refused failed"),
        (Wanted(source="shop", failed=True), "refused failed"),
        (Wanted(target="crm", failed=True), "failed"),
        (Wanted(source="other", target="crm", failed=True), ""),
    ],
)
def test_filters_are_joined_by_and(wanted: Wanted, names: str) -> None:
    """A refused request has no target; a failure is what was refused, or an attempt that did not deliver."""
    assert [name for name, one in occurrences().items() if wanted.takes(one)] == names.split()


async def test_a_filtered_stream_does_not_look_through_the_same_again(gateway: Gateway) -> None:
    """Its position goes on past what it does not tell."""
    async with streaming(gateway, "?source=key&target=crm") as stream:
        begun = stream.last_id
        await gateway.post("/hooks/open")
        await recorded(gateway, 1)
        newest = str(await gateway.app._store.following.newest())
        assert begun != newest
        async with asyncio.timeout(PATIENCE):
            while stream.last_id != newest:
                lines = await stream.block()
                assert lines is not None
                assert not any(line.startswith("data") for line in lines)
                stream.last_id = lines[0].removeprefix("id: ")


async def test_what_is_wanted_is_found_behind_much_that_is_not(gateway: Gateway) -> None:
    """More than one look reads."""
    events = [an_event(source="open") for _ in range(2 * BATCH + 1)]
    await asyncio.gather(*(gateway.app._store.accept(event, ()) for event in events))
    async with streaming(gateway, "?from=start&source=key") as stream:
        last = an_event(source="key")
        await gateway.app._store.accept(last, ())
        assert (await stream.next())["event_id"] == last.id
        assert stream.last_id == str(await gateway.app._store.following.newest())


async def test_a_stream_begins_where_it_is_asked_to(gateway: Gateway) -> None:
    """At the start, behind a message, or at a time; what the client has seen counts for more than what it asked for
    at first."""
    for number in range(3):
        await gateway.post("/hooks/open", json.dumps({"type": f"t{number}", "id": number}).encode())
        await recorded(gateway, number + 1)
    async with streaming(gateway, "?from=start") as stream:
        found = [await stream.next() for _ in range(6)]
    assert [one["type"] for one in found] == ["t0", "t0", "t1", "t1", "t2", "t2"]
    for query, after in ((f"?from={found[3]['position']}", None), ("?from=start", found[3]["position"])):
        async with streaming(gateway, query, after=after) as stream:
            assert [await stream.next() for _ in range(2)] == found[4:]
    async with streaming(gateway, "?since=1h") as stream:
        assert [await stream.next() for _ in range(6)] == found
    since = found[4]["at"].replace("+", "%2B")
    async with streaming(gateway, f"?since={since}&source=open") as stream:
        assert (await stream.next())["type"] in ("t1", "t2")  # the same millisecond may hold the attempt before


@pytest.mark.parametrize(
    ("query", "header", "words"),
    [
        ("?from=here", None, "from must be"),
        ("?since=soon", None, "since must be"),
        ("?from=start&since=1h", None, "not both"),
        ("?failed=yes", None, "failed must be"),
        ("?level=info", None, "unknown parameter"),
        ("", "1-2-3", "Last-Event-ID must be"),
    ],
)
async def test_what_is_not_understood_is_refused(gateway: Gateway, query: str, header: str | None, words: str) -> None:
    """Before the stream begins, by the name of what is wrong."""
    headers = AUTH | ({} if header is None else {"Last-Event-ID": header})
    problem = assert_problem(await gateway.call(STREAM + query, headers=headers), 400)
    assert words in problem["detail"]


async def test_only_get_with_the_token_opens_a_stream(gateway: Gateway) -> None:
    """As with every call of the API."""
    assert_problem(await gateway.call(STREAM), 401)
    answer = await gateway.call(STREAM, method="POST", headers=AUTH)
    assert_problem(answer, 405)
    assert answer["allow"] == "GET"
    async with wired(gateway.admin) as wire:
        await wire.send(request(STREAM, headers=AUTH, method="HEAD", host="localhost"))
        assert (await wire.answer(to_head=True)).status == 405


async def test_a_position_of_another_store_begins_anew_and_says_so(gateway: Gateway) -> None:
    """A store that was begun afresh gave out other numbers."""
    await gateway.post("/hooks/open", b'{"type": "before"}')
    await recorded(gateway, 1)
    async with streaming(gateway, after="1-99-99-99") as stream:
        told = await stream.next()
        assert (told["kind"], told["position"]) == ("reset", str(await gateway.app._store.following.newest()))
        await gateway.post("/hooks/open", b'{"type": "after"}')
        assert (await stream.next())["type"] == "after"


async def test_a_restart_of_the_relay_leaves_nothing_out_and_tells_nothing_twice(
    tmp_path: Path, target: Target
) -> None:
    """The stream ends with the relay, and goes on behind the last message that came; a stop does not wait for it."""
    sent: list[str] = []
    told: list[dict[str, Any]] = []
    position: str | None = None
    for round_ in range(3):
        async with contextlib.AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(running(tmp_path, document(), target))
            async with streaming(gateway, after=position) as stream:
                for number in range(5):
                    body = json.dumps({"id": 10 * round_ + number}).encode()
                    sent.append((await gateway.post("/hooks/open", body)).json["id"])
                told.append(await stream.next())  # and is cut off with the rest of it under way
                position = told[-1]["position"]
                async with asyncio.timeout(PATIENCE):
                    await stack.aclose()
    async with running(tmp_path, document(), target) as gateway, streaming(gateway, after=position) as stream:
        while len(told) < 2 * len(sent):
            told.append(await stream.next())
    assert [one["event_id"] for one in told if one["kind"] == "accepted"] == sent
    assert sorted(one["event_id"] for one in told if one["kind"] == "attempted") == sorted(sent)


async def test_the_end_of_the_relay_ends_a_stream_tidily(tmp_path: Path, target: Target) -> None:
    """Its client sees an end and no broken connection."""
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running(tmp_path, document(), target))
        async with streaming(gateway) as stream:
            await stack.aclose()
            assert await stream.message() is None
            assert "request failed" not in gateway.log_text()


async def test_a_client_that_reads_nothing_holds_up_nobody_and_is_let_go(start: Start) -> None:
    """What it does not take stands in the store; others are told everything meanwhile, and its connection ends."""
    gateway = await start(server={"header_timeout": "500ms"})
    for number in range(20):  # a type fills a message: more than the buffers of both sockets take, again and again
        await gateway.post("/hooks/open", json.dumps({"id": number, "type": f"{number}" + "x" * 200}).encode())
    await recorded(gateway, 20)
    db = gateway.app._store
    refusals = [RefusedRequest(datetime.now(UTC), "key", None, 401, "r", "d" * 20_000)] * 500
    await db.archive.keep_refusals(refusals, counts={}, at=refusals[-1].received_at)
    streams = gateway.app._streams._open
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stalled, gateway.admin)
        head = request(f"{STREAM}?from=start", headers=AUTH, method="GET", host="localhost")
        await asyncio.get_running_loop().sock_sendall(stalled, head)
        await until(lambda: len(streams) == 1)
        async with streaming(gateway, "?from=start&target=crm") as stream:
            assert len([await stream.next() for _ in range(40)]) == 40
        await until(lambda: not streams)
    assert "request failed" not in gateway.log_text()


async def test_a_client_that_goes_ends_its_stream(gateway: Gateway) -> None:
    """Without anything having to happen first; however it goes."""
    streams = gateway.app._streams._open
    for farewell in ("close", "reset"):
        async with wired(gateway.admin) as wire:
            await wire.send(request(STREAM, headers=AUTH, method="GET", host="localhost"))
            await until(lambda: len(streams) == 1)
            if farewell == "reset":
                wire.reset()
        await until(lambda: not streams)
    assert "request failed" not in gateway.log_text()


async def test_streams_are_bounded(gateway: Gateway) -> None:
    """One too many is told so; when one ends there is room again."""
    streams = gateway.app._streams._open
    head = request(STREAM, headers=AUTH, method="GET", host="localhost")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(STREAMS):
            wire = await stack.enter_async_context(wired(gateway.admin))
            await wire.send(head)
        await until(lambda: len(streams) == STREAMS)
        answer = await gateway.raw(head, at=gateway.admin)
        assert_problem(answer, 503)
        assert answer["retry-after"] == "5"
    await until(lambda: len(streams) < STREAMS)
    async with streaming(gateway):
        pass


async def test_a_client_of_http_1_0_gets_the_stream_as_well(gateway: Gateway) -> None:
    """Without chunks: it lasts until the connection ends."""
    async with wired(gateway.admin) as wire:
        head = request(STREAM, headers=AUTH, method="GET", host="localhost").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        await wire.send(head)
        answer = await wire.answer()
        assert answer.status == 200
        assert answer["transfer-encoding"] is None
        assert (await wire._reader.readline()).startswith(b"id: ")
