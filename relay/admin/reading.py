"""The query of a call, read: each parameter once, of its kind, and none that is unknown.

Law: what is wrong is refused with 400 and the parameter's name; nothing is guessed and nothing is ignored.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from aiohttp import web

from relay.admin.answers import Problem

LARGEST_PAGE = 200
LONGEST = 256
"""Characters of a parameter."""

_SPAN = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LIMIT = re.compile(r"[0-9]{1,9}")
_MARK = re.compile(r"[0-9]{1,18}")

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


class Query:
    """The parameters of one call."""

    def __init__(self, request: web.BaseRequest, *known: str) -> None:
        """Raises `Problem` for a parameter that is not known, or that comes twice."""
        given = request.rel_url.query
        for name in given:
            if name not in known:
                raise Problem(400, f"unknown parameter; known: {', '.join(known) or 'none'}")
            if len(given.getall(name)) > 1:
                raise Problem(400, f"{name} is given twice")
        self._given = given

    def text(self, name: str) -> str | None:
        """Any text; None where it is not given."""
        value = self._given.get(name)
        if value is not None and (not value or len(value) > LONGEST):
            raise Problem(400, f"{name} must have 1 to {LONGEST} characters")
        if value is not None and _SURROGATE.search(value):
            raise Problem(400, f"{name} is not UTF-8")
        return value

    def choice(self, name: str, known: tuple[str, ...]) -> str | None:
        """One of a few words."""
        value = self.text(name)
        if value is not None and value not in known:
            raise Problem(400, f"{name} must be one of {', '.join(known)}")
        return value

    def flag(self, name: str) -> bool:
        """`true` or `false`; False where it is not given."""
        return self.choice(name, ("true", "false")) == "true"

    def limit(self, default: int = 50) -> int:
        """How many objects a page is to have."""
        value = self.text("limit")
        if value is None:
            return default
        if not _LIMIT.fullmatch(value) or not 1 <= int(value) <= LARGEST_PAGE:
            raise Problem(400, f"limit must be 1 to {LARGEST_PAGE}")
        return int(value)

    def mark(self, name: str = "cursor") -> int | None:
        """Where a page begins, as the page before has said."""
        value = self.text(name)
        if value is not None and not _MARK.fullmatch(value):
            raise Problem(400, f"{name} must be the next_cursor of the page before")
        return None if value is None else int(value)

    def moment(self, name: str, now: datetime) -> datetime | None:
        """A time, RFC 3339 or a span back from now such as `24h`."""
        value = self.text(name)
        return None if value is None else moment(value, now, lambda why: Problem(400, f"{name} {why}"))


def moment(value: str, now: datetime, refused: Callable[[str], Exception]) -> datetime:
    """A time, RFC 3339 or a span back from now; raises what `refused` makes of the reason."""
    why = "must be a span back from now (30m, 24h, 7d) or a time (2026-03-01T12:00:00Z)"
    try:
        if span := _SPAN.fullmatch(value):
            return now - timedelta(seconds=int(span[1]) * _UNITS[span[2]])
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:  # before the first year, or after the last
        return _LAST if value.startswith("9999-") else _FIRST
    except ValueError:
        raise refused(why) from None
