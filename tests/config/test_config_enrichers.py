"""Enrichers out of the YAML: what is taken, and every refusal with its place and its words."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from relay.config import Config
from relay.model import BearerCheck, OAuth2Client, TemplateBody

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

ROUTE = {"name": "all", "from": ["partner"], "enrich": "one", "to": ["crm"]}
TOKEN = "an-access-token-of-ours"
PLUGANDPAY = {"provider": "plugandpay", "token": TOKEN}
STOCK = {"url": "https://api.example.com/stock/{{ body.sku }}"}


def whole(enricher: object, **top: Any) -> dict[str, Any]:
    """The keys of a document whose only route asks this enricher."""
    return {"enrichers": {"one": enricher}, "routes": [ROUTE]} | top


def test_a_token_is_enough_for_a_known_api(build: Loader) -> None:
    """Base URL, headers and what is taken of the answer are the provider's."""
    (one,) = build(**whole(PLUGANDPAY)).enrichers
    assert (one.name, one.url, one.take) == ("one", "https://api.plugandpay.com", "data")
    assert isinstance(one.auth, BearerCheck)
    assert one.timeout == timedelta(seconds=10)
    assert TOKEN not in repr(one)
    moved = build(**whole(PLUGANDPAY | {"base_url": "http://127.0.0.1:9/api", "include": "payment"})).enrichers[0]
    assert (moved.url, moved.include) == ("http://127.0.0.1:9/api", ("payment",))


def test_any_api_is_described(build: Loader) -> None:
    """By templates, with the credentials that a target may have."""
    auth = {
        "scheme": "oauth2",
        "token_url": "https://id.example.com/token",
        "client_id": "relay",
        "client_secret": "a-secret-of-the-client",
    }
    given = STOCK | {
        "method": "POST",
        "body": '{"sku": {{ body.sku | tojson }}}',
        "headers": {"X-A": "b", "X-C": "{{ source }}"},
        "auth": auth,
        "timeout": "500ms",
        "take": "result",
        "drop": ["cost", "rows[*].price"],
    }
    (one,) = build(**whole(given)).enrichers
    assert (one.url, one.url_template) == ("https://api.example.com/stock/", STOCK["url"])
    assert (one.headers, one.header_templates) == ((("X-A", "b"),), (("X-C", "{{ source }}"),))
    assert one.body == TemplateBody(given["body"])
    assert isinstance(one.auth, OAuth2Client)
    assert (one.take, one.drop) == ("result", ("cost", "rows[*].price"))


def test_two_that_are_written_alike_are_equal(build: Loader) -> None:
    """So that a reload sees which have changed."""
    assert build(**whole(PLUGANDPAY)).enrichers == build(**whole(PLUGANDPAY)).enrichers
    assert build(**whole(PLUGANDPAY)).enrichers != build(**whole(PLUGANDPAY | {"token": "another-token"})).enrichers


REFUSED: list[tuple[object, str]] = [
    ({}, ": needs a provider (plugandpay, xoxoday) or a url"),
    (
        {"provider": "plugnpay", "token": TOKEN},
        '.provider: unknown provider "plugnpay"; did you mean "plugandpay"?',
    ),
    ({"provider": "github", "token": TOKEN}, '.provider: unknown provider "github"'),
    ({"provider": "plugandpay"}, ".token: missing; the API of Plug&Pay wants one"),
    ({"provider": "plugandpay", "token": ""}, ".token: secret is empty or blank"),
    ({"provider": "plugandpay", "token": "$TOKEN"}, ".token: secret looks like an unexpanded variable"),
    (
        PLUGANDPAY | {"auth": {"scheme": "bearer", "token": TOKEN}},
        ".auth: token is given as well; keep one of the two",
    ),
    (PLUGANDPAY | {"headers": {"authorization": "x"}}, ".headers: authorization is set by token as well"),
    (PLUGANDPAY | STOCK, ".url: has no meaning beside provider"),
    (
        PLUGANDPAY | {"include": ["billling"]},
        '.include[0]: unknown include "billling"; did you mean "billing"?',
    ),
    (PLUGANDPAY | {"method": "POST"}, ".method: has no meaning for provider plugandpay"),
    (PLUGANDPAY | {"take": "x"}, ".take: has no meaning for provider plugandpay"),
    (PLUGANDPAY | {"base_url": "api.example.com"}, ".base_url: not an absolute http(s) URL with a host"),
    (PLUGANDPAY | {"base_url": "https://api.example.com?x=1"}, ".base_url: must not have a query"),
    (
        PLUGANDPAY | {"base_url": "http://169.254.169.254"},
        ".base_url: cloud metadata address, never allowed",
    ),
    (
        {"provider": "xoxoday", "token": TOKEN, "include": "x"},
        ".include: has no meaning for provider xoxoday",
    ),
    (STOCK | {"token": TOKEN}, ".token: has no meaning without a provider"),
    (STOCK | {"body": "x"}, ".body: a GET has none; write method: POST"),
    (STOCK | {"method": "PUT"}, '.method: unknown method "PUT"'),
    (STOCK | {"timeout": "31s"}, ".timeout: "),
    (STOCK | {"timeout": 5}, '.timeout: "5" needs a unit'),
    (STOCK | {"drop": ["length(a)"]}, '.drop[0]: "length(a)" is not a path'),
    (STOCK | {"drop": ["a ="]}, '.drop[0]: "a =" is not a JMESPath expression'),
    (STOCK | {"drop": ["@"]}, '.drop[0]: "@" finds the whole document'),
    (STOCK | {"take": "a ="}, ".take: "),
    (
        STOCK | {"headers": {"Content-Length": "1"}},
        ".headers.Content-Length: set by the connection itself",
    ),
    (STOCK | {"headers": {"X A": "1"}}, '.headers."X A": not a valid header name'),
    ({"url": "https://{{ body.host }}/x"}, ".url: scheme, host and port must be literal"),
    (
        {"url": "https://h.example/{{ bdy.x }}"},
        '.url: unknown name "bdy" in the template; did you mean "body"?',
    ),
    ({"url": "https://h.example/{{ body.x"}, ".url: "),
    ({"url": "ftp://h.example/x"}, ".url: scheme must be http or https"),
    (STOCK | {"auth": {"scheme": "bearer"}}, ".auth.token: missing; scheme bearer needs it"),
    (STOCK | {"retries": 3}, '.retries: unknown key "retries"'),
    ("https://h.example", ": must be a mapping, found string"),
]


@pytest.mark.parametrize(("enricher", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_told_with_its_place(refused: Refuser, enricher: object, message: str) -> None:
    """In one line, with the key's path, what is wrong and what to do; no secret is in it."""
    lines = refused(**whole(enricher))
    assert any(line.startswith(f"enrichers.one{message}") for line in lines), lines
    assert not any(TOKEN in line for line in lines)


def test_names_and_uses_are_checked(build: Loader, refused: Refuser) -> None:
    """A route names one that there is, names are like all others, and one that nobody asks is told."""
    assert refused(enrichers={"one": PLUGANDPAY}, routes=[ROUTE | {"enrich": "two"}]) == [
        'routes[0].enrich: unknown enricher "two"; known: one'
    ]
    assert any(
        "the name of an enricher must match" in line
        for line in refused(**whole(PLUGANDPAY, enrichers={"One": PLUGANDPAY}))
    )
    warnings = [str(one) for one in build(enrichers={"one": PLUGANDPAY}).warnings]
    assert any("no route asks it (enrich)" in line for line in warnings)
