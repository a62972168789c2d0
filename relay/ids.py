"""Fresh ids: a word for the kind of thing, and a ULID, so that ids sort by the time they were made at.

Law: two ids are never the same, and nobody can guess the next; both hold across processes, for the chance in them is
the operating system's.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_SHIFTS = range(120, -1, -10)


def _random_numbers() -> Iterator[int]:
    """Endless 80-bit numbers from the system's source, a page at a time: one call for each costs more than the rest."""
    while True:
        page = os.urandom(10 * 256)
        yield from (int.from_bytes(page[start : start + 10]) for start in range(0, len(page), 10))


_chance = _random_numbers()


def _milliseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MILLISECOND


def _written(number: int) -> str:
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])


def fresh_id(kind: str, now: datetime) -> str:
    """A new id: `evt_` and a ULID (github.com/ulid/spec), for example."""
    return f"{kind}_{_written(_milliseconds(now) << 80 | next(_chance))}"


def first_id(kind: str, at: datetime) -> str:
    """What no id of this kind made at that time or later comes before: where a search by time begins."""
    return f"{kind}_{_written(max(0, _milliseconds(at)) << 80)}"
