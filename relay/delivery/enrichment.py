"""Fetches what an event lacks, once for all its targets.

Law: a fetch is asked for by a delivery and shared by all deliveries of the event, now by those that wait for it and
later from the store; what was fetched is stored before anybody uses it. A failed fetch is never a target's failure:
what the enricher or its settings refuse is `unprepared`, and an enricher that does not answer is left alone for a
while, during which nothing that needs it spends a step.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Protocol, TypeVar

from yarl import URL

from relay.delivery.credentials import Credentials, Heard, NoToken, Request
from relay.delivery.faults import FAULTS, fault, is_our_shortage
from relay.delivery.sessions import open_session, whole
from relay.delivery.tokens import Tokens
from relay.model import Enricher, Event, Outcome, OutcomeKind
from relay.rules.answers import parse_retry_after
from relay.rules.egress import EgressPolicy
from relay.rules.enriching import (
    WAITS,
    Answer,
    Ask,
    Brought,
    Failing,
    Pace,
    Refused,
    answered,
    asked,
    paced,
)
from relay.rules.exactness import read
from relay.rules.retry import waiting
from relay.store import Store

AT_A_TIME = 8
"""Requests to one enricher."""
LARGEST_ANSWER = 1024 * 1024
"""Bytes."""
CONNECT_TIMEOUT = timedelta(seconds=5)
LONGEST_QUEUE = timedelta(seconds=20)
"""How long a fetch may wait for its turn at a busy enricher; then its delivery comes again."""
LARGEST_ON_THE_LOOP = 32 * 1024
"""Bytes that are parsed on the loop; more would hold up the targets."""
REMEMBERED_BYTES = 2 * 1024 * 1024
"""Of the JSON that was fetched last; its other targets follow in a moment. Parsed, it takes many times as much."""


_Result = TypeVar("_Result")


class Witness(Protocol):
    """Who is told of fetches; called on the event loop, must not block."""

    def enriched(self, enricher: str, event: Event, answer: Answer, *, took: timedelta) -> None:
        """An enricher was asked, and this came of it."""

    def enricher_failing(self, enricher: str, reason: str, *, next_at: datetime) -> None:
        """An enricher does not answer and is left alone until then."""

    def enricher_recovered(self, enricher: str) -> None:
        """One that did not answer does again."""


@dataclass(frozen=True, slots=True)
class Enriched:
    """What is known of an event beside itself: parsed JSON, never null."""

    data: Any


class Enrichment:
    """All enrichers of a relay. Build inside a running loop, `close` when done."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        witness: Witness,
        *,
        user_agent: str,
        now: Callable[[], datetime],
        rng: Random,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._witness = witness
        self._user_agent = user_agent
        self._now = now
        self._rng = rng
        self._clients: dict[str, _Client] = {}
        self._under_way: dict[tuple[str, str], asyncio.Task[Enriched | Outcome]] = {}
        self._recent = _Recent()
        self._closing: set[asyncio.Task[None]] = set()

    def prepared(self, enrichers: Iterable[Enricher], egress: EgressPolicy) -> "Enrichers":
        """What is asked under other settings, made beside what is asked now: one whose settings are the same goes
        on as it is, with its conduct; any other is asked at once, however it behaved before. Raises OSError where no
        resolver is to be had."""
        made: dict[str, _Client] = {}
        try:
            for enricher in enrichers:
                known = self._clients.get(enricher.name)
                is_same = known is not None and known.serves(enricher, egress)
                made[enricher.name] = (
                    known
                    if known is not None and is_same
                    else _Client(enricher, egress, self._tokens, self._user_agent, self._now)
                )
        except OSError:
            self.discard(made)
            raise
        return made

    def discard(self, enrichers: "Enrichers") -> None:
        """Let go of what was prepared and will not be asked."""
        self._close_but(enrichers, self._clients)

    def exchange(self, enrichers: "Enrichers") -> None:
        """Ask these from now on; a fetch under way ends with what it began with."""
        before, self._clients = self._clients, dict(enrichers)
        self._close_but(before, self._clients)

    def _close_but(self, some: "Enrichers", kept: "Enrichers") -> None:
        """Close some, without those that are kept."""
        stays = set(map(id, kept.values()))
        for gone in some.values():
            if id(gone) not in stays:
                task = asyncio.create_task(gone.close(), name=f"close enricher {gone.enricher.name}")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def bring(self, name: str, event: Event, body: bytes) -> Enriched | Outcome:
        """What an enricher has for an event, or the outcome of an attempt that cannot be made without it.

        Raises:
            StoreUnavailable: what was fetched before cannot be read, or what was fetched now cannot be kept.
        """
        key = (event.id, name)
        known = self._recent.get(key)
        if known is not None:
            return known
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._bring(name, event, body), name=f"enrich {event.id}")
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    def _over(self, key: tuple[str, str], task: "asyncio.Task[Enriched | Outcome]") -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may be left who does

    async def _bring(self, name: str, event: Event, body: bytes) -> Enriched | Outcome:
        stored = await self._store.brought(event.id, name)
        fetched = None if stored is None else await _aside(len(stored), _known, stored)
        if stored is None or fetched is None:
            client = self._clients.get(name)
            if client is None:
                return Outcome(OutcomeKind.UNPREPARED, reason=f"enricher {name} is not in the config")
            answer = await self._fetch(client, event, body)
            if not isinstance(answer, Brought):
                return answer
            stored = answer.data
            fetched = await _aside(len(stored), _known, stored)
            if fetched is None:  # how deep may be read depends on who reads
                return Outcome(OutcomeKind.UNPREPARED, reason=f"enricher {name}: its answer is nested too deeply")
            await self._store.keep_brought(event.id, name, stored, now=self._now())
        self._recent.keep((event.id, name), fetched, len(stored))
        return fetched

    async def _fetch(self, client: "_Client", event: Event, body: bytes) -> Brought | Outcome:
        wanted = await _aside(len(body), asked, client.enricher, event, body)
        if isinstance(wanted, Refused):
            return Outcome(OutcomeKind.UNPREPARED, reason=wanted.reason)
        try:
            async with asyncio.timeout(LONGEST_QUEUE.total_seconds()):
                await client.slots.acquire()
        except TimeoutError:
            return waiting(f"enricher {client.enricher.name} is busy", WAITS[0])
        try:
            began_at = self._now()
            wait = client.wait(began_at)
            if wait is not None:
                return waiting(client.pace.reason, wait)
            client.under_way += 1
            try:
                answer = await client.ask(wanted, event)
            finally:
                client.under_way -= 1
        finally:
            client.slots.release()
        return self._judged(client, event, answer, began_at)

    def _judged(
        self, client: "_Client", event: Event, answer: Answer | Outcome, began_at: datetime
    ) -> Brought | Outcome:
        if isinstance(answer, Outcome):
            return answer
        now, before = self._now(), client.pace
        client.pace = paced(before, answer, began_at=began_at, now=now, rng=self._rng)
        name = client.enricher.name
        self._witness.enriched(name, event, answer, took=now - began_at)
        if client.pace.failures > before.failures and client.pace.wait_until is not None:
            self._witness.enricher_failing(name, client.pace.reason, next_at=client.pace.wait_until)
        elif before.failures and not client.pace.failures:
            self._witness.enricher_recovered(name)
        match answer:
            case Brought():
                return answer
            case Refused(reason=reason):
                return Outcome(OutcomeKind.UNPREPARED, reason=reason)
        wait = client.pace.wait(now) or WAITS[0]
        return waiting(answer.reason, wait)

    def clock_set_back(self) -> None:
        """Let everybody be asked whose wait is counted by a clock that was wrong."""
        for client in self._clients.values():
            client.pace = client.pace.set_back()

    async def close(self) -> None:
        """Fetch no more."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        for client in self._clients.values():
            await client.close()


def _known(stored: bytes) -> Enriched | None:
    """What was fetched; None where it cannot be read, as where the disk has damaged it: it is fetched again."""
    try:
        return Enriched(read(stored))
    except (ValueError, RecursionError):
        return None


async def _aside(size: int, work: Callable[..., _Result], *given: Any) -> _Result:
    """What comes of a piece of work on so many bytes, done beside the loop where they are many."""
    return await asyncio.to_thread(work, *given) if size > LARGEST_ON_THE_LOOP else work(*given)


class _Client:
    """One enricher: its connections, its credentials and its conduct."""

    def __init__(
        self, enricher: Enricher, egress: EgressPolicy, tokens: Tokens, user_agent: str, now: Callable[[], datetime]
    ) -> None:
        self.enricher = enricher
        self.pace = Pace()
        self.slots = asyncio.Semaphore(AT_A_TIME)
        self.under_way = 0
        self._egress = egress
        self._user_agent = user_agent
        self._now = now
        self._credentials = Credentials(enricher.auth, tokens, now=now)
        self._session = open_session(
            egress, limit=AT_A_TIME, connect_timeout=CONNECT_TIMEOUT.total_seconds(), longest=LARGEST_ANSWER
        )

    def serves(self, enricher: Enricher, egress: EgressPolicy) -> bool:
        """Whether it is the client for these settings."""
        return (self.enricher, self._egress) == (enricher, egress)

    def wait(self, now: datetime) -> timedelta | None:
        """How long nobody may ask; one that has failed is asked by one at a time, who is waited for."""
        wait = self.pace.wait(now)
        if wait is None and self.pace.failures and self.under_way:
            return max(WAITS[0], self.enricher.timeout)
        return wait

    async def ask(self, wanted: Ask, event: Event) -> Answer | Outcome:
        """Ask once; a token that is refused is fetched anew, once. An outcome where the fault is ours."""
        name, seconds = self.enricher.name, self.enricher.timeout.total_seconds()
        headers = wanted.headers
        if not any(key.lower() == "user-agent" for key, _ in headers):
            headers += (("User-Agent", self._user_agent),)
        request = Request(wanted.method, wanted.url, headers, wanted.body or b"")
        try:
            async with asyncio.timeout(seconds):
                while True:
                    ready = await self._credentials.applied(request, event_id=event.id)
                    status, body, retry_after = await self._send(ready, has_body=wanted.body is not None)
                    if self._credentials.heard(status, ready, of=event.id) is not Heard.TRY_AGAIN:
                        break
        except NoToken as error:
            if error.is_our_shortage:
                return Outcome(OutcomeKind.INTERRUPTED, reason=f"enricher {name}: {error}")
            return Failing(f"enricher {name}: {error}")
        except FAULTS as error:
            if is_our_shortage(error):
                return Outcome(OutcomeKind.INTERRUPTED, reason=f"short of resources: enricher {name}")
            return Failing(f"enricher {name}: {fault(error, self.enricher.timeout)}")
        if body is None:
            return Refused(f"enricher {name}: its answer is larger than {LARGEST_ANSWER // 1024} KiB")
        wait = parse_retry_after(retry_after, self._now())
        return await _aside(len(body), partial(answered, self.enricher, status, body, retry_after=wait))

    async def _send(self, ready: Request, *, has_body: bool) -> tuple[int, bytes | None, str | None]:
        """Status, whole body (None where it is too large) and what it says of a pause."""
        async with self._session.request(
            ready.method,
            URL(ready.url, encoded=True),
            headers=ready.headers,
            data=ready.body if has_body else None,
            allow_redirects=False,
        ) as answer:
            body = await whole(answer.content, cap=LARGEST_ANSWER)
            if body is None:
                answer.close()
            return answer.status, body, answer.headers.get("Retry-After")

    async def close(self) -> None:
        """Let go of the connections, after the last request over them."""
        for _ in range(AT_A_TIME):
            await self.slots.acquire()
        await self._session.close()


Enrichers = Mapping[str, _Client]
"""Who can be asked, by name; made by `prepared`, taken up by `exchange`."""


class _Recent:
    """What was fetched last, within a bound of bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], tuple[Enriched, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, str]) -> Enriched | None:
        found = self._kept.get(key)
        return None if found is None else found[0]

    def keep(self, key: tuple[str, str], fetched: Enriched, size: int) -> None:
        self._kept[key] = fetched, size
        self._bytes += size
        while self._bytes > REMEMBERED_BYTES:
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= gone
