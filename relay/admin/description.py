"""The call that describes the others: the OpenAPI document beside this module, with the version filled in."""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml
from aiohttp import web

from relay import __version__
from relay.admin.answers import shown
from relay.admin.calls import Call
from relay.admin.reading import Query


@lru_cache(maxsize=1)
def description() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    document: dict[str, Any] = yaml.safe_load((files(__package__) / "openapi.yaml").read_text(encoding="utf-8"))
    document["info"]["version"] = __version__
    return document


def description_calls() -> tuple[Call, ...]:
    """The calls of this family."""

    async def answer(request: web.BaseRequest) -> web.Response:
        Query(request)
        return shown(description())

    return (Call("GET", "openapi.json", answer),)
