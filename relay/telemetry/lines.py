"""How a log entry becomes one line of text.

Law: total, and one entry is one line of printable ASCII, whatever was put into it: control characters, separators and
lone surrogates are escaped, our keys cannot be overwritten, and a value that cannot be shown does not cost the rest.
"""

import json
import math
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from json import encoder as _encoder
from typing import Any

from relay.rules.forwarding import rfc3339

LONGEST_LINE = 16 * 1024
"""Characters; a longer line is written with its values clipped, so that the queue's bound bounds memory too."""

_LONGEST_TRACE = 2000
_FRAMES = 20
_KEYS = 64
_RESERVED = frozenset({"ts", "level"})
_SPECIAL = _RESERVED | {"exc_info"}
_SIMPLE = re.compile(r"[!#-<>-\[\]-~]+")

Entry = dict[str, Any]
Renderer = Callable[[str, Entry], str]
"""Makes a line, with its newline, of a level and an entry."""


def clip(value: str, limit: int = 256) -> str:
    """A value from outside, cut to `limit` characters so that no stranger fills the log."""
    return value if len(value) <= limit else value[: limit - 1] + "…"


def compact_traceback(error: BaseException) -> str:
    """Where an exception came from, innermost frame last: files, lines and functions, no locals, no source."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = (f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}" for frame in frames)
    return clip(" > ".join(places), _LONGEST_TRACE)


def describe(error: BaseException) -> str:
    """An exception's type and message, clipped; total even over a broken `__str__`."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a library's exception may fail at telling what it is
        message = "<unprintable>"
    return clip(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _error_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and len(exc_info) == 3 and isinstance(exc_info[1], BaseException):
        return exc_info[1]
    return None


def _shown(value: Any) -> Any:
    """What stands in a line for a value that JSON does not know."""
    match value:
        case datetime():
            return rfc3339(value)
        case timedelta():
            return value.total_seconds()
        case BaseException():
            return describe(value)
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case set() | frozenset():
            return sorted(map(str, value))
        case Mapping():
            return dict(value)
    return clip(str(value))


def _make_encode() -> Callable[[Entry], str]:
    """JSON in one line: ASCII only, no NaN. The C encoder is made once; `JSONEncoder.encode` makes one a call."""
    slow = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False, default=_shown).encode
    try:
        make: Any = _encoder.c_make_encoder  # type: ignore[attr-defined]  # not in the stubs
        flags = (False, False, False)  # sort_keys, skipkeys, allow_nan
        fast = make(None, _shown, _encoder.encode_basestring_ascii, None, ":", ",", *flags)
        if "".join(fast({"a": [1, None]}, 0)) != slow({"a": [1, None]}):
            return slow
    except (AttributeError, TypeError):
        return slow
    join = "".join
    return lambda entry: join(fast(entry, 0))


_encode = _make_encode()


def _plain(value: Any, limit: int) -> Any:
    """A value reduced to what JSON surely takes."""
    if value is None or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    try:
        return clip(value if type(value) is str else str(_shown(value)), limit)
    except Exception:  # noqa: BLE001 - a value that cannot be shown must not cost the line
        return f"<unprintable {type(value).__name__}>"


def _reduced(line: Entry) -> str:
    return _encode({clip(str(key), 64): _plain(value, 256) for key, value in list(line.items())[:_KEYS]})


def _encoded(line: Entry) -> str:
    """The line as JSON; with a value that JSON refuses, or one that makes it too long, all are reduced."""
    try:
        text = _encode(line)
    except Exception:  # noqa: BLE001 - whatever a value's own code raises, the line is still told
        return _reduced(line)
    return text if len(text) <= LONGEST_LINE else _reduced(line)


_MILLISECONDS = tuple(f"{millisecond:03d}Z" for millisecond in range(1000))


class Clock:
    """Times as log lines show them; the part that changes once a second is kept."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Read Unix seconds from `now`."""
        self._now = now
        self._second = -1
        self._prefix = ""

    def __call__(self) -> str:
        """The time now: RFC 3339, UTC, milliseconds."""
        now = self._now()
        second = int(now)
        if second != self._second:
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            self._second = second
        return self._prefix + _MILLISECONDS[int((now - second) * 1000)]


def _completed(level: str, event: Any, entry: Entry, ts: str) -> Entry:
    """The entry with our keys first and safe from the caller's; an exception is told by its type, text and place."""
    if not _RESERVED.isdisjoint(entry):
        entry = {f"{key}_" if key in _RESERVED else key: value for key, value in entry.items()}
    if "exc_info" in entry:
        error = _error_of(entry.pop("exc_info"))
        if error is not None:
            entry["error"] = describe(error)
            entry["traceback"] = compact_traceback(error)
    line = {"ts": ts, "level": level, "event": event}
    line.update(entry)
    return line


@lru_cache(maxsize=256)
def _head(level: str, event: str) -> str:
    """What stands between the time and the first field, in all lines of an event."""
    return _encode({"level": level, "event": event})[1:-1]


def json_lines(now: Callable[[], float]) -> Renderer:
    """Renders for programs: one JSON object a line."""
    clock = Clock(now)

    def render(level: str, entry: Entry) -> str:
        ts, event = clock(), entry.pop("event", "")
        if type(event) is str and entry and _SPECIAL.isdisjoint(entry):
            try:
                line = f'{{"ts":"{ts}",{_head(level, event)},{_encode(entry)[1:]}\n'
            except Exception:  # noqa: BLE001 - of a value's own code; the way below is for those
                line = ""
            if 0 < len(line) <= LONGEST_LINE:
                return line
        return _encoded(_completed(level, event, entry, ts)) + "\n"

    return render


_COLOURS = {"debug": "34", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}


def _console_value(value: Any) -> str:
    """A value as it stands after `key=`: bare where nothing could be mistaken, else as JSON."""
    if isinstance(value, str) and _SIMPLE.fullmatch(value) is not None:
        return clip(value, 1024)
    return _encoded({"": value})[4:-1]


def console_lines(now: Callable[[], float], *, colours: bool) -> Renderer:
    """Renders for people: time, level, event, then `key=value`; nothing in a value reaches the terminal unescaped."""
    clock = Clock(now)

    def painted(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colours else text

    def render(level: str, entry: Entry) -> str:
        line = _completed(level, entry.pop("event", ""), entry, clock())
        ts, level, event = line.pop("ts"), line.pop("level"), line.pop("event")
        head = f"{painted(ts, '2')} {painted(level.ljust(8), _COLOURS.get(level, '0'))} "
        fields = "".join(
            f" {painted(_console_value(str(key)), '36')}={_console_value(value)}" for key, value in line.items()
        )
        return f"{head}{painted(_console_value(str(event)), '1')}{fields}\n"

    return render
