"""What is replayed and by which course, whatever store has it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from relay.model import Content, Course, DeliveryState, Headers
from relay.rules.expressions import Failed, View, view_from
from relay.rules.routing import DAMAGED, Routed, Subject

DISCARD = 1000
"""Deliveries discarded in one transaction: an answer that arrives meanwhile waits for a few milliseconds."""

Item = tuple[int, str]
"""An event's number and a target; no target for an event that is to be routed anew."""


@dataclass(frozen=True, slots=True)
class Anew:
    """A delivery that is to begin anew."""

    seq: int
    target: str
    state: DeliveryState | None
    """None where it is still to be made."""
    course: Course | None
    """None where no route of today leads there: then it keeps the course that it has."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of some items."""

    replayed: int
    skipped: int
    targets: frozenset[str]


@dataclass(frozen=True, slots=True)
class StoredBody:
    """What a condition wants of a stored event beside its headers; `received_at` is None where it cannot be read."""

    id: str
    received_at: datetime | None
    sha256: bytes
    body: bytes


def stored_subject(
    source: str, type_: str, *, headers: Callable[[], Headers | Failed], body: Callable[[], StoredBody]
) -> Subject:
    """A stored event as routes judge it; what does not fit its checksum fits no condition, and fails nothing else."""

    def view() -> View | Failed:
        stored = body()
        fields = subject.headers
        if stored.received_at is None or isinstance(fields, Failed):
            return DAMAGED
        if hashlib.sha256(stored.body).digest() != stored.sha256:
            return DAMAGED
        content = Content(fields, stored.body)
        return view_from(stored.id, type_, source, stored.received_at, fields, content.json, content.declared_form)

    subject = Subject(source, type_, headers=headers, view=view)
    return subject


def course_to(found: Routed, target: str) -> Course | None:
    """The course to a target, None where the routes do not lead there."""
    return found.courses.get(target, ()) if target in found.targets else None
