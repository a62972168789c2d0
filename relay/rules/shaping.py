"""What a target gets of an event: its body, its URL and its own headers, as the YAML shapes them.

Law: pure and total: an event either becomes one request or a reason why not. What was not asked to be changed leaves
byte for byte; the event's own JSON is never written anew, so that no digit and no key's place is lost. A value cannot
lead the request elsewhere or add a header to it.
"""

import re
from base64 import b64encode
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any

from relay.model import (
    FORM_TYPE,
    BodyFormat,
    Event,
    Fetched,
    Headers,
    PickBody,
    PresetBody,
    RawBody,
    Shaped,
    Target,
    TemplateBody,
    Unshaped,
)
from relay.rules import presets
from relay.rules.exactness import ascii_json, document, read
from relay.rules.expressions import Failed, View, found, view_of
from relay.rules.forms import NoForm, form
from relay.rules.templating import SLACK, TEAMS, TEXT, URL, Unfilled, filler

URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]|^-]*")
"""What may follow the host of a URL."""
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#{]*")
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_DOT_SEGMENT = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"

Made = tuple[str, str]
"""A body and its content type."""


class Unshapeable(Exception):
    """The reason why nothing can be sent."""


def is_shaped(target: Target, data: Any = Fetched.NOTHING) -> bool:
    """Whether a target gets anything else than the bytes as they came, at its URL, with its headers."""
    if target.url_template is not None or target.header_templates:
        return True
    return data is not Fetched.NOTHING if target.body is None else not isinstance(target.body, RawBody)


def shaped(target: Target, event: Event, body: bytes, data: Any = Fetched.NOTHING) -> Shaped | Unshaped:
    """The request of one event to one target.

    Args:
        target: whose YAML shapes it.
        event: what came, without its body where that is large.
        body: the event's bytes.
        data: what was fetched for it.
    """
    if not is_shaped(target, data):
        return Shaped(body)
    try:
        view: View = {}
        if target.body is not None or target.url_template is not None or target.header_templates:
            view = view_of(event, body, None if data is Fetched.NOTHING else data)  # which parses the body
        url = None if target.url_template is None else filled_url(target.url_template, view)
        headers = tuple((name, filled_header(name, text, view)) for name, text in target.header_templates)
        return _with_body(target, event, body, data, view, url=url, headers=headers)
    except Unshapeable as reason:
        return Unshaped(str(reason))


def _with_body(
    target: Target, event: Event, body: bytes, data: Any, view: View, *, url: str | None, headers: Headers
) -> Shaped:
    made = _body(target, event, body, data, view)
    if made is None:
        return Shaped(body, url=url, headers=headers)
    text, content_type = made
    return Shaped(text.encode("utf-8", "replace"), is_changed=True, content_type=content_type, url=url, headers=headers)


def _body(target: Target, event: Event, body: bytes, data: Any, view: View) -> Made | None:
    """A body of ours, None where it is the provider's."""
    match target.body:
        case None if data is not Fetched.NOTHING:
            return _enriched(body, data), JSON_TYPE
        case TemplateBody(template):
            return _formatted(filled("body", template, TEXT, view), target.format)
        case PickBody(expression):
            return _picked(expression, target.format, view)
        case PresetBody("cloudevents"):
            enriched = None if data is Fetched.NOTHING else _enriched(body, data)
            return _written(lambda: presets.cloudevent(event, body, enriched)), presets.CLOUDEVENTS_TYPE
        case PresetBody(preset, text):
            return _message(preset, text or presets.SAYS_WHAT_CAME, view), JSON_TYPE
    return None


def _enriched(body: bytes, data: Any) -> str:
    """The event's own JSON and what was fetched for it; where it came as no JSON, `event` is null and `event_base64`
    has its bytes."""
    own = document(body)
    event = own[0] if own is not None else f'null,"event_base64":"{b64encode(body).decode()}"'
    return f'{{"event":{event},"data":{_written(lambda: ascii_json(data))}}}'


def _message(preset: str, template: str, view: View) -> str:
    text = filled("text", template, SLACK if preset == "slack" else TEAMS, view)
    if not text.strip():
        raise Unshapeable("template: text: it makes an empty message")
    return presets.slack(text) if preset == "slack" else presets.teams(text)


def _picked(expression: str, wanted: BodyFormat | None, view: View) -> Made:
    value = found(expression, view)
    if isinstance(value, Failed):
        raise Unshapeable(f"pick: {value.reason}")
    if value is None:
        raise Unshapeable("pick: the expression found nothing in this event")
    if wanted is BodyFormat.FORM:
        return _form("pick", value), FORM_TYPE
    return _written(lambda: ascii_json(value)), JSON_TYPE


def _formatted(text: str, wanted: BodyFormat | None) -> Made:
    """What a template made, as it is; where no format is asked for it is named by what it looks like."""
    try:
        value = read(text)
    except RecursionError:
        raise Unshapeable("template: body: it makes JSON that is nested too deeply") from None
    except ValueError as error:
        if wanted is None:
            return text, TEXT_TYPE
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, JSONDecodeError) else ""
        raise Unshapeable(f"template: body: it makes no JSON, which breaks{where}") from None
    if wanted is BodyFormat.FORM:
        return _form("template: body", value), FORM_TYPE
    return text, TEXT_TYPE if wanted is None and not isinstance(value, dict | list) else JSON_TYPE


def _form(what: str, value: Any) -> str:
    try:
        return form(value)
    except (NoForm, ValueError, TypeError) as error:
        reason = str(error) if isinstance(error, NoForm) else "it cannot be written as a form"
        raise Unshapeable(f"{what}: {reason}") from None


def _written(write: Callable[[], str]) -> str:
    try:
        return write()
    except RecursionError:
        raise Unshapeable("body: the data is nested too deeply") from None
    except (ValueError, TypeError):
        raise Unshapeable("body: the data cannot be written as JSON") from None


def filled(what: str, template: str, environment: Any, view: View) -> str:
    """The text of a template. Raises `Unshapeable`."""
    try:
        return filler(template, environment).filled(view)
    except Unfilled as reason:
        raise Unshapeable(f"template: {what}: {reason}") from None


def filled_url(template: str, view: View) -> str:
    """The filled URL, at the very place that the YAML names. Raises `Unshapeable`."""
    origin = _ORIGIN.match(template)
    url = filled("url", template, URL, view)
    rest = url[origin.end() :] if origin is not None and url.startswith(origin[0]) else None
    if rest is None or rest[:1] not in ("", "/", "?"):
        raise Unshapeable("template: url: it leads to another host")
    if URL_CHARACTERS.fullmatch(rest) is None:
        raise Unshapeable("template: url: it holds what no URL may")
    if _DOT_SEGMENT.search(rest.partition("?")[0]):
        raise Unshapeable("template: url: a part of its path is a dot segment")
    return url


def filled_header(name: str, template: str, view: View) -> str:
    """The value of a header, fit to be sent. Raises `Unshapeable`."""
    text = filled(f"headers.{name}", template, TEXT, view).strip(" \t")
    if _UNSENDABLE.search(text):
        raise Unshapeable(f"template: headers.{name}: it holds a line break or what else no header may")
    return text
