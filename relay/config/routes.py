"""Routes out of their sections, with every check that one of them alone needs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from relay.config import values
from relay.config.downstream import MatchSection, RouteSection
from relay.config.problems import KeyPath, Report, suggestion
from relay.model import RELAY, Headers, Route
from relay.rules.expressions import reads
from relay.rules.forwarding import NEVER_KEPT
from relay.rules.notices import KINDS
from relay.rules.routing import meant

_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Known:
    """The names that a route may say, and by source the header whose value is its key."""

    sources: Collection[str]
    targets: Collection[str]
    enrichers: Collection[str] = ()
    key_headers: Mapping[str, str | None] = field(default_factory=dict)


def route(index: int, section: RouteSection, *, known: Known, report: Report) -> Route:
    """The route; all that is wrong is reported."""
    path: KeyPath = ("routes", index)
    if not values.ROUTE_NAME.fullmatch(section.name):
        report.refuse((*path, "name"), f"name must match {values.NAME.pattern}, with single spaces between words")
    destinations = [one for one in section.targets if one is not None]
    names = [None if one is None else one.target for one in section.targets]
    _check_names(section.sources, "source", known.sources, (*path, "from"), report)
    _check_names(names, "target", known.targets, (*path, "to"), report)
    if section.enrich is not None and section.enrich not in known.enrichers and not report.is_broken(("enrichers",)):
        hint = _hint(section.enrich, known.enrichers)
        report.refuse((*path, "enrich"), f"unknown enricher {values.shown(section.enrich)}{hint}")
    _check_conditions(section, path, report)
    match = section.match
    found = Route(
        name=str(section.name),
        sources=frozenset(str(name) for name in section.sources if name is not None),
        targets=tuple(one.target for one in destinations),
        types=tuple(map(str, match.type or ())) if match else (),
        headers=_headers(section, match, (*path, "match"), known, report) if match else (),
        when=section.when,
        enricher=section.enrich,
        target_conditions=tuple((one.target, one.when) for one in destinations if one.when is not None),
    )
    if RELAY in found.sources:
        _warn_never_told(found, (match.type if match else None) or (), path, report)
    return found


def _headers(section: RouteSection, match: MatchSection, path: KeyPath, known: Known, report: Report) -> Headers:
    """What headers must say; what a `match` alone can have wrong is reported."""
    if match.type == []:
        report.refuse((*path, "type"), "an empty list matches nothing; remove match to take every event")
    if match.type is None and not match.headers and not report.is_broken(path):
        report.refuse(path, "has neither type nor headers; remove match to take every event")
    seen: dict[str, str] = {}
    for name in match.headers:
        lower = name.lower()
        if not values.HEADER_NAME.fullmatch(name):
            report.refuse((*path, "headers", name), "not a valid header name")
        elif lower in seen:
            report.refuse((*path, "headers", name), f"the same header as {seen[lower]}")
        elif reason := _unkept(lower, section.sources, known):
            report.refuse((*path, "headers", name), reason)
        seen[lower] = name
    return tuple(match.headers.items())


def _unkept(lower: str, sources: Collection[str | None], known: Known) -> str | None:
    """Why no event has a header."""
    if lower in NEVER_KEPT:
        return "is a credential, which is not kept of an event"
    source = next((name for name in sources if name is not None and known.key_headers.get(name) == lower), None)
    return f"is the key of source {source}, which is not kept of an event" if source is not None else None


def _check_conditions(section: RouteSection, path: KeyPath, report: Report) -> None:
    """Refuse conditions that read what nothing brings."""
    if section.enrich is not None or report.is_broken((*path, "enrich")):
        return
    places: list[tuple[KeyPath, str | None]] = [((*path, "when"), section.when)]
    places += [((*path, "to", index, "when"), one.when) for index, one in enumerate(section.targets) if one is not None]
    for place, condition in places:
        if condition is not None and "data" in reads(condition):
            report.refuse(place, "reads data, which is null without enrich; name an enricher, or read body")


def _warn_never_told(route: Route, globs: Sequence[str], path: KeyPath, report: Report) -> None:
    """Warn of a glob that fits none of the relay's own events; where the route takes other sources too, it may be
    meant for them, unless none fits. `globs` are those of the route, marked."""
    idle = [index for index, glob in enumerate(route.types) if not _is_ever_told(glob)]
    if len(route.sources) > 1 and len(idle) < len(route.types):
        return
    for index in idle:
        message = f"{values.shown(globs[index])} fits none of the relay's own events: {', '.join(KINDS)}"
        report.warn((*path, "match", "type", index), message)


def _is_ever_told(glob: str) -> bool:
    own = Route("", frozenset({RELAY}), (), (glob,))
    return any(meant(RELAY, kind, (own,)) for kind in KINDS)


def _check_names(names: list[str | None], what: str, known: Collection[str], path: KeyPath, report: Report) -> None:
    if not names:
        report.refuse(path, f"needs at least one {what}")
    if report.is_broken((f"{what}s",)) and not known:
        return
    for index, name in enumerate(names):
        if name is None:
            continue
        if name in names[:index]:
            report.refuse((*path, index), f"{what} {values.shown(name)} is named twice")
        elif name not in known and not (what == "source" and name == RELAY):
            report.refuse((*path, index), f"unknown {what} {values.shown(name)}{_hint(name, known)}")


def _hint(name: str, known: Collection[str]) -> str:
    listed = f"known: {', '.join(sorted(known)[:_MOST_LISTED]) or 'none'}"
    near = suggestion(name, known)
    return f"{near} {listed}" if near else f"; {listed}"
