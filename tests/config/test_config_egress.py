"""No spelling of a closed address, and no key that takes a URL, brings one past the config."""

import ipaddress
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from relay.config.problems import Refused
from relay.config.settings import Address
from relay.config.urls import parsed, refuse_forbidden, warn_doubtful
from relay.rules.egress import EgressPolicy, refusal
from tests.config.conftest import Loader, Refuser, document

EVERYTHING = {"allow": ["0.0.0.0/0", "::/0"]}
SECRET = "0123456789abcdef"

HARMLESS = "https://x.example/"


def words(text: str) -> list[str]:
    return text.split()


NUMBERS = words("""
169.254.169.254 169.254.169.254. 169.254.43518 169.16689662 2852039166 0xA9FEA9FE 0xa9fea9fe. 0xa9.0xfe.0xa9.0xfe
0251.0376.0251.0376 025177524776 0000251.254.169.254 169.254.169.0xfe 0xa9.254.43518 169.0376.0xa9fe 00000000000251.1
169.254.170.2 169.254.170.23 169.254.42.42 169.254.0.23 169.254.1.1 169.254.169.253 169.254.169.123 169.254.169.250
100.100.100.200 168.63.129.16 192.0.0.192 2852039166. 1684301000 169.254.169.254:80 169.254.169.254:8080
""")
IN_BRACKETS = words("""
::ffff:169.254.169.254 ::ffff:a9fe:a9fe 0:0:0:0:0:ffff:a9fe:a9fe 0000:0000:0000:0000:0000:FFFF:A9FE:A9FE
::169.254.169.254 ::a9fe:a9fe ::ffff:0:169.254.169.254 ::ffff:0:a9fe:a9fe 64:ff9b::169.254.169.254 64:ff9b::a9fe:a9fe
64:ff9b:1::169.254.169.254 64:ff9b:1:a9fe:a9:fe00:: 2002:a9fe:a9fe:: 2002:a9fe:a9fe::1 2001:0:a9fe:a9fe::
2001:0:4136:e378:8000:63bf:5601:5601 fe80::5efe:169.254.169.254 2001:db8::200:5efe:a9fe:a9fe fe80::200:5efe:a9fe:a9fe
fd00:ec2::254 FD00:0EC2::0254 fd00:ec2::23 fd00:ec2:0:0:0:0:0:254 fd20:ce::254 fd00:c1::a9fe:a9fe fd00:42::42
fd00:a9fe:a9fe::1 fe80::a9fe:a9fe fe80::a9fe:a9fe%eth0 fe80::a9fe:a9fe%25eth0 ::ffff:100.100.100.200
64:ff9b::100.100.100.200 2002:6464:64c8:: ::ffff:168.63.129.16 64:ff9b::168.63.129.16 ::ffff:169.254.1.1
::ffff:169.254.169.254%1 2002:a83f:8110::
""")
NAMES = words("""
metadata.google.internal METADATA.Google.Internal metadata.google.internal. metadata.google.internal..
metadata.google.internal:80 metadata%2egoogle%2einternal metadata.google.internal%00 metadata.goog metadata.azure.com
metadata.azure.internal metadata.tencentyun.com metadata.packet.net metadata.platformequinix.com
instance-data.ec2.internal 169%2e254%2e169%2e254 %31%36%39.254.169.254 169.254.169.254%20 169.254.169.254%2f@x.example
user@169.254.169.254 user:pw@169.254.169.254 x.example@169.254.169.254 169.254.169.254@x.example
x.example%40169.254.169.254 169.254.169.254\\@x.example x.example\\@169.254.169.254 169.254.169.254\\.x.example
169.254.169.254: 169.254.169.254:080x
""")
OTHER_ALPHABETS = [
    "\u2460\u2465\u2468.\u2461\u2464\u2463.\u2460\u2465\u2468.\u2461\u2464\u2463",  # digits in circles
    "\uff11\uff16\uff19.\uff12\uff15\uff14.\uff11\uff16\uff19.\uff12\uff15\uff14",  # fullwidth digits
    "169\u3002254\u3002169\u3002254",  # ideographic full stops
    "169\uff61254\uff61169\uff61254",
    "169\uff0e254\uff0e169\uff0e254",
    "169.254.169.2\u00ad54",  # a soft hyphen
    "169.254.169.2\u200b54",  # a space of no width
    "\u24dcetadata.google.internal",
    "metadata\u3002google\u3002internal",
    "metadata.\uff47oogle.internal",
]
HOSTS = [*NUMBERS, *(f"[{one}]" for one in IN_BRACKETS), *NAMES, *OTHER_ALPHABETS]
ODD = [
    "http:\\\\169.254.169.254\\",
    "http:/169.254.169.254/",
    "http:169.254.169.254/",
    "http:////169.254.169.254/",
    "http:///169.254.169.254/",
    "//169.254.169.254/",
    "169.254.169.254/latest",
    " http://169.254.169.254/",
    "http://\t169.254.169.254/",
    "http://169.254.169.254/#@x.example/",
    "HTTP://169.254.169.254/",
    "jar:http://169.254.169.254/!/",
    "url:http://169.254.169.254/",
    "http://x.example#@169.254.169.254/",
    "dict://169.254.169.254/",
    "file://169.254.169.254/",
]

SECTIONS: dict[str, tuple[str, str, Callable[[str], dict[str, object]]]] = {
    "target": ("targets", "url", lambda url: {"url": url}),
    "templated target": ("targets", "url", lambda url: {"url": f"{url}{{{{ body.id }}}}"}),
    "token endpoint": ("targets", "auth.token_url", lambda url: {"url": HARMLESS, "auth": token_at(url)}),
    "proxy": ("targets", "proxy", lambda url: {"url": HARMLESS, "proxy": url.rstrip("/") + ":3128"}),
    "enricher": ("enrichers", "url", lambda url: {"url": url}),
    "templated enricher": ("enrichers", "url", lambda url: {"url": f"{url}{{{{ body.id }}}}"}),
    "enricher of a provider": (
        "enrichers",
        "base_url",
        lambda url: {"provider": "plugandpay", "token": SECRET, "base_url": url},
    ),
    "token endpoint of an enricher": (
        "enrichers",
        "auth.token_url",
        lambda url: {"url": HARMLESS, "auth": token_at(url)},
    ),
}
"""Where a URL may stand: the section, the key, and what is to be written there."""


def token_at(url: str) -> dict[str, object]:
    """Credentials whose token is fetched there."""
    return {"scheme": "oauth2", "token_url": url, "client_id": "us", "client_secret": SECRET}


def written(section: str, urls: Iterable[str], entry: Callable[[str], dict[str, object]]) -> str:
    """A config with one target or enricher for each URL."""
    whole = yaml.safe_load(document(egress=EVERYTHING))
    whole.setdefault(section, {}).update({f"u{number}": entry(url) for number, url in enumerate(urls)})
    return yaml.safe_dump(whole)


@pytest.mark.row("C40", "T40", "T43", "T46", "B10", "B16", "B17", "B54")
@pytest.mark.parametrize(("section", "key", "entry"), SECTIONS.values(), ids=SECTIONS.keys())
def test_no_key_takes_a_closed_address_however_it_is_spelled(
    refusals: Refuser, section: str, key: str, entry: Callable[[str], dict[str, object]]
) -> None:
    """More than a hundred spellings, each refused in its place, whatever `allow` says."""
    urls = [*(f"http://{host}/" for host in HOSTS), *ODD]
    assert len(urls) > 120
    lines = refusals(written(section, urls, entry))
    refused = {line.split(": ")[1] for line in lines}
    for number, url in enumerate(urls):
        assert any(one.startswith(f"{section}.u{number}.{key}") for one in refused), f"{url!a} was taken"


@pytest.mark.row("C40", "T43")
@pytest.mark.parametrize(("section", "key", "entry"), SECTIONS.values(), ids=SECTIONS.keys())
def test_every_key_takes_a_harmless_address(
    read: Loader, section: str, key: str, entry: Callable[[str], dict[str, object]]
) -> None:
    """So that what is refused above is refused for its address."""
    hosts = ("x.example", "8.8.8.8", "[2606:4700:4700::1111]", "10.0.0.5", "xn--bcher-kva.example")
    read(written(section, (f"http://{host}/" for host in hosts), entry))


@pytest.mark.row("T43", "T56")
@given(st.text(max_size=40), st.sampled_from(["", "/", ":80/", "/a?b", "#c"]))
def test_any_text_is_judged(host: str, rest: str) -> None:
    """A URL is taken or refused, never anything else; what is taken has a host that is a plain one."""
    try:
        url = parsed(f"http://{host}{rest}")
        refuse_forbidden(url, EgressPolicy())
    except Refused:
        return
    warn_doubtful(url, Address("127.0.0.1", 8080), lambda _: None)
    assert url.host.isascii()
    assert not set(url.host) & set("@/\\?#%[] ")
    try:
        literal = ipaddress.ip_address(url.host)
    except ValueError:
        assert not url.host.rstrip(".").rpartition(".")[2].isdigit()
    else:
        assert refusal(str(literal), EgressPolicy()) is None


@pytest.mark.row("T46", "B17")
def test_every_request_leaves_by_the_one_guarded_door() -> None:
    """Nothing in the program but the door itself makes a client that could pass by the egress guard; the command line,
    which talks to its own relay, is no part of what runs."""
    root = Path(__file__).parents[2] / "relay"
    makes = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(word in path.read_text() for word in ("ClientSession(", "TCPConnector(", "urlopen(", "open_connection("))
    }
    assert {one for one in makes if not one.startswith("cli/")} == {"delivery/sessions.py"}
