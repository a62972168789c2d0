"""Tokens of OAuth 2.0: fetched once for all who need one, renewed in time, and never a secret in what is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from relay.delivery.tokens import ANSWER_CAP, LIFETIME, NoToken, Tokens
from relay.rules.egress import EgressPolicy
from tests.support.scripted_target import closed_port, endless, in_turn, raw, status
from tests.support.token_endpoint import (
    CLIENT_ID,
    CLIENT_SECRET,
    TokenEndpoint,
    basic_of,
    refusal,
    silence,
    token_answer,
    token_endpoint,
)

PRIVATE = EgressPolicy()


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def endpoint() -> AsyncIterator[TokenEndpoint]:
    async with token_endpoint() as one:
        yield one


MakeTokens = Callable[..., Tokens]


@pytest.fixture
async def make() -> AsyncIterator[MakeTokens]:
    """Builds caches that are closed in the end."""
    made: list[Tokens] = []

    def build(egress: EgressPolicy = PRIVATE, **other: Any) -> Tokens:
        made.append(Tokens(lambda: egress, user_agent="relay/test", **other))
        return made[-1]

    yield build
    for one in made:
        await one.close()


async def reason(tokens: Tokens, client: Any) -> str:
    """Why there is no token; no secret is in it."""
    with pytest.raises(NoToken) as caught:
        await tokens.get(client)
    told = str(caught.value)
    assert CLIENT_SECRET not in told
    assert "127.0.0.1" not in told
    assert "/token" not in told
    return told


async def test_a_client_proves_itself_by_a_header_with_both_parts_form_encoded(
    endpoint: TokenEndpoint, make: MakeTokens
) -> None:
    """RFC 6749, sections 2.3.1 and 4.4.2: the grant and the scope in the form, the client in Basic."""
    token = await make().get(endpoint.client())
    assert token.value in endpoint.good
    (asked,) = endpoint.requests
    assert asked.line == "POST /token HTTP/1.1"
    assert basic_of(asked) == (CLIENT_ID, CLIENT_SECRET)
    assert asked.one("content-type") == "application/x-www-form-urlencoded"
    assert endpoint.forms() == [{"grant_type": "client_credentials", "scope": "sales read"}]


async def test_a_client_may_prove_itself_in_the_form(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """For the endpoints that read no Basic; then no `Authorization` is sent. An audience goes along."""
    await make().get(endpoint.client(in_body=True, audience="https://api.example"))
    (form,) = endpoint.forms()
    assert (form["client_id"], form["client_secret"]) == (CLIENT_ID, CLIENT_SECRET)
    assert form["audience"] == "https://api.example"
    assert endpoint.requests[0].all("authorization") == []


@pytest.mark.row("T46")
async def test_many_who_need_a_token_cause_one_fetch(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """All wait for the same answer, and whoever comes later has it from the cache."""
    endpoint.gate.clear()
    tokens = make()
    waiting = [asyncio.create_task(tokens.get(endpoint.client())) for _ in range(50)]
    while not endpoint.requests:
        await asyncio.sleep(0)
    endpoint.gate.set()
    got = await asyncio.gather(*waiting)
    assert {token.generation for token in got} == {1}
    assert await tokens.get(endpoint.client()) is got[0]
    assert len(endpoint.requests) == 1


async def test_many_share_a_failure_and_the_next_asks_again(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """A refusal is everyone's who has waited for it, and nobody's after it."""
    endpoint.gate.clear()
    endpoint.answer = refusal(400, error="invalid_scope")
    tokens = make()
    waiting = [asyncio.create_task(tokens.get(endpoint.client())) for _ in range(20)]
    while not endpoint.requests:
        await asyncio.sleep(0)
    endpoint.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {NoToken}
    assert len(endpoint.requests) == 1
    endpoint.answer = token_answer()
    assert (await tokens.get(endpoint.client())).value in endpoint.good


async def test_one_who_waits_no_longer_costs_the_others_nothing(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """A cancelled attempt leaves the fetch to those who still wait."""
    endpoint.gate.clear()
    tokens = make()
    first, second = (asyncio.create_task(tokens.get(endpoint.client())) for _ in range(2))
    while not endpoint.requests:
        await asyncio.sleep(0)
    first.cancel()
    endpoint.gate.set()
    assert (await second).value in endpoint.good
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_other_clients_scopes_and_audiences_have_tokens_of_their_own(
    endpoint: TokenEndpoint, make: MakeTokens
) -> None:
    """A token is never used for what it was not asked for."""
    tokens = make()
    clients = [
        endpoint.client(**other) for other in ({}, {"scope": "x"}, {"audience": "y"}, {"client_id": "z"}, {"scope": ""})
    ]
    assert len({(await tokens.get(client)).value for client in clients}) == len(clients) == len(endpoint.requests)


@pytest.mark.parametrize(
    ("expires_in", "used_until"),
    [(3600, 3540), ("3600", 3540), (100, 80), (None, LIFETIME - 60), ("soon", LIFETIME - 60), (-5, LIFETIME - 60)],
)
async def test_a_token_is_renewed_before_it_ends(
    endpoint: TokenEndpoint, make: MakeTokens, expires_in: object, used_until: float
) -> None:
    """A minute before, or a fifth of a short life; what says nothing is good for ten minutes."""
    clock = Clock()
    endpoint.answer = token_answer(expires_in=expires_in)
    tokens = make(clock=clock)
    first = await tokens.get(endpoint.client())
    clock.now += used_until - 1
    assert await tokens.get(endpoint.client()) is first
    clock.now += 2
    assert (await tokens.get(endpoint.client())).generation == 2


async def test_a_lifetime_may_have_any_number_of_digits(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """It is longer than any that we heed, and no fault of the answer."""
    endpoint.answer = lambda _: status(200, body=b'{"access_token": "t", "expires_in": ' + b"9" * 5000 + b"}")
    assert (await make().get(endpoint.client())).value == "t"


async def test_a_refused_token_is_dropped_by_its_generation(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """Who comes late with an old refusal does not drop the new token."""
    tokens, client = make(), endpoint.client()
    first = await tokens.get(client)
    tokens.refused(client, first)
    second = await tokens.get(client)
    for _ in range(20):
        tokens.refused(client, first)
    assert await tokens.get(client) is second
    assert len(endpoint.requests) == 2


async def test_what_is_fetched_is_told_before_it_is_used(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """So that no line of the log can hold it."""
    told: list[str] = []
    token = await make(fetched=told.append).get(endpoint.client())
    assert told == [token.value]
    assert token.value not in repr(token)


@pytest.mark.row("T46", "B17")
async def test_a_token_endpoint_is_guarded_like_a_target(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """What egress forbids is not dialled for a token either."""
    with pytest.raises(NoToken, match=r"^no token: egress policy forbids it: loopback address"):
        await make(EgressPolicy(policy="public")).get(endpoint.client())
    assert endpoint.requests == []


REFUSALS = [
    (refusal(401, error="invalid_client"), "the token endpoint answered 401: invalid_client: client_id or client_sec"),
    (refusal(401), "the token endpoint answered 401: client_id or client_secret is wrong"),
    (refusal(400, error="invalid_scope", error_description=CLIENT_SECRET), "answered 400: invalid_scope: the scope"),
    (refusal(400, error=CLIENT_SECRET), "the token endpoint answered 400"),
    (refusal(404), "the token endpoint answered 404"),
    (lambda _: status(302, "Location: http://127.0.0.1:1/"), "redirects (302); name the final address in token_url"),
    (lambda _: status(200, body=b"<html>"), "answer is not JSON; is token_url right?"),
    (lambda _: status(200, body=b"[" * 50_000), "answer is not JSON; is token_url right?"),
    (lambda _: status(200, body=b"[1]"), "answer is JSON, but no object with an access_token"),
    (lambda _: status(200, body=b"null"), "answer is JSON, but no object with an access_token"),
    (lambda _: status(200, body=b"{}"), "answer has no access_token"),
    (lambda _: status(200, body=b'{"expires_in": ' + b"9" * 5000 + b"}"), "answer has no access_token"),
    (lambda _: status(200, body=b'{"error": "invalid_client"}'), "has no access_token, but invalid_client"),
    (token_answer(access_token=7), "has no access_token"),
    (token_answer(access_token="a\r\nb"), "cannot stand in a header"),
    (token_answer(access_token="x" * 20_000), "cannot stand in a header"),
    (token_answer(token_type="mac"), "of another type than Bearer"),
    (lambda _: endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), f"longer than {ANSWER_CAP // 1024} KiB"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSALS, ids=range(len(REFUSALS)))
async def test_every_refusal_is_told_in_words_and_asked_once(
    endpoint: TokenEndpoint, make: MakeTokens, answer: Any, words: str
) -> None:
    """What to do about it, and nothing of what the endpoint has written."""
    endpoint.answer = answer
    assert words in await reason(make(), endpoint.client())
    assert len(endpoint.requests) == 1


async def test_a_fault_that_may_pass_is_tried_again_at_once(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """A 503 or a reset costs no delivery its attempt."""
    answers = in_turn(status(503), raw(then="reset"), status(200, body=b'{"access_token": "abcdefgh12345678"}'))
    endpoint.answer = lambda _: answers
    assert (await make().get(endpoint.client())).value == "abcdefgh12345678"
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("code", [429, 503])
async def test_a_pause_that_is_asked_for_is_kept(endpoint: TokenEndpoint, make: MakeTokens, code: int) -> None:
    """`Retry-After` of the endpoint: nobody asks it until then, and whoever needs a token is told why."""
    endpoint.answer = lambda _: status(code, "Retry-After: 60")
    clock = Clock()
    tokens = make(clock=clock)
    for _ in range(3):
        told = await reason(tokens, endpoint.client())
        assert told == f"no token: the token endpoint answered {code} and asks for a pause"
    assert len(endpoint.requests) == 1
    endpoint.answer = token_answer()
    clock.now += 59.0
    await reason(tokens, endpoint.client())
    assert len(endpoint.requests) == 1
    clock.now += 2.0
    assert (await tokens.get(endpoint.client())).value in endpoint.good


async def test_a_fault_that_lasts_is_told(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """Three tries, and then the reason."""
    endpoint.answer = refusal(503)
    assert await reason(make(), endpoint.client()) == "no token: the token endpoint answered 503"
    assert len(endpoint.requests) == 3
    nobody = endpoint.client(token_url=f"http://127.0.0.1:{closed_port()}/token")
    assert await reason(make(), nobody) == "no token: connect: Connection refused"


async def test_an_endpoint_that_hangs_is_given_up(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """After ten seconds; the test has less patience."""
    endpoint.answer = silence
    told = await reason(make(patience=timedelta(seconds=0.3)), endpoint.client())
    assert told == "no token: timeout: no answer within 0.3 s"


async def test_a_stop_ends_a_fetch(endpoint: TokenEndpoint, make: MakeTokens) -> None:
    """Whoever waits is told, and nothing is left behind."""
    endpoint.gate.clear()
    tokens = make()
    waiting = asyncio.create_task(tokens.get(endpoint.client()))
    while not endpoint.requests:
        await asyncio.sleep(0)
    await tokens.close()
    with pytest.raises(NoToken, match="stopping"):
        await waiting
