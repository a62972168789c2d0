"""The checker of histories finds each known way in which a gateway breaks its promises, and nothing in a sound one."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.support.ledger import Answer, Copy, History, faults

A, B = b'{"id": 1}', b'{"id": 2}'


def sound() -> History:
    """Two webhooks, two targets: one resent by its sender, one copy after a kill, one failure before a success."""
    return History(
        targets=("crm", "books"),
        bodies={1: A, 2: B},
        answers=[Answer(1, "evt_1", duplicate=False), Answer(1, "evt_1", duplicate=True), Answer(2, "evt_2", False)],
        copies=[
            Copy("crm", "evt_1", 1, A, taken=True),
            Copy("books", "evt_1", 1, A, taken=False),
            Copy("crm", "evt_1", 2, A, taken=True),
            Copy("books", "evt_1", 3, A, taken=True),
            Copy("crm", "evt_2", 1, B, taken=True),
        ],
        waiting={("evt_2", "books")},
        excused=Counter({"crm": 1}),
    )


@pytest.mark.row("F1")
def test_a_sound_history_has_no_faults() -> None:
    """Failures, resends, copies that a kill excuses and what still waits are none."""
    assert faults(sound()) == []


@pytest.mark.row("F1")
@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("lost: evt_2 was answered, and books never got it", lambda h: h.waiting.clear()),
        ("lost: evt_1 was answered, and books never got it", lambda h: h.copies.pop(3)),
        ("too many: crm took 1 copies, 0 are excused", lambda h: h.excused.clear()),
        ("too many: crm took 2 copies, 1 are excused", lambda h: h.copies.append(replace(h.copies[0], attempt=9))),
        ("changed: crm got another body for evt_2", lambda h: h.copies.append(Copy("crm", "evt_2", 2, A, False))),
        ("changed: crm got another body for evt_9", lambda h: h.copies.append(Copy("crm", "evt_9", 1, b"{", False))),
        ("answered twice: 1 as ['evt_1', 'evt_3']", lambda h: _answer_again(h, "evt_3")),
        ("answered twice: 2 was new 2 times", lambda h: h.answers.append(Answer(2, "evt_2", False))),
        ("mixed up: evt_1 stands for [1, 2]", lambda h: h.answers.append(Answer(2, "evt_1", True))),
        ("numbered wrongly: evt_2 at crm came as 1 after 1", lambda h: h.copies.append(replace(h.copies[4]))),
        ("numbered wrongly: evt_1 at books came as 2 after 3", lambda h: _again(h, 3, attempt=2)),
    ],
)
def test_each_broken_promise_is_found(fault: str, spoil: object) -> None:
    """A lost event, a copy too many, a changed body, an event answered twice, a falling attempt number."""
    history = sound()
    assert callable(spoil)
    spoil(history)
    assert fault in faults(history)


def _answer_again(history: History, event_id: str) -> None:
    history.answers.append(Answer(1, event_id, duplicate=True))


def _again(history: History, number: int, *, attempt: int) -> None:
    history.copies.append(replace(history.copies[number], attempt=attempt))
