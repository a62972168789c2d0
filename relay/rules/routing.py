"""Which targets an event goes to.

Law: a glob means what `fnmatch.fnmatchcase` says, on every platform; case counts. A target gets an event once, however
many routes name it.
"""

import re
from collections.abc import Callable, Sequence
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


def matching_targets(source: str, event_type: str, routes: Sequence[Route]) -> tuple[str, ...]:
    """The targets an event goes to, each once, in the order the routes name them; none means it is unrouted."""
    wanted = (route.targets for route in routes if matches(route, source, event_type))
    return tuple(dict.fromkeys(target for targets in wanted for target in targets))
