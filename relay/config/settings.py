"""The whole configuration as frozen values, ready to run: nothing in it needs another check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from relay.config.fingerprints import Fingerprint
from relay.config.problems import Problem
from relay.model import Enricher, IPNetwork, Route, Secret, Source, Target
from relay.rules.egress import EgressPolicy
from relay.store import Retention
from relay.store.locations import passwords_in, shown


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds; an IPv6 host stands without brackets; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host_name}:{self.port}"

    @property
    def host_name(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its key, PEM; they were loaded once to see that they fit."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The public listener."""

    listen: Address
    max_body: int
    """Bytes."""
    trusted_proxies: tuple[IPNetwork, ...]
    header_timeout: timedelta
    body_timeout: timedelta
    drain_timeout: timedelta
    max_connections: int
    tls: TlsFiles | None


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The admin listener; without a token it is bound to loopback."""

    listen: Address
    token: Secret | None


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where events are kept: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/database`."""

    url: str
    retention: Retention

    @property
    def shown(self) -> str:
        """The URL without a password."""
        return shown(self.url)

    @property
    def passwords(self) -> frozenset[str]:
        """The password that a database asks for, in its forms, where it stands in the URL."""
        return passwords_in(self.url)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "json", "console"]


@dataclass(frozen=True, slots=True)
class Config:
    """One YAML file, whole and checked; `warnings` are to be shown at each start."""

    path: Path
    server: ServerSettings
    admin: AdminSettings
    store: StoreSettings
    egress: EgressPolicy
    log: LogSettings
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    routes: tuple[Route, ...]
    enrichers: tuple[Enricher, ...] = ()
    warnings: tuple[Problem, ...] = ()
    files: Mapping[Path, Fingerprint | None] = field(default_factory=dict, compare=False)
    """What it was read from: the YAML itself, files of secrets, the certificate; as they were then."""
