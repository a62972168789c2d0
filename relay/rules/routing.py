"""Which targets an event goes to.

Law: a glob means what `fnmatch.fnmatchcase` says, on every platform; case counts. A target gets an event once, however
many routes name it.
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from functools import lru_cache

from relay.model import Route


@lru_cache(maxsize=4096)
def _matcher(glob: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(translate(glob)).match


def matches(route: Route, source: str, event_type: str) -> bool:
    """Whether a route wants an event of this source and type; a route without globs wants every type."""
    if source not in route.sources:
        return False
    return not route.types or any(_matcher(glob)(event_type) is not None for glob in route.types)


def taking(source: str, event_type: str, routes: Iterable[Route]) -> tuple[Route, ...]:
    """The routes that want an event, in their order; none means it is unrouted."""
    return tuple(route for route in routes if matches(route, source, event_type))


def targets_of(routes: Iterable[Route]) -> tuple[str, ...]:
    """The targets of these routes, each once, in the order the routes name them."""
    return tuple(dict.fromkeys(target for route in routes for target in route.targets))


def unwanted_because(route: Route, source: str, event_type: str) -> str | None:
    """Why a route does not want an event, for people; None where it does."""
    if source not in route.sources:
        return f"takes events from {_listed(route.sources)} only"
    if not matches(route, source, event_type):
        return f"no glob of its match.type ({', '.join(route.types)}) fits the type"
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"
