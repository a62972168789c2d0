"""Why a key that travels in the clear is not the source's: tries the usual slips.

Law: neither the key that came nor the one that was expected is ever told, nor a part of one; lengths and relations are.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

from relay.model import ApiKeyCheck, BasicCheck, BearerCheck, HmacCheck, Source
from relay.rules.diagnosis.signatures import explained
from relay.rules.diagnosis.steps import Posted, Surroundings, sentence, unsent
from relay.rules.signing import basic_credentials, octets
from relay.rules.verification import Refusal

SharedKeyCheck = ApiKeyCheck | BearerCheck | BasicCheck

_REDACTED = re.compile(rb".*\*{3}.*|[\[<(]?(?:redacted|filtered|hidden|masked)[\])>]?", re.IGNORECASE)
_VARIABLE = re.compile(rb"\$\{[^{}]*\}?|\$\(.*\)|\{\{.*\}\}|\$[A-Za-z_]+|%[A-Za-z_]+%|process\.env\..*")
_SCHEME = re.compile(rb"[A-Za-z]{3,10} +")
_BASIC = re.compile(rb"basic +", re.IGNORECASE)
_INVISIBLE = re.compile(rb"[\s\x00-\x1f\x7f]|\xc2\xa0|\xe2\x80[\x8b-\x8f]|\xef\xbb\xbf")
_AROUND = b" \t\r\n"

_RELATIONS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("has white space around it", lambda sent: sent.strip(_AROUND)),
    ("stands in quotes", lambda sent: sent.strip(b"\"'`")),
    ("has brackets around it", lambda sent: sent.strip(b"<>[]{}()")),
    ("has a scheme's name before it", lambda sent: _SCHEME.sub(b"", sent, count=1)),
    ("holds white space or invisible characters", lambda sent: _INVISIBLE.sub(b"", sent)),
    ("is percent-encoded", unquote_to_bytes),
    ("is in Latin-1, not UTF-8", lambda sent: sent.decode("latin-1").encode()),
    ("is in base64", lambda sent: b64decode(sent, validate=True)),
    ("has its own name before it", lambda sent: sent.partition(b"=")[2]),
)


def key_advice(sent: Posted, source: Source, check: SharedKeyCheck, refusal: Refusal, config: Surroundings) -> str:
    """What is wrong with the key of a request that was refused, and what to do."""
    if refusal.reason == "missing_signature":
        return _missing(sent, check, config)
    if refusal.reason == "ambiguous_signature":
        return _twice(sent, check)
    line = octets(sent.values(check.header)[0])
    return _mistaken(line, sent, source, check, config)


def _missing(sent: Posted, check: SharedKeyCheck, config: Surroundings) -> str:
    for name, value in sent.headers:
        if _carries(octets(value), check):
            fix = _renamed(check, name)
            return f"The right key is in header {name}, but the source reads {check.header}. {fix}"
    return sentence(_signed_instead(sent, check) or unsent(sent, check.header), config.whence)


def _renamed(check: SharedKeyCheck, name: str) -> str:
    if isinstance(check, ApiKeyCheck):
        return f"Let the sender name it so, or write under verify: header: {name}."
    return "Let the sender name it so."


def _twice(sent: Posted, check: SharedKeyCheck) -> str:
    values = sent.values(check.header)
    right = sum(_carries(octets(value), check) for value in values)
    which = "All of them are right" if right == len(values) else f"{right} of {len(values)} are right"
    return f"{which}, but which one counts is not guessed: see what adds another (a proxy, a plug-in)."


def _carries(value: bytes, check: SharedKeyCheck) -> bool:
    """Whether a header's value is, or holds behind a scheme's name, one of the source's own credentials."""
    bare = _SCHEME.sub(b"", value, count=1)
    return any(wanted in {value, bare} for wanted in _wanted(check))


def _wanted(check: SharedKeyCheck) -> list[bytes]:
    """What may stand in the header, without a scheme's name."""
    usable = [secret for secret in check.secrets if secret.value]
    if isinstance(check, BasicCheck):
        return [basic_credentials(check.username, secret) for secret in usable]
    return [secret.value for secret in usable]


def _mistaken(line: bytes, sent: Posted, source: Source, check: SharedKeyCheck, config: Surroundings) -> str:
    """A single line that is not the key."""
    bare = _SCHEME.sub(b"", line, count=1)
    if _VARIABLE.fullmatch(bare):
        return "It looks like a variable that nobody has filled in: set it at the sender."
    if _REDACTED.fullmatch(bare):
        return "It looks like a redacted copy: give the header as the sender sent it."
    if isinstance(check, BasicCheck):
        return _mistaken_pair(line, check, source, config)
    if isinstance(check, ApiKeyCheck):
        return _compared(line, "the key", source, check, config) or _otherwise(line, sent, check, config)
    if line in _wanted(check):
        return 'The key is right, but "Bearer " is missing before it.'
    if bare in _wanted(check):
        return 'The key is right, but the word before it has to be "Bearer".'
    return _compared(bare, "the key", source, check, config) or _otherwise(bare, sent, check, config)


def _mistaken_pair(line: bytes, check: BasicCheck, source: Source, config: Surroundings) -> str:
    """A line that is not the right user name and password."""
    if not _BASIC.match(line):
        near = 'It is right, but "Basic " is missing before it.' if _carries(line, check) else ""
        return near or 'The header has to be "Basic ", then user name, colon and password in base64.'
    encoded = _BASIC.sub(b"", line, count=1).strip()
    try:
        pair = b64decode(encoded, validate=True)
    except binascii.Error:
        is_plain = any(encoded == octets(check.username) + b":" + secret.value for secret in check.secrets)
        clear = "User name and password are right, but they have to be in base64." if is_plain else ""
        return clear or "What follows the scheme's name is not base64 of user name, colon and password."
    user, colon, password = pair.partition(b":")
    if not colon:
        return "There is no colon between user name and password."
    if user != octets(check.username):
        alike = " (only in upper and lower case)" if user.lower() == octets(check.username).lower() else ""
        return f"The user name is not that of verify.username{alike}."
    if any(password == secret.value for secret in check.secrets):
        return "User name and password are right, but their base64 is not in its one canonical spelling."
    said = _compared(password, "the password", source, check, config) or _lengths(password, check)
    return f"The user name is right. {said}"


def _compared(given: bytes, what: str, source: Source, check: SharedKeyCheck, config: Surroundings) -> str:
    """How a key resembles one that is known; empty where it does not."""
    for secret in check.secrets:
        relation = next(_relations(given, secret.value), None) if secret.value else None
        if relation is not None:
            return f"It is {what}, but it {relation}: correct it at the sender."
    for other in config.sources:
        if other.name != source.name and any(key.value == given for key in getattr(other.check, "secrets", ())):
            return f"It is the secret of source {other.name}: the request belongs there, or the secrets are mixed up."
    return ""


def _otherwise(given: bytes, sent: Posted, check: SharedKeyCheck, config: Surroundings) -> str:
    """What to say of a key that is like none that is known."""
    return _signed_instead(sent, check) or sentence(_lengths(given, check), config.whence)


def _signed_instead(sent: Posted, check: SharedKeyCheck) -> str:
    """Whether the sender signs with the key where it should send it."""
    match = explained(sent, HmacCheck(header=check.header, secrets=check.secrets), others=())
    if match is None or match.is_plain or not match.key.is_of_source:
        return ""
    return (
        f"The sender does not send the key, but signs with it, in {match.digest.header}: the source wants "
        "verify: {scheme: hmac, …}."
    )


def _relations(given: bytes, secret: bytes) -> Iterator[str]:
    """What makes one text of another; the first is the most likely."""
    for words, mend in _RELATIONS:
        try:
            if given != secret and mend(given) == secret:
                yield words
        except ValueError:
            continue
    if given.lower() == secret.lower():
        yield "differs in upper and lower case"
    if len(given) >= len(secret) // 2 and secret.startswith(given):
        yield f"is cut off after {len(given)} of {_bytes(len(secret))}"
    if given.startswith(secret):
        yield f"is followed by {_bytes(len(given) - len(secret))} too many"
    if given.endswith(secret):
        yield f"comes behind {_bytes(len(given) - len(secret))} too many"


def _lengths(given: bytes, check: SharedKeyCheck) -> str:
    """All that may be told of two keys that are nothing alike."""
    wanted = sorted({len(secret.value) for secret in check.secrets if secret.value})
    if not wanted:
        return "The source has no secret that could match."
    if len(given) in wanted:
        return f"It is another one of the same length, {_bytes(len(given))}: compare both ends."
    sizes = " or ".join(map(str, wanted[:4]))
    return f"It is another one: it has {_bytes(len(given))}, expected are {sizes}."


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"
