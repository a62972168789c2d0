"""Reads the YAML into frozen, fully checked values; every refusal names its place."""

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
    "Config",
    "ConfigRefused",
    "LogSettings",
    "Problem",
    "Retention",
    "ServerSettings",
    "StoreSettings",
    "TlsFiles",
    "find",
    "json_schema",
    "load",
]
