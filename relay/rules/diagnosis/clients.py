"""Whether the address may post, and what would make it so.

Law: the verdict is that of `rules.addresses`; what is advised here was tried with the same functions.
"""

from ipaddress import ip_network

from relay.model import IPNetwork, Source
from relay.rules.addresses import MOST_HOPS, AddressRefusal, allowed, client_address, looks_like_a_proxy
from relay.rules.diagnosis.steps import Posted, Step, listed, sentence

_FORWARDED_FOR = "X-Forwarded-For"
_MOST_PROXIES = 8
"""Proxies in a row that are tried."""

_REFUSALS = {
    "ip_unknown": "the peer has no address",
    "bad_forwarded_for": f"{_FORWARDED_FOR} holds something that is no address, so the client is not known",
    "too_many_hops": f"{_FORWARDED_FOR} holds more than {MOST_HOPS} addresses",
}
_OUR_PROXY = "Let your own proxy set it anew, from the address that connected to it."


def address_step(sent: Posted, source: Source, trusted: tuple[IPNetwork, ...]) -> tuple[Step, int | None]:
    """The step about the client's address, and the status that the relay answers where it turns the address away."""
    if sent.peer is None:
        return _unjudged(source), None
    client = client_address(sent.peer, sent.values(_FORWARDED_FOR), trusted)
    if isinstance(client, AddressRefusal):
        return Step("address", ok=False, said=_REFUSALS[client.reason], advice=_OUR_PROXY), client.status
    whose = f"client {client}" if client == sent.peer else f"client {client}, by {_FORWARDED_FOR},"
    if not source.allow_ips:
        return Step("address", ok=True, said=f"{whose} may post: there is no allow_ips"), None
    if allowed(client, source.allow_ips):
        return Step("address", ok=True, said=f"{whose} is in allow_ips"), None
    said = f"{whose} is not in allow_ips: {_networks(source)}"
    return Step("address", ok=False, said=said, advice=_advice(sent, client, source, trusted)), 403


def _unjudged(source: Source) -> Step:
    if not source.allow_ips:
        return Step("address", ok=True, said="without allow_ips any address may post")
    said = f"not judged, because nobody said who connected; allow_ips: {_networks(source)}"
    advice = "Give --remote with the address that connected to the relay, and X-Forwarded-For with --header."
    return Step("address", ok=None, said=said, advice=advice)


def _networks(source: Source) -> str:
    return listed(
        [str(network.network_address if network.num_addresses == 1 else network) for network in source.allow_ips]
    )


def _advice(sent: Posted, client: str, source: Source, trusted: tuple[IPNetwork, ...]) -> str:
    """What would let the right sender in."""
    forwarded = sent.values(_FORWARDED_FOR)
    proxies: list[str] = []
    found: str | AddressRefusal = client
    while forwarded and isinstance(found, str) and found not in proxies and len(proxies) < _MOST_PROXIES:
        proxies.append(found)
        found = client_address(sent.peer, forwarded, (*trusted, *map(ip_network, proxies)))
        if isinstance(found, str) and allowed(found, source.allow_ips):
            return (
                f"{_FORWARDED_FOR} names {found}, which is in allow_ips, but it is believed only from proxies: if "
                f"{listed(proxies)} is yours, add it to server.trusted_proxies."
            )
    if looks_like_a_proxy(client):
        how = "" if forwarded else f"and let it send {_FORWARDED_FOR}"
        return sentence("It looks like a proxy of yours: name its network in server.trusted_proxies", how) + "."
    return f"If it is the sender's own, add it to sources.{source.name}.allow_ips."
