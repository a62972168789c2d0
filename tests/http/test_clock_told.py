"""A clock that is wrong, ours or a sender's, is told of loudly and turned away as ever; on the running relay."""

import time

import pytest

from tests.http.gateway import Start
from tests.http.test_proofs_over_http import BODY, STAMPED, custom, stamped

TEN_YEARS = 315_576_000


@pytest.mark.row("T7")
@pytest.mark.parametrize("skew", [-TEN_YEARS, -3600, 3600, TEN_YEARS], ids=["decade", "hour", "hour on", "decade on"])
async def test_a_wrong_clock_is_told_once_with_its_median_skew(start: Start, skew: int) -> None:
    """All its requests are 401 as ever; one error line says by how much, and which way, the clocks differ."""
    relay = await start(custom(STAMPED))
    for number in range(8):
        answer = await relay.post("/hooks/partner", BODY, stamped(int(time.time()) + skew + number % 3))
        assert answer.status == 401
    line = await relay.told("clock.suspect")
    assert (line["level"], line["source"]) == ("error", "partner")
    assert abs(line["skew_s"] - skew) <= 5
    assert ("ahead of" if skew > 0 else "behind") in line["reason"]
    assert {one["reason"] for one in await relay.log("request.refused")} <= {"stale_timestamp", "bad_timestamp"}


@pytest.mark.row("T7")
async def test_forged_requests_are_no_wrong_clock_and_hide_none(start: Start) -> None:
    """Only what bears the right signature counts: hundreds of forgeries neither raise the alarm nor drown it."""
    relay = await start(custom(STAMPED))
    old = int(time.time()) - 7200
    forged = stamped(old) | {"X-Sig": "0" * 64}
    for _ in range(50):
        assert (await relay.post("/hooks/partner", BODY, forged)).status == 401
    assert await relay.log("clock.suspect") == []
    for _ in range(3):
        assert (await relay.post("/hooks/partner", BODY, stamped(old))).status == 401
    assert (await relay.told("clock.suspect"))["skew_s"] == pytest.approx(-7200, abs=10)


@pytest.mark.row("T7")
async def test_a_replay_among_good_requests_is_no_wrong_clock(start: Start) -> None:
    """While most of a source's requests are in time, those that are not are replays."""
    relay = await start(custom(STAMPED))
    for _ in range(4):
        assert (await relay.post("/hooks/partner", BODY, stamped(int(time.time())))).status == 200
        assert (await relay.post("/hooks/partner", BODY, stamped(int(time.time()) - 900))).status == 401
    assert await relay.log("clock.suspect") == []
