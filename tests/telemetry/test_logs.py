"""What a line looks like, and that nothing anybody sends can change that."""

import asyncio
import io
import json
import logging
import os
import pty
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod
from hypothesis import given
from hypothesis import strategies as st

from relay.model import OutcomeKind, Secret
from relay.telemetry.lines import Clock, console_lines, json_lines
from relay.telemetry.logs import LogPipe, clip, set_format, set_level, start_logging

AT = 1_789_899_331.0429
TS = "2026-09-20T10:15:31.042Z"


class Told:
    """Logging to memory, on a clock of the test's own."""

    def __init__(self, level: str = "debug", form: str = "json") -> None:
        self.out = io.StringIO()
        self.time = 100.0
        self.pipe: LogPipe = start_logging(
            level, form, self.out, now=lambda: AT, monotonic=lambda: self.time, environ={}
        )
        self.log: Any = structlog.get_logger()

    def text(self) -> str:
        self.pipe.close(10)
        return self.out.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def told() -> Iterator[Told]:
    """JSON logging at level debug."""
    made = Told()
    yield made
    made.pipe.close()


def test_a_line_is_json_with_time_level_and_event_first(told: Told) -> None:
    """Keys stand in the documented order; times are RFC 3339 in UTC."""
    told.log.info("delivery.attempted", source="xoxoday", attempt=1, outcome=OutcomeKind.DELIVERED, duration_ms=1.5)
    assert told.text() == (
        f'{{"ts":"{TS}","level":"info","event":"delivery.attempted","source":"xoxoday","attempt":1,'
        '"outcome":"delivered","duration_ms":1.5}\n'
    )


@pytest.mark.row("H48", "T25")
def test_fields_named_like_ours_neither_overwrite_nor_raise(told: Told) -> None:
    """event, level, ts and timestamp from outside stay the caller's, under names of their own."""
    told.log.bind(event="bound").info("request.refused", level="fatal", ts="1999", timestamp="x")
    told.log.warning("request.refused", event="theirs")
    first, second = told.lines()
    assert (first["ts"], first["level"], first["event"]) == (TS, "info", "request.refused")
    assert (first["level_"], first["ts_"], first["event_"], first["timestamp"]) == ("fatal", "1999", "bound", "x")
    assert (second["event"], second["event_"]) == ("request.refused", "theirs")


@pytest.mark.row("T25", "H47")
def test_hostile_text_stays_one_escaped_line(told: Told) -> None:
    """Line breaks, terminal codes, separators and surrogates are escaped; nothing but ASCII leaves."""
    hostile = 'a\r\n{"event":"forged"}\x1b[31m\u2028\x00\udc80'
    told.log.info("request.refused", reason=hostile)
    text = told.text()
    assert text.isascii()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert json.loads(text)["reason"] == hostile


@pytest.mark.row("H47")
def test_a_clipped_value_has_256_characters_at_most() -> None:
    """What fits is left alone, what does not ends in an ellipsis."""
    assert clip("x" * 256) == "x" * 256
    assert clip("x" * 257) == "x" * 255 + "…"
    assert clip("abc", 2) == "a…"


class Unshowable:
    """A value whose own code fails."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_every_value_is_shown_or_named(told: Told) -> None:
    """Values that JSON does not know are told in the nearest form, never a body and never a secret."""
    told.log.info(
        "x",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        wait=timedelta(seconds=1.5),
        secret=Secret(b"hunter2"),
        body=b"hunter2",
        names=frozenset({"b", "a"}),
        error=ValueError("bad"),
        counts=MappingProxyType({"a": 1}),
    )
    told.log.info("y", nan=float("nan"), one=1.5, none=None, big=10**5000, odd=Unshowable(), mute=Mute(), ok="ok")
    first, second = told.lines()
    assert first["at"] == "2026-01-01T00:00:00.000Z"
    assert (first["wait"], first["secret"], first["body"], first["names"]) == (1.5, "***", "<7 bytes>", ["a", "b"])
    assert (first["error"], first["counts"]) == ("ValueError: bad", {"a": 1})
    assert (second["nan"], second["one"], second["none"], second["ok"]) == ("nan", 1.5, None, "ok")
    assert (second["big"], second["odd"]) == ("<unprintable int>", "<unprintable Unshowable>")
    assert second["mute"] == "Mute: <unprintable>"


def test_a_line_of_any_size_is_bounded(told: Told) -> None:
    """A huge value and a thousand keys are clipped, the rest of the line is told."""
    told.log.info("x", reason="y" * 1_000_000, target="crm", **{f"k{n}": "z" * 300 for n in range(1000)})
    text = told.text()
    assert len(text) < 32 * 1024
    assert json.loads(text)["target"] == "crm"


def test_a_reload_changes_the_format_of_all_loggers() -> None:
    """A logger that was used before follows; an unknown format changes nothing."""
    stream = io.BytesIO()
    pipe = start_logging("info", "json", stream)
    log = structlog.get_logger()
    log.info("relay.started")
    set_format("console")
    with pytest.raises(ValueError, match="unknown log format"):
        set_format("xml")
    log.info("relay.stopped")
    pipe.close()
    first, second = stream.getvalue().decode().splitlines()
    assert json.loads(first)["event"] == "relay.started"
    assert not second.startswith("{")
    assert "relay.stopped" in second


def test_levels_are_kept_and_a_reload_changes_those_of_all_loggers() -> None:
    """Loggers that were made and used before follow the new level at once."""
    told = Told("info")
    told.log.debug("unseen")
    told.log.info("seen")
    set_level("error")
    told.log.info("unseen")
    told.log.warning("unseen")
    told.log.error("seen")
    told.log.critical("seen")
    set_level("debug")
    told.log.debug("seen")
    set_level("critical")
    told.log.error("unseen")
    assert {line["event"] for line in told.lines()} == {"seen"}
    with pytest.raises(ValueError, match="level"):
        set_level("loud")
    with pytest.raises(ValueError, match="format"):
        start_logging("info", "xml", io.StringIO())


def test_a_logger_of_an_earlier_set_up_follows_the_later_one() -> None:
    """Module-level loggers are cached, yet a new start takes them over."""
    first = Told()
    log = first.log
    log.info("one")
    assert [line["event"] for line in first.lines()] == ["one"]
    second = Told()
    log.info("two")
    assert [line["event"] for line in second.lines()] == ["two"]


def test_logs_can_still_be_captured_by_a_test(told: Told) -> None:
    """structlog's own capture works over our logger."""
    told.log.info("before")
    with structlog.testing.capture_logs() as captured:
        told.log.info("meanwhile", a=1)
    assert captured == [{"a": 1, "event": "meanwhile", "log_level": "info"}]
    assert [line["event"] for line in told.lines()] == ["before"]


@pytest.mark.row("T62")
def test_an_exception_is_one_line_without_locals(told: Told) -> None:
    """Type, message and the places it went through are told; what the variables held is not."""
    password = "hunter2-hunter2"
    try:
        assert password
        int("x")
    except ValueError as error:
        told.log.exception("loop.failed", loop="delivery")
        told.log.error("loop.failed", exc_info=error)
        told.log.error("loop.failed", exc_info=True)
    text = told.text()
    assert password not in text
    first, second, third = map(json.loads, text.splitlines())
    assert first["error"] == "ValueError: invalid literal for int() with base 10: 'x'"
    assert "telemetry/test_logs.py:" in first["traceback"]
    assert "test_an_exception_is_one_line_without_locals" in first["traceback"]
    assert (second["error"], second["traceback"]) == (first["error"], first["traceback"])
    assert "error" not in third


@pytest.mark.row("T26")
def test_malformed_requests_are_counted_and_told_once_a_second(told: Told) -> None:
    """A flood is one line a second without a byte of what was sent; every request is counted."""
    server = logging.getLogger("aiohttp.server")

    def refuse(error: BaseException) -> None:
        server.error("Error handling request from %s", "192.0.2.1", exc_info=error)

    for _ in range(100):
        refuse(BadHttpMessage("Authorization: hunter2"))
    told.time += 1
    server.debug("Error handling request from %s", "192.0.2.1", exc_info=BadHttpMethod("\x16\x03"))
    refuse(ConnectionResetError())
    told.time += 0.9
    refuse(BadHttpMessage("late"))
    assert told.pipe.malformed == 102
    assert [(line["event"], line.get("count"), line["reason"]) for line in told.lines()] == [
        ("http.malformed", 1, "BadHttpMessage"),
        ("http.malformed", 100, "BadHttpMethod"),
        ("http.client_gone", None, "ConnectionResetError"),
    ]
    assert "hunter2" not in told.text()


def test_a_fault_of_our_own_in_a_handler_is_told(told: Told) -> None:
    """What is not the client's doing is an error with its place, and the server's chatter is not heard."""
    server = logging.getLogger("aiohttp.server")
    server.error("Error handling request from %s", "192.0.2.1", exc_info=KeyError("crm"))
    server.error("Missing return statement on request handler")
    server.debug("Uncompleted request.")
    first, second = told.lines()
    assert (first["event"], first["level"], first["error"]) == ("http.error", "error", "KeyError: 'crm'")
    assert second["message"] == "Missing return statement on request handler"


async def test_what_asyncio_complains_of_is_one_line(told: Told) -> None:
    """The loop's exception handler ends in `asyncio.error`, with the exception's type and no multi-line text."""
    context = {"message": "Task exception was never retrieved\nmore", "exception": ValueError("x")}
    asyncio.get_running_loop().call_exception_handler(context)
    logging.getLogger("asyncio").warning("Executing %s took 1 second", "handle")
    first, second = told.lines()
    assert (first["event"], first["message"]) == ("asyncio.error", "Task exception was never retrieved")
    assert first["error"] == "ValueError: x"
    assert (second["event"], second["level"]) == ("asyncio.warning", "warning")


def test_other_libraries_are_heard_from_warning_on(told: Told) -> None:
    """Their records become lines; a broken format string does not cost the record."""
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("look: %s", "here")
    broken = logging.LogRecord("some.library", logging.ERROR, __file__, 1, "broken %d %d", ("x",), None)
    ours = next(handler for handler in logging.getLogger().handlers if type(handler).__module__.startswith("relay."))
    ours.handle(broken)
    first, second = told.lines()
    assert (first["event"], first["logger"], first["message"]) == ("library.warning", "some.library", "look: here")
    assert (second["event"], second["message"]) == ("library.error", "broken %d %d")


def test_unhandled_exceptions_are_told_in_one_line(told: Told) -> None:
    """The hooks of the program and of its threads log; Ctrl-C is left to Python."""
    error = ValueError("lost")
    seen: list[object] = []
    sys.excepthook(ValueError, error, None)
    thread = threading.Thread(target=int, args=("x",), name="worker")
    thread.start()
    thread.join()
    threading.excepthook(threading.ExceptHookArgs((SystemError, None, None, None)))
    first, second, third = told.lines()
    assert (first["event"], first["level"], first["error"]) == ("relay.crashed", "critical", "ValueError: lost")
    assert (second["event"], second["thread"]) == ("thread.crashed", "worker")
    assert (third["reason"], third["thread"]) == ("SystemError", None)
    before = sys.excepthook
    sys.excepthook = lambda *args: seen.append(args[0])
    again = Told()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert again.text() == ""
    assert seen == [KeyboardInterrupt]
    sys.excepthook = before


def test_closing_gives_back_what_was_taken_over() -> None:
    """Handlers, levels and hooks are as before."""
    server = logging.getLogger("aiohttp.server")

    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        return (list(root.handlers), root.level, list(server.handlers), server.level, server.propagate, sys.excepthook)

    before = state()
    told = Told()
    assert state() != before
    told.pipe.close()
    assert state() == before


def terminal(form: str, environ: dict[str, str], tell: Callable[[Any], None]) -> str:
    """What a person sees on a terminal."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        pipe = start_logging("info", form, stream, now=lambda: AT, environ=environ)
        tell(structlog.get_logger())
        pipe.close(10)
        seen = os.read(leader, 65536).decode()
    os.close(leader)
    return seen


def test_a_terminal_gets_colours_and_no_color_takes_them_away() -> None:
    """Auto is a coloured console on a terminal; NO_COLOR leaves the text; json stays JSON there too."""

    def tell(log: Any) -> None:
        log.info("relay.started", version="1.0", note="two words", count=3)

    coloured = terminal("auto", {}, tell)
    assert "\x1b[32minfo" in coloured
    plain = terminal("auto", {"NO_COLOR": "1"}, tell)
    assert plain == f'{TS} info     relay.started version=1.0 note="two words" count=3\r\n'
    assert "\x1b" in terminal("console", {"NO_COLOR": ""}, tell)
    assert terminal("json", {}, tell).startswith('{"ts":')


def test_a_console_that_is_no_terminal_has_no_colours() -> None:
    """The format can be asked for; colours need a terminal."""
    told = Told(form="console")
    told.log.info("relay.started", version="1.0")
    assert told.text() == f"{TS} info     relay.started version=1.0\n"


@pytest.mark.row("T25", "H47")
@given(
    event=st.text(),
    fields=st.dictionaries(st.text(max_size=8), st.text(st.characters(categories=None)) | st.floats() | st.integers()),
)
def test_whatever_is_told_is_one_line_that_a_terminal_can_bear(event: str, fields: dict[str, Any]) -> None:
    """JSON parses, the console shows printable ASCII, and both end with their only line break."""
    for render in (json_lines(lambda: AT), console_lines(lambda: AT, colours=False)):
        line = render("info", {**fields, "event": event})
        assert line.endswith("\n")
        assert line[:-1].isascii()
        assert line[:-1].isprintable()
    parsed = json.loads(json_lines(lambda: AT)("info", {**fields, "event": event}))
    assert (parsed["ts"], parsed["level"], parsed["event"]) == (TS, "info", event)


@given(
    level=st.sampled_from(["info", "error"]),
    event=st.text(),
    fields=st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in {"ts", "level", "event", "exc_info"}),
        st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none(),
    ),
)
def test_a_line_is_the_json_of_our_keys_and_then_the_fields(level: str, event: str, fields: dict[str, Any]) -> None:
    """Byte for byte, whatever its parts were put together from."""
    line = json_lines(lambda: AT)(level, {**fields, "event": event})
    whole = {"ts": TS, "level": level, "event": event, **fields}
    assert line == json.dumps(whole, separators=(",", ":")) + "\n"


def test_the_clock_of_the_lines_goes_on() -> None:
    """Within a second and over it, also backwards."""
    times = iter([0.0, 0.9999, 1.0, 0.5])
    clock = Clock(lambda: next(times))
    assert [clock() for _ in range(4)] == [f"1970-01-01T00:00:0{end}Z" for end in ("0.000", "0.999", "1.000", "0.500")]
