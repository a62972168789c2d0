"""Shaped requests on the wire, by both ways: one origin, many paths, and nothing sent that could not be made."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.delivery.sender import LARGEST_ON_THE_LOOP, Sender
from relay.model import BodyFormat, Claim, Event, Fetched, Headers, OutcomeKind, PickBody, RawBody, Target, TemplateBody
from relay.reloading import digests
from relay.rules.egress import EgressPolicy
from tests.support.scripted_target import ScriptedServer, scripted, status

NOW = datetime(2031, 1, 1, tzinfo=UTC)
MakeSender = Callable[..., Sender]


@pytest.fixture(params=[True, False], ids=["short way", "long way"])
async def make_sender(request: pytest.FixtureRequest) -> AsyncIterator[MakeSender]:
    """Builds senders by either way."""
    made: list[Sender] = []

    def make(server: ScriptedServer, **settings: Any) -> Sender:
        target = Target("crm", server.url, **settings)
        sender = Sender(
            target,
            EgressPolicy(),
            key_headers={},
            proof_headers={"shop": frozenset({"x-proof"})},
            user_agent="relay/test",
            now=lambda: NOW,
            short_way=request.param,
        )
        made.append(sender)
        return sender

    yield make
    for sender in made:
        await sender.close()


def claim(headers: Headers = ()) -> Claim:
    event = Event("evt_1", "shop", "order.paid", NOW, headers, b"")
    return Claim(event, "crm", attempt=1, step=0, token=1, lease_until=NOW + timedelta(minutes=1))


async def test_paths_of_one_origin_share_one_connection(make_sender: MakeSender) -> None:
    """Each event goes to its own path; the pool is the origin's."""
    async with scripted(status(200)) as server:
        origin = server.url.removesuffix("/hooks")
        sender = make_sender(server, url_template=origin + "/o/{{ body.id }}?q={{ body.id }}&x=%20")
        for number in ("a b", "c/d"):
            assert (
                await sender.send(claim(), json.dumps({"id": number}).encode())
            ).outcome.kind is OutcomeKind.DELIVERED
        assert [one.line for one in server.received] == [
            "POST /o/a%20b?q=a%20b&x=%20 HTTP/1.1",
            "POST /o/c%2Fd?q=c%2Fd&x=%20 HTTP/1.1",
        ]
        assert server.connections == 1
        assert {one.one("host") for one in server.received} == {origin.removeprefix("http://")}


async def test_what_could_not_be_made_is_not_sent(make_sender: MakeSender) -> None:
    """The outcome is `unprepared` with the reason, and no request reaches the target."""
    async with scripted(status(200)) as server:
        sender = make_sender(server, body=TemplateBody("{{ body.gone }}"))
        outcome = (await sender.send(claim(), b"{}")).outcome
        assert (outcome.kind, outcome.status) == (OutcomeKind.UNPREPARED, None)
        assert outcome.reason == "template: body: it needs 'gone', which this event has not"
        assert server.received == []


async def test_what_was_fetched_goes_with_the_event_unless_raw_is_said(make_sender: MakeSender) -> None:
    """Also null that was fetched; nothing fetched is no null."""
    async with scripted(status(200)) as server:
        unsaid, raw = make_sender(server), make_sender(server, body=RawBody())
        came = claim((("Content-Type", "text/x"), ("X-Proof", "p")))
        await unsaid.send(came, b'{"a": 1.0}', {"b": 2})
        await unsaid.send(came, b'{"a": 1.0}', None)
        await unsaid.send(came, b'{"a": 1.0}')
        await raw.send(came, b'{"a": 1.0}', {"b": 2})
        bodies = [one.body for one in server.received]
        types = [one.one("content-type") for one in server.received]
        proofs = [one.all("x-proof") for one in server.received]
    changed = [b'{"event":{"a": 1.0},"data":{"b":2}}', b'{"event":{"a": 1.0},"data":null}']
    assert bodies == [*changed, b'{"a": 1.0}', b'{"a": 1.0}']
    assert types == ["application/json", "application/json", "text/x", "text/x"]
    assert proofs == [[], [], ["p"], ["p"]]


async def test_a_large_body_is_shaped_beside_the_loop(make_sender: MakeSender) -> None:
    """Other targets are served while it is made."""
    items = ["x" * 1000] * (LARGEST_ON_THE_LOOP // 500)
    body = json.dumps({"items": items}).encode()
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with scripted(status(200)) as server:
        sender = make_sender(server, body=PickBody("body"), format=BodyFormat.JSON, timeout=timedelta(seconds=30))
        beside = asyncio.create_task(turning())
        shape = await sender._shaped(claim(), body, Fetched.NOTHING)
        beside.cancel()
        assert turns > 1
        assert (await sender.send(claim(), body)).outcome.kind is OutcomeKind.DELIVERED
        assert json.loads(server.received[0].body) == {"items": items}
    assert shape is not None


async def test_what_a_target_echoes_of_a_template_is_blotted(make_sender: MakeSender) -> None:
    """The literal part of a header's template, and what a variable brought into a body."""
    async with scripted(status(500, body=b"you said hunter2-hunter2 and body-s3cret")) as server:
        sender = make_sender(
            server,
            header_templates=(("X-Token", "{{ id }} hunter2-hunter2"),),
            body=TemplateBody("body-s3cret", frozenset({"body-s3cret"})),
        )
        outcome = (await sender.send(claim(), b"{}")).outcome
        assert outcome.excerpt == "you said *** and ***"
        assert server.received[0].one("x-token") == "evt_1 hunter2-hunter2"


def test_a_change_of_a_template_is_a_change_of_the_target() -> None:
    """Of its address or of its headers: each is worth a probe; another body is not."""
    plain = Target("crm", "https://h.example/", headers=(("A", "b"),))
    url = Target("crm", "https://h.example/", headers=(("A", "b"),), url_template="https://h.example/{{ id }}")
    other = Target("crm", "https://h.example/", headers=(("A", "b"),), url_template="https://h.example/{{ type }}")
    header = Target("crm", "https://h.example/", headers=(("A", "b"),), header_templates=(("B", "{{ id }}"),))
    body = Target("crm", "https://h.example/", headers=(("A", "b"),), body=TemplateBody("x"))
    assert len({digests(one)[0] for one in (plain, url, other)}) == 3
    assert digests(plain)[1] != digests(header)[1]
    assert digests(plain) == digests(body)
