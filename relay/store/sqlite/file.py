"""Guards around the database file: one process a file, and no silent loss of a store that was in use.

Law: nothing here changes the database or its log. A file that is not what it was when it was last used is refused,
named and left untouched; only `set_aside`, asked for by the user, moves it, and it never deletes.

Beside `relay.db` stands `relay.db.guard`: it holds the lock, and remembers that the store was in use, how large it had
grown, and whether its last events stand in the log `relay.db-wal`. SQLite itself opens an emptied file as a new
database and a file without its log as it was, which would make loss look like a clean start.
"""

import errno
import fcntl
import itertools
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from relay.store import StoreInUse, StoreUnusable
from relay.store.sqlite.schema import APPLICATION_ID
from relay.store.sqlite.soundness import LOG_HEADER, reaches, salts_of

_MAGIC = b"SQLite format 3\0"
_SIDE_FILES = ("", "-wal", "-shm", "-journal")
"""The last is there while a file is given its log, and where a kill has cut that short."""
_HEADER = 100
"""Bytes of a database's own header (sqlite.org/fileformat2.html, section 1.3)."""
_NO_LOG = 1
"""The header's write version of a database that was never written with a log (section 1.3 there), as a copy is."""
_NOTE_BYTES = 192
"""The guard's note always has this length: a kill while it is written leaves no tail of the one before."""
_PART = 1024 * 1024
_SHARED = struct.pack("hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 0x40000002, 510, 0)
_FREE = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, 0x40000002, 510, 0)
"""What each connection to a database holds of it, as `struct flock` (sqlite.org/src, os.h: SHARED_FIRST)."""
_VOLATILE = frozenset({"tmpfs", "ramfs", "nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"})
_START_AFRESH = "restore it from a backup, or start afresh on purpose with: relay run --new-store"


@dataclass(frozen=True, slots=True)
class LogMark:
    """What tells a log in which something may stand alone: its bytes, its salts as one number, and when the database
    was written to last, in nanoseconds."""

    size: int
    salts: int
    moved_at: int


@dataclass
class Guard:
    """The held lock of one database file and what it remembers of it."""

    path: Path
    _fd: int
    _file: int | None = None
    """The locked database itself: a hard link has another guard, and a guard can be deleted. It stays open to the
    end, for to close it would end the locks of SQLite too."""

    @classmethod
    def acquire(cls, database: Path) -> "Guard":
        """Lock a database for this process.

        Raises:
            StoreInUse: another process has it; the message names its process id.
            StoreUnusable: it or what stands beside it is no file, or its directory does not take the guard.
        """
        _refuse_what_is_no_file(database)
        path = database.with_name(database.name + ".guard")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(f"{database}: cannot use its directory: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(fd).get("pid", "unknown")
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreUnusable(f"{database}: cannot lock it: {error.strerror}") from None
            raise StoreInUse(f"{database}: in use by another relay (process {holder}); stop it first") from None
        guard = cls(path, fd)
        try:
            guard.lock_file(database)
        except BaseException:
            guard.release()
            raise
        return guard

    def lock_file(self, database: Path) -> None:
        """Lock the database itself, where it is there and is not locked yet.

        Raises:
            StoreInUse: another process has it, under another name or without its guard.
        """
        if self._file is not None:
            return
        try:
            fd = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not there yet, or not to be read, which is told when it is opened
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise StoreInUse(
                f"{database}: in use by another relay, under another name{holder}; stop it first"
            ) from None
        except OSError:
            pass  # a file system without such locks
        self._file = fd

    def check(self, database: Path) -> None:
        """Refuse a file that is not what it was when it was last used, or never was ours.

        Raises:
            StoreUnusable: vanished, emptied, truncated, not SQLite, another program's, or not to be written.
        """
        remembered = int(_read(self._fd).get("bytes", 0))
        size = database.stat().st_size if database.exists() else 0
        if size:
            _check_header(self._header(database), database, size, remembered)
            if not os.access(database, os.W_OK):  # SQLite would open it all the same, to read
                raise StoreUnusable(f"{database}: cannot be written; give its user the right to")
            return
        side_file = any(database.with_name(database.name + end).exists() for end in ("-wal", "-shm"))
        if remembered or side_file:
            became = "emptied" if database.exists() else "vanished"
            raise StoreUnusable(f"{database}: {became} since its last use; {_START_AFRESH}")

    def _header(self, database: Path) -> bytes:
        """The first bytes of a database, read from where it is held: to open it once more and close that would end the
        locks of SQLite, and another program that looks into the store would take itself for the last and delete the
        log."""
        try:
            if self._file is not None and os.path.samestat(os.fstat(self._file), database.stat()):
                return os.pread(self._file, _HEADER, 0)
            with database.open("rb") as file:
                return file.read(_HEADER)
        except OSError as error:
            raise StoreUnusable(f"{database}: cannot be read: {error.strerror}") from None

    @contextmanager
    def leaving_log(self) -> Iterator[None]:
        """Keep SQLite from moving the log home when the last connection is closed: what it would move, and whereto, is
        not judged yet. The lock is the open file's, so that this process is barred by it as another would be."""
        if self._file is None or not hasattr(fcntl, "F_OFD_SETLK"):
            yield
            return
        with suppress(OSError):  # a file system without such locks
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _SHARED)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FREE)

    def misses_log(self, database: Path, valid: int) -> str | None:
        """What to say of a store whose log is gone, or shorter than it was, although its last process was killed or had
        trouble with it; None where all is well, or the database was written to since, as it is by whoever moves the log
        home.

        It is no reason to refuse: SQLite's own shell tidies the log up when it leaves, and then nothing is lost.

        Args:
            valid: bytes of the log that are valid.

        Raises:
            StoreUnusable: the log is another one; its content would undo what came later.
        """
        log, note = database.with_name(database.name + "-wal"), _read(self._fd)
        moved_at = database.stat().st_mtime_ns
        if note.get("moved", moved_at) != moved_at:
            return None
        size = log.stat().st_size if log.exists() else 0
        if "salts" in note and size >= LOG_HEADER and salts_of(log) != note["salts"]:
            raise StoreUnusable(
                f"{log}: is not the log that relay left behind, and would undo what was stored since; move it and the "
                f"-shm file away and start again to go on with what {database.name} holds, or {_START_AFRESH}"
            )
        if not note.get("log"):
            return None
        if size < note.get("size", LOG_HEADER):
            became = ("cut short" if size else "emptied") if log.exists() else "gone"
        elif "size" in note and not reaches(log, valid, note["size"]):
            became = "cut short"
        else:
            return None
        return (
            f"{log} is {became} although relay left it whole: another program that had the store open has tidied it "
            "up, or what was stored last is lost"
        )

    def remember(self, database: Path, *, needs_log: bool | None, mark: LogMark | None = None) -> None:
        """Note that the store is in use by this process, its size, and whether its log is needed (None: where there is
        one) and what it is; one that is gone is remembered as it was. The size is noted once it is durable: a process
        before may have been killed while it moved the log home, and a power cut would make the file smaller than was
        remembered."""
        if self._file is not None:
            os.fsync(self._file)
        noted = int(_read(self._fd).get("bytes", 0))
        size = database.stat().st_size if database.exists() else noted
        if mark is not None:  # it is out, maybe because the database was cut
            size = max(size, noted)
        if needs_log is None:
            log = database.with_name(database.name + "-wal")
            needs_log = log.exists() and log.stat().st_size > 0
        note = {"pid": os.getpid(), "bytes": size, "log": int(needs_log)}
        if mark is not None:
            note |= {"size": mark.size, "salts": mark.salts, "moved": mark.moved_at}
        text = json.dumps(note).ljust(_NOTE_BYTES).encode()
        written = 0
        while written < len(text):  # a disk may take less than it is given
            written += os.pwrite(self._fd, text[written:], written)
        os.fsync(self._fd)

    def forget(self) -> None:
        """Remember nothing of the file: it was set aside."""
        os.ftruncate(self._fd, 0)
        os.fsync(self._fd)
        self._let_go_of_file()

    @property
    def is_blank(self) -> bool:
        """Nothing is remembered of the file."""
        return not os.fstat(self._fd).st_size

    def withdraw(self) -> None:
        """Leave nothing beside the file; the locks are held on."""
        with suppress(OSError):  # why it is left is told, and matters more
            self.path.unlink()

    def release(self) -> None:
        """Let go of the locks."""
        self._let_go_of_file()
        os.close(self._fd)

    def _let_go_of_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def lock_refusal(database: Path) -> str | None:
    """What to say where the system gives no lock on a database or its index to anyone; None where it does, or where it
    says that another holds one. SQLite takes each refusal of a lock on the index for the latter. Nothing of the file
    may be open: to close it ends the locks of SQLite."""
    for file in (database, database.with_name(database.name + "-shm")):
        try:
            fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)  # the first byte, which nobody locks
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return f"{file}: cannot be locked: {error.strerror}"
        finally:
            os.close(fd)
    return None


def _holder(fd: int, locks: Path = Path("/proc/locks")) -> str:
    """Which process has locked an open file, in brackets; nothing where the system does not say."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = [line.split() for line in locks.read_text().splitlines()]
    except OSError:
        return ""
    pids = [words[4] for words in lines if len(words) > 5 and words[1] == "FLOCK" and words[5] == place]
    return f" (process {pids[0]})" if pids and pids[0].isdigit() and pids[0] != "0" else ""


def _read(fd: int) -> dict[str, int]:
    """What was noted; of a note that cannot be read this is left: there was a store."""
    try:
        note = json.loads(os.pread(fd, 4096, 0) or b"{}")
        return {name: int(value) for name, value in note.items()}
    except (ValueError, TypeError, AttributeError):
        return {"bytes": 1}


def _check_header(header: bytes, database: Path, size: int, remembered: int) -> None:
    if not header.startswith(_MAGIC) or len(header) < _HEADER:
        raise StoreUnusable(f"{database}: file is not a database; {_START_AFRESH}")
    if int.from_bytes(header[68:72], "big") not in (APPLICATION_ID, 0):
        raise StoreUnusable(f"{database}: a database of another program; choose another store.url")
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    wal = database.with_name(database.name + "-wal")
    in_log = wal.exists() and wal.stat().st_size > 0
    if in_log and header[18] == _NO_LOG:
        raise StoreUnusable(
            f"{database}: put in the place of another store, whose log {wal} is still there and would be written over "
            "it; move that store's -wal and -shm files away and start again"
        )
    # the header counts the pages of the last checkpoint, which may have been cut short while there is a log
    expected = remembered if in_log else int.from_bytes(header[28:32], "big") * page_size
    if size < expected:
        raise StoreUnusable(
            f"{database}: truncated since its last use ({size} bytes, {expected} expected); {_START_AFRESH}"
        )


def _refuse_what_is_no_file(database: Path) -> None:
    for end in (*_SIDE_FILES, ".guard"):
        path = database.with_name(database.name + end)
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "no regular file"
            todo = "move it away: a file of the store belongs there" if end else "store.url names a file"
            raise StoreUnusable(f"{path}: is {kind}; {todo}")


def set_aside(database: Path, guard: Guard) -> Path | None:
    """Move a database and its side files out of the way; return the new name, None where there was nothing.

    Raises:
        StoreUnusable: it cannot be moved.
    """
    files = [(end, database.with_name(database.name + end)) for end in _SIDE_FILES]
    present = [(end, file) for end, file in files if file.exists()]
    moved = _free_name(database)
    try:
        for end, file in present:
            file.rename(moved.with_name(moved.name + end))
            sync_directory(database)  # one by one: no power cut leaves a database without its log
    except OSError as error:
        raise StoreUnusable(f"{database}: cannot be set aside: {error.strerror}") from None
    guard.forget()
    return moved if present else None


def _free_name(database: Path) -> Path:
    """A name beside the database that nothing bears: what was set aside before is never written over."""
    mark = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    tails = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (f"{database.name}.old-{mark}{tail}" for tail in tails)
    return next(
        database.with_name(name)
        for name in names
        if not any(database.with_name(name + end).exists() for end in _SIDE_FILES)
    )


def renew_log(database: Path) -> None:
    """Write the log that was left behind anew, byte for byte, and sync it.

    A process before may have ended after an fsync that failed. What it had written is still read, and counts, but the
    kernel has marked it clean: no later fsync brings it to the disk, and all that were added to the log behind it would
    be lost with it in a power cut.

    Raises:
        OSError: the disk does not take it.
    """
    try:
        fd = os.open(database.with_name(database.name + "-wal"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        done = 0
        while part := os.pread(fd, _PART, done):
            done += os.pwrite(fd, part, done)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(database: Path) -> None:
    """Make the file's own name durable, not only its content."""
    fd = os.open(database.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def durability_warning(database: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """A warning where the file system forgets or shares what it holds; None where it is sound or unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    home = str(database.parent.resolve())
    best, kind = "", ""
    for line in lines:
        _, mount, fstype, *_ = line.split(" ")
        inside = mount == "/" or home == mount or home.startswith(mount + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fstype
    if kind not in _VOLATILE:
        return None
    return f"{database} lies on {kind}, which does not keep the promises of a local disk"
