"""Fresh ids: a word for the kind of thing, and a ULID, so that ids sort by the time they were made at.

Law: two ids are never the same, and nobody can guess the next; both hold across processes, for the chance in them is
the operating system's.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
"""Two letters for each ten bits."""
_LETTERS = (_ALPHABET * 8).encode()
"""A letter for each byte, every letter for as many."""
_RANDOM = 16
"""Letters of an id that are chance: 80 bits."""


def _random_parts() -> Iterator[str]:
    """Endless ends of ids out of the system's source, a page at a time: one call for each costs more than the rest."""
    while True:
        page = os.urandom(256 * _RANDOM).translate(_LETTERS).decode()
        yield from [page[start : start + _RANDOM] for start in range(0, len(page), _RANDOM)]


_chance = _random_parts()


def _milliseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MILLISECOND


@lru_cache(maxsize=16)
def _written(milliseconds: int) -> str:
    """A time as ids begin with it, in 48 bits."""
    high, low = divmod(milliseconds, 1 << 30)
    return (
        _PAIRS[high >> 10 & 1023]
        + _PAIRS[high & 1023]
        + _PAIRS[low >> 20]
        + _PAIRS[low >> 10 & 1023]
        + _PAIRS[low & 1023]
    )


def fresh_id(kind: str, now: datetime) -> str:
    """A new id: `evt_` and a ULID (github.com/ulid/spec), for example."""
    return f"{kind}_{_written(_milliseconds(now))}{next(_chance)}"


def first_id(kind: str, at: datetime) -> str:
    """What no id of this kind made at that time or later comes before: where a search by time begins."""
    return f"{kind}_{_written(max(0, _milliseconds(at)))}{_ALPHABET[0] * _RANDOM}"
