"""The program and the names of its targets: whatever a name server says, it is told, retried, and opens nothing."""

import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.name_server import (
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    Reply,
    addresses,
    alias,
    asking_at,
    can_replace_the_name_server,
    failing,
    garbage,
    in_turn,
    name_server,
    silent,
    truncated,
)
from tests.support.program import KEY, Gateway, Sink, until, webhook

HERE = "127.0.0.1"
METADATA = "169.254.169.254"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_replace_the_name_server(), reason="needs the right to mount"),
]


def config(home: Path, *lines: str) -> Path:
    """A config with one source `shop` and what else is given."""
    path = home / "config.yaml"
    whole = [
        'server: {listen: "127.0.0.1:0"}',
        'admin: {listen: "127.0.0.1:0"}',
        f'store: {{url: "sqlite:///{home}/relay.db"}}',
        f'sources: {{shop: {{provider: custom, secrets: ["{KEY}"], verify: {{scheme: api_key, header: X-Key}}}}}}',
        *lines,
    ]
    path.write_text("\n".join(whole))
    path.chmod(0o600)
    return path


def attempts(gateway: Gateway, target: str) -> list[dict[str, Any]]:
    """What the log tells of the attempts at a target."""
    return [line for line in gateway.said("delivery.attempted") if line["target"] == target]


FOUND: dict[str, Reply] = {
    "plain": addresses(HERE),
    "alias": alias("real.example", HERE),
    "tcp": truncated(addresses(HERE)),
    "later": in_turn(failing(NXDOMAIN, kept=3600), addresses(HERE)),
    "mixed": addresses(METADATA, HERE),
}
LOST: dict[str, tuple[Reply, str]] = {
    "none": (failing(NXDOMAIN), "DNS: Domain name not found"),
    "broken": (failing(SERVFAIL), "DNS: "),
    "closed": (failing(REFUSED), "DNS: "),
    "silent": (silent, "DNS: "),
    "empty": (addresses(), "DNS: "),
    "garbage": (garbage, "DNS: "),
    "circle": (alias("circle.example"), "DNS: "),
    "metadata": (addresses(METADATA), "egress policy forbids it: cloud metadata address"),
    "mapped": (addresses(f"::ffff:{METADATA}"), "egress policy forbids it: cloud metadata address"),
}


@pytest.mark.row("F22", "F23", "T41", "T42", "B41")
async def test_what_dns_says_of_one_target_is_that_targets_alone(tmp_path: Path) -> None:
    """Names that are found are delivered to at once, beside those that are not, which are retried and told in words;
    one that comes into being is found by the next attempt."""
    replies = {f"{name}.example": reply for name, reply in FOUND.items()}
    replies |= {f"{name}.example": reply for name, (reply, _) in LOST.items()}
    names = [*FOUND, *LOST]
    async with Sink() as sink, name_server(replies) as dns:
        path = config(
            tmp_path,
            "targets:",
            *(
                f'  {name}: {{url: "http://{name}.example:{sink.port}/{name}", retry: {{schedule: [300ms, 300ms]}}}}'
                for name in names
            ),
            f"routes: [{{name: all, from: [shop], to: [{', '.join(names)}]}}]",
        )
        async with Gateway(path, within=asking_at(dns.port, tmp_path)) as gateway:
            for number in range(5):
                await gateway.post(*webhook(number))
            await until(lambda: all(len(set(sink.ids(name))) == 5 for name in FOUND))
            assert attempts(gateway, "silent") == [], "who waits for a name server has held nobody up"
            await until(lambda: all(len(attempts(gateway, name)) >= 2 for name in LOST))
            for name, (_, reason) in LOST.items():
                for line in attempts(gateway, name):
                    assert (line["outcome"], line["status"]) == ("unreachable", None)
                    assert line["reason"].startswith(reason), line
                    assert "example" not in line["reason"]
                assert dns.times(f"{name}.example") >= 2, f"{name} was not asked for again"
            assert {line["outcome"] for line in attempts(gateway, "later")} == {"unreachable", "delivered"}
            assert not {arrival.target for arrival in sink.arrivals} & LOST.keys()
            targets = await gateway.targets()
            assert [targets[name]["pending"] for name in FOUND] == [0] * len(FOUND)


@pytest.mark.row("T40", "T46", "B16", "B17")
async def test_no_way_out_leads_to_metadata(tmp_path: Path) -> None:
    """A name that points there is refused when it is dialled: as a target, a filled-in URL, an enricher, a token
    endpoint, a proxy, and where a target is only tested by hand."""
    async with Sink() as sink, name_server({"inside.example": addresses(METADATA)}) as dns:
        inside, well = "http://inside.example", sink.url("well")
        oauth = f"{{scheme: oauth2, token_url: '{inside}/token', client_id: us, client_secret: '{KEY}'}}"
        path = config(
            tmp_path,
            "targets:",
            f"  plain: {{url: '{inside}/latest/meta-data'}}",
            f"  filled: {{url: '{inside}/{{{{ id }}}}'}}",
            f"  token: {{url: '{well}', auth: {oauth}}}",
            f"  proxied: {{url: '{well}', proxy: '{inside}:3128'}}",
            f"  enriched: {{url: '{well}'}}",
            "enrichers:",
            f"  stock: {{url: '{inside}/{{{{ id }}}}'}}",
            "routes:",
            "  - {name: all, from: [shop], to: [plain, filled, token, proxied]}",
            "  - {name: enriched, from: [shop], to: [enriched], enrich: stock}",
        )
        async with Gateway(path, within=asking_at(dns.port, tmp_path)) as gateway:
            await gateway.post(*webhook(1))
            targets = ("plain", "filled", "token", "proxied", "enriched")
            await until(lambda: all(attempts(gateway, name) for name in targets))
            for name in targets:
                line = attempts(gateway, name)[0]
                assert "forbids it: cloud metadata address (169.254.169.254)" in line["reason"], line
                assert line["outcome"] == ("interrupted" if name == "enriched" else "unreachable")
            async with aiohttp.ClientSession() as session:
                for name in targets[:-1]:
                    async with session.post(f"{gateway.admin}/api/v1/targets/{name}/test") as answer:
                        told = await answer.json()
                    assert told["outcome"] == "unreachable", told
                    assert "cloud metadata address" in told["reason"]
            assert sink.arrivals == []


@pytest.mark.row("F22")
async def test_another_name_server_is_taken_up_while_it_runs(tmp_path: Path) -> None:
    """A machine that comes to its network after the relay has started, or changes it, needs no restart."""
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("hosts", "nsswitch.conf", "passwd", "group"):
        if Path(f"/etc/{name}").exists():
            shutil.copy(f"/etc/{name}", etc / name)
    (etc / "resolv.conf").write_text("")
    mount = f'mount --bind "{etc}" /etc && exec "$@"'
    async with Sink() as sink, name_server({"crm.example": addresses(HERE)}) as dns:
        path = config(
            tmp_path,
            f'targets: {{crm: {{url: "http://crm.example:{sink.port}/crm", retry: {{schedule: [500ms, 500ms]}}}}}}',
            "routes: [{name: all, from: [shop], to: [crm]}]",
        )
        async with Gateway(path, within=["unshare", "-m", "sh", "-c", mount, "sh"]) as gateway:
            await gateway.post(*webhook(1))
            await until(lambda: len(attempts(gateway, "crm")) >= 1)
            assert attempts(gateway, "crm")[0]["reason"].startswith("DNS: ")
            (etc / "resolv.new").write_text(f"nameserver 127.0.0.1:{dns.port}\n")
            (etc / "resolv.new").rename(etc / "resolv.conf")
            await until(lambda: bool(sink.arrivals))
            assert len(gateway.said("relay.started")) == 1
