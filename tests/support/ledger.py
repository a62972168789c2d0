"""What senders were answered and targets were sent, as a history, and what is wrong with one.

Law: `faults` is pure. Whoever writes a history down writes an answer only after it was read, and an arrival before it
is answered: what is missing in it was never promised, and what stands in it has happened.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """A 2xx that a sender has read."""

    number: int
    """Which webhook it was for: what the relay knows it again by."""
    event_id: str
    duplicate: bool


@dataclass(frozen=True)
class Copy:
    """One request that a target got, and whether it was told 2xx."""

    target: str
    event_id: str
    attempt: int
    body: bytes
    taken: bool


@dataclass
class History:
    """All of it, in order."""

    targets: tuple[str, ...]
    bodies: dict[int, bytes] = field(default_factory=dict)
    """What was posted, by number."""
    answers: list[Answer] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    waiting: set[tuple[str, str]] = field(default_factory=set)
    """(event, target) of each delivery that is pending or dead in the store in the end."""
    excused: Counter[str] = field(default_factory=Counter)
    """By target: deliveries that it had taken and whose record a kill prevented; each may bring one copy."""


def faults(history: History) -> list[str]:
    """Every breach of a promise in a history; empty where all is well."""
    return [
        *_lost(history),
        *_answered_wrongly(history.answers),
        *_changed(history),
        *_too_many(history),
        *_numbered_wrongly(history.copies),
    ]


def _lost(history: History) -> Iterable[str]:
    taken = {(copy.event_id, copy.target) for copy in history.copies if copy.taken}
    for event_id in dict.fromkeys(answer.event_id for answer in history.answers):
        for target in history.targets:
            if (event_id, target) not in taken | history.waiting:
                yield f"lost: {event_id} was answered, and {target} never got it"


def _answered_wrongly(answers: Collection[Answer]) -> Iterable[str]:
    """An event is one: the same webhook has one id, which no other has, and is new at most once."""
    ids: defaultdict[int, set[str]] = defaultdict(set)
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    new: Counter[int] = Counter()
    for answer in answers:
        ids[answer.number].add(answer.event_id)
        numbers[answer.event_id].add(answer.number)
        new[answer.number] += not answer.duplicate
    yield from (f"answered twice: {number} as {sorted(found)}" for number, found in ids.items() if len(found) > 1)
    yield from (f"answered twice: {number} was new {times} times" for number, times in new.items() if times > 1)
    yield from (f"mixed up: {id_} stands for {sorted(found)}" for id_, found in numbers.items() if len(found) > 1)


def _changed(history: History) -> Iterable[str]:
    posted = {answer.event_id: history.bodies[answer.number] for answer in history.answers}
    known = set(history.bodies.values())
    for copy in history.copies:
        if posted.get(copy.event_id, copy.body) != copy.body or copy.body not in known:
            yield f"changed: {copy.target} got another body for {copy.event_id}"


def _too_many(history: History) -> Iterable[str]:
    """What was taken is sent again only where a kill came between the answer and its record."""
    taken = Counter((copy.event_id, copy.target) for copy in history.copies if copy.taken)
    again: Counter[str] = Counter()
    for (_, target), times in taken.items():
        again[target] += times - 1
    for target, times in again.items():
        if times > history.excused[target]:
            yield f"too many: {target} took {times} copies, {history.excused[target]} are excused"


def _numbered_wrongly(copies: Iterable[Copy]) -> Iterable[str]:
    last: dict[tuple[str, str], int] = {}
    for copy in copies:
        before = last.get((copy.event_id, copy.target), 0)
        if copy.attempt <= before:
            yield f"numbered wrongly: {copy.event_id} at {copy.target} came as {copy.attempt} after {before}"
        last[copy.event_id, copy.target] = copy.attempt


def summary(history: History) -> Mapping[str, int]:
    """How much a history holds, for who reads the output of a test."""
    return {
        "answered": len({answer.event_id for answer in history.answers}),
        "copies": len(history.copies),
        "taken again": len([copy for copy in history.copies if copy.taken])
        - len({(copy.event_id, copy.target) for copy in history.copies if copy.taken}),
        "excused": history.excused.total(),
    }
