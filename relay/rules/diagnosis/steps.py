"""What a diagnosis is made of: steps in the order of the relay's checks, and the request that they are about.

Law: values alone. A step says what is, never the secret that it was judged by.
"""

import difflib
from dataclasses import dataclass, field

from relay.model import Headers, IPNetwork, Route, Source, VerifiedRequest
from relay.rules.verification import Refusal


@dataclass(frozen=True, slots=True)
class Posted:
    """A request as somebody reports it: whatever is not known of it is None."""

    headers: Headers
    body: bytes | None = field(repr=False)
    peer: str | None = None
    """Who connected; behind a proxy, the proxy."""

    def values(self, name: str) -> list[str]:
        """The values of all lines of a header, in order."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    def name_like(self, name: str) -> str | None:
        """A header that another one may have been meant by, None where none is like it."""
        names = {key.lower(): key for key, _ in self.headers if key.lower() != name.lower()}
        near = difflib.get_close_matches(name.lower(), names, 1, 0.7)
        return names[near[0]] if near else None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else of the config has a say in what becomes of a request."""

    sources: tuple[Source, ...]
    routes: tuple[Route, ...]
    max_body: int
    trusted_proxies: tuple[IPNetwork, ...] = ()
    hint: str = ""
    """Where the source's provider shows or takes the secret."""

    @property
    def whence(self) -> str:
        """The hint as a sentence."""
        return f"{self.hint[0].upper()}{self.hint[1:]}." if self.hint else ""


@dataclass(frozen=True, slots=True)
class Step:
    """One check: `ok` is None where nothing was judged."""

    name: str
    ok: bool | None
    said: str
    advice: str = ""
    expected: str = ""
    """The value that the proof header would have needed, where that is a digest of these very bytes."""


def unsent(sent: Posted, header: str) -> str:
    """What to say of a header that is missing or empty."""
    near = sent.name_like(header)
    if sent.values(header):
        return f"{header} is there, but empty: the sender's secret is not set."
    if near is not None:
        return f"Is {near} meant? The source reads {header}."
    return f"Either the sender does not send {header}, or it was not given here with --header."


def sentence(*parts: str) -> str:
    """The parts that say something, with spaces between them."""
    return " ".join(part for part in parts if part)


def listed(words: list[str], most: int = 8) -> str:
    """The first words of a list, and how many more there are."""
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])


def spelled(seconds: float) -> str:
    """A span of time in its largest unit that leaves two of them or more: `90 s`, `12 min`, `3 h`, `4 days`."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def numbered(verdict: VerifiedRequest | Refusal, count: int) -> str:
    """Which of several secrets has matched, where that is known; to be put behind the word."""
    index = verdict.key_index if isinstance(verdict, VerifiedRequest) else None
    return f" number {index + 1} of {count}" if index is not None and count > 1 else ""
