"""What text is to PostgreSQL: it holds neither NUL nor lone surrogates, and it has no globs.

Law: a glob means what `fnmatch.fnmatchcase` says, as in routes, on whatever text the database can hold.
"""

import re
from collections.abc import Iterator
from fnmatch import translate

_LAST = 0x10FFFF


def storable(text: str) -> str:
    """A text as the database can hold it; what it cannot is shown escaped."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def glob_regex(glob: str) -> str:
    """A regular expression of PostgreSQL's that finds what a glob means."""
    return f"^{''.join(_parts(glob))}$"


def _parts(glob: str) -> Iterator[str]:
    place = 0
    while place < len(glob):
        sign = glob[place]
        end = _set_end(glob, place) if sign == "[" else None
        if end is not None:
            yield _one_of(glob[place:end])
        elif sign == "*":
            if glob[place - 1 : place] != "*":  # several mean no more than one, and cost more
                yield ".*"
        else:
            yield "." if sign == "?" else _escaped(ord(sign))
        place = end or place + 1


def _set_end(glob: str, start: int) -> int | None:
    """Where the set ends that begins at a bracket; None where the bracket means itself."""
    first = start + 2 if glob[start + 1 : start + 2] == "!" else start + 1
    end = glob.find("]", first + 1)  # one that stands first is of the set
    return end + 1 if end >= 0 else None


def _one_of(signs: str) -> str:
    """A set, put as the spans of characters that are of it. Python's own is asked which: what is odd about its ranges
    is so here too. Between two neighbours of what stands in it, all are of it or none."""
    is_in = re.compile(translate(signs)).match
    named = {ord(sign) for sign in signs}
    starts = sorted({1, *(code for code in named if code), *(code + 1 for code in named if code < _LAST)})
    spans = [
        f"{_escaped(start)}-{_escaped(after - 1)}"
        for start, after in zip(starts, [*starts[1:], _LAST + 1], strict=True)
        if is_in(chr(start))
    ]
    return f"[{''.join(spans)}]" if spans else "(?!)"


def _escaped(code: int) -> str:
    sign = chr(code)
    return sign if sign.isascii() and sign.isalnum() else f"\\U{code:08x}"
