"""Turns what happened into its one log line and its counts.

Law: one line a unit of work, told after it was committed; the words are those of the contract. Nothing here can fail
a delivery or an answer.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from relay.delivery.observing import Attempted
from relay.model import Claim, DisabledBy, Event, GiveUp, Outcome, OutcomeKind, RetryAt, TargetHealth, TargetState
from relay.rules.enriching import Answer, Brought, Failing, Refused, Throttled
from relay.rules.forwarding import rfc3339
from relay.rules.rate import written
from relay.rules.retry import is_recorded
from relay.store.replays import JobState, ReplayedEvent, ReplayJob
from relay.telemetry.lines import compact_traceback
from relay.telemetry.metrics import Metrics

log = structlog.get_logger()

_DELIVERED, _SKIPPED = OutcomeKind.DELIVERED, OutcomeKind.SKIPPED
"""An enum's members are slow to look up, and these are for each attempt."""

_FETCHES = {Brought: "fetched", Refused: "refused", Throttled: "throttled", Failing: "failed"}
"""What came of a fetch, as it is counted."""


class Reporter:
    """Observer of attempts, watcher of the store, and supervisor of the loops, in words and numbers."""

    def __init__(self, metrics: Metrics, *, end: Callable[[], None]) -> None:
        """`end` ends the process, with exit code 1."""
        self._metrics = metrics
        self._log = log.bind()  # the logger itself: the way to it by its stand-in takes a seventh of a line
        self._end = end
        self._held: Callable[[str], int] = lambda _: 0

    def count_held_by(self, held: Callable[[str], int]) -> None:
        """Name who knows how many deliveries wait at a target."""
        self._held = held

    def attempted(self, attempt: Attempted) -> None:
        """Tell of a recorded attempt."""
        claim, outcome, ruling = attempt.claim, attempt.sent.outcome, attempt.settled.ruling
        event, target, kind = claim.event, claim.target, outcome.kind
        if kind is _SKIPPED:
            self._skipped(claim, outcome)
        if not is_recorded(claim, outcome):
            return
        seconds = (attempt.ended_at - attempt.began_at).total_seconds()
        self._metrics.attempted(target, kind, seconds)
        fields: dict[str, object] = {
            "target": target,
            "source": event.source,
            "event_id": event.id,
            "delivery_id": claim.delivery_id,
            "attempt": claim.attempt,
            "outcome": kind,
            "status": outcome.status,
            "duration_ms": round(seconds * 1000, 1),
        }
        if attempt.sent.dropped_headers:
            log.warning(
                "delivery.header_dropped",
                target=target,
                event_id=event.id,
                headers=list(attempt.sent.dropped_headers),
            )
        if kind is _DELIVERED and ruling is not None:
            self._metrics.delivered(target, (attempt.ended_at - event.received_at).total_seconds())
            self._log.info("delivery.attempted", **fields)
            return
        fields["reason"] = outcome.reason
        if ruling is None:
            fields["reason"] = f"{outcome.reason}; its claim was lost, nothing was changed"
        elif isinstance(ruling.decision, RetryAt):
            is_held = ruling.health.state is TargetState.DISABLED
            fields |= {"held": True} if is_held else {"next_attempt_at": rfc3339(ruling.decision.at)}
        log.warning("delivery.attempted", **fields)
        if ruling is not None and isinstance(ruling.decision, GiveUp):
            fields["reason"] = ruling.decision.reason
            log.error("delivery.dead", **fields)

    def _skipped(self, claim: Claim, outcome: Outcome) -> None:
        """Tell that a condition on what was fetched turned a delivery away."""
        log.info(
            "delivery.skipped",
            target=claim.target,
            source=claim.event.source,
            event_id=claim.event.id,
            delivery_id=claim.delivery_id,
            reason=outcome.reason,
        )

    def enriched(self, enricher: str, event: Event, answer: Answer, *, took: timedelta) -> None:
        """Tell of a fetch; one that brought nothing is told again by the delivery that needed it."""
        seconds = took.total_seconds()
        self._metrics.enriched(enricher, _FETCHES[type(answer)])
        fields = {"enricher": enricher, "event_id": event.id, "duration_ms": round(seconds * 1000, 1)}
        if isinstance(answer, Brought):
            log.info("event.enriched", **fields, bytes=len(answer.data))
        else:
            log.warning("event.not_enriched", **fields, reason=answer.reason)

    def enricher_failing(self, enricher: str, reason: str, *, next_at: datetime) -> None:
        """Tell that nobody asks an enricher for a while."""
        log.error("enricher.failing", enricher=enricher, reason=reason, next_attempt_at=rfc3339(next_at))

    def enricher_recovered(self, enricher: str) -> None:
        """Tell that it answers again."""
        log.warning("enricher.recovered", enricher=enricher)

    def disabled(self, health: TargetHealth) -> None:
        """Tell once that a target holds from now on; that a hand did it is no error."""
        tell = log.warning if health.disabled_by is DisabledBy.HAND else log.error
        tell(
            "target.disabled",
            target=health.name,
            disabled_by=health.disabled_by,
            reason=health.reason,
            failures=health.failures,
            counted_events=list(health.counted_events),
            held=self._held(health.name),
            next_probe_at=None if health.probe_at is None else rfc3339(health.probe_at),
            advice=f"relay targets enable {health.name}",
        )

    def enabled(self, health: TargetHealth) -> None:
        """Tell that a target takes deliveries again."""
        log.warning("target.enabled", target=health.name, held=self._held(health.name))

    def event_replayed(self, replayed: ReplayedEvent) -> None:
        """Tell that one event was replayed by hand."""
        log.info("event.replayed", source=replayed.source, event_id=replayed.event_id, targets=list(replayed.replayed))

    def replay_started(self, job: ReplayJob) -> None:
        """Tell that a replay begins, or goes on."""
        log.info("replay.started", **_counts(job), filter=job.filter.state.value, rate=written(job.rate))

    def replay_paused(self, job: ReplayJob) -> None:
        """Tell that a replay stands still, and how it goes on."""
        log.warning("replay.paused", **_counts(job), reason=job.reason, advice=f"relay replay --resume {job.id}")

    def replay_finished(self, job: ReplayJob) -> None:
        """Tell that a replay is over."""
        is_done = job.state is JobState.DONE
        log.info("replay.finished", **_counts(job), outcome=job.state.value, reason="" if is_done else job.reason)

    def committed(self, seconds: float) -> None:
        """Count a commit."""
        self._metrics.committed(seconds)

    def unavailable(self, reason: str) -> None:
        """Tell once an outage that nothing can be stored."""
        log.error("store.unavailable", reason=reason)

    def recovered(self, seconds: float) -> None:
        """Tell that the outage is over."""
        log.warning("store.recovered", after_seconds=round(seconds, 1))

    def loop_failed(self, target: str, error: BaseException, *, restart_in: timedelta) -> None:
        """Tell of a fault of ours in a delivery loop."""
        log.error(
            "delivery.loop_failed",
            target=target,
            reason=f"{type(error).__name__}: {error}",
            traceback=compact_traceback(error),
            restart_in_s=restart_in.total_seconds(),
        )

    def reclaimed(self, number: int) -> None:
        """Tell of work that somebody has left."""
        log.warning(
            "delivery.reclaimed",
            number=number,
            reason="their leases have ended: who had claimed them is gone, or has stood still for too long",
        )

    def loops_keep_failing(self, error: BaseException) -> None:
        """End the process: a delivery loop that is down and stays down must not look alive."""
        log.critical("delivery.loops_keep_failing", reason=f"{type(error).__name__}: {error}")
        asyncio.get_running_loop().call_soon(self._end)


def _counts(job: ReplayJob) -> dict[str, object]:
    return {"replay_id": job.id, "total": job.total, "replayed": job.done, "skipped": job.skipped}
