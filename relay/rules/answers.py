"""What a target's answer means.

Law: pure and total: every status line a target can send has exactly one meaning.
"""

import json
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from relay.model import OutcomeKind, Target
from relay.rules.expressions import Failed, holds
from relay.rules.retry import RETRY_AFTER_CAP


def meaning(status: int, target: Target, *, retry_after: timedelta | None) -> OutcomeKind:
    """The outcome that a status stands for; the target's own lists win over the table."""
    if target.success is not None and status in target.success:
        return OutcomeKind.DELIVERED
    if status in target.refusals:
        return OutcomeKind.REFUSED
    if status == 429 or (status == 503 and retry_after is not None):
        return OutcomeKind.THROTTLED
    if status == 410:
        # of a templated URL, one resource is gone and not the target
        return OutcomeKind.GONE if target.url_template is None else OutcomeKind.REFUSED
    if target.success is None and 200 <= status < 300:
        return OutcomeKind.DELIVERED
    return OutcomeKind.FAILED


def unfulfilled(success_when: str, body: bytes) -> str | None:
    """Why an answer whose status is a success is none all the same, or None where the condition holds on its JSON."""
    if not body.strip():
        return "success_when says no: the answer is empty"
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return "success_when says no: the answer is not JSON"
    verdict = holds(success_when, answer)
    if isinstance(verdict, Failed):
        return f"success_when says no: {verdict.reason}"
    return None if verdict else "success_when says no"


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The wait that a `Retry-After` header asks for (RFC 9110, section 10.2.3), at most 24 h.

    Seconds or an HTTP date; one that is over asks for no wait, and what is neither asks for nothing: None.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text.lstrip("0")[:9] or "0")), RETRY_AFTER_CAP)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
    return max(timedelta(0), min(wait, RETRY_AFTER_CAP))


def status_line(head: bytes) -> int | None:
    """The final status of an answer that begins with these bytes, None where they hold no such HTTP/1 status line.

    Interim answers (RFC 9110, section 15.2) are passed over.
    """
    while (status := _status(head)) is not None and 100 <= status < 200:
        _, end, head = head.partition(b"\r\n\r\n")
        if not end:
            return None
    return status


def _status(head: bytes) -> int | None:
    if len(head) < 12 or not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or not head[9:12].isdigit():
        return None
    return int(head[9:12]) if head[12:13] in (b"", b" ", b"\r", b"\n") else None
