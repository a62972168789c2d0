"""What is fuzzed: each parser as a function of bytes that returns where all is well, and raises where it is not.

Law: whatever the bytes are, a parser gives its thing or one of its named refusals; where a law holds beyond that, it is
asserted. Anybody may hand these functions any bytes, so they double as the check of a finding.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, timedelta
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from yarl import URL

from relay.admin.answers import Problem
from relay.admin.reading import Query, moment
from relay.config import ConfigRefused, load, urls, values
from relay.config.expansion import expand
from relay.config.problems import Refused
from relay.delivery import tokens
from relay.model import Content, Enricher, Event, Headers, PickBody, PresetBody, Shaped, Target, TemplateBody, Unshaped
from relay.providers import PROVIDERS
from relay.rules.addresses import AddressRefusal, client_address
from relay.rules.answers import parse_retry_after, status_line, unfulfilled
from relay.rules.dropping import steps, without
from relay.rules.enriching import answered, asked
from relay.rules.exactness import document, read, text_json
from relay.rules.expressions import Failed, NoExpression, compiled, found, view_of
from relay.rules.forms import NoForm, form
from relay.rules.forwarding import incoming_hops, outgoing_headers, storable_headers
from relay.rules.rate import rate_from, written
from relay.rules.retry import RETRY_AFTER_CAP
from relay.rules.shaping import shaped
from relay.rules.signing import wire_text
from relay.rules.templating import NoTemplate, Unfilled, filler
from relay.store.following import Position
from tests.rules.test_hostile_proofs import NOW, OFFERED, believed, carries_it, sign

CHECKS = list(OFFERED.values())
TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
EVERYONE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def text_of(data: bytes) -> str:
    """Text as aiohttp reads it from a header: any bytes are some."""
    return wire_text(data)


def request_of(data: bytes) -> tuple[Headers, bytes]:
    """Headers, a line each, and behind an empty line a body."""
    head, _, body = data.partition(b"\n\n")
    pairs = [line.partition(b":") for line in head.split(b"\n")]
    return tuple((text_of(name), text_of(value.strip(b" "))) for name, _, value in pairs), body


def as_request(headers: Headers, body: bytes) -> bytes:
    """The inverse, for seeds."""
    return "\n".join(f"{name}: {value}" for name, value in headers).encode() + b"\n\n" + body


def proofs(data: bytes) -> None:
    """Every scheme and provider: a verdict, and a good one only for the whole proof."""
    check = CHECKS[data[0] % len(CHECKS)] if data else CHECKS[0]
    headers, body = request_of(data[1:])
    if believed(headers, check, body):
        assert carries_it(headers, check, body, NOW)


def addresses(data: bytes) -> None:
    """An address or a refusal."""
    peer, *lines = text_of(data).split("\n")
    for trusted in (TRUSTED, EVERYONE, ()):
        client = client_address(peer, lines, trusted)
        assert isinstance(client, AddressRefusal) or client_address(client, [], ()) == client


def answers(data: bytes) -> None:
    """What a target says: a wait within its bounds, a status, a condition on a body that is or is none."""
    wait = parse_retry_after(text_of(data), NOW)
    assert wait is None or timedelta(0) <= wait <= RETRY_AFTER_CAP
    status = status_line(data)
    assert status is None or 0 <= status <= 999
    reason = unfulfilled("status == 'ok' || data[0] > `3`", data)
    assert reason is None or len(reason) < 200


def names(data: bytes) -> None:
    """What each provider reads out of a request can be stored, sent and shown."""
    headers, body = request_of(data)
    content = Content(headers, body)
    for provider in PROVIDERS.values():
        type_, key = provider.event_type(content), provider.dedupe_key(content)
        assert type_ is None or (0 < len(type_) <= 200 and type_.isprintable())
        assert key is None or (0 < len(key) <= 700 and key.encode())
        told = provider.challenge(content) if provider.challenge is not None else None
        assert told is None or (told.isascii() and told.decode().isprintable() and len(told) <= 1000)
        if provider.lookup is not None:
            provider.lookup.ask(content, ())


def event_of(headers: Headers, body: bytes) -> Event:
    return Event(id="evt_1", source="s", type="t", received_at=NOW, headers=headers, body=body)


def forwarding(data: bytes) -> None:
    """What leaves for a target is fit for the wire."""
    headers, body = request_of(data)
    kept = storable_headers(headers, key_header="x-api-key", forwarded=frozenset({"cookie"}))
    hops = incoming_hops(headers)
    assert hops is None or hops >= 0
    target = Target(name="crm", url="http://h/", forward_headers=frozenset({"cookie", "authorization"}))
    sent, _ = outgoing_headers(event_of(kept, body), target, attempt=1, user_agent="relay/1")
    for name, value in sent:
        assert name.isascii()
        assert not set(value) & set("\r\n\0")
        value.encode("utf-8", "surrogateescape")


EXPRESSIONS = ["body.id", "body.*.a[]", "sort_by(body, &a)", "headers.a", "join(',', keys(body))", "max_by(body.x, &y)"]
TARGETS = [
    Target(name="a", url="http://h/", body=TemplateBody('{"a": {{ body.a | tojson }}, "b": "{{ type }}"}')),
    Target(name="b", url="http://h/", body=TemplateBody("{% for x in body %}{{ x.a|default(1) }},{% endfor %}")),
    Target(name="c", url="http://h/", body=PickBody("body.{a: a, b: b}")),
    Target(name="d", url="http://h/", body=PresetBody("slack", "{{ body.a }} {{ headers }}")),
    Target(name="e", url="http://h/", body=PresetBody("cloudevents")),
    Target(name="f", url="http://h/", url_template="http://h/{{ body.a }}/{{ body.b }}?c={{ body.c }}"),
]


def events(data: bytes) -> None:
    """A body, and what the YAML makes of it."""
    known = document(data)
    if known is not None:
        assert text_json(read(text_json(known[1]))) == text_json(known[1])
        with suppress(NoForm, ValueError):
            form(known[1])
    event = event_of((("Content-Type", "application/x-www-form-urlencoded"),), data)
    view = view_of(event, data)
    for text in EXPRESSIONS:
        found(text, view)
    for target in TARGETS:
        made = shaped(target, event, data)
        assert isinstance(made, Shaped | Unshaped)
        if isinstance(made, Shaped) and made.url is not None:
            assert made.url.startswith("http://h/")
            assert URL(made.url, encoded=True).raw_host == "h"


def fetches(data: bytes) -> None:
    """What an enricher or a token endpoint answers."""
    status = 200 if not data or data[0] < 200 else 200 + data[0] * 2
    for name in ("plugandpay", "xoxoday"):
        lookup = PROVIDERS[name].lookup
        assert lookup is not None
        one = Enricher(name="e", url="http://h", lookup=lookup, take=lookup.take, drop=("a[*].b", "*.c[]", "d[?e]"))
        answered(one, status, data[1:], retry_after=None)
        asked(one, event_of((), data[1:]), data[1:])
    answered(Enricher(name="e", url="http://h", drop=("a", "b.*")), status, data[1:], retry_after=timedelta(1))
    try:
        token, lifetime = tokens._read(status, data[1:])
    except (tokens.NoToken, tokens._Passing):
        return
    assert token.isascii()
    assert token.isprintable()
    assert 0 <= lifetime <= tokens.LONGEST_LIFETIME


def expressions(data: bytes) -> None:
    """Expressions, paths and templates of the YAML's author."""
    text = data.decode("utf-8", "replace")
    sample = {"a": [{"b": 1}, "x", None], "c": {"d": [[1, 2], [3]]}}
    with suppress(NoExpression):
        compiled(text)
        assert found(text, sample) is not Failed
    with suppress(NoExpression):
        steps(text)
        without(sample, (text,))
    with suppress(NoTemplate, Unfilled):
        filler(text).filled({"body": sample, "id": "1", "type": "t", "headers": {}})


def scalars(data: bytes) -> None:
    """Single values of the YAML, and what comes back of them."""
    text = data.decode("utf-8", "surrogateescape")
    rate = rate_from(text)
    assert rate is None or rate_from(written(rate)) == rate
    for parse in (values.network, values.address, values.rate, values.statuses, values.header_name, values.listen_path):
        with suppress(Refused):
            parse(text)
    with suppress(Refused):
        span = values.duration(text, low=timedelta(0), high=timedelta(days=10_000))
        assert values.duration(values.duration_text(span), low=span, high=span) == span
    with suppress(Refused):
        size = values.size(text, low=1, high=2**60)
        assert values.size(values.size_text(size), low=size, high=size) == size
    with suppress(Refused):
        url = urls.parsed(text)
        assert (URL(url.url, encoded=True).raw_host or "").lower() == url.host
    with suppress(Refused):
        expand(text, {"A": "${B}", "B": "$$"}, lambda _: None, {})


def queries(data: bytes) -> None:
    """The query of a call of the admin API, and where a stream begins."""
    text = data.decode("latin-1")
    with suppress(Problem):
        query = Query(
            cast(Any, SimpleNamespace(rel_url=URL.build(path="/", query_string=text, encoded=True))), "limit", "x"
        )
        assert 1 <= query.limit() <= 200
        mark = query.mark("x")
        assert mark is None or 0 <= mark < 2**63
    with suppress(ValueError):
        assert moment(text, NOW, ValueError).tzinfo is UTC
    position = Position.parse(text)
    assert position is None or Position.parse(str(position)) == position


FILE = tempfile.NamedTemporaryFile(suffix=".yaml")  # noqa: SIM115 - it lasts as long as the process
ENV = {"A": "a-sound-secret-of-ours-0123", "B": "http://127.0.0.1:1/"}


def config(data: bytes) -> None:
    """A whole file: a config, or a refusal with a line for each problem."""
    path = Path(FILE.name)
    path.write_bytes(data)
    lines: list[str] = []
    problems = 0
    try:
        load(path, ENV)
    except ConfigRefused as refused:
        lines, problems = str(refused).split("\n"), len(refused.problems)
    assert len(lines) == problems
    assert all(line.startswith(str(path)) for line in lines)


PARSERS: Mapping[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (proofs, addresses, answers, names, forwarding, events, fetches, expressions, scalars, queries)
}


def parsers(data: bytes) -> None:
    """One of the parsers, by the first byte."""
    if data:
        list(PARSERS.values())[data[0] % len(PARSERS)](data[1:])


YAML = b"""server: {listen: "127.0.0.1:0", max_body: 1MiB, trusted_proxies: [10.0.0.0/8]}
admin: {listen: "127.0.0.1:0"}
sources:
  a: {provider: github, secrets: ["${A}"], rate: 100/s, allow_ips: [10.0.0.1]}
  b: {provider: custom, verify: {scheme: hmac, header: X-Sig, algorithm: sha256, signed: "{timestamp}.{body}",
      timestamp_header: X-T, tolerance: 5m}, secrets: ["${A:-x}"], event_type: type, dedupe_key: "header:X-Id"}
enrichers: {e: {url: "${B}{{ body.id }}", drop: ["a[*].b"], timeout: 1s}}
targets:
  t: {url: "${B}", timeout: 15s, retry: {schedule: [5s, 30s]}, probe: {first: 1m, max: 15m}, success: [200-299]}
  u: {url: "${B}x", body: {template: '{"a": {{ data.x | tojson }}}'}, format: json,
      auth: {scheme: bearer, token: "${A}"}}
routes:
  - {name: r, from: [a, b], match: {type: ["x*"]}, enrich: e, when: "data.y == 'z'",
     to: [t, {target: u, when: "body.a"}]}
"""


def seeds(target: str) -> list[bytes]:
    """Where a fuzzer begins: genuine samples of every provider, and values as people write them."""
    if target == "config":
        return [YAML, b"sources: {}\n", b"a: &a [*a]\n"]
    of: dict[str, list[bytes]] = {name: [b""] for name in PARSERS}
    of["proofs"] += [
        bytes([number]) + as_request(sign(check, b'{"a": 1}', now=NOW, message_id="msg_1"), b'{"a": 1}')
        for number, check in enumerate(CHECKS)
    ]
    for provider in PROVIDERS.values():
        whole = as_request(provider.sample.sent(NOW, 1), provider.sample.body(NOW, 1))
        of["names"].append(whole)
        of["forwarding"].append(whole)
        of["events"].append(provider.sample.body(NOW, 1))
        of["fetches"].append(b"\0" + provider.sample.body(NOW, 1))
    of["names"].append(as_request((), b'{"type": "url_verification", "challenge": "abc"}'))
    of["addresses"] += [b"10.0.0.1\n203.0.113.9, [2001:db8::1]:443\n::ffff:10.0.0.1%eth0"]
    of["answers"] += [
        b"120",
        b"Fri, 31 Dec 1999 23:59:59 GMT",
        b"HTTP/1.1 200 OK\r\n",
        b'{"status": "ok", "data": [4]}',
    ]
    of["forwarding"] += [
        as_request((("Connection", "close, X-A"), ("relay-hops", "3"), ("X-A", "b"), ("Cookie", "c")), b"")
    ]
    of["events"] += [b'{"a": 1.10, "b": [1e400, {"c": null}], "x": [{"y": 2}]}', b"a=1&b=%41"]
    of["fetches"] += [
        b'\0{"access_token": "t", "token_type": "Bearer", "expires_in": 3600}',
        b'\0{"data": {"getOrderDetails": {"data": {"vouchers": [1], "a": [{"b": 1}]}}}}',
        b'\0{"errors": [{"message": "auth.request_limit_exceeded", "penaltySeconds": 5}]}',
    ]
    of["expressions"] += [
        b"a[?b > `1`].c | [0]",
        b"*.d[][].e",
        b"{{ body.a | tojson }}{% if id %}x{% endif %}",
        b"a.b[0]",
    ]
    of["scalars"] += [
        b"150/5m",
        b"500ms",
        b"512KiB",
        b"10.0.0.0/8",
        b"[::1]:80",
        b"https://h.example:8/p?q=%41",
        b"${A:-b}$$",
    ]
    of["queries"] += [b"limit=5&x=12", b"24h", b"2026-03-01T12:00:00Z", b"1-2-3-4"]
    if target in of:
        return of[target]
    return [bytes([number]) + seed for number, name in enumerate(PARSERS) for seed in of[name]]
