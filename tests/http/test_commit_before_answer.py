"""A 2xx is given after the commit and never before; what cannot be committed is 503, whatever is wrong."""

import asyncio
import contextlib
import socket
import struct
import time

import pytest

from tests.http.configs import SOURCES
from tests.http.gateway import ENV, Answer, Gateway, Start, chunked, request, until, wired
from tests.http.outages import fill, locked

OPEN = {"open": SOURCES["open"]}
BODY = b'{"type": "paid", "id": "e1"}'


def assert_come_again(answer: Answer) -> None:
    assert (answer.status, answer.json) == (503, {"error": "unavailable, send again"})
    assert int(answer["retry-after"] or 0) > 0


async def recovered(gateway: Gateway, path: str, headers: dict[str, str] | None = None) -> None:
    """Events are taken again, without a restart."""
    end = time.monotonic() + 10
    while (await gateway.post(path, BODY, headers or {})).status != 200:
        assert time.monotonic() < end
    assert (await gateway.told("store.recovered"))["level"] == "warning"


@pytest.mark.row("H55", "F5", "B58")
async def test_a_full_store_is_503_and_recovers_by_itself(start: Start) -> None:
    """Told, counted, and nothing of the event is there; the sender may give up on us, which is told too."""
    relay = await start({"xoxoday": SOURCES["xoxoday"]})
    headers = {"x-api-key": ENV["API_KEY"]}
    await fill(relay)
    answers = [await relay.post("/hooks/xoxoday", bytes(500_000), headers) for _ in range(3)]
    for answer in answers:
        assert_come_again(answer)
    assert (relay.stored(), relay.counted("xoxoday")) == ([], {"refused": 3})
    assert {line["reason"] for line in await relay.log("request.refused")} == {"store_unavailable"}
    assert (await relay.told("store.unavailable"))["level"] == "error"
    assert (await relay.told("source.may_be_switched_off"))["source"] == "xoxoday"
    await recovered(relay, "/hooks/xoxoday", headers)
    assert [row[2] for row in relay.stored()] == [BODY]


@pytest.mark.row("H55", "F5")
async def test_a_locked_store_is_503_in_time_and_recovers_by_itself(start: Start) -> None:
    """Three and a half seconds at most; a sender is never left hanging."""
    relay = await start(OPEN)
    async with locked(relay):
        began = time.monotonic()
        answers = await asyncio.gather(*(relay.post("/hooks/open", b'{"id": %d}' % n) for n in range(5)))
        assert time.monotonic() - began < 3.5
        for answer in answers:
            assert_come_again(answer)
        assert_come_again(await relay.post("/hooks/open", BODY))
    assert relay.stored() == []
    await recovered(relay, "/hooks/open")


@pytest.mark.row("H55", "T34")
async def test_nobody_is_answered_before_the_commit(start: Start) -> None:
    """While the commit cannot happen no answer comes, and the one that comes then is true."""
    relay = await start(OPEN)
    async with locked(relay):
        asked = asyncio.create_task(relay.post("/hooks/open", BODY))
        done, _ = await asyncio.wait({asked}, timeout=0.3)
        assert not done
        assert relay.stored() == []
    answer = await asked
    assert answer.status == 200
    assert relay.rows("SELECT id FROM event") == [(answer.json["id"],)]


async def test_what_a_view_sees_after_the_answer_is_the_event_and_its_deliveries(start: Start) -> None:
    """At the moment of the answer another connection to the file finds both."""
    relay = await start(OPEN)
    async with wired(relay.hooks) as wire:
        for number in range(20):
            await wire.send(request("/hooks/open", b'{"id": %d}' % number))
            event_id = (await wire.answer()).json["id"]
            found = relay.rows("SELECT event.id, target FROM event JOIN delivery ON event_seq = event.seq")
            assert (event_id, "crm") in found


@pytest.mark.parametrize("framing", ["declared", "chunked"])
@pytest.mark.row("H46", "F36", "T34")
async def test_a_client_that_goes_away_at_any_byte_harms_nobody(start: Start, framing: str) -> None:
    """By a reset or a plain close: the event is there whole or not at all, and the next request is served."""
    relay = await start(OPEN)
    whole = request("/hooks/open", BODY)
    if framing == "chunked":
        whole = request("/hooks/open", chunked(BODY[:7], BODY[7:]), {"Transfer-Encoding": "chunked"})
    for size in range(len(whole) + 1):
        _, writer = await asyncio.open_connection(*relay.hooks)
        writer.write(whole[:size])
        await writer.drain()
        if size % 2:
            leave = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, leave)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    answer = await relay.post("/hooks/open", b'{"type": "paid", "id": "e2"}')
    assert (answer.status, answer.json["duplicate"]) == (200, False)
    await until(lambda: not relay.app._hooks._server.connections)
    assert {row[2] for row in relay.stored()} <= {BODY, b'{"type": "paid", "id": "e2"}'}
    assert relay.app._ingress._intake.in_hand == 0
    events = {line["event"] for line in await relay.log()}
    assert not {event for event in events if event.endswith((".error", ".failed", ".crashed"))}


@pytest.mark.row("H46", "F36", "T34")
async def test_a_client_that_goes_away_during_the_commit_is_stored_once(start: Start) -> None:
    """Its retry is a duplicate: nothing is lost and nothing is doubled."""
    relay = await start(OPEN)
    async with locked(relay), wired(relay.hooks) as wire:
        await wire.send(request("/hooks/open", BODY))
        await until(lambda: not relay.app._store._writer.idle)
        wire.reset()
    await until(relay.stored)
    again = await relay.post("/hooks/open", BODY)
    assert (again.status, again.json["duplicate"]) == (200, True)
    assert (await relay.target.next()).body == BODY


@pytest.mark.row("H56")
async def test_while_it_drains_further_requests_are_sent_away(start: Start) -> None:
    """503 and a closed connection: the next try finds the port closed, or the next process."""
    relay = await start(OPEN)
    relay.app._ingress.drain()
    answer = await relay.post("/hooks/open", BODY)
    assert_come_again(answer)
    assert answer["connection"] == "close"
    await relay.turned_away(answer, 503, "draining", source="open")


@pytest.mark.row("H56")
async def test_a_request_under_way_at_a_stop_is_finished(start: Start) -> None:
    """What was begun is answered; then nobody listens any more."""
    relay = await start(OPEN)
    hooks = relay.hooks
    async with wired(hooks) as wire:
        await wire.send(request("/hooks/open", BODY, {"Expect": "100-continue"})[: -len(BODY)])
        assert (await wire.answer()).status == 100
        stopping = asyncio.create_task(relay.app.stop())
        await until(lambda: relay.app._ingress._intake.draining)
        await wire.send(BODY)
        answer = await wire.answer()
        await stopping
    assert answer.status == 200
    assert relay.rows("SELECT id FROM event") == [(answer.json["id"],)]
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(*hooks)
