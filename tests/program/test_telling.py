"""The installed command tells somebody when a target is disabled."""

import json
from pathlib import Path

from tests.support.program import Arrival, Gateway, Sink, until, webhook, write_config


async def test_a_target_that_fails_three_times_is_told_to_another(tmp_path: Path) -> None:
    """The news takes the way of any event to the one that a route names, also over a restart, and never to the target
    that it is about."""

    async def fails_at_crm(arrival: Arrival) -> int:
        return 500 if arrival.target == "crm" else 200

    targets = {"crm": ', retry: {schedule: ["100ms"]}, probe: never', "ops": ""}
    async with Sink(fails_at_crm) as sink:
        config = write_config(tmp_path / "c.yaml", sink, targets=targets)
        news = '  - {name: news, from: [relay], match: {type: ["target.*"]}, to: [crm, ops]}'
        config.write_text(f"{config.read_text()}\n{news}\n")

        def told() -> list[Arrival]:
            return [arrival for arrival in sink.arrivals if arrival.headers["relay-source"] == "relay"]

        async with Gateway(config) as gateway:
            await gateway.post(*webhook(1))
            await until(lambda: bool(told()))
            (arrival,) = told()
            assert (arrival.target, arrival.headers["relay-event-type"]) == ("ops", "target.disabled")
            message = json.loads(arrival.body)
            assert (message["type"], message["count"], message["notes"][0]["target"]) == ("target.disabled", 1, "crm")
            (line,) = gateway.said("target.disabled")
            assert (message["notes"][0]["reason"], message["notes"][0]["failures"]) == (line["reason"], 3)
            assert sink.url("crm") not in arrival.body.decode()
            await gateway.kill()
            await gateway.start()
            assert (await gateway.targets())["crm"]["state"] == "disabled"
            assert len({arrival.event_id for arrival in told()}) == 1
