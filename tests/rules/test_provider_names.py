"""What events are called and known again by, provider for provider."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Content, Provider, Route
from relay.providers import PROVIDERS
from relay.providers.reading import LONGEST_KEY, LONGEST_TYPE
from relay.providers.slack import challenge
from relay.rules.routing import matches

VECTOR_NAMES = {
    "xoxoday": [("delivered", '["10000000001","26663453","delivered"]')],
    "plugandpay_v1": [("contracts.new", None)],
    "standard_webhooks": [(None, "msg_p5jXN8AQM9LWM0D4loKWxJek")],
    "svix": [("ping", "msg_loFOjxBNrRLzqYUf")],
    "github": [(None, None)],
    "stripe": [("setup_intent.created", "evt_1NG8Du2eZvKYlo2CUI79vXWy")] * 2,
    "shopify": [(None, None)],
    "slack": [("/webhook-collect", None)],
    "gitlab": [("push", None)],
    "gitlab_signed": [("push", "f5e5f430-f57b-4e6e-9fac-d9128cd7232f")],
    "mollie": [("payment-link.paid", "event_GvJ8WHrp5isUdRub9CJyH")] * 3,
    "mollie_classic": [("tr", None)],
    "generic_hmac": [("order.paid", "ord_1001")],
}


def names(name: str, body: Any, **headers: str) -> tuple[str | None, str | None]:
    """Type and key of a body; header names are written with `_` for `-`."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    content = Content(tuple((key.replace("_", "-"), value) for key, value in headers.items()), raw)
    return PROVIDERS[name].event_type(content), PROVIDERS[name].dedupe_key(content)


@pytest.mark.parametrize("name", VECTOR_NAMES)
def test_the_vectors_are_named_as_their_vendors_name_them(name: str) -> None:
    """Type and key of each, as far as it says them."""
    contents = [Content(vector.headers, vector.body) for vector in PROVIDERS[name].vectors]
    provider = PROVIDERS[name]
    assert [(provider.event_type(one), provider.dedupe_key(one)) for one in contents] == VECTOR_NAMES[name]


@pytest.mark.parametrize(
    ("body", "event", "type_"),
    [
        ({"action": "opened"}, "issues", "issues.opened"),
        ({"ref": "refs/heads/main"}, "push", "push"),
        ({"action": None}, "push", "push"),
        ({"action": 7}, "check_run", "check_run"),
        ({"action": "x" * 200}, "check_run", "check_run"),
        (urlencode({"payload": '{"action":"closed"}'}).encode(), "pull_request", "pull_request.closed"),
        (b"not json", "push", "push"),
        ([1], "push", "push"),
        ({"action": "opened"}, "", None),
    ],
)
def test_githubs_event_is_joined_with_its_action(body: Any, event: str, type_: str | None) -> None:
    """In JSON and in a form; the header alone where there is no action."""
    assert names("github", body, X_GitHub_Event=event, X_GitHub_Delivery="d-1") == (type_, "d-1")


def test_globs_stay_useful_where_event_and_action_are_joined() -> None:
    """`issues.*` is all of issues and nothing of issue_comment; a bare name is an event without actions."""
    wanted = Route("r", frozenset({"shop"}), ("crm",), types=("issues.*", "push"))
    found = [matches(wanted, "shop", one) for one in ("issues.opened", "issue_comment.created", "push", "push_x")]
    assert found == [True, False, True, False]


@pytest.mark.parametrize(
    ("body", "headers", "named"),
    [
        ({"object_kind": "push"}, {"Idempotency_Key": "i", "X_Gitlab_Webhook_UUID": "w"}, ("push", "i")),
        ({"object_kind": "push"}, {"X_Gitlab_Webhook_UUID": "w", "X_Gitlab_Event_UUID": "e"}, ("push", "w")),
        ({"object_kind": "push"}, {"X_Gitlab_Event_UUID": "e"}, ("push", None)),
        ({"object_kind": "issue", "object_attributes": {"action": "close"}}, {}, ("issue.close", None)),
        ({"object_kind": "pipeline", "object_attributes": {"status": "success"}}, {}, ("pipeline", None)),
        ({"object_kind": "note", "object_attributes": [1]}, {}, ("note", None)),
        ({"event_name": "project_create"}, {"X_Gitlab_Event": "System Hook"}, ("project_create", None)),
        ({}, {"X_Gitlab_Event": "Push Hook"}, ("Push Hook", None)),
        (b"", {}, (None, None)),
    ],
)
def test_gitlabs_kind_is_joined_with_its_action(body: Any, headers: dict[str, str], named: Any) -> None:
    """A delivery is known by an id of its own, never by one that other deliveries share."""
    assert names("gitlab", body, **headers) == named


def test_shopifys_deliveries_are_known_by_their_own_id() -> None:
    """Several of one event are several events: each subscription wants its own."""
    headers = {"X_Shopify_Topic": "orders/create", "X_Shopify_Event_Id": "e"}
    assert names("shopify", {}, X_Shopify_Webhook_Id="w", **headers) == ("orders/create", "w")
    assert names("shopify", {}, **headers) == ("orders/create", None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"type": "event_callback", "event": {"type": "app_mention"}, "event_id": "Ev1"}, ("app_mention", "Ev1")),
        ({"type": "app_rate_limited", "team_id": "T1"}, ("app_rate_limited", None)),
        ({"type": "event_callback", "event": "odd", "event_id": 7}, ("event_callback", "7")),
        (urlencode({"payload": '{"type":"block_actions","trigger_id":"1.2"}'}).encode(), ("block_actions", None)),
        (urlencode({"command": "/weather", "text": "94070", "trigger_id": "1.2"}).encode(), ("/weather", None)),
        (urlencode({"payload": "{", "command": "/weather"}).encode(), ("/weather", None)),
        (b"", (None, None)),
    ],
)
def test_slacks_events_commands_and_interactions_have_a_type(body: Any, named: Any) -> None:
    """Events are known by their id; a form is sent once, so none of them is ever taken for another."""
    assert names("slack", body) == named


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"type": "url_verification", "challenge": "3eZbrw1a"}, b"3eZbrw1a"),
        ({"type": "url_verification", "challenge": "x" * 1000}, b"x" * 1000),
        ({"type": "url_verification", "challenge": "x" * 1001}, None),
        ({"type": "url_verification", "challenge": ""}, None),
        ({"type": "url_verification", "challenge": ["a"]}, None),
        ({"type": "url_verification", "challenge": "a\r\nb"}, None),
        ({"type": "url_verification", "challenge": "\ud800"}, None),
        ({"type": "url_verification"}, None),
        ({"type": "event_callback", "challenge": "a"}, None),
        ({"event": {"type": "url_verification"}, "challenge": "a"}, None),
        (b"type=url_verification&challenge=a", None),
        (b"[]", None),
    ],
)
def test_slacks_challenge_is_read_where_it_is_one(body: Any, told: bytes | None) -> None:
    """Short plain text in a `url_verification`; anything else is an event like others."""
    assert challenge(Content((), body if isinstance(body, bytes) else json.dumps(body).encode())) == told


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"resource": "event", "id": "event_1", "type": "payment-link.paid"}, ("payment-link.paid", "event_1")),
        ({"resource": "payment-link", "id": "pl_1", "type": "x"}, ("payment-link", None)),
        ({"id": "event_1", "type": "payment-link.paid"}, (None, None)),
        ({"resource": "event", "id": None}, ("event", None)),
    ],
)
def test_mollies_objects_are_never_taken_for_events(body: Any, named: Any) -> None:
    """What happens to one object again is another event, though the object's id is the same."""
    assert names("mollie", body) == named


@pytest.mark.parametrize(
    ("body", "type_"),
    [(b"id=tr_1", "tr"), (b"id=ord_x&id=tr_1", "ord"), (b"id=tr", None), (b"id=tr_", None), (b"", None)],
)
def test_mollies_classic_calls_are_named_by_the_kind_of_object(body: bytes, type_: str | None) -> None:
    """And none is known again: the same id comes for each change."""
    assert names("mollie_classic", body) == (type_, None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"type": "a", "event": "b", "id": "1"}, ("a", "1")),
        ({"event": "b", "id": 10**30}, ("b", "1" + "0" * 30)),
        ({"type": {"a": 1}, "event": {"type": "x"}, "id": True}, (None, None)),
        ({"id": 1.5}, (None, None)),
        ({"id": ""}, (None, None)),
    ],
)
def test_a_generic_body_is_read_plainly(body: Any, named: Any) -> None:
    """`type` or `event`, and an exact `id`."""
    assert names("generic_hmac", body) == named


@pytest.mark.parametrize("long", ["x" * (LONGEST_KEY + 1), "a\nb", "\ud800"])
def test_a_key_that_no_store_should_carry_is_kept_as_its_digest(long: str) -> None:
    """So two of them are still two, and one is still one."""
    key = names("stripe", {"id": long})[1]
    assert key is not None
    assert key.startswith("sha256:")
    assert key == names("stripe", {"id": long})[1] != names("stripe", {"id": long + "x"})[1]


NAMED = (
    "id",
    "type",
    "event",
    "action",
    "object_kind",
    "object_attributes",
    "event_id",
    "resource",
    "challenge",
    "data",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMED) | st.text(max_size=5), inner),
    max_leaves=8,
)
HEADERS = st.sampled_from(
    [
        "X-GitHub-Event",
        "X-GitHub-Delivery",
        "X-Shopify-Topic",
        "X-Shopify-Webhook-Id",
        "X-Gitlab-Event",
        "Idempotency-Key",
        "svix-id",
        "webhook-id",
    ]
)


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS.keys())
@given(
    tree=st.dictionaries(st.sampled_from(NAMED), JSON),
    raw=st.none() | st.binary(max_size=60),
    field=st.sampled_from(["payload", "command", "id", "webhook_event"]),
    headers=st.lists(st.tuples(HEADERS, st.text(max_size=250)), max_size=4),
)
def test_no_request_makes_a_name_raise(
    provider: Provider, tree: dict[str, Any], raw: bytes | None, field: str, headers: list[tuple[str, str]]
) -> None:
    """Total over bodies and headers; a type fits a header, a key fits a store."""
    written = json.dumps(tree)
    for body in (written.encode(), urlencode({field: written}).encode(), raw if raw is not None else b""):
        content = Content(tuple(headers), body)
        type_, key = provider.event_type(content), provider.dedupe_key(content)
        assert type_ is None or (0 < len(type_) <= LONGEST_TYPE and type_.isprintable())
        assert key is None or (key.isprintable() and key.encode())
        told = provider.challenge(content) if provider.challenge else None
        assert told is None or told.isascii()
