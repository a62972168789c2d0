"""Tokens of OAuth 2.0 by the grant `client_credentials` (RFC 6749, section 4.4), fetched once for all who need one.

Law: one fetch at a time for a client, whose result, good or bad, all who wait share; no token is used up to its last
second; a refused token is dropped by its generation, so that many who meet the same refusal cause one fetch. The
endpoint is judged by the egress guard like any target, and nothing it says is repeated but the error codes of the RFC.
"""

import asyncio
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential
from yarl import URL

from relay.delivery.egress import refused_by_egress
from relay.delivery.faults import FAULTS, fault, fault_behind_proxy, is_our_shortage
from relay.delivery.sessions import open_session, post, whole
from relay.model import Headers, OAuth2Client, Proxy
from relay.rules.answers import parse_retry_after
from relay.rules.egress import EgressPolicy
from relay.rules.signing import form_basic, wire_text

DEADLINE = timedelta(seconds=10)
"""For a fetch with its retries; the wait of one delivery for it is part of its target's own `timeout`."""
CONNECT_TIMEOUT = 5.0
ANSWER_CAP = 64 * 1024
LIFETIME = 600.0
"""Seconds that a token is used whose endpoint does not say how long it is good."""
LONGEST_LIFETIME = 86_400.0
LONGEST_MARGIN = 60.0
"""A token is renewed this many seconds before its end, or a fifth of its life where that is less."""
MOST_CLIENTS = 1024
LONGEST_INT = 400
"""Digits of a whole number; one with more is no different from infinity."""
LONGEST_TOKEN = 16 * 1024


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientError | OSError) and refused_by_egress(error) is None


_TRIES = AsyncRetrying(
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.2, max=1),
    retry=retry_if_exception(_may_pass),
    reraise=True,
)
"""Used by copies alone: a shared one mixes up the tasks that share it."""

_IN_WORDS = {
    "invalid_client": "client_id or client_secret is wrong",
    "invalid_grant": "the grant is refused",
    "invalid_request": "it misses or dislikes a parameter",
    "invalid_scope": "the scope is unknown or not granted",
    "invalid_target": "the audience is unknown or not granted",
    "unauthorized_client": "the client may not use the grant client_credentials",
    "unsupported_grant_type": "it does not know the grant client_credentials",
}
"""The error codes of RFC 6749, section 5.2, and RFC 8707."""
_SENDABLE = re.compile(r"[\x21-\x7e]+")


class NoToken(Exception):
    """No token is to be had; the message says why, without any secret."""

    is_our_shortage = False
    """This process or machine has run out of something; the endpoint is not to blame."""


class _Paused(NoToken):
    """The endpoint asks not to be asked for so long."""

    def __init__(self, message: str, wait: timedelta) -> None:
        super().__init__(message)
        self.wait = wait


class _Passing(OSError):
    """The endpoint said that it may do better the next time."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token; `generation` tells it from the one before."""

    value: str = field(repr=False)
    generation: int
    renew_at: float
    """On the clock of `Tokens`."""


@dataclass(slots=True)
class _Held:
    """What is known of one client."""

    token: Token | None = None
    fetching: "asyncio.Task[Token] | None" = None
    pause: str = ""
    """What to say to who asks before `paused_until`, on the clock of `Tokens`."""
    paused_until: float = 0.0


Way = tuple[OAuth2Client, Proxy | None]


class Tokens:
    """The tokens of all clients. Build inside a running loop, `close` when done."""

    def __init__(
        self,
        egress: Callable[[], EgressPolicy],
        *,
        user_agent: str,
        fetched: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] | None = None,
        patience: timedelta = DEADLINE,
    ) -> None:
        """`fetched` is told each new token before anybody else, so that it can be kept out of what is shown;
        `patience` is for a fetch with its retries."""
        self._patience = patience
        self._egress = egress
        self._user_agent = user_agent
        self._fetched = fetched
        self._clock = clock or asyncio.get_running_loop().time
        self._clients: OrderedDict[Way, _Held] = OrderedDict()
        self._fetches: set[asyncio.Task[Token]] = set()
        self._generations = 0

    async def get(self, client: OAuth2Client, proxy: Proxy | None = None) -> Token:
        """A token that is good now, fetched if there is none.

        Raises:
            NoToken: none is to be had, for the caller and for all who have waited with it.
        """
        held = self._held((client, proxy))
        if held.token is not None and self._clock() < held.token.renew_at:
            return held.token
        if self._clock() < held.paused_until:
            raise NoToken(held.pause)
        if held.fetching is None:
            held.fetching = asyncio.create_task(self._fetch(client, proxy, held), name="token fetch")
            self._fetches.add(held.fetching)
            held.fetching.add_done_callback(self._over)
        try:
            return await asyncio.shield(held.fetching)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise NoToken("the relay is stopping") from None

    def refused(self, client: OAuth2Client, token: Token, proxy: Proxy | None = None) -> None:
        """A target took this token for no proof: it is used no more. A newer one is left alone."""
        held = self._held((client, proxy))
        if held.token is not None and held.token.generation == token.generation:
            held.token = None

    async def close(self) -> None:
        """Fetch no more."""
        fetches = tuple(self._fetches)
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def _held(self, way: Way) -> _Held:
        held = self._clients.setdefault(way, _Held())
        self._clients.move_to_end(way)
        if len(self._clients) > MOST_CLIENTS:
            self._clients.popitem(last=False)
        return held

    def _over(self, task: "asyncio.Task[Token]") -> None:
        self._fetches.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may be left who does

    async def _fetch(self, client: OAuth2Client, proxy: Proxy | None, held: _Held) -> Token:
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                found: tuple[str, float] = await _TRIES.copy()(self._ask, client, proxy)
        except _Paused as pause:
            held.pause, held.paused_until = str(pause), self._clock() + pause.wait.total_seconds()
            raise
        except NoToken:
            raise
        except FAULTS as error:
            told = fault if proxy is None else fault_behind_proxy
            words = str(error) if isinstance(error, _Passing) else told(error, self._patience)
            failure = NoToken(f"no token: {words}")
            failure.is_our_shortage = is_our_shortage(error)
            raise failure from None
        finally:
            held.fetching = None
        value, lifetime = found
        self._fetched(value)
        self._generations += 1
        margin = min(LONGEST_MARGIN, lifetime / 5)
        held.token = Token(value, self._generations, self._clock() + lifetime - margin)
        return held.token

    async def _ask(self, client: OAuth2Client, proxy: Proxy | None) -> tuple[str, float]:
        """One request: the token, and the seconds that it is good."""
        headers: Headers = (
            ("Accept", "application/json"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("User-Agent", self._user_agent),
        )
        form = {"grant_type": "client_credentials", "scope": client.scope, "audience": client.audience}
        if client.in_body:
            form |= {"client_id": client.client_id, "client_secret": wire_text(client.client_secret.value)}
        else:
            headers += (("Authorization", f"Basic {form_basic(client.client_id, client.client_secret)}"),)
        url = URL(client.token_url, encoded=True)
        body = urlencode({name: value for name, value in form.items() if value}).encode()
        async with open_session(
            self._egress(), limit=1, connect_timeout=CONNECT_TIMEOUT, longest=ANSWER_CAP
        ) as session:
            answer = await post(session, url, headers=headers, body=body, proxy=proxy)
            try:
                wait = parse_retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
                if wait and answer.status in (429, 503):
                    raise _Paused(f"no token: the token endpoint answered {answer.status} and asks for a pause", wait)
                return _read(answer.status, await whole(answer.content, cap=ANSWER_CAP))
            finally:
                answer.close()


def _read(status: int, body: bytes | None) -> tuple[str, float]:
    """What an answer says (RFC 6749, sections 5.1 and 5.2); None is one that is too long."""
    if body is None:
        raise NoToken(f"no token: the token endpoint's answer is longer than {ANSWER_CAP // 1024} KiB")
    try:
        found = json.loads(body, parse_int=_whole)
        is_json = True
    except (ValueError, RecursionError):
        found, is_json = None, False
    answer: dict[str, Any] = found if isinstance(found, dict) else {}
    if status != 200:
        raise _refusal(status, answer.get("error"))
    if not is_json:
        raise NoToken("no token: the token endpoint's answer is not JSON; is token_url right?")
    if not isinstance(found, dict):
        raise NoToken("no token: the token endpoint's answer is JSON, but no object with an access_token")
    value, kind = answer.get("access_token"), answer.get("token_type", "bearer")
    if not isinstance(value, str) or not value:
        code = _code(answer.get("error"))
        raise NoToken(f"no token: the token endpoint's answer has no access_token{f', but {code}' if code else ''}")
    if len(value) > LONGEST_TOKEN or not _SENDABLE.fullmatch(value):
        raise NoToken("no token: the access_token cannot stand in a header")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise NoToken("no token: the token endpoint gave a token of another type than Bearer")
    return value, _lifetime(answer.get("expires_in"))


def _whole(text: str) -> int | float:
    """A whole number of any length: Python makes no int of thousands of digits."""
    return int(text) if len(text) < LONGEST_INT else float(text)


def _refusal(status: int, error: object) -> Exception:
    code = _code(error)
    if status >= 500 or status == 429:
        return _Passing(f"the token endpoint answered {status}")
    if 300 <= status < 400:
        return NoToken(f"no token: the token endpoint redirects ({status}); name the final address in token_url")
    if status == 401 and not code:
        code = f"{_IN_WORDS['invalid_client']}"
    told = f": {code}" if code else ""
    return NoToken(f"no token: the token endpoint answered {status}{told}")


def _code(error: object) -> str:
    """A known error code with its meaning; what is not known may be anything, and is not repeated."""
    return f"{error}: {_IN_WORDS[error]}" if isinstance(error, str) and error in _IN_WORDS else ""


def _lifetime(expires_in: object) -> float:
    """Seconds; some endpoints write them as text."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float | str):
        return LIFETIME
    try:
        seconds = float(expires_in)
    except (ValueError, OverflowError):
        return LIFETIME
    return LIFETIME if math.isnan(seconds) or seconds < 0 else min(seconds, LONGEST_LIFETIME)
