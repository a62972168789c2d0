"""The configs that the tests of the listeners run on."""

from typing import Any

import yaml

SIGNED = {"scheme": "hmac", "header": "X-Signature", "algorithm": "sha256", "prefix": "sha256="}

SOURCES: dict[str, dict[str, Any]] = {
    "xoxoday": {"provider": "xoxoday", "secrets": ["${API_KEY}"]},
    "plugandpay": {"provider": "plugandpay", "secrets": ["${WEBHOOK_KEY}"]},
    "key": {"provider": "custom", "verify": {"scheme": "api_key", "header": "X-Key"}, "secrets": ["${SECRET}"]},
    "signed": {
        "provider": "custom",
        "verify": SIGNED,
        "secrets": ["${SECRET}", "${OLD_SECRET}"],
        "event_type": "type",
        "dedupe_key": "id",
    },
    "open": {"provider": "custom", "verify": "none", "event_type": "type", "dedupe_key": "id"},
}


def document(sources: dict[str, Any] | None = None, **top: Any) -> str:
    """A config: these sources, one route from all of them to one target, free ports; `top` adds or replaces keys."""
    chosen = SOURCES if sources is None else sources
    whole = {
        "server": {"listen": "127.0.0.1:0"} | top.pop("server", {}),
        "admin": {"listen": "127.0.0.1:0", "token": "${TOKEN}"} | top.pop("admin", {}),
        "store": {"url": "${STORE}"},
        "sources": chosen,
        "targets": {"crm": {"url": "${TARGET}"}},
        "routes": [{"name": "all", "from": list(chosen), "to": ["crm"]}],
    }
    return yaml.safe_dump(whole | top, sort_keys=False)
