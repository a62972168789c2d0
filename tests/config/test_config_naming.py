"""The rules that name an event: read when the config is, and total afterwards."""

import json
from collections.abc import Callable

import pytest

from relay.config import Config
from relay.model import Content, Source

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

V1 = {"provider": "plugandpay_v1", "secrets": ..., "verify": ...}


def only(config: Config) -> Source:
    (source,) = config.sources
    return source


def content(body: object, **headers: str) -> Content:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Content(tuple(headers.items()), raw)


@pytest.mark.parametrize(
    ("rule", "given", "name"),
    [
        ("type", content({"type": "paid"}), "paid"),
        ("data.kind", content({"data": {"kind": "x"}}), "x"),
        ("id", content({"id": 99999999999999999999}), "99999999999999999999"),
        ("ok", content({"ok": True}), "true"),
        ("[a, b]", content({"a": 1, "b": "\u00e9"}), '[1,"\u00e9"]'),
        ("type", content({"type": None}), None),
        ("type", content({}), None),
        ("type", content({"type": ""}), None),
        ("type", content(b"\xff\x00"), None),
        ("type", content(b"[" * 100_000), None),
        ("type", content({"type": "a\nb"}), None),
        ("type", content({"type": "x" * 201}), None),
        ("length(type)", content({"type": 5}), None),
        ("header:X-Event", content({}, **{"x-event": "created"}), "created"),
        ("header:X-Event", content({}), None),
    ],
)
def test_event_types_are_read_and_never_raise(build: Loader, rule: str, given: Content, name: str | None) -> None:
    """An expression or a header names the event; what cannot be read is no name."""
    assert only(build(source={"event_type": rule})).event_type(given) == name


def test_dedupe_keys_are_whole(build: Loader) -> None:
    """A long key is hashed rather than cut, so that two keys stay two."""
    dedupe_key = only(build(source={"dedupe_key": "id"})).dedupe_key
    assert dedupe_key(content({"id": 7})) == "7"
    assert dedupe_key(content({"id": ""})) is None
    long = dedupe_key(content({"id": "x" * 300 + "a"}))
    assert long is not None
    assert long.startswith("sha256:")
    assert long != dedupe_key(content({"id": "x" * 300 + "b"}))
    assert str(dedupe_key(content(b'{"id": "\\ud800"}'))).startswith("sha256:")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"1e999", b"2e999"),
        (b"Infinity", b"1e999"),
        (b"-Infinity", b"-1e999"),
        (b"9007199254740993.0", b"9007199254740992.0"),
        (b"1.00000000000000000001", b"1.00000000000000000002"),
        (b"1e-400", b"2e-400"),
        (b"1.10", b"1.1"),
        (b"1" + b"0" * 300 + b".1", b"1" + b"0" * 300 + b".2"),
        (b"true", b'"true"'),
        (b"false", b'"false"'),
        (b"[1.10]", b"[1.1]"),
        (b'["a"]', b'"[\\"a\\"]"'),
        (b'{"a":1}', b'"{\\"a\\":1}"'),
    ],
)
@pytest.mark.parametrize("rule", ["id", "[id]", "join('-', [to_string(id), 'x'])", "{a: id}"])
def test_two_ids_are_two_keys(build: Loader, rule: str, one: bytes, other: bytes) -> None:
    """Ids that are written in two ways are two events, though a float would make one of them."""
    if rule.startswith("join") and other.startswith(b'"'):
        rule = "@.id"  # to_string() makes the same text of both, as JMESPath has it
    dedupe_key = only(build(source={"dedupe_key": rule})).dedupe_key
    for space in (b"", b" " * 70_000):
        keys = [dedupe_key(content(b'{"id":' + text + space + b"}")) for text in (one, other, one)]
        assert None not in keys
        assert keys[0] != keys[1]
        assert keys[0] == keys[2]


@pytest.mark.parametrize(
    ("rule", "written", "key"),
    [
        ("id", b"7", "7"),
        ("id", b'"7"', "7"),
        ("id", b"1.10", "1.10"),
        ("id", b"1e999", "1e999"),
        ("id", b"99999999999999999999", "99999999999999999999"),
        ("id", b'"true"', "true"),
        ("id", b'"[1]"', "[1]"),
        ("[id, `1`]", b'"\\u00e9"', '["\u00e9",1]'),
        ("to_string(id)", b"1.10", "1.10"),
        ("to_string([id])", b'"\\u00e9"', '["\\u00e9"]'),
    ],
)
def test_keys_keep_the_text_of_what_is_written(build: Loader, rule: str, written: bytes, key: str) -> None:
    """A key is the text of the id, so that a store that is there already knows it again."""
    assert only(build(source={"dedupe_key": rule})).dedupe_key(content(b'{"id":' + written + b"}")) == key


def test_default_names(build: Loader) -> None:
    """A custom source names nothing by itself; Standard Webhooks knows its id; a provider's rule may be replaced."""
    plain = only(build())
    assert plain.event_type(content({"type": "x"})) is None
    assert plain.dedupe_key(content({"id": "x"})) is None
    standard = only(build(source={"verify": {"scheme": "standard_webhooks"}}))
    assert standard.dedupe_key(content({}, **{"Webhook-Id": "msg_1"})) == "msg_1"
    own = {"provider": "xoxoday", "verify": ...}
    sample = content({"id": 1, "data": {"deliveryStatus": "Delivered"}})
    assert only(build(source=own)).event_type(sample) == "delivered"
    assert only(build(source={**own, "event_type": "data.deliveryStatus"})).event_type(sample) == "Delivered"


def test_expressions_see_a_form(build: Loader) -> None:
    """The fields of a form-encoded provider are `form`."""
    source = only(build(source={**V1, "allow_ips": "10.0.0.1", "event_type": "form.sku", "dedupe_key": "form.id"}))
    assert source.event_type(content(b"sku=S1&id=5&sku=S2")) == "S1"
    assert source.dedupe_key(content(b"sku=S1&id=5")) == "5"
    assert source.event_type(content(b"&".join([b"a=b"] * 2000))) is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("a..b", '"a..b" is not a JMESPath expression (header:NAME takes a header)'),
        ("[", '"[" is not a JMESPath expression (header:NAME takes a header)'),
        ("(" * 900, "expression nested too deep"),
        ("(" * 490 + "a" + ")" * 490, "expression nested too deep"),
        ("lenght(@)", 'unknown JMESPath function "lenght"; did you mean "length"?'),
        ("length()", 'JMESPath function "length" takes 1 arguments, found 0'),
        ("header:X Y", '"X Y" is not a valid header name'),
        ("header:", '"" is not a valid header name'),
        ("x" * 1001, "expression longer than 1000 characters"),
        (5, "must be a string, found integer"),
    ],
)
def test_bad_expressions_are_told_when_the_config_is_read(refused: Refuser, rule: object, message: str) -> None:
    """A rule that could never name anything is refused with its place."""
    for key in ("event_type", "dedupe_key"):
        (line,) = refused(source={key: rule})
        assert line.startswith(f"sources.partner.{key}: ")
        assert message in line
