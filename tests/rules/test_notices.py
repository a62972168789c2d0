"""What Relay tells of itself: who carries a note, how notes gather, what a message says, when a silence is told."""

import itertools
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Claim, DisabledBy, Event, Outcome, OutcomeKind, TargetHealth, TargetState
from relay.rules import notices
from relay.rules.notices import (
    CONFIG_RELOAD_REFUSED,
    DELIVERY_DEAD,
    KINDS,
    MOST_NOTES,
    SOURCE_SILENT,
    STORE_NEARLY_FULL,
    TARGET_DISABLED,
    TARGET_ENABLED,
    Batch,
    Box,
    Expectation,
    Note,
    carriers,
    joined,
    listened,
    put,
    ready,
    ready_at,
)

NOW = datetime(2026, 9, 20, 10, 0, tzinfo=UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
CRM = TargetHealth("crm", TargetState.DISABLED, DisabledBy.FAILURES, "status 500", failures=3, probe_at=NOW + MINUTE)


def a_note(target: str | None = "crm", *, kind: str = TARGET_DISABLED, number: int = 0, hops: int = 0) -> Note:
    """A note that can be told from others by its number."""
    return Note(kind, NOW + number * SECOND, f"sentence {number}", target, details=(("n", number),), hops=hops)


def gathered(*notes: Note) -> Batch:
    """These notes as one message."""
    box = Box()
    for note in notes:
        box = put(box, note)
    assert box.gathered is not None
    return box.gathered


def message(*notes: Note | None) -> Any:
    """The message of these notes, read."""
    return json.loads(gathered(*(note for note in notes if note is not None)).body)


def a_claim(source: str = "shop", *, hops: int = 0) -> Claim:
    event = Event("evt_1", source, "order", NOW, (), b"a body that nobody is told", hops=hops)
    return Claim(event, "crm", attempt=12, step=11, token=1, lease_until=NOW)


def dead(source: str = "shop", *, hops: int = 0, reason: str = "status 422: the schedule has ended") -> Note | None:
    outcome = Outcome(OutcomeKind.REFUSED, 422, "status 422", excerpt="what the target said")
    return notices.delivery_dead(a_claim(source, hops=hops), outcome, reason, at=NOW)


# --- what a note says ---


def test_a_disabled_target_is_told_with_reason_and_what_it_holds() -> None:
    """All that somebody needs to look into it, as in the log."""
    assert message(notices.target_disabled(CRM, held=12, at=NOW)) == {
        "type": "target.disabled",
        "message": "Target crm is disabled (status 500); it holds 12 deliveries.",
        "count": 1,
        "omitted": 0,
        "since": "2026-09-20T10:00:00.000Z",
        "notes": [
            {
                "at": "2026-09-20T10:00:00.000Z",
                "target": "crm",
                "disabled_by": "failures",
                "reason": "status 500",
                "failures": 3,
                "held": 12,
                "next_probe_at": "2026-09-20T10:01:00.000Z",
            }
        ],
    }


def test_an_enabled_target_is_told_with_what_had_to_wait() -> None:
    """The end of it is told as well."""
    told = message(notices.target_enabled(TargetHealth("crm"), held=1, at=NOW))
    assert told["message"] == "Target crm takes deliveries again; 1 delivery had to wait."
    assert told["notes"] == [{"at": "2026-09-20T10:00:00.000Z", "target": "crm", "held": 1}]


def test_what_is_not_known_of_a_target_is_null() -> None:
    """A hand disables without a probe to come."""
    (note,) = message(notices.target_disabled(TargetHealth("crm"), held=0, at=NOW))["notes"]
    assert (note["disabled_by"], note["next_probe_at"]) == (None, None)


def test_a_dead_delivery_is_told_by_names_and_numbers_alone() -> None:
    """Neither the body of the event nor the answer of the target goes out."""
    told = message(dead())
    assert told["message"] == (
        "Event evt_1 of source shop was given up at target crm (status 422: the schedule has ended)."
    )
    (note,) = told["notes"]
    assert note == {
        "at": "2026-09-20T10:00:00.000Z",
        "target": "crm",
        "source": "shop",
        "event_id": "evt_1",
        "type": "order",
        "attempts": 12,
        "outcome": "refused",
        "status": 422,
        "reason": "status 422: the schedule has ended",
    }


def test_a_message_that_dies_makes_no_message() -> None:
    """What Relay tells of itself would never end otherwise."""
    assert dead("relay") is None


def test_a_note_goes_on_counting_the_relays_that_its_event_has_passed() -> None:
    """A message that comes back as an event, dies and makes the next is ended as any loop of relays is."""
    assert gathered(*filter(None, [dead(hops=3), dead(hops=7), dead(hops=1)])).hops == 7


def test_a_reason_is_cut() -> None:
    """A message stays small whatever somebody has typed."""
    assert len(message(dead(reason="x" * 10_000))["notes"][0]["reason"]) == 500
    health = TargetHealth("crm", reason="x" * 10_000)
    assert len(message(notices.target_disabled(health, held=0, at=NOW))["message"]) < 600


def test_a_silent_source_is_told_with_what_was_expected() -> None:
    """By the time of its last event, if there was one."""
    told = message(notices.source_silent("shop", NOW - DAY, DAY, at=NOW))
    assert told["message"] == "Source shop is silent: its last event came at 2026-09-19T10:00:00.000Z."
    assert told["notes"] == [
        {
            "at": "2026-09-20T10:00:00.000Z",
            "source": "shop",
            "last_event_at": "2026-09-19T10:00:00.000Z",
            "expect_every_s": 86400,
        }
    ]
    never = message(notices.source_silent("shop", None, DAY, at=NOW))
    assert never["message"] == "Source shop is silent: nothing was ever heard of it."
    assert never["notes"][0]["last_event_at"] is None


def test_the_relays_own_troubles_are_told_in_numbers() -> None:
    """How full the store is, and how many problems a config has; what they are stays in the log."""
    full = message(notices.store_nearly_full(810, 1000, at=NOW))
    assert full["message"] == "The store is nearly full: 81 % of what it may take."
    assert full["notes"] == [{"at": "2026-09-20T10:00:00.000Z", "bytes": 810, "limit_bytes": 1000}]
    refused = message(notices.config_reload_refused(3, at=NOW))
    assert refused["message"] == "A new config was refused (3 problems, see the log); the old one is in force."
    assert refused["notes"] == [{"at": "2026-09-20T10:00:00.000Z", "problems": 3}]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (TARGET_DISABLED, "3 times a target was disabled: crm (2 times), shop."),
        (TARGET_ENABLED, "3 times a target was enabled: crm (2 times), shop."),
        (DELIVERY_DEAD, "3 deliveries were given up, at crm (2 times), shop."),
        (SOURCE_SILENT, "3 times a source fell silent: crm (2 times), shop."),
        (STORE_NEARLY_FULL, "3 times the store was nearly full."),
        (CONFIG_RELOAD_REFUSED, "3 times a new config was refused."),
    ],
)
def test_several_notes_are_one_sentence_with_the_names(kind: str, sentence: str) -> None:
    """A person reads one line and knows whom it is about."""
    names = [None] * 3 if kind in (STORE_NEARLY_FULL, CONFIG_RELOAD_REFUSED) else ["crm", "shop", "crm"]
    assert message(*(a_note(name, kind=kind) for name in names))["message"] == sentence


def test_many_names_are_counted() -> None:
    """The sentence stays one."""
    sentence = message(*(a_note(f"t{number}") for number in range(13)))["message"]
    assert sentence.endswith("t8, t9, 3 others.")


# --- who carries what ---


def test_a_target_carries_no_note_about_itself() -> None:
    """It could not be told of its own failure, and must not fail for the news of it."""
    assert carriers(a_note("crm"), ["crm", "ops", "chat"]) == ("ops", "chat")
    assert carriers(a_note("crm"), ["crm"]) == ()
    assert carriers(a_note(None), ["crm", "ops"]) == ("crm", "ops")
    of_source = notices.source_silent("ops", None, DAY, at=NOW)
    assert carriers(of_source, ["ops"]) == ("ops",)  # a source may have the name of a target


# --- how notes gather ---


def test_those_who_are_told_the_same_share_a_message() -> None:
    """One event with two deliveries, not two events; who is told otherwise gets another."""
    first, second = a_note(number=1), a_note("shop", number=2)
    boxes = {
        (TARGET_DISABLED, "ops"): put(Box(), first),
        (TARGET_DISABLED, "chat"): put(Box(), first),
        (TARGET_DISABLED, "crm"): put(Box(), second),
        (TARGET_ENABLED, "ops"): Box(),
    }
    assert ready(boxes, 0) == {gathered(first): ("ops", "chat"), gathered(second): ("crm",)}


def test_what_waits_for_the_minute_goes_when_it_is_over() -> None:
    """Not before, and nothing goes where nothing is gathered."""
    boxes = {(TARGET_DISABLED, "ops"): put(Box(free_at=60.0), a_note()), (TARGET_DISABLED, "crm"): Box(free_at=5.0)}
    assert ready(boxes, 59.9) == {}
    assert ready_at(boxes) == 60.0
    assert list(ready(boxes, 60.0).values()) == [("ops",)]
    assert ready_at({(TARGET_DISABLED, "crm"): Box(free_at=5.0)}) is None


def test_beyond_fifty_notes_the_rest_is_counted() -> None:
    """The memory that a flood takes is bounded; its size is told all the same."""
    told = message(*(a_note(number=number) for number in range(MOST_NOTES + 7)))
    assert [note["n"] for note in told["notes"]] == list(range(MOST_NOTES))
    assert (told["count"], told["omitted"]) == (MOST_NOTES + 7, 7)
    assert told["message"] == f"{MOST_NOTES + 7} times a target was disabled: crm ({MOST_NOTES + 7} times)."


def test_joining_with_nothing_changes_nothing() -> None:
    """What was put back joins what came meanwhile, if anything came."""
    batch = gathered(a_note())
    assert joined(None, None) is None
    assert joined(batch, None) == joined(None, batch) == batch


TARGETS = ("crm", "ops", "chat")
happenings = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.sampled_from(KINDS[:3]),
        st.sampled_from([*TARGETS, "elsewhere", None]),
        st.integers(1, 80),
        st.booleans(),
    ),
    max_size=40,
)


@given(happenings)
def test_no_flood_no_loss_and_never_about_the_carrier(steps: list[tuple[int, str, str | None, int, bool]]) -> None:
    """Whatever happens and whenever the store refuses: a message a minute and kind at most for each target, none about
    itself, and every note is in a message, or counted as omitted in one."""
    boxes = {(kind, target): Box() for kind in KINDS for target in TARGETS}
    sent: dict[tuple[str, str], list[tuple[float, Batch]]] = {key: [] for key in boxes}
    due: dict[tuple[str, str], Counter[str | None]] = {key: Counter() for key in boxes}
    at, number = 0.0, 0

    def send(*, refused: bool) -> None:
        for batch, targets in ready(boxes, at).items():
            for target in targets:
                if not refused:
                    sent[batch.kind, target].append((at, batch))
                boxes[batch.kind, target] = Box(batch if refused else None, free_at=at + 60)

    for wait, kind, about, times, refused in steps:
        at += wait
        for _ in range(times):
            number += 1
            note = a_note(about, kind=kind, number=number)
            for target in carriers(note, TARGETS):
                boxes[kind, target] = put(boxes[kind, target], note)
                due[kind, target][about] += 1
        send(refused=refused)
    while (waits_until := ready_at(boxes)) is not None:
        at = max(at, waits_until)
        send(refused=False)

    for (kind, target), messages in sent.items():
        times_of = [when for when, _ in messages]
        assert all(after - before >= 60 for before, after in itertools.pairwise(times_of))
        told: Counter[str | None] = Counter()
        for _, batch in messages:
            assert batch.kind == kind
            assert target not in dict(batch.counts)
            assert all(note.target != target for note in batch.notes)
            assert 0 < len(batch.notes) <= MOST_NOTES
            told.update(dict(batch.counts))
            told[None] += batch.count - sum(dict(batch.counts).values())
        assert +told == +due[kind, target]
        numbers = [dict(note.details)["n"] for _, batch in messages for note in batch.notes]
        assert numbers == sorted(set(numbers))  # type: ignore[type-var]


# --- when a silence is told ---


def test_a_silence_is_told_once_and_ended_by_the_next_event() -> None:
    """Not before it is longer than expected, not again while it lasts, and again when it comes back."""
    expectation = Expectation(every=DAY, since=NOW)
    heard = NOW + timedelta(hours=5)
    assert listened(expectation, heard, heard + DAY) is expectation
    told = listened(expectation, heard, heard + DAY + SECOND)
    assert told.told == heard
    assert listened(told, heard, heard + 9 * DAY) is told
    again = heard + 9 * DAY
    assert listened(told, again, again + DAY) is told
    assert listened(told, again, again + 2 * DAY).told == again


def test_a_source_that_was_never_heard_counts_from_when_we_began_to_listen() -> None:
    """A fresh relay waits as long as it would for the next event."""
    expectation = Expectation(every=DAY, since=NOW)
    assert listened(expectation, None, NOW + DAY) is expectation
    assert listened(expectation, None, NOW + 2 * DAY).told == NOW


def test_a_clock_that_was_set_back_tells_no_silence() -> None:
    """An event from the future was heard."""
    expectation = Expectation(every=MINUTE, since=NOW)
    assert listened(expectation, NOW + DAY, NOW) is expectation
