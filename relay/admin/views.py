"""How the nouns are shown: the objects of the API, which the command line prints as they are."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from relay.model import DeliveryState, Headers, Target, TargetHealth, TargetState
from relay.rules.forwarding import rfc3339
from relay.rules.routing import Verdict
from relay.store import Backlog
from relay.store.archive import EventRecord, KeptAttempt, KeptDelivery, KeptEvent, KeptFetch, RefusedRequest, Tally

HELD = "held"
"""How a pending delivery is shown whose target takes none."""
UNROUTED = "unrouted"


def shown_at(at: datetime | None) -> str | None:
    """A time as RFC 3339 in UTC with milliseconds, None where there is none."""
    return None if at is None else rfc3339(at)


def target_view(
    health: TargetHealth,
    backlog: Backlog,
    now: datetime,
    tally: Mapping[str, int] | None = None,
    *,
    configured: bool = True,
) -> dict[str, Any]:
    """A target with its health, its backlog and the outcomes of its last hour. What a disabled target keeps is
    `held`, else it is `pending`."""
    disabled = health.state is TargetState.DISABLED
    throttled = health.throttled_until if health.throttled_until and health.throttled_until > now else None
    attempts = sum((tally or {}).values())
    return {
        "name": health.name,
        "configured": configured,
        "state": health.state.value,
        "disabled_by": health.disabled_by.value if health.disabled_by else None,
        "reason": health.reason if disabled or health.failures else "",
        "since": shown_at(health.since),
        "failures": health.failures,
        "paced": health.paced,
        "counted_events": list(health.counted_events),
        "held": backlog.pending if disabled else 0,
        "pending": 0 if disabled else backlog.pending,
        "in_flight": backlog.in_flight,
        "dead": backlog.dead,
        "oldest_pending_at": shown_at(backlog.oldest_received_at),
        "throttled_until": shown_at(throttled),
        "next_probe_at": shown_at(health.probe_at),
        "attempts_last_hour": attempts,
        "success_rate": round((tally or {}).get("delivered", 0) / attempts, 4) if attempts else None,
    }


def event_view(event: KeptEvent, held: Collection[str]) -> dict[str, Any]:
    """An event with where its deliveries stand; `held` are the targets that take none now."""
    return {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "received_at": shown_at(event.received_at),
        "deliveries": [_delivery_view(delivery, held) for delivery in event.deliveries],
    }


def _delivery_view(delivery: KeptDelivery, held: Collection[str]) -> dict[str, Any]:
    is_pending = delivery.state is DeliveryState.PENDING
    is_held = is_pending and delivery.target in held
    return {
        "target": delivery.target,
        "state": HELD if is_held else delivery.state.value,
        "attempts": delivery.attempts,
        "outcome": delivery.outcome,
        "status": delivery.status,
        "next_attempt_at": shown_at(delivery.due_at) if is_pending and not is_held else None,
    }


def record_view(
    record: EventRecord,
    held: Collection[str],
    *,
    targets: Mapping[str, Target],
    firsts: Mapping[str, str],
    headers: Headers,
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """An event with all that is kept of it but its body; `headers` are those that may be shown, `firsts` the ids of
    the events that ordered targets get next, `verdicts` what the routes of today say of it."""
    view = event_view(record.event, held)
    for shown, delivery in zip(view["deliveries"], record.event.deliveries, strict=True):
        target = targets.get(delivery.target)
        first = firsts.get(delivery.target) if delivery.state is DeliveryState.PENDING else None
        behind = None if first == record.event.id else first
        shown |= {
            "next_attempt_at": None if behind else shown["next_attempt_at"],
            "held_back_by": behind,
            "enrichers": list(delivery.enrichers),
            "reason": delivery.reason,
            "settled_at": shown_at(delivery.settled_at),
            "step": delivery.step,
            "tries": None if target is None else len(target.schedule) + 1,
            "replays": delivery.replays,
            "attempt_log": [_attempt_view(one) for one in record.attempts if one.target == delivery.target],
        }
    return view | {
        "verified": record.verified,
        "hops": record.hops,
        "size": record.size,
        "sha256": record.sha256.hex(),
        "headers": [list(header) for header in headers],
        "routes": None if record.routes is None else list(record.routes),
        "fetched": [_fetch_view(one) for one in record.fetches],
        "failed_conditions": [{"route": place, "reason": reason} for place, reason in record.failed_conditions],
        "routing": [verdict.shown() for verdict in verdicts],
    }


def _fetch_view(fetch: KeptFetch) -> dict[str, Any]:
    """What was fetched; the data itself only where it was asked for."""
    view = {"enricher": fetch.enricher, "fetched_at": shown_at(fetch.fetched_at), "bytes": fetch.size}
    return view if fetch.data is None else view | {"data": fetch.data.decode("utf-8", "replace")}


def _attempt_view(attempt: KeptAttempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "began_at": shown_at(attempt.began_at),
        "duration_ms": attempt.duration_ms,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "reason": attempt.reason,
        "excerpt": attempt.excerpt,
    }


def refusal_view(refusal: RefusedRequest) -> dict[str, Any]:
    """A request that was turned away."""
    return {
        "received_at": shown_at(refusal.received_at),
        "source": refusal.source,
        "remote": refusal.remote,
        "status": refusal.status,
        "reason": refusal.reason,
        "detail": refusal.detail,
        "bytes": refusal.size,
        "headers": [list(header) for header in refusal.headers],
    }


def tally_view(tally: Tally, sources: Collection[str], targets: Collection[str]) -> dict[str, Any]:
    """What was counted, by source and target; those of the config are there also where nothing was."""
    return {
        "since": shown_at(tally.began_at),
        "totals": _counted(tally.ever, sources, targets),
        "last_hour": _counted(tally.last_hour, sources, targets),
    }


RESULTS = ("accepted", "unrouted", "duplicate", "refused")


def _counted(
    counts: Mapping[tuple[str, str, str], int], sources: Collection[str], targets: Collection[str]
) -> dict[str, Any]:
    shown: dict[str, dict[str, dict[str, int]]] = {
        "sources": {name: dict.fromkeys(RESULTS, 0) for name in sources},
        "targets": {name: {"delivered": 0, "dead": 0} for name in targets},
    }
    for (kind, name, what), number in sorted(counts.items()):
        shown[f"{kind}s"].setdefault(name, {})[what] = number
    return shown


def by_target(tally: Tally) -> dict[str, dict[str, int]]:
    """The outcomes of the attempts of the last hour, by target."""
    found: dict[str, dict[str, int]] = {}
    for (kind, name, what), number in tally.last_hour.items():
        if kind == "target" and what != "dead":
            found.setdefault(name, {})[what] = number
    return found
