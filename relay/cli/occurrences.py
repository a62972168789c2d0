"""What happened, as a line for a person: `relay tail` on a terminal.

Law: one line for one thing, within the width, and nothing that came from outside reaches the terminal unescaped. What
does not fit is cut where the least is lost: an event's id is whole where it is first seen.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from relay.cli.terminal import safe

KIND = 9
"""Columns of the word that says what happened; a few words are longer."""
SHORT_ID = 6
"""The last letters of an id: enough to find it again among its neighbours."""
NARROWEST = 16
"""Columns that the words must have beside an id; with less it is left out."""

_COLOURS = {"accepted": "cyan", "unrouted": "yellow", "delivered": "green", "throttled": "yellow"}


def day(told: Mapping[str, Any]) -> str:
    """The day on which it happened, UTC, as in the log and in every other view."""
    return datetime.fromisoformat(told["at"]).strftime("%A, %Y-%m-%d")


def line(told: Mapping[str, Any], width: int | None) -> str:
    """One line for one object of the stream, cut to the width where there is one."""
    word, words, event_id = _told(told)
    head = f"{_clock(told['at'])}  {word.ljust(KIND)}  "
    room = None if width is None else width - len(head)
    painted = click.style(word.ljust(KIND), fg=_COLOURS.get(word, "red"))
    return f"{click.style(_clock(told['at']), fg='bright_black')}  {painted}  {_body(words, event_id, room)}"


def _told(told: Mapping[str, Any]) -> tuple[str, list[str], str]:
    """The word for what happened, what there is to say of it, and the event's id, if there is one."""
    match told["kind"]:
        case "accepted":
            targets = ", ".join(map(str, told["targets"]))
            goes = f"-> {targets}" if targets else ""
            return ("accepted" if targets else "unrouted"), [told["source"], told["type"], goes], told["event_id"]
        case "attempted":
            return str(told["outcome"]), _attempt(told), told["event_id"]
        case "refused":
            whence = f"from {told['remote']}" if told["remote"] else ""
            return "refused", [told["source"], str(told["status"]), told["reason"], whence, told["detail"]], ""
    return str(told["kind"]), [], ""


def _attempt(told: Mapping[str, Any]) -> list[str]:
    said = told["reason"] if told["reason"] != f"status {told['status']}" else ""
    follows = {"held": "held", "dead": "dead: given up"}.get(told["state"], "")
    if told["next_attempt_at"]:
        follows = f"next {_clock(told['next_attempt_at'])}"
    status = "" if told["status"] is None else str(told["status"])
    number = f"#{told['attempt']}"
    return [f"-> {told['target']}", number, status, f"{told['duration_ms']}ms", follows, said]


def _body(words: list[str], event_id: str, room: int | None) -> str:
    """The words and the id: both whole where there is room, else the id of an attempt short and the words cut."""
    text = "  ".join(safe(str(word)) for word in words if word)
    shown = safe(str(event_id))
    if room is None or len(text) + len(shown) + 2 <= room:
        gap = 2 if room is None else room - len(text) - len(shown)
        return f"{text}{' ' * gap}{shown}" if shown else text
    if text.startswith("->"):
        shown = f"…{shown[-SHORT_ID:]}"
    left = room - len(shown) - 2 if shown else room
    if left < NARROWEST:
        shown, left = "", room
    return f"{_cut(text, left).ljust(left)}  {shown}" if shown else _cut(text, left)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(0, room - 1)]}…"


def _clock(at: str) -> str:
    return at[11:19]
