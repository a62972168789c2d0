"""What a file held when it was read, so that a watch can tell whether it has changed since.

Law: the content counts, not the time or the name: an editor that renames a new file into place and a mounted volume
that swaps a link are seen alike, and a mere touch is nothing.
"""

import hashlib
import os
import stat
from pathlib import Path

Fingerprint = bytes

_LARGEST = 16 * 1024 * 1024
"""More than any file that a config may name."""


def fingerprint(content: bytes) -> Fingerprint:
    """The fingerprint of a content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def fingerprint_of(path: Path) -> Fingerprint | None:
    """The fingerprint of a file's content now; None where it is missing, unreadable or no regular file."""
    try:
        # without O_NONBLOCK a named pipe would be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return fingerprint(file.read(_LARGEST)) if is_regular else None
    except (OSError, ValueError):
        return None
