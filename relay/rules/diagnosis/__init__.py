"""Why a request is believed or not: every check of the relay in order, what each says, and what would have matched.

Law: the verdicts are those of the functions that the relay itself asks, so that a diagnosis cannot differ from it.
Total over what strangers send. No secret is told, nor anything from which one could be had; a digest that should have
been sent for these very bytes may be.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from relay.model import (
    NO_TYPE,
    BasicCheck,
    Content,
    HmacCheck,
    NoCheck,
    ReceivedRequest,
    Route,
    Source,
    StandardWebhooksCheck,
    VerifiedRequest,
)
from relay.rules.diagnosis.clients import address_step
from relay.rules.diagnosis.shared_keys import SharedKeyCheck, key_advice
from relay.rules.diagnosis.signed_requests import signed_steps
from relay.rules.diagnosis.steps import Posted, Step, Surroundings, listed, numbered
from relay.rules.expressions import view_from
from relay.rules.forwarding import MOST_HOPS, incoming_hops, storable_headers
from relay.rules.routing import OPEN, Subject, TargetVerdict, Verdict, judged, matches, summed
from relay.rules.secrets import blotted, log_secrets
from relay.rules.signing import basic_credentials, wire_text
from relay.rules.verification import Refusal, prove_headers, verify

__all__ = ["Diagnosis", "Posted", "Step", "Surroundings", "diagnose"]

_MOST_ROUTES = 4
_CHALLENGED = (
    Step("challenge", ok=True, said="the relay tells the sender back what it asks: no event, nothing is delivered"),
)
_NO_ID = "evt_none"
"""The id of what is no event yet."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the relay would make of a request, step by step."""

    source: str
    proven: bool
    """Whether the request gets as far as its proof, and the proof holds."""
    proves_nothing: bool
    """Whether the source asks for no proof at all."""
    status: int
    """What the relay would answer, were it neither full nor busy."""
    steps: tuple[Step, ...]
    event_type: str
    dedupe_key: str | None
    routes: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def is_accepted(self) -> bool:
        """Whether the request would become an event."""
        return self.status < 300


def diagnose(sent: Posted, source: Source, config: Surroundings, now: datetime) -> Diagnosis:
    """Judge a request as the relay would at `now`, and explain every step."""
    request = ReceivedRequest(sent.headers, sent.body or b"", sent.peer or "")
    verdict = verify(request, source.check, now)
    address, turned = address_step(sent, source, config.trusted_proxies)
    size, too_large = _size_step(sent, config)
    proof, rest = _proof_steps(sent, source, config, now)
    loop, looped = _loop_steps(sent)
    refused = 401 if isinstance(verdict, Refusal) and source.enforce else None
    early = refused if prove_headers(sent.headers, source.check) is not None else None
    content = Content(request.headers, request.body)
    named = source.event_type(content)
    key = source.dedupe_key(content)
    event_type = named or NO_TYPE
    is_challenge = source.challenge is not None and source.challenge(content) is not None
    verdicts = [] if is_challenge else _verdicts(content, event_type, source, config.routes, now)
    found = summed(verdicts)
    steps = (
        Step("path", ok=None, said=f"{source.path} is where to post; any other path is 404"),
        Step("method", ok=None, said="POST; any other method is 405"),
        address,
        proof,
        size,
        *rest,
        *_enforce_steps(source, verdict),
        *(() if is_challenge else loop),
        *(_CHALLENGED if is_challenge else _event_steps(source, named, key, verdicts, config.routes)),
    )
    status = turned or early or too_large or refused or (200 if is_challenge else looped or source.status)
    hidden = _hidden(config.sources)
    return Diagnosis(
        source=source.name,
        proven=status < 300 and not isinstance(verdict, Refusal) and verdict.proven,
        proves_nothing=isinstance(source.check, NoCheck),
        status=status,
        steps=tuple(_without(step, hidden) for step in steps),
        event_type=blotted(event_type, hidden),
        dedupe_key=blotted(key, hidden) if key is not None else None,
        routes=found.routes,
        targets=found.targets,
    )


def _proof_steps(sent: Posted, source: Source, config: Surroundings, now: datetime) -> tuple[Step, list[Step]]:
    """The step that the headers decide, and those behind the body."""
    check = source.check
    if isinstance(check, NoCheck):
        guards = "its path and allow_ips" if source.allow_ips else "its path"
        said = f"the source asks for none: nothing but {guards} keeps strangers out; targets see relay-verified: false"
        return Step("proof", ok=None, said=said), []
    if isinstance(check, HmacCheck | StandardWebhooksCheck):
        return signed_steps(sent, source, check, config, now)
    return _key_step(sent, source, check, config, now), []


def _key_step(sent: Posted, source: Source, check: SharedKeyCheck, config: Surroundings, now: datetime) -> Step:
    """The step about a key that travels in the clear: the headers alone decide it."""
    verdict = verify(ReceivedRequest(sent.headers, b"", ""), check, now)
    if isinstance(verdict, Refusal):
        said = f"{verdict.detail} ({verdict.reason})"
        return Step("proof", ok=False, said=said, advice=key_advice(sent, source, check, verdict, config))
    said = f"{check.header} is there, once, and holds the source's secret"
    return Step("proof", ok=True, said=said + numbered(verdict, len(check.secrets)))


def _size_step(sent: Posted, config: Surroundings) -> tuple[Step, int | None]:
    """The step about the body's size, and the answer where it is too large, declared or true."""
    size = len(sent.body or b"")
    lengths = sent.values("Content-Length")
    declared = int(lengths[0]) if len(lengths) == 1 and _is_number(lengths[0]) else size
    said = f"{size:,} of at most {config.max_body:,} bytes"
    if sent.body is None:
        said = "no body was given (--data): judged as an empty one"
    if max(size, declared) > config.max_body:
        said = f"{max(size, declared):,} bytes, more than the {config.max_body:,} of server.max_body"
        return Step("size", ok=False, said=said, advice="Raise server.max_body if the sender needs it."), 413
    if declared != size:
        advice = f"Content-Length says {declared:,}: what is given here is not what was sent, byte for byte."
        return Step("size", ok=True, said=said, advice=advice), None
    return Step("size", ok=True, said=said), None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


def _enforce_steps(source: Source, verdict: VerifiedRequest | Refusal) -> list[Step]:
    if source.enforce or not isinstance(verdict, Refusal):
        return []
    said = "enforce: false lets it through all the same: the target sees relay-verified: false"
    return [Step("enforce", ok=None, said=said)]


def _loop_steps(sent: Posted) -> tuple[list[Step], int | None]:
    """The step about relays that post to each other, where there are too many, and its answer."""
    hops = incoming_hops(sent.headers)
    if hops is None or hops <= MOST_HOPS:
        return [], None
    said = f"relay-hops says that {hops} relays have sent it on, more than {MOST_HOPS}"
    return [Step("loop", ok=False, said=said, advice="See whose target is this relay's own address.")], 508


def _event_steps(
    source: Source, named: str | None, key: str | None, verdicts: list[Verdict], routes: tuple[Route, ...]
) -> tuple[Step, ...]:
    """The steps about the event that the request becomes."""
    event_type = named or NO_TYPE
    return (
        _type_step(named, source, routes),
        _dedupe_step(key),
        _routes_step(source, event_type, verdicts, routes),
    )


def _type_step(named: str | None, source: Source, routes: tuple[Route, ...]) -> Step:
    if named is not None:
        return Step("type", ok=True, said=named)
    said = f'none is found in it, so it is "{NO_TYPE}"'
    if not any(route.types for route in routes if source.name in route.sources):
        return Step("type", ok=None, said=said)
    advice = (
        f"Routes that match types may miss it: see sources.{source.name}.event_type, and whether the body is whole."
    )
    return Step("type", ok=None, said=said, advice=advice)


def _dedupe_step(key: str | None) -> Step:
    if key is not None:
        return Step("dedupe", ok=True, said=f"known again by {key}")
    return Step("dedupe", ok=None, said="no key is found in it: sent twice, it is delivered twice")


def _verdicts(
    content: Content, event_type: str, source: Source, routes: tuple[Route, ...], now: datetime
) -> list[Verdict]:
    """What each route says of the event that the request would become."""
    headers = storable_headers(content.headers, key_header=source.key_header, forwarded=frozenset())
    subject = Subject(
        source.name,
        event_type,
        headers=lambda: headers,
        view=lambda: view_from(_NO_ID, event_type, source.name, now, headers, content.json, content.declared_form),
    )
    return [judged(route, subject) for route in routes]


def _routes_step(source: Source, event_type: str, verdicts: list[Verdict], routes: tuple[Route, ...]) -> Step:
    """Who takes it, or why nobody does."""
    taking = [verdict for verdict in verdicts if verdict.because is None]
    if taking:
        taken = [f"{verdict.route} to {', '.join(map(_destination, verdict.ways))}" for verdict in taking]
        return Step("routes", ok=True, said=listed(taken, _MOST_ROUTES))
    own = [route for route in routes if source.name in route.sources]
    if not own:
        advice = f"Without one it is stored and goes nowhere: add a route with from: [{source.name}]."
        return Step("routes", ok=False, said=f"no route is from {source.name}", advice=advice)
    if any(matches(route, source.name, event_type) for route in own):
        names = {route.name for route in own}
        why = [f"{verdict.route}: {verdict.because}" for verdict in verdicts if verdict.route in names]
        advice = "It would be stored and go nowhere (event.unrouted). relay route tells more."
        return Step("routes", ok=False, said=f"no route takes it: {'; '.join(why[:_MOST_ROUTES])}", advice=advice)
    said = (
        f"no route takes this type: {listed([f'{route.name} takes {listed(list(route.types))}' for route in own], 3)}"
    )
    lowered = (replace(route, types=tuple(glob.lower() for glob in route.types)) for route in own)
    if any(matches(route, source.name, event_type.lower()) for route in lowered):
        return Step("routes", ok=False, said=said, advice="Upper and lower case count.")
    return Step("routes", ok=False, said=said, advice="It would be stored and go nowhere (event.unrouted).")


def _destination(one: TargetVerdict) -> str:
    return f"{one.target} ({OPEN})" if one.is_open else one.target


def _hidden(sources: tuple[Source, ...]) -> frozenset[str]:
    """What no word of a diagnosis may hold, whatever the request or a naming rule brings in."""
    keys = [(source.check, secret) for source in sources for secret in getattr(source.check, "secrets", ())]
    found = log_secrets(sources, (), None) | {wire_text(secret.value) for _, secret in keys}
    found |= {
        basic_credentials(check.username, secret).decode() for check, secret in keys if isinstance(check, BasicCheck)
    }
    return frozenset(found - {""})


def _without(step: Step, hidden: frozenset[str]) -> Step:
    return replace(
        step,
        said=blotted(step.said, hidden),
        advice=blotted(step.advice, hidden),
        expected=blotted(step.expected, hidden),
    )
