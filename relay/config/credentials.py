"""How we prove ourselves to targets, and the way to them, out of their sections.

Law: a key that its scheme does not read is refused, so nobody believes in a proof that is never sent; no two keys set
the same header. What opens a hole (`insecure: true`) has to be written, and warns at each start.
"""

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from relay.config import certificates, hmacs, keys, urls
from relay.config.access import AuthSection, ClientTlsSection, ProxyKeys, SignSection
from relay.config.fingerprints import fingerprint_of
from relay.config.problems import KeyPath, Refused, Report
from relay.config.settings import Address
from relay.config.templates import Written
from relay.config.values import SecretText
from relay.model import (
    ApiKeyCheck,
    Auth,
    BasicCheck,
    BearerCheck,
    ClientTls,
    HmacCheck,
    OAuth2Client,
    Proxy,
    QueryKey,
    Secret,
    StandardWebhooksCheck,
)
from relay.rules.egress import EgressPolicy
from relay.rules.secrets import looks_secret, tells_secret
from relay.rules.signing import as_hmac

_REQUIRED = {
    "bearer": ("token",),
    "basic": ("username", "password"),
    "api_key": ("value",),
    "hmac": ("header", "algorithm", "secret"),
    "oauth2": ("token_url", "client_id", "client_secret"),
}
_KEYS = {
    "bearer": {"token"},
    "basic": {"username", "password"},
    "api_key": {"header", "query", "value"},
    "hmac": {*hmacs.KEYS, "secret"},
    "oauth2": {"token_url", "client_id", "client_secret", "scope", "audience", "client_auth"},
}
"""What each scheme reads of `auth`."""

_PARTS = re.compile(r"[/?&=;]")

_SECRET_KEYS = ("token", "password", "value", "secret", "client_secret")


def auth(section: AuthSection, path: KeyPath, *, egress: EgressPolicy, listen: Address, report: Report) -> Auth | None:
    """The credentials of a target or an enricher, None when they are refused; all that is wrong is reported."""
    scheme, given = section.scheme, section.model_fields_set - {"scheme"}
    for key in sorted(given - _KEYS[scheme]):
        report.refuse((*path, key), f"has no meaning for scheme {scheme}")
    for key in _REQUIRED[scheme]:
        if key not in given and not report.is_broken((*path, key)):
            report.refuse((*path, key), f"missing; scheme {scheme} needs it")
    _check_parts(section, path, report)
    secrets = {key: _secret(section, key, path, report) for key in _SECRET_KEYS if key in given}
    if scheme == "oauth2" and section.token_url is not None:
        _check_token_url(section.token_url, (*path, "token_url"), egress, listen, report)
    if report.is_broken(path):
        return None
    found = _built(section, {key: secret for key, secret in secrets.items() if secret is not None})
    if isinstance(found, HmacCheck):
        hmacs.check(found, section, path, report, other="receiver")
    return found


def _check_parts(section: AuthSection, path: KeyPath, report: Report) -> None:
    """Report what does not go together in the keys of one scheme."""
    match section.scheme:
        case "api_key":
            if (section.header is None) is (section.query is None):
                both = (
                    "both are given; keep one" if section.header else "missing; name the header or the query parameter"
                )
                if not any(report.is_broken((*path, key)) for key in ("header", "query")):
                    report.refuse((*path, "header"), both)
        case "basic":
            if section.username is not None and ":" in section.username:
                report.refuse((*path, "username"), "must not hold a colon (RFC 7617)")


def _secret(section: AuthSection, key: str, path: KeyPath, report: Report) -> Secret | None:
    text: SecretText | None = getattr(section, key)
    if text is None:
        return None
    in_header = key == "token" or (key == "value" and section.query is None)
    try:
        if key == "secret":
            return keys.source_secret(text, scheme="hmac", provider=None, warn=report.warner((*path, key)))
        return keys.own_secret(text, in_header=in_header)
    except Refused as refused:
        report.refuse((*path, key), str(refused))
        return None


def _built(section: AuthSection, secrets: dict[str, Secret]) -> Auth:
    match section.scheme:
        case "bearer":
            return BearerCheck((secrets["token"],))
        case "basic":
            return BasicCheck(str(section.username), (secrets["password"],))
        case "api_key" if section.query is not None:
            return QueryKey(section.query, secrets["value"])
        case "api_key":
            return ApiKeyCheck(str(section.header), (secrets["value"],))
        case "hmac":
            given = section.model_fields_set & (hmacs.KEYS - {"allow_weak"})
            return HmacCheck(secrets=(secrets["secret"],), **{key: getattr(section, key) for key in given})
    return OAuth2Client(
        token_url=str(section.token_url),
        client_id=str(section.client_id),
        client_secret=secrets["client_secret"],
        scope=section.scope or "",
        audience=section.audience or "",
        in_body=section.client_auth == "body",
    )


def _check_token_url(text: str, path: KeyPath, egress: EgressPolicy, listen: Address, report: Report) -> None:
    """The same rules as for a target's URL: it gets a secret of ours."""
    try:
        url = urls.parsed(text)
        urls.refuse_forbidden(url, egress)
    except Refused as refused:
        report.refuse(path, str(refused))
        return
    urls.warn_doubtful(url, listen, report.warner(path))


def signing(section: SignSection, path: KeyPath, report: Report) -> StandardWebhooksCheck | None:
    """The keys that sign what is sent, None when they are refused."""
    path = (*path, "secrets")
    if not section.secrets and not report.is_broken(path):
        report.refuse(path, "needs at least one secret")
    found = keys.source_secrets(section.secrets, path, scheme="standard_webhooks", provider=None, report=report)
    for index, secret in enumerate(section.secrets):
        if secret is not None and keys.is_bare_base64(secret):
            message = "is base64 without whsec_: its text itself is the key here, where others decode it; write whsec_…"
            report.warn((*path, index), message)
    return StandardWebhooksCheck(secrets=found) if found else None


def set_headers(auth: Auth | None, sign: StandardWebhooksCheck | None) -> Iterator[tuple[str, str]]:
    """The headers that are set, in lower case, each with the key of the target that sets it."""
    match auth:
        case BearerCheck() | BasicCheck() | OAuth2Client():
            yield "authorization", "auth"
        case ApiKeyCheck():
            yield auth.header.lower(), "auth"
        case HmacCheck():
            yield from ((name, "auth") for name in _of_hmac(auth))
        case _:
            pass
    if sign is not None:
        yield from ((name, "sign") for name in _of_hmac(as_hmac(sign)))


def _of_hmac(check: HmacCheck) -> Iterator[str]:
    yield from (name.lower() for name in (check.header, check.id_header, check.timestamp_header) if name is not None)


def client_tls(section: ClientTlsSection, path: KeyPath, *, scheme: str, report: Report) -> ClientTls | None:
    """Whom to trust and what to show, its files read and checked; None when they are refused."""
    if scheme == "http":
        report.refuse(path, "has no meaning for an http URL")
        return None
    named = {key: text for key in ("ca", "cert", "key") if (text := getattr(section, key)) is not None}
    if not named and not section.insecure and not report.is_broken(path):
        report.refuse(path, "says nothing; name ca, or cert and key")
        return None
    for key, other in (("cert", "key"), ("key", "cert")):
        if key in named and other not in named and not report.is_broken((*path, other)):
            report.refuse((*path, other), f"missing; {key} needs it")
    if section.insecure and section.ca is not None:
        report.refuse((*path, "ca"), "has no meaning beside insecure: true; remove one of the two")
    if section.insecure:
        report.warn((*path, "insecure"), "certificates are not checked: anyone on the way can be this target")
    prints = {Path(text): fingerprint_of(Path(text)) for text in named.values()}
    report.files |= prints
    _check_files(section, path, report)
    if report.is_broken(path):
        return None
    content = hashlib.blake2b(b"".join(found or b"" for found in prints.values()), digest_size=16).digest()
    return ClientTls(_plain(section.ca), _plain(section.cert), _plain(section.key), section.insecure, content)


def _plain(text: str | None) -> str | None:
    return None if text is None else str(text)


def _check_files(section: ClientTlsSection, path: KeyPath, report: Report) -> None:
    try:
        if section.ca is not None:
            certificates.checked_authority(section.ca, warn=report.warner((*path, "ca")))
    except Refused as refused:
        report.refuse((*path, "ca"), str(refused))
    if section.cert is None or section.key is None:
        return
    try:
        certificates.checked(section.cert, section.key, warn=report.warner((*path, "cert")))
    except Refused as refused:
        report.refuse((*path, "cert"), str(refused))
        return
    if is_readable_by_all(Path(section.key)):
        report.warn((*path, "key"), "every user of this machine can read this key; chmod 600 it")


def proxy(section: ProxyKeys, path: KeyPath, *, egress: EgressPolicy, report: Report) -> Proxy | None:
    """The proxy, None when it is refused. Its address is what is dialled, so egress has its say on it."""
    for key, other in (("username", "password"), ("password", "username")):
        if getattr(section, key) is not None and getattr(section, other) is None:
            report.refuse((*path, other), f"missing; {key} needs it")
    if section.username is not None and ":" in section.username:
        report.refuse((*path, "username"), "must not hold a colon (RFC 7617)")
    password = None
    try:
        if section.password is not None:
            password = keys.own_secret(section.password, in_header=False)
    except Refused as refused:
        report.refuse((*path, "password"), str(refused))
    try:
        return Proxy(_proxy_url(section.url, egress), section.username or "", password)
    except Refused as refused:
        report.refuse((*path, "url"), str(refused))
        return None


def _proxy_url(text: str, egress: EgressPolicy) -> str:
    if "@" in text:
        raise Refused("credentials in URLs are not allowed; write {url: …, username: …, password: …}")
    url = urls.parsed(text)
    if url.scheme != "http":
        raise Refused("must be http://HOST:PORT: a proxy is asked in the clear for an encrypted way through")
    if not text.endswith((f":{url.port}", f":{url.port}/")):
        raise Refused("must be http://HOST:PORT, with its port and nothing behind it")
    urls.refuse_forbidden(url, egress)
    return url.url


def inline_secrets(
    auth: AuthSection | None, sign: SignSection | None, proxy: ProxyKeys | None, path: KeyPath
) -> Iterator[KeyPath]:
    """Where secrets stand in the file itself."""
    for key in _SECRET_KEYS:
        found: SecretText | None = getattr(auth, key, None)
        if found is not None and found.inline:
            yield (*path, "auth", key)
    for index, secret in enumerate(sign.secrets if sign else ()):
        if secret is not None and secret.inline:
            yield (*path, "sign", "secrets", index)
    if proxy is not None and proxy.password is not None and proxy.password.inline:
        yield (*path, "proxy", "password")


def inline_in_texts(headers: Mapping[str, Written], url: Written | None, path: KeyPath) -> Iterator[KeyPath]:
    """Where a header, or an address, holds a secret that stands in the file itself."""
    for name, value in headers.items():
        if tells_secret(name) and not value.outside:
            yield (*path, "headers", name)
    if url is not None and not url.outside and any(map(looks_secret, _PARTS.split(url.text)[3:])):
        yield (*path, "url")


def is_readable_by_all(path: Path) -> bool:
    """Whether every user of this machine can read a file."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # the file went away after it was read
