"""What SQLite itself passes over: a log that is broken in its middle, and tables whose description has changed.

Law: nothing here writes to the database or its log. SQLite takes the first broken frame of a log for its end, as after
a power cut, and forgets what was committed behind it; only what no cut can leave is called damage here.
"""

import os
import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path

from relay.store import StoreUnusable
from relay.store.sqlite.schema import MIGRATIONS

_LOG_BEGIN = struct.Struct(">8I")
"""Magic, format, page size, checkpoints, two salts, two sums (sqlite.org/fileformat2.html, section 4.1)."""
_FRAME_BEGIN = struct.Struct(">6I")
"""Page, pages of the database after a commit (0: none), two salts, two sums."""
LOG_HEADER, FRAME_HEADER = _LOG_BEGIN.size, _FRAME_BEGIN.size
_MAGIC = (0x377F0682, 0x377F0683)
_PAGE = 4096
"""Bytes of a page, where the log's own header does not tell."""
_VALID_FRAMES = struct.Struct("=I")
_VALID_FRAMES_AT = 16
"""Where the shared index says how many frames are valid (sqlite.org/walformat.html, section 2.1)."""
_TORN = 1
"""Commits behind the valid ones that a cut may leave: the one that was being written, and promised to nobody."""


def check_log(database: Path) -> int:
    """Refuse a store whose log holds commits behind a broken frame: they were promised, and opening would forget them.
    Returns how many bytes of the log are valid.

    Raises:
        StoreUnusable: it does; nothing was changed.
    """
    log = database.with_name(database.name + "-wal")
    if not log.exists() or log.stat().st_size <= LOG_HEADER:
        return 0
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=2.0)) as db:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with database.with_name(database.name + "-shm").open("rb") as index:
            index.seek(_VALID_FRAMES_AT)
            (valid,) = _VALID_FRAMES.unpack(index.read(_VALID_FRAMES.size))
    lost = _commits_behind(log, valid)
    if lost > _TORN:
        raise StoreUnusable(
            f"{log}: damaged behind frame {valid}, and {lost} commits after it would be lost; restore the store from a "
            f"backup, or give them up on purpose: sqlite3 {database} 'PRAGMA wal_checkpoint(TRUNCATE)', or begin with "
            "an empty store: relay run --new-store"
        )
    return LOG_HEADER + int(valid) * frame_size(log_header(log))


def salts_in(header: bytes) -> int:
    """The two salts of a log's header, as one number."""
    return int.from_bytes(header[16:24], "big")


def frame_size(header: bytes) -> int:
    """Bytes from one frame to the next, by a log's header."""
    return FRAME_HEADER + int.from_bytes(header[8:12], "big")


def salts_of(log: Path) -> int:
    """The salts of a log that is there."""
    return salts_in(log_header(log))


def log_header(log: Path) -> bytes:
    """What a log that is there begins with."""
    with log.open("rb") as file:
        return file.read(LOG_HEADER)


def reaches(log: Path, valid: int, size: int) -> bool:
    """Whether nothing is missing of a log that had `size` bytes: what follows the valid ones is of a round before,
    not a hole, nor a frame of this round that is broken."""
    if valid >= size:
        return True
    with log.open("rb") as file:
        file.seek(valid)
        frame = file.read(FRAME_HEADER)
    return len(frame) == FRAME_HEADER and any(frame) and int.from_bytes(frame[8:16], "big") != salts_of(log)


def _commits_behind(log: Path, valid: int) -> int:
    """Commits of the log's present round that stand behind its valid frames, where more than a cut can leave do."""
    fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = os.pread(fd, LOG_HEADER, 0)
        magic, _, page_size, _, *salts, _, _ = _LOG_BEGIN.unpack(header)
        order = ">" if magic & 1 else "<"
        if magic in _MAGIC and _sums(header[:-8], (0, 0), order) == struct.unpack(">2I", header[-8:]):
            step = FRAME_HEADER + page_size
            return _commits(fd, LOG_HEADER + valid * step, step, salts, order)
        return 0 if valid else _commits_of_first(fd)
    finally:
        os.close(fd)


def _commits_of_first(fd: int) -> int:
    """The same where the log's own header is broken, so that nothing of it is valid."""
    first = os.pread(fd, FRAME_HEADER, LOG_HEADER)
    if len(first) < FRAME_HEADER:
        return 0
    _, _, *salts, _, _ = _FRAME_BEGIN.unpack(first)
    order = ">" if sys.byteorder == "big" else "<"
    return _commits(fd, LOG_HEADER, FRAME_HEADER + _PAGE, salts, order)


def _commits(fd: int, start: int, step: int, salts: list[int], order: str) -> int:
    """How many commits stand from a place on, if more than one of them belong together; else 0.

    A commit whose sync failed is written over by the next, and where that is shorter its end stays behind it. Several
    such ends look like several commits, but only what was committed one after the other has sums that go on.
    """
    number = together = most = 0
    before: tuple[int, ...] | None = None
    for place in range(start, os.fstat(fd).st_size, step):
        frame = os.pread(fd, step, place)
        if len(frame) < step:
            break
        _, pages, *found, one, other = _FRAME_BEGIN.unpack(frame[:FRAME_HEADER])
        if found != salts:
            before = None
            continue
        if most <= _TORN:
            goes_on = before is not None and _sums(frame[:8] + frame[FRAME_HEADER:], before, order) == (
                one,
                other,
            )
            together = (together if goes_on else 0) + bool(pages)
            most = max(most, together)
            before = one, other
        number += bool(pages)
    return number if most > _TORN else 0


def _sums(data: bytes, seed: tuple[int, ...], order: str) -> tuple[int, ...]:
    """The two sums of a log over some of its bytes, going on from those before; their order of bytes is told by the
    log's magic."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    one, other = seed
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + other) & 0xFFFFFFFF
        other = (other + second + one) & 0xFFFFFFFF
    return one, other


def missing_columns(db: sqlite3.Connection, version: int) -> str | None:
    """A table or a column that a store of this version must have and this one has not; None where all are there."""
    with closing(sqlite3.connect(":memory:")) as sound:
        sound.executescript("".join(MIGRATIONS[:version]))
        lacking = _columns(sound) - _columns(db)
    return ".".join(min(lacking)) if lacking else None


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    query = "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'"
    return {(_text(table), _text(column)) for table, column in db.execute(query).fetchall()}


def _text(name: object) -> str:
    return name if isinstance(name, str) else repr(name)
