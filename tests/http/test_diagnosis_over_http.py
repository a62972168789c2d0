"""What `relay verify` says of a request is what the relay makes of it."""

import base64
import hmac
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from relay.model import Headers
from relay.rules.diagnosis import Diagnosis, Posted, Surroundings, diagnose
from tests.http.configs import SIGNED, SOURCES
from tests.http.gateway import OLD_SECRET, SECRET, Answer, Gateway, Start

BODY = b'{"type": "paid", "id": "e1"}'
STAMPED = {
    "scheme": "hmac",
    "header": "X-Sig",
    "algorithm": "sha256",
    "signed": "{timestamp}.{body}",
    "timestamp_header": "X-Time",
}


def custom(verify: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"provider": "custom", "verify": verify, "secrets": ["${SECRET}"], **more}


EVERY = SOURCES | {
    "lax": custom(SIGNED, enforce=False),
    "guarded": custom(SIGNED, allow_ips=["192.0.2.0/24"]),
    "stamped": custom(STAMPED),
    "bearer": custom({"scheme": "bearer"}),
    "basic": custom({"scheme": "basic", "username": "shop"}),
    "standard": custom({"scheme": "standard_webhooks"}),
}


def signed(body: bytes = BODY, key: bytes = SECRET) -> tuple[str, str]:
    return ("X-Signature", "sha256=" + hmac.new(key, body, "sha256").hexdigest())


def stamped(ago: int) -> Headers:
    stamp = str(int(time.time()) - ago)
    return (("X-Time", stamp), ("X-Sig", hmac.new(SECRET, stamp.encode() + b"." + BODY, "sha256").hexdigest()))


async def both(relay: Gateway, source: str, headers: Headers, body: bytes) -> tuple[Answer, Diagnosis]:
    """The relay's answer, and the diagnosis of the same request."""
    config = relay.app._config
    found = next(one for one in config.sources if one.name == source)
    around = Surroundings(config.sources, config.routes, config.server.max_body, config.server.trusted_proxies)
    told = diagnose(Posted(headers, body, "127.0.0.1"), found, around, datetime.now(UTC))
    return await relay.post(f"/hooks/{source}", body, headers), told


@pytest.mark.parametrize(
    ("source", "headers", "body"),
    [
        ("signed", (signed(),), BODY),
        ("signed", (signed(key=OLD_SECRET),), BODY),
        ("signed", (signed(),), BODY + b"\n"),
        ("signed", (signed(), signed()), BODY),
        ("signed", (), BODY),
        ("signed", (("X-Signature", signed()[1].upper()),), BODY),
        ("signed", (signed(), ("relay-hops", "9")), BODY),
        ("signed", (signed(b"x" * 5000),), b"x" * 5000),
        ("signed", (("X-Signature", "sha256=zz"),), b"x" * 5000),
        ("signed", (signed(), ("X-Forwarded-For", "junk")), BODY),
        ("signed", (signed(key=b"another-key"),), b"x" * 5000),
        ("signed", (signed(key=b"another-key"), ("relay-hops", "9")), BODY),
        ("guarded", (), BODY),
        ("guarded", (signed(b"x" * 5000), ("X-Forwarded-For", "198.51.100.1")), b"x" * 5000),
        ("lax", (), BODY),
        ("lax", (signed(),), BODY),
        ("guarded", (signed(),), BODY),
        ("guarded", (signed(), ("X-Forwarded-For", "192.0.2.7")), BODY),
        ("guarded", (("X-Forwarded-For", "192.0.2.7"),), BODY),
        ("guarded", (signed(), ("X-Forwarded-For", "192.0.2.7, 198.51.100.1")), BODY),
        ("stamped", stamped(0), BODY),
        ("stamped", stamped(4000), BODY),
        ("stamped", stamped(-4000), BODY),
        ("stamped", (("X-Time", "1700000000000"), ("X-Sig", "0" * 64)), BODY),
        ("key", (("x-key", SECRET.decode()),), b"not json"),
        ("key", (("X-Key", SECRET.decode() + "é"),), b""),
        ("bearer", (("Authorization", f"bearer  {SECRET.decode()}"),), BODY),
        ("bearer", (("Authorization", SECRET.decode()),), BODY),
        ("basic", (("Authorization", "Basic " + base64.b64encode(b"shop:" + SECRET).decode()),), BODY),
        ("basic", (("Authorization", "Basic " + base64.b64encode(b"Shop:" + SECRET).decode()),), BODY),
        ("standard", (("webhook-id", "m"), ("webhook-signature", "v1,x")), BODY),
        ("open", (), BODY),
    ],
)
async def test_the_diagnosis_is_what_the_relay_does(start: Start, source: str, headers: Headers, body: bytes) -> None:
    """The same answer, the same type, the same say about its proof."""
    relay = await start(EVERY, server={"trusted_proxies": ["127.0.0.0/8"], "max_body": "1KiB"})
    answer, told = await both(relay, source, headers, body)
    assert told.status == answer.status
    if answer.status == 200:
        line = await relay.told("event.accepted")
        assert (told.proven, told.event_type, len(told.targets)) == (line["verified"], line["type"], line["targets"])
    else:
        assert not told.proven
