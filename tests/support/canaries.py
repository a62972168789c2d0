"""Unmistakable secrets, the ways in which an echo may spell them, and the search for them."""

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.scripted_target import closed_port


def canary(name: str) -> str:
    """A secret that stands nowhere else, and looks like one."""
    return f"cNry0{name.replace('_', '')}9qZx7WvB3"


NAMES = """
key key_old basic bearer hmac standard path file default admin in_path in_query header header_other templated
t_bearer t_basic t_key t_query t_hmac t_client t_token t_sign t_sign_old proxy redirect slow
e_bearer e_path e_header e_provider e_key fetched rotated stranger
""".split()  # noqa: SIM905 - words read better as words
C = {name: canary(name) for name in NAMES}
STANDARD = b64encode(C["standard"].encode()).decode()
SIGN = b64encode(C["t_sign"].encode()).decode()
ALL = tuple(C.values())


def sections(folder: Path, echo: str, tokens: str, proxy: str, secure: str) -> dict[str, Any]:
    """A config in which every key that can hold a secret does."""
    (folder / "secret.txt").write_text(C["file"] + "\n")
    (folder / "secret.txt").chmod(0o600)

    def source(verify: Any, *secrets: str, **more: Any) -> dict[str, Any]:
        return {"provider": "custom", "verify": verify, "secrets": list(secrets)} | more

    def target(path: str = "hooks", **more: Any) -> dict[str, Any]:
        return {"url": f"{echo}/{path}", "retry": {"schedule": ["1h"]}} | more

    def auth(scheme: str, **keys: str) -> dict[str, Any]:
        return {"auth": {"scheme": scheme} | keys}

    key = {"scheme": "api_key", "header": "X-Key"}
    tls = {"ca": str(folder / "ca.pem"), "cert": str(folder / "me.crt"), "key": str(folder / "me.key")}
    oauth = {"token_url": f"{tokens}/token/{C['t_token']}", "client_id": "me", "client_secret": C["t_client"]}
    targets = {
        "path": target(f"in/{C['in_path']}?t={C['in_query']}"),
        "header": target(headers={"Authorization": f"Bearer {C['header']}", "X-Other": C["header_other"]}),
        "templated": target(f"{C['templated']}/{{{{ id }}}}", headers={"X-Token": C["templated"] + "{{ id }}"}),
        "bearer": target(**auth("bearer", token=C["t_bearer"])),
        "basic": target(**auth("basic", username="me", password=C["t_basic"])),
        "key": target(**auth("api_key", header="X-Shop", value=C["t_key"])),
        "query": target(**auth("api_key", query="k", value=C["t_query"])),
        "digest": target(**auth("hmac", header="X-Sig", algorithm="sha256", secret=C["t_hmac"])),
        "oauth": target(**auth("oauth2", **oauth)),
        "oauth-in-body": target(**auth("oauth2", **oauth | {"client_auth": "body", "scope": "refuse"})),
        "signed": target(sign={"secrets": [f"whsec_{SIGN}", C["t_sign_old"]]}),
        "behind": target(proxy={"url": proxy, "username": "me", "password": C["proxy"]}),
        "redirected": target(f"redirect/{C['redirect']}"),
        "slow": target(f"slow/{C['slow']}", timeout="200ms"),
        "cut": target(f"cut/{C['in_path']}"),
        "nobody": {"url": f"http://127.0.0.1:1/{C['in_path']}", "retry": {"schedule": ["1h"]}},
        "secure": {"url": f"{secure}/{C['in_path']}", "retry": {"schedule": ["1h"]}, "tls": tls},
        "distrusted": {"url": f"{secure}/{C['in_path']}", "retry": {"schedule": ["1h"]}},
        "picky": target(f"fine/{C['in_path']}", success_when="ok == `true`"),
        "enriched": target("fine"),
        "enriched-too": target("fine"),
        "enriched-thrice": target("fine"),
        "fine": target(f"fine/{C['in_path']}"),
    }
    enrichers = {
        "bearer": {"url": f"{echo}/{C['e_path']}", "headers": {"X-Api-Key": C["e_header"]}}
        | auth("bearer", token=C["e_bearer"]),
        "known": {"provider": "plugandpay", "base_url": f"{echo}/pp", "token": C["e_provider"]},
        "query": {"url": f"{echo}/x/{{{{ id }}}}"} | auth("api_key", query="q", value=C["e_key"]),
    }
    simple = [name for name in targets if not name.startswith("enriched")]
    return {
        "server": {"listen": f"127.0.0.1:{closed_port()}"},
        "admin": {"listen": f"127.0.0.1:{closed_port()}", "token": C["admin"]},
        "store": {"url": f"sqlite:///{folder}/relay.db"},
        "log": {"level": "debug", "format": "json"},
        "sources": {
            "key": source(key, C["key"], C["key_old"], dedupe_key="id", event_type="type"),
            "basic": source({"scheme": "basic", "username": "me"}, C["basic"]),
            "bearer": source({"scheme": "bearer"}, C["bearer"]),
            "hmac": source({"scheme": "hmac", "header": "X-Sig", "algorithm": "sha256"}, C["hmac"]),
            "standard": source({"scheme": "standard_webhooks"}, f"whsec_{STANDARD}"),
            "file": source(key, f"${{file:{folder}/secret.txt}}"),
            "default": source(key, f"${{NOT_SET_AT_ALL:-{C['default']}}}"),
            "hidden": {"provider": "plugandpay_v1", "path": f"/in/{C['path']}"},
        },
        "targets": targets,
        "enrichers": enrichers,
        "routes": [
            {"name": "all", "from": ["key"], "to": simple},
            {"name": "a", "from": ["key"], "enrich": "bearer", "to": "enriched"},
            {"name": "b", "from": ["key"], "enrich": "known", "to": "enriched-too"},
            {"name": "c", "from": ["key"], "enrich": "query", "to": "enriched-thrice"},
        ],
    }


def spellings(secret: str) -> dict[str, str]:
    """The codes in which a target may repeat what it was sent."""
    raw = secret.encode()
    return {
        "as it is": secret,
        "upper case": secret.upper(),
        "lower case": secret.lower(),
        "base64": b64encode(raw).decode(),
        "base64 within more": b64encode(b"me:" + raw + b"/end").decode(),
        "base64 within more, by one": b64encode(b"m:" + raw + b"/end").decode(),
        "base64 for URLs": urlsafe_b64encode(b"user:" + raw).decode(),
        "hex": raw.hex(),
        "percent": "".join(f"%{byte:02X}" for byte in raw),
        "percent where it must": quote(secret, safe=""),
        "JSON": json.dumps(secret),
        "JSON escapes": "".join(f"\\u{ord(letter):04x}" for letter in secret),
        "HTML": html.escape(secret),
    }


def _traces(secret: str) -> tuple[str, ...]:
    """What is left of a secret, in any of these codes, when it was not taken out: less than the whole is found too."""
    core = secret[2:-2]
    coded = [b64encode(b"\0" * before + secret.encode()).decode()[4:-4] for before in range(3)]
    raw = secret.encode()
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in core)
    return tuple(
        text.lower()
        for text in (
            *(core, raw.hex()[4:-4], "".join(f"%{byte:02x}" for byte in core.encode()), escaped),
            *coded,
            *(text.replace("+", "-").replace("/", "_") for text in coded),
        )
    )


def found(secrets: Iterable[str], text: str) -> list[tuple[str, str]]:
    """The secrets of which a text holds anything, each with what stands around it."""
    folded = text.lower()
    hits: list[tuple[str, str]] = []
    for secret in secrets:
        for trace in _traces(secret):
            if (at := folded.find(trace)) >= 0:
                hits.append((secret, re.sub(r"\s+", " ", text[max(0, at - 60) : at + len(trace) + 20])))
                break
    return hits
