"""What happens to a claim before anything is sent: what it lacks is fetched, and what was left open is decided.

Law: a delivery takes the first of its ways whose conditions hold. A condition that cannot be evaluated says no, with
its reason; a fetch that fails says nothing at all: then the delivery waits, it is not skipped.
"""

import asyncio
from datetime import timedelta
from typing import Any, Protocol

from relay.delivery.enrichment import Enriched
from relay.model import Claim, Event, Fetched, Outcome, OutcomeKind, Way
from relay.rules.expressions import view_of
from relay.rules.routing import barred_because

LONGEST = timedelta(seconds=60)
"""How long it may take to have what a claim lacks; a fetch that is not over goes on for the next try."""


class Brings(Protocol):
    """Who fetches what an event lacks."""

    async def bring(self, name: str, event: Event, body: bytes) -> Enriched | Outcome:
        """What an enricher has for an event, or the outcome of an attempt that cannot be made without it."""


async def prepared(claim: Claim, body: bytes, brings: Brings) -> Any | Outcome:
    """What was fetched for a claim, `Fetched.NOTHING` where nothing is, or the outcome where nothing is to be sent now.

    Raises:
        StoreUnavailable: what was fetched cannot be read or kept now.
    """
    refusals: list[str] = []
    for way in claim.course:
        data: Any = Fetched.NOTHING
        if way.enricher is not None:
            found = await brings.bring(way.enricher, claim.event, body)
            if isinstance(found, Outcome):
                return found
            data = found.data
        # beside the loop, for what was fetched may be of any size
        refusal = await asyncio.to_thread(_refusal, way, claim.event, body, data) if way.conditions else None
        if refusal is None:
            return data
        refusals.append(refusal)
    return Outcome(OutcomeKind.SKIPPED, reason="; ".join(refusals)) if refusals else Fetched.NOTHING


def _refusal(way: Way, event: Event, body: bytes, data: Any) -> str | None:
    return barred_because(way, view_of(event, body, None if data is Fetched.NOTHING else data))
