"""The verb that measures: `bench`.

Law: it touches nothing but loopback and a temporary directory, ends in the time it says beforehand, and fails where
anything that was accepted is missing anywhere.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from relay.bench import disk, results
from relay.bench.load import LEAST_BODY
from relay.bench.results import Row
from relay.bench.trial import Figures, TrialFailed, Wish, answered_bare, carried_out
from relay.cli.parameters import FilePath
from relay.cli.terminal import Cell, Column, Failure, table

DISK_S = 1.0
HALF = -1
"""Stands for half of what was delivered at the usual fan-out."""
FAN_OUTS, RATES = (1, 3, 10), (100, 500, 1000, HALF)
USUAL = 3
"""Targets at an offered rate."""
AROUND_S = 4.0
"""What a trial takes beside its sending: a start, the last deliveries, a stop."""
STEPS = 1000
"""Of the progress bar, for each part."""


@click.command()
@click.option(
    "--fan-out", "fan_outs", type=click.IntRange(1, 50), multiple=True, help="Targets of an event. [1, 3, 10]"
)
@click.option(
    "--rate", "rates", type=click.IntRange(1, 100_000), multiple=True, help="Events/s to offer. [100, 500, 1000]"
)
@click.option("--seconds", type=click.FloatRange(1, 3600), default=5.0, show_default=True, help="Of sending, a trial.")
@click.option("--connections", type=click.IntRange(1, 1000), default=64, show_default=True, help="Senders at a time.")
@click.option("--body", type=click.IntRange(LEAST_BODY, 1_000_000), default=1024, show_default=True, help="Bytes.")
@click.option("--dir", "place", type=FilePath(file_okay=False, exists=True, path_type=Path), help="Whose disk to use.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", help="json: one object a line.")
@click.option(
    "--compare",
    type=FilePath(dir_okay=False, exists=True, path_type=Path),
    nargs=2,
    help="OLD NEW: two JSON results; measures nothing.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    *,
    fan_outs: tuple[int, ...],
    rates: tuple[int, ...],
    seconds: float,
    connections: int,
    body: int,
    place: Path | None,
    output: str,
    compare: tuple[Path, Path] | None,
) -> None:
    """Measure this machine: a real relay with a temporary store, its senders and targets beside it, all on loopback.

    First as many events as are answered, to 1, 3 and 10 targets; then at several rates, to 3. With neither option all
    of these; with one, that alone. Senders, targets and relay share the processors: the figures are for all together.
    """
    if compare is not None:
        _tell_comparison([_read(file) for file in compare], as_json=output == "json")
        return
    wishes = _wishes(fan_outs, rates, Wish(0, 0, seconds, connections, body))
    head = results.machine(seconds=seconds, connections=connections, body=body)
    click.echo(f"about {_span(wishes):.0f} s; Ctrl-C ends it", err=True)
    rows = [head]
    try:
        with tempfile.TemporaryDirectory(prefix="relay-bench-", dir=place) as home, _progress(len(wishes) + 2) as bar:
            rows += asyncio.run(_measured(wishes, Path(home), bar))
    except TrialFailed as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"cannot measure in {place or tempfile.gettempdir()}: {error.strerror or error}") from None
    click.echo("\n".join(map(json.dumps, rows) if output == "json" else _tables(rows)))
    if any(row.get("lost") for row in rows):
        click.echo("relay: something that was accepted is missing; see `lost`", err=True)
        ctx.exit(1)


def _wishes(fan_outs: Sequence[int], rates: Sequence[int], alike: Wish) -> list[Wish]:
    """The trials, in order."""
    if not fan_outs and not rates:
        fan_outs, rates = FAN_OUTS, RATES
    at_most = [replace(alike, fan_out=number) for number in dict.fromkeys(fan_outs)]
    offered = [replace(alike, fan_out=USUAL, rate=rate) for rate in dict.fromkeys(rates)]
    return [*at_most, *offered]


def _span(wishes: Sequence[Wish]) -> float:
    """Seconds that all of it may take."""
    bare = any(not wish.rate for wish in wishes)
    return DISK_S + sum(wish.seconds + AROUND_S for wish in wishes) + (2 * wishes[0].seconds if bare else 0)


async def _measured(wishes: Sequence[Wish], home: Path, part: "_Parts") -> list[Row]:
    """All rows, in their order; what a bare handler answers is the mean of before and after."""
    rows = [results.disk(await asyncio.to_thread(disk.measured, home, DISK_S))]
    at_most = [wish for wish in wishes if not wish.rate]
    bare = [await answered_bare(at_most[0], home, part())] if at_most else []
    trials: list[tuple[str, Figures]] = []
    usual = 0.0
    for number, wish in enumerate(wishes):
        name = "half" if wish.rate == HALF else f"{wish.rate}/s" if wish.rate else f"fan-out {wish.fan_out}"
        place = home / str(number)
        place.mkdir()
        done = replace(wish, rate=max(1, round(usual / 2))) if wish.rate == HALF else wish
        figures = await carried_out(done, place, part())
        trials.append((name, figures))
        usual = figures.events_per_s if wish.fan_out == USUAL and not wish.rate else usual
        shutil.rmtree(place, ignore_errors=True)
    if at_most:
        bare.append(await answered_bare(at_most[0], home, part()))
        rows.append(results.bare(sum(bare) / len(bare)))
    mean = sum(bare) / len(bare) if bare else None
    return rows + [results.trial(name, figures, mean) for name, figures in trials]


# what is shown

_Parts = Callable[[], Callable[[float], None]]
"""Called where the next part begins; returns what is told which share of it is over."""


@contextmanager
def _progress(parts: int) -> Iterator[_Parts]:
    """A bar on a terminal; elsewhere nothing."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda: lambda _: None
        return
    with click.progressbar(length=parts * STEPS, label="measuring", file=sys.stderr) as bar:
        begun = 0

        def begin() -> Callable[[float], None]:
            nonlocal begun
            at, begun = begun, begun + 1
            bar.update(max(0, at * STEPS - bar.pos))
            return lambda share: bar.update(max(0, at * STEPS + int(share * STEPS) - bar.pos))

        yield begin
        bar.update(parts * STEPS - bar.pos)


COLUMNS = (
    ("", ""),
    ("EVENTS/S", "events_per_s"),
    ("OF BARE", "share_of_bare"),
    ("ANSWER P50", "answer_p50_ms"),
    ("P99 MS", "answer_p99_ms"),
    ("ARRIVAL P50", "arrival_p50_ms"),
    ("P99 MS", "arrival_p99_ms"),
    ("CPU US", "cpu_us"),
    ("MIB", "memory_mib"),
    ("DISK B", "disk_bytes"),
    ("REFUSED", "refused"),
    ("LOST", "lost"),
)


def _tables(rows: Sequence[Row]) -> list[str]:
    """What a person is shown."""
    by_kind = {row["kind"]: row for row in rows if row["kind"] != "trial"}
    machine, syncs, bare = by_kind["machine"], by_kind["disk"], by_kind.get("bare")
    lines = [
        f"relay {machine['relay']}, Python {machine['python']}, {machine['loop']}, {machine['processors']} processors",
        f"disk: {syncs['syncs_per_s']:,.0f} syncs/s, p50 {syncs['p50_ms']:.2f} ms, p99 {syncs['p99_ms']:.2f} ms",
    ]
    if bare is not None:
        lines.append(f"a bare aiohttp handler, to the same senders: {bare['requests_per_s']:,.0f} requests/s")
    columns = [Column(title, is_number=bool(key)) for title, key in COLUMNS]
    cells = [
        [Cell(row["name"]), *(_cell(key, row[key]) for _, key in COLUMNS[1:])] for row in rows if row["kind"] == "trial"
    ]
    return [*lines, "", *table(columns, cells)]


def _cell(key: str, value: Any) -> Cell:
    if value is None:
        return Cell("-")
    if key == "share_of_bare":
        return Cell(f"{value:.3f}")
    text = f"{value:,.1f}" if key.endswith("_ms") else f"{value:,.0f}"
    return Cell(text, "red" if key in {"lost", "refused"} and value else None)


def _read(file: Path) -> list[Row]:
    try:
        return results.read(file.read_text(encoding="utf-8", errors="replace"), str(file))
    except results.NoResults as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}") from None


def _tell_comparison(both: Sequence[Sequence[Row]], *, as_json: bool) -> None:
    """Print two results beside each other."""
    rows = results.compared(*both)
    if not rows:
        raise Failure("the two have no figure in common")
    if as_json:
        click.echo("\n".join(map(json.dumps, rows)))
        return
    colours = {"better": "green", "worse": "red"}
    columns = [Column(""), Column("FIGURE"), *(Column(title, is_number=True) for title in ("BEFORE", "AFTER", "RATIO"))]
    cells = [
        [
            Cell(row["name"]),
            Cell(row["figure"]),
            Cell(f"{row['before']:,.2f}"),
            Cell(f"{row['after']:,.2f}"),
            Cell("-" if row["ratio"] is None else f"{row['ratio']:.2f}", colours.get(row["verdict"])),
        ]
        for row in rows
    ]
    click.echo("\n".join(table(columns, cells)))
