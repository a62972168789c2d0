"""Secrets: what is fit to prove a request with.

Law: no message, warning or exception here holds a secret or a part of one; lengths and formats are all that is told.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence

from relay.config.problems import KeyPath, Refused, Report
from relay.config.values import SecretText
from relay.model import Provider, Secret

SHORTEST = 8
"""Bytes; fewer are refused."""
SAFE = 16
"""Bytes; fewer are warned about, and refused for the admin token."""

STANDARD_PREFIX = "whsec_"
_SHORTEST_BASE64 = 32
"""Characters of 24 bytes, the least that the standard recommends."""
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")

_PLACEHOLDER = re.compile(
    r"(change|replace)[-_ ]?(me|this)[-_ ]?[0-9!]*|(your|my)[-_ ]?(api[-_ ]?|webhook[-_ ]?)?(secret|key|token|password)"
    r"([-_ ]?here)?|placeholder|password[0-9]*|secret[-_ ]?(key|token)|\*+|<.*>",
    re.IGNORECASE,
)
_UNEXPANDED = re.compile(r"\$\{[^{}]*\}?|\$\(.*\)|\{\{.*\}\}|%[A-Za-z_][A-Za-z0-9_]*%")
_SHELL_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
"""Meant as a variable where the file says it so; what `$$` or an expansion has made may well begin with a dollar."""
_HEADER_TEXT = re.compile(r"[\x20-\x7e]+")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


def _checked_text(secret: SecretText) -> str:
    text = secret.text
    if not text.strip():
        raise Refused("secret is empty or blank")
    if _UNEXPANDED.fullmatch(text) or (secret.bare_dollars and _SHELL_VARIABLE.fullmatch(text)):
        raise Refused("secret looks like an unexpanded variable; write ${NAME}")
    if _PLACEHOLDER.fullmatch(text):
        raise Refused("secret is a placeholder; put the real one in its place")
    return text


def source_secret(secret: SecretText, *, scheme: str, provider: Provider | None, warn: Callable[[str], None]) -> Secret:
    """A source's secret as key bytes.

    `provider` is a named one, whose usual format is wanted; `warn` is told what is doubtful. Raises `Refused`.
    """
    text = _checked_text(secret)
    in_header = scheme in {"api_key", "bearer", "basic"}
    if text != text.strip():
        if in_header:
            raise Refused("secret begins or ends with white space, which a header cannot carry")
        warn("secret begins or ends with white space; is it meant?")
    if in_header and not text.isprintable():
        raise Refused("secret holds a control character, which a header cannot carry")
    key = _standard_key(text) if scheme == "standard_webhooks" else text.encode()
    if len(key) < SHORTEST:
        raise Refused(f"secret too short ({_bytes(len(key))}; under {SHORTEST} is refused, under {SAFE} warned)")
    if provider is not None and provider.secret_format is not None:
        if not re.search(provider.secret_format, text):
            warn(f"secret has not the usual format: {provider.secret_hint}")
    elif len(key) < SAFE:
        warn(f"secret is short ({_bytes(len(key))}; {SAFE} or more are safe)")
    return Secret(key)


def source_secrets(
    given: Sequence[SecretText | None], path: KeyPath, *, scheme: str, provider: Provider | None, report: Report
) -> tuple[Secret, ...]:
    """The secrets of a list as key bytes, without those that are refused; all that is wrong is reported."""
    found: list[Secret] = []
    for index, secret in enumerate(given):
        if secret is None:
            continue
        warn = report.warner((*path, index))
        try:
            found.append(source_secret(secret, scheme=scheme, provider=provider, warn=warn))
        except Refused as refused:
            report.refuse((*path, index), str(refused))
    return tuple(found)


def own_secret(secret: SecretText, *, in_header: bool) -> Secret:
    """A secret that others have given us, however short; `in_header` when it stands in one as it is. Raises
    `Refused`."""
    text = _checked_text(secret)
    if text != text.strip():
        raise Refused("secret begins or ends with white space; was a line break copied along?")
    if in_header and not _HEADER_TEXT.fullmatch(text):
        raise Refused("secret holds what a header cannot carry: only printable ASCII can be sent")
    if not text.isprintable():
        raise Refused("secret holds a control character")
    return Secret(text.encode())


def _standard_key(text: str) -> bytes:
    """Standard Webhooks keys are base64 behind `whsec_`; without that prefix the text itself is the key."""
    if not text.startswith(STANDARD_PREFIX):
        return text.encode()
    encoded = text.removeprefix(STANDARD_PREFIX)
    try:
        # Python's decoder overlooks padding that is too long
        return base64.b64decode(encoded if len(encoded) % 4 == 0 else "=", validate=True)
    except (binascii.Error, ValueError):
        raise Refused("not valid base64 after `whsec_`") from None


def is_bare_base64(secret: SecretText) -> bool:
    """Whether a Standard Webhooks key may have lost its prefix: its libraries decode what ours takes as it stands."""
    text = secret.text
    is_decoded = text.startswith(STANDARD_PREFIX) or len(text) < _SHORTEST_BASE64 or len(text) % 4 != 0
    return not is_decoded and _BASE64.fullmatch(text) is not None


def admin_token(secret: SecretText | None) -> Secret | None:
    """The admin token, None when it is left empty. Raises `Refused` when it is weak or no header can carry it."""
    if secret is None or not secret.text:
        return None
    text = _checked_text(secret)
    if not _VISIBLE.fullmatch(text):
        raise Refused("token must be visible ASCII without spaces, since a header carries it")
    if len(text) < SAFE:
        raise Refused(f"token too short ({len(text)} characters; needs {SAFE} or more)")
    return Secret(text.encode())


def _bytes(count: int) -> str:
    return f"{count} byte" if count == 1 else f"{count} bytes"
