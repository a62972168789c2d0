"""Which targets an event goes to, by which ways, and why a route does not take it.

Law: a glob means what `fnmatch.fnmatchcase` says, on every platform; case counts. A target gets an event once, however
many routes name it. Total over what strangers send: a condition that fails on an event is a no, told with its reason.
What reads `data` cannot be decided before that was fetched, and stays open in the way.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import Any

from relay.model import Course, Event, Headers, Route, Way
from relay.rules.expressions import NOTHING_BROUGHT, Failed, View, holds, reads_data, view_of

OPEN = "decided after the fetch"
CONDITION_FAILED = "event.condition_failed"
"""The line that tells of a condition that could not be evaluated on an event."""
DAMAGED = Failed("the event is damaged in the store")


class Subject:
    """An event as routes judge it. What is dear to know of it is asked for once, and only where a route needs it."""

    def __init__(
        self, source: str, type_: str, *, headers: Callable[[], Headers | Failed], view: Callable[[], View | Failed]
    ) -> None:
        self.source = source
        self.type = type_
        self._headers = headers
        self._view = view

    @cached_property
    def headers(self) -> Headers | Failed:
        """Its headers as they are stored."""
        return self._headers()

    @cached_property
    def view(self) -> View | Failed:
        """What conditions see of it."""
        return self._view()


def subject_of(event: Event, body: bytes, data: Any = NOTHING_BROUGHT) -> Subject:
    """An event whose headers and body are at hand."""
    return Subject(event.source, event.type, headers=lambda: event.headers, view=lambda: view_of(event, body, data))


@dataclass(frozen=True, slots=True)
class TargetVerdict:
    """What a route that takes an event does about one of its targets: the way there, or why there is none."""

    target: str
    way: Way | None
    because: str = ""

    @property
    def is_open(self) -> bool:
        """There is something left to be decided."""
        return self.way is not None and bool(self.way.conditions)

    @property
    def reason(self) -> str | None:
        """Why there is no way, or that it is still to be decided."""
        return OPEN if self.is_open else self.because or None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a route says of an event. `because` is why it does not take it, None where it does; `failed` are the
    conditions that could not be evaluated, by their places."""

    route: str
    because: str | None = None
    targets: tuple[TargetVerdict, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def ways(self) -> tuple[TargetVerdict, ...]:
        """The targets to which there is a way."""
        return tuple(one for one in self.targets if one.way is not None)

    def shown(self) -> dict[str, Any]:
        """As the API and the command line show it; a reason stands where there is one."""
        return {
            "route": self.route,
            "takes": self.because is None,
            "reason": self.because,
            "targets": [
                {"target": one.target, "takes": one.way is not None, "reason": one.reason} for one in self.targets
            ],
        }


@dataclass(frozen=True, slots=True)
class Routed:
    """Where an event goes: the routes that take it, its targets in the order the routes name them, and the courses of
    those that do not simply get it."""

    routes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    courses: Mapping[str, Course] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=4096)
def _matcher(glob: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(translate(glob)).match


def matches(route: Route, source: str, event_type: str) -> bool:
    """Whether a route is meant for events of this source and type; one without globs is for every type."""
    if source not in route.sources:
        return False
    return not route.types or any(_matcher(glob)(event_type) is not None for glob in route.types)


def meant(source: str, event_type: str, routes: Iterable[Route]) -> tuple[Route, ...]:
    """The routes that are meant for events of this source and type, in their order."""
    return tuple(route for route in routes if matches(route, source, event_type))


def targets_of(routes: Iterable[Route]) -> tuple[str, ...]:
    """The targets of these routes, each once, in the order the routes name them."""
    return tuple(dict.fromkeys(target for route in routes for target in route.targets))


def routed(subject: Subject, routes: Iterable[Route]) -> Routed:
    """Where an event goes; no routes means that it is unrouted."""
    found = meant(subject.source, subject.type, routes)
    return _by_name(found) or summed([judged(route, subject) for route in found])


def routed_by_name(source: str, event_type: str, routes: Iterable[Route]) -> Routed | None:
    """Where every event of this source and type goes; None where a route looks further."""
    return _by_name(meant(source, event_type, routes))


def _by_name(found: Sequence[Route]) -> Routed | None:
    if not all(route.is_plain for route in found):
        return None
    return Routed(tuple(route.name for route in found), targets_of(found))


def summed(verdicts: Sequence[Verdict]) -> Routed:
    """What the verdicts of all routes, in their order, come to."""
    ways: dict[str, list[Way]] = {}
    for verdict in verdicts:
        for one in verdict.targets:
            if one.way is not None:
                ways.setdefault(one.target, []).append(one.way)
    courses = {target: course for target, some in ways.items() if (course := _course(some))}
    return Routed(
        routes=tuple(verdict.route for verdict in verdicts if verdict.because is None),
        targets=tuple(ways),
        courses=courses,
        failed=tuple(failure for verdict in verdicts for failure in verdict.failed),
    )


def _course(ways: Sequence[Way]) -> Course:
    """The ways up to the first on which nothing is left to be decided; none where it stands first and is plain."""
    last = next((index for index, way in enumerate(ways) if not way.conditions), len(ways))
    return () if ways[0].is_plain else tuple(ways[: last + 1])


def judged(route: Route, subject: Subject) -> Verdict:
    """What a route says of an event, and why."""
    unwanted = _unmatched(route, subject)
    if unwanted is not None:
        return Verdict(route.name, unwanted)
    own = _asked(route.when, route, subject)
    if own.because:
        return Verdict(route.name, own.because, failed=_failures(route.name, own))
    conditions = dict(route.target_conditions)
    answers = {target: _asked(conditions.get(target), route, subject) for target in route.targets}
    targets = tuple(
        TargetVerdict(target, None, answer.because)
        if answer.because
        else TargetVerdict(target, Way(route.name, route.enricher, own.left + answer.left))
        for target, answer in answers.items()
    )
    failed = [failure for target, one in answers.items() for failure in _failures(f"{route.name} > {target}", one)]
    is_taking = any(one.way is not None for one in targets)
    return Verdict(route.name, None if is_taking else "none of its targets wants it", targets, tuple(failed))


def barred_because(way: Way, view: View) -> str | None:
    """Why a way is closed to an event for which `data` was fetched; None where its conditions hold."""
    for condition in way.conditions:
        answer = holds(condition, view)
        if isinstance(answer, Failed):
            return f"route {way.route}: `when` failed on what was fetched: {answer.reason}"
        if not answer:
            return f"route {way.route}: `when` says no to what was fetched"
    return None


@dataclass(frozen=True, slots=True)
class Destination:
    """A target that an event goes to by the ways that are left, the first of which is taken whose conditions hold. It
    is reached or not; None where that is decided after the fetch."""

    target: str
    is_reached: bool | None = True
    ways: tuple[Way, ...] = ()
    reason: str | None = None


def destinations(found: Routed, after: View | None) -> tuple[Destination, ...]:
    """What becomes of each target of an event; `after` is the view of it with what was fetched, None where nothing
    was yet."""
    return tuple(_destination(target, found.courses.get(target, ()), after) for target in found.targets)


def _destination(target: str, course: Course, after: View | None) -> Destination:
    if not course:
        return Destination(target)
    if after is None:
        is_open = all(way.conditions for way in course)
        return Destination(target, None if is_open else True, course, OPEN if is_open else None)
    reasons: list[str] = []
    for way in course:
        barred = barred_because(way, after)
        if barred is None:
            return Destination(target, is_reached=True, ways=(way,))
        reasons.append(barred)
    return Destination(target, is_reached=False, ways=course, reason="; ".join(reasons))


def decided(verdict: Verdict, view: View, data: Mapping[str, Any]) -> Verdict:
    """The verdict with what was left open decided, where its enricher has brought something (`data`, by enricher)."""
    return replace(verdict, targets=tuple(_decided(one, view, data) for one in verdict.targets))


def _decided(one: TargetVerdict, view: View, data: Mapping[str, Any]) -> TargetVerdict:
    way = one.way
    if way is None or way.enricher is None or not way.conditions or way.enricher not in data:
        return one
    because = barred_because(way, {**view, "data": data[way.enricher]})
    return TargetVerdict(one.target, replace(way, conditions=()) if because is None else None, because or "")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a condition says: why not, whether that is because it failed, and what is left of it for later."""

    because: str = ""
    failure: str | None = None
    left: tuple[str, ...] = ()


def _asked(condition: str | None, route: Route, subject: Subject) -> _Answer:
    if condition is None:
        return _Answer()
    if route.enricher is not None and reads_data(condition):
        return _Answer(left=(condition,))
    view = subject.view
    answer = view if isinstance(view, Failed) else holds(condition, view)
    if isinstance(answer, Failed):
        return _Answer(f"its `when` failed: {answer.reason}", answer.reason)
    return _Answer() if answer else _Answer("its `when` says no")


def _failures(place: str, answer: _Answer) -> tuple[tuple[str, str], ...]:
    return () if answer.failure is None else ((place, answer.failure),)


def _unmatched(route: Route, subject: Subject) -> str | None:
    """Why an event is none of those that a route is meant for. A header's value may be a secret, so it is not told."""
    if subject.source not in route.sources:
        return f"takes events from {_listed(route.sources)} only"
    if not matches(route, subject.source, subject.type):
        return f"no glob of its match.type ({', '.join(route.types)}) fits the type"
    if not route.headers:
        return None
    headers = subject.headers
    if isinstance(headers, Failed):
        return headers.reason
    first: dict[str, str] = {}
    for name, value in headers:
        first.setdefault(name.lower(), value)
    missing = [name for name, _ in route.headers if name.lower() not in first]
    if missing:
        return f"its match.headers wants {', '.join(missing)}, which the event does not have"
    other = [name for name, value in route.headers if first[name.lower()] != value]
    return f"its match.headers wants another value of {', '.join(other)}" if other else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"
