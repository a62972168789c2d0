"""What waits for the writer: wishes of four kinds, each in its order, and when the next transaction is due.

Law: an event, a claim and any other work make one due at once. Settlements that nobody waits for do not, nor do they
come along with an event, whose answer they would hold up: they gather for `LINGER_S` and are written together. Where a
backlog is being worked off, so that much is to be claimed, events go before all that in every second transaction; but
not before a settlement that may say that its target is to get nothing now.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from relay.store import Settlement
from relay.store.grouping.operations import Batch, Operation, Wish, Work, drain
from relay.store.grouping.wishes import AcceptWish, ClaimWish

QUEUE = 10_000
"""Events that may wait for the writer; beyond it new ones are refused."""
QUEUE_BYTES = 64 * 1024 * 1024
LINGER_S = 0.02
"""How long a settlement that nobody waits for may wait for others."""
ALONG = 128
"""Deliveries that may be claimed by every transaction that stores an event; each takes as long as an event does."""


class Inbox:
    """The queues of one writer; used on its event loop alone."""

    def __init__(self) -> None:
        self.settlements: deque[Operation[Settlement]] = deque()
        self.accepts: deque[Operation[AcceptWish]] = deque()
        self.stirred = asyncio.Event()
        """Set when there is something to be looked at."""
        self._works: deque[Operation[Work]] = deque()
        self._claims: deque[Operation[ClaimWish]] = deque()
        self._queues: tuple[deque[Any], ...] = (self.settlements, self._works, self.accepts, self._claims)
        self._bytes = 0
        self._are_ripe = False
        """The settlements that wait are to be written with the next transaction."""
        self._are_news = False
        """Among the settlements is one that may not wait, as is all that is no mere success."""
        self._gave_way = False
        """Claims were left behind by the last transaction, so that its events are stored sooner."""
        self._linger: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return any(self._queues)

    def __iter__(self) -> Iterator[Operation[Any]]:
        """All that waits."""
        return chain.from_iterable(self._queues)

    @property
    def is_due(self) -> bool:
        """Whether something waits that is to be written now."""
        return bool(self._works or self.accepts or self._claims or (self._are_ripe and self.settlements))

    @property
    def is_overloaded(self) -> bool:
        """Whether no more events are taken."""
        return len(self.accepts) >= QUEUE or self._bytes > QUEUE_BYTES

    @property
    def heads(self) -> Iterable[Operation[Any]]:
        """What waits longest of each kind."""
        return (queue[0] for queue in self._queues if queue)

    @property
    def claims(self) -> Iterable[ClaimWish]:
        """The calls for deliveries that wait."""
        return (one.wish for one in self._claims if not one.future.done())

    def accept(self, wish: AcceptWish) -> "asyncio.Future[Any]":
        """Put in an event."""
        self._bytes += len(wish.event.body)
        return self._put(self.accepts, wish)

    def claim(self, wish: ClaimWish) -> "asyncio.Future[Any]":
        """Put in a call for deliveries."""
        return self._put(self._claims, wish)

    def work(self, work: Work) -> "asyncio.Future[Any]":
        """Put in anything else."""
        return self._put(self._works, work)

    def settle(self, settlement: Settlement) -> "asyncio.Future[Any]":
        """Put in a settlement."""
        if not settlement.may_wait:
            self._are_ripe = self._are_news = True
            return self._put(self.settlements, settlement)
        operation = Operation(settlement, self._loop)
        self.settlements.append(operation)
        if self._linger is None and not self._are_ripe:
            self._linger = self._loop.call_later(LINGER_S, self.stir)
        return operation.future

    def put_back(self, settlements: Iterable[Operation[Settlement]]) -> None:
        """Put settlements that were not written in front of the others, in their order."""
        self.settlements.extendleft(reversed([*settlements]))
        self._are_news = True
        self.stir()

    def stir(self) -> None:
        """Have what waits looked at, and written."""
        self._linger = None
        self._are_ripe = bool(self.settlements)
        self.stirred.set()

    def take(self, pending: Callable[[str], int]) -> Batch:
        """Take as much as one transaction carries; of events and claims what is still waited for. Where the claims may
        take much, they are left for the next one, and so are mere successes.

        Args:
            pending: about how many deliveries of a target wait.
        """
        drained = drain(self.accepts)
        self._bytes -= sum(len(one.wish.event.body) for one in drained)
        accepts = [one for one in drained if not one.future.done()]
        self._gave_way = bool(accepts) and not self._gave_way and self._claimable(pending) > ALONG
        stay = self._gave_way and not self._are_news
        settlements = drain(self.settlements) if self._are_ripe and not stay else []
        works, claims = drain(self._works), [] if self._gave_way else drain(self._claims)
        if not self.settlements:
            self._are_ripe = self._are_news = False
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
        return Batch(settlements, works, accepts, [one for one in claims if not one.future.done()])

    def _claimable(self, pending: Callable[[str], int]) -> int:
        """How many deliveries the claims that wait may find."""
        return sum(min(claim.limit, pending(claim.target)) for claim in self.claims)

    def refuse(self, error: Exception, *, settlements: bool) -> None:
        """Refuse all that waits, but for settlements where they are to be kept."""
        for queue in self._queues if settlements else (self._works, self.accepts, self._claims):
            for operation in queue:
                operation.refuse(error)
            queue.clear()
        self._bytes = 0

    def _put(self, queue: "deque[Operation[Wish]]", wish: Wish) -> "asyncio.Future[Any]":
        operation = Operation(wish, self._loop)
        queue.append(operation)
        self.stirred.set()
        return operation.future
