"""What an enricher may say, and every way in which it is refused."""

from datetime import timedelta
from typing import Any

import pytest

from relay.model import BearerCheck, Secret
from tests.config.conftest import Loader, Refuser

OWN = {"url": "https://api.example.com/stock/{{ body.sku }}"}
PLUG = {"provider": "plugandpay", "token": "pnp-token-0123456789"}
XOXO = {"provider": "xoxoday", "token": "xoxo-token-0123456789"}


def test_a_provider_and_a_token_are_enough(build: Loader) -> None:
    """The rest is known; the base URL and the includes may be others."""
    (one,) = build(
        enrichers={"orders": PLUG | {"base_url": "https://proxy.example.com/pnp", "include": ["billing"]}}
    ).enrichers
    assert (one.name, one.url, one.include) == ("orders", "https://proxy.example.com/pnp", ("billing",))
    assert one.auth == BearerCheck((Secret(b"pnp-token-0123456789"),))
    assert one.lookup is not None
    assert "pnp-token" not in repr(one)


def test_an_enricher_of_ones_own_is_described(build: Loader) -> None:
    """By a URL and headers that may be templates, credentials, a time and what of the answer is kept."""
    section = OWN | {
        "headers": {"Accept": "application/json", "X-Shop": "{{ body.shop }}"},
        "auth": {"scheme": "api_key", "query": "key", "value": "0123456789abcdef"},
        "timeout": "3s",
        "take": "result",
        "drop": ["vouchers", "lines[*].pin"],
    }
    (one,) = build(enrichers={"stock": section}).enrichers
    assert one.url_template == "https://api.example.com/stock/{{ body.sku }}"
    assert one.headers == (("Accept", "application/json"),)
    assert one.header_templates == (("X-Shop", "{{ body.shop }}"),)
    assert (one.timeout, one.take, one.drop) == (timedelta(seconds=3), "result", ("vouchers", "lines[*].pin"))
    assert "0123456789abcdef" not in repr(one)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "needs a provider (plugandpay, xoxoday) or a url"),
        ({"provider": "stripe", "token": "x" * 16}, 'provider: unknown provider "stripe"'),
        (PLUG | OWN, "url: has no meaning beside provider, which knows its own; base_url moves it"),
        ({"provider": "plugandpay"}, "token: missing; the API of Plug&Pay wants one"),
        (PLUG | {"auth": {"scheme": "bearer", "token": "x" * 16}}, "auth: token is given as well; keep one of the two"),
        (PLUG | {"headers": {"Authorization": "Bearer x"}}, "headers: authorization is set by token as well"),
        (PLUG | {"include": ["biling"]}, 'include[0]: unknown include "biling"; did you mean "billing"?'),
        (XOXO | {"include": ["billing"]}, "include: has no meaning for provider xoxoday"),
        (PLUG | {"take": "data"}, "take: has no meaning for provider plugandpay"),
        (PLUG | {"body": "{}"}, "body: has no meaning for provider plugandpay"),
        (PLUG | {"base_url": "https://api.example.com/?x=1"}, "base_url: must not have a query"),
        (PLUG | {"base_url": "http://169.254.169.254/"}, "base_url: "),
        (OWN | {"token": "x" * 16}, "token: has no meaning without a provider"),
        (OWN | {"body": "{}"}, "body: a GET has none; write method: POST"),
        (OWN | {"method": "PUT"}, 'method: unknown method "PUT"'),
        (OWN | {"timeout": "31s"}, "timeout: "),
        (
            OWN | {"headers": {"Transfer-Encoding": "chunked"}},
            "headers.Transfer-Encoding: set by the connection itself",
        ),
        (OWN | {"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a: the same header as X-A"),
        (OWN | {"headers": {"X A": "1"}}, 'headers."X A": not a valid header name'),
        (
            OWN | {"auth": {"scheme": "api_key", "header": "Content-Length", "value": "0123456789abcdef"}},
            "auth: content-length: set by the connection itself; it cannot be configured",
        ),
        (OWN | {"drop": ["sum(a)"]}, 'drop[0]: "sum(a)" is not a path'),
        (OWN | {"drop": ["@"]}, 'drop[0]: "@" finds the whole document'),
        (OWN | {"take": "a."}, 'take: "a." is not a JMESPath expression'),
        ({"url": "https://{{ body.host }}/x"}, "url: scheme, host and port must be literal"),
        ({"url": "http://169.254.169.254/{{ body.id }}"}, "url: "),
        ({"url": "https://api.example.com/{{ body.id"}, "url: is not a template"),
    ],
)
def test_what_an_enricher_cannot_mean_is_refused_with_its_place(
    refused: Refuser, section: dict[str, Any], message: str
) -> None:
    """Before anybody is asked, in words that tell what would be right."""
    (line,) = refused(enrichers={"stock": section})
    assert line.startswith(f"enrichers.stock.{message}" if section else f"enrichers.stock: {message}")


def test_an_enricher_that_no_one_knows_is_refused(refused: Refuser) -> None:
    """With what was probably meant."""
    (line,) = refused(enrichers={"stock": OWN}, route={"enrich": "stok"})
    assert line == 'routes[0].enrich: unknown enricher "stok"; did you mean "stock"? known: stock'
