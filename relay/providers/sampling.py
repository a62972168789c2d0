"""What the providers' samples share: ids that look like theirs, and are others for another time or serial number.

Law: pure. The same time and number make the same sample, because what is sent must be known again where it arrives.
"""

from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID


def number(now: datetime, serial: int) -> int:
    """A number of at most 19 digits."""
    return int(now.timestamp() * 1000) * 1_000_000 + serial


def letters(now: datetime, serial: int, count: int) -> str:
    """So many letters and digits, at most 64."""
    return sha256(str(number(now, serial)).encode()).hexdigest()[:count]


def guid(now: datetime, serial: int) -> str:
    """An id in the form of a UUID."""
    return str(UUID(letters(now, serial, 32)))


def iso(now: datetime) -> str:
    """The time in whole seconds, UTC: `2026-09-20T10:15:31Z`."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
