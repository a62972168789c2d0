"""Bodies, formats and templates in the YAML: what is read, and what is refused with its place."""

from collections.abc import Callable
from typing import Any

import pytest

from relay.config import Config
from relay.model import BodyFormat, PickBody, PresetBody, RawBody, Target, TemplateBody
from relay.rules.secrets import credentials, log_secrets
from relay.rules.templating import filler
from tests.config.conftest import document

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

TEMPLATE = '{"id": {{ body.id | tojson }}}'


def only(config: Config) -> Target:
    (target,) = config.targets
    return target


@pytest.mark.parametrize(
    ("settings", "body", "wanted"),
    [
        ({}, None, None),
        ({"body": "raw"}, RawBody(), None),
        ({"body": {"template": TEMPLATE}}, TemplateBody(TEMPLATE), None),
        ({"body": {"template": "line\nline\n"}, "format": "json"}, TemplateBody("line\nline\n"), BodyFormat.JSON),
        ({"body": {"pick": "data.{id: id}"}, "format": "form"}, PickBody("data.{id: id}"), BodyFormat.FORM),
        ({"body": {"preset": "slack"}}, PresetBody("slack"), None),
        ({"body": {"preset": "teams", "text": "{{ id }}"}}, PresetBody("teams", "{{ id }}"), None),
        ({"body": {"preset": "cloudevents"}}, PresetBody("cloudevents"), None),
    ],
)
def test_a_body_is_what_the_yaml_asks_for(build: Loader, settings: Any, body: Any, wanted: Any) -> None:
    """Said as raw is not the same as not said."""
    target = only(build(target=settings))
    assert (target.body, target.format) == (body, wanted)
    assert build(target=settings).targets == build(target=settings).targets


KINDS = "must be raw, or one of {template: …}, {pick: …}, {preset: …}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"body": "json"}, f'body: {KINDS}; found "json"'),
        ({"body": 5}, f"body: {KINDS}; found integer"),
        ({"body": {}}, "body: needs one of template, pick, preset; found none"),
        (
            {"body": {"template": "x", "pick": "id"}},
            "body: needs one of template, pick, preset; found template and pick",
        ),
        ({"body": {"text": "x"}}, "body: needs one of template, pick, preset; found none"),
        ({"body": {"tmplate": "x"}}, 'body.tmplate: unknown key "tmplate"; did you mean "template"?'),
        ({"body": {"template": ""}}, "body.template: must be a string, found nothing"),
        ({"body": {"template": 5}}, "body.template: must be a string, found integer"),
        (
            {"body": {"template": "a\n{{ id"}},
            "body.template: is not a template: unexpected end of template, expected 'end of print statement'.",
        ),
        (
            {"body": {"template": "{{ event.id }}"}},
            'body.template: unknown name "event" in the template; known: id, type, source, received_at,',
        ),
        (
            {"body": {"template": "{{ bdoy.id }}"}},
            'body.template: unknown name "bdoy" in the template; did you mean "body"?',
        ),
        (
            {"body": {"pick": "a."}},
            'body.pick: "a." is not a JMESPath expression; it is JMESPath: data.total, or {id: data.id}',
        ),
        ({"body": {"pick": "{order: boddy.id}"}}, 'body.pick: "boddy" is nothing that an event has'),
        ({"body": {"pick": "headers.Cookie"}}, 'body.pick: "Cookie" is a credential, which is not kept of an event'),
        ({"body": {"pick": "lenght(a)"}}, 'body.pick: unknown JMESPath function "lenght"'),
        ({"body": {"preset": "slak"}}, 'body.preset: unknown preset "slak"; did you mean "slack"?'),
        ({"body": {"preset": "irc"}}, 'body.preset: unknown preset "irc"; known: slack, teams, cloudevents'),
        (
            {"body": {"preset": "cloudevents", "text": "x"}},
            "body: text goes with preset: slack or teams alone; a template is a body of its own",
        ),
        (
            {"body": {"template": "x", "text": "x"}},
            "body: text goes with preset: slack or teams alone; a template is a body of its own",
        ),
        ({"body": {"pick": "id"}, "format": "xml"}, 'format: unknown format "xml"; known: json, form'),
        (
            {"format": "json"},
            "format: encodes a body that is made: say body: {template: …} or body: {pick: …} as well, or remove it",
        ),
        (
            {"body": "raw", "format": "json"},
            "format: encodes a body that is made: say body: {template: …} or body: {pick: …} as well, or remove it",
        ),
        ({"body": {"preset": "slack"}, "format": "json"}, "format: preset slack has its own format; remove this key"),
        ({"headers": {"X-A": "{{ x }}"}}, 'headers.X-A: unknown name "x" in the template; known: id, type, source'),
        ({"headers": {"X-A": "{{ id"}}, "headers.X-A: is not a template: unexpected end of template"),
        ({"headers": {"X-A": "ä{{ id }}"}}, "headers.X-A: not a valid header value: only printable ASCII may be sent"),
        ({"headers": {"X-A": " {{ id }}"}}, "headers.X-A: begins or ends with white space"),
        ({"headers": {"Host": "{{ id }}"}}, "headers.Host: set by the connection itself; it cannot be configured"),
    ],
)
def test_what_cannot_be_made_is_refused_with_its_place(refused: Refuser, settings: Any, message: str) -> None:
    """Before an event comes, in words that tell what would be right."""
    (line,) = refused(target=settings)
    assert line.startswith(f"targets.crm.{message}")


LITERAL = "scheme, host and port must be literal: a template begins in the path or the query"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{{ body.url }}", LITERAL),
        ("https://{{ body.host }}/x", LITERAL),
        ("https://h.example{{ body.path }}", LITERAL),
        ("https://h.example:{{ body.port }}/x", LITERAL),
        ("https://{{ id }}@h.example/x", LITERAL),
        ("{% if body %}https{% endif %}://h.example/x", LITERAL),
        ("https:/{# #}/h.example/x", LITERAL),
        ("https://u:p@h.example/{{ id }}", "credentials in URLs are not allowed"),
        ("ftp://h.example/{{ id }}", "scheme must be http or https"),
        ("https://h.example:0/{{ id }}", "port out of range"),
        ("https://h.example/{{ id }}#x", "a fragment (#…) is never sent"),
        ("https://h.example/{{ id }}/\u00e4", "path and query must be ASCII"),
        ("https://h.example/{{ id }}/ x", "holds white space"),
        ("https://h.example/../{{ id }}", "a templated URL has no . or .. in its path"),
        ("https://h.example/{{ nr }}", 'unknown name "nr" in the template'),
        ("https://h.example/{{ id }", "is not a template"),
        ("http://169.254.169.254/{{ id }}", "cloud metadata"),
        ("http://127.1/{{ id }}", '"127.1" is not a canonical IPv4 address'),
    ],
)
def test_a_templated_url_has_a_literal_origin(refused: Refuser, url: str, message: str) -> None:
    """It passes every check that a plain one passes, and no event has a say in it."""
    (line,) = refused(target={"url": url})
    assert line.startswith("targets.crm.url: ")
    assert message in line


def test_a_url_is_kept_as_what_is_plain_and_the_template(build: Loader, warned: Refuser) -> None:
    """What is plain is for the connection; a host in another alphabet is rewritten in both."""
    target = only(build(target={"url": "https://h.example:8443/a/{{ body.id }}?x={{ id }}"}))
    assert (target.url, target.url_template) == (
        "https://h.example:8443/a/",
        "https://h.example:8443/a/{{ body.id }}?x={{ id }}",
    )
    assert only(build(target={"url": "https://bücher.example/{{ id }}"})).url_template == (
        "https://xn--bcher-kva.example/{{ id }}"
    )
    assert only(build(target={"url": "https://h.example?x={{ id }}"})).url == "https://h.example?x="
    assert warned(target={"url": "http://h.example.com/{{ id }}"}) == [
        "targets.crm.url: plain http to a public host: anyone on the way can read and change what is sent"
    ]


def test_plain_headers_and_templates_are_kept_apart(build: Loader) -> None:
    """Only a template is filled for each event."""
    target = only(build(target={"headers": {"X-A": "plain", "X-B": "{{ id }}", "X-C": "{ {"}}))
    assert target.headers == (("X-A", "plain"), ("X-C", "{ {"))
    assert target.header_templates == (("X-B", "{{ id }}"),)


# --- what comes from outside the file ---

NASTY = "s3cret{{ id }}{% raw %}"


def test_a_variable_is_never_read_as_a_template(read: Loader) -> None:
    """Alone it is plain text; beside a template it means itself."""
    text = document(
        target={
            "url": "${BASE}/x/{{ body.id }}",
            "headers": {"Authorization": "Bearer ${NASTY}", "X-Both": "{{ id }} ${NASTY}"},
            "body": {"template": "${NASTY}|{{ id }}|{${BRACE}"},
        }
    )
    target = only(read(text, BASE="https://h.example/base", NASTY=NASTY, BRACE="{ id }}"))
    assert target.url_template == "https://h.example/base/x/{{ body.id }}"
    assert target.headers == (("Authorization", f"Bearer {NASTY}"),)
    ((_, header),) = target.header_templates
    assert filler(header).filled({"id": "I"}) == f"I {NASTY}"
    assert isinstance(target.body, TemplateBody)
    assert filler(target.body.template).filled({"id": "I"}) == NASTY + "|I|{{ id }}"
    plain = only(read(document(target={"body": {"template": "${NASTY}"}}), NASTY=NASTY))
    assert isinstance(plain.body, TemplateBody)
    assert filler(plain.body.template).filled({}) == NASTY


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"body": {"template": "{{ body['${V}'] }}"}}, "body.template: a ${…} stands inside {{ }}, {% %} or {# #}"),
        ({"headers": {"X-A": "{{ ${V} }}"}}, "headers.X-A: a ${…} stands inside {{ }}, {% %} or {# #}"),
        ({"url": "https://h.example/{{ ${V} }}"}, "url: a ${…} stands inside {{ }}, {% %} or {# #}"),
        ({"body": {"pick": "${V}"}}, "body.pick: must stand in the file itself, not in a variable"),
    ],
)
def test_a_variable_is_no_code(refusals: Refuser, settings: Any, message: str) -> None:
    """Where it would be read it is refused, and not shown."""
    (line,) = refusals(document(target=settings), V="hidden_value")
    assert f"targets.crm.{message}" in line
    assert "hidden_value" not in line


def test_what_a_template_sends_in_every_request_is_a_secret_of_the_target(read: Loader) -> None:
    """A target that echoes it does not bring it into what is kept, and the log does not show it."""
    text = document(
        target={
            "url": "https://h.example/hooks/T0KEN-1n-the-path-of-it/{{ id }}",
            "headers": {"X-Token": "{{ source }} sup3r-s3cret-value"},
            "body": {"template": '{"key": "${KEY}", "id": "{{ id }}"}'},
        }
    )
    config = read(text, KEY="b0dy-s3cret-value")
    secrets = {"T0KEN-1n-the-path-of-it", "sup3r-s3cret-value", "b0dy-s3cret-value"}
    assert secrets <= credentials(only(config))
    assert secrets <= log_secrets((), config.targets, None)
    assert not any(secret in repr(config.targets) for secret in secrets)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ id.__class__.__mro__ }}",
        "{{ body['__globals__'] }}",
        "{% if id.__init__ %}{% endif %}",
    ],
)
def test_a_template_that_reaches_for_pythons_insides_is_refused(refused: Refuser, template: str) -> None:
    """What the sandbox would forbid with every event is told while the config is read."""
    (line,) = refused(target={"body": {"template": template}})
    assert line.startswith('targets.crm.body.template: is not a template: no template may read "__')
    (line,) = refused(target={"headers": {"X-A": template}})
    assert "no template may read" in line


def test_a_field_of_an_event_may_begin_with_underscores(build: Loader) -> None:
    """Such names are usual in JSON."""
    build(target={"body": {"template": "{{ body._id }}{{ body.__v }}{{ body['_rev'] }}"}})
