"""What a relay is held against, as a process: `python -m relay.bench.bare`.

The least that an aiohttp server does: it reads a body and answers 200. It tells its port in a line on stdout, and
leaves when its stdin ends.
"""

import asyncio
import sys

from aiohttp import web

from relay.loops import loop_factory


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()


async def _serve() -> None:
    app = web.Application()
    app.router.add_post("/hooks/{source}", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)  # noqa: T201 - read by who has started it
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    """Serve until stdin ends."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
