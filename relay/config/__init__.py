"""Reads the YAML into frozen, fully checked values; every refusal names its place."""

from relay.config.changes import Changes, NameChanges, changes, runnable
from relay.config.fingerprints import Fingerprint, fingerprint_of
from relay.config.loading import find, load
from relay.config.problems import ConfigRefused, Problem
from relay.config.schema import json_schema
from relay.config.settings import (
    Address,
    AdminSettings,
    Config,
    LogSettings,
    ServerSettings,
    StoreSettings,
    TlsFiles,
)
from relay.store import Retention

__all__ = [
    "Address",
    "AdminSettings",
    "Changes",
    "Config",
    "ConfigRefused",
    "Fingerprint",
    "LogSettings",
    "NameChanges",
    "Problem",
    "Retention",
    "ServerSettings",
    "StoreSettings",
    "TlsFiles",
    "changes",
    "find",
    "fingerprint_of",
    "json_schema",
    "load",
    "runnable",
]
