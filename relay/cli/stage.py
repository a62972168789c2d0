"""What `relay demo` plays with: a config of its own, and targets that look at what they get.

Law: the demonstration proves nothing to itself. Its targets judge the bytes and headers that came over their own
sockets, with the provider's own check, and know nothing of the relay's insides.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml
from aiohttp import web

from relay.model import Headers, NoCheck, ReceivedRequest, Source, VerifiedRequest
from relay.providers import PROVIDERS
from relay.rules.verification import verify

TARGETS = ("crm", "accounting")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One webhook as a target got it."""

    headers: Headers
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """The value of a header, empty where it did not come."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class Witness:
    """A local target that takes everything and remembers it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.arrivals: dict[str, Arrival] = {}
        """By the event's id; the latest attempt."""
        self._runner: web.ServerRunner

    async def open(self) -> None:
        """Listen on a free loopback port."""
        self._runner = web.ServerRunner(web.Server(self._take, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://127.0.0.1:{1}/".format(*self._runner.addresses[0])

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        arrival = Arrival(tuple(request.headers.items()), await request.read())
        self.arrivals[arrival.header("relay-event-id")] = arrival
        return web.Response(text="taken\n")

    async def close(self) -> None:
        """Let go of the port."""
        await asyncio.wait_for(self._runner.cleanup(), 5)


def findings(arrival: Arrival, source: Source, sent: bytes | None) -> tuple[bool, str]:
    """Whether a webhook came as it must, and what was seen; `sent` is None where somebody else posted it."""
    seen: list[str] = []
    is_good = True
    if sent is not None:
        is_good = arrival.body == sent
        seen.append("bytes identical" if is_good else "BYTES CHANGED")
    if source.key_header is not None:
        is_withheld = not arrival.header(source.key_header)
        seen.append("key withheld" if is_withheld else "KEY LEAKED")
        return is_good and is_withheld, ", ".join(seen)
    if isinstance(source.check, NoCheck):
        is_marked = arrival.header("relay-verified") == "false"
        seen.append("marked unsigned" if is_marked else "NOT MARKED UNSIGNED")
        return is_good and is_marked, ", ".join(seen)
    request = ReceivedRequest(arrival.headers, arrival.body, "127.0.0.1")
    is_proven = isinstance(verify(request, source.check, datetime.now(UTC)), VerifiedRequest)
    seen.append("signature valid" if is_proven else "SIGNATURE BROKEN")
    return is_good and is_proven, ", ".join(seen)


def fresh_secret(provider: str) -> str:
    """A secret of the usual form of a provider's; what stands behind a prefix is hex, and base64 as well."""
    return PROVIDERS[provider].secret_prefix + secrets.token_hex(16)


def _source(provider: str) -> dict[str, object]:
    own: dict[str, object] = {"path": f"/hooks/{secrets.token_hex(16)}"}
    return {"provider": provider} | ({"secrets": [fresh_secret(provider)]} if PROVIDERS[provider].signed else own)


def write_config(directory: Path, witnesses: Sequence[Witness]) -> Path:
    """A config with every provider, each routed to all witnesses; secrets are fresh, and so are the paths of those that
    prove nothing."""
    providers = list(PROVIDERS)
    document = {
        "server": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "store": {"url": f"sqlite:///{directory / 'relay.db'}".replace("$", "$$")},
        "sources": {name: _source(name) for name in providers},
        "targets": {witness.name: {"url": witness.url} for witness in witnesses},
        "routes": [{"name": "everything", "from": providers, "to": [witness.name for witness in witnesses]}],
    }
    file = directory / "config.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file
