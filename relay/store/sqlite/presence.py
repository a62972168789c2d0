"""The files of an opened store, known again before and after each write: what is committed to others is lost.

Law: a commit counts only where its files were ours before it and are still ours behind it. SQLite itself looks at none
of this: it writes on into a log that was emptied, cut or has no name any more, and into a database that was cut or
written over. Looking costs some microseconds.
"""

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from relay.store import StoreUnusable
from relay.store.sqlite.file import LogMark
from relay.store.sqlite.soundness import FRAME_HEADER, LOG_HEADER, frame_size, log_header, salts_in

Result = TypeVar("Result")

_LOG_MAGIC = bytes.fromhex("377f0682"), bytes.fromhex("377f0683")
"""A log that holds anything begins so (sqlite.org/fileformat2.html, section 4.1)."""
_RESTORE = (
    "move the same file back, or stop relay, move the -wal and -shm files away and restore it from a backup, or start "
    "afresh on purpose with: relay run --new-store"
)


class _Seen(NamedTuple):
    """What tells a file from another, and from itself cut short. A tuple, because each commit makes five."""

    place: tuple[int, int]
    """Device and number."""
    size: int
    changed_at: int

    @classmethod
    def of(cls, file: Path) -> "_Seen":
        found = os.stat(file)  # noqa: PTH116 - a path's own costs as much again
        return cls((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a checkpoint has done: whether all of the log is home, from when on SQLite may begin it anew, and whether it
    was barred by nobody."""

    is_all: bool
    is_done: bool


class Presence:
    """What the database, its log and its index were after the last write of our own."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._log = database.with_name(database.name + "-wal")
        self._index = database.with_name(database.name + "-shm")
        self._is_index_cut = False
        self._fd: int | None = None
        """The log, of which no lock of SQLite is lost when it is closed."""
        self._files = self._see()
        self._log_header = b""
        """Its salts are other ones whenever it is begun anew, which is only where nothing of it is needed."""
        self.pin()

    def pin(self) -> None:
        """Know the files of a store that has just been opened.

        Raises:
            OSError: one is gone already.
        """
        self.release()
        self._fd = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        self._is_index_cut = False
        self._note()
        self.needs_log = self._files[1].size > 0
        """Whether something that was promised may stand in the log alone."""

    def release(self) -> None:
        """Let go of the log."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def committing(self, work: Callable[[sqlite3.Connection], Result]) -> Callable[[sqlite3.Connection], Result]:
        """The same transaction, refused where the files are not ours, and where they have ceased to be meanwhile."""

        def run(db: sqlite3.Connection) -> Result:
            self.check()
            result = work(db)
            self._note_commit()
            return result

        return run

    def moving(self, work: Callable[[sqlite3.Connection], Moved]) -> Callable[[sqlite3.Connection], Moved]:
        """The same checkpoint, likewise."""

        def run(db: sqlite3.Connection) -> Moved:
            self.check()
            moved = work(db)
            self.needs_log = self.needs_log and not moved.is_all
            self._note()
            return moved

        return run

    def check(self) -> None:
        """Refuse files that are not what we left; an index that was cut is given its length back first, for to touch
        the pages that it lacks would kill the process.

        Raises:
            StoreUnusable: which one is not, what became of it, and what to do.
        """
        database, log, _ = self._files
        became = self.keep_index()
        if became:
            raise StoreUnusable(self._lost_index(became))
        found = self._check_database(database)
        if found.size < database.size:
            sizes = f"{found.size} bytes, {database.size} expected"
            raise StoreUnusable(f"{self._database}: truncated while it was in use ({sizes}); {_RESTORE}")
        if found.changed_at != database.changed_at:
            raise StoreUnusable(
                f"{self._database}: written to by another program while it was in use; it is used again once it proves "
                f"sound, else {_RESTORE}"
            )
        became = _became(self._log, log)
        if became:
            raise StoreUnusable(self._lost_log(became))

    def judge(self) -> None:
        """Refuse to open anew, in an outage, what would lack something that was promised.

        Raises:
            StoreUnusable: the database is another or was cut, or the log is gone, cut or written over and was needed.
        """
        database, log, _ = self._files
        found = self._check_database(database)
        has_log = self._log.exists() and self._log.stat().st_size > 0
        if found.size < database.size and has_log:  # without one its own header tells whether it is whole
            raise StoreUnusable(f"{self._database}: truncated while it was in use; {_RESTORE}")
        is_same = has_log and _Seen.of(self._log).place == log.place  # a commit that failed may have begun it anew
        if has_log and not is_same and log_header(self._log) != self._log_header:  # an old one undoes what came later
            raise StoreUnusable(self._lost_log("replaced"))
        was_moved = found.changed_at != database.changed_at  # by another program, which has tidied the log up
        if not self.needs_log or was_moved:
            return
        if not has_log or self._log.stat().st_size < log.size:
            raise StoreUnusable(self._lost_log("gone or cut short"))
        if is_same and (became := self._spoiled(log, self._read_header())):
            raise StoreUnusable(self._lost_log(became))

    def mark(self) -> LogMark:
        """What the log must still be for a later process."""
        database, log, _ = self._files
        return LogMark(log.size if self.needs_log else 0, salts_in(self._log_header), database.changed_at)

    def save(self, db: sqlite3.Connection) -> None:
        """Move home a log that has lost its name but not its content: with the connection it would be gone for good."""
        database, log, index = self._files
        try:
            has_name = _Seen.of(self._log).place == log.place
        except FileNotFoundError:
            has_name = False
        if self._fd is None or has_name:
            return
        held = os.fstat(self._fd)
        is_sound = held.st_size >= log.size and self._spoiled(log, self._read_header()) is None
        if not is_sound or _Seen.of(self._database) != database or _became(self._index, index):
            return
        _, frames, home = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self.needs_log = not frames == home >= 0
        self._files = _Seen.of(self._database), log, index

    def _check_database(self, known: _Seen) -> _Seen:
        """What the database is now, where its name still means the opened file."""
        try:
            found = _Seen.of(self._database)
        except OSError as error:
            became = _absent(error)
        else:
            if found.place == known.place and found.size:
                return found
            became = "replaced" if found.size else "emptied"
        raise StoreUnusable(f"{self._database}: {became} while it was in use; {_RESTORE}")

    def keep_index(self) -> str | None:
        """Refuse an index that was cut, in whichever thread it is about to be read: to touch the pages that it lacks
        would kill the process. It is given its length back, and is not to be trusted until all is opened anew. Returns
        what else has become of it.

        Raises:
            StoreUnusable: it was.
        """
        known = self._files[2]
        became = _became(self._index, known)
        if became in ("emptied", "truncated"):
            self._is_index_cut = True
            os.truncate(self._index, known.size)
        if self._is_index_cut:
            raise StoreUnusable(self._lost_index("truncated"))
        return became

    def _lost_index(self, became: str) -> str:
        return f"{self._index}: {became} while it was in use; it is made anew by itself"

    def _note_commit(self) -> None:
        """See that a commit has not gone to files that were taken away or cut under it. Each look waits for the
        interpreter's lock: few are made."""
        database, log, index = self._files
        if self._check_database(database) != database:
            raise StoreUnusable(f"{self._database}: changed under a commit; it is used again if it proves sound")
        try:
            found, header = _Seen.of(self._log), self._read_header()
            became = self._spoiled(log, header) if self.needs_log else None
        except OSError as error:
            raise StoreUnusable(self._lost_log(_absent(error))) from None
        if found.place != log.place:
            became = "replaced"
        elif (found.size and header[:4] not in _LOG_MAGIC) or log.size > found.size == 0:
            became = "emptied"
        elif self.needs_log and found.size < log.size:
            became = "truncated"
        if became:
            raise StoreUnusable(self._lost_log(became))
        self.needs_log = self.needs_log or (found, header) != (log, self._log_header)  # it may have changed nothing
        self._files, self._log_header = (database, found, index), header

    def _spoiled(self, log: _Seen, header: bytes) -> str | None:
        """What has become of a log of which something is needed, as far as its ends tell: it is begun anew only where
        nothing is, and one that was cut under a commit has a hole where its last frame was."""
        if self._fd is None:
            return None
        if header != self._log_header:
            return "written over"
        step = frame_size(header)
        last = log.size - step
        if last < LOG_HEADER or (log.size - LOG_HEADER) % step:
            return None
        return None if any(os.pread(self._fd, FRAME_HEADER, last)) else "truncated"

    def _read_header(self) -> bytes:
        return b"" if self._fd is None else os.pread(self._fd, LOG_HEADER, 0)

    def _lost_log(self, became: str) -> str:
        return (
            f"{self._log}: {became} while it was in use; what was stored last may stand in it alone. What is still "
            "held of it is moved into the database, and if that is all the store goes on by itself: leave its files "
            "alone then. If it does not, move the same file back, or stop relay, move the -wal and -shm files away and "
            f"start it again to go on with what {self._database.name} holds, or restore the store from a backup, or "
            "start afresh on purpose with: relay run --new-store"
        )

    def _note(self) -> None:
        self._files = self._see()
        self._log_header = self._read_header()

    def _see(self) -> tuple[_Seen, _Seen, _Seen]:
        return _Seen.of(self._database), _Seen.of(self._log), _Seen.of(self._index)


def _became(file: Path, known: _Seen) -> str | None:
    """What has become of a file that only grows; None where it is as it was or larger."""
    try:
        found = _Seen.of(file)
    except OSError as error:
        return _absent(error)
    if found.place != known.place:
        return "replaced"
    if found.size < known.size:
        return "truncated" if found.size else "emptied"
    return None


def _absent(error: OSError) -> str:
    return "vanished" if isinstance(error, FileNotFoundError) else f"cannot be seen ({error.strerror})"
