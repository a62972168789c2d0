"""A sender that begins its requests without a task, as a lane has it do, whatever the state of its connections."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp

from relay.delivery.posting import Posting
from relay.delivery.sender import Sender, Sent
from relay.model import Claim, Fetched


class PostingSender(Sender):
    """Where no connection is kept it makes one first, so that also a first request is begun; not over TLS, whose
    tickets come when they come and are taken for unasked-for answers until then. What cannot be begun goes the way of a
    task, as a lane would have it."""

    async def send(self, claim: Claim, body: bytes, data: Any = Fetched.NOTHING) -> Sent:  # type: ignore[override]
        """Begin a request, and wait for what it comes to."""
        came: asyncio.Future[Sent | Coroutine[Any, Any, Sent]] = asyncio.get_running_loop().create_future()
        posting = await self._begun(claim, body, came) if data is Fetched.NOTHING else None
        if posting is None:
            return await super().send(claim, body, data)
        try:
            what = await came
        except asyncio.CancelledError:
            posting.cancel()
            raise
        return what if isinstance(what, Sent) else await what

    async def _begun(
        self, claim: Claim, body: bytes, came: "asyncio.Future[Sent | Coroutine[Any, Any, Sent]]"
    ) -> Posting | None:
        posting = self.begin(claim, body, came.set_result)
        is_secure = self._target.url.lower().startswith("https:")
        if posting is not None or self._wire is None or is_secure or not self._is_plain:
            return posting
        try:
            async with asyncio.timeout(self._deadlines.seconds):
                line = await self._wire._pool.connected()
        except (aiohttp.ClientError, OSError):  # the request will meet the same
            return None
        self._wire.keep(line)
        return self.begin(claim, body, came.set_result)
