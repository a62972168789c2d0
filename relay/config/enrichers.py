"""Enrichers out of their sections, with every check that one of them alone needs.

Law: who is asked stands in the YAML: the scheme and the host are literal, egress has its say on them, and a token that
an API demands cannot be forgotten.
"""

from collections.abc import Iterator, Mapping

from relay.config import credentials, headers, keys, templates, urls, values
from relay.config.downstream import LOOKED_UP, EnricherSection
from relay.config.expansion import Expanded
from relay.config.problems import KeyPath, Refused, Report, suggestion
from relay.config.settings import Address
from relay.config.urls import TargetUrl
from relay.model import Auth, BearerCheck, Enricher, Lookup
from relay.providers import PROVIDERS
from relay.rules.dropping import steps
from relay.rules.egress import EgressPolicy
from relay.rules.expressions import NoExpression

_OF_PROVIDERS = ("token", "base_url", "include")
_OF_TEMPLATES = ("method", "body", "take")


def enricher(
    name: str, section: EnricherSection, *, egress: EgressPolicy, listen: Address, report: Report
) -> Enricher | None:
    """The enricher, None when it is refused; all that is wrong is reported."""
    path: KeyPath = ("enrichers", name)
    egress = EgressPolicy() if report.is_broken(("egress",)) else egress
    provider = None if section.provider is None else PROVIDERS[section.provider]
    lookup = None if provider is None else provider.lookup
    _check_keys(section, path, report)
    headers.check(section.headers, (*path, "headers"), report)
    auth = _auth(section, "its API" if provider is None else provider.title, path, egress, listen, report)
    _check_drop(section, path, report)
    _check_include(section, lookup, path, report)
    found = _url(section, lookup, egress, path, report)
    if found is None:
        return None
    url, template = found
    urls.warn_doubtful(url, listen, report.warner((*path, "url" if lookup is None else "base_url")))
    return Enricher(
        name=name,
        url=url.url,
        url_template=template,
        method=section.method,
        headers=tuple((key, value.text) for key, value in section.headers.items() if value.template is None),
        header_templates=tuple((key, value.template) for key, value in section.headers.items() if value.template),
        body=None if section.body is None else templates.template_body(section.body),
        auth=auth,
        timeout=section.timeout,
        take=section.take if lookup is None else lookup.take,
        drop=tuple(map(str, section.drop)),
        include=tuple(map(str, section.include)),
        lookup=lookup,
    )


def _check_keys(section: EnricherSection, path: KeyPath, report: Report) -> None:
    """Report keys that say nothing here, or that are missing."""
    given = section.model_fields_set
    is_broken = report.is_broken((*path, "provider")) or report.is_broken((*path, "url"))
    if section.provider is None and section.url is None and not is_broken:
        report.refuse(path, f"needs a provider ({', '.join(LOOKED_UP)}) or a url")
    if section.provider is not None and section.url is not None:
        report.refuse((*path, "url"), "has no meaning beside provider, which knows its own; base_url moves it")
    unread = () if is_broken else _OF_PROVIDERS if section.provider is None else _OF_TEMPLATES
    for key in unread:
        if key in given:
            what = "without a provider" if section.provider is None else f"for provider {section.provider}"
            report.refuse((*path, key), f"has no meaning {what}")
    if "body" in given and section.method == "GET" and section.provider is None:
        report.refuse((*path, "body"), "a GET has none; write method: POST")


def _auth(
    section: EnricherSection, title: str, path: KeyPath, egress: EgressPolicy, listen: Address, report: Report
) -> Auth | None:
    named = {name.lower() for name in section.headers}
    auth: Auth | None = None
    if section.token is not None and section.auth is not None:
        report.refuse((*path, "auth"), "token is given as well; keep one of the two")
    elif section.token is not None:
        try:
            auth = BearerCheck((keys.own_secret(section.token, in_header=True),))
        except Refused as refused:
            report.refuse((*path, "token"), str(refused))
    elif section.auth is not None:
        auth = credentials.auth(section.auth, (*path, "auth"), egress=egress, listen=listen, report=report)
    elif section.provider is not None and not {"authorization"} & named and not _is_broken(path, report):
        report.refuse((*path, "token"), f"missing; the API of {title} wants one")
    for header, key in credentials.set_headers(auth, None):
        if reason := headers.reserved(header):
            report.refuse((*path, key), f"{header}: {reason}")
        if header in named:
            report.refuse((*path, "headers"), f"{header} is set by {'token' if section.token else key} as well")
    return auth


def _is_broken(path: KeyPath, report: Report) -> bool:
    return any(report.is_broken((*path, key)) for key in ("token", "auth"))


def _check_drop(section: EnricherSection, path: KeyPath, report: Report) -> None:
    for index, text in enumerate(section.drop):
        try:
            steps(text)
        except NoExpression as error:
            report.refuse((*path, "drop", index), f"{values.shown(text)} {_words(text, error)}")


def _words(text: str, error: NoExpression) -> str:
    is_named = error.unknown_function is not None and isinstance(text, Expanded)
    return "calls a JMESPath function that does not exist" if is_named else str(error)


def _check_include(section: EnricherSection, lookup: Lookup | None, path: KeyPath, report: Report) -> None:
    if lookup is None:
        return
    for index, name in enumerate(section.include):
        if not lookup.includes:
            report.refuse((*path, "include"), f"has no meaning for provider {section.provider}")
            return
        if name not in lookup.includes:
            hint = suggestion(str(name), lookup.includes) or f"; known: {', '.join(sorted(lookup.includes))}"
            report.refuse((*path, "include", index), f"unknown include {values.shown(name)}{hint}")


def _url(
    section: EnricherSection, lookup: Lookup | None, egress: EgressPolicy, path: KeyPath, report: Report
) -> tuple[TargetUrl, str | None] | None:
    """Where it is, and its template where it has one; None when it is refused."""
    key = "url" if lookup is None else "base_url"
    try:
        if lookup is not None:
            url, template = urls.parsed(section.base_url or lookup.base_url), None
            if "?" in url.url:
                raise Refused("must not have a query: paths are put behind it")
        elif section.url is not None:
            url, template = templates.templated_url(section.url)
        else:
            return None
        urls.refuse_forbidden(url, egress)
    except Refused as refused:
        report.refuse((*path, key), str(refused))
        return None
    return url, template


def inline_secrets(sections: Mapping[str, EnricherSection]) -> Iterator[KeyPath]:
    """Where secrets stand in the file itself."""
    for name, section in sections.items():
        path: KeyPath = ("enrichers", name)
        if section.token is not None and section.token.inline:
            yield (*path, "token")
        yield from credentials.inline_secrets(section.auth, None, None, path)
        yield from credentials.inline_in_texts(section.headers, section.url, path)
