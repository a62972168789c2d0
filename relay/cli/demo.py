"""The verb that shows it all: `demo`.

Law: what it shows really happens. The gateway is the one that `relay run` starts, over real sockets and a real file;
each line is printed when its hop is done, and the last one says whether anything is missing.
"""

import asyncio
import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import click

from relay.app import App
from relay.cli.configs import loaded
from relay.cli.stage import TARGETS, Witness, findings, write_config
from relay.cli.terminal import Failure, plural, safe
from relay.config import Config
from relay.delivery.observing import Attempted
from relay.listener import CannotListen
from relay.model import Headers, OutcomeKind, Source, TargetHealth
from relay.providers import PROVIDERS
from relay.rules.signing import sign
from relay.store import StoreError
from relay.telemetry.logs import start_logging

PATIENCE = 15.0
"""Seconds within which all must have arrived."""
INTERRUPTED = 130


class _Incomplete(Exception):
    """Not all went as it should; the message says what."""


@dataclass(slots=True)
class _Stage:
    """Everything that is up while the demonstration runs."""

    app: App
    config: Config
    directory: Path
    witnesses: Mapping[str, Witness]
    attempts: "asyncio.Queue[Attempted]"
    session: aiohttp.ClientSession
    webhooks: int = 0
    deliveries: int = 0
    sent: dict[str, bytes] = field(default_factory=dict)
    """The bodies that were posted here, by the event's id."""
    heard_of: set[str] = field(default_factory=set)
    """The events that others posted."""

    @property
    def url(self) -> str:
        """Where webhooks are received."""
        return "http://{}:{}".format(*self.app.hooks_address)

    @property
    def admin(self) -> str:
        """Where the admin API is."""
        return "http://{}:{}".format(*self.app.admin_address)


class _Attempts:
    """Hears of each recorded attempt."""

    def __init__(self, queue: "asyncio.Queue[Attempted]") -> None:
        self._queue = queue

    def attempted(self, attempt: Attempted) -> None:
        """Hand an attempt to who prints it."""
        self._queue.put_nowait(attempt)

    def disabled(self, health: TargetHealth) -> None:
        """Say that a target failed too often."""
        _line("disabled", f"{health.name}: {safe(health.reason)}", colour="red")

    def enabled(self, health: TargetHealth) -> None:
        """Say that it is back."""
        _line("enabled", health.name, colour="green")


@click.command()
@click.option("--once", is_flag=True, help="End when all has arrived (exit 0), or after 15 s (exit 1).")
@click.option("--keep", is_flag=True, help="Keep the config, the store and the log.")
@click.option("--log", "with_log", is_flag=True, help="Show the gateway's log, on stderr.")
@click.pass_context
def demo(ctx: click.Context, *, once: bool, keep: bool, with_log: bool) -> None:
    """See it work: start the real gateway and two targets, send each provider's genuine sample, show every hop.

    It needs no config, no network and no port of its own choice: all is on loopback, in a temporary directory.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix="relay-demo-"))
    except OSError as error:
        raise Failure(f"cannot make a temporary directory: {error.strerror}") from None
    code = 1
    try:
        with contextlib.ExitStack() as stack:
            stream = (
                sys.stderr if with_log else stack.enter_context((directory / "relay.log").open("w", encoding="utf-8"))
            )
            pipe = start_logging("info", "auto", stream)
            stack.callback(pipe.close)
            code = asyncio.run(_demonstrate(directory, once=once))
    except BrokenPipeError:
        code = INTERRUPTED
        raise
    except (StoreError, CannotListen) as error:
        raise Failure(str(error)) from None
    finally:
        if keep or code == 1:
            click.echo(f"kept: {directory} (config.yaml, relay.db{'' if with_log else ', relay.log'})")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    ctx.exit(code)


async def _demonstrate(directory: Path, *, once: bool) -> int:
    """Set up, play, and keep on until told to stop; returns the exit code."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    async with _set_up(directory) as stage:
        _introduce(stage)
        code = await _unless(asked, _complete(_play(stage)))
        if code == 0 and not once:
            _invite(stage)
            code = await _unless(asked, _complete(_watch(stage)))
            if code == INTERRUPTED:
                code = await _complete(_settle(stage))
    if code == INTERRUPTED:
        click.echo("demo stopped before its end", err=True)
    elif code == 0:
        totals = f"{plural(stage.webhooks, 'webhook')}, {plural(stage.deliveries, 'delivery')}"
        click.echo(f"{click.style('demo ok:', fg='green', bold=True)} {totals}, nothing lost")
    return code


async def _unless(asked: asyncio.Event, work: Coroutine[Any, Any, int]) -> int:
    """What the work comes to, or `INTERRUPTED` where it was asked to stop first."""
    waits = asyncio.create_task(asked.wait())
    task = asyncio.create_task(work)
    await asyncio.wait([task, waits], return_when=asyncio.FIRST_COMPLETED)
    waits.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return INTERRUPTED


@contextlib.asynccontextmanager
async def _set_up(directory: Path) -> AsyncIterator[_Stage]:
    """The targets, the gateway, and a client; taken down in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        witnesses = [Witness(name) for name in TARGETS]
        for witness in witnesses:
            await witness.open()
            stack.push_async_callback(witness.close)
        config = loaded(write_config(directory, witnesses))
        attempts: asyncio.Queue[Attempted] = asyncio.Queue()
        app = App(config, observer=_Attempts(attempts))
        await app.start()
        stack.push_async_callback(app.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield _Stage(app, config, directory, {one.name: one for one in witnesses}, attempts, session)


def _introduce(stage: _Stage) -> None:
    click.echo("The real gateway, on free loopback ports, with a store of its own.\n")
    _line("gateway", f"{stage.url}  (webhooks)")
    _line("", f"{stage.admin}  (health, metrics, API)")
    _line("store", str(stage.directory / "relay.db"))
    for witness in stage.witnesses.values():
        _line("target", f"{witness.url}  ({witness.name})")


async def _complete(part: Coroutine[Any, Any, None]) -> int:
    """The exit code of a part of the demonstration; what is missing is printed."""
    try:
        await part
    except (_Incomplete, aiohttp.ClientError) as error:
        click.echo(f"\n{click.style('demo failed:', fg='red', bold=True)} {safe(str(error))}")
        return 1
    return 0


async def _play(stage: _Stage) -> None:
    """Send each provider's sample and see it arrive everywhere."""
    expected = {(source.name, target) for source in stage.config.sources for target in stage.witnesses}
    try:
        async with asyncio.timeout(PATIENCE):
            for serial, source in enumerate(stage.config.sources, 1):
                await _send(stage, source, serial, expected)
    except TimeoutError:
        missing = ", ".join(f"{source} at {target}" for source, target in sorted(expected))
        raise _Incomplete(f"missing after {PATIENCE:g} s: {missing}") from None
    await _settle(stage)
    click.echo()
    _line("store", "nothing pending, nothing held, nothing dead")


async def _send(stage: _Stage, source: Source, serial: int, expected: set[tuple[str, str]]) -> None:
    """Post one sample, then print what happens to it until every target has it."""
    provider = PROVIDERS[source.provider]
    now = datetime.now(UTC)
    body = provider.sample.body(now, serial)
    proof = sign(source.check, body, now=now, message_id=f"msg_{serial}")
    click.echo(f"\n{click.style(provider.title, bold=True)}")
    what = "its shared key" if source.key_header else "its signature"
    told = f"with {what} in {proof[-1][0]}" if proof else "unsigned, to a path that nobody can guess"
    _line("sent", f"{len(body)} bytes, {told}")
    began = time.perf_counter()
    headers = dict((*provider.sample.sent(now, serial), *proof))
    async with stage.session.post(f"{stage.url}{source.path}", data=body, headers=headers) as response:
        answer = await response.json(content_type=None)
    if response.status != 200:
        raise _Incomplete(f"{source.name}: the gateway answered {response.status}")
    event_id = str(answer["id"])
    stage.sent[event_id] = body
    stage.webhooks += 1
    _line("committed", f"{response.status} after {_ms(time.perf_counter() - began)}, {event_id}", colour="green")
    waiting = set(stage.witnesses)
    while waiting:
        attempt = await stage.attempts.get()
        if _tell(stage, attempt) and attempt.claim.event.id == event_id:
            waiting.discard(attempt.claim.target)
            expected.discard((source.name, attempt.claim.target))


def _tell(stage: _Stage, attempt: Attempted) -> bool:
    """Print one attempt; whether it brought the webhook to its target as it must."""
    claim, outcome = attempt.claim, attempt.sent.outcome
    took = _ms((attempt.ended_at - attempt.began_at).total_seconds())
    head = f"{claim.target:<11} attempt {claim.attempt}  {took:>8}"
    if outcome.kind is not OutcomeKind.DELIVERED:
        _line(outcome.kind.value, f"{head}  {safe(outcome.reason)}", colour="yellow")
        return False
    arrival = stage.witnesses[claim.target].arrivals.get(claim.event.id)
    if arrival is None:
        raise _Incomplete(f"{claim.delivery_id} is recorded as delivered, but never came")
    source = next(one for one in stage.config.sources if one.name == claim.event.source)
    is_good, seen = findings(arrival, source, stage.sent.get(claim.event.id))
    _line("delivered", f"{head}  {seen}", colour="green" if is_good else "red")
    if not is_good:
        raise _Incomplete(f"{claim.delivery_id}: {seen}")
    stage.deliveries += 1
    return True


async def _settle(stage: _Stage) -> None:
    """See that the gateway itself has nothing left to do and gave nothing up."""
    deadline = time.monotonic() + PATIENCE
    while left := await _left(stage):
        if time.monotonic() > deadline:
            raise _Incomplete(f"the store still has {left}")
        await asyncio.sleep(0.05)
    while not stage.attempts.empty():
        _hear(stage, stage.attempts.get_nowait())


async def _left(stage: _Stage) -> str:
    """What the store says is not delivered; empty when there is nothing."""
    async with stage.session.get(f"{stage.admin}/api/v1/targets") as response:
        targets = (await response.json())["targets"]
    left = {key: sum(target[key] for target in targets) for key in ("pending", "held", "in_flight", "dead")}
    return ", ".join(f"{count} {key}" for key, count in left.items() if count)


async def _watch(stage: _Stage) -> None:
    """Print what others send, for ever."""
    while True:
        _hear(stage, await stage.attempts.get())


def _hear(stage: _Stage, attempt: Attempted) -> None:
    """Print an attempt at what somebody else has sent."""
    event = attempt.claim.event
    if event.id not in stage.sent and event.id not in stage.heard_of:
        stage.heard_of.add(event.id)
        stage.webhooks += 1
        click.echo(f"\n{click.style(event.source, bold=True)} {safe(event.type)} {event.id}")
    _tell(stage, attempt)


def _invite(stage: _Stage) -> None:
    """Commands to try in another terminal."""
    click.echo("\nIt keeps running until Ctrl-C. In another terminal, try:\n")
    for source in stage.config.sources:
        provider = PROVIDERS[source.provider]
        now = datetime.now(UTC)
        body = provider.sample.body(now, 1000)
        proof = sign(source.check, body, now=now, message_id="msg_1000")
        headers: Headers = (*provider.sample.sent(now, 1000), *proof)
        _command(f"{provider.title}, genuine; a second time it is a duplicate", stage.url + source.path, headers, body)
    forged: Headers = tuple((name, "forged-forged-forged") for name, _ in proof)
    _command("forged: 401, and no target ever sees it", stage.url + source.path, forged, b"{}")
    config = shlex.quote(str(stage.config.path))
    _say("# as many as you like, signed for you")
    _say(f"relay send {source.name} --count 10 --url {stage.url} \\")
    _say(f"  --config {config}\n")
    _say(f"relay targets --admin {stage.admin}")
    _say(f"curl {stage.admin}/metrics")


def _command(why: str, url: str, headers: Headers, body: bytes) -> None:
    _say(f"# {why}")
    _say(f"curl -i {url} \\")
    for name, value in headers:
        _say(f"  -H {shlex.quote(f'{name}: {value}')} \\")
    _say(f"  --data-binary {shlex.quote(body.decode())}\n")


def _say(text: str) -> None:
    click.echo(f"  {text}")


def _line(what: str, rest: str, *, colour: str | None = None) -> None:
    click.echo(f"  {click.style(what.ljust(10), fg=colour or 'bright_black')} {rest}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
