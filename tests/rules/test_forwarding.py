"""What leaves with a webhook, and what never does."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Event, Headers, Target
from relay.rules.forwarding import (
    LONGEST_KNOWN,
    MOST_HOPS,
    MOST_KNOWN,
    _plan,
    header_text,
    incoming_hops,
    outgoing_headers,
    outgoing_lines,
    rfc3339,
    storable_headers,
)

AT = datetime(2026, 9, 20, 10, 15, 31, 42_999, UTC)
TARGET = Target("crm", "https://crm.example/hooks")


def event(*headers: tuple[str, str], **changes: object) -> Event:
    made = Event("0199-e", "shop", "order.paid", AT, headers, b"{}")
    return replace(made, **changes)  # type: ignore[arg-type]


def sent(made: Event, target: Target = TARGET, *, key_header: str | None = None) -> Headers:
    return outgoing_headers(made, target, attempt=3, user_agent="relay/1.0", key_header=key_header)[0]


def values(headers: Headers, name: str) -> list[str]:
    return [value for key, value in headers if key.lower() == name]


def test_the_providers_headers_pass_as_they_came_and_ours_follow() -> None:
    """Order, case and repetition are kept; the event's own names are added."""
    headers = sent(event(("X-Sig", "abc"), ("Content-Type", "application/json"), ("x-sig", "def"), ("Accept", "*/*")))
    assert headers == (
        ("X-Sig", "abc"),
        ("Content-Type", "application/json"),
        ("x-sig", "def"),
        ("Accept", "*/*"),
        ("User-Agent", "relay/1.0"),
        ("relay-event-id", "0199-e"),
        ("relay-source", "shop"),
        ("relay-event-type", "order.paid"),
        ("relay-attempt", "3"),
        ("relay-received-at", "2026-09-20T10:15:31.042Z"),
        ("relay-hops", "1"),
        ("webhook-id", "0199-e"),
    )


@pytest.mark.row("T51")
@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Content-Length",
        "Expect",
        "Host",
        "HTTP2-Settings",
        "Relay-Event-Id",
        "relay-anything",
    ],
)
def test_what_belongs_to_a_connection_or_to_us_never_passes(name: str) -> None:
    """Hop-by-hop, framing and relay-* headers stay behind, also when the YAML asks for them."""
    asked = replace(TARGET, forward_headers=frozenset({name.lower()}))
    for target in (TARGET, asked):
        assert "theirs" not in [value for _, value in sent(event((name, "theirs")), target)]


@pytest.mark.row("T51")
def test_headers_that_connection_names_stay_behind() -> None:
    """RFC 9110, section 7.6.1: what Connection lists is for that connection, whichever came first."""
    made = event(("X-Early", "1"), ("Connection", "close, X-Early"), ("connection", "x-late"), ("X-Late", "2"))
    asked = replace(TARGET, forward_headers=frozenset({"x-early"}))
    for target in (TARGET, asked):
        assert not values(sent(made, target), "x-early")
        assert not values(sent(made, target), "x-late")


@pytest.mark.row("H52", "H51", "T52")
@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Cookie",
        "X-Forwarded-For",
        "X-Forwarded-Anything",
        "Forwarded",
        "Via",
        "X-Real-IP",
        "Accept-Encoding",
        "User-Agent",
    ],
)
def test_what_is_withheld_passes_only_to_a_target_that_asks(name: str) -> None:
    """Credentials and claims about addresses are kept back unless forward_headers names them."""
    made = event((name, "theirs"))
    assert "theirs" not in values(sent(made), name.lower())
    asked = replace(TARGET, forward_headers=frozenset({name.lower()}))
    assert values(sent(made, asked), name.lower()) == ["theirs"]


@pytest.mark.row("H52", "T51")
def test_a_sources_key_goes_to_the_target_that_asks_and_to_no_other() -> None:
    """A key that is stored for one target stays hidden from the rest."""
    made = event(("X-Api-Key", "secret"))
    asked = replace(TARGET, forward_headers=frozenset({"x-api-key"}))
    assert not values(sent(made, key_header="x-api-key"), "x-api-key")
    assert values(sent(made, asked, key_header="x-api-key"), "x-api-key") == ["secret"]


@pytest.mark.row("T53")
def test_strip_headers_take_away_whatever_the_provider_sent() -> None:
    """A stripped signature does not leave, nor is a stripped webhook-id replaced by ours."""
    made = event(("X-Sig", "abc"), ("Webhook-Id", "theirs"))
    stripped = replace(TARGET, strip_headers=frozenset({"x-sig", "webhook-id"}))
    assert not values(sent(made, stripped), "x-sig")
    assert not values(sent(made, stripped), "webhook-id")


def test_a_targets_own_headers_win() -> None:
    """They replace the provider's of the same name and our User-Agent, but no framing and no relay-*."""
    own = (
        ("authorization", "Bearer ours"),
        ("Content-Type", "text/plain"),
        ("User-Agent", "CustomApiCall/2"),
        ("Host", "inner.example"),
        ("Content-Length", "1"),
        ("Connection", "close"),
        ("Relay-Attempt", "99"),
        ("Webhook-Id", "fixed"),
    )
    headers = sent(event(("Content-Type", "application/json")), replace(TARGET, headers=own))
    assert values(headers, "content-type") == ["text/plain"]
    assert values(headers, "authorization") == ["Bearer ours"]
    assert values(headers, "user-agent") == ["CustomApiCall/2"]
    assert values(headers, "host") == ["inner.example"]
    assert values(headers, "webhook-id") == ["fixed"]
    assert values(headers, "relay-attempt") == ["3"]
    assert not values(headers, "content-length")
    assert not values(headers, "connection")


@pytest.mark.parametrize("name", ["webhook-id", "Webhook-Signature"])
def test_webhook_id_is_ours_only_where_the_provider_named_its_call_by_none(name: str) -> None:
    """A provider's webhook-id or webhook-signature is never mixed with an id of ours."""
    headers = sent(event((name, "theirs")))
    assert values(headers, "webhook-id") == (["theirs"] if name == "webhook-id" else [])


def test_unproven_events_say_so() -> None:
    """relay-verified is there exactly when it means something."""
    assert not values(sent(event()), "relay-verified")
    assert values(sent(event(verified=False)), "relay-verified") == ["false"]


@pytest.mark.row("H50")
def test_hops_are_counted_up_and_read_with_suspicion() -> None:
    """What came in plus one goes out; the highest number counts, and what is no number is told apart."""
    assert values(sent(event(hops=4)), "relay-hops") == ["5"]
    assert incoming_hops(()) == 0
    assert incoming_hops((("Relay-Hops", " 6 "),)) == 6
    assert incoming_hops((("relay-hops", "1"), ("relay-hops", "9"))) == 9
    assert (incoming_hops((("relay-hops", "9" * 5000),)) or 0) > MOST_HOPS
    for value in ("x", "-1", "", "٣"):
        assert incoming_hops((("relay-hops", value),)) is None


@pytest.mark.row("T50", "H53", "H47")
def test_a_header_that_cannot_be_sent_is_left_out_and_named() -> None:
    """Control characters and bytes that are no UTF-8 cost the header, never the delivery; real text passes."""
    made = event(
        ("X-Crlf", "a\r\nInjected: 1"),
        ("X-Nul", "\x00"),
        ("X-Raw", "caf\udce9"),
        ("X-Text", "café\u2028\x85"),
        ("X-Tab", "a\tb"),
        ("Bad Name", "x"),
        ("webhook-id", "\x1b[31m"),
    )
    headers, dropped = outgoing_headers(made, TARGET, attempt=1, user_agent="relay/1.0")
    assert dropped == ("X-Crlf", "X-Nul", "X-Raw", "Bad Name", "webhook-id")
    assert values(headers, "x-text") == ["café\u2028\x85"]
    assert values(headers, "x-tab") == ["a\tb"]


def test_an_event_type_of_any_characters_is_a_sound_header() -> None:
    """Non-ASCII, control and percent characters are percent-encoded; plain types stay as they are."""
    assert header_text("order paid/v2") == "order paid/v2"
    assert header_text("café") == "caf%C3%A9"
    assert header_text("a\r\nb") == "a%0D%0Ab"
    assert header_text("100%") == "100%25"
    assert header_text("\udc80") == "%ED%B2%80"


def test_times_are_utc_with_milliseconds() -> None:
    """Another zone is turned into UTC."""
    assert rfc3339(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == "2026-01-01T00:00:00.000Z"


@pytest.mark.row("H52")
def test_secrets_are_not_stored_unless_a_target_asks_for_them() -> None:
    """Everything else is stored as received."""
    headers = (("AUTHORIZATION", "a"), ("Cookie", "b"), ("Proxy-Authorization", "c"), ("X-Key", "d"), ("X-Else", "e"))
    assert storable_headers(headers, key_header="x-key", forwarded=frozenset()) == (("X-Else", "e"),)
    assert storable_headers(headers, key_header=None, forwarded=frozenset()) == headers[3:]
    asked = frozenset({"x-key", "cookie"})
    assert storable_headers(headers, key_header="x-key", forwarded=asked) == (headers[1], headers[3], headers[4])


ANY = st.text(st.characters(categories=None), max_size=20)


@pytest.mark.row("T50", "T51")
@given(
    headers=st.lists(st.tuples(st.sampled_from(["Connection", "Host", "Relay-X", "TE", "X-A"]) | ANY, ANY), max_size=8),
    event_type=ANY,
    asked=st.frozensets(st.sampled_from(["host", "connection", "relay-x", "te", "x-a"])),
)
def test_whatever_came_in_what_goes_out_is_sound(
    headers: list[tuple[str, str]], event_type: str, asked: frozenset[str]
) -> None:
    """No value breaks a header line, nothing hop-by-hop passes, and every relay header is ours, once."""
    target = replace(TARGET, forward_headers=asked)
    out, dropped = outgoing_headers(event(*headers, type=event_type), target, attempt=1, user_agent="relay/1.0")
    for name, value in out:
        value.encode()
        name.encode("ascii")
        assert not set(name + value) & {"\r", "\n", "\x00"}
    names = [name.lower() for name, _ in out]
    assert not {"host", "connection", "te", "relay-x"} & set(names)
    assert all(names.count(name) == 1 for name in names if name.startswith("relay-"))
    assert set(dropped) <= {name for name, _ in headers}


def test_a_replayed_delivery_says_so() -> None:
    """A target can tell a delivery that somebody asked for again from one that is retried."""
    replayed, _ = outgoing_headers(event(), TARGET, attempt=4, user_agent="relay/1", replayed=True)
    plain, _ = outgoing_headers(event(), TARGET, attempt=4, user_agent="relay/1")
    assert set(replayed) - set(plain) == {("relay-replay", "1")}


def lines_of(made: Event, target: Target = TARGET, **changes: object) -> tuple[set[str], int, tuple[str, ...]]:
    settings: dict[str, object] = {"attempt": 3, "user_agent": "relay/1.0", **changes}
    text, many, dropped = outgoing_lines(made, target, **settings)  # type: ignore[arg-type]
    assert text.count("\r\n") == many
    return set(text.split("\r\n")) - {""}, many, dropped


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        TARGET,
        replace(TARGET, headers=(("User-Agent", "mine"), ("X-Own", "1"))),
        replace(TARGET, strip_headers=frozenset({"x-a", "webhook-id"})),
        replace(TARGET, forward_headers=frozenset({"x-key", "cookie", "user-agent"})),
    ],
)
def test_the_lines_are_the_headers(target: Target, replayed: bool) -> None:
    """Whatever the target asks for, and as well where they were made for another attempt or another target."""
    came = (("X-A", "1"), ("X-A", "2"), ("X-Bad", "a\0b"), ("X-Key", "k"), ("Cookie", "c"), ("User-Agent", "theirs"))
    made = event(*came, verified=False, hops=2)
    for attempt in (1, 2, 17):
        settings: dict[str, object] = {"attempt": attempt, "key_header": "x-key", "replayed": replayed}
        headers, dropped = outgoing_headers(made, target, user_agent="relay/1.0", **settings)  # type: ignore[arg-type]
        assert lines_of(made, target, **settings) == (
            {f"{name}: {value}" for name, value in headers},
            len(headers),
            dropped,
        )
        assert dropped == ("X-Bad",)


def test_lines_are_never_those_of_another_event() -> None:
    """Not of one that has the same id, nor of one with the same headers; and not what another user agent sent."""
    same = (("X-A", "1"),)
    assert "relay-source: shop" in lines_of(event(*same))[0]
    assert "X-A: 2" in lines_of(event(("X-A", "2")))[0]
    later = lines_of(event(*same, received_at=AT + timedelta(seconds=1)))[0]
    assert "relay-received-at: 2026-09-20T10:15:32.042Z" in later
    assert "relay-event-id: other" in lines_of(event(*same, id="other"))[0]
    made = event(*same)
    assert "User-Agent: relay/1.0" in lines_of(made)[0]
    assert "User-Agent: relay/2.0" in lines_of(made, user_agent="relay/2.0")[0]


def test_only_the_lines_of_some_events_are_remembered() -> None:
    """However many there are, each gets its own; and what is long is not kept."""
    many = [event(id=f"evt_{number}") for number in range(MOST_KNOWN + 10)]
    many.append(event(("X-Long", "a" * LONGEST_KNOWN), id="evt_long"))
    for _ in range(2):
        for made in many:
            assert f"relay-event-id: {made.id}" in lines_of(made)[0]
    known = _plan(TARGET.forward_headers, TARGET.strip_headers, TARGET.headers, "relay/1.0", None).known
    assert 0 < len(known) <= MOST_KNOWN
    assert "evt_long" not in known
