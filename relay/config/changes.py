"""What differs between the config that runs and one that is to run.

Law: pure. What cannot be changed while the relay runs is named and keeps its running value, so that what runs is always
one whole config; everything else is the new one's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from relay.config.checks import is_loopback
from relay.config.problems import KeyPath, key_text
from relay.config.settings import Config
from relay.model import Enricher, Route, Source, Target

_TLS: KeyPath = ("server", "tls")
_TOKEN: KeyPath = ("admin", "token")


@dataclass(frozen=True, slots=True)
class NameChanges:
    """Names of one kind that a reload added, removed or changed, in the order of the YAML."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def shown(self) -> dict[str, list[str]]:
        """As the log and the API show it."""
        return {"added": list(self.added), "removed": list(self.removed), "changed": list(self.changed)}


@dataclass(frozen=True, slots=True)
class Changes:
    """All that a reload changes, and the keys that only a restart would."""

    sources: NameChanges
    targets: NameChanges
    routes: NameChanges
    enrichers: NameChanges = NameChanges()
    needs_restart: tuple[str, ...] = ()

    def shown(self) -> dict[str, object]:
        """As the log and the API show it."""
        return {
            "sources": self.sources.shown(),
            "targets": self.targets.shown(),
            "routes": self.routes.shown(),
            "enrichers": self.enrichers.shown(),
            "needs_restart": list(self.needs_restart),
        }


def changes(running: Config, wanted: Config) -> Changes:
    """What a reload from one config to the other comes to."""
    return Changes(
        sources=_named(running.sources, wanted.sources),
        targets=_named(running.targets, wanted.targets),
        routes=_named(running.routes, wanted.routes),
        enrichers=_named(running.enrichers, wanted.enrichers),
        needs_restart=tuple(key_text(path) for path in _needs_restart(running, wanted)),
    )


def runnable(running: Config, wanted: Config) -> Config:
    """The wanted config with what it cannot change left as it runs."""
    kept = _needs_restart(running, wanted)
    return replace(
        wanted,
        server=replace(
            wanted.server,
            listen=running.server.listen,
            tls=running.server.tls if _TLS in kept else wanted.server.tls,
        ),
        admin=replace(
            wanted.admin,
            listen=running.admin.listen,
            token=running.admin.token if _TOKEN in kept else wanted.admin.token,
        ),
        store=replace(wanted.store, url=running.store.url),
    )


def _needs_restart(running: Config, wanted: Config) -> list[KeyPath]:
    """The keys whose wanted value cannot be taken up now. A token is taken away only from an admin listener that only
    this machine can reach: where the listener stays open until a restart, so does its lock."""
    is_unlocked = running.admin.token is not None and wanted.admin.token is None
    differs: dict[KeyPath, bool] = {
        ("server", "listen"): running.server.listen != wanted.server.listen,
        _TLS: (running.server.tls is None) is not (wanted.server.tls is None),
        ("admin", "listen"): running.admin.listen != wanted.admin.listen,
        _TOKEN: is_unlocked and not is_loopback(running.admin.listen.host),
        ("store", "url"): running.store.url != wanted.store.url,
    }
    return [path for path, does in differs.items() if does]


Named = Source | Target | Route | Enricher


def _named(running: Iterable[Named], wanted: Iterable[Named]) -> NameChanges:
    before, after = ({one.name: one for one in some} for some in (running, wanted))
    return NameChanges(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name, one in after.items() if name in before and one != before[name]),
    )
