"""The program before targets that answer without end: it goes on as ever, and grows by nothing."""

from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.delivery.test_hostile_targets import FLOODS
from tests.program.test_isolation import MIB, config, memory
from tests.support.program import Gateway, until, webhook
from tests.support.scripted_target import scripted, status

SENDABLE = {name.replace(" ", "_").replace("'", ""): flood for name, flood in FLOODS.items()}


@pytest.mark.slow
@pytest.mark.row("F20", "F15", "T49", "F24")
async def test_answers_without_end_cost_no_memory_and_end_nothing(tmp_path: Path) -> None:
    """Every kind of endless answer at once, beside a healthy target that has everything; each is told as what it was,
    nothing is said outside the log, and the process is as large as before."""
    async with AsyncExitStack() as stack:
        well = await stack.enter_async_context(scripted(status(200)))
        urls = {"well": well.url}
        for name, (answer, _) in SENDABLE.items():
            urls[name] = (await stack.enter_async_context(scripted(answer))).url
        gateway = await stack.enter_async_context(Gateway(config(tmp_path / "home", urls)))

        async def post(first: int, last: int) -> None:
            for number in range(first, last):
                answer, _ = await gateway.post(*webhook(number))
                assert answer == 200
            await until(lambda: len(well.received) == last)

        await post(0, 60)  # by then every buffer has been as large as it will be
        tried = lambda: {line["target"] for line in gateway.said("delivery.attempted")}  # noqa: E731
        await until(lambda: tried() == urls.keys())
        growths: list[int] = []
        for done in (60, 100, 140):  # the store's own cache grows for a while, what is kept of answers would for ever
            before = memory(gateway)
            await post(done, done + 40)
            growths.append(memory(gateway) - before)
            if growths[-1] < 5 * MIB:
                break
        assert min(growths) < 5 * MIB, growths
        for line in gateway.said("delivery.attempted"):
            _, kinds = SENDABLE.get(line["target"], (None, {"delivered"}))
            assert line["outcome"] in kinds, line
        async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/readyz") as answer:
            assert answer.status == 200
        await gateway.kill()
        assert gateway.errors == b""
