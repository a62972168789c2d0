"""No key does nothing: each one changes what is built, and what it does then is shown by a test that is named here."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config import Config, ConfigRefused
from tests.support.certificates import Authority, self_signed
from tests.support.config_keys import every_key

Loader = Callable[..., Config]

ABSENT, REFUSED = object(), object()
WHOLE: dict[str, Any] = {
    "sources": {"partner": {"provider": "custom", "secrets": ["0123456789abcdef"], "verify": {"scheme": "bearer"}}},
    "targets": {"crm": {"url": "https://crm.example.com/hooks"}, "other": {"url": "https://other.example.com/"}},
    "enrichers": {"stock": {"url": "https://stock.example.com/x"}},
    "routes": [{"name": "all", "from": ["partner"], "to": [{"target": "crm"}], "enrich": "stock"}],
}
HMAC = {"scheme": "hmac", "header": "X-Sig", "algorithm": "sha256"}
BY_HMAC = HMAC | {"secret": "0123456789abcdef"}
BY_OAUTH = {"scheme": "oauth2", "token_url": "https://a.example.com/t", "client_id": "me", "client_secret": "secret-1"}
PLUGANDPAY = {"provider": "plugandpay", "token": "token-1", "url": ABSENT}
PROXY = {"url": "http://proxy.example.com:1", "username": "me", "password": "password-1"}


@dataclass(frozen=True)
class Knob:
    """Two values of a key, what stands beside it, and the test that shows what the key does."""

    one: Any
    other: Any
    shown_by: str
    beside: dict[str, Any] = field(default_factory=dict)


def _of_hmac(shown_by: str, base: dict[str, Any]) -> dict[str, Knob]:
    """The keys that describe an HMAC."""
    signed = {"signed": "{id}.{timestamp}.{body}", "timestamp_header": "X-T", "id_header": "X-I"}
    return {
        "header": Knob("X-Sig", "X-Other", shown_by, base),
        "algorithm": Knob("sha256", "sha512", shown_by, base),
        "allow_weak": Knob(
            True, REFUSED, "test_sha1_is_accepted_when_asked_for_and_warned_about", base | {"algorithm": "sha1"}
        ),
        "encoding": Knob("hex", "base64", shown_by, base),
        "prefix": Knob("a=", "b=", shown_by, base),
        "signed": Knob("{body}", "x{body}", shown_by, base),
        "timestamp_header": Knob("X-T", "X-U", shown_by, base | signed),
        "id_header": Knob("X-I", "X-J", shown_by, base | signed),
    }


def _of_auth(place: str) -> Iterator[tuple[str, Knob]]:
    """The keys of `auth`, of a target or an enricher."""
    static = "test_a_static_credential_leaves_in_its_header"
    key = {"scheme": "api_key", "header": "X-Key", "value": "value-1"}
    knobs = _of_hmac("test_every_key_and_body_can_be_signed_and_proven", BY_HMAC) | {
        "scheme": Knob("bearer", ABSENT, static, {"token": "t-1"}),
        "token": Knob("token-1", "token-2", static, {"scheme": "bearer"}),
        "username": Knob("me", "you", static, {"scheme": "basic", "password": "password-1"}),
        "password": Knob("password-1", "password-2", static, {"scheme": "basic", "username": "me"}),
        "query": Knob("k", "l", "test_a_key_may_stand_in_the_query", key | {"header": ABSENT}),
        "value": Knob("value-1", "value-2", static, key),
        "secret": Knob("0123456789abcdef", "0123456789abcdeg", "test_a_digest_covers_the_body_that_is_sent", BY_HMAC),
        "token_url": Knob(
            "https://a.example.com", "https://b.example.com", "test_a_fetched_token_leaves_as_a_bearer", BY_OAUTH
        ),
    }
    other = "test_other_clients_scopes_and_audiences_have_tokens_of_their_own"
    for name in ("client_id", "client_secret", "scope", "audience"):
        knobs[name] = Knob("one-1", "two-2", other, BY_OAUTH)
    knobs["client_auth"] = Knob("header", "body", "test_a_client_may_prove_itself_in_the_form", BY_OAUTH)
    return ((f"{place}.auth.{name}", knob) for name, knob in knobs.items())


def knobs() -> dict[str, Knob]:
    """All of them, by key."""
    proxied = "test_a_target_is_reached_through_its_proxy"
    found = {
        "server.listen": Knob("127.0.0.1:1", "127.0.0.1:2", "test_the_example_runs_and_stops"),
        "server.max_body": Knob("1KiB", "2KiB", "test_a_body_of_just_the_limit_is_taken"),
        "server.trusted_proxies": Knob(["10.0.0.1"], [], "test_the_rightmost_untrusted_address_is_the_client"),
        "server.max_connections": Knob(8, 16, "test_where_all_are_busy_one_more_is_told_to_come_again"),
        "server.header_timeout": Knob("1s", "2s", "test_a_head_that_drips_is_cut_at_its_deadline"),
        "server.body_timeout": Knob("1s", "2s", "test_a_body_that_drips_is_408_at_its_deadline"),
        "server.drain_timeout": Knob(
            "1s", "2s", "test_an_attempt_that_outlasts_the_stop_is_interrupted_and_made_again"
        ),
        "server.tls.cert": Knob("cert.pem", "more.pem", "test_a_certificate_is_read_anew", {"key": "key.pem"}),
        "server.tls.key": Knob("key.pem", "same.pem", "test_a_certificate_is_read_anew", {"cert": "cert.pem"}),
        "admin.listen": Knob("127.0.0.1:1", "127.0.0.1:2", "test_the_example_runs_and_stops"),
        "admin.token": Knob("0123456789abcdef", ABSENT, "test_every_other_call_needs_the_token_first"),
        "store.url": Knob("sqlite:///a.db", "sqlite:///b.db", "test_a_relay_goes_on_from_its_backup"),
        "store.retention.delivered": Knob("1d", "2d", "test_delivered_and_dead_events_go_when_their_time_is_over"),
        "store.retention.dead": Knob("1d", "2d", "test_delivered_and_dead_events_go_when_their_time_is_over"),
        "store.retention.max_size": Knob(
            "1GiB", "2GiB", "test_when_only_others_are_left_new_events_are_refused_until_there_is_room"
        ),
        "egress.policy": Knob("private", "public", "test_what_is_not_public_is_open_under_private_alone"),
        "egress.allow": Knob(["10.0.0.1"], [], "test_allow_opens_and_deny_wins"),
        "egress.deny": Knob(["10.0.0.1"], [], "test_allow_opens_and_deny_wins"),
        "log.level": Knob("debug", "info", "test_levels_are_kept_and_a_reload_changes_those_of_all_loggers"),
        "log.format": Knob("json", "console", "test_a_reload_changes_the_format_of_all_loggers"),
        "sources.*.provider": Knob(
            "standard_webhooks", "svix", "test_a_sample_of_every_source_is_believed", {"verify": ABSENT}
        ),
        "sources.*.secrets": Knob(["0123456789abcdef"], ["0123456789abcdeg"], "test_a_secret_is_rotated_twice"),
        "sources.*.verify.scheme": Knob("bearer", "standard_webhooks", "test_all_refusals_of_proof_are_the_same_bytes"),
        "sources.*.verify.username": Knob(
            "me", "you", "test_all_refusals_of_proof_are_the_same_bytes", {"scheme": "basic"}
        ),
        "sources.*.verify.tolerance": Knob(
            "1m",
            "2m",
            "test_five_minutes_either_way_are_in_time_and_a_second_more_is_not",
            {"scheme": "standard_webhooks"},
        ),
        "sources.*.enforce": Knob(False, True, "test_an_unenforced_check_lets_through_tells_and_marks"),
        "sources.*.path": Knob("/a", "/b", "test_a_source_may_have_a_path_of_its_own"),
        "sources.*.allow_ips": Knob(["10.0.0.1"], ABSENT, "test_address_and_key_are_both_needed"),
        "sources.*.rate": Knob("1/s", ABSENT, "test_a_source_over_its_rate_waits_and_the_others_do_not"),
        "sources.*.respond.status": Knob(
            200, 202, "test_another_status_may_stand_for_accepted_but_a_duplicate_gets_200"
        ),
        "sources.*.expect_every": Knob("1h", ABSENT, "test_a_silent_source_is_told_once_until_it_is_heard_again"),
        "sources.*.event_type": Knob("type", "kind", "test_sources_come_go_and_change"),
        "sources.*.dedupe_key": Knob("id", "key", "test_a_duplicate_gets_the_first_id_and_no_second_delivery"),
        "targets.*.url": Knob("https://a.example.com/", "https://b.example.com/", "test_targets_come_go_and_change"),
        "targets.*.headers": Knob(
            {"X-A": "1"}, {"X-A": "2"}, "test_what_a_reload_changes_rules_the_very_next_request_and_attempt"
        ),
        "targets.*.body.template": Knob(
            "{{ id }}", "{{ type }}", "test_every_example_of_the_readme_arrives_as_it_says"
        ),
        "targets.*.body.pick": Knob("body.a", "body.b", "test_every_example_of_the_readme_arrives_as_it_says"),
        "targets.*.body.preset": Knob("slack", "teams", "test_every_example_of_the_readme_arrives_as_it_says"),
        "targets.*.body.text": Knob(
            "a", "b", "test_every_example_of_the_readme_arrives_as_it_says", {"preset": "slack"}
        ),
        "targets.*.format": Knob(
            "json", "form", "test_every_example_of_the_readme_arrives_as_it_says", {"body": {"pick": "id"}}
        ),
        "targets.*.timeout": Knob("1s", "2s", "test_timeouts_of_fifteen_seconds_pace_and_disable_as_well"),
        "targets.*.concurrency": Knob(1, 2, "test_a_slow_target_is_limited_by_its_slots_and_its_rate"),
        "targets.*.retry.schedule": Knob(["1s"], ["2s"], "test_waits_are_the_schedules_within_a_fifth"),
        "targets.*.disable_after": Knob(5, "never", "test_five_failures_take_five_waits"),
        "targets.*.probe.first": Knob("1s", "2s", "test_a_probe_is_punctual"),
        "targets.*.probe.max": Knob("10m", "20m", "test_a_probe_is_punctual"),
        "targets.*.success": Knob([200], [201], "test_the_lists_of_the_target_win_over_the_table"),
        "targets.*.refusals": Knob([400], [401], "test_the_lists_of_the_target_win_over_the_table"),
        "targets.*.forward_headers": Knob(["Cookie"], [], "test_a_sources_old_key_reaches_no_target_after_a_reload"),
        "targets.*.strip_headers": Knob(["X-A"], [], "test_strip_headers_take_away_whatever_the_provider_sent"),
        "targets.*.rate": Knob("1/s", "2/s", "test_a_rate_is_kept_under_load"),
        "targets.*.limit_group": Knob("a", "b", "test_a_group_keeps_its_rate_over_real_sockets", {"rate": "1/s"}),
        "targets.*.ordered": Knob(True, False, "test_events_arrive_one_at_a_time_in_order_of_arrival"),
        "targets.*.sign.secrets": Knob(
            ["0123456789abcdef"], ["0123456789abcdeg"], "test_both_keys_sign_while_they_rotate"
        ),
        "targets.*.tls.ca": Knob("ca.pem", "ca2.pem", "test_a_private_authority_is_trusted_where_it_is_named"),
        "targets.*.tls.cert": Knob(
            "cert.pem", "more.pem", "test_a_client_certificate_is_shown_to_who_asks", {"key": "key.pem"}
        ),
        "targets.*.tls.key": Knob(
            "key.pem", "same.pem", "test_a_client_certificate_is_shown_to_who_asks", {"cert": "cert.pem"}
        ),
        "targets.*.tls.insecure": Knob(
            True,
            False,
            "test_certificates_are_checked_unless_the_yaml_says_otherwise",
            {"cert": "cert.pem", "key": "key.pem"},
        ),
        "targets.*.proxy.url": Knob("http://a.example.com:1", "http://b.example.com:1", proxied),
        "targets.*.proxy.username": Knob("me", "you", proxied, PROXY),
        "targets.*.proxy.password": Knob("password-1", "password-2", proxied, PROXY),
        "targets.*.success_when": Knob("a", "b", "test_a_condition_on_the_answer_decides_what_a_success_is"),
        "enrichers.*.provider": Knob("plugandpay", "xoxoday", "test_a_token_is_all_that_plugandpay_needs", PLUGANDPAY),
        "enrichers.*.token": Knob("token-1", "token-2", "test_a_token_is_all_that_plugandpay_needs", PLUGANDPAY),
        "enrichers.*.base_url": Knob(
            "https://a.example.com", ABSENT, "test_a_token_is_all_that_plugandpay_needs", PLUGANDPAY
        ),
        "enrichers.*.include": Knob(
            ["billing"], ["items"], "test_plugandpay_is_asked_for_what_was_triggered", PLUGANDPAY
        ),
        "enrichers.*.url": Knob("https://a.example.com/", "https://b.example.com/", "test_any_other_api_is_described"),
        "enrichers.*.method": Knob("GET", "POST", "test_a_template_asks_for_the_event"),
        "enrichers.*.headers": Knob({"X-A": "1"}, {"X-A": "2"}, "test_a_template_asks_for_the_event"),
        "enrichers.*.body": Knob("{{ id }}", "{{ type }}", "test_a_template_asks_for_the_event", {"method": "POST"}),
        "enrichers.*.timeout": Knob("1s", "2s", "test_an_enricher_that_fails_is_left_alone_and_costs_no_step"),
        "enrichers.*.take": Knob("a", "b", "test_only_what_counts_of_an_answer_is_kept"),
        "enrichers.*.drop": Knob(["a"], ["b"], "test_only_what_counts_of_an_answer_is_kept"),
        "routes.name": Knob("a", "b", "test_each_route_and_target_says_why"),
        "routes.from": Knob(["partner"], ["relay"], "test_the_relays_own_events_are_chosen_likewise"),
        "routes.match.type": Knob(["a"], ["b"], "test_each_route_and_target_says_why"),
        "routes.match.headers": Knob({"X-A": "1"}, {"X-A": "2"}, "test_each_route_and_target_says_why"),
        "routes.enrich": Knob("stock", ABSENT, "test_all_targets_of_an_event_share_one_fetch"),
        "routes.when": Knob("body.a", "body.b", "test_each_route_and_target_says_why"),
        "routes.to": Knob(["crm"], ["other"], "test_an_event_goes_to_every_target_it_is_for"),
        "routes.to.target": Knob("crm", "other", "test_an_event_goes_to_every_target_it_is_for"),
        "routes.to.when": Knob("body.a", "body.b", "test_a_condition_on_what_was_fetched_decides_for_each_target"),
    }
    for name, knob in _of_hmac("test_what_a_provider_signs_is_believed_and_names_its_key", HMAC).items():
        found[f"sources.*.verify.{name}"] = knob
    return found | dict(_of_auth("targets.*")) | dict(_of_auth("enrichers.*"))


KNOBS = knobs()


def turned(key: str, value: Any) -> str:
    """A whole config with one key at a value."""
    whole = copy.deepcopy(WHOLE)
    steps = next(one.path for one in every_key() if one.text == key)
    holder: Any = whole
    for step in steps[:-1]:
        holder = holder[step] if isinstance(holder, list) else holder.setdefault(step, {})
    holder |= KNOBS[key].beside
    holder[steps[-1]] = value
    for name in [name for name, given in holder.items() if given is ABSENT]:
        del holder[name]
    if steps[-1] == "scheme" and value is ABSENT:
        del whole[str(steps[0])][steps[1]]["auth"]
    return yaml.safe_dump(whole, sort_keys=False)


@pytest.fixture
def files(tmp_path: Path) -> None:
    """The certificates that some keys name."""
    cert, key = self_signed(tmp_path, "127.0.0.1")
    (tmp_path / "more.pem").write_bytes(cert.read_bytes())
    (tmp_path / "same.pem").write_bytes(key.read_bytes())
    (tmp_path / "same.pem").chmod(0o600)
    Authority(tmp_path)
    Authority(tmp_path, "ca2")


@pytest.mark.row("B34")
@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("key", KNOBS)
def test_a_key_changes_what_is_built(read: Loader, key: str) -> None:
    """Two values of it make two relays; one that came out the same would be a knob that turns nothing."""
    knob = KNOBS[key]
    one = read(turned(key, knob.one))
    if knob.other is REFUSED:
        with pytest.raises(ConfigRefused):
            read(turned(key, ABSENT))
    else:
        assert one != read(turned(key, knob.other))


@pytest.mark.row("B34")
def test_every_key_has_a_knob() -> None:
    """A key that is new cannot come without a test of what it does."""
    leaves = {key.text for key in every_key() if not key.is_section}
    holders = {key.text for key in every_key() if any(other.startswith(f"{key.text}.*") for other in leaves)}
    assert leaves - holders - {"routes"} == KNOBS.keys()


@lru_cache
def _names() -> frozenset[str]:
    folder = Path(__file__).parents[1]
    return frozenset(
        name
        for file in folder.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    )


@pytest.mark.row("B34")
@pytest.mark.parametrize("key", KNOBS)
def test_what_a_key_does_is_shown(key: str) -> None:
    """The test that shows it is there."""
    assert KNOBS[key].shown_by in _names()
