"""What has to be fetched first, and yet keeps its target's rate, order and pauses; on virtual time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.delivery.enrichment import Enriched
from relay.delivery.preparing import LONGEST
from relay.model import Event, Outcome, OutcomeKind, TargetState
from relay.rules.rate import rate_from
from tests.support.simulation import gateway, target
from tests.support.virtual_time import Reply, Script, virtual_loop, virtually


@dataclass
class Enricher:
    """Brings what it is asked for after so many seconds, which may hang on the number of the question."""

    takes: Callable[[int], float]
    asked: list[str] = field(default_factory=list)

    async def bring(self, name: str, event: Event, body: bytes) -> Enriched | Outcome:
        """See `Brings`."""
        self.asked.append(event.id)
        await asyncio.sleep(self.takes(len(self.asked)))
        return Enriched({"n": 1})


def always(reply: Reply) -> Script:
    """A target that does the same for ever."""
    return lambda event, attempt, now: reply


def seconds() -> float:
    """Since the simulation began."""
    return virtual_loop().time()


@pytest.mark.parametrize("text", ["1/s", "10/s", "150/5m"])
@virtually
async def test_a_rate_is_kept_whatever_is_fetched_first(tmp_path: Path, text: str) -> None:
    """Fetches that end together are no burst at the target, and slow ones cost none of its rate."""
    rate = rate_from(text)
    assert rate is not None
    a_second = rate.count / rate.span.total_seconds()
    enricher = Enricher(lambda number: max(0.1, 9 - virtual_loop().time()))  # those asked first all come at nine
    crm = target(rate=rate, concurrency=20)
    async with gateway(tmp_path, {crm: always(Reply())}, brings=enricher) as relay:
        await relay.post("crm", number=round(200 * a_second))
        await asyncio.sleep(9)
        begun = seconds()
        await asyncio.sleep(100)
        relay.assert_sound()
        times = sorted(request.at for request in relay.requests)
        burst = max(1.0, a_second)
        for first, at in enumerate(times):
            for last in range(first, len(times)):
                span = (times[last] - at).total_seconds()
                assert last - first + 1 <= burst + span * a_second + 0.001, f"{last - first + 1} within {span} s"
        assert len(times) >= 0.95 * a_second * (seconds() - begun)
        assert not [row for row in relay.rows().values() if row.attempts > 1]


@virtually
async def test_a_pause_that_is_asked_for_meanwhile_is_kept(tmp_path: Path) -> None:
    """What was being fetched when the target asked for silence is not sent into it, and spends nothing."""
    enricher = Enricher(lambda number: 0.1 if number == 1 else 5)

    def script(event: Event, attempt: int, now: object) -> Reply:
        return Reply(429, retry_after="60") if seconds() < 30 else Reply()

    async with gateway(tmp_path, {target(concurrency=4): script}, brings=enricher) as relay:
        await relay.post("crm", number=4)
        await asyncio.sleep(30)
        assert len(relay.requests) == 1
        await asyncio.sleep(60)
        relay_states = relay.states()
        assert relay_states["delivered"] == 4
        assert {row.step for row in relay.rows().values()} == {0}
        assert not relay.violations


@virtually
async def test_what_is_fetched_when_its_target_is_disabled_is_held(tmp_path: Path) -> None:
    """It is not sent to a target that a hand has switched off."""
    enricher = Enricher(lambda number: 5)
    async with gateway(tmp_path, {target(): always(Reply())}, brings=enricher) as relay:
        await relay.post("crm", number=3)
        await asyncio.sleep(1)
        with virtual_loop().really():
            await relay.dispatcher.disable("crm", "by a test")
        await asyncio.sleep(60)
        assert relay.health("crm").state is TargetState.DISABLED
        assert not relay.requests
        with virtual_loop().really():
            await relay.dispatcher.enable("crm")
        await asyncio.sleep(60)
        assert relay.states() == {"delivered": 3}
        assert not relay.violations


@virtually
async def test_a_fetch_that_never_ends_holds_no_slot_for_ever(tmp_path: Path) -> None:
    """The delivery comes again without a step, and the store is told in time."""
    enricher = Enricher(lambda number: 10_000)
    async with gateway(tmp_path, {target(): always(Reply())}, brings=enricher) as relay:
        await relay.post("crm")
        await asyncio.sleep(LONGEST.total_seconds() + 1)
        (row,) = relay.rows().values()
        assert (row.state, row.outcome, row.step) == ("pending", OutcomeKind.INTERRUPTED, 0)
        assert row.reason == "waiting: the fetch is not over"


@virtually
async def test_an_ordered_target_waits_for_the_fetch_of_its_first(tmp_path: Path) -> None:
    """One slow fetch holds back those behind it, and nothing overtakes."""
    enricher = Enricher(lambda number: 20 if number == 1 else 0.1)
    async with gateway(tmp_path, {target(ordered=True): always(Reply())}, brings=enricher) as relay:
        await relay.post("crm", number=5)
        await asyncio.sleep(19)
        assert not relay.requests
        await relay.quiet("crm", within=LONGEST)
        relay.assert_in_order()
        assert len(relay.requests) == 5
        assert not relay.violations
