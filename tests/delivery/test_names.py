"""Names as a real resolver finds them: the address that is judged is the one that is dialled, whatever DNS says."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver

from relay.delivery.egress import DNS_TRIES, guarded_connector, refused_by_egress
from relay.rules.egress import EgressPolicy
from tests.support.name_server import (
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    NameServer,
    Reply,
    addresses,
    alias,
    failing,
    garbage,
    in_turn,
    name_server,
    of_another,
    silent,
    truncated,
)
from tests.support.scripted_target import ScriptedServer, scripted, status

PUBLIC = EgressPolicy(policy="public")
HERE = "127.0.0.1"
METADATA = "169.254.169.254"
PATIENCE = 1.0
A_MOMENT = 0.3
"""Seconds that an answer is first waited for: the second, where none will come."""

Ask = Callable[..., "asyncio.Future[int]"]


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    """The name server that is asked; a test says what it answers."""
    async with name_server({}) as one:
        yield one


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A target on loopback that closes each connection, so that each request has to find it anew."""
    async with scripted(status(200, "Connection: close")) as one:
        yield one


@asynccontextmanager
async def session(
    names: NameServer, egress: EgressPolicy | None = None, *, patience: float = PATIENCE
) -> AsyncIterator[aiohttp.ClientSession]:
    """What one target is asked with: a guarded connector, with the resolver that the program uses."""

    def resolver() -> AbstractResolver:
        return aiohttp.AsyncResolver(nameservers=[f"{HERE}:{names.port}"], timeout=patience, tries=DNS_TRIES)

    connector = guarded_connector(egress or EgressPolicy(), limit=8, resolver=resolver)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as one:
        yield one


async def refusal(one: aiohttp.ClientSession, url: str) -> str | None:
    """Why egress refuses a request, None where it fails for another reason."""
    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        await one.post(url)
    return refused_by_egress(caught.value)


@pytest.mark.row("F22", "T41")
@pytest.mark.parametrize(
    "reply",
    [
        addresses(HERE),
        alias("real.example", HERE),
        truncated(addresses(HERE)),
        in_turn(failing(SERVFAIL), addresses(HERE)),
        in_turn(silent, addresses(HERE)),
        addresses(*(f"127.0.0.{number}" for number in range(2, 40)), HERE, ttl=1 << 31),
    ],
    ids=["an address", "an alias", "over TCP", "after a failure", "after a silence", "many addresses"],
)
async def test_a_name_that_can_be_found_is_found(names: NameServer, server: ScriptedServer, reply: Reply) -> None:
    """By the means of DNS, one after the other, until there is an address."""
    names.names["crm.example"] = reply
    async with session(names) as one, one.post(f"http://crm.example:{server.port}/") as answer:
        assert answer.status == 200


@pytest.mark.row("F22")
@pytest.mark.parametrize(
    "reply",
    [
        failing(NXDOMAIN),
        failing(NXDOMAIN, kept=3600),
        failing(SERVFAIL),
        failing(REFUSED),
        addresses(),
        garbage,
        pytest.param(silent, marks=pytest.mark.slow),
        pytest.param(of_another(addresses(HERE)), marks=pytest.mark.slow),
        alias("crm.example"),
        alias("nowhere.example"),
        pytest.param(truncated(silent), marks=pytest.mark.slow),
    ],
    ids=[
        "no",
        "not for an hour",
        "broken",
        "closed",
        "empty",
        "garbage",
        "silent",
        "a guess",
        "a circle",
        "nowhere",
        "silent over TCP",
    ],
)
async def test_a_name_that_cannot_be_found_is_a_fault_like_any_other(
    names: NameServer, server: ScriptedServer, reply: Reply
) -> None:
    """Told as one of DNS, soon, and the next time it is asked for again: nothing of a failure is kept."""
    names.names["crm.example"] = reply
    url = f"http://crm.example:{server.port}/"
    async with session(names) as one:
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await one.post(url)
        names.names["crm.example"] = addresses(HERE)
        async with one.post(url) as answer:
            assert answer.status == 200


@pytest.mark.row("F23", "T40", "T41", "B16")
@pytest.mark.parametrize(
    "reply",
    [
        addresses(METADATA),
        alias("real.example", METADATA),
        alias("metadata.google.internal", METADATA),
        truncated(addresses(METADATA)),
        addresses("fd00:ec2::254"),
        addresses(f"::ffff:{METADATA}"),
        addresses(f"64:ff9b::{METADATA}"),
        addresses("0.0.0.0", "224.0.0.1", "fe80::1"),
    ],
)
async def test_no_answer_opens_what_is_closed(names: NameServer, reply: Reply) -> None:
    """Not by an alias, over TCP, in another family or in an embedding; and nothing is dialled."""
    names.names["crm.example"] = reply
    async with session(names) as one:
        assert await refusal(one, "http://crm.example/") is not None


@pytest.mark.row("F23", "T41")
async def test_a_name_that_points_elsewhere_the_next_time_is_judged_anew(
    names: NameServer, server: ScriptedServer
) -> None:
    """The first answer is allowed and used; the second is closed, and no byte reaches it."""
    closed = EgressPolicy(deny=(ip_network("127.0.0.2"),))
    names.names["crm.example"] = in_turn(addresses(HERE), addresses("127.0.0.2"))
    with socket.create_server(("127.0.0.2", server.port)) as forbidden:
        forbidden.setblocking(False)
        async with session(names, closed) as one:
            url = f"http://crm.example:{server.port}/"
            async with one.post(url) as answer:
                assert answer.status == 200
            assert isinstance(one.connector, aiohttp.TCPConnector)
            one.connector.clear_dns_cache()
            assert await refusal(one, url) == "closed by egress.deny (127.0.0.2)"
        assert (len(server.received), names.times("crm.example")) == (1, 3)
        with pytest.raises(BlockingIOError):
            forbidden.accept()


@pytest.mark.row("F23", "T41")
async def test_one_answer_is_used_for_the_judgement_and_for_the_dialling(
    names: NameServer, server: ScriptedServer
) -> None:
    """However short it may be kept by its own account: a name is asked for once, not once more behind the judge."""
    names.names["crm.example"] = in_turn(addresses(HERE, ttl=0), addresses(METADATA, ttl=0))
    async with session(names) as one:
        for _ in range(3):
            async with one.post(f"http://crm.example:{server.port}/") as answer:
                assert answer.status == 200
    assert names.times("crm.example") == 2, "once for each family"


@pytest.mark.row("F23", "T42")
@pytest.mark.parametrize("forbidden", [METADATA, "10.0.0.5", "fd00:ec2::254", "::1"])
async def test_a_mixed_answer_opens_nothing(names: NameServer, server: ScriptedServer, forbidden: str) -> None:
    """Under `public` it is refused whole; under `private` what is closed in it is never dialled."""
    names.names["crm.example"] = addresses("8.8.8.8", forbidden)
    names.names["ours.example"] = addresses(METADATA, HERE, "fe80::1")
    async with session(names, PUBLIC) as one:
        assert await refusal(one, "http://crm.example/") is not None
    async with session(names) as one, one.post(f"http://ours.example:{server.port}/") as answer:
        assert answer.status == 200


@pytest.mark.row("F22")
async def test_who_waits_for_a_name_holds_up_nobody(names: NameServer, server: ScriptedServer) -> None:
    """Neither other targets nor, by threads of the pool that all share, anything else in the process."""
    names.names |= {"hung.example": silent, "crm.example": addresses(HERE)}
    async with session(names, patience=A_MOMENT) as hung, session(names) as well:
        waiting = [asyncio.ensure_future(hung.post("http://hung.example/")) for _ in range(8)]
        while not names.times("hung.example"):
            await asyncio.sleep(0)
        async with well.post(f"http://crm.example:{server.port}/") as answer:
            assert answer.status == 200
        assert not any(one.done() for one in waiting)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in results} == {aiohttp.ClientConnectorDNSError}
        assert names.times("hung.example") <= 2 * DNS_TRIES, "who ask for one name at once ask once"
    assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
