"""Minutes and silences of what Relay tells of itself: the real notifier, dispatcher and store on virtual time."""

import asyncio
import contextlib
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from relay.delivery.observing import Attempted
from relay.model import NoCheck, Route, Source, Target, TargetHealth, TargetState
from relay.notices import CONTRACT, Notifier
from relay.rules.notices import KINDS
from relay.store.grouping.operations import Batch
from tests.support.simulation import Gateway, target
from tests.support.virtual_time import DOWN, EPOCH, Reply, Script, virtual_loop, virtually

OK, ERROR = Reply(), Reply(500)
EVERYTHING = Route("news", frozenset({"relay"}), ("ops", "chat"))


@dataclass(frozen=True)
class Message:
    """A stored event of the source `relay`."""

    at: float
    """Seconds since the simulation began."""
    kind: str
    targets: tuple[str, ...]
    body: Any

    @property
    def numbers(self) -> list[int]:
        """How full the store was in each note."""
        return [note["bytes"] for note in self.body["notes"]]


class Relay(Gateway):
    """A simulated relay that tells of itself."""

    def __init__(self, home: Path, targets: Mapping[Target, Script], *routes: Route) -> None:
        super().__init__(home, targets)
        self.routes = routes
        self.sources: tuple[Source, ...] = ()
        self.heard: dict[str, datetime] = {}
        self.counted: list[tuple[str, str]] = []
        self.notifier: Notifier | None = None

    async def start(self) -> None:
        await super().start()
        self.notifier = self.new_notifier()
        self.dispatcher.look_after("notices", self.notifier.run)

    def new_notifier(self) -> Notifier:
        """A notifier that heeds the config, and whose loop is not run yet."""
        notifier = Notifier(
            self.store,
            count=lambda source, result: self.counted.append((source, result)),
            held=self.store.pending,
            last_event=self.heard.get,
            now=self.now,
        )
        notifier.configure(self.sources, self.routes)
        return notifier

    async def stop(self) -> None:
        self._up.clear()
        await self.dispatcher.stop(timedelta(seconds=20))
        if self.notifier is not None:
            await self.notifier.close()
        await self._close()

    @property
    def tells(self) -> Notifier:
        assert self.notifier is not None
        return self.notifier

    def attempted(self, attempt: Attempted) -> None:
        self.tells.attempted(attempt)

    def disabled(self, health: TargetHealth) -> None:
        super().disabled(health)
        self.tells.disabled(health)

    def enabled(self, health: TargetHealth) -> None:
        super().enabled(health)
        self.tells.enabled(health)

    def expect(self, **every: timedelta) -> None:
        """Take a config in which these sources are expected so often."""
        self.sources = tuple(
            Source(name, "custom", f"/hooks/{name}", NoCheck(), lambda _: None, lambda _: None, expect_every=often)
            for name, often in every.items()
        )
        self.tells.configure(self.sources, self.routes)

    async def storing(self) -> None:
        """Wait until a message is about to be committed, which goes on when whoever has waited for it does."""
        writer, begun = self.store._writer, asyncio.Event()
        admit = writer._admit

        async def admitted(batch: Batch) -> None:
            writer._admit = admit
            begun.set()
            await asyncio.sleep(0)
            await admit(batch)

        writer._admit = admitted
        await begun.wait()

    def messages(self, kind: str = "*") -> list[Message]:
        """What was stored of the relay's own events so far."""
        with contextlib.closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as db:
            rows = db.execute(
                """SELECT e.received_at, e.type, group_concat(d.target), e.body FROM event e
                JOIN delivery d ON d.event_seq = e.seq WHERE e.source = 'relay' AND e.type GLOB ?
                GROUP BY e.seq ORDER BY e.seq""",
                (kind,),
            ).fetchall()
        return [
            Message(at / 1000 - EPOCH.timestamp(), type_, tuple(sorted(targets.split(","))), json.loads(body))
            for at, type_, targets, body in rows
        ]


@contextlib.asynccontextmanager
async def running(home: Path, *routes: Route, **scripts: Script) -> AsyncIterator[Relay]:
    """A relay with targets `ops` and `chat`, which are well, and these."""
    well: dict[str, Script] = {"ops": lambda *_: OK, "chat": lambda *_: OK}
    relay = Relay(home, {target(name): script for name, script in (well | scripts).items()}, *routes)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


@virtually
async def test_the_first_goes_at_once_and_the_next_together_after_a_minute(tmp_path: Path) -> None:
    """A flood is a message a minute; when it is over, the next note goes at once again."""
    async with running(tmp_path, EVERYTHING) as relay:
        for number in range(1, 5):
            relay.tells.nearly_full(number, 100)
            await asyncio.sleep(19)
        relay.tells.nearly_full(5, 100)
        await asyncio.sleep(200)
        relay.tells.nearly_full(6, 100)
        await asyncio.sleep(1)
        told = [(round(message.at), message.numbers) for message in relay.messages()]
        assert told == [(0, [1]), (60, [2, 3, 4]), (120, [5]), (276, [6])]
        assert {message.targets for message in relay.messages()} == {("chat", "ops")}
        assert relay.counted == [("relay", "accepted")] * 4


@virtually
async def test_kinds_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """A flood of one thing keeps back no news of another."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.tells.nearly_full(1, 100)
        await asyncio.sleep(1)
        relay.tells.reload_refused(1)
        relay.tells.nearly_full(2, 100)
        await asyncio.sleep(1)
        assert [message.kind for message in relay.messages()] == ["store.nearly_full", "config.reload_refused"]


@virtually
async def test_a_flood_is_a_message_a_minute_and_all_of_it_counted(tmp_path: Path) -> None:
    """Ten thousand notes are bounded in memory and in the store, and the numbers add up."""
    async with running(tmp_path, EVERYTHING) as relay:
        for number in range(1000):
            for _ in range(10):
                relay.tells.nearly_full(number, 10_000)
            await asyncio.sleep(0.3)
        await asyncio.sleep(61)
        messages = relay.messages()
        times = [message.at for message in messages]
        assert len(messages) == 6
        assert all(after - before >= 60 for before, after in itertools.pairwise(times))
        assert sum(message.body["count"] for message in messages) == 10_000
        for message in messages:
            assert len(message.body["notes"]) + message.body["omitted"] == message.body["count"]
            assert len(message.body["notes"]) <= 50


@virtually
async def test_an_outage_and_its_end_are_told_to_the_others_only(tmp_path: Path) -> None:
    """Both carriers fail in turn; each hears of the other and neither of itself."""

    def down(start: float, end: float) -> Script:
        return lambda event, attempt, now: DOWN if start <= (now - EPOCH).total_seconds() < end else OK

    async with running(tmp_path, EVERYTHING, ops=down(0, 600), chat=down(2000, 2600)) as relay:
        await relay.traffic("ops", "chat", rate=0.2, seconds=4000)
        await relay.quiet("ops", "chat", within=timedelta(hours=1))
        messages = relay.messages()
        assert [(one.kind, one.targets, one.body["notes"][0]["target"]) for one in messages] == [
            ("target.disabled", ("chat",), "ops"),
            ("target.enabled", ("chat",), "ops"),
            ("target.disabled", ("ops",), "chat"),
            ("target.enabled", ("ops",), "chat"),
        ]
        assert all(one.body["count"] == 1 for one in messages)
        relay.assert_sound()


@virtually
async def test_what_is_told_of_two_carriers_at_once_is_told_crosswise(tmp_path: Path) -> None:
    """One minute's notes become two messages, each without its own carrier's."""
    async with running(tmp_path, EVERYTHING) as relay:
        for name in ("ops", "chat", "crm"):
            relay.tells.disabled(TargetHealth(name, TargetState.DISABLED))
        await asyncio.sleep(1)
        told = {one.targets: [note["target"] for note in one.body["notes"]] for one in relay.messages()}
        assert told == {("ops",): ["chat", "crm"], ("chat",): ["ops", "crm"]}


@virtually
async def test_a_message_that_dies_ends_there(tmp_path: Path) -> None:
    """Two carriers that refuse all at a single try: the webhook's death goes to both, and their own to nobody."""
    scripts: dict[Target, Script] = {
        target(name, schedule=(), disable_after=None): lambda *_: ERROR for name in ("crm", "ops", "chat")
    }
    relay = Relay(tmp_path, scripts, EVERYTHING)
    await relay.start()
    try:
        await relay.post("crm")
        await asyncio.sleep(600)
        assert [(one.kind, one.targets) for one in relay.messages()] == [("delivery.dead", ("chat", "ops"))]
        assert set(relay.states()) == {"dead"}
    finally:
        await relay.stop()


@virtually
async def test_a_route_takes_the_kinds_that_it_names(tmp_path: Path) -> None:
    """Globs on the type, as in any route; what none takes is not stored."""
    some = Route("some", frozenset({"relay", "shop"}), ("ops",), ("store.*",))
    async with running(tmp_path, some) as relay:
        relay.tells.reload_refused(1)
        relay.tells.nearly_full(1, 100)
        relay.tells.disabled(TargetHealth("crm", TargetState.DISABLED))
        await asyncio.sleep(100)
        assert [(one.kind, one.targets) for one in relay.messages()] == [("store.nearly_full", ("ops",))]


@virtually
async def test_a_new_config_keeps_the_minute_and_what_waits(tmp_path: Path) -> None:
    """A reload neither repeats nor loses; what waited for a target that carries it no longer is let go."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.tells.nearly_full(1, 100)
        await asyncio.sleep(10)
        relay.tells.nearly_full(2, 100)
        relay.tells.configure((), (Route("news", frozenset({"relay"}), ("ops",)),))
        await asyncio.sleep(200)
        told = [(round(one.at), one.targets, one.numbers) for one in relay.messages()]
        assert told == [(0, ("chat", "ops"), [1]), (60, ("ops",), [2])]
        relay.tells.nearly_full(3, 100)
        relay.tells.configure((), ())
        await asyncio.sleep(200)
        assert len(relay.messages()) == 2


@virtually
async def test_what_comes_while_another_kind_is_stored_goes_with_its_own(tmp_path: Path) -> None:
    """Nothing is lost between two messages: a note joins the one that is still to be sent."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.tells.nearly_full(1, 100)
        relay.tells.reload_refused(1)
        await relay.storing()
        relay.tells.reload_refused(2)
        relay.tells.nearly_full(2, 100)
        await asyncio.sleep(100)
        told = [(round(one.at), one.kind, one.body["count"]) for one in relay.messages()]
        assert told == [(0, "store.nearly_full", 1), (0, "config.reload_refused", 2), (60, "store.nearly_full", 1)]


@virtually
async def test_a_reload_between_two_messages_is_heeded_by_the_second(tmp_path: Path) -> None:
    """What a target carries no longer is not sent to it, and does not come back with a later config."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.tells.nearly_full(1, 100)
        relay.tells.reload_refused(1)
        await relay.storing()
        relay.tells.configure((), (Route("news", frozenset({"relay"}), ("ops",)),))
        await asyncio.sleep(1)
        told = [(one.kind, one.targets) for one in relay.messages()]
        assert told == [("store.nearly_full", ("chat", "ops")), ("config.reload_refused", ("ops",))]
        relay.tells.configure((), (EVERYTHING,))
        relay.tells.reload_refused(2)
        await asyncio.sleep(100)
        told = [(one.targets, one.body["count"]) for one in relay.messages("config.reload_refused")]
        assert told == [(("ops",), 1), (("chat",), 1), (("ops",), 1)]


@virtually
async def test_a_stop_while_a_message_is_stored_sends_it_once(tmp_path: Path) -> None:
    """What is under way when the loop ends is waited for; what was gathered meanwhile goes too."""
    async with running(tmp_path, EVERYTHING) as relay:
        tells = relay.new_notifier()
        loop = asyncio.create_task(tells.run())
        tells.nearly_full(1, 100)
        await relay.storing()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        tells.nearly_full(2, 100)
        await tells.close()
        assert [one.numbers for one in relay.messages()] == [[1], [2]]
        assert relay.counted == [("relay", "accepted")] * 2


@virtually
async def test_a_stop_sends_what_is_gathered_and_a_crash_loses_it(tmp_path: Path) -> None:
    """The minute does not hold up a stop; a crash forgets what no commit has."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.tells.nearly_full(1, 100)
        await asyncio.sleep(10)
        relay.tells.nearly_full(2, 100)
        await relay.restart()
        assert [(round(one.at), one.numbers) for one in relay.messages()] == [(0, [1]), (10, [2])]
        relay.tells.nearly_full(3, 100)
        await asyncio.sleep(10)
        relay.tells.nearly_full(4, 100)
        await relay.crash()
        assert [one.numbers for one in relay.messages()] == [[1], [2], [3]]
        await relay.quiet("ops", "chat", within=timedelta(minutes=1))


@virtually
async def test_what_a_stop_cannot_store_is_told_in_the_log(tmp_path: Path) -> None:
    """It is lost, and its number is known."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.tells.nearly_full(1, 100)
        await asyncio.sleep(10)
        for number in (2, 3):
            relay.tells.nearly_full(number, 100)
        with virtual_loop().really():
            await relay.store.close()
        with capture_logs() as lines:
            await relay.tells.close()
        (line,) = lines
        assert (line["event"], line["type"], line["count"]) == ("relay.notice_lost", "store.nearly_full", 2)


@virtually
async def test_silences_are_told_once_each_and_counted_from_the_start(tmp_path: Path) -> None:
    """A source that was never heard counts from the start, one that was heard from its last event; each silence is one
    note, whatever its length."""
    minute = timedelta(minutes=1)
    async with running(tmp_path, EVERYTHING) as relay:
        relay.heard["shop"] = EPOCH - 10 * minute
        relay.expect(shop=5 * minute, bank=11 * minute)
        await asyncio.sleep(15)
        (message,) = relay.messages()
        (note,) = message.body["notes"]
        assert (note["source"], note["last_event_at"], note["expect_every_s"]) == (
            "shop",
            "2030-12-31T23:50:00.000Z",
            300,
        )
        relay.heard["shop"] = EPOCH + 4 * minute
        await asyncio.sleep(8 * 60)
        assert len(relay.messages()) == 1
        relay.expect(shop=5 * minute, bank=11 * minute)  # a reload forgets neither the silence nor the start
        await asyncio.sleep(20 * 60)
        told = [(one.at // 60, [note["source"] for note in one.body["notes"]]) for one in relay.messages()[1:]]
        assert told == [(9, ["shop"]), (11, ["bank"])]


@virtually
async def test_nothing_is_expected_of_other_sources(tmp_path: Path) -> None:
    """Without `expect_every` a source may be silent for ever."""
    async with running(tmp_path, EVERYTHING) as relay:
        relay.expect()
        await asyncio.sleep(3600)
        assert relay.messages() == []


def test_the_pace_is_the_contracts() -> None:
    """A message a minute and kind, of six kinds."""
    assert CONTRACT.every == timedelta(minutes=1)
    assert len(KINDS) == 6
