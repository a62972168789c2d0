"""The groups of targets that share one rate, out of what each of their members says.

Law: a group has one rate. Who leaves `rate` out takes the group's; two that differ are refused, and so is a group for
which nobody states one.
"""

from collections.abc import Mapping

from relay.config.downstream import TargetSection
from relay.config.problems import Report
from relay.config.values import shown
from relay.model import Rate
from relay.rules.rate import written


def rates(sections: Mapping[str, TargetSection], report: Report) -> dict[str, Rate]:
    """The rate of each group; what is wrong is reported."""
    found: dict[str, Rate] = {}
    for group, names in _members(sections, report).items():
        stated = {name: rate for name in names if (rate := sections[name].rate) is not None}
        if not stated:
            if not any(report.is_broken(("targets", name, "rate")) for name in names):
                message = f"no target of group {shown(group)} states a rate; give one of them rate: 1/s or another"
                report.refuse(("targets", names[0], "limit_group"), message)
            continue
        first = next(iter(stated))
        for name, rate in stated.items():
            if rate != stated[first]:
                message = (
                    f"targets.{first} and targets.{name} share limit_group {shown(group)}, but not their rate"
                    f" ({written(stated[first])} and {written(rate)}); write the same, or leave one out"
                )
                report.refuse(("targets", name, "rate"), message)
        found[group] = stated[first]
    return found


def _members(sections: Mapping[str, TargetSection], report: Report) -> dict[str, list[str]]:
    """The names of the targets of each group, in their order in the document."""
    members: dict[str, list[str]] = {}
    for name, section in sections.items():
        if section.limit_group is not None and not report.is_broken(("targets", name, "limit_group")):
            members.setdefault(section.limit_group, []).append(name)
    return members
