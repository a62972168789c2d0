"""Texts of the YAML that may hold templates or expressions, and the shapes of bodies that are made of them.

Law: a text is a template by what stands in the file alone. What a variable brings means itself there, so it can neither
make a plain text a template nor be read as one. What does not parse, or names what no event has, is refused here.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from relay.config import expressions, urls, values
from relay.config.expansion import Expanded
from relay.config.expressions import check_names
from relay.config.fields import Parsed, Section, one_of, setting
from relay.config.problems import Refused, kind, quoted, suggestion
from relay.model import Body, BodyFormat, PickBody, PresetBody, PresetName, TemplateBody
from relay.rules.expressions import VIEWED
from relay.rules.templating import NoTemplate, assembled, filler, forbidden_names, literal, skeleton, unknown_names

PRESETS: tuple[PresetName, ...] = ("slack", "teams", "cloudevents")
PRESETS_WITH_TEXT = ("slack", "teams")

_KINDS = ("template", "pick", "preset")
_ONE_OF_PRESETS = one_of(PRESETS, what="preset").schema
_STAND_IN = "x"
"""What stands for a tag where the text around it is judged."""
_DOT_SEGMENT = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")


@dataclass(frozen=True, slots=True)
class Written:
    """A text as it was written; `template` is what is to be filled in of it, None where it is plain."""

    text: str = field(repr=False)
    template: str | None = field(default=None, repr=False)
    outside: frozenset[str] = field(default=frozenset(), repr=False)
    """The parts that came from outside the file."""


def _written(value: str) -> Written:
    """A text with the template that it is. Raises `Refused`."""
    parts = value.parts if isinstance(value, Expanded) else ((str(value), False),)
    try:
        template = assembled(parts)
        if template is not None:
            filler(template)
            _check_names(template)
    except NoTemplate as error:
        raise Refused(str(error)) from None
    return Written(str(value), template, frozenset(text for text, is_outside in parts if is_outside and text))


def _check_names(template: str) -> None:
    for name in forbidden_names(template):
        raise Refused(f"is not a template: no template may read {quoted(name)}")
    for name in unknown_names(template):
        near = suggestion(name, VIEWED)
        raise Refused(f"unknown name {quoted(name)} in the template{near or '; known: ' + ', '.join(VIEWED)}")


def url(value: Any) -> Written:
    """A target's URL; its text is judged by `urls`, a template's by `url_template`."""
    values.text(value)
    return _written(value)


def header(value: Any) -> Written:
    """A header's value."""
    if not isinstance(value, str):
        return Written(values.header_value(value))
    written = _written(value)
    if written.template is None:
        return replace(written, text=values.header_value(value))
    values.header_value(skeleton(written.template, _STAND_IN))
    return written


def template_of(value: Any) -> Written:
    """A template of a body, or of a message; plain text makes the same of every event."""
    values.template(value)
    return _written(value)


def expression(value: Any) -> str:
    """A JMESPath expression of the file itself."""
    if isinstance(value, Expanded):
        raise Refused("must stand in the file itself, not in a variable")
    expressions.expression(values.text(value), instead="; it is JMESPath: data.total, or {id: data.id}")
    return str(value)


def selection(value: Any) -> str:
    """A JMESPath expression on an event."""
    check_names(expression(value))
    return str(value)


def format_of(value: Any) -> BodyFormat:
    """`json` or `form`."""
    return BodyFormat(values.choice(value, tuple(BodyFormat), what="format"))


def preset_of(value: Any) -> PresetName:
    """A preset that there is."""
    name = values.choice(value, PRESETS, what="preset")
    return next(one for one in PRESETS if one == name)


def body_mapping(value: Any) -> Any:
    """The mapping of `body`, None for `raw`."""
    is_written = isinstance(value, str) and not isinstance(value, Expanded)
    if is_written and value == "raw":
        return None
    if not isinstance(value, dict):
        found = quoted(value) if is_written else kind(value)
        raise Refused(f"must be raw, or one of {{template: …}}, {{pick: …}}, {{preset: …}}; found {found}")
    return value


class BodySection(Section):
    """The body that a target gets: one of `template`, `pick` and `preset`."""

    template: Annotated[Written | None, Parsed(template_of)] = setting(
        default=None, validate_default=False, description="Jinja2, filled with the event"
    )
    pick: Annotated[str | None, Parsed(selection)] = setting(
        default=None, validate_default=False, description="JMESPath; what it finds is sent as JSON"
    )
    preset: Annotated[PresetName | None, Parsed(preset_of, _ONE_OF_PRESETS)] = setting(
        default=None, validate_default=False, description="What a known receiver takes"
    )
    text: Annotated[Written | None, Parsed(template_of)] = setting(
        default=None, validate_default=False, description="Template of the message, for slack and teams"
    )


def templated_url(written: Written) -> tuple[urls.TargetUrl, str | None]:
    """The URL, and its template where it is one: then the URL is what stands before the first tag. Raises `Refused`."""
    if written.template is None:
        return urls.parsed(written.text), None
    template = written.template
    start = min(at for mark in ("{{", "{%", "{#") if (at := template.find(mark)) >= 0)
    if not re.match(r"[^:/?#]*://[^/?#]*[/?]", template[:start]):
        raise Refused("scheme, host and port must be literal: a template begins in the path or the query")
    whole = skeleton(template, _STAND_IN)
    urls.parsed(whole)
    if _DOT_SEGMENT.search(whole.partition("?")[0]):
        raise Refused("a templated URL has no . or .. in its path")
    base = urls.parsed(template[:start])
    return base, base.url + template[start:]


def body(section: BodySection) -> Body:
    """The shape that a target's YAML asks for. Raises `Refused` unless it asks for one."""
    asked = [name for name in _KINDS if getattr(section, name) is not None]
    if len(asked) != 1:
        found = f"found {' and '.join(asked)}" if asked else "found none"
        raise Refused(f"needs one of {', '.join(_KINDS)}; {found}")
    if section.text is not None and section.preset not in PRESETS_WITH_TEXT:
        raise Refused(f"text goes with preset: {' or '.join(PRESETS_WITH_TEXT)} alone; a template is a body of its own")
    if section.template is not None:
        return template_body(section.template)
    if section.pick is not None:
        return PickBody(section.pick)
    assert section.preset is not None
    return PresetBody(section.preset, None if section.text is None else as_template(section.text))


def template_body(written: Written) -> TemplateBody:
    """A body that a template makes."""
    return TemplateBody(as_template(written), written.outside)


def as_template(written: Written) -> str:
    """The template that a text is; a plain one makes the same of every event."""
    return written.template or literal(written.text)
