"""All by which requests leave the relay: senders, tokens and enrichers, made from one config and changed with it.

Law: whatever a change needs is made before anything is changed, so that it cannot fail half-way.
"""

from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from random import Random

from relay import __version__
from relay.config import Config
from relay.delivery.enrichment import Enrichers, Enrichment, Witness
from relay.delivery.sender import Sender
from relay.delivery.tokens import Tokens
from relay.model import Source, Target
from relay.rules.egress import EgressPolicy
from relay.rules.secrets import credentials
from relay.store import Store

REMEMBERED = 4
"""Credentials of a target, today's included: what it was told before a rotation it may still repeat."""
USER_AGENT = f"relay/{__version__}"


class Outbound:
    """The way out of one relay. Build inside a running loop, `close` when done."""

    def __init__(
        self,
        config: Config,
        store: Store,
        witness: Witness,
        *,
        token_fetched: Callable[[str], None],
        now: Callable[[], datetime],
        rng: Random,
    ) -> None:
        """`token_fetched` is told each new token before it is used, so that it can be kept out of what is shown."""
        self._now = now
        self._egress = config.egress
        self._key_headers = _key_headers(config.sources)
        self._proof_headers = _proof_headers(config.sources)
        self._retired: dict[str, deque[frozenset[str]]] = {}
        """By target: its credentials of the last reloads, today's among them."""
        self._tokens = Tokens(lambda: self._egress, user_agent=USER_AGENT, fetched=token_fetched)
        self.enrichment = Enrichment(store, self._tokens, witness, user_agent=USER_AGENT, now=now, rng=rng)
        self.enrichment.exchange(self.enrichment.prepared(config.enrichers, config.egress))

    def sender(self, target: Target, egress: EgressPolicy) -> Sender:
        """A sender for a target under a policy. Raises OSError where no resolver, or no certificate, is to be had."""
        secrets = credentials(target)
        retired = self._retired.setdefault(target.name, deque(maxlen=REMEMBERED))
        if secrets not in retired:
            retired.append(secrets)
        return Sender(
            target,
            egress,
            retired=frozenset[str]().union(*retired),
            key_headers=self._key_headers,
            proof_headers=self._proof_headers,
            user_agent=USER_AGENT,
            now=self._now,
            tokens=self._tokens,
        )

    def prepared(self, config: Config) -> Enrichers:
        """What `change` will need. Raises OSError where no resolver is to be had; nothing has changed then."""
        return self.enrichment.prepared(config.enrichers, config.egress)

    def discard(self, enrichers: Enrichers) -> None:
        """Let go of what was prepared for a change that is not made."""
        self.enrichment.discard(enrichers)

    def change(self, config: Config, enrichers: Enrichers) -> None:
        """Go by another config, with what was prepared for it. Headers of sources that are gone are remembered: what
        was stored under them may still be sent."""
        self._egress = config.egress
        self._key_headers.update(_key_headers(config.sources))
        self._proof_headers.update(_proof_headers(config.sources))
        self.enrichment.exchange(enrichers)

    async def close(self) -> None:
        """Fetch no more."""
        await self.enrichment.close()
        await self._tokens.close()


def _key_headers(sources: Iterable[Source]) -> dict[str, str | None]:
    """By source: the header that is its shared key."""
    return {source.name: source.key_header for source in sources}


def _proof_headers(sources: Iterable[Source]) -> dict[str, frozenset[str]]:
    """By source: the headers that prove a body."""
    return {source.name: source.proof_headers for source in sources}
