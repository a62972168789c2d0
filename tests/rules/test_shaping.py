"""What an event becomes for one target: the whole request, or a reason."""

import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import (
    Body,
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
from relay.rules.forms import LONGEST_FORM
from relay.rules.forwarding import outgoing_headers
from relay.rules.presets import SLACK_LIMIT, TEAMS_LIMIT
from relay.rules.shaping import is_shaped, shaped

AT = datetime(2026, 9, 20, 10, 15, 31, 42_999, UTC)
JSON_HEADERS = (("Content-Type", "application/json; charset=utf-8"),)
EVENT = Event("evt_1", "shop", "order.paid", AT, JSON_HEADERS, b"")
BODY = b'{"z": 1.10, "a": 12345678901234567890123, "name": "Ann"}'


def target(body: Body | None = None, **more: Any) -> Target:
    return Target("one", "https://h.example/in", body=body, **more)


def made(one: Target, body: bytes = BODY, data: Any = Fetched.NOTHING, event: Event = EVENT) -> Shaped:
    shape = shaped(one, event, body, data)
    assert isinstance(shape, Shaped), shape
    return shape


def why(one: Target, body: bytes = BODY, data: Any = Fetched.NOTHING) -> str:
    shape = shaped(one, EVENT, body, data)
    assert isinstance(shape, Unshaped), shape
    return shape.reason


# --- what is not changed, and what is brought ---


@pytest.mark.parametrize(
    ("body", "data"), [(None, Fetched.NOTHING), (RawBody(), Fetched.NOTHING), (RawBody(), {"a": 1})]
)
def test_what_nobody_asked_to_change_leaves_byte_for_byte(body: Body | None, data: Any) -> None:
    """Whether it is JSON or not; and where `raw` is said, whatever was fetched."""
    for came in (BODY, b"\xff\x00", b""):
        assert made(target(body), came, data) == Shaped(came)
    assert not is_shaped(target(body), data)


def test_what_was_fetched_stands_beside_the_event_as_it_came() -> None:
    """The event's JSON is not written anew: neither a digit nor a space of it changes."""
    shape = made(target(), BODY, {"id": 5, "total": 1.5})
    assert shape.body == b'{"event":' + BODY + b',"data":{"id":5,"total":1.5}}'
    assert (shape.is_changed, shape.content_type) == (True, "application/json")
    assert made(target(), BODY, None).body == b'{"event":' + BODY + b',"data":null}'


@given(st.binary())
def test_an_event_that_is_no_json_stands_in_base64(body: bytes) -> None:
    """The whole is JSON whatever came, and the bytes can be had from it."""
    whole = json.loads(made(target(), body, {}).body)
    if "event_base64" in whole:
        assert (whole["event"], b64decode(whole["event_base64"])) == (None, body)
    else:
        assert whole["event"] == json.loads(body)


# --- templates ---


def test_a_template_is_sent_as_it_was_rendered() -> None:
    """Its own spaces and line breaks too; without a format it is called what it looks like."""
    text = '{ "n": {{ body.z }},\n "a": {{ body.a }}, "none": {{ data | tojson }} }\n'
    assert made(target(TemplateBody(text))).body == b'{ "n": 1.10,\n "a": 12345678901234567890123, "none": null }\n'
    types = {
        "[1]": "application/json",
        "{}": "application/json",
        "1": "text/plain; charset=utf-8",
        "ä": "text/plain; charset=utf-8",
    }
    assert {text: made(target(TemplateBody(text))).content_type for text in types} == types
    assert made(target(TemplateBody("1"), format=BodyFormat.JSON)).content_type == "application/json"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": {{ body.name }}}', "template: body: it makes no JSON, which breaks at line 1, column 7"),
        ('{\n"a": "x"\n"b": 1}', "template: body: it makes no JSON, which breaks at line 3, column 1"),
        ('{"a": NaN}', "template: body: it makes no JSON, which breaks"),
        ("{{ body.gone }}", "template: body: it needs 'gone', which this event has not"),
        ("[" * 50_000, "template: body: it makes JSON that is nested too deeply"),
    ],
)
def test_what_must_be_json_and_is_not_is_never_sent(text: str, reason: str) -> None:
    """The reason tells the place, and nothing of the text."""
    assert why(target(TemplateBody(text), format=BodyFormat.JSON)) == reason


def test_a_lone_surrogate_is_sent_as_a_question_mark() -> None:
    """UTF-8 has no place for it; in JSON it may stay escaped."""
    assert made(target(TemplateBody("{{ body.a }}")), b'{"a": "\\ud800"}').body == b"?"
    assert made(target(PickBody("body.a")), b'{"a": "\\ud800"}').body == b'"\\ud800"'


# --- picks and forms ---


def test_what_is_picked_leaves_exactly() -> None:
    """Numbers as they were written, keys in the order of the expression."""
    assert (
        made(target(PickBody("{b: body.a, a: body.z, d: data}"))).body
        == b'{"b":12345678901234567890123,"a":1.10,"d":null}'
    )


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("body.gone", "pick: the expression found nothing in this event"),
        ("data", "pick: the expression found nothing in this event"),
        ("sum(body.name)", "pick: sum() was given what it does not take"),
    ],
)
def test_a_pick_that_finds_nothing_sends_nothing(expression: str, reason: str) -> None:
    """A target that waits for an order has no use for null."""
    assert why(target(PickBody(expression))) == reason


def test_a_form_is_as_php_and_rails_read_it() -> None:
    """Brackets for what is inside; null is empty; numbers exactly; what is empty has nothing to send."""
    body = (
        b'{"n": null, "t": true, "z": 1.10, "s": "a b&=\\u00e4", "l": [1, {"x": [2]}],'
        b' "o": {"k]": "v"}, "": 3, "e": []}'
    )
    shape = made(target(PickBody("body"), format=BodyFormat.FORM), body)
    assert shape.content_type == "application/x-www-form-urlencoded"
    assert parse_qsl(shape.body.decode(), keep_blank_values=True) == [
        ("n", ""),
        ("t", "true"),
        ("z", "1.10"),
        ("s", "a b&=ä"),
        ("l[0]", "1"),
        ("l[1][x][0]", "2"),
        ("o[k]]", "v"),
        ("", "3"),
    ]
    assert made(target(TemplateBody('{"a": "{{ id }}"}'), format=BodyFormat.FORM)).body == b"a=evt_1"


def test_only_an_object_makes_a_form() -> None:
    """And only one that stays within bounds."""
    form = {"format": BodyFormat.FORM}
    assert why(target(PickBody("body.name"), **form)) == "pick: a form is made of an object, and this is none"
    assert why(target(TemplateBody("[1]"), **form)).startswith("template: body: a form is made of an object")
    assert (
        why(target(TemplateBody("a=1"), **form)) == "template: body: it makes no JSON, which breaks at line 1, column 1"
    )
    deep = json.dumps({"a" * 1000: {"b" * 1000: ["c"] * (LONGEST_FORM // 2000)}}).encode()
    assert why(target(PickBody("body"), **form), deep) == f"pick: the form is longer than {LONGEST_FORM} characters"


# --- presets ---


def text_of(shape: Shaped) -> str:
    whole = json.loads(shape.body)
    text: str = whole["text"] if "text" in whole else whole["attachments"][0]["content"]["body"][0]["text"]
    return text


@pytest.mark.parametrize("preset", ["slack", "teams"])
def test_a_message_is_cut_to_what_its_receiver_takes(preset: Any) -> None:
    """At its own limit, not in the middle of an escape, and it says so."""
    for letter in ("a", "&", "ä", "*", "\u2028", "😀", "\\"):
        body = json.dumps({"t": letter * 70_000}).encode()
        for shift in ("x", "xx", "xxx"):
            shape = made(target(PresetBody(preset, shift + "{{ body.t }}")), body)
            text = text_of(shape)
            assert text.endswith("…")
            if preset == "slack":
                assert SLACK_LIMIT - 6 < len(text) <= SLACK_LIMIT
                assert text.count("&") == text.count("&amp;")
            else:
                assert TEAMS_LIMIT - 12 < len(shape.body) <= TEAMS_LIMIT
                backslashes = len(text[:-1]) - len(text[:-1].rstrip("\\"))
                assert backslashes % 2 == 0


def test_the_text_of_a_message_is_the_yamls_own() -> None:
    """Its links and bold stay; without one it says source and type; an empty one is not sent."""
    body = b'{"n": "<!channel> [x](y)"}'
    assert text_of(made(target(PresetBody("slack", "<https://x|*{{ body.n }}*>")), body)) == (
        "<https://x|*&lt;!channel&gt; [x](y)*>"
    )
    assert text_of(made(target(PresetBody("teams", "[**{{ body.n }}**](https://x)")), body)) == (
        r"[**\<\!channel\> \[x\]\(y\)**](https://x)"
    )
    assert text_of(made(target(PresetBody("slack")))) == "shop: order.paid"
    assert text_of(made(target(PresetBody("teams")))) == r"shop: order\.paid"
    assert why(target(PresetBody("slack", " {{ data }}"))) == "template: text: it makes an empty message"


@pytest.mark.parametrize(
    ("headers", "body", "data", "expected"),
    [
        (
            JSON_HEADERS,
            BODY,
            Fetched.NOTHING,
            {"datacontenttype": "application/json; charset=utf-8", "data": json.loads(BODY)},
        ),
        ((), b"[1]", Fetched.NOTHING, {"datacontenttype": "application/json", "data": [1]}),
        (
            (("content-type", "text/plain"),),
            b"[1]",
            Fetched.NOTHING,
            {"datacontenttype": "application/json", "data": [1]},
        ),
        (
            (("content-type", "text/plain"),),
            b"\xff",
            Fetched.NOTHING,
            {"datacontenttype": "text/plain", "data_base64": "/w=="},
        ),
        ((), b"\xff", Fetched.NOTHING, {"datacontenttype": "application/octet-stream", "data_base64": "/w=="}),
        (JSON_HEADERS, b"", Fetched.NOTHING, {}),
        (
            JSON_HEADERS,
            b"[1]",
            {"a": 2},
            {"datacontenttype": "application/json", "data": {"event": [1], "data": {"a": 2}}},
        ),
    ],
)
def test_an_event_in_cloudevents(headers: Headers, body: bytes, data: Any, expected: dict[str, Any]) -> None:
    """The names of the specification, and the data as it came."""
    event = Event("evt_1", "shop", "a\n\ud800b", AT, headers, b"")
    shape = made(target(PresetBody("cloudevents")), body, data, event)
    assert shape.content_type == "application/cloudevents+json"
    assert json.loads(shape.body) == expected | {
        "specversion": "1.0",
        "id": "evt_1",
        "source": "/sources/shop",
        "type": "a\ufffd\ufffdb",
        "time": "2026-09-20T10:15:31.042Z",
    }


# --- where it goes, and with which headers ---


def at(template: str) -> Target:
    return target(url_template=template)


@given(
    st.text()
    | st.integers()
    | st.none()
    | st.lists(st.text())
    | st.sampled_from(["//evil.example", "..", "\r\n", "@", ":80"])
)
def test_no_value_leads_a_request_elsewhere(value: Any) -> None:
    """Scheme, host and port are the YAML's, and so is the number of segments."""
    body = json.dumps({"v": value}).encode()
    shape = shaped(at("https://h.example:8443/a/{{ body.v }}?q={{ body.v }}"), EVENT, body)
    if isinstance(shape, Unshaped):
        assert value in {None, "", ".", ".."}
        return
    assert shape.url is not None
    parts = urlsplit(shape.url)
    assert (parts.scheme, parts.netloc, parts.path.count("/")) == ("https", "h.example:8443", 2)
    assert shape.url.isascii()
    assert shape.url.isprintable()
    assert shape.body == body
    assert not shape.is_changed


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("https://h.example{{ body.v }}/", "template: url: it leads to another host"),
        ("https://h.example/{{ body.gone }}", "template: url: it needs 'gone', which this event has not"),
        ("https://h.example/{{ body.empty }}", "template: url: a value is empty"),
        ("https://h.example/{{ body.dot }}/x", "template: url: a value is a dot segment"),
        ("https://h.example/.{{ body.empty | default('') }}/x", "template: url: a value is empty"),
        (
            "https://h.example/{% if body.v %}{% raw %}%2E.{% endraw %}{% endif %}/x",
            "template: url: a part of its path is a dot segment",
        ),
        (
            "https://h.example/{% filter replace('%2F', '\"') %}{{ body.slash }}{% endfilter %}",
            "template: url: it holds what no URL may",
        ),
    ],
)
def test_a_url_that_is_not_the_yamls_is_never_sent_to(template: str, reason: str) -> None:
    """The last look is at the whole URL."""
    assert why(at(template), b'{"v": ".evil.example", "empty": "", "dot": ".", "slash": "/"}') == reason


@given(st.text() | st.sampled_from(["a\r\nX-Evil: 1", "a\nb", "\0", "\ud800", " a "]))
def test_no_value_adds_a_header(value: str) -> None:
    """A line break is no value; what can be sent is sent as it is, without the white space around it."""
    one = target(header_templates=(("X-A", "v={{ body.v }}"),))
    shape = shaped(one, EVENT, json.dumps({"v": value}).encode())
    if isinstance(shape, Unshaped):
        assert shape.reason == "template: headers.X-A: it holds a line break or what else no header may"
        assert any(ord(letter) < 32 or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in value)
        return
    assert not any(ord(letter) < 32 and letter != "\t" for letter in value)
    assert shape.headers == (("X-A", f"v={value}".strip(" \t")),)
    headers, dropped = outgoing_headers(EVENT, one, attempt=1, user_agent="x", shape=shape)
    assert [text for name, text in headers if name == "X-A"] == [f"v={value}".strip(" \t")]
    assert dropped == ()


# --- which headers of the provider's go with it ---

PROOFS = (
    "X-Hub-Signature-256",
    "X-Shop-Hmac-SHA256",
    "X-Sig",
    "Digest",
    "Content-Digest",
    "Content-MD5",
    "Content-Encoding",
    "X-Own-Proof",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
)
THEIRS = (
    *((name, "theirs") for name in PROOFS),
    ("Content-Type", "text/theirs"),
    ("X-Plain", "theirs"),
    ("Design", "d"),
)


def sent(one: Target, shape: Shaped) -> dict[str, str]:
    event = Event("evt_1", "shop", "order.paid", AT, THEIRS, b"")
    headers, _ = outgoing_headers(
        event, one, attempt=1, user_agent="x", shape=shape, proof_headers=frozenset({"x-own-proof"})
    )
    names = [name.lower() for name, _ in headers]
    assert len(names) == len(set(names))
    return dict(headers)


def test_another_body_goes_without_the_proof_of_the_first() -> None:
    """A signature that does not fit would be worse than none; type and name of the call are ours."""
    headers = sent(target(), Shaped(b"x", is_changed=True, content_type="application/json"))
    assert [name for name in PROOFS if headers.get(name) == "theirs"] == []
    assert (headers["Content-Type"], headers["webhook-id"]) == ("application/json", "evt_1")
    assert (headers["X-Plain"], headers["Design"]) == ("theirs", "d")


def test_the_same_body_keeps_its_proof() -> None:
    """A filled URL or header changes nothing of it."""
    headers = sent(target(), Shaped(b"x", url="https://h.example/x", headers=(("X-Plain", "ours"),)))
    assert [name for name in PROOFS if headers.get(name) == "theirs"] == list(PROOFS)
    assert (headers["Content-Type"], headers["X-Plain"]) == ("text/theirs", "ours")


def test_a_target_that_sets_or_asks_for_a_header_has_its_way() -> None:
    """Its own content type wins, also a filled one; a signature it asks for is sent on; an encoding never is."""
    shape = Shaped(b"x", is_changed=True, content_type="application/json")
    assert sent(target(headers=(("content-type", "text/xml"),)), shape)["content-type"] == "text/xml"
    asks = target(forward_headers=frozenset({"x-sig", "content-encoding", "content-type"}))
    headers = sent(asks, shape)
    assert (headers["X-Sig"], headers["Content-Type"]) == ("theirs", "application/json")
    assert "Content-Encoding" not in headers
    filled = Shaped(b"x", is_changed=True, content_type="application/json", headers=(("Content-Type", "text/xml"),))
    assert sent(target(), filled)["Content-Type"] == "text/xml"


# --- total, whatever comes ---

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["{{ id }}", "\ud800", ".."])
)
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "[", "\n"]), inner, max_size=3)
    ),
)
FORM = BodyFormat.FORM
TARGETS = [
    target(),
    target(TemplateBody("{{ body.a }}{{ data }}")),
    target(TemplateBody('{"a": {{ body | tojson }}, "b": {{ data | tojson }}}'), format=BodyFormat.JSON),
    target(TemplateBody('{"a": {{ body | tojson }}}'), format=FORM),
    target(PickBody("body || data")),
    target(PickBody("{a: body, b: data}"), format=FORM),
    target(PresetBody("slack", "{{ body.a }} {{ data }}")),
    target(PresetBody("teams", "{{ body }}")),
    target(PresetBody("cloudevents")),
    at("https://h.example/{{ body.a }}/{{ data }}"),
    target(header_templates=(("X-A", "{{ body }}"),)),
]


@given(st.sampled_from(TARGETS), DATA, DATA | st.just(Fetched.NOTHING))
def test_every_event_becomes_a_request_or_a_reason(one: Target, value: Any, data: Any) -> None:
    """Never an exception, and what claims to be JSON is."""
    body = json.dumps(value).encode()
    shape = shaped(one, EVENT, body, data)
    if isinstance(shape, Unshaped):
        assert 0 < len(shape.reason) < 160
        return
    if shape.is_changed and shape.content_type is not None and shape.content_type.endswith("json"):
        json.loads(shape.body)


@given(st.sampled_from(TARGETS), st.binary())
def test_so_does_every_body_that_is_no_json(one: Target, body: bytes) -> None:
    """Whatever its bytes."""
    assert isinstance(shaped(one, EVENT, body), Shaped | Unshaped)


@pytest.mark.parametrize("one", TARGETS)
def test_so_does_data_that_is_nested_beyond_reason(one: Target) -> None:
    """As body and as what was fetched."""
    deep: Any = []
    for _ in range(50_000):
        deep = {"a": deep}
    assert isinstance(shaped(one, EVENT, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, deep), Shaped | Unshaped)
