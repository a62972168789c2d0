"""Sources out of their sections: whose check, which secrets, which path, how events are named.

Law: nobody may post unproven by accident. What opens a source (`verify: none`, `enforce: false`, a provider that signs
nothing) has to be written, and warns at each start.
"""

import dataclasses
import re

from relay.config import hmacs, keys, naming
from relay.config.problems import KeyPath, Refused, Report
from relay.config.upstream import CUSTOM, SourceSection, VerifySection
from relay.model import (
    FORM_TYPE,
    ApiKeyCheck,
    BasicCheck,
    BearerCheck,
    Check,
    HmacCheck,
    Namer,
    NoCheck,
    Provider,
    Secret,
    Source,
    StandardWebhooksCheck,
)
from relay.providers import PROVIDERS
from relay.providers.reading import KeyInHeader, nameless

RANDOM_PART = 16
"""Letters and digits on end in a path, where nothing else proves a request."""

_KEYS = {
    "api_key": {"header"},
    "basic": {"username"},
    "bearer": set[str](),
    "hmac": {*hmacs.KEYS, "tolerance"},
    "standard_webhooks": {"tolerance"},
    "none": set[str](),
}
"""What each scheme reads of `verify`."""

_SCHEMES: dict[type[Check], str] = {
    ApiKeyCheck: "api_key",
    BasicCheck: "basic",
    BearerCheck: "bearer",
    HmacCheck: "hmac",
    StandardWebhooksCheck: "standard_webhooks",
    NoCheck: "none",
}
_REQUIRED = {"api_key": ("header",), "basic": ("username",), "hmac": ("header", "algorithm")}
_FEWEST_DISTINCT = 8
_RUN = re.compile(rf"[A-Za-z0-9]{{{RANDOM_PART},}}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NO_CHANCE = re.compile(
    r"random|change|placeholder|example|secret|replace|your|insert|webhook|plugandpay|company|012345|123456|abcdefg",
    re.IGNORECASE,
)
"""What stands in a placeholder or a name, and hardly ever in what was drawn."""


def source(name: str, section: SourceSection, report: Report) -> Source | None:
    """The source, None when its check is refused; all that is wrong is reported."""
    path: KeyPath = ("sources", name)
    provider = PROVIDERS.get(section.provider)
    check = _check(section, provider, path, report)
    event_type, dedupe_key = _namers(section, provider, check, path, report)
    _check_addresses(section, path, report)
    _check_openness(section, provider, check, path, report)
    if section.respond.status != 200 and provider is not None and provider.gives_up_after is not None:
        status = section.respond.status
        report.warn((*path, "respond"), f"{provider.title} may take {status} for a failure; it documents 200")
    if check is None:
        return None
    return Source(
        name=name,
        provider=section.provider,
        path=section.path or f"/hooks/{name}",
        check=check,
        event_type=event_type,
        dedupe_key=dedupe_key,
        challenge=provider.challenge if provider else None,
        enforce=section.enforce,
        allow_ips=tuple(section.allow_ips),
        rate=section.rate,
        status=section.respond.status,
        expect_every=section.expect_every,
        gives_up_after=provider.gives_up_after if provider else None,
        revival=provider.revival if provider else "",
    )


def _check(section: SourceSection, provider: Provider | None, path: KeyPath, report: Report) -> Check | None:
    """The check with its secrets, None when it is refused; the secrets are judged in any case."""
    check = _secretless_check(section, provider, path, report)
    secrets = _secrets(section, check, provider, path, report)
    return check if check is None or isinstance(check, NoCheck) else dataclasses.replace(check, secrets=secrets)


def _secretless_check(section: SourceSection, provider: Provider | None, path: KeyPath, report: Report) -> Check | None:
    if provider is None and section.verify is None:
        report.refuse((*path, "verify"), 'missing; write "verify: none" to accept unverified requests')
        return None
    path = (*path, "verify")
    verify = section.verify or VerifySection()
    scheme = _scheme(verify, provider, path, report)
    if scheme is None or not _keys_fit(verify, scheme, path, report):
        return None
    if provider is None and not _is_complete(verify, scheme, path, report):
        return None
    check = _described(verify, scheme, None if scheme == "none" or provider is None else provider.check)
    if isinstance(check, HmacCheck):
        hmacs.check(check, verify, path, report, other="sender")
    return check


def _scheme(verify: VerifySection, provider: Provider | None, path: KeyPath, report: Report) -> str | None:
    if provider is None:
        if verify.scheme is None:
            report.refuse((*path, "scheme"), f"missing; one of {', '.join(_KEYS)}")
        return verify.scheme
    own = _SCHEMES[type(provider.check)]
    if verify.scheme in {None, own, "none"}:
        return verify.scheme or own
    report.refuse((*path, "scheme"), f"{provider.title} is checked by {own}; another scheme needs provider: {CUSTOM}")
    return None


def _keys_fit(verify: VerifySection, scheme: str, path: KeyPath, report: Report) -> bool:
    """Whether `verify` has no key that its scheme does not read."""
    given = verify.model_fields_set - {"scheme"}
    for key in sorted(given - _KEYS[scheme]):
        report.refuse((*path, key), f"has no meaning for scheme {scheme}")
    return given <= _KEYS[scheme]


def _is_complete(verify: VerifySection, scheme: str, path: KeyPath, report: Report) -> bool:
    """Whether `verify` has every key that its scheme cannot do without."""
    missing = [key for key in _REQUIRED.get(scheme, ()) if key not in verify.model_fields_set]
    for key in missing:
        report.refuse((*path, key), f"missing; scheme {scheme} needs it")
    return not missing


def _described(verify: VerifySection, scheme: str, own: Check | None) -> Check:
    """The check that `verify` describes, or the provider's own one with what `verify` says otherwise."""
    given = {key: getattr(verify, key) for key in verify.model_fields_set - {"scheme", "allow_weak"}}
    if isinstance(own, HmacCheck) and "prefix" in given:
        given["prefix_optional"] = False
    if own is not None:
        return dataclasses.replace(own, **given)
    match scheme:
        case "api_key":
            return ApiKeyCheck(**given)
        case "basic":
            return BasicCheck(**given)
        case "bearer":
            return BearerCheck()
        case "hmac":
            return HmacCheck(**given)
        case "standard_webhooks":
            return StandardWebhooksCheck(**given)
        case _:
            return NoCheck()


def _secrets(
    section: SourceSection, check: Check | None, provider: Provider | None, path: KeyPath, report: Report
) -> tuple[Secret, ...]:
    """The key bytes; without a check (None: it was refused) the secrets are still judged."""
    path = (*path, "secrets")
    scheme = _SCHEMES[type(check)] if check is not None else ""
    if scheme == "none":
        if section.secrets:
            report.refuse(path, "has no meaning for a source that proves nothing")
        return ()
    if scheme and not section.secrets and not report.is_broken(path):
        report.refuse(path, "needs at least one secret")
    return keys.source_secrets(section.secrets, path, scheme=scheme, provider=provider, report=report)


def _namers(
    section: SourceSection, provider: Provider | None, check: Check | None, path: KeyPath, report: Report
) -> tuple[Namer, Namer]:
    """How the source's events get their type and their dedupe key."""
    form = provider is not None and provider.sample.content_type == FORM_TYPE
    event_type = provider.event_type if provider else nameless
    dedupe_key = provider.dedupe_key if provider else nameless
    if provider is None and isinstance(check, StandardWebhooksCheck):
        dedupe_key = KeyInHeader(("webhook-id",))
    try:
        if section.event_type is not None:
            event_type = naming.event_type_namer(section.event_type, form=form)
    except Refused as refused:
        report.refuse((*path, "event_type"), str(refused))
    try:
        if section.dedupe_key is not None:
            dedupe_key = naming.dedupe_key_namer(section.dedupe_key, form=form)
    except Refused as refused:
        report.refuse((*path, "dedupe_key"), str(refused))
    return event_type, dedupe_key


def _check_addresses(section: SourceSection, path: KeyPath, report: Report) -> None:
    if "allow_ips" in section.model_fields_set and not section.allow_ips:
        report.refuse((*path, "allow_ips"), "empty allow list rejects everything; remove it or add networks")
    for index, network in enumerate(section.allow_ips):
        if network.prefixlen == 0:
            report.warn((*path, "allow_ips", index), "allows every address")


def _check_openness(
    section: SourceSection, provider: Provider | None, check: Check | None, path: KeyPath, report: Report
) -> None:
    """Warn of what lets requests in unproven; refuse an unsigned provider that anybody could guess."""
    if isinstance(check, NoCheck):
        if not section.enforce:
            report.refuse((*path, "enforce"), "has no meaning for a source that proves nothing")
        what = f"{provider.title} signs nothing" if provider and not provider.signed else "verify: none"
        report.warn((*path, "verify"), f"{what}: requests are accepted unproven")
    elif not section.enforce:
        report.warn((*path, "enforce"), "enforce: false lets unproven requests through")
    if provider is None or provider.signed:
        return
    is_guarded = any(network.prefixlen > 0 for network in section.allow_ips) or has_random_part(section.path or "")
    if not is_guarded and not report.is_broken((*path, "allow_ips")):
        report.refuse(
            (*path, "path"),
            f"{provider.title} signs nothing: name its addresses under allow_ips, or give a path with a part drawn at "
            f"random, {RANDOM_PART} letters and digits or more (openssl rand -hex 16)",
        )


def has_random_part(path: str) -> bool:
    """Whether a part of the path looks unguessable: one long, varied run of letters and digits, or a UUID."""
    parts = (*_UUID.findall(path), *_RUN.findall(path))
    return any(len(set(part.lower())) >= _FEWEST_DISTINCT and not _NO_CHANCE.search(part) for part in parts)
