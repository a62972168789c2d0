"""The bodies that known receivers take: Slack, Teams, CloudEvents.

Law: pure. What is made fits the receiver's limit, cut where it does not; a value of the event is text there and never
markup, which the environments of the templates see to.
"""

import json
import re
from base64 import b64encode
from typing import Any

from relay.model import Content, Event
from relay.rules.exactness import ascii_json, document
from relay.rules.forwarding import rfc3339

SAYS_WHAT_CAME = "{{ source }}: {{ type }}"
"""The text of a message where the YAML gives none."""

SLACK_LIMIT = 40_000
"""Characters of a message's text; Slack cuts what is longer (its changelog of April 2018)."""
TEAMS_LIMIT = 28_000
"""Bytes of a whole message; Teams refuses more than 28 KB (Microsoft's guide to webhooks)."""

CLOUDEVENTS_TYPE = "application/cloudevents+json"

_HALF_ENTITY = re.compile(r"&[a-z]{0,3}$")
_TRAILING_BACKSLASHES = re.compile(r"\\+$")
_NOT_IN_A_STRING = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What a CloudEvents string may not hold (its section 2.3 on types)."""


def slack(text: str) -> str:
    """A message for an incoming webhook of Slack; `text` is Slack's mrkdwn."""
    if len(text) > SLACK_LIMIT:
        text = _HALF_ENTITY.sub("", text[: SLACK_LIMIT - 1]) + "…"
    return _json({"text": text})


def teams(text: str) -> str:
    """A message with one adaptive card, as a webhook of Teams' Workflows takes it; `text` is the card's Markdown."""
    whole = _card(text)
    if len(whole.encode("utf-8", "replace")) <= TEAMS_LIMIT:
        return whole
    room = TEAMS_LIMIT - len(_card("…").encode())
    low, high = 0, min(len(text), room)
    while low < high:  # the longest beginning whose JSON has room
        middle = (low + high + 1) // 2
        fits = len(_json(text[:middle]).encode("utf-8", "replace")) - 2 <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return _card(_whole_escapes(text[:low]) + "…")


def _whole_escapes(text: str) -> str:
    """Without a last backslash that has lost what it escapes."""
    last = _TRAILING_BACKSLASHES.search(text)
    return text[:-1] if last and len(last[0]) % 2 else text


def _card(text: str) -> str:
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": text, "wrap": True}],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": content}
    return _json({"type": "message", "attachments": [attachment]})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def cloudevent(event: Event, body: bytes, enriched: str | None) -> str:
    """The event in CloudEvents 1.0, structured JSON.

    Args:
        event: names it: `id`, `source` as a path, `type`, `time`.
        body: JSON stands in `data` as it came, anything else in `data_base64`.
        enriched: JSON that stands in `data` instead.
    """
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/sources/{event.source}",
        "type": _NOT_IN_A_STRING.sub("\ufffd", event.type),
        "time": rfc3339(event.received_at),
    }
    kind = Content(event.headers, body).header("content-type") or ""
    read = document(body)
    data = enriched if enriched is not None else read[0] if read is not None else None
    if data is not None:
        is_json = enriched is None and kind.partition(";")[0].strip().lower().endswith(("/json", "+json"))
        attributes["datacontenttype"] = _NOT_IN_A_STRING.sub("", kind) if is_json else "application/json"
        return f'{ascii_json(attributes)[:-1]},"data":{data}}}'
    if body:
        attributes["datacontenttype"] = _NOT_IN_A_STRING.sub("", kind) or "application/octet-stream"
        attributes["data_base64"] = b64encode(body).decode()
    return ascii_json(attributes)
