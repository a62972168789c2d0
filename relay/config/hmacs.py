"""An HMAC as the YAML describes it: of a source's check, or of what proves us to a target.

Law: what does not fit together is refused; a weak digest, or one that leaves the body out, is never used by accident.
"""

import re
from typing import Annotated

from relay.config import values
from relay.config.fields import Algorithm, Encoding, Flag, HeaderName, Parsed, Section, setting
from relay.config.problems import KeyPath, Report, quoted
from relay.model import HmacCheck

_FIELD = re.compile(r"\{([^{}]*)\}")


class HmacKeys(Section):
    """The keys that describe an HMAC."""

    header: HeaderName | None = setting(default=None, description="api_key, hmac: the header with the key or signature")
    algorithm: Algorithm | None = setting(default=None, description="hmac: the digest; sha1 needs allow_weak")
    allow_weak: Flag = setting(default=False, description="hmac: accept sha1")
    encoding: Encoding | None = setting(default=None, description="hmac: how the digest is written; hex by default")
    prefix: Annotated[str, Parsed(values.prefix)] | None = setting(
        default=None, description='hmac: what stands before the digest, as "sha256="'
    )
    signed: Annotated[str, Parsed(values.template)] | None = setting(
        default=None, description='hmac: what is signed, of {body}, {timestamp}, {id}; "{body}" by default'
    )
    timestamp_header: HeaderName | None = setting(default=None, description="hmac: the header behind {timestamp}")
    id_header: HeaderName | None = setting(default=None, description="hmac: the header behind {id}")


KEYS = frozenset(HmacKeys.model_fields)


def check(found: HmacCheck, keys: HmacKeys, path: KeyPath, report: Report, *, other: str) -> None:
    """Report what does not fit together; `other` is who is to be asked for more."""
    if found.algorithm == "sha1":
        if keys.allow_weak:
            report.warn((*path, "algorithm"), f"sha1 is weak; ask the {other} for sha256")
        else:
            report.refuse((*path, "algorithm"), "sha1 is weak; allow_weak: true accepts it")
    elif "allow_weak" in keys.model_fields_set and not report.is_broken((*path, "algorithm")):
        report.refuse((*path, "allow_weak"), "has no meaning unless the algorithm is sha1")
    if report.is_broken((*path, "signed")):
        return
    fields = set(_FIELD.findall(found.signed))
    if unknown := sorted(fields - {"body", "timestamp", "id"}):
        report.refuse((*path, "signed"), f"unknown field {quoted(unknown[0])}; known: body, timestamp, id")
    elif "body" not in fields:
        report.refuse((*path, "signed"), "must hold {body}, or the body could be forged")
    headers = {"timestamp": found.timestamp_header, "id": found.id_header}
    if found.listing is not None and found.listing.timestamp_prefix and headers.pop("timestamp") is not None:
        report.refuse((*path, "timestamp_header"), "has no meaning: the proofs' header holds the timestamp too")
    for field, header in headers.items():
        if field in fields and header is None:
            report.refuse((*path, f"{field}_header"), f"missing; signed holds {{{field}}}")
        elif field not in fields and header is not None:
            report.refuse((*path, f"{field}_header"), f"has no meaning unless signed holds {{{field}}}")
    if "tolerance" in keys.model_fields_set and "timestamp" not in fields:
        report.refuse((*path, "tolerance"), "has no meaning unless signed holds {timestamp}")
