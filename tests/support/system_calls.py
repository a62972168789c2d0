"""The steps of a run as `tests.support.power_cut` takes them, read from what `strace` has recorded of it.

Law: what cannot be followed is refused, not skipped. A change counts from the moment its call began, an fsync from the
moment it returned, and covers only what had returned before it began.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from tests.support.power_cut import DirectorySynced, Named, Promised, Resized, Step, Synced, Wrote

_ON_FILES = "write pwrite64 writev pwritev pwritev2 fsync fdatasync sync_file_range ftruncate fallocate mmap"
_ON_NAMES = "open openat creat truncate unlink unlinkat rename renameat renameat2 link linkat"
_ELSE = "close dup dup2 dup3 sendto sendmsg sendfile copy_file_range splice clone clone3 fork vfork"
CALLS = ",".join(f"{_ON_FILES} {_ON_NAMES} {_ELSE}".split())
"""The calls to be traced: all that change a file, a name or a descriptor, or send something."""
_NEVER = """write writev pwritev pwritev2 sync_file_range fallocate open creat truncate unlinkat renameat renameat2
    link linkat dup dup2 dup3 sendfile copy_file_range splice"""
_NOT_DONE = frozenset(_NEVER.split())
"""Calls that no file of the store sees."""


class CannotFollow(Exception):
    """The recording has something that the reader does not understand, so that a verdict would be worth nothing."""


@dataclass
class _Call:
    pid: int
    name: str
    text: str
    """Its arguments and, after ` = `, what it returned."""
    result: int | None = None
    """None where it never returned."""
    began: int = 0

    @property
    def arguments(self) -> list[str]:
        return self.text.split(", ")

    @property
    def fd(self) -> int:
        return int(self.text.partition(",")[0])

    @property
    def last(self) -> int:
        return int(self.text.rpartition(", ")[2])

    @property
    def strings(self) -> list[bytes]:
        parts = self.text.split('"')  # none within a string: all of it is in hexadecimal
        if any(part.startswith("...") for part in parts[2::2]):
            raise CannotFollow(f"strace has cut a string: {self.name}")
        return [bytes.fromhex(part.replace("\\x", "")) for part in parts[1::2]]


_LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*)|(?:\+\+\+|---) .*)$", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_DETACHED = " <detached ...>"
"""How a call ends that was under way when strace itself ended."""
_RETURNED = re.compile(r"^(.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)$", re.DOTALL)


def _moments(lines: Iterable[str]) -> "Iterator[tuple[bool, _Call]]":
    """Each call twice, in the order of the recording: as it began (False) and as it returned (True)."""
    moments: list[tuple[bool, _Call]] = []
    open_calls: dict[int, _Call] = {}
    for line in lines:
        found = _LINE.match(line.rstrip("\n"))
        if found is None:
            raise CannotFollow(f"no line of strace: {line[:200]!r}")
        pid, name, text, resumed, rest = int(found[1]), found[2], found[3], found[4], found[5]
        if name is not None:
            call = _Call(pid, name, text)
            moments.append((False, call))
            if text.endswith((_UNFINISHED, _DETACHED)):
                call.text = text.removesuffix(_DETACHED).removesuffix(_UNFINISHED)
                open_calls[pid] = call
                continue
        elif resumed is not None:
            call = open_calls.pop(pid)
            call.text += rest
        else:
            continue
        returned = _RETURNED.match(call.text)
        if returned is None:
            raise CannotFollow(f"no result: {line[:200]!r}")
        call.text = returned[1].replace(_UNFINISHED, "")  # so one whose process died in it
        call.result = None if returned[2] == "?" else int(returned[2], 0)
        moments.append((True, call))
    return iter(moments)


class Reader:
    """Reads the recordings of one directory, one after the other: a process may end and another one follow."""

    def __init__(self, home: PurePath, steps: Iterable[Step] = ()) -> None:
        """`home` is the directory: empty before the first recording, or as `steps` have left it."""
        self.steps: list[Step] = list(steps)
        self._home = home
        self._names: dict[str, int] = {}
        self._count = 0
        for step in self.steps:
            for name, number in step.names.items() if isinstance(step, Named) else ():
                if number is None:
                    self._names.pop(name, None)
                else:
                    self._names[name] = number
                    self._count = max(self._count, number)

    def read(self, lines: Iterable[str]) -> None:
        """Take one process's recording, from its start to its end.

        Raises:
            CannotFollow: it has what this reader does not understand.
        """
        self._open: dict[int, int | None] = {}
        """The files behind descriptors; None is the directory itself."""
        self._changing: dict[int, set[int]] = {}
        for has_returned, call in _moments(lines):
            if has_returned:
                self._returned(call)
            else:
                self._began(call)

    # what counts from its beginning

    def _began(self, call: _Call) -> None:
        call.began = len(self.steps)
        match call.name:
            case "close":
                self._open.pop(call.fd, None)
            case "write" | "sendto" | "sendmsg" | "writev" if call.fd not in self._open:
                self._said(call)
            case "pwrite64":
                self._wrote(call)
            case "ftruncate":
                self._change(call, Resized(self._file(call.fd), call.last))
            case "unlink" | "rename":
                self._renamed(call)
            case "clone" | "clone3" if "CLONE_THREAD" in call.text:
                pass
            case "fork" | "vfork" | "clone" | "clone3":
                raise CannotFollow("another process was started")
            case name if name in _NOT_DONE:
                self._refuse_ours(call)
            case "mmap":
                self._mapped(call)

    def _said(self, call: _Call) -> None:
        text = b"".join(call.strings)
        answer = re.search(rb'^HTTP/1\.[01] 200 .*\r\n\r\n\{"id": "(\w+)", "duplicate": \w+\}', text, re.DOTALL)
        if answer:
            self.steps.append(Promised(("answered", answer[1].decode())))
        for line in text.splitlines() if text.startswith(b'{"ts"') else ():
            told = json.loads(line)
            if told["event"] == "delivery.attempted" and told["outcome"] == "delivered":
                self.steps.append(Promised(("delivered", told["event_id"], told["target"])))

    def _wrote(self, call: _Call) -> None:
        (data,) = call.strings
        if call.result is not None and call.result < 0:
            return
        if call.result is not None:
            data = data[: call.result]
        self._change(call, Wrote(self._file(call.fd), call.last, data))

    def _change(self, call: _Call, step: Wrote | Resized) -> None:
        if call.result is not None and call.result < 0:
            return
        self._changing.setdefault(step.file, set()).add(call.pid)
        if not self._is_index(step.file):
            self.steps.append(step)

    def _is_index(self, file: int) -> bool:
        """The index of the log is made anew after a cut, and written through memory: nobody relies on its content."""
        return any(number == file and name.endswith("-shm") for name, number in self._names.items())

    def _renamed(self, call: _Call) -> None:
        names = [self._name(path.decode()) for path in call.strings]
        if (call.result is not None and call.result < 0) or not any(names):
            return
        if None in names or call.arguments[0].startswith("AT_"):
            raise CannotFollow(f"{call.name} into or out of the directory")
        old, *new = [name for name in names if name is not None]
        number = self._names.pop(old)
        changed: dict[str, int | None] = {old: None}
        for name in new:
            changed[name] = self._names[name] = number
        self.steps.append(Named(changed))

    def _refuse_ours(self, call: _Call) -> None:
        """What the store does not do today; whoever makes it do so teaches it to this reader."""
        paths = [path.decode(errors="replace") for path in call.strings if path.startswith(b"/")]
        fds = [int(one) for one in call.arguments if one.isdigit()][:2]
        if any(self._name(path) for path in paths) or any(fd in self._open for fd in fds):
            raise CannotFollow(f"{call.name} on a file of the store")

    def _mapped(self, call: _Call) -> None:
        _, _, may, how, fd, *_ = call.arguments
        if "PROT_WRITE" not in may or "MAP_SHARED" not in how or int(fd) not in self._open:
            return
        if not self._is_index(self._file(int(fd))):
            raise CannotFollow("a file of the store is written through memory")

    # what counts from its return

    def _returned(self, call: _Call) -> None:
        if call.name in {"pwrite64", "ftruncate"}:
            for pids in self._changing.values():
                pids.discard(call.pid)
        if call.name in {"fsync", "fdatasync"} and call.fd in self._open:
            self._synced(call)
        if call.result is None or call.result < 0:
            return
        if call.name == "openat":
            self._opened(call)

    def _synced(self, call: _Call) -> None:
        file = self._open[call.fd]
        is_good = call.result == 0
        if file is None:
            if is_good:
                self.steps.append(DirectorySynced(call.began))
            return
        if self._changing.get(file):
            raise CannotFollow("a file was written and synced at once: what the fsync covers is not known")
        self.steps.append(Synced(file, call.began, is_good=is_good))

    def _opened(self, call: _Call) -> None:
        assert call.result is not None
        self._open.pop(call.result, None)
        path = PurePath(call.strings[0].decode())
        if path == self._home:
            self._open[call.result] = None
            return
        name = self._name(str(path))
        if name is None:
            return
        if name not in self._names:
            self._count += 1
            self._names[name] = self._count
            self.steps.append(Named({name: self._count}))
        self._open[call.result] = self._names[name]
        if "O_TRUNC" in call.text:
            self.steps.append(Resized(self._names[name], 0))

    # descriptors and names

    def _name(self, path: str) -> str | None:
        """The name of a file of the directory; None for all others."""
        found = PurePath(path)
        if found.is_relative_to(self._home) and found.parent != self._home and found != self._home:
            raise CannotFollow(f"a directory within the directory: {path}")
        return found.name if found.parent == self._home else None

    def _file(self, fd: int) -> int:
        file = self._open.get(fd)
        if file is None:
            raise CannotFollow(f"a change by a descriptor of which nothing is known: {fd}")
        return file
