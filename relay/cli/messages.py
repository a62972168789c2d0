"""Server-sent events, read as the HTML standard has them (section 9.2.6), from bytes that come in any pieces.

Law: what is not a message is no reason to stop, and what never ends is: a line is bounded.
"""

import codecs
import re
from dataclasses import dataclass

LONGEST = 1024 * 1024
"""Characters of one message."""

_LINE_END = re.compile(r"\r\n|\n|\r(?=.)", re.DOTALL)
"""A carriage return that came last may be half of a line's end."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its kind, its data, and where to go on after it."""

    event: str
    data: str
    id: str | None


class Messages:
    """Makes messages of what came; `last_id` is where to go on after all of them."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest = ""
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None
        self._whole: list[Message] = []
        self.last_id: str | None = None

    def feed(self, part: bytes) -> None:
        """Take in what came.

        Raises:
            ValueError: a message that is longer than any of a relay's.
        """
        self._rest += self._decoder.decode(part)
        *lines, self._rest = _LINE_END.split(self._rest)
        for line in lines:
            if line:
                self._take(line)
            else:
                self._end()
        if len(self._rest) + sum(map(len, self._data)) > LONGEST:
            raise ValueError("a message without an end")

    def _take(self, line: str) -> None:
        """One field; a line that begins with a colon is a comment, and has no field's name."""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id = value

    def _end(self) -> None:
        """An empty line ends a message; one without data still says where to go on."""
        self.last_id = self._id
        if self._data:
            self._whole.append(Message(self._event or "message", "\n".join(self._data), self._id))
        self._event, self._data = "", []

    def taken(self) -> list[Message]:
        """The messages that are whole since the last call."""
        whole, self._whole = self._whole, []
        return whole
