"""What spans sections: names, paths, listeners, limits of the process, and the whole `Config` in the end."""

import errno
import ipaddress
import os
import resource
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relay.config import certificates, credentials, groups, keys, sources, targets, values
from relay.config import enrichers as enricher_sections
from relay.config import routes as route_sections
from relay.config.expansion import Expanded
from relay.config.fingerprints import fingerprint_of
from relay.config.problems import KeyPath, Refused, Report
from relay.config.schema import DocumentSection, EgressSection, ServerSection, StoreSection
from relay.config.settings import (
    Address,
    AdminSettings,
    Config,
    LogSettings,
    ServerSettings,
    StoreSettings,
    TlsFiles,
)
from relay.model import RELAY, Enricher, IPNetwork, Route, Source, Target
from relay.rules.crowding import descriptors_needed
from relay.rules.egress import EgressPolicy, refusal
from relay.rules.secrets import looks_secret
from relay.store import Retention
from relay.store.locations import refusal_of

RESERVED_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
DRAIN_WITHIN_EXIT = 20
"""Seconds; a longer drain exceeds the 25 s within which a stop is promised."""

_V4_METADATA_PREFIX = 16
_V6_METADATA_PREFIX = 32
"""No network shorter than this is closed as a whole whatever `allow` says."""

_SQLITE = "sqlite:///"


def config(document: DocumentSection, plain: Mapping[str, Any], path: Path, report: Report) -> Config:
    """The whole configuration; it is fit to run only when the report has no problem.

    `plain` is the document as it was written, so that a name is known although its section could not be read.
    """
    egress = _egress(document.egress, report)
    server = _server(document.server, report)
    admin = _admin(document, report)
    read_sources = _sources(document, report)
    read_targets = _targets(document, egress, server.listen, report)
    enrichers = _enrichers(document, egress, server.listen, report)
    _check_names(plain, report)
    routes = _routes(document, plain, read_sources, report)
    _check_listeners(server.listen, admin.listen, report)
    _check_descriptors(document, report)
    _warn_unused(plain, routes, report)
    _warn_readable_secrets(document, path, report)
    return Config(
        path=path,
        server=server,
        admin=admin,
        store=_store(document.store, report),
        egress=egress,
        log=LogSettings(document.log.level, document.log.format),
        sources=read_sources,
        targets=read_targets,
        routes=routes,
        enrichers=enrichers,
        warnings=report.warnings,
        files=report.files,
    )


def _egress(section: EgressSection, report: Report) -> EgressPolicy:
    for index, network in enumerate(section.allow):
        if reason := _never_opened(network):
            report.refuse(("egress", "allow", index), f"{reason}, never allowed")
    return EgressPolicy(section.policy, tuple(section.allow), tuple(section.deny))


def _never_opened(network: IPNetwork) -> str | None:
    """Why a network stays closed although it is allowed; only what is closed from its first to its last address."""
    opened = EgressPolicy(allow=(network,))
    first, last = network.network_address, network.broadcast_address
    is_small = network.prefixlen >= (_V4_METADATA_PREFIX if network.version == 4 else _V6_METADATA_PREFIX)
    return refusal(str(first), opened) and refusal(str(last), opened) if is_small else None


def _server(section: ServerSection, report: Report) -> ServerSettings:
    for index, network in enumerate(section.trusted_proxies):
        if network.prefixlen == 0:
            report.refuse(("server", "trusted_proxies", index), "would let any client forge its address")
    if section.drain_timeout.total_seconds() > DRAIN_WITHIN_EXIT:
        message = f"longer than {DRAIN_WITHIN_EXIT}s: a stop may take more than 25s, and a supervisor may kill it"
        report.warn(("server", "drain_timeout"), message)
    return ServerSettings(
        listen=section.listen,
        max_body=section.max_body,
        trusted_proxies=tuple(section.trusted_proxies),
        header_timeout=section.header_timeout,
        body_timeout=section.body_timeout,
        drain_timeout=section.drain_timeout,
        max_connections=section.max_connections,
        tls=_tls(section, report),
    )


def _tls(section: ServerSection, report: Report) -> TlsFiles | None:
    if section.tls is None:
        return None
    files = TlsFiles(Path(section.tls.cert), Path(section.tls.key))
    report.files |= {file: fingerprint_of(file) for file in (files.cert, files.key)}
    try:
        certificates.checked(section.tls.cert, section.tls.key, warn=report.warner(("server", "tls", "cert")))
    except Refused as refused:
        report.refuse(("server", "tls"), str(refused))
    if credentials.is_readable_by_all(files.key):
        report.warn(("server", "tls", "key"), "every user of this machine can read this key; chmod 600 it")
    return files


def _admin(document: DocumentSection, report: Report) -> AdminSettings:
    path: KeyPath = ("admin", "token")
    token = None
    try:
        token = keys.admin_token(document.admin.token)
    except Refused as refused:
        report.refuse(path, str(refused))
    if token is None and not is_loopback(document.admin.listen.host):
        listen = document.admin.listen
        report.refuse(path, f"missing; it must be set, since admin.listen {listen} is not on loopback")
    return AdminSettings(document.admin.listen, token)


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def _check_listeners(server: Address, admin: Address, report: Report) -> None:
    if server.port and server.port == admin.port and not report.is_broken(("server", "listen")):
        report.refuse(("admin", "listen"), f"port {admin.port} is the public listener's; take another one")


def _store(section: StoreSection, report: Report) -> StoreSettings:
    try:
        home = _check_store_url(section.url)
        if home is not None and not os.access(home, os.W_OK):
            shown = "" if isinstance(section.url, Expanded) else f" {home}"
            report.warn(("store", "url"), f"directory{shown} cannot be written by this user")
    except Refused as refused:
        report.refuse(("store", "url"), str(refused))
    kept = section.retention
    return StoreSettings(str(section.url), Retention(delivered=kept.delivered, dead=kept.dead, max_size=kept.max_size))


def _check_database_url(url: str) -> None:
    if refusal := refusal_of(url):
        raise Refused(refusal)
    if find_spec("asyncpg") is None:
        raise Refused("needs PostgreSQL's driver: pip install 'relay-gateway[postgres]'")


def _check_store_url(url: str) -> Path | None:
    """The directory of the file that the URL names, None for a database. Raises `Refused` unless it names one in a
    directory that exists, or a database whose driver is here. The store itself checks the rest."""
    if url.startswith(("postgresql:", "postgres:")):
        _check_database_url(url)
        return None
    if not url.startswith(_SQLITE):
        raise Refused("must be sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database")
    name = url.removeprefix(_SQLITE)
    if not name or name == ":memory:" or "?" in name or "#" in name:
        raise Refused("must name a file: sqlite:///relative.db or sqlite:////absolute.db")
    file, above = (name, f" {Path(name).parent}") if not isinstance(url, Expanded) else ("the expanded value", "")
    home = Path(name).absolute().parent
    try:
        if Path(name).is_dir():
            raise Refused(f"{file} is a directory; name a file in it")
        if not home.is_dir():
            raise Refused(f"directory{above} does not exist")
    except OSError as error:
        if error.errno != errno.EIO:  # a disk that fails is no fault of the config: the store will say so
            raise Refused(f"cannot look at {file}: {error.strerror}") from None
    return home


def _sources(document: DocumentSection, report: Report) -> tuple[Source, ...]:
    built = [sources.source(name, section, report) for name, section in document.sources.items()]
    owners: dict[str, str] = {}
    for name, section in document.sources.items():
        path = section.path or f"/hooks/{name}"
        same = path.rstrip("/").lower()
        place: KeyPath = ("sources", name, "path") if section.path else ("sources", name)
        if same in RESERVED_PATHS:
            report.refuse(place, f"path {path} is reserved")
        elif same in owners:
            report.refuse(place, f"sources.{owners[same]} and sources.{name} share {_path_shown(path)}")
        owners.setdefault(same, name)
    return tuple(source for source in built if source is not None)


def _path_shown(path: str) -> str:
    """A path as a message may show it: one that nobody is to guess stands in the YAML alone."""
    return "one path" if any(map(looks_secret, path.split("/"))) else f"path {path}"


def _targets(document: DocumentSection, egress: EgressPolicy, listen: Address, report: Report) -> tuple[Target, ...]:
    built = (
        targets.target(name, section, egress=egress, listen=listen, report=report)
        for name, section in document.targets.items()
    )
    rates = groups.rates(document.targets, report)
    return tuple(replace(one, rate=rates.get(one.limit_group or "", one.rate)) for one in built if one is not None)


def _names(plain: Mapping[str, Any], key: str) -> Collection[str]:
    written = plain.get(key)
    return tuple(written) if isinstance(written, dict) else ()


def _enrichers(
    document: DocumentSection, egress: EgressPolicy, listen: Address, report: Report
) -> tuple[Enricher, ...]:
    built = (
        enricher_sections.enricher(name, section, egress=egress, listen=listen, report=report)
        for name, section in document.enrichers.items()
    )
    return tuple(enricher for enricher in built if enricher is not None)


def _check_names(plain: Mapping[str, Any], report: Report) -> None:
    for key, what in (("sources", "a source"), ("targets", "a target"), ("enrichers", "an enricher")):
        names = _names(plain, key)
        if not names and key != "enrichers":
            report.refuse((key,), f"needs at least one {key[:-1]}")
        for name in names:
            if not values.NAME.fullmatch(name):
                report.refuse(
                    (key, name),
                    f"the name of {what} must match {values.NAME.pattern}",
                )
            elif key == "sources" and name == RELAY:
                report.refuse((key, name), 'the name "relay" is reserved for the relay\'s own events')


def _routes(
    document: DocumentSection, plain: Mapping[str, Any], read_sources: tuple[Source, ...], report: Report
) -> tuple[Route, ...]:
    key_headers = {source.name: source.key_header for source in read_sources}
    known = route_sections.Known(
        _names(plain, "sources"), _names(plain, "targets"), _names(plain, "enrichers"), key_headers
    )
    routes: list[Route] = []
    seen: set[str] = set()
    for index, section in enumerate(document.routes):
        if section is None:
            continue
        route = route_sections.route(index, section, known=known, report=report)
        if route.name in seen:
            report.refuse(("routes", index, "name"), f"another route is named {values.shown(section.name)}")
        seen.add(route.name)
        routes.append(route)
    return tuple(routes)


def _check_descriptors(document: DocumentSection, report: Report) -> None:
    if not document.targets:
        return
    needed = descriptors_needed(section.concurrency for section in document.targets.values())
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed > limit:
        hungriest = max(document.targets, key=lambda name: document.targets[name].concurrency)
        message = f"all targets together need {needed} file descriptors, limit is {limit} (ulimit -n)"
        report.refuse(("targets", hungriest, "concurrency"), message)


def _warn_unused(plain: Mapping[str, Any], routes: tuple[Route, ...], report: Report) -> None:
    if not routes:
        report.warn(("routes",), "no routes: events are stored and go nowhere")
        return
    heard = frozenset[str]().union(*(route.sources for route in routes))
    reached = frozenset(target for route in routes for target in route.targets)
    for name in _names(plain, "sources"):
        if name not in heard:
            report.warn(("sources", name), "no route takes its events")
    for name in _names(plain, "targets"):
        if name not in reached:
            report.warn(("targets", name), "no route leads here")
    asked = frozenset(route.enricher for route in routes)
    for name in _names(plain, "enrichers"):
        if name not in asked:
            report.warn(("enrichers", name), "no route asks it (enrich)")


def _warn_readable_secrets(document: DocumentSection, path: Path, report: Report) -> None:
    """Warn once when secrets stand in a file that every user of the machine can read."""
    inline: list[KeyPath] = [
        ("sources", name, "secrets", index)
        for name, section in document.sources.items()
        for index, secret in enumerate(section.secrets)
        if secret is not None and secret.inline
    ]
    for name, target in document.targets.items():
        inline += credentials.inline_secrets(target.auth, target.sign, target.proxy, ("targets", name))
        inline += credentials.inline_in_texts(target.headers, target.url, ("targets", name))
    inline += enricher_sections.inline_secrets(document.enrichers)
    token = document.admin.token
    places: list[KeyPath] = [*inline, *([("admin", "token")] if token and token.text and token.inline else [])]
    if places and credentials.is_readable_by_all(path):
        report.warn(
            places[0], "secret in a file that every user of this machine can read; use ${NAME} or ${file:/path}"
        )
