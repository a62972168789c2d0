"""One HTTP attempt: an event as its target wants it, and what came of it.

Law: `send` never raises for what a target did, and never says a secret: reasons name the kind of fault, not the URL.
Each target has a session, a connection pool and a resolver of its own, so that a hung one costs the others nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

from yarl import URL

from relay.delivery.answers import ANSWER_CAP, Answer, End, read
from relay.delivery.credentials import REFUSED_AGAIN, TRIED_AGAIN, Credentials, Heard, NoToken, Request
from relay.delivery.deadlines import Deadline, Deadlines
from relay.delivery.faults import FAULTS, fault, fault_behind_proxy, is_our_shortage, words
from relay.delivery.hearing import in_use
from relay.delivery.plain import Whole
from relay.delivery.posting import Posting
from relay.delivery.sessions import open_session, post
from relay.delivery.tokens import Tokens
from relay.delivery.wire import LARGEST_BODY, Wire, fits
from relay.model import Claim, Fetched, Headers, Outcome, OutcomeKind, Shaped, Target, Unshaped
from relay.rules.answers import meaning, parse_retry_after, status_line, unfulfilled
from relay.rules.egress import EgressPolicy
from relay.rules.forwarding import outgoing_headers, outgoing_lines
from relay.rules.secrets import blotted, credentials
from relay.rules.shaping import is_shaped, shaped

CONNECT_TIMEOUT = timedelta(seconds=5)
LARGEST_ON_THE_LOOP = 64 * 1024
"""Bytes of a body that is shaped on the loop; a larger one would hold up the other targets."""
EXCERPT = 1024
"""Characters of an answer that are kept."""
PROXY_WANTS_PROOF = 407
NO_HEADERS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sent:
    """What one request came to, and the headers that could not be sent with it."""

    outcome: Outcome
    dropped_headers: tuple[str, ...] = ()


ComeTo = Callable[[Sent | Coroutine[Any, Any, Sent]], None]
"""Is told what a request has come to, or is given how it goes on."""


class Sender:
    """Sends to one target. Create inside a running loop; close when done."""

    def __init__(
        self,
        target: Target,
        egress: EgressPolicy,
        *,
        key_headers: Mapping[str, str | None],
        user_agent: str,
        now: Callable[[], datetime],
        proof_headers: Mapping[str, frozenset[str]] = MappingProxyType({}),
        tokens: Tokens | None = None,
        short_way: bool | None = None,
        retired: frozenset[str] = frozenset(),
    ) -> None:
        """`key_headers` names, for each source, the header that is its shared key: it is nobody else's to see.
        `proof_headers` names those that prove its body, which do not go with another one.
        `tokens` are everybody's; without them this sender has its own.
        `retired` are credentials of before, which the target may still repeat.
        `short_way` False sends by `ClientSession.post` alone; None takes the short way where this aiohttp has it.

        Raises:
            OSError: a certificate cannot be loaded any more, or no resolver can be had.
        """
        self._target = target
        self._key_headers = key_headers
        self._proof_headers = proof_headers
        self._user_agent = user_agent
        self._now = now
        self._deadlines = Deadlines(target.timeout.total_seconds())
        connect = min(CONNECT_TIMEOUT, target.timeout).total_seconds()
        self._session = open_session(
            egress,
            limit=target.concurrency + 2,
            connect_timeout=connect,
            longest=ANSWER_CAP,
            tls=target.tls,
            only_through_tls=target.proxy is not None and target.url.lower().startswith("https:"),
        )
        self._own_tokens = None if tokens is not None else Tokens(lambda: egress, user_agent=user_agent)
        lent = tokens or self._own_tokens
        assert lent is not None
        self._access = Credentials(target.auth, lent, sign=target.sign, proxy=target.proxy, now=now)
        self._short_url = self._access.addressed(target.url)
        is_short = target.proxy is None and (fits() if short_way is None else short_way)
        url = URL(self._short_url, encoded=True)
        self._wire = Wire(self._session, url, connect_timeout=connect) if is_short else None
        self._secrets = credentials(target) | retired
        names_host = any(name.lower() == "host" for name, _ in target.headers)
        self._is_plain = is_short and self._access.are_none and not is_shaped(target) and not names_host
        """Most targets: they get what came in, as it came, and nothing of ours but the names of the event."""
        self._bare: dict[int, Sent] = {}
        """What an answer comes to that is no more than its status, by that."""

    def send(self, claim: Claim, body: bytes, data: Any = Fetched.NOTHING) -> Coroutine[Any, Any, Sent]:
        """Make one request for a claim; total but for cancellation.

        Args:
            claim: whose event, attempt number and target it is for.
            body: the event's bytes, sent as they are unless the target asks for another body.
            data: what was fetched for the event.
        """
        if self._is_plain and data is Fetched.NOTHING and len(body) <= LARGEST_BODY:
            return self._forwarded(claim, body)
        return self._made(claim, body, data)

    async def _made(self, claim: Claim, body: bytes, data: Any) -> Sent:
        """Make a request for a claim and send it, with whatever the target asks for."""
        shape = await self._shaped(claim, body, data) if is_shaped(self._target, data) else None
        if isinstance(shape, Unshaped):
            return Sent(Outcome(OutcomeKind.UNPREPARED, reason=shape.reason))
        headers, dropped = outgoing_headers(
            claim.event,
            self._target,
            attempt=claim.attempt,
            user_agent=self._user_agent,
            key_header=self._key_headers.get(claim.event.source),
            replayed=claim.replayed,
            shape=shape,
            proof_headers=self._proof_headers.get(claim.event.source, NO_HEADERS),
        )
        url, body = (self._target.url, body) if shape is None else (shape.url or self._target.url, shape.body)
        return Sent(await self._attempt(Request("POST", url, headers, body), claim), dropped)

    async def _forwarded(self, claim: Claim, body: bytes) -> Sent:
        """The same where nothing is to be made of what came in."""
        assert self._wire is not None
        lines, many, dropped = self._lines(claim)
        in_use.set(None)
        return await self._heard(claim, self._deadlines.begin(), self._wire.post_lines(lines, many, body), dropped)

    def begin(self, claim: Claim, body: bytes, come_to: ComeTo) -> Posting | None:
        """The same at once and without a task, where a connection is kept: the way of most attempts, and the shortest.
        None where nothing was begun, and the request is for `send`.

        Args:
            come_to: called once, unless the posting is cancelled: with what it came to, or, where that is not said by
                one of the plainest answers, with the coroutine that tells it.
        """
        if not self._is_plain or len(body) > LARGEST_BODY:
            return None
        assert self._wire is not None
        lines, many, dropped = self._lines(claim)
        if dropped or (line := self._wire.take()) is None:
            return None
        try:
            request = self._wire.request(lines, many, body)
        except ValueError:
            self._wire.keep(line)
            return None
        return Posting(line, request, self._deadlines, partial(self._came, claim, come_to))

    def _came(self, claim: Claim, come_to: ComeTo, posting: Posting, whole: Whole | None) -> None:
        """Tell what a posting came to, or how it goes on."""
        assert self._wire is not None
        if whole is None:
            come_to(self._resumed(claim, posting))
            return
        posting.deadline.met()
        self._wire.keep(posting.line)
        try:
            sent = self._said(*whole, claim)
        except Exception as bug:  # noqa: BLE001 - it is to end the attempt, not the connection that has told of it
            come_to(_failing(bug))
        else:
            come_to(sent)

    def _said(self, status: int, body: bytes, claim: Claim) -> Sent:
        """What one of the plainest answers comes to."""
        if not body and (known := self._bare.get(status)) is not None:
            return known
        judged = self._judged(Answer(status, body), None, claim)
        sent = Sent(judged if isinstance(judged, Outcome) else self._with_text(judged, body, End.WHOLE, None))
        if not body:
            self._bare[status] = sent
        return sent

    async def _resumed(self, claim: Claim, posting: Posting) -> Sent:
        """Hear the answer to a posting that is none of the plainest."""
        assert self._wire is not None
        in_use.set(posting.line.handler)
        return await self._heard(claim, posting.deadline, self._wire.rest(posting.line, None))

    async def _heard(
        self, claim: Claim, deadline: Deadline, asked: Coroutine[Any, Any, Answer], dropped: tuple[str, ...] = ()
    ) -> Sent:
        """What a request comes to whose answer is awaited."""
        try:
            with deadline:
                answer = await asked
        except FAULTS as error:
            return Sent(self._failed(error, deadline), dropped)
        finally:
            asked.close()  # which was overdue before it began
        return Sent(await self._concluded(answer, None, claim, deadline), dropped)

    def _lines(self, claim: Claim) -> tuple[str, int, tuple[str, ...]]:
        return outgoing_lines(
            claim.event,
            self._target,
            attempt=claim.attempt,
            user_agent=self._user_agent,
            key_header=self._key_headers.get(claim.event.source),
            replayed=claim.replayed,
        )

    async def _shaped(self, claim: Claim, body: bytes, data: Any) -> Shaped | Unshaped:
        """What the target is to get in place of what came in."""
        if len(body) > LARGEST_ON_THE_LOOP or data is not Fetched.NOTHING:  # which may be of any size
            return await asyncio.to_thread(shaped, self._target, claim.event, body, data)
        return shaped(self._target, claim.event, body, data)

    async def _attempt(self, request: Request, claim: Claim) -> Outcome:
        """Put our credentials on a request, send it, and judge the answer; total but for cancellation."""
        in_use.set(None)
        ready: Request | None = None
        deadline = self._deadlines.begin()
        try:
            with deadline:
                ready = (
                    request if self._access.are_none else await self._access.applied(request, event_id=claim.event.id)
                )
                answer = await self._ask(ready)
        except NoToken as error:
            kind = OutcomeKind.INTERRUPTED if error.is_our_shortage else OutcomeKind.UNREACHABLE
            return Outcome(kind, reason=str(error))
        except FAULTS as error:
            return self._failed(error, deadline, had_token=ready is not None)
        return await self._concluded(answer, ready, claim, deadline)

    def _failed(self, error: Exception, deadline: Deadline, *, had_token: bool = True) -> Outcome:
        """The outcome where no answer was had."""
        if deadline.saw_standstill and not self._has_taken():
            return Outcome(OutcomeKind.INTERRUPTED, reason="the relay itself stood still while it waited")
        if not had_token:
            return Outcome(OutcomeKind.UNREACHABLE, reason=f"no token: {fault(error, self._target.timeout)}")
        return self._broken(error)

    async def _concluded(self, answer: Answer, sent: Request | None, claim: Claim, deadline: Deadline) -> Outcome:
        """What an answer comes to whose head is there; `sent` is None where it was sent without credentials."""
        try:
            judged = self._judged(answer, sent, claim)
            if isinstance(judged, Outcome):
                return judged
            return self._with_text(judged, *await read(answer, deadline.at), sent)
        finally:
            answer.release()

    def _judged(self, answer: Answer, sent: Request | None, claim: Claim) -> "Outcome | _Unread":
        """What the head of an answer says; an outcome, where the text does not matter."""
        status = answer.status
        wait = None if answer.retry_after is None else parse_retry_after(answer.retry_after, self._now())
        kind = meaning(status, self._target, retry_after=wait)
        more = ""
        if sent is not None and not self._access.are_none:
            heard = self._access.heard(status, sent, of=claim.delivery_id)
            if heard is Heard.TRY_AGAIN and kind is not OutcomeKind.DELIVERED:
                return Outcome(OutcomeKind.INTERRUPTED, status, TRIED_AGAIN, timedelta(0))
            if heard is Heard.REFUSED_AGAIN:
                more = f": {REFUSED_AGAIN}"
        if status == PROXY_WANTS_PROOF and self._target.proxy is not None:
            return Outcome(OutcomeKind.UNREACHABLE, status, f"proxy: status {status}, it wants other credentials")
        if answer.is_empty and not self._asks_text(kind) and not more and wait is None:
            return _plain(kind, status)
        return _Unread(kind, status, f"status {status}{more}", wait)

    def _with_text(self, head: "_Unread", text: bytes, end: End, sent: Request | None) -> Outcome:
        """What an answer comes to of which so much was read."""
        kind, status, reason, wait = head
        if self._asks_text(kind):
            kind, reason = self._asked(text, end, status)
        return Outcome(kind, status, reason, wait, self._excerpt(text, sent, is_cut=end is not End.WHOLE))

    def _asks_text(self, kind: OutcomeKind) -> bool:
        return self._target.success_when is not None and kind is OutcomeKind.DELIVERED

    def _asked(self, text: bytes, end: End, status: int) -> tuple[OutcomeKind, str]:
        """What `success_when` makes of an answer that its status calls a success. Where nobody can tell whether the
        event was taken it is sent again: whoever writes the condition does not trust the status."""
        assert self._target.success_when is not None
        if end is End.BROKEN:
            return OutcomeKind.FAILED, f"status {status}, but the answer broke off before success_when could read it"
        if end is End.CUT:
            limit = ANSWER_CAP // 1024
            return (
                OutcomeKind.REFUSED,
                f"status {status}, but the answer is longer than success_when reads ({limit} KiB)",
            )
        reason = unfulfilled(self._target.success_when, text)
        return (OutcomeKind.DELIVERED, f"status {status}") if reason is None else (OutcomeKind.REFUSED, reason)

    async def _ask(self, request: Request) -> Answer:
        """Send, and wait for the head of the answer: the short way, or aiohttp's own where that does not do."""
        is_usual = request.url == self._short_url
        if self._wire is not None and len(request.body) <= LARGEST_BODY:
            path = None if is_usual else URL(request.url, encoded=True).raw_path_qs
            return await self._wire.post(request.headers, request.body, path)
        url, headers = URL(request.url, encoded=True), _one_spelling(request.headers)
        with nullcontext() if self._wire is None else self._wire.beside():
            answer = await post(self._session, url, headers=headers, body=request.body, proxy=self._target.proxy)
        return Answer(answer.status, b"", answer.headers.get("Retry-After"), answer.content, answer)

    def _has_taken(self) -> bool:
        """Whether the status line of an answer has come that means success, whatever became of the rest."""
        status = _status_heard()
        return status is not None and meaning(status, self._target, retry_after=None) is OutcomeKind.DELIVERED

    def _broken(self, error: Exception) -> Outcome:
        """The outcome where no whole answer was had."""
        status = _status_heard()
        if status is not None and self._has_taken():
            if self._target.success_when is not None:
                kind, reason = self._asked(b"", End.BROKEN, status)
                return Outcome(kind, status, reason)
            return Outcome(OutcomeKind.DELIVERED, status, f"status {status}, the rest of the answer was broken")
        if is_our_shortage(error):
            return Outcome(OutcomeKind.INTERRUPTED, reason=f"short of resources: {words(error)}")
        told = fault if self._target.proxy is None else fault_behind_proxy
        return Outcome(OutcomeKind.UNREACHABLE, reason=told(error, self._target.timeout))

    def _excerpt(self, answer: bytes, sent: Request | None, *, is_cut: bool) -> str:
        """The beginning of an answer; our secrets are taken out before it is cut, or a cut one would stay."""
        text = answer.decode("utf-8", "replace")
        secrets = self._secrets if sent is None else self._secrets | sent.secrets
        return blotted(text, secrets, is_cut=is_cut)[:EXCERPT]

    async def close(self) -> None:
        """Close the pool and the resolver."""
        self._deadlines.close()
        if self._own_tokens is not None:
            await self._own_tokens.close()
        if self._wire is not None:
            self._wire.close()
        await self._session.close()


def _status_heard() -> int | None:
    """The status of the answer that has begun on this task's connection."""
    connection = in_use.get()
    return None if connection is None else status_line(connection.head)


def _one_spelling(headers: Headers) -> Headers:
    """The same fields, each name spelled as it was first: aiohttp keeps only the last of several spellings."""
    first: dict[str, str] = {}
    return tuple((first.setdefault(name.lower(), name), value) for name, value in headers)


async def _failing(bug: Exception) -> Sent:
    raise bug


@lru_cache(maxsize=4096)
def _plain(kind: OutcomeKind, status: int) -> Outcome:
    """The outcome of an answer without a body: a value like any other, and by far the most frequent."""
    return Outcome(kind, status, f"status {status}")


class _Unread(NamedTuple):
    """What the head of an answer says whose text is to be read."""

    kind: OutcomeKind
    status: int
    reason: str
    wait: timedelta | None
