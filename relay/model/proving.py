"""How a source's requests are proven: its secrets, and the checks that they are for, described by data."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that no repr, log line or traceback shows, and that cannot be pickled into a file or another process."""

    value: bytes = field(repr=False)

    def __str__(self) -> str:
        return "***"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written out")


@dataclass(frozen=True, slots=True)
class ApiKeyCheck:
    """A shared key sent in the clear in one header. It proves the sender, not the body."""

    header: str
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True)
class BearerCheck:
    """`Authorization: Bearer KEY` (RFC 6750, section 2.1)."""

    secrets: tuple[Secret, ...] = ()
    header: str = "Authorization"


@dataclass(frozen=True, slots=True)
class BasicCheck:
    """`Authorization: Basic …` (RFC 7617); the secrets are the passwords of `username`."""

    username: str
    secrets: tuple[Secret, ...] = ()
    header: str = "Authorization"


@dataclass(frozen=True, slots=True)
class ProofList:
    """How a proof header carries several entries, as senders do while they change their secret.

    An entry with the check's prefix is a proof. One with another prefix is of another scheme and proves nothing.
    """

    separator: Literal[" ", ","]
    timestamp_prefix: str = ""
    """What marks the one entry that is the timestamp, such as `t=`; empty where no entry is."""
    many_lines: bool = False
    """Whether the header may be there several times, which makes one list of it (RFC 9110, section 5.3)."""


@dataclass(frozen=True, slots=True)
class HmacCheck:
    """A keyed digest over the raw body, described by data.

    `signed` is a template of `{body}`, `{timestamp}` and `{id}`; with `{timestamp}` the header `timestamp_header`, or
    an entry of `listing`, carries Unix seconds and must lie within `tolerance` of now, both ways. Without `listing`
    the header is one proof.
    """

    header: str
    algorithm: Literal["sha256", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    signed: str = "{body}"
    timestamp_header: str | None = None
    id_header: str | None = None
    tolerance: timedelta = timedelta(minutes=5)
    prefix_optional: bool = False
    listing: ProofList | None = None
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True)
class StandardWebhooksCheck:
    """Standard Webhooks v1: `webhook-id`, `webhook-timestamp`, `webhook-signature` (standardwebhooks.com)."""

    tolerance: timedelta = timedelta(minutes=5)
    secrets: tuple[Secret, ...] = ()
    header: str = "webhook-signature"


@dataclass(frozen=True, slots=True)
class NoCheck:
    """No proof at all; the config must ask for it by name."""


Check = ApiKeyCheck | BearerCheck | BasicCheck | HmacCheck | StandardWebhooksCheck | NoCheck
