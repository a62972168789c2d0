"""What happens once: one attempt at a time for a delivery, and one word for each change of a target's state."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.model import Event, TargetState
from tests.support.simulation import gateway, target
from tests.support.virtual_time import DOWN, Reply, virtually


@pytest.mark.row("B5")
@virtually
async def test_a_target_that_answers_just_in_time_is_sent_nothing_twice(tmp_path: Path) -> None:
    """A claim outlasts the longest attempt, so nobody takes it back under one that is still under way."""

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply(takes=599)

    slow = target(timeout=timedelta(minutes=10), concurrency=3)
    async with gateway(tmp_path, {slow: script}) as relay:
        await relay.post("crm", number=9)
        await relay.quiet("crm", within=timedelta(hours=1), look=30)
        assert len(relay.requests) == 9
        relay.assert_sound()


@pytest.mark.row("B49")
@virtually
async def test_each_change_of_a_target_is_told_once_however_many_events_fail(tmp_path: Path) -> None:
    """Hundreds of failures at two targets, probes that fail, and both back: one word each way for each of them."""
    is_up = asyncio.Event()

    def script(event: Event, attempt: int, now: datetime) -> Reply:
        return Reply() if is_up.is_set() else DOWN

    async with gateway(tmp_path, {target("crm"): script, target("books"): script}) as relay:
        await relay.post("crm", "books", number=200)
        await asyncio.sleep(600)
        for name in ("crm", "books"):
            (notice,) = relay.told(TargetState.DISABLED, name)
            assert notice.held == 200
        assert relay.told(TargetState.ACTIVE) == []
        is_up.set()
        await relay.quiet("crm", "books", within=timedelta(hours=1), look=10)
        assert len(relay.notices) == 4
        assert {notice.target for notice in relay.told(TargetState.ACTIVE)} == {"crm", "books"}
