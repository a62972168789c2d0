"""One file a provider, as data: its check, its event type, its dedupe key, a genuine sample, a test vector.

Law: a new provider is one new file in this package that sets `PROVIDER`; nothing else is edited. Providers know the
model alone, and the two modules of what they share: `reading` for their naming rules, `sampling` for their samples.
Their naming rules are total: no content of a body makes them raise, it only leaves a name out, because an authentic
request is never refused for its content.
"""

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from relay.model import Provider

_MODULES = (import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
_FOUND = (getattr(module, "PROVIDER", None) for module in _MODULES)

PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {found.name: found for found in _FOUND if isinstance(found, Provider)}
)
"""Every provider by its name, as the YAML calls it."""
