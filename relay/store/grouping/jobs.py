"""How replay jobs stand in rows and come back out of them, and how they move."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from relay.rules.rate import rate_from
from relay.store.grouping.rows import millis, moment
from relay.store.replays import JOB_MOVES, JobState, Replayable, ReplayFilter, ReplayJob

PART = 1000
"""Items written, or removed, in one transaction."""
CUT_OFF = "its set was cut off while it was gathered"

JOB_COLUMNS = "seq, id, state, filter, rate, total, done, skipped, created_at, ended_at, reason"
"""What `job_from` takes, in this order."""


def job_from(row: Sequence[Any]) -> ReplayJob:
    """A job from its row."""
    _, job_id, state, wanted, rate, total, done, skipped, created_at, ended_at, reason = row
    created, pace = moment(created_at), rate_from(rate)
    assert created is not None
    assert pace is not None
    return ReplayJob(
        id=job_id,
        filter=filter_from(wanted),
        rate=pace,
        created_at=created,
        state=JobState(state),
        total=total,
        done=done,
        skipped=skipped,
        ended_at=moment(ended_at),
        reason=reason,
    )


def moved_to(job: ReplayJob, to: JobState, reason: str, now: datetime) -> ReplayJob | None:
    """A job after a move, None where that is not legal."""
    if to not in JOB_MOVES[job.state]:
        return None
    return replace(job, state=to, reason=reason, ended_at=None if JOB_MOVES[to] else now)


def filter_text(wanted: ReplayFilter) -> str:
    """A filter as its column holds it."""
    given = {
        "state": wanted.state.value,
        "since": wanted.since and millis(wanted.since),
        "until": wanted.until and millis(wanted.until),
        "source": wanted.source,
        "type": wanted.type,
        "target": wanted.target,
        "limit": wanted.limit,
    }
    return json.dumps({name: value for name, value in given.items() if value is not None})


def filter_from(text: str) -> ReplayFilter:
    """A filter from its column."""
    given = json.loads(text)
    return ReplayFilter(
        Replayable(given["state"]),
        since=moment(given.get("since")),
        until=moment(given.get("until")),
        source=given.get("source"),
        type=given.get("type"),
        target=given.get("target"),
        limit=given.get("limit"),
    )
