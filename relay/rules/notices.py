"""What Relay tells of itself: the notes, how they gather into messages, and when a silence is one.

Law: pure. A target carries no note about itself; it gets at most one message a minute and kind; and no note is lost
but for what its message counts as omitted. Notes hold names, numbers and the reasons of the log, never a body, a URL
or a secret.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from relay.model import RELAY, Claim, Outcome, TargetHealth
from relay.rules.forwarding import rfc3339

TARGET_DISABLED = "target.disabled"
TARGET_ENABLED = "target.enabled"
DELIVERY_DEAD = "delivery.dead"
SOURCE_SILENT = "source.silent"
STORE_NEARLY_FULL = "store.nearly_full"
CONFIG_RELOAD_REFUSED = "config.reload_refused"
KINDS = (TARGET_DISABLED, TARGET_ENABLED, DELIVERY_DEAD, SOURCE_SILENT, STORE_NEARLY_FULL, CONFIG_RELOAD_REFUSED)
"""The types of its events."""

MOST_NOTES = 50
"""Notes that stand in a message; the others are counted."""
_LONGEST_REASON = 500
_MOST_NAMES = 10

_MANY = {
    TARGET_DISABLED: "{count} times a target was disabled: {names}.",
    TARGET_ENABLED: "{count} times a target was enabled: {names}.",
    DELIVERY_DEAD: "{count} deliveries were given up, at {names}.",
    SOURCE_SILENT: "{count} times a source fell silent: {names}.",
    STORE_NEARLY_FULL: "{count} times the store was nearly full.",
    CONFIG_RELOAD_REFUSED: "{count} times a new config was refused.",
}
"""The sentence for more than one note."""


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that happened. `target` is whom it is about, who therefore never carries it."""

    kind: str
    at: datetime
    sentence: str
    target: str | None = None
    source: str | None = None
    details: tuple[tuple[str, str | int | None], ...] = ()
    hops: int = 0
    """How many relays the event behind it has passed: a note goes on counting, or it could circle for ever."""

    @property
    def name(self) -> str | None:
        """The target or source that it is counted under; None where it is about the relay itself."""
        return self.target or self.source


def target_disabled(health: TargetHealth, *, held: int, at: datetime) -> Note:
    """A target holds its deliveries from now on."""
    reason = health.reason[:_LONGEST_REASON]
    return Note(
        TARGET_DISABLED,
        at,
        f"Target {health.name} is disabled ({reason}); it holds {_deliveries(held)}.",
        target=health.name,
        details=(
            ("disabled_by", None if health.disabled_by is None else health.disabled_by.value),
            ("reason", reason),
            ("failures", health.failures),
            ("held", held),
            ("next_probe_at", None if health.probe_at is None else rfc3339(health.probe_at)),
        ),
    )


def target_enabled(health: TargetHealth, *, held: int, at: datetime) -> Note:
    """A target takes deliveries again."""
    sentence = f"Target {health.name} takes deliveries again; {_deliveries(held)} had to wait."
    return Note(TARGET_ENABLED, at, sentence, target=health.name, details=(("held", held),))


def delivery_dead(claim: Claim, outcome: Outcome, reason: str, *, at: datetime) -> Note | None:
    """A delivery was given up; None for one of Relay's own events, or a message that dies would make the next."""
    event = claim.event
    if event.source == RELAY:
        return None
    reason = reason[:_LONGEST_REASON]
    return Note(
        DELIVERY_DEAD,
        at,
        f"Event {event.id} of source {event.source} was given up at target {claim.target} ({reason}).",
        target=claim.target,
        source=event.source,
        details=(
            ("event_id", event.id),
            ("type", event.type),
            ("attempts", claim.attempt),
            ("outcome", outcome.kind.value),
            ("status", outcome.status),
            ("reason", reason),
        ),
        hops=event.hops,
    )


def source_silent(name: str, last: datetime | None, expect_every: timedelta, *, at: datetime) -> Note:
    """Nothing came from a source for longer than expected; `last` is None where nothing ever came."""
    heard = "nothing was ever heard of it" if last is None else f"its last event came at {rfc3339(last)}"
    return Note(
        SOURCE_SILENT,
        at,
        f"Source {name} is silent: {heard}.",
        source=name,
        details=(
            ("last_event_at", None if last is None else rfc3339(last)),
            ("expect_every_s", int(expect_every.total_seconds())),
        ),
    )


def store_nearly_full(size: int, limit: int, *, at: datetime) -> Note:
    """The store will soon take nothing; both in bytes."""
    sentence = f"The store is nearly full: {100 * size // max(1, limit)} % of what it may take."
    return Note(STORE_NEARLY_FULL, at, sentence, details=(("bytes", size), ("limit_bytes", limit)))


def config_reload_refused(problems: int, *, at: datetime) -> Note:
    """A new config was refused with so many problems. They stay in the log, for they repeat parts of the file."""
    sentence = f"A new config was refused ({problems} problems, see the log); the old one is in force."
    return Note(CONFIG_RELOAD_REFUSED, at, sentence, details=(("problems", problems),))


def _deliveries(number: int) -> str:
    return "1 delivery" if number == 1 else f"{number} deliveries"


@dataclass(frozen=True, slots=True)
class Batch:
    """Notes of one kind that go out as one message: the first of them, and the count of all."""

    kind: str
    notes: tuple[Note, ...]
    count: int
    counts: tuple[tuple[str, int], ...]
    """How many are about which name, in the order in which the names came up."""
    hops: int

    @property
    def omitted(self) -> int:
        """How many are counted only."""
        return self.count - len(self.notes)

    @property
    def sentence(self) -> str:
        """The message in words."""
        if self.count == 1:
            return self.notes[0].sentence
        names = [f"{name} ({number} times)" if number > 1 else name for name, number in self.counts]
        if len(names) > _MOST_NAMES:
            names[_MOST_NAMES:] = [f"{len(names) - _MOST_NAMES} others"]
        return _MANY[self.kind].format(count=self.count, names=", ".join(names))

    @property
    def body(self) -> bytes:
        """The message as JSON."""
        message = {
            "type": self.kind,
            "message": self.sentence,
            "count": self.count,
            "omitted": self.omitted,
            "since": rfc3339(self.notes[0].at),
            "notes": [_shown(note) for note in self.notes],
        }
        return json.dumps(message).encode()


def _shown(note: Note) -> dict[str, str | int | None]:
    names = {key: name for key, name in (("target", note.target), ("source", note.source)) if name is not None}
    return {"at": rfc3339(note.at), **names, **dict(note.details)}


def _alone(note: Note) -> Batch:
    counts = () if note.name is None else ((note.name, 1),)
    return Batch(note.kind, (note,), 1, counts, note.hops)


def joined(first: Batch | None, then: Batch | None) -> Batch | None:
    """Two batches of a kind as one; either may be none."""
    if first is None or then is None:
        return first or then
    counts = Counter(dict(first.counts))
    counts.update(dict(then.counts))
    return Batch(
        first.kind,
        (first.notes + then.notes)[:MOST_NOTES],
        first.count + then.count,
        tuple(counts.items()),
        max(first.hops, then.hops),
    )


@dataclass(frozen=True, slots=True)
class Box:
    """What waits of one kind for one target that carries it, and when its next message may go, in seconds of any
    clock that is never set back."""

    gathered: Batch | None = None
    free_at: float = -math.inf


Boxes = Mapping[tuple[str, str], Box]
"""By kind, and the name of the target that carries it."""


def carriers(note: Note, targets: Iterable[str]) -> tuple[str, ...]:
    """Those of a kind's targets that carry a note: all but the one that it is about."""
    return tuple(target for target in targets if target != note.target)


def put(box: Box, note: Note) -> Box:
    """One more note."""
    return replace(box, gathered=joined(box.gathered, _alone(note)))


def ready(boxes: Boxes, at: float) -> dict[Batch, tuple[str, ...]]:
    """The messages that may go now, and the targets of each: those that are told the same share one."""
    found: dict[Batch, tuple[str, ...]] = {}
    for (_, target), box in boxes.items():
        if box.gathered is not None and box.free_at <= at:
            found[box.gathered] = (*found.get(box.gathered, ()), target)
    return found


def ready_at(boxes: Boxes) -> float | None:
    """When the next message may go; None while nothing waits."""
    return min((box.free_at for box in boxes.values() if box.gathered is not None), default=None)


@dataclass(frozen=True, slots=True)
class Expectation:
    """That a source is heard at least every so often."""

    every: timedelta
    since: datetime
    """When we began to listen: what counts as long as nothing was heard."""
    told: datetime | None = None
    """Since when the silence lasts that was told last."""


def listened(expectation: Expectation, last: datetime | None, now: datetime) -> Expectation:
    """The expectation after a look at when a source was heard last; another one where its silence is to be told now,
    which happens once: the next event ends it."""
    heard = expectation.since if last is None else last
    if now - heard <= expectation.every or expectation.told == heard:
        return expectation
    return replace(expectation, told=heard)
