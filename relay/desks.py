"""What the ingress knows of each source: the source as the config has it, and what is remembered between requests."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import structlog

from relay.model import Route, Source
from relay.rules.rate import Bucket, Quota, spend
from relay.rules.routing import routed_by_name
from relay.rules.secrets import keys_of
from relay.rules.signing import signs_time
from relay.skew import ClockWatch

TYPES = 256
"""Types of a source for which it is remembered where their events go."""
LINES_A_SECOND = 20
"""Warnings of a kind, a second and source; the rest is counted in the next."""

log = structlog.get_logger()


class Lines:
    """Lines about one source's requests that somebody should look at: a few a second, the rest counted in the next."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._quotas: dict[str, Quota] = {}

    def tell(self, event: str, fields: Callable[[], dict[str, object]]) -> None:
        """Tell of one, unless there were too many; `fields` is asked only then."""
        self._quotas[event], untold = spend(self._quotas.get(event, Quota()), LINES_A_SECOND, time.monotonic())
        if untold is not None:
            suppressed = {"suppressed": untold} if untold else {}
            log.warning(event, source=self._source, **fields(), **suppressed)


class Memory:
    """What is remembered of a source between its requests, also when its config changes."""

    def __init__(self, source: str) -> None:
        self.bucket = Bucket()
        self.other_than_200 = 0
        self.lines = Lines(source)
        self.clock = ClockWatch(source)


class Desk:
    """One source as its config has it; a request under way keeps the desk that it came to."""

    def __init__(self, source: Source, routes: Sequence[Route], forwarded: frozenset[str], memory: Memory) -> None:
        self.source = source
        self.routes = tuple(route for route in routes if source.name in route.sources)
        self.forwarded = forwarded
        self.keys = keys_of(source)
        self.key_header = source.key_header
        self.rotates = source.rotates
        self.memory = memory
        self.signs_time = signs_time(source.check)
        self.routed_by_name = lru_cache(maxsize=TYPES)(partial(routed_by_name, source.name, routes=self.routes))
        """Where all events of a type go; None where more than that decides."""
