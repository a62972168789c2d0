"""How the nouns are shown: the objects of the API, which the command line prints as they are."""

from datetime import datetime
from typing import Any

from relay.model import TargetHealth, TargetState
from relay.rules.forwarding import rfc3339
from relay.store import Backlog


def shown(at: datetime | None) -> str | None:
    """A time as RFC 3339 in UTC with milliseconds, None where there is none."""
    return None if at is None else rfc3339(at)


def target_view(health: TargetHealth, backlog: Backlog, now: datetime) -> dict[str, Any]:
    """A target with its health and its backlog. What a disabled target keeps is `held`, else it is `pending`."""
    disabled = health.state is TargetState.DISABLED
    throttled = health.throttled_until if health.throttled_until and health.throttled_until > now else None
    return {
        "name": health.name,
        "state": health.state.value,
        "disabled_by": health.disabled_by.value if health.disabled_by else None,
        "reason": health.reason if disabled or health.failures else "",
        "since": shown(health.since),
        "failures": health.failures,
        "counted_events": list(health.counted_events),
        "held": backlog.pending if disabled else 0,
        "pending": 0 if disabled else backlog.pending,
        "in_flight": backlog.in_flight,
        "dead": backlog.dead,
        "oldest_pending_at": shown(backlog.oldest_received_at),
        "throttled_until": shown(throttled),
        "next_probe_at": shown(health.probe_at),
    }
