"""What happens to a claim before anything is sent: what it lacks is fetched, and what was left open is decided.

Law: a delivery takes the first of its ways whose conditions hold. A condition that cannot be evaluated says no, with
its reason; a fetch that fails says nothing at all: then the delivery waits, it is not skipped.
"""

from typing import Any, Protocol

from relay.delivery.enrichment import Fetched
from relay.model import Claim, Event, Outcome, OutcomeKind, Way
from relay.rules.expressions import NOTHING_BROUGHT, Failed, View, holds, view_of


class Brings(Protocol):
    """Who fetches what an event lacks."""

    async def bring(self, name: str, event: Event, body: bytes) -> Fetched | Outcome:
        """What an enricher has for an event, or the outcome of an attempt that cannot be made without it."""


async def prepared(claim: Claim, body: bytes, brings: Brings) -> Any | Outcome:
    """What was fetched for a claim (None where nothing is), or the outcome where nothing is to be sent now.

    Raises:
        StoreUnavailable: what was fetched cannot be read or kept now.
    """
    refusals: list[str] = []
    for way in claim.course:
        data = NOTHING_BROUGHT
        if way.enricher is not None:
            found = await brings.bring(way.enricher, claim.event, body)
            if isinstance(found, Outcome):
                return found
            data = found.data
        refusal = _refusal(way, view_of(claim.event, body, data)) if way.conditions else None
        if refusal is None:
            return data
        refusals.append(f"route {way.route}: {refusal}")
    return Outcome(OutcomeKind.SKIPPED, reason="; ".join(refusals)) if refusals else NOTHING_BROUGHT


def _refusal(way: Way, view: View) -> str | None:
    """Which condition says no, and why; None where all hold."""
    for condition in way.conditions:
        answer = holds(condition, view)
        if isinstance(answer, Failed):
            return f"when: {condition} cannot be decided: {answer.reason}"
        if not answer:
            return f"when: {condition} says no"
    return None
