"""Enrichers where a test has none."""

from relay.delivery.enrichment import Enriched
from relay.model import Event, Outcome


class NoEnrichers:
    """Nobody is to be asked: a delivery that asks is a mistake of the test."""

    async def bring(self, name: str, event: Event, body: bytes) -> Enriched | Outcome:
        """Refuse to bring anything."""
        raise AssertionError(f"enricher {name} was asked for {event.id}")
