"""What must not be shown: the credentials of targets, in what a target echoes and in our own log.

Law: pure and total. A text loses a credential in whatever form an echo gives it; the log loses no word of its own, or
a header that happens to hold one would make every line unreadable.
"""

import html
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from relay.model import (
    Auth,
    BasicCheck,
    Headers,
    NoCheck,
    OAuth2Client,
    QueryKey,
    Secret,
    Source,
    StandardWebhooksCheck,
    Target,
    TemplateBody,
)
from relay.rules.signing import basic_credentials, form_basic
from relay.rules.templating import literals, skeleton

SHORTEST_IN_LOG = 8
"""Characters; the config refuses shorter secrets of sources, and shorter values would blot out innocent text."""
SHORTEST_WORD = 3
"""Characters of a credential header's word; what is shorter cannot keep a secret."""
SHORTEST_QUERY_VALUE = 6
SHORTEST_BEGUN = 4
"""Characters of a secret that is cut off which are worth hiding."""
LONG = 16
"""Characters that a path segment need not have, unless it is a credential."""
LONG_IF_MIXED = 10
"""The same where letters and digits are mixed."""

_CREDENTIAL_NAME = re.compile(
    r"auth(?!ors?(?:$|[-_]))|cookie|token|secret|signature|passw|passphrase|credential|session|jwt|hmac"
    r"|(?:^|[-_.])(?:key|pass|pwd|sig)(?:$|[-_.])|(?:api|access|private|shared|account)[-_]?key",
    re.IGNORECASE,
)
_PROOF_NAME = re.compile(r"signature|hmac|(?:^|[-_])sig(?:$|[-_])", re.IGNORECASE)
_HARMLESS = frozenset(
    """
    accept accept-encoding connection content-encoding content-length content-type date expect forwarded host
    relay-hops transfer-encoding user-agent via webhook-id webhook-timestamp x-forwarded-for x-forwarded-host
    x-forwarded-proto x-real-ip x-request-id
    """.split()  # noqa: SIM905
)
MOST_KEPT = 40
"""Headers that are kept of a refused request."""
LONGEST_KEPT = 256
"""Characters of a name or a value."""
_SCHEMES = frozenset(
    """
    apikey api-key aws4-hmac-sha256 basic bearer digest geniekey hmac jwt key negotiate oauth signature splunk ssws
    token
    """.split()  # noqa: SIM905 - words read better as words
)
_SEPARATORS = re.compile(r"[\s,;]+")
_LONG_RUN = re.compile(r"[A-Za-z0-9]{16,}")
_PLAIN_WORDS = re.compile(r"[A-Za-z]{1,15}(?:[-_.][A-Za-z]{1,15})*")
"""What may be an event's type as well."""
_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
"""ASCII alone, so that no place moves."""
_UPPER_ESCAPE = re.compile(r"%[0-9A-F]{2}")

LOG_WORDS = frozenset(
    """
    admin.denied clock.stepped clock.suspect config.reload_refused config.reloaded config.warning
    delivery.attempted delivery.dead delivery.skipped event.enriched event.not_enriched enricher.failing
    enricher.recovered delivery.loops_keep_failing delivery.loop_failed
    delivery.reclaimed event.accepted event.duplicate event.unrouted
    events.pruned
    http.client_gone http.error http.malformed relay.crashed relay.start_refused relay.started relay.stopped
    relay.stopping request.bad_hops request.failed request.refused request.unproven source.may_be_switched_off
    relay.notice_lost source.silent store.nearly_full store.recovered store.unavailable target.disabled target.enabled
    target.unknown store.log_missing store.set_aside thread.crashed
    deliveries event.condition_failed event.erased store.accepting store.damaged store.full
    library.warning library.error asyncio.warning asyncio.error critical traceback duration_ms next_attempt_at
    event_id delivery_id dedupe_key delivered throttled unreachable unprepared interrupted in_flight after_seconds
    disabled_by counted_events delivery.header_dropped next_probe_at exc_info exit_code failures restart_in_s
    last_event_at expect_every_s
    event.replayed replay.started replay.paused replay.finished target.discarded replay_id replayed
    generic_hmac gitlab_signed mollie_classic plugandpay plugandpay_v1 standard_webhooks
    request.challenged verified application/json relay-gateway
    http.connections_refused listener displaced relay.log_dropped
    """.split()  # noqa: SIM905
)
"""What our log lines say themselves, as far as it is long enough to be taken for a secret."""


def credentials(target: Target) -> frozenset[str]:
    """Everything of a target that lets somebody act as us, or is an address that is a secret itself.

    Values of its credential-like headers, whole and in words; of its URL the segments and query values that look like
    one, and path and query as a whole when they hold one; each also percent-decoded. All secrets of `auth`, `sign` and
    `proxy`, but a token that is fetched with them is known only to who has fetched it.
    """
    found = {part for part in (*_of_headers(target), *_of_access(target)) if len(part) >= SHORTEST_WORD}
    url = _address(target)
    found |= {part for part in _of_body(target) if len(part) >= SHORTEST_QUERY_VALUE}
    in_url = {value for _, value in _of_query(url) if len(value) >= SHORTEST_QUERY_VALUE}
    return frozenset(_decoded(found | _with_whole(url, in_url | _segments(url))))


def log_secrets(
    sources: Iterable[Source], targets: Iterable[Target], token: Secret | None, passwords: Iterable[str] = ()
) -> set[str]:
    """What no log line may show, which is never a word of our own lines or a configured name. `passwords` are those
    of the store's database.

    Stricter than `credentials`: a log line repeats no answer and no URL, so only what nobody says by chance counts.
    """
    sources, targets = tuple(sources), tuple(targets)
    found = {text for source in sources for text in _of_source(source)}
    for target in targets:
        url = _address(target)
        query = tuple(_of_query(url))
        parts = _segments(url) | {value for _, value in query if looks_secret(value)}
        in_url = {part for part in parts if not _PLAIN_WORDS.fullmatch(part)} | {
            v for key, v in query if tells_secret(key)
        }
        found |= _decoded({url, *_of_headers(target), *_of_body(target)} | _with_whole(url, in_url))
        found |= set(_of_access(target))
        if isinstance(target.auth, OAuth2Client):
            found.add(target.auth.token_url)
    if token is not None:
        found.add(token.value.decode("utf-8", "replace"))
    found |= set(passwords)
    own = "\n".join((*LOG_WORDS, *(source.name for source in sources), *(target.name for target in targets)))
    return {secret for secret in found if len(secret) >= SHORTEST_IN_LOG and secret not in own}


def hideable_token(token: str) -> bool:
    """Whether a token that was fetched can be kept out of the log: whoever issues it must not blot our own words."""
    return len(token) >= SHORTEST_IN_LOG and not any(token in word for word in LOG_WORDS)


def presentable(headers: Headers, key_header: str | None) -> Headers:
    """Headers as an operator may see them: a credential's value is `***`. A signature is none: it proves one body, and
    who looks for the reason of a refusal needs it."""
    return tuple((name, "***" if name.lower() == key_header or _is_hidden(name) else value) for name, value in headers)


def _is_hidden(name: str) -> bool:
    return tells_secret(name) and _PROOF_NAME.search(name) is None


def harmless(headers: Headers, keys: Collection[str] = ()) -> Headers:
    """Headers of a request that nobody has proven: only values that cannot be a key under a wrong name are kept, and
    none that holds one of these keys."""
    kept = (
        (name if not any(key in name for key in keys) else "***", value if _is_harmless(name, value, keys) else "***")
        for name, value in headers[:MOST_KEPT]
    )
    return tuple((name[:LONGEST_KEPT], value[:LONGEST_KEPT]) for name, value in kept)


def _is_harmless(name: str, value: str, keys: Collection[str]) -> bool:
    return name.lower() in _HARMLESS and not any(key in value for key in keys)


def blotted(text: str, secrets: frozenset[str], *, is_cut: bool = False) -> str:
    """The text with `***` for each secret, in whatever case and code an echo gives it. Of a text that `is_cut` the
    beginning of a secret at its end goes as well."""
    folded = text.translate(_LOWER)
    spans: list[tuple[int, int]] = []
    for form, is_exact in _forms(secrets):
        searched = text if is_exact else folded
        at = searched.find(form)
        while at >= 0:
            spans.append((at, at + len(form)))
            at = searched.find(form, at + len(form))
        if is_cut:
            spans += _begun(searched, form)
    if not spans:
        return text
    made, end = "", 0
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= end:
            made += f"{text[end:start]}***"
        end = max(end, stop)
    return made + text[end:]


def _begun(text: str, form: str) -> list[tuple[int, int]]:
    """Where a form has begun at the end of a text."""
    longest = min(len(form) - 1, len(text))
    return next(
        (
            [(len(text) - size, len(text))]
            for size in range(longest, SHORTEST_BEGUN - 1, -1)
            if text.endswith(form[:size])
        ),
        [],
    )


@lru_cache(maxsize=256)
def _forms(secrets: frozenset[str]) -> tuple[tuple[str, bool], ...]:
    """What each secret may look like in an echo, and whether its case counts: that of long ones does not."""
    forms: set[tuple[str, bool]] = set()
    for secret in secrets:
        spelled = {secret, html.escape(secret), *_escaped(secret)}
        forms |= {(form, True) if len(form) < SHORTEST_IN_LOG else (form.translate(_LOWER), False) for form in spelled}
        forms |= {(form.translate(_LOWER), False) for form in _coded(secret) if len(form) >= SHORTEST_QUERY_VALUE}
    return tuple(sorted((form for form in forms if form[0]), key=lambda form: (-len(form[0]), form)))


def _escaped(secret: str) -> set[str]:
    """A secret as it stands in JSON and in a URL."""
    escaped = {json.dumps(secret, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    encoded = {quote(secret, safe=safe, errors="replace") for safe in ("", "/", "/:=&?+,;@!$'()*")}
    plussed = {form.replace("%20", "+") for form in encoded if "%20" in form}
    lowered = {_UPPER_ESCAPE.sub(lambda match: match[0].lower(), form) for form in encoded}
    return {*escaped, *(form.replace("/", "\\/") for form in escaped), *encoded, *plussed, *lowered}


def _coded(secret: str) -> Iterator[str]:
    """A secret in hex, with every character escaped, and in base64, wherever in what is encoded it may stand."""
    raw = secret.encode("utf-8", "replace")
    yield raw.hex()
    yield "".join(f"%{byte:02x}" for byte in raw)
    yield "".join(f"\\u{ord(letter):04x}" for letter in secret)
    for before in range(3):
        coded = b64encode(b"\0" * before + raw)
        known = len(raw) + before
        # the first characters and the last one hold bits of what stands beside it
        core = coded[(0, 2, 3)[before] : known * 8 // 6].decode()
        yield from (core, core.replace("+", "-").replace("/", "_"))
    yield b64encode(raw).decode()


def _address(target: Target) -> str:
    """A target's URL; of a templated one what is the same in every request."""
    return target.url if target.url_template is None else skeleton(target.url_template, "")


def _of_body(target: Target) -> frozenset[str]:
    return target.body.outside if isinstance(target.body, TemplateBody) else frozenset()


def _of_headers(target: Target) -> Iterator[str]:
    filled = ((name, part) for name, template in target.header_templates for part in literals(template))
    for name, value in (*target.headers, *filled):
        if tells_secret(name):
            yield value.strip()
            yield from _words(value)
        else:  # one long mixed run is a key, whatever its header is called
            yield from (run for run in _LONG_RUN.findall(value) if _is_mixed(run))


def _of_access(target: Target) -> Iterator[str]:
    """The secrets with which a target, and the proxy before it, are told who we are."""
    yield from auth_secrets(target.auth)
    yield from auth_secrets(target.sign)
    proxy = target.proxy
    if proxy is not None and proxy.password is not None:
        yield from (_text(proxy.password), basic_credentials(proxy.username, proxy.password).decode())


def auth_secrets(auth: Auth | StandardWebhooksCheck | None) -> Iterator[str]:
    """The secrets of one `auth`, in each form in which they leave."""
    match auth:
        case None:
            return
        case QueryKey():
            yield _text(auth.value)
        case OAuth2Client():
            yield from (_text(auth.client_secret), form_basic(auth.client_id, auth.client_secret))
        case _:
            for secret in auth.secrets:
                yield from _of_key(secret)
                if isinstance(auth, BasicCheck):
                    yield basic_credentials(auth.username, secret).decode()
                    yield f"{auth.username}:{_text(secret)}"


def _of_key(secret: Secret) -> Iterator[str]:
    """A key as text, and as base64 where it is written like that."""
    yield _text(secret)
    yield b64encode(secret.value).decode()


def _text(secret: Secret) -> str:
    return secret.value.decode("utf-8", "replace")


def _words(value: str) -> Iterator[str]:
    """The parts of a header's value that are worth something alone: words, values of pairs, a Basic password."""
    for word in _SEPARATORS.split(value):
        if word.lower() in _SCHEMES:
            continue
        yield word
        yield word.partition("=")[2].strip('="')
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "basic" and _BASE64.fullmatch(rest.strip()):
        try:
            pair = b64decode(rest.strip(), validate=True).decode()
        except ValueError:
            return
        yield pair
        yield pair.partition(":")[2]


def keys_of(source: Source) -> frozenset[str]:
    """What a sender knows of its source's secrets, as it may stand in a header."""
    return frozenset(key for key in _of_source(source) if len(key) >= SHORTEST_IN_LOG)


def _of_source(source: Source) -> Iterator[str]:
    """A source's keys as text; where nothing else proves a request, also the part of its path that nobody can guess."""
    for secret in getattr(source.check, "secrets", ()):
        yield secret.value.decode("utf-8", "replace")
        if isinstance(source.check, StandardWebhooksCheck):
            yield b64encode(secret.value).decode()
        if isinstance(source.check, BasicCheck):
            yield basic_credentials(source.check.username, secret).decode()
    if isinstance(source.check, NoCheck):
        yield from _segments(source.path)


def _path(url: str) -> str:
    return urlsplit(url).path


def _of_query(url: str) -> Iterator[tuple[str, str]]:
    """The query's names and values, as written; a part without a name is a value."""
    for part in re.split(r"[&;]", urlsplit(url).query):
        key, equals, value = part.partition("=")
        yield (key, value) if equals else ("", part)


def _segments(url: str) -> set[str]:
    return {segment for segment in _path(url).split("/") if looks_secret(segment)}


def _with_whole(url: str, found: set[str]) -> set[str]:
    """What was found in a URL, and the address that holds it."""
    if not found:
        return found
    parts = urlsplit(url)
    whole = {f"{parts.path}?{parts.query}"} if parts.query else set[str]()
    return found | whole | {part for part in (parts.path, parts.query) if any(secret in part for secret in found)}


def _decoded(found: set[str]) -> set[str]:
    return found | {decode(text) for text in found for decode in (unquote, unquote_plus) if "%" in text}


def tells_secret(name: str) -> bool:
    """Whether a header, or a parameter, of this name holds a credential."""
    return _CREDENTIAL_NAME.search(name) is not None


def looks_secret(text: str) -> bool:
    """Whether a part of an address is too long, or too mixed, to be a mere word."""
    return len(text) >= LONG or (len(text) >= LONG_IF_MIXED and _is_mixed(text))


def _is_mixed(text: str) -> bool:
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text))
