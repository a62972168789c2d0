"""Puts our credentials on a request, as the last thing before it is sent.

Law: what is signed is what is sent, so nothing changes a request after this. A header of ours takes the place of every
header of that name; a token that is refused costs one more try, never a loop.

One `Credentials` serves one party, a target or an enricher, and is used like this::

    try:
        ready = await credentials.applied(Request("POST", url, headers, body), event_id=event.id)
    except NoToken as error:
        ...  # nothing was sent; str(error) is fit to be shown
    answer = await ask(ready)  # url and headers of `ready`, method and body as they were
    match credentials.heard(answer.status, ready, of=claim.delivery_id):
        case Heard.TRY_AGAIN: ...  # at once, as a request of its own: `applied` has a fresh token for it
        case Heard.REFUSED_AGAIN: ...  # a fresh token was refused as well: a failure like any other
        case Heard.NOTHING: ...  # the status means what it means
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto

from relay.delivery.tokens import NoToken as NoToken
from relay.delivery.tokens import Token, Tokens
from relay.model import Auth, Headers, OAuth2Client, Proxy, QueryKey, StandardWebhooksCheck
from relay.rules.signing import sign, with_query_key

MOST_REFRESHED = 4096
"""Pieces of work that are remembered to have had their fresh token."""

TRIED_AGAIN = "token refused; tried again with a fresh one"
REFUSED_AGAIN = "a fresh token was refused as well"
"""Reasons of an attempt that a 401 has ended, the first and the second time."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it would be sent without credentials, or as it is sent with them."""

    method: str
    url: str = field(repr=False)
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    token: Token | None = None
    """The token that it carries."""

    @property
    def secrets(self) -> frozenset[str]:
        """What it carries that its party's configuration does not tell."""
        return frozenset() if self.token is None else frozenset({self.token.value})


class Heard(Enum):
    """What an answer's status says of the token that was sent."""

    NOTHING = auto()
    TRY_AGAIN = auto()
    """It is stale; the same work may be tried again at once, this one time."""
    REFUSED_AGAIN = auto()
    """It was fresh: more tokens will not help."""


class Credentials:
    """The credentials of one party. Total but for `NoToken` and cancellation."""

    def __init__(
        self,
        auth: Auth | None,
        tokens: Tokens,
        *,
        sign: StandardWebhooksCheck | None = None,
        proxy: Proxy | None = None,
        now: Callable[[], datetime],
    ) -> None:
        """`tokens` is shared by all parties; `proxy` is the way on which tokens are fetched as well."""
        self._auth = auth
        self._tokens = tokens
        self._sign = sign
        self._proxy = proxy
        self._now = now
        self.are_none = auth is None and sign is None
        """Requests leave as they are."""
        self._refreshed: OrderedDict[str, None] = OrderedDict()

    def addressed(self, url: str) -> str:
        """The URL with the key that belongs into its query."""
        return with_query_key(url, self._auth) if isinstance(self._auth, QueryKey) else url

    async def applied(self, request: Request, *, event_id: str) -> Request:
        """The request with our credentials; the caller sets the deadline, which a token may have to be waited for.

        Raises:
            NoToken: no token is to be had, so nothing may be sent.
        """
        auth, ours, token = self._auth, Headers(), None
        match auth:
            case None | QueryKey():
                pass
            case OAuth2Client():
                token = await self._tokens.get(auth, self._proxy)
                ours = (("Authorization", f"Bearer {token.value}"),)
            case _:
                ours = sign(auth, request.body, now=self._now(), message_id=event_id)
        if self._sign is not None:
            ours += sign(self._sign, request.body, now=self._now(), message_id=event_id)
        names = {name.lower() for name, _ in ours}
        kept = tuple(header for header in request.headers if header[0].lower() not in names)
        return replace(request, url=self.addressed(request.url), headers=kept + ours, token=token)

    def heard(self, status: int, sent: Request, *, of: str) -> Heard:
        """What a status says of the token in what was sent.

        Args:
            of: names the work, such as a delivery, that may have one fresh token; any other answer forgets it.
        """
        if status != 401 or sent.token is None or not isinstance(self._auth, OAuth2Client):
            self._refreshed.pop(of, None)
            return Heard.NOTHING
        if of in self._refreshed:
            del self._refreshed[of]
            return Heard.REFUSED_AGAIN
        self._tokens.refused(self._auth, sent.token, self._proxy)
        self._refreshed[of] = None
        if len(self._refreshed) > MOST_REFRESHED:
            self._refreshed.popitem(last=False)
        return Heard.TRY_AGAIN
