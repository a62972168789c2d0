"""The set-up of all logging: structlog for us, and a hand on what libraries say.

Law: one `start_logging` rules every logger of the process, also those made before it, and a later one takes over from
it. Input never becomes a key: it is a value, and `clip` bounds it. No line holds a traceback's locals.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import IO, Any

import structlog
from aiohttp.http import HttpProcessingError
from aiohttp.web import RequestPayloadError

from relay.telemetry.lines import Entry, Renderer, clip, console_lines, describe, json_lines
from relay.telemetry.pipe import LogPipe

__all__ = ["FORMATS", "LEVELS", "LogPipe", "RelayLogger", "clip", "set_format", "set_level", "start_logging"]

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
FORMATS = ("auto", "json", "console")


class _Outlet:
    """Where all loggers end; `start_logging` changes what it holds, so that cached loggers follow."""

    def __init__(self) -> None:
        self.threshold = 0
        self.msg: Callable[[str], None] = lambda _: None
        """Takes a line, as structlog calls it."""
        self.render: Renderer = json_lines(time.time)
        self.renderer: Callable[[str], Renderer] = lambda _: self.render


_OUTLET = _Outlet()


def _render(_logger: Any, level: str, entry: Any) -> Any:
    return _OUTLET.render(level, entry)


_PROCESSORS: list[Any] = [_render]


class RelayLogger(structlog.BoundLoggerBase):
    """Our bound logger: an event's name, then fields. A field may have any name, also `event` and `level`.

    structlog's own filtering logger fixes its level when it is first used and raises on a field named `event`; this
    one asks the outlet, so a reload changes the level of every logger at once.
    """

    def debug(self, event: str, /, **fields: Any) -> None:
        """Tell what only somebody who looks for a fault wants to know."""
        if _OUTLET.threshold <= 10:
            self._tell("debug", event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """Tell of a unit of work."""
        if _OUTLET.threshold <= 20:
            self._tell("info", event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Tell what somebody should look at some time."""
        if _OUTLET.threshold <= 30:
            self._tell("warning", event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        """Tell what somebody should look at now; `exc_info=error` adds the exception."""
        if _OUTLET.threshold <= 40:
            self._tell("error", event, fields)

    def critical(self, event: str, /, **fields: Any) -> None:
        """Tell what ends the process."""
        self._tell("critical", event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Tell of an error with the exception that is being handled."""
        fields.setdefault("exc_info", sys.exc_info())
        self.error(event, **fields)

    def _tell(self, level: str, event: str, fields: Entry) -> None:
        entry: Any = {**self._context, **fields} if self._context else fields
        if "event" in entry:
            entry["event_"] = entry.pop("event")
        entry["event"] = event
        try:
            for processor in self._processors:
                entry = processor(self._logger, level, entry)
        except structlog.DropEvent:
            return
        self._logger.msg(entry)


def _own_logger() -> RelayLogger:
    return RelayLogger(_OUTLET, _PROCESSORS, {})


def set_level(level: str) -> None:
    """Change the level of every logger, as a reload does. Raises ValueError for a level that is not in `LEVELS`."""
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}")
    _OUTLET.threshold = LEVELS[level]


def set_format(format: str) -> None:  # noqa: A002 - the YAML's word
    """Change the format of every logger, as a reload does. Raises ValueError for a format that is not in `FORMATS`."""
    _OUTLET.render = _OUTLET.renderer(format)


def _message(record: logging.LogRecord) -> str:
    """The first line of a record's message, clipped."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - a library's broken format string
        text = str(record.msg)
    return clip(text.partition("\n")[0])


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


class _Forwarded(logging.Handler):
    """Turns the records of libraries into lines of ours."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._log = _own_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record: `asyncio.error` or `library.warning`, say."""
        fields: Entry = {"message": _message(record), "logger": record.name}
        error = _error(record)
        if error is not None:
            fields["exc_info"] = error
        if record.levelno >= logging.ERROR:
            self._log.error(f"{self._prefix}.error", **fields)
        else:
            self._log.warning(f"{self._prefix}.warning", **fields)


class _Malformed(logging.Handler):
    """Counts the requests that aiohttp's parser refused, and tells of one a second; a flood of them is no news.

    The parser's message repeats what was sent, which may be a secret in a broken header, so only its kind is told.
    """

    def __init__(self, pipe: LogPipe, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._pipe = pipe
        self._monotonic = monotonic
        self._told_at: float | None = None
        self._untold = 0
        self._log = _own_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Sort out one record of the server: malformed input, a client that went away, or a fault of our own."""
        error = _error(record)
        match error:
            case HttpProcessingError() | RequestPayloadError():
                self._pipe.malformed += 1
                self._untold += 1
                self._tell_malformed(error)
            case ConnectionError():
                self._log.debug("http.client_gone", reason=type(error).__name__)
            case _ if record.levelno >= logging.WARNING:
                fields: Entry = {} if error is None else {"exc_info": error}
                self._log.error("http.error", message=_message(record), **fields)

    def _tell_malformed(self, error: BaseException) -> None:
        now = self._monotonic()
        if self._told_at is not None and now - self._told_at < 1:
            return
        self._log.warning("http.malformed", reason=type(error).__name__, count=self._untold)
        self._told_at, self._untold = now, 0


def _hand_over(name: str | None, handlers: Sequence[logging.Handler], level: int) -> Callable[[], None]:
    """Give a stdlib logger our handler alone; returns what gives the old ones back."""
    logger = logging.getLogger(name)
    old = (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = list(handlers), False
    logger.setLevel(level)

    def undo() -> None:
        logger.handlers, logger.propagate = old[0], old[2]
        logger.setLevel(old[1])

    return undo


def _take_hooks() -> Callable[[], None]:
    """Have unhandled exceptions told in one line; returns what gives the old hooks back."""
    log = _own_logger()
    old = (sys.excepthook, threading.excepthook)

    def on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            old[0](kind, error, trace)
        else:
            log.critical("relay.crashed", exc_info=error)

    def on_thread_crash(args: threading.ExceptHookArgs) -> None:
        reason = args.exc_type.__name__ if args.exc_value is None else describe(args.exc_value)
        name = None if args.thread is None else args.thread.name
        log.error("thread.crashed", thread=name, reason=reason, exc_info=args.exc_value)

    sys.excepthook, threading.excepthook = on_crash, on_thread_crash

    def undo() -> None:
        sys.excepthook, threading.excepthook = old

    return undo


def _renderer(format: str, *, terminal: bool, now: Callable[[], float], environ: Mapping[str, str]) -> Renderer:  # noqa: A002
    if format not in FORMATS:
        raise ValueError(f"unknown log format {format!r}")
    if format == "json" or (format == "auto" and not terminal):
        return json_lines(now)
    return console_lines(now, colours=terminal and not environ.get("NO_COLOR"))


def start_logging(
    level: str,
    format: str,  # noqa: A002 - the YAML's word
    stream: IO[Any],
    *,
    now: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    environ: Mapping[str, str] = os.environ,
) -> LogPipe:
    """Set up logging for the whole process, to `stream`; the pipe that comes back is to be closed at the end.

    `format` is `json`, `console`, or `auto`: console on a terminal, else JSON. Colours need a terminal and obey
    NO_COLOR. Raises ValueError for an unknown level or format.
    """
    renderer = partial(_renderer, terminal=stream.isatty(), now=now, environ=environ)
    render = renderer(format)
    set_level(level)
    pipe = LogPipe(stream)
    _OUTLET.msg, _OUTLET.render, _OUTLET.renderer = pipe.put, render, renderer
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=RelayLogger,
        context_class=dict,
        logger_factory=lambda *_: _OUTLET,
        cache_logger_on_first_use=True,
    )
    log = _own_logger()
    pipe.tell_dropped = lambda count, why: log.warning("relay.log_dropped", count=count, reason=why)
    pipe.at_close(_hand_over(None, [_Forwarded("library")], logging.WARNING))
    pipe.at_close(_hand_over("asyncio", [_Forwarded("asyncio")], logging.WARNING))
    pipe.at_close(_hand_over("aiohttp.server", [_Malformed(pipe, monotonic)], logging.DEBUG))
    pipe.at_close(_take_hooks())
    return pipe
