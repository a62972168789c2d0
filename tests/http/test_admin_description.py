"""The admin API is what its description says: every call is in it, and nobody gets an answer that it does not name."""

import asyncio
import json
import os
import sysconfig
from pathlib import Path

import pytest

from relay.admin.description import description
from tests.http.gateway import AUTH, TOKEN, Gateway, Start

METHODS = {"get", "post", "put", "delete", "patch"}
DESCRIPTION = "/api/v1/openapi.json"


def described() -> set[tuple[str, str]]:
    """Method and path of every call that the description names."""
    return {
        (method.upper(), path) for path, item in description()["paths"].items() for method in item if method in METHODS
    }


async def test_the_description_names_every_call_and_no_other(gateway: Gateway) -> None:
    """What is served and what is answered are the same calls; the two health checks stand apart."""
    answer = await gateway.call(DESCRIPTION, headers=AUTH)
    assert json.loads(answer.body) == description()
    answered = gateway.app._reloading._parts.admin.calls.names
    assert described() == answered | {("GET", "/healthz"), ("GET", "/readyz")}


async def fuzzed(gateway: Gateway, seed: int) -> tuple[int, str]:
    """What a fuzzer says that makes requests of the description, sound ones and broken ones, and chains of them."""
    host, port = gateway.admin
    process = await asyncio.create_subprocess_exec(
        str(Path(sysconfig.get_path("scripts")) / "schemathesis"),
        *("run", f"http://{host}:{port}{DESCRIPTION}", "--header", f"Authorization: Bearer {TOKEN}"),
        *("--checks", "all", "--max-examples", "40", "--seed", str(seed), "--no-color", "--request-timeout", "20"),
        *("--exclude-path-regex", "/stream$", "--suppress-health-check", "all"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": ""},
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_request_gets_an_answer_that_the_description_does_not_name(start: Start) -> None:
    """Made of the description, and of what it forbids: never a 500, never an undocumented answer, and what breaks the
    rules is refused. The seed is printed with a failure."""
    gateway = await start()
    for number in range(3):
        await gateway.post("/hooks/open", json.dumps({"id": number, "type": "t"}).encode())
    seed = int.from_bytes(os.urandom(3))
    code, said = await fuzzed(gateway, seed)
    assert code == 0, f"seed {seed}\n{said[-6000:]}"
    assert await gateway.log("http.error") == []
