"""What the writer carries: wishes, the futures on which their callers wait, and batches of both.

Law: a caller owns nothing but its future; whether it still waits changes nothing for the others of its batch.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from relay.store import Settlement
from relay.store.grouping.wishes import AcceptWish, ClaimWish, Handing

BATCH = 1000
"""Operations of a kind in one transaction: long enough to share the fsync, short enough not to delay an answer."""

Wish = TypeVar("Wish")
Work = Callable[[Any], Any]
"""Anything else that needs the transaction, which it is given."""


class Operation(Generic[Wish]):
    """One wish and the future on which its caller waits."""

    __slots__ = ("future", "since", "wish")

    def __init__(self, wish: Wish, loop: asyncio.AbstractEventLoop) -> None:
        self.wish = wish
        self.since = time.monotonic()
        self.future: asyncio.Future[Any] = loop.create_future()

    def resolve(self, result: object) -> None:
        """Tell the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(result)

    def refuse(self, error: Exception) -> None:
        """Tell the caller that it failed, if it still waits."""
        if not self.future.done():
            self.future.set_exception(error)


class Batch:
    """What one transaction carries, in the order in which it is run."""

    def __init__(
        self,
        settlements: Sequence[Operation[Settlement]] = (),
        works: Sequence[Operation[Work]] = (),
        accepts: Sequence[Operation[AcceptWish]] = (),
        claims: Sequence[Operation[ClaimWish]] = (),
        handing: Handing | None = None,
    ) -> None:
        """`handing` is what is claimed of the events as they are stored."""
        self.settlements = settlements
        self.works = works
        self.accepts = accepts
        self.claims = claims
        self.handing = handing

    def __len__(self) -> int:
        return len(self.settlements) + len(self.works) + len(self.accepts) + len(self.claims)

    @property
    def operations(self) -> list[Operation[Any]]:
        """All that it carries."""
        return [*self.settlements, *self.works, *self.accepts, *self.claims]

    @property
    def since(self) -> float:
        """When the one that waits longest was handed in; each kind stands in its order."""
        kinds = self.settlements, self.works, self.accepts, self.claims
        return min((kind[0].since for kind in kinds if kind), default=math.inf)

    @property
    def size(self) -> int:
        """Bytes of the new events' bodies."""
        return sum(len(op.wish.event.body) for op in self.accepts)

    @property
    def refusable(self) -> list[Operation[Any]]:
        """All that an outage refuses."""
        return [*self.works, *self.accepts, *self.claims]

    @property
    def tokens(self) -> list[int]:
        """Of the claims that it makes."""
        return [op.wish.token for op in self.claims] + ([] if self.handing is None else [self.handing.token])

    def refuse(self, error: Exception) -> None:
        """Tell all its callers that it failed."""
        for operation in (*self.settlements, *self.refusable):
            operation.refuse(error)

    def halves(self) -> "list[Batch]":
        """The same as two smaller batches, in order, to find the operation that spoils it; none of a single one."""
        if len(self) < 2:
            return []
        kinds = self.settlements, self.works, self.accepts, self.claims
        middle, seen = len(self) // 2, 0
        first, second = Batch(handing=self.handing), Batch(handing=self.handing)
        for name, operations in zip(("settlements", "works", "accepts", "claims"), kinds, strict=True):
            cut = max(0, middle - seen)
            setattr(first, name, operations[:cut])
            setattr(second, name, operations[cut:])
            seen += len(operations)
        return [first, second]


def drain(queue: "deque[Operation[Wish]]") -> list[Operation[Wish]]:
    """Take as many from a queue as one transaction carries."""
    return [queue.popleft() for _ in range(min(len(queue), BATCH))]
