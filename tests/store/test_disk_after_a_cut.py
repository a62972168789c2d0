"""The rebuilder of disks is itself tested, on runs made by hand: were it lenient, any power cut would look harmless."""

import random
from pathlib import PurePosixPath

import pytest

from tests.support.power_cut import (
    SECTOR,
    DirectorySynced,
    Image,
    Model,
    Named,
    Promised,
    Resized,
    Step,
    Synced,
    Wrote,
    cuts_at,
    every_strict_cut,
)
from tests.support.system_calls import CannotFollow, Reader

MADE: list[Step] = [Named({"a": 1}), DirectorySynced()]
"""A file with a name that is durable."""


def left(steps: list[Step], model: Model = Model.STRICT, seed: int = 0) -> Image:
    """What is left after the last of the steps."""
    (cut,) = cuts_at(steps, [len(steps)], model, random.Random(seed))
    return cut.image


def any_left(steps: list[Step], name: str = "a") -> set[bytes | None]:
    """All that may be left of a file."""
    return {left(steps, Model.SCATTERED, seed).get(name) for seed in range(300)}


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    ("steps", "content"),
    [
        ([Wrote(1, 0, b"new")], b""),
        ([Wrote(1, 0, b"new"), Synced(1)], b"new"),
        ([Wrote(1, 0, b"new"), Synced(2)], b""),
        ([Wrote(1, 0, b"new"), Synced(1), Wrote(1, 0, b"x")], b"new"),
        ([Wrote(1, 0, b"new"), Synced(1), Wrote(1, 0, b"x"), Synced(1)], b"xew"),
        ([Wrote(1, 0, b"new"), Synced(1, began=2)], b""),
        ([Wrote(1, 0, b"new"), Synced(1, is_good=False)], b""),
        ([Wrote(1, 0, b"new"), Synced(1, is_good=False), Synced(1)], b""),
        ([Wrote(1, 0, b"new"), Synced(1, is_good=False), Wrote(1, 3, b"er"), Synced(1)], b"\0\0\0er"),
        ([Wrote(1, 0, b"new"), Synced(1, is_good=False), Wrote(1, 0, b"new"), Synced(1)], b"new"),
        ([Wrote(1, 2, b"w"), Synced(1)], b"\0\0w"),
        ([Wrote(1, 0, b"new"), Synced(1), Resized(1, 0)], b"new"),
        ([Wrote(1, 0, b"new"), Resized(1, 1), Synced(1)], b"n"),
        ([Wrote(1, 0, b"new"), Resized(1, 0), Wrote(1, 0, b"x"), Synced(1)], b"x"),
        ([Resized(1, 2), Synced(1)], b"\0\0"),
    ],
)
def test_only_what_was_synced_is_left(steps: list[Step], content: bytes) -> None:
    """An fsync covers its own file and what came before it began; one that failed covers nothing, then or later."""
    assert left(MADE + steps) == {"a": content}


@pytest.mark.row("F2")
def test_a_name_needs_an_fsync_of_its_directory() -> None:
    """Whatever is synced of a file: without a name it is not there; a renaming and a deletion need it as well."""
    written: list[Step] = [Named({"a": 1}), Wrote(1, 0, b"new"), Synced(1)]
    assert left(written) == {}
    assert left(written, Model.NAMED) == {"a": b"new"}
    assert left([*written, DirectorySynced()]) == {"a": b"new"}
    assert left([*written, DirectorySynced(began=0)]) == {}
    moved: list[Step] = [*written, DirectorySynced(), Named({"a": None, "b": 1})]
    assert left(moved) == {"a": b"new"}
    assert left([*moved, DirectorySynced()]) == {"b": b"new"}
    again: list[Step] = [*written, DirectorySynced(), Named({"a": None}), Named({"a": 2})]
    assert left(again) == {"a": b"new"}
    assert left([*again, DirectorySynced()]) == {"a": b""}


@pytest.mark.row("F2")
def test_of_what_was_not_synced_anything_may_be_left() -> None:
    """A write may be there, not there, or torn at a sector, at either end; a later one without an earlier one."""
    long = b"x" * SECTOR + b"y" * SECTOR
    found = any_left([*MADE, Wrote(1, 0, long)])
    assert found == {b"", long, long[:SECTOR], bytes(SECTOR) + long[SECTOR:]}
    assert any_left([*MADE, Wrote(1, 0, b"a"), Wrote(1, 1, b"b")]) == {b"", b"a", b"ab", b"\0b"}
    assert any_left([*MADE, Wrote(1, 0, b"a"), Synced(1), Wrote(1, 0, b"b")]) == {b"a", b"b"}
    lost: list[Step] = [*MADE, Wrote(1, 0, b"a"), Synced(1, is_good=False), Synced(1)]
    assert any_left(lost) == {b"", b"a"}
    assert any_left([*lost, Wrote(1, 0, b"b"), Synced(1)]) == {b"b"}  # the older never comes over the newer
    assert left([*MADE, Wrote(1, 0, b"a")], Model.FLUSHED) == {"a": b"a"}


@pytest.mark.row("F2")
def test_unsynced_names_come_in_order_or_in_none() -> None:
    """Some file systems keep the order of names and some do not; one step is never halved."""
    steps: list[Step] = [Named({"a": 1}), Named({"b": 2})]
    assert {tuple(left(steps, Model.SCATTERED, seed)) for seed in range(200)} == {(), ("a",), ("b",), ("a", "b")}
    moved: list[Step] = [Named({"a": 1}), DirectorySynced(), Named({"a": None, "b": 1})]
    assert {tuple(left(moved, Model.SCATTERED, seed)) for seed in range(50)} == {("a",), ("b",)}


@pytest.mark.row("F2")
def test_a_promise_made_before_its_fsync_is_found() -> None:
    """The strict cuts stand for all points: one has the promise and not what it rests on; of a good run none."""

    def broken(steps: list[Step]) -> list[int]:
        return [c.after for c in every_strict_cut(steps) if ("answered", "1") in c.promised and c.image != {"a": b"1"}]

    answer = Promised(("answered", "1"))
    good: list[Step] = [*MADE, Wrote(1, 0, b"1"), Synced(1), answer]
    assert broken(good) == []
    assert broken([*MADE, Wrote(1, 0, b"1"), answer, Synced(1)]) == [4]
    assert broken([*MADE, Wrote(1, 0, b"1"), answer]) == [4]
    assert broken([Named({"a": 1}), Wrote(1, 0, b"1"), Synced(1), answer, DirectorySynced()]) == [4]
    assert broken([*good, Resized(1, 0), Synced(1), Wrote(1, 0, b"1"), Synced(1)]) == [8]
    assert broken([*good, Named({"a": None})]) == [6]


# what strace says


def read(*lines: str) -> list[Step]:
    """The steps of a recording in which names and bytes stand in the open."""
    reader = Reader(PurePosixPath("/s"))
    reader.read(_in_hexadecimal(line) for line in lines)
    return reader.steps


def _in_hexadecimal(line: str) -> str:
    parts = line.split("'")
    for at in range(1, len(parts), 2):
        octets = parts[at].encode().decode("unicode_escape").encode("latin-1")
        parts[at] = '"' + "".join(f"\\x{octet:02x}" for octet in octets) + '"'
    return "".join(parts)


OPEN = "7 openat(AT_FDCWD, '/s/a', O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 5"


@pytest.mark.row("F2")
def test_calls_become_steps_in_their_order() -> None:
    """By descriptors of this process; what is done elsewhere, or failed, is none; short writes count as far as they
    went."""
    steps = read(
        "7 openat(AT_FDCWD, '/elsewhere', O_RDWR|O_CREAT, 0600) = 4",
        "7 openat(AT_FDCWD, '/s/b', O_RDONLY) = -1 ENOENT (No such file or directory)",
        OPEN,
        "7 pwrite64(5, 'one', 3, 0) = 3",
        "7 pwrite64(5, 'two', 3, 3) = 1",
        "7 pwrite64(5, 'bad', 3, 3) = -1 ENOSPC (No space left on device)",
        "7 fsync(4) = 0",
        "7 fdatasync(5) = 0",
        "7 openat(AT_FDCWD, '/s', O_RDONLY|O_DIRECTORY) = 6",
        "7 fsync(6) = 0",
        "7 fdatasync(5) = -1 EIO (Input/output error) (INJECTED)",
        "7 ftruncate(5, 0) = 0",
        "7 rename('/s/a', '/s/b') = 0",
        "7 close(5) = 0",
        "7 unlink('/s/b') = 0",
        "7 +++ exited with 0 +++",
    )
    assert steps == [
        Named({"a": 1}),
        Wrote(1, 0, b"one"),
        Wrote(1, 3, b"t"),
        Synced(1, 3),
        DirectorySynced(4),
        Synced(1, 5, is_good=False),
        Resized(1, 0),
        Named({"a": None, "b": 1}),
        Named({"b": None}),
    ]


@pytest.mark.row("F2")
def test_answers_and_records_are_promises_from_the_moment_they_begin_to_leave() -> None:
    """An answer of 200 to a sender, a line of the log that tells of a delivery: nothing else."""
    body = r"{\"id\": \"evt_1\", \"duplicate\": false}".replace('\\"', '"')
    line = '{"ts":"t","event":"delivery.attempted","outcome":"delivered","event_id":"evt_1","target":"crm"}'
    steps = read(
        f"7 write(9, 'HTTP/1.1 200 OK\\r\\nServer: relay\\r\\n\\r\\n{body}', 80 <unfinished ...>",
        OPEN.replace("7 ", "8 ", 1),
        "7 <... write resumed>) = 80",
        "7 write(9, 'HTTP/1.1 503 Service Unavailable\\r\\n\\r\\n{}', 40) = 40",
        f"7 write(1, '{line}\\n{line.replace('delivered', 'failed')}\\n', 200) = 200",
    )
    assert steps == [Promised(("answered", "evt_1")), Named({"a": 1}), Promised(("delivered", "evt_1", "crm"))]


@pytest.mark.row("F2")
def test_a_call_counts_from_its_beginning_and_an_fsync_from_its_end() -> None:
    """Whatever happens between the two is not covered; an fsync that never ended covers nothing, and a write that never
    ended may be there."""
    steps = read(
        OPEN,
        "7 pwrite64(5, 'one', 3, 0) = 3",
        "7 fdatasync(5 <unfinished ...>",
        "8 pwrite64(5, 'two', 3, 3) = 3",
        "7 <... fdatasync resumed>) = 0",
        "7 fdatasync(5) = ?",
        "9 fdatasync(5 <unfinished ...>) = ?",
        "8 pwrite64(5, 'end', 3, 6 <unfinished ...>",
        "8 +++ killed by SIGKILL +++",
        "9 pwrite64(5, 'cut', 3, 9 <detached ...>",
    )
    assert steps[1:] == [
        Wrote(1, 0, b"one"),
        Wrote(1, 3, b"two"),
        Synced(1, 2),
        Synced(1, 4, is_good=False),
        Synced(1, 5, is_good=False),
        Wrote(1, 6, b"end"),
        Wrote(1, 9, b"cut"),
    ]


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    "line",
    [
        "7 pwrite64(9, 'x', 1, 0) = 1",
        "7 write(5, 'x', 1) = 1",
        "7 pwrite64(5, 'x'..., 300, 0) = 300",
        "7 pwritev(5, [{iov_base='x', iov_len=1}], 1, 0) = 1",
        "7 fallocate(5, 0, 0, 100) = 0",
        "7 dup(5) = 6",
        "7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 5, 0) = 0x7f0000000000",
        "7 link('/s/a', '/s/b') = 0",
        "7 truncate('/s/a', 0) = 0",
        "7 rename('/s/a', '/elsewhere') = 0",
        "7 vfork() = 8",
        "7 openat(AT_FDCWD, '/s/below/c', O_RDWR|O_CREAT, 0600) = 6",
        "strace: something went wrong",
    ],
)
def test_what_cannot_be_followed_is_refused(line: str) -> None:
    """A change that the reader passes over would make a cut look better than it is."""
    with pytest.raises(CannotFollow):
        read(OPEN, line)


@pytest.mark.row("F2")
def test_a_second_process_goes_on_with_the_same_files() -> None:
    """Its descriptors are its own; what is not synced is still in memory, and an fsync of its brings it to the disk."""
    reader = Reader(PurePosixPath("/s"))
    reader.read(_in_hexadecimal(line) for line in (OPEN, "7 pwrite64(5, 'one', 3, 0) = 3"))
    reader.read(_in_hexadecimal(line) for line in (OPEN.replace("= 5", "= 8"), "7 fsync(8) = 0"))
    assert reader.steps == [Named({"a": 1}), Wrote(1, 0, b"one"), Synced(1, 2)]
    assert Reader(PurePosixPath("/s"), reader.steps)._names == {"a": 1}
