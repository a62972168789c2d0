"""A target's rate, the groups that share one, and `ordered`."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from relay.config import Config
from relay.model import Rate, Target

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

SECOND = timedelta(seconds=1)
README = Path(__file__).parents[2] / "README.md"


def whole(**targets: dict[str, object]) -> str:
    """A whole config with these targets."""
    verify = {"provider": "custom", "secrets": ["0123456789abcdef"], "verify": {"scheme": "bearer"}}
    return yaml.safe_dump(
        {
            "sources": {"partner": verify},
            "targets": {name: {"url": f"https://{name}.example.com/"} | keys for name, keys in targets.items()},
            "routes": [{"name": "all", "from": ["partner"], "to": list(targets)}],
        },
        sort_keys=False,
    )


def targets(config: Config) -> dict[str, Target]:
    return {target.name: target for target in config.targets}


def messages(lines: list[str]) -> list[str]:
    """The refusals without their places."""
    return [line.split(": ", 1)[1] for line in lines]


def test_a_target_has_its_own_rate(read: Loader) -> None:
    """Without `rate` there is none."""
    found = targets(read(whole(crm={"rate": "150/5m"}, books={})))
    assert (found["crm"].rate, found["crm"].limit_group) == (Rate(150, timedelta(minutes=5)), None)
    assert found["books"].rate is None


def test_the_rate_of_a_group_is_that_of_each_member(read: Loader) -> None:
    """Whoever states it; others may repeat it in another spelling of the same, and a group of one is one too."""
    found = targets(
        read(
            whole(
                crm={"limit_group": "shared"},
                books={"limit_group": "shared", "rate": "2/s"},
                shop={"limit_group": "shared", "rate": "2/1s"},
                alone={"limit_group": "lonely", "rate": "1/m"},
                free={},
            )
        )
    )
    assert {found[name].rate for name in ("crm", "books", "shop")} == {Rate(2, SECOND)}
    assert (found["alone"].rate, found["alone"].limit_group) == (Rate(1, timedelta(minutes=1)), "lonely")
    assert (found["free"].rate, found["free"].limit_group) == (None, None)


def test_two_rates_in_a_group_are_refused_by_both_names(refusals: Refuser) -> None:
    """The group has one bucket, so it has one rate."""
    lines = refusals(
        whole(crm={"limit_group": "shared", "rate": "1/s"}, books={"limit_group": "shared", "rate": "150/5m"})
    )
    (line,) = messages(lines)
    assert line.startswith('targets.books.rate: targets.crm and targets.books share limit_group "shared", ')
    assert line.endswith("but not their rate (1/s and 150/5m); write the same, or leave one out")


def test_a_group_without_a_rate_is_refused(refusals: Refuser) -> None:
    """A group that limits nothing is a mistake."""
    lines = refusals(whole(crm={"limit_group": "shared"}, books={"limit_group": "shared"}))
    assert messages(lines) == [
        'targets.crm.limit_group: no target of group "shared" states a rate; give one of them rate: 1/s or another'
    ]


def test_a_rate_that_cannot_be_read_is_told_once(refusals: Refuser) -> None:
    """Its group is not said to have none as well."""
    lines = refusals(whole(crm={"limit_group": "shared", "rate": "fast"}, books={"limit_group": "shared"}))
    assert messages(lines) == ['targets.crm.rate: "fast" is not a rate (write 100/s or 150/5m)']


@pytest.mark.parametrize("name", ["Shared", "a b", "x" * 65, "-"])
def test_a_group_is_named_like_a_target(refused: Refuser, name: str) -> None:
    """Lower case, digits, `_` and `-`."""
    assert refused(target={"limit_group": name, "rate": "1/s"}) == [
        "targets.crm.limit_group: the name of a group must match [a-z0-9][a-z0-9_-]{0,63}"
    ]


def test_an_ordered_target_gets_one_at_a_time(build: Loader, refused: Refuser) -> None:
    """Whoever writes another concurrency beside `ordered: true` has to choose."""
    (target,) = build(target={"ordered": True}).targets
    assert (target.ordered, target.concurrency) == (True, 1)
    (target,) = build(target={"ordered": True, "concurrency": 1}).targets
    assert (target.ordered, target.concurrency) == (True, 1)
    (target,) = build(target={"ordered": False, "concurrency": 3}).targets
    assert (target.ordered, target.concurrency) == (False, 3)
    assert refused(target={"ordered": True, "concurrency": 2}) == [
        "targets.crm.concurrency: an ordered target gets one event at a time; remove it or write 1"
    ]
    assert refused(target={"ordered": "yes"}) == ["targets.crm.ordered: must be true or false, found string"]


def test_probes_of_an_ordered_target_are_doubted(warned: Refuser) -> None:
    """They have no waits of their own; `never` is understood."""
    assert warned(target={"ordered": True, "probe": {"first": "10s", "max": "1m"}}) == [
        "targets.crm.probe: an ordered target is tried by its retry schedule; only `never` means something"
    ]
    assert warned(target={"ordered": True, "probe": "never"}) == []


def shown(chapter: str) -> str:
    """The YAML of a chapter of the README."""
    text = README.read_text().partition(f"### {chapter}\n")[2]
    return text.partition("```yaml\n")[2].partition("```")[0]


@pytest.mark.parametrize("chapter", ["No faster than it can bear", "In order of arrival"])
def test_the_readme_shows_what_can_be_run(read: Loader, chapter: str) -> None:
    """Its examples of a target's manners are whole targets, and mean what is said beside them."""
    written = yaml.safe_load(shown(chapter))["targets"]
    config = yaml.safe_load(whole(crm={}))
    config["targets"] = written
    config["routes"][0]["to"] = list(written)
    found = targets(read(yaml.safe_dump(config, sort_keys=False), SLACK_WEBHOOK_URL="https://hooks.example.com/x"))
    assert list(found) == list(written)
    if "moneybird" in found:
        assert found["moneybird"].rate == found["moneybird-contacts"].rate == Rate(150, timedelta(minutes=5))
        assert found["moneybird"].limit_group == found["moneybird-contacts"].limit_group
        assert found["slack"].rate == Rate(1, SECOND)
    else:
        assert found["ledger"].ordered
