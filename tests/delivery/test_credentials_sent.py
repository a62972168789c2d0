"""What proves us to a target, over a real socket: it leaves with each request, and what a refusal of it comes to."""

import asyncio
import gzip
import hmac
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from relay.delivery.credentials import REFUSED_AGAIN, TRIED_AGAIN, Credentials, Heard, Request
from relay.delivery.sender import Sender
from relay.delivery.tokens import Tokens
from relay.model import (
    ApiKeyCheck,
    Auth,
    BasicCheck,
    BearerCheck,
    Claim,
    Event,
    Headers,
    HmacCheck,
    OutcomeKind,
    QueryKey,
    Secret,
    StandardWebhooksCheck,
    Target,
)
from relay.rules.egress import EgressPolicy
from tests.support.scripted_target import Received, ScriptedServer, endless, in_turn, raw, scripted, status
from tests.support.token_endpoint import TokenEndpoint, refusal, silence, token_endpoint

NOW = datetime.now(UTC)
OK = status(200)
KEY = Secret(b"a key of sixteen bytes or more")

MakeSender = Callable[..., Sender]


@pytest.fixture(params=[True, False], ids=["short way", "long way"])
async def make_sender(request: pytest.FixtureRequest) -> AsyncIterator[MakeSender]:
    """Builds senders by either way; both put the same credentials on."""
    made: list[Sender] = []

    def make(url: str, *, timeout: float = 5, tokens: Tokens | None = None, **settings: Any) -> Sender:
        made.append(
            Sender(
                Target("crm", url, timeout=timedelta(seconds=timeout), **settings),
                EgressPolicy(),
                key_headers={},
                user_agent="relay/test",
                now=lambda: NOW,
                tokens=tokens,
                short_way=request.param,
            )
        )
        return made[-1]

    yield make
    for sender in made:
        await sender.close()


def claim(body: bytes = b'{"a": 1}', headers: Headers = (), *, number: int = 1) -> Claim:
    """A claim on an event with this body."""
    event = Event(f"evt_{number}", "shop", "order.paid", NOW, headers, body)
    return Claim(event, "crm", attempt=1, step=0, token=number, lease_until=NOW + timedelta(minutes=1))


async def received(
    make_sender: MakeSender, body: bytes = b'{"a": 1}', headers: Headers = (), **settings: Any
) -> Received:
    """What a target gets."""
    async with scripted(OK) as server:
        sender = make_sender(server.url + "?a=1", **settings)
        sent = await sender.send(claim(body, headers), body)
        assert sent.outcome.kind is OutcomeKind.DELIVERED
        (request,) = server.received
        return request


BASIC = b64encode("usér:p:äss".encode()).decode()
STATIC: list[tuple[Auth, str, str]] = [
    (BearerCheck((Secret(b"tok-1"),)), "authorization", "Bearer tok-1"),
    (BasicCheck("usér", (Secret("p:äss".encode()),)), "authorization", f"Basic {BASIC}"),
    (ApiKeyCheck("X-Api-Key", (Secret(b"key-1"),)), "x-api-key", "key-1"),
]


@pytest.mark.parametrize(("auth", "name", "value"), STATIC)
async def test_a_static_credential_leaves_in_its_header(
    make_sender: MakeSender, auth: Auth, name: str, value: str
) -> None:
    """Ours takes the place of whatever the provider has sent under that name, however it is spelled."""
    theirs = (("X-API-KEY", "theirs"), ("Authorization", "theirs"))
    request = await received(make_sender, headers=theirs, auth=auth, forward_headers=frozenset({"authorization"}))
    assert request.all(name) == [value]


async def test_a_key_may_stand_in_the_query(make_sender: MakeSender) -> None:
    """Percent-encoded, behind what the URL has already."""
    request = await received(make_sender, auth=QueryKey("api key", Secret("a&b=c/ü".encode())))
    assert request.line == "POST /hooks?a=1&api%20key=a%26b%3Dc%2F%C3%BC HTTP/1.1"


@pytest.mark.parametrize("signed", ["{body}", "{timestamp}.{body}", "{id}.{timestamp}.{body}"])
async def test_a_digest_covers_the_body_that_is_sent(make_sender: MakeSender, signed: str) -> None:
    """The message's id is the event's, the time is now."""
    auth = HmacCheck(
        header="X-Sig", prefix="sha256=", signed=signed, timestamp_header="X-Time", id_header="X-Id", secrets=(KEY,)
    )
    body = '{"naïve": 1}'.encode()
    request = await received(make_sender, body, auth=auth)
    message = signed.encode().replace(b"{id}", b"evt_1").replace(b"{timestamp}", str(int(NOW.timestamp())).encode())
    digest = hmac.new(KEY.value, message.replace(b"{body}", request.body), "sha256").hexdigest()
    assert request.one("x-sig") == f"sha256={digest}"
    if "{id}" in signed:
        assert request.one("x-id") == request.one("relay-event-id")
    if "{timestamp}" in signed:
        assert request.one("x-time") == str(int(NOW.timestamp()))


async def test_the_sent_body_is_signed_and_not_the_events_own(make_sender: MakeSender) -> None:
    """Where another body is sent, its receiver can only check that one."""
    async with scripted(OK) as server:
        sign = StandardWebhooksCheck(secrets=(KEY,))
        sender = make_sender(server.url, auth=HmacCheck("X-Sig", secrets=(KEY,)), sign=sign)
        await sender.send(claim(b"the event's own"), b"what is sent")
        (request,) = server.received
        assert request.one("x-sig") == hmac.new(KEY.value, b"what is sent", "sha256").hexdigest()
        stamp = f"{request.one('webhook-id')}.{request.one('webhook-timestamp')}.".encode()
        proof = b64encode(hmac.digest(KEY.value, stamp + b"what is sent", "sha256")).decode()
        assert request.one("webhook-signature") == f"v1,{proof}"


def _webhook_headers(request: Received) -> dict[str, str]:
    return {name: request.one(name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}


async def test_a_signed_request_passes_the_standards_own_library_with_either_key(make_sender: MakeSender) -> None:
    """While rotating, receivers with the old key and with the new one both take it; the newest comes first."""
    new, old = Secret(b"new key of 24 bytes long"), Secret(b"old key of 24 bytes long")
    body = '{"naïve": "✓"}'.encode()
    theirs = (("webhook-id", "msg_theirs"), ("Webhook-Signature", "v1,theirs"), ("webhook-timestamp", "1"))
    request = await received(make_sender, body, theirs, sign=StandardWebhooksCheck(secrets=(new, old)))
    for key in (new, old):
        found = Webhook("whsec_" + b64encode(key.value).decode()).verify(
            request.body.decode(), _webhook_headers(request)
        )
        assert found == {"naïve": "✓"}
    assert request.one("webhook-id") == "evt_1"
    alone = await received(make_sender, body, sign=StandardWebhooksCheck(secrets=(new,)))
    assert request.one("webhook-signature").split(" ")[0] == alone.one("webhook-signature")


# --- OAuth 2.0 ---


@pytest.fixture
async def endpoint() -> AsyncIterator[TokenEndpoint]:
    async with token_endpoint() as one:
        yield one


async def test_a_fetched_token_leaves_as_a_bearer(make_sender: MakeSender, endpoint: TokenEndpoint) -> None:
    """One token serves all deliveries of all targets with the same client."""
    tokens = Tokens(EgressPolicy, user_agent="relay/test")
    async with scripted(endpoint.protected) as server:
        senders = [make_sender(server.url, auth=endpoint.client(), tokens=tokens) for _ in range(3)]
        work = (senders[number % 3].send(claim(number=number), b"{}") for number in range(30))
        outcomes = [sent.outcome.kind for sent in await asyncio.gather(*work)]
        assert outcomes == [OutcomeKind.DELIVERED] * 30
        assert len(endpoint.requests) == 1
    await tokens.close()


@pytest.mark.row("B52")
async def test_no_token_is_unreachable_and_nothing_is_sent(make_sender: MakeSender, endpoint: TokenEndpoint) -> None:
    """With the reason in words; the target is never asked without a token."""
    endpoint.answer = refusal(401, error="invalid_client")
    async with scripted(OK) as server:
        outcome = (await make_sender(server.url, auth=endpoint.client()).send(claim(), b"{}")).outcome
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.reason == (
            "no token: the token endpoint answered 401: invalid_client: client_id or client_secret is wrong"
        )
        assert server.connections == 0


async def test_the_wait_for_a_token_is_part_of_the_timeout(make_sender: MakeSender, endpoint: TokenEndpoint) -> None:
    """A whole attempt takes no longer than its target's `timeout`."""
    endpoint.answer = silence
    async with scripted(OK) as server:
        outcome = (await make_sender(server.url, timeout=0.3, auth=endpoint.client()).send(claim(), b"{}")).outcome
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.reason == "no token: timeout: no answer within 0.3 s"
        assert server.connections == 0


async def test_a_stale_token_costs_one_attempt_of_no_account(make_sender: MakeSender, endpoint: TokenEndpoint) -> None:
    """A 401 drops the token; the next attempt of the delivery, due at once, has a fresh one."""
    async with scripted(endpoint.protected) as server:
        sender = make_sender(server.url, auth=endpoint.client())
        assert (await sender.send(claim(number=1), b"{}")).outcome.kind is OutcomeKind.DELIVERED
        endpoint.good.clear()
        first = (await sender.send(claim(number=2), b"{}")).outcome
        assert (first.kind, first.status, first.reason) == (OutcomeKind.INTERRUPTED, 401, TRIED_AGAIN)
        assert first.retry_after == timedelta(0)
        assert (await sender.send(claim(number=2), b"{}")).outcome.kind is OutcomeKind.DELIVERED
        assert len(endpoint.requests) == 2


async def test_a_second_refusal_is_a_failure_that_says_so(make_sender: MakeSender, endpoint: TokenEndpoint) -> None:
    """No loop: fresh tokens will not help. Any other answer gives the delivery its one fresh token back."""
    answers = in_turn(*(status(code) for code in (401, 401, 401, 500, 401, 401)))
    async with scripted(answers) as server:
        sender = make_sender(server.url, auth=endpoint.client())
        outcomes = [(await sender.send(claim(), b"{}")).outcome for _ in range(6)]
        assert [one.kind for one in outcomes] == [
            OutcomeKind.INTERRUPTED,
            OutcomeKind.FAILED,
            OutcomeKind.INTERRUPTED,
            OutcomeKind.FAILED,
            OutcomeKind.INTERRUPTED,
            OutcomeKind.FAILED,
        ]
        assert outcomes[1].reason == f"status 401: {REFUSED_AGAIN}"
        assert outcomes[3].reason == "status 500"


async def test_twenty_deliveries_that_meet_a_refusal_at_once_fetch_one_token(
    make_sender: MakeSender, endpoint: TokenEndpoint
) -> None:
    """The refused token is dropped by its generation, so a late refusal does not drop the new one."""
    async with scripted(endpoint.protected) as server:
        sender = make_sender(server.url, auth=endpoint.client(), concurrency=20)
        assert (await sender.send(claim(), b"{}")).outcome.kind is OutcomeKind.DELIVERED
        endpoint.good.clear()

        async def deliver(number: int) -> list[OutcomeKind]:
            return [(await sender.send(claim(number=number), b"{}")).outcome.kind for _ in range(2)]

        kinds = await asyncio.gather(*map(deliver, range(20)))
        assert {kind for pair in kinds for kind in pair[1:]} == {OutcomeKind.DELIVERED}
        assert len(endpoint.requests) == 2


async def test_a_401_to_a_static_credential_is_a_failure(make_sender: MakeSender) -> None:
    """There is nothing to be fetched anew."""
    async with scripted(status(401)) as server:
        outcome = (await make_sender(server.url, auth=BearerCheck((KEY,))).send(claim(), b"{}")).outcome
        assert (outcome.kind, outcome.reason) == (OutcomeKind.FAILED, "status 401")


async def test_what_had_its_fresh_token_is_remembered_within_bounds(endpoint: TokenEndpoint) -> None:
    """A million deliveries that are never heard of again cost no memory."""
    tokens = Tokens(EgressPolicy, user_agent="relay/test")
    credentials = Credentials(endpoint.client(), tokens, now=lambda: NOW)
    ready = await credentials.applied(Request("GET", "http://crm.test/", (), b""), event_id="evt_1")
    assert dict(ready.headers)["Authorization"] == f"Bearer {next(iter(endpoint.good))}"
    for number in range(10_000):
        assert credentials.heard(401, ready, of=str(number)) is Heard.TRY_AGAIN
    assert len(credentials._refreshed) < 5000
    assert credentials.heard(401, ready, of="9999") is Heard.REFUSED_AGAIN
    assert credentials.heard(401, replace(ready, token=None), of="9998") is Heard.NOTHING
    await tokens.close()


@pytest.mark.parametrize("padding", [0, 1000, 1024 - 8])
async def test_an_echoed_credential_is_blotted(make_sender: MakeSender, endpoint: TokenEndpoint, padding: int) -> None:
    """Also a token that only a moment ago was nobody's, and a basic password in base64."""

    async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
        given = request.one("authorization").encode()
        await status(500, body=b"x" * padding + b" " + given)(request, writer)

    async with scripted(echo) as server:
        for auth, canary in (
            (endpoint.client(), "token-1"),
            (BasicCheck("me", (Secret(b"canary-password"),)), b64encode(b"me:canary-password").decode()[:8]),
        ):
            outcome = (await make_sender(server.url, auth=auth).send(claim(), b"{}")).outcome
            assert outcome.kind is OutcomeKind.FAILED
            assert canary not in outcome.excerpt


# --- success_when ---


def answered(body: bytes, **fields: str) -> Any:
    return status(200, *(f"{name}: {value}" for name, value in fields.items()), body=body)


SAYS_NO = "success_when says no"
ANSWERS = [
    (answered(b'{"status": "ok"}'), OutcomeKind.DELIVERED, "status 200"),
    (answered(b'{"status": "error", "why": "no stock"}'), OutcomeKind.REFUSED, SAYS_NO),
    (answered(b"[1]"), OutcomeKind.REFUSED, SAYS_NO),
    (answered(b"null"), OutcomeKind.REFUSED, SAYS_NO),
    (answered(b""), OutcomeKind.REFUSED, f"{SAYS_NO}: the answer is empty"),
    (answered(b"<html>ok</html>"), OutcomeKind.REFUSED, f"{SAYS_NO}: the answer is not JSON"),
    (answered(b"[" * 60_000), OutcomeKind.REFUSED, f"{SAYS_NO}: the answer is not JSON"),
    (answered(gzip.compress(b'{"status": "ok"}')), OutcomeKind.REFUSED, f"{SAYS_NO}: the answer is not JSON"),
    (
        raw(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"status": "ok"}', then="close"),
        OutcomeKind.FAILED,
        "status 200, but the answer broke off before success_when could read it",
    ),
    (
        raw(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"status": "ok"}', then="hang"),
        OutcomeKind.FAILED,
        "status 200, but the answer broke off before success_when could read it",
    ),
    (
        raw(b"HTTP/1.1 200 OK\r\nno header at all\r\n\r\n", then="close"),
        OutcomeKind.FAILED,
        "status 200, but the answer broke off before success_when could read it",
    ),
    (
        endless(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" " * 65536),
        OutcomeKind.REFUSED,
        "status 200, but the answer is longer than success_when reads (64 KiB)",
    ),
    (status(500, body=b'{"status": "ok"}'), OutcomeKind.FAILED, "status 500"),
    (status(422, body=b'{"status": "ok"}'), OutcomeKind.REFUSED, "status 422"),
]


@pytest.mark.parametrize(("answer", "kind", "reason"), ANSWERS, ids=range(len(ANSWERS)))
async def test_a_condition_on_the_answer_decides_what_a_success_is(
    make_sender: MakeSender, answer: Any, kind: OutcomeKind, reason: str
) -> None:
    """For the APIs that answer 200 with an error. Where nobody can tell, the event counts as not delivered."""
    server: ScriptedServer
    async with scripted(answer) as server:
        sender = make_sender(server.url, timeout=0.5, success_when="status == 'ok'")
        outcome = (await sender.send(claim(), b"{}")).outcome
        assert (outcome.kind, outcome.reason) == (kind, reason)


async def test_a_refusal_by_the_condition_keeps_an_excerpt(make_sender: MakeSender) -> None:
    """It says why; our credentials are blotted as ever."""
    async with scripted(answered(b'{"status": "error", "key": "a key of sixteen bytes or more"}')) as server:
        sender = make_sender(server.url, auth=BearerCheck((KEY,)), success_when="status == 'ok'")
        outcome = (await sender.send(claim(), b"{}")).outcome
        assert (outcome.kind, outcome.excerpt) == (OutcomeKind.REFUSED, '{"status": "error", "key": "***"}')
