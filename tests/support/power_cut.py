"""What a disk holds after its power was cut, rebuilt from the steps of a recorded run. Pure: no file is touched.

Law: never too lenient. A change is durable when an fsync of its file, begun after it, has ended well; a name when one
of its directory has. What a failed fsync has covered is durable no more: the kernel has marked it clean and will not
write it again, so that a later fsync, which succeeds, says nothing of it (and it may be on the disk all the same).
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

SECTOR = 512
"""What a disk writes whole or not at all."""


@dataclass(frozen=True)
class Named:
    """Names came to mean files (by number), or nothing, in one step: a creation, a deletion, a renaming."""

    names: dict[str, int | None]


@dataclass(frozen=True)
class Wrote:
    """Bytes were handed over for a file."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resized:
    """A file was cut or grown to a size."""

    file: int
    size: int


@dataclass(frozen=True)
class Synced:
    """An fsync of a file ended; it covers the steps before number `began` (left out: all before it)."""

    file: int
    began: int | None = None
    is_good: bool = True


@dataclass(frozen=True)
class DirectorySynced:
    """An fsync of the directory ended well."""

    began: int | None = None


@dataclass(frozen=True)
class Promised:
    """From here on somebody relies on it: what must be found after every later cut."""

    what: tuple[str, ...]


Step = Named | Wrote | Resized | Synced | DirectorySynced | Promised
Image = dict[str, bytes]


class Model(Enum):
    """What becomes of that which no fsync has covered."""

    STRICT = "only what was synced, names too"
    NAMED = "of the files only what was synced, but all names"
    FLUSHED = "all that was handed over"
    SCATTERED = "a random half, torn at sectors"


@dataclass(frozen=True)
class Cut:
    """One cut: after how many steps, by which model, what is left, and what was promised by then."""

    after: int
    model: Model
    image: Image
    promised: frozenset[tuple[str, ...]]


@dataclass
class _Change:
    at: int
    made: Wrote | Resized
    is_durable: bool = False
    is_lost: bool = False


@dataclass
class _File:
    base: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def synced(self, began: int, *, is_good: bool) -> None:
        covered = [one for one in self.changes if one.at < began and not (one.is_durable or one.is_lost)]
        for one in covered:
            if is_good:
                one.is_durable = True
            elif isinstance(one.made, Wrote):
                one.is_lost = True
        while self.changes and self.changes[0].is_durable:
            _apply(self.base, self.changes.pop(0).made)

    def content(self, fate: "Callable[[Wrote | Resized], Wrote | Resized | None]") -> bytes:
        content = bytearray(self.base)
        for one in self.changes:
            made = one.made if one.is_durable else fate(one.made)
            if made is not None:
                _apply(content, made)
        return bytes(content)


def _apply(content: bytearray, made: Wrote | Resized) -> None:
    end = made.size if isinstance(made, Resized) else made.offset + len(made.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if isinstance(made, Resized):
        del content[made.size :]
    else:
        content[made.offset : end] = made.data


class Disk:
    """One directory and its files, with what is durable of them and what was asked for since."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._renamed: list[tuple[int, Named]] = []
        self._count = 0

    def take(self, step: Step) -> None:
        """Take the next step."""
        at, self._count = self._count, self._count + 1
        match step:
            case Wrote() | Resized():
                self._file(step.file).changes.append(_Change(at, step))
            case Named():
                self._renamed.append((at, step))
            case Synced():
                self._file(step.file).synced(_or(step.began, at), is_good=step.is_good)
            case DirectorySynced():
                began = _or(step.began, at)
                durable = [named for when, named in self._renamed if when < began]
                self._renamed = [(when, named) for when, named in self._renamed if when >= began]
                for named in durable:
                    _rename(self._names, named)
            case Promised():
                pass

    def _file(self, number: int) -> _File:
        return self._files.setdefault(number, _File())

    def image(self, model: Model, rng: random.Random) -> Image:
        """What is left of it, by name."""
        names = dict(self._names)
        for named in self._surviving_names(model, rng):
            _rename(names, named)
        fate = _FATES[model](rng)
        return {name: self._file(number).content(fate) for name, number in names.items()}

    def _surviving_names(self, model: Model, rng: random.Random) -> list[Named]:
        pending = [named for _, named in self._renamed]
        if model is Model.STRICT:
            return []
        if model is Model.SCATTERED and pending:
            if rng.random() < 0.5:  # a journal keeps their order, other file systems keep none
                return pending[: rng.randrange(len(pending) + 1)]
            return [named for named in pending if rng.random() < 0.5]
        return pending


def _or(began: int | None, at: int) -> int:
    return at if began is None else began


def _rename(names: dict[str, int], named: Named) -> None:
    for name, number in named.names.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


Fate = Callable[[Wrote | Resized], Wrote | Resized | None]


def _scattered(rng: random.Random) -> Fate:
    def fate(made: Wrote | Resized) -> Wrote | Resized | None:
        dice = rng.random()
        if isinstance(made, Resized) or dice < 0.4:
            return made if dice < 0.5 else None
        first, last = made.offset // SECTOR + 1, (made.offset + len(made.data) - 1) // SECTOR
        if dice < 0.6 and first <= last:  # torn: its head or its tail
            at = rng.randint(first, last) * SECTOR - made.offset
            if rng.random() < 0.5:
                return Wrote(made.file, made.offset, made.data[:at])
            return Wrote(made.file, made.offset + at, made.data[at:])
        return None

    return fate


_FATES: dict[Model, Callable[[random.Random], Fate]] = {
    Model.STRICT: lambda _: lambda _: None,
    Model.NAMED: lambda _: lambda _: None,
    Model.FLUSHED: lambda _: lambda made: made,
    Model.SCATTERED: _scattered,
}


def settled(files: Image) -> list[Step]:
    """Steps by which files come to the disk and stay."""
    steps: list[Step] = []
    for number, (name, content) in enumerate(files.items(), 1):
        steps += [Named({name: number}), Wrote(number, 0, content), Synced(number)]
    return [*steps, DirectorySynced()]


def every_strict_cut(steps: Sequence[Step], *, since: int = 0) -> Iterator[Cut]:
    """A cut at every point from `since` on, where only what was synced is left: with and without the names that no
    fsync covers.

    Until something becomes durable the image stays as it is and only more is promised, so that the last point of such a
    stretch stands for all of it.
    """
    disk, promised = Disk(), set[tuple[str, ...]]()
    rng = random.Random(0)  # not asked by these models
    seen: tuple[Image, Image, int] | None = None
    for number, step in enumerate([*steps, None]):
        if number >= since and isinstance(step, Synced | DirectorySynced | Named | None):
            here = disk.image(Model.STRICT, rng), disk.image(Model.NAMED, rng), len(promised)
            if here != seen:
                yield Cut(number, Model.STRICT, here[0], frozenset(promised))
                if here[1] != here[0]:
                    yield Cut(number, Model.NAMED, here[1], frozenset(promised))
            seen = here
        if isinstance(step, Promised):
            promised.add(step.what)
        if step is not None:
            disk.take(step)


def cuts_at(steps: Sequence[Step], points: Iterable[int], model: Model, rng: random.Random) -> Iterator[Cut]:
    """Cuts after so many steps each, by one model."""
    wanted = set(points)
    disk, promised = Disk(), set[tuple[str, ...]]()
    for number, step in enumerate([*steps, None]):
        if number in wanted:
            yield Cut(number, model, disk.image(model, rng), frozenset(promised))
        if isinstance(step, Promised):
            promised.add(step.what)
        if step is not None:
            disk.take(step)
