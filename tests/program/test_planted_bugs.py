"""A bug in the delivery loop of the installed program: restarted with waits, told, and the end where it stays."""

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.broken import with_break
from tests.support.program import Gateway, Sink, until, webhook, write_config


class Broken(Gateway):
    """The program, from a copy of the package in which one piece of text is another."""

    def __init__(self, config: Path, file: str, old: str, new: str) -> None:
        home = with_break(config.parent, file, old, new)
        run = (
            f"import sys; sys.path.insert(0, {str(home)!r}); sys.argv[0] = 'relay'; from relay.cli import main; main()"
        )
        super().__init__(config, within=())
        self.program = (sys.executable, "-c", run)


async def ready(gateway: Gateway) -> tuple[int, list[str]]:
    """What `/readyz` says."""
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/readyz") as answer:
        return answer.status, (await answer.json()).get("reasons", [])


LEARNED = "        self._owner.learned(settled)\n"
AN_EVENT_WITH_A_BUG = (
    "delivery/carrying.py",
    LEARNED,
    LEARNED + """        if attempt.claim.event.body == b'{"id": 7}': raise RuntimeError('planted')\n""",
)
PUMP = "        self._turnstile.asks_at = None\n        allowed ="
A_LOOP_THAT_STAYS_BROKEN = (
    "delivery/lane.py",
    PUMP,
    f"        if self.target.name == 'crm': raise RuntimeError('planted')\n{PUMP}",
)


@pytest.mark.slow
@pytest.mark.row("F34", "B66")
async def test_a_bug_in_an_attempt_is_told_makes_it_unready_and_stops_nothing(tmp_path: Path) -> None:
    """The loop is restarted after a moment; every event arrives, and the process stays."""
    async with Sink() as sink:
        config = write_config(tmp_path / "c.yaml", sink, targets={"crm": "", "books": ""})
        async with Broken(config, *AN_EVENT_WITH_A_BUG) as gateway:
            assert await ready(gateway) == (200, [])
            for number in range(20):
                assert (await gateway.post(*webhook(number)))[0] == 200
            await until(lambda: len(set(sink.ids("crm"))) == 20 and len(set(sink.ids("books"))) == 20)
            await until(lambda: bool(gateway.said("delivery.loop_failed")))
            line = gateway.said("delivery.loop_failed")[0]
            assert (line["reason"], line["restart_in_s"]) == ("RuntimeError: planted", 0.5)
            status, reasons = await ready(gateway)
            assert (status, reasons) == (503, ["delivery_loop_failed"])
            assert (await gateway.post(*webhook(99)))[0] == 200
            await until(lambda: len(set(sink.ids("crm"))) == 21)
            gateway.signal(signal.SIGTERM)
            assert await gateway.ended() == 0


@pytest.mark.slow
@pytest.mark.row("F34", "B66")
async def test_a_loop_that_keeps_failing_ends_the_process_and_loses_nothing(tmp_path: Path) -> None:
    """Restarts after 0.5, 1, 2 and 4 s; the fifth failure within a minute is the end, with exit code 1. Meanwhile other
    targets are served and webhooks are taken; the program without the bug delivers the rest."""
    async with Sink() as sink:
        config = write_config(tmp_path / "c.yaml", sink, targets={"crm": "", "books": ""})
        async with Broken(config, *A_LOOP_THAT_STAYS_BROKEN) as gateway:
            answers = [await gateway.post(*webhook(number)) for number in range(10)]
            assert {status for status, _ in answers} == {200}
            await until(lambda: len(sink.ids("books")) == 10)
            assert (await ready(gateway))[0] == 503
            assert await gateway.ended(within=40) == 1
            assert [line["restart_in_s"] for line in gateway.said("delivery.loop_failed")] == [0.5, 1, 2, 4]
            assert len(gateway.said("delivery.loops_keep_failing")) == 1
            assert sink.ids("crm") == []
        async with Gateway(config):
            await until(lambda: len(sink.ids("crm")) == 10)
            assert set(sink.ids("crm")) == {answer["id"] for _, answer in answers}
            await asyncio.sleep(0)
        assert len(sink.ids("books")) == 10
