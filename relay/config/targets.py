"""Targets out of their sections, with every check that one of them alone needs."""

from datetime import timedelta

from relay.config import credentials, headers, templates, urls, values
from relay.config.downstream import TargetSection
from relay.config.expansion import Expanded
from relay.config.expressions import expression
from relay.config.problems import KeyPath, Refused, Report
from relay.config.settings import Address
from relay.config.values import duration_text
from relay.model import Auth, Body, PresetBody, RawBody, StandardWebhooksCheck, Target
from relay.rules.egress import EgressPolicy

_NEVER_USED = timedelta(minutes=15)
"""The longest wait between probes of a target that is never probed."""


def target(
    name: str, section: TargetSection, *, egress: EgressPolicy, listen: Address, report: Report
) -> Target | None:
    """The target, None when its URL is refused; all that is wrong is reported."""
    path: KeyPath = ("targets", name)
    headers.check(section.headers, (*path, "headers"), report)
    _check_header_lists(section, path, report)
    _check_statuses(section, path, report)
    _check_manners(section, path, report)
    body = _body(section, path, report)
    egress = EgressPolicy() if report.is_broken(("egress",)) else egress
    auth, sign = _credentials(section, path, egress, listen, report)
    proxy = None
    if section.proxy is not None:
        proxy = credentials.proxy(section.proxy, (*path, "proxy"), egress=egress, report=report)
    _check_success_when(section, path, report)
    try:
        url, url_template = templates.templated_url(section.url)
        urls.refuse_forbidden(url, egress)
    except Refused as refused:
        report.refuse((*path, "url"), str(refused))
        return None
    urls.warn_doubtful(url, listen, report.warner((*path, "url")))
    tls = None
    if section.tls is not None:
        tls = credentials.client_tls(section.tls, (*path, "tls"), scheme=url.scheme, report=report)
    return Target(
        name=name,
        url=url.url,
        headers=tuple((key, value.text) for key, value in section.headers.items() if value.template is None),
        timeout=section.timeout,
        concurrency=1 if section.ordered else section.concurrency,
        schedule=tuple(section.retry.schedule),
        disable_after=section.disable_after,
        probe_first=section.probe.first if section.probe else None,
        probe_max=section.probe.max if section.probe else _NEVER_USED,
        success=section.success,
        refusals=section.refusals,
        forward_headers=frozenset(map(str.lower, section.forward_headers)),
        strip_headers=frozenset(map(str.lower, section.strip_headers)),
        rate=section.rate,
        limit_group=section.limit_group,
        ordered=section.ordered,
        body=body,
        format=section.format,
        url_template=url_template,
        header_templates=tuple((key, value.template) for key, value in section.headers.items() if value.template),
        auth=auth,
        sign=sign,
        tls=tls,
        proxy=proxy,
        success_when=None if section.success_when is None else str(section.success_when),
    )


def _check_manners(section: TargetSection, path: KeyPath, report: Report) -> None:
    """Report what does not go together in how fast, in which order and when a target is tried."""
    if section.ordered and "concurrency" in section.model_fields_set and section.concurrency > 1:
        report.refuse((*path, "concurrency"), "an ordered target gets one event at a time; remove it or write 1")
    if section.limit_group is not None and not values.NAME.fullmatch(section.limit_group):
        report.refuse((*path, "limit_group"), f"the name of a group must match {values.NAME.pattern}")
    if section.ordered and section.probe is not None and "probe" in section.model_fields_set:
        report.warn((*path, "probe"), "an ordered target is tried by its retry schedule; only `never` means something")
    probe = None if report.is_broken((*path, "probe")) else section.probe
    if probe is not None and probe.first > probe.max:
        first, longest = duration_text(probe.first), duration_text(probe.max)
        report.refuse((*path, "probe"), f"first ({first}) must not be longer than max ({longest})")


def _body(section: TargetSection, path: KeyPath, report: Report) -> Body | None:
    if report.is_broken((*path, "body")):
        return None
    if "body" not in section.model_fields_set:
        body: Body | None = None
    elif section.body is None:
        body = RawBody()
    else:
        try:
            body = templates.body(section.body)
        except Refused as refused:
            report.refuse((*path, "body"), str(refused))
            return None
    if section.format is not None and not report.is_broken((*path, "body")):
        if body is None or isinstance(body, RawBody):
            message = "encodes a body that is made: say body: {template: …} or body: {pick: …} as well, or remove it"
            report.refuse((*path, "format"), message)
        elif isinstance(body, PresetBody):
            report.refuse((*path, "format"), f"preset {body.preset} has its own format; remove this key")
    return body


def _credentials(
    section: TargetSection, path: KeyPath, egress: EgressPolicy, listen: Address, report: Report
) -> tuple[Auth | None, StandardWebhooksCheck | None]:
    """How the target is told who we are; a header that two keys would set is refused."""
    auth, sign = None, None
    if section.auth is not None:
        auth = credentials.auth(section.auth, (*path, "auth"), egress=egress, listen=listen, report=report)
    if section.sign is not None:
        sign = credentials.signing(section.sign, (*path, "sign"), report)
    own = {name.lower(): name for name in section.headers}
    forwarded = {name.lower(): index for index, name in enumerate(section.forward_headers)}
    setters: dict[str, str] = {}
    for name, key in credentials.set_headers(auth, sign):
        if reason := headers.reserved(name):
            report.refuse((*path, key), f"{name}: {reason}")
        if name in own:
            report.refuse((*path, "headers", own[name]), f"set by {key} as well; remove one of the two")
        if name in forwarded:
            report.refuse((*path, "forward_headers", forwarded[name]), f"{name} is set by {key}; remove one of the two")
        if setters.setdefault(name, key) != key:
            report.refuse((*path, key), f"sets {name}, as {setters[name]} does; remove one of the two")
    return auth, sign


def _check_success_when(section: TargetSection, path: KeyPath, report: Report) -> None:
    if section.success_when is None:
        return
    try:
        expression(section.success_when)
    except Refused as refused:
        report.refuse((*path, "success_when"), str(refused))


def _check_header_lists(section: TargetSection, path: KeyPath, report: Report) -> None:
    for index, name in enumerate(section.forward_headers):
        if reason := headers.reserved(name.lower()):
            report.refuse((*path, "forward_headers", index), f"{_named(name)} is never forwarded: {reason}")
    forwarded = {name.lower() for name in section.forward_headers}
    for index, name in enumerate(section.strip_headers):
        if name.lower() in forwarded:
            report.refuse((*path, "strip_headers", index), f"{_named(name)} stands under forward_headers as well")


def _named(header: str) -> str:
    return values.shown(header) if isinstance(header, Expanded) else header


def _check_statuses(section: TargetSection, path: KeyPath, report: Report) -> None:
    if section.success is None:
        return
    if not section.success.ranges:
        report.refuse((*path, "success"), "an empty list would never deliver; remove it or name statuses")
    if "refusals" not in section.model_fields_set:
        return
    both = next(
        (status for status in range(200, 600) if status in section.success and status in section.refusals), None
    )
    if both is not None:
        report.refuse((*path, "refusals"), f"{both} stands under success as well")
