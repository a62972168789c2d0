"""A token endpoint of OAuth 2.0 on loopback, and a target that takes what it issues.

Law: it counts what it was asked for, and a test decides what it answers; a token is good until it is revoked.
"""

import asyncio
import contextlib
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote_plus

from relay.model import OAuth2Client, Secret
from tests.support.scripted_target import Received, ScriptedServer, raw, scripted, status

CLIENT_ID, CLIENT_SECRET = "client a+b", "client-secret-0123:%/ü"

Answer = Callable[["TokenEndpoint"], Any]


def token_answer(**fields: Any) -> Any:
    """Answers with a fresh token, and with these fields; one that is None is left out."""

    def answer(endpoint: "TokenEndpoint") -> Any:
        token = f"token-{len(endpoint.requests)}-0123456789"
        endpoint.good.add(token)
        whole = {"access_token": token, "token_type": "Bearer", "expires_in": 3600} | fields
        body = json.dumps({name: value for name, value in whole.items() if value is not None})
        return status(200, "Content-Type: application/json", body=body.encode())

    return answer


def refusal(code: int, **fields: Any) -> Answer:
    """Answers as RFC 6749, section 5.2, has it."""
    return lambda endpoint: status(code, "Content-Type: application/json", body=json.dumps(fields).encode())


def silence(endpoint: "TokenEndpoint") -> Any:
    """Never answers."""
    return raw(then="hang")


@dataclass
class TokenEndpoint:
    """A running endpoint; `answer` may be changed at any time."""

    answer: Answer = field(default_factory=token_answer)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing is answered before it is set."""
    requests: list[Received] = field(default_factory=list)
    good: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/token"

    def client(self, **other: Any) -> OAuth2Client:
        """A client that it knows."""
        known: dict[str, Any] = {
            "token_url": self.url,
            "client_id": CLIENT_ID,
            "client_secret": Secret(CLIENT_SECRET.encode()),
            "scope": "sales read",
        }
        return OAuth2Client(**(known | other))

    def forms(self) -> list[dict[str, str]]:
        """What was asked, form by form."""
        return [{key: one for key, (one,) in parse_qs(asked.body.decode()).items()} for asked in self.requests]

    async def serve(self, request: Received, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        self.requests.append(request)
        await self.gate.wait()
        await self.answer(self)(request, writer)

    async def protected(self, request: Received, writer: asyncio.StreamWriter) -> None:
        """A target that takes a good token, and nothing else."""
        given = dict(request.headers).get("Authorization", "")
        await (status(200) if given.removeprefix("Bearer ") in self.good else status(401))(request, writer)


def basic_of(request: Received) -> tuple[str, str]:
    """The client's credentials in a header, decoded as RFC 6749, section 2.3.1, has it."""
    scheme, _, encoded = request.one("authorization").partition(" ")
    assert scheme == "Basic"
    client_id, _, secret = b64decode(encoded).decode().partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


@contextlib.asynccontextmanager
async def token_endpoint(answer: Answer | None = None) -> AsyncIterator[TokenEndpoint]:
    """An endpoint that answers at once, until the block ends."""
    one = TokenEndpoint(answer or token_answer())
    one.gate.set()
    server: ScriptedServer
    async with scripted(one.serve) as server:
        one.port = server.port
        yield one
