"""The steps of a request that is signed: the headers of the proof, the digest, the time.

Law: the verdicts are those of `rules.verification`, asked with the very request; only the words are made here.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from relay.model import HmacCheck, ReceivedRequest, Source, StandardWebhooksCheck
from relay.rules.diagnosis.digests import digests
from relay.rules.diagnosis.remedies import remedy, unlike
from relay.rules.diagnosis.signatures import explained, scheme_of
from relay.rules.diagnosis.steps import Posted, Step, Surroundings, numbered, sentence, spelled, unsent
from relay.rules.signing import digest_text, octets, proof_value, signed_bytes, signed_fields, timestamp_place
from relay.rules.verification import Refusal, prove_headers, signed_timestamp, untimely, verify

_DIGITS = re.compile(r"[0-9]+")
_MILLISECONDS = range(12, 15)
_TIME_NAME = re.compile(r"timestamp|time$", re.IGNORECASE)
_SECONDS_PLEASE = "The sender has to send whole Unix seconds."
_CLOCKS = "Compare both clocks (date -u)."


@dataclass(frozen=True, slots=True)
class _Case:
    """One signed request and all that it is judged by."""

    sent: Posted
    source: Source
    check: HmacCheck | StandardWebhooksCheck
    config: Surroundings
    now: datetime

    @property
    def request(self) -> ReceivedRequest:
        """The request as the relay would see it."""
        return ReceivedRequest(self.sent.headers, self.sent.body or b"", self.sent.peer or "")

    @property
    def scheme(self) -> HmacCheck:
        """The check as the HMAC that it is."""
        return scheme_of(self.check)


def signed_steps(
    sent: Posted, source: Source, check: HmacCheck | StandardWebhooksCheck, config: Surroundings, now: datetime
) -> tuple[Step, list[Step]]:
    """The step that the headers alone decide, and those that need the body."""
    case = _Case(sent, source, check, config, now)
    malformed = prove_headers(sent.headers, check)
    if malformed is not None:
        said = _said(malformed)
        proof = Step("proof", ok=False, said=said, advice=_advice(case, malformed), expected=_expected(case))
        return proof, [Step("signature", ok=None, said="not looked at: the proof's headers come first")]
    names = " and ".join(filter(None, (case.scheme.header, case.scheme.id_header, case.scheme.timestamp_header)))
    form = f"a {case.scheme.algorithm} digest in {case.scheme.encoding}"
    proof = Step("proof", ok=True, said=f"{names}: there, once, and well formed ({form})")
    return proof, [_signature_step(case), *_timestamp_steps(case)]


def _said(refusal: Refusal) -> str:
    return f"{refusal.detail} ({refusal.reason})"


def _signature_step(case: _Case) -> Step:
    verdict = verify(case.request, case.check, case.now)
    if isinstance(verdict, Refusal) and verdict.reason == "bad_signature":
        return Step("signature", ok=False, said=_said(verdict), advice=_advice(case, verdict), expected=_expected(case))
    said = "the digest covers these bytes, made with the source's secret"
    return Step("signature", ok=True, said=said + numbered(verdict, len(case.check.secrets)))


def _timestamp_steps(case: _Case) -> list[Step]:
    """The step about the time, where time is signed."""
    scheme = case.scheme
    if "timestamp" not in signed_fields(scheme.signed):
        return []
    sent = signed_timestamp(case.sent.headers, scheme)
    if isinstance(sent, Refusal):
        return []
    skew = int(sent) - int(case.now.timestamp())
    side = "ahead of" if skew > 0 else "behind"
    said = f"{timestamp_place(scheme)} is {spelled(abs(skew))} {side} this clock, {_within(scheme.tolerance)}"
    refusal = untimely(sent, scheme.tolerance, case.now)
    if refusal is None:
        return [Step("timestamp", ok=True, said=said)]
    if refusal.reason == "bad_timestamp":
        return [Step("timestamp", ok=False, said=_said(refusal), advice=_SECONDS_PLEASE)]
    advice = f"Either the sender's clock is fast or this one is slow. {_CLOCKS}"
    if skew < 0:
        advice = (
            "Either the sender's clock is slow or this one is fast, or the request is an old one: judge it as of "
            f"then with --at TIME. {_CLOCKS}"
        )
    return [Step("timestamp", ok=False, said=f"{said} ({refusal.reason})", advice=advice)]


def _within(tolerance: timedelta) -> str:
    return f"allowed are {spelled(tolerance.total_seconds())}"


def _advice(case: _Case, refusal: Refusal) -> str:
    """What explains a refusal, as far as anything does."""
    found = explained(case.sent, case.scheme, others=[one for one in case.config.sources if one != case.source])
    told = remedy(found, case.check) if found is not None else ""
    match refusal.reason:
        case "missing_signature":
            return told or sentence(unsent(case.sent, case.scheme.header), case.config.whence)
        case "ambiguous_signature":
            return sentence(told, "One of each is read, no more: see what adds another (a proxy, a plug-in).")
        case "bad_timestamp":
            return sentence(_bad_timestamp(case), told)
        case "bad_id":
            return sentence("The sender has to send one short id without dots.", told)
    return told or _unexplained(case)


def _bad_timestamp(case: _Case) -> str:
    header = timestamp_place(case.scheme)
    values = _timestamps(case)
    if not values:
        others = [name for name, _ in case.sent.headers if _TIME_NAME.search(name)]
        return f"Is {others[0]} meant? The source reads {header}." if others else _SECONDS_PLEASE
    sent = values[0].strip()
    if _DIGITS.fullmatch(sent) and len(sent) in _MILLISECONDS:
        return f"{header} has {len(sent)} digits: these are milliseconds. {_SECONDS_PLEASE}"
    return f"{header} holds no plain number of seconds (a date, a fraction, another unit?). {_SECONDS_PLEASE}"


def _timestamps(case: _Case) -> list[str]:
    """What stands where the timestamp should be, whatever it is."""
    listing = case.scheme.listing
    if listing is None or not listing.timestamp_prefix:
        return case.sent.values(case.scheme.timestamp_header or "")
    mark = listing.timestamp_prefix
    entries = [entry for line in case.sent.values(case.scheme.header) for entry in line.split(listing.separator)]
    return [entry.removeprefix(mark) for entry in entries if entry.startswith(mark)]


def _unexplained(case: _Case) -> str:
    """What to say where no digest was explained."""
    header, secrets = case.scheme.header, {secret.value for secret in case.scheme.secrets if secret.value}
    if not secrets:
        return "The source has no secret that could match."
    for name, value in case.sent.headers:
        sent = octets(value)
        if secrets & {sent, sent.partition(b" ")[2], sent.partition(b"=")[2]}:
            return (
                f"{name} holds the secret itself, not a digest made with it: the source wants "
                f"verify: {{scheme: api_key, header: {name}}}."
            )
    there = [one for one in digests(case.sent.headers, header) if one.header.lower() == header.lower()]
    spelling = unlike(there[0], case.check) if there else f"What {header} holds is no digest of any kind."
    sizes = " or ".join(str(size) for size in sorted({len(secret) for secret in secrets}))
    usual = (
        "No usual mistake explains the digest, so it is another secret or another body. Compare the secret at both "
        f"ends (here {sizes} bytes), and take the body byte for byte."
    )
    return sentence(spelling, usual if there else "", case.config.whence)


def _expected(case: _Case) -> str:
    """What the proof header should have held for these bytes; empty where the other headers leave no right answer."""
    scheme = case.scheme
    key = next((secret.value for secret in scheme.secrets if secret.value), None)
    if key is None:
        return ""
    timestamp = octets(next(iter(_timestamps(case)), ""))
    message_id = octets(next(iter(case.sent.values(scheme.id_header or "")), ""))
    message = signed_bytes(scheme.signed, body=case.request.body, timestamp=timestamp, message_id=message_id)
    digest = digest_text(key, message, algorithm=scheme.algorithm, encoding=scheme.encoding)
    value = proof_value(scheme, [digest], timestamp)
    others = tuple(header for header in case.sent.headers if header[0].lower() != scheme.header.lower())
    return value if prove_headers((*others, (scheme.header, value)), case.check) is None else ""
