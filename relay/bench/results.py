"""What a measurement has come to, as lines of JSON that another one can be held against.

Law: a file is compared by the names of its rows alone, so that a measurement with fewer trials is compared in what both
have.
"""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from relay import __version__
from relay.bench.disk import Disk
from relay.bench.trial import Figures
from relay.loops import loop_factory

Row = dict[str, Any]
"""One line: its `kind` (machine, disk, bare or trial), its `name`, and figures."""

LOWER_IS_BETTER = frozenset(
    {
        *("refused", "waiting", "lost", "copies", "p50_ms", "p99_ms", "cpu_us", "memory_mib", "disk_bytes", "start_s"),
        *("answer_p50_ms", "answer_p99_ms", "arrival_p50_ms", "arrival_p99_ms"),
    }
)
HIGHER_IS_BETTER = frozenset({"events_per_s", "requests_per_s", "syncs_per_s", "share_of_bare"})


class NoResults(Exception):
    """A file holds no results of a measurement; the message says where."""


def machine(*, seconds: float, connections: int, body: int) -> Row:
    """What was measured, where, and with what."""
    return {
        "kind": "machine",
        "name": "machine",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "relay": __version__,
        "python": platform.python_version(),
        "loop": "asyncio" if loop_factory() is None else "uvloop",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "seconds": seconds,
        "connections": connections,
        "body": body,
    }


def disk(found: Disk) -> Row:
    """How fast the disk syncs."""
    return {"kind": "disk", "name": "disk", **_rounded(asdict(found))}


def bare(requests_per_s: float) -> Row:
    """What a bare handler answers."""
    return {"kind": "bare", "name": "bare", **_rounded({"requests_per_s": requests_per_s})}


def trial(name: str, figures: Figures, bare_per_s: float | None) -> Row:
    """One trial; its share of what a bare handler answers where it was as fast as it goes."""
    share = None if figures.rate or not bare_per_s else figures.events_per_s / bare_per_s
    return {"kind": "trial", "name": name, **_rounded({**asdict(figures), "share_of_bare": share})}


def _rounded(figures: Mapping[str, Any]) -> Row:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}


def read(text: str, name: str) -> list[Row]:
    """The rows of a file.

    Raises:
        NoResults: it holds none.
    """
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "kind": str(row["kind"]), "name": str(row["name"])})
        except (ValueError, KeyError, TypeError):
            raise NoResults(f"{name}:{number}: no line of `relay bench --output json`") from None
    if not rows:
        raise NoResults(f"{name}: is empty; results are written by `relay bench --output json > FILE`")
    return rows


def compared(before: Iterable[Row], after: Iterable[Row]) -> list[Row]:
    """Each figure that both have: before, after, the ratio, and whether that is better by more than a tenth, worse, or
    neither."""
    known = {(row["kind"], row["name"]): row for row in before}
    found: list[Row] = []
    for row in after:
        old = known.get((row["kind"], row["name"]), {})
        for key in row:
            if key in LOWER_IS_BETTER | HIGHER_IS_BETTER and _is_number(row[key]) and _is_number(old.get(key)):
                ratio = row[key] / old[key] if old[key] else None
                found.append(
                    {
                        "kind": "comparison",
                        "name": row["name"],
                        "figure": key,
                        "before": old[key],
                        "after": row[key],
                        "ratio": None if ratio is None else round(ratio, 3),
                        "verdict": _verdict(key, old[key], row[key]),
                    }
                )
    return found


def _verdict(key: str, before: float, after: float) -> str:
    less, more = min(before, after), max(before, after)
    if more <= 1.1 * less:
        return "same"
    return "better" if (after > before) == (key in HIGHER_IS_BETTER) else "worse"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
