"""What a URL names as a store, said without the password in it.

Law: pure, and it raises nothing. What cannot be read for certain is refused, because a password that is not encoded
makes another URL of it: then no part may be tried, looked up or shown.
"""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

SQLITE = "sqlite:///"
POSTGRES = ("postgresql://", "postgres://")
_PASSWORD = re.compile(r"(?P<before>//[^:/@]*):(?P<password>.*)@")
"""From the user's colon to the last `@` of all: more than the password rather than less."""
_SECRET = frozenset({"password", "passfile", "sslpassword", "passwd"})


def refusal_of(url: str) -> str | None:
    """Why a URL names no database, and how it is to be written; None where it does. No part of it is repeated."""
    how = "must name a host and a database: postgresql://user:password@host:5432/database"
    try:
        parts = urlsplit(url)
        is_named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return f"{how}, the password percent-encoded"
    if not url.startswith(POSTGRES) or url.count("@") > 1 or "#" in url or not re.fullmatch(r"/[^/@]+", parts.path):
        return f"{how}, the password percent-encoded"
    if not is_named:
        return how
    if _SECRET & {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}:
        return "must have its password before the host, or in PGPASSWORD, not behind the question mark"
    return None


def shown(url: str) -> str:
    """A store's URL without its password, and without what stands behind a question mark."""
    return _PASSWORD.sub(r"\g<before>:***@", url).partition("?")[0] if url.startswith(POSTGRES) else url


def passwords_in(url: str) -> frozenset[str]:
    """The password in a URL, as it stands there and as it is meant; nothing where there is none."""
    found = _PASSWORD.search(url) if url.startswith(POSTGRES) else None
    return frozenset({found["password"], unquote(found["password"])} - {""}) if found else frozenset()
